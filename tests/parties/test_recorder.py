"""What is made ready before a run, measured in its course, and written down of its model."""

from __future__ import annotations

import json
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.learn.block_cache import TellProgress
from mpcfl.learn.evaluate import evaluate
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.parties.events import (
    Ended,
    Event,
    Preparing,
    RoundDone,
    Stopped,
    from_json,
    to_json,
)
from mpcfl.parties.program import _agree_on_start, _tenths
from mpcfl.parties.setup import Rank, make_rank
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RunRecord

sys.path.append(str(Path(__file__).parent))

from parties_in_threads import Line, Ran, connected, run_job

pytestmark = pytest.mark.usefixtures("no_page")


class HalfFrozen(nn.Module):
    """A head, and something beside it that is not trained."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.base = nn.Linear(3, 2).requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(inputs))


class Prepared(Line):
    """A task with all that a task may have."""

    def __init__(self, base: str = "none") -> None:
        self.base = base
        self.is_ready = False

    def prepare(self, progress: TellProgress) -> None:
        for done in range(41):
            progress("things", done, 40)
        self.is_ready = True

    def model(self) -> nn.Module:
        assert self.is_ready, "the model may need what is prepared"
        return HalfFrozen(super().model())

    def examples(self) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = super().party_data(0, 1)
        return inputs[:2], targets[:2]

    def about(self) -> dict[str, Any]:
        return {"base": self.base, "layers": 2}

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "weights.json").write_text(json.dumps(weights_of(model)))


class Unready(Prepared):
    """Its data can't be made ready."""

    def prepare(self, progress: TellProgress) -> None:
        raise ConfigError("there is no disk; buy one")


def weights_of(model: nn.Module) -> list[float]:
    return [float(value) for p in model.parameters() for value in p.detach().flatten()]


def make_job(task: str = "Prepared", **tables: Any) -> Job:
    document = {
        "task": f"{'parties_in_threads' if task == 'Line' else __name__}:{task}",
        "parties": {"count": 2, "names": ["ada", "ben"]},
        "privacy": {"unit": "record", "epsilon": 8.0, "records": 8, "sample_rate": 0.5},
        "training": {"rounds": 5},
        "aggregation": {"backend": "ring"},
    }
    for name, table in tables.items():
        document[name] = {**document.get(name, {}), **table}
    return parse_job(document, "inline")


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Job], Ran]:
    return lambda job: run_job(job, RunFolder(tmp_path / "run"))


def events_of(ran: Ran, kind: type) -> list[Any]:
    return [event for event in ran.events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("every", "measured"),
    [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (100, [5])],
)
def test_the_model_is_measured_at_the_due_rounds_and_at_the_last(
    run: Callable[[Job], Ran], every: int, measured: list[int]
) -> None:
    ran = run(make_job("Line", training={"evaluate_every": every}))
    told = [event.round for event in events_of(ran, RoundDone) if event.metrics]
    assert told == measured
    record = RunRecord.load(ran.folder.run_json)
    assert [entry.round for entry in record.rounds if entry.loss is not None] == measured
    assert len(record.rounds) == 5
    assert record.metrics["loss"] == record.rounds[-1].loss
    assert events_of(ran, Ended)[0].metrics == record.metrics
    # What is left out costs nothing, and its line says nothing of it.
    lines = [event.line() for event in events_of(ran, RoundDone)]
    assert [number for number, line in enumerate(lines, 1) if "loss" in line] == measured


def test_a_run_that_stops_early_is_measured_at_its_end(run: Callable[[Job], Ran]) -> None:
    privacy = {"noise_multiplier": 2.0, "epsilon": 4.0}
    ran = run(make_job("Line", privacy=privacy, training={"rounds": 40, "evaluate_every": 1000}))
    record = RunRecord.load(ran.folder.run_json)
    assert events_of(ran, Stopped)
    assert record.stopped_early
    assert 0 < len(record.rounds) < 40
    assert all(entry.loss is None for entry in record.rounds)
    assert record.metrics["loss"] is not None
    assert events_of(ran, Ended)[0].metrics == record.metrics
    # Of the model that came out, and not of one before it.
    assert record.metrics == evaluate(ran.ranks[0].public.model, Line())


def test_the_record_says_what_is_trained_and_what_the_task_says(
    run: Callable[[Job], Ran],
) -> None:
    ran = run(make_job(task_options={"base": "some/base"}))
    assert ran.errors == {}
    record = RunRecord.load(ran.folder.run_json)
    assert record.model is not None
    assert dict(record.model.trained) == {"head.weight": 2, "head.bias": 1}
    assert record.model.frozen == 8
    assert dict(record.model.about) == {"base": "some/base", "layers": 2}
    assert record.dim == 3
    # What is written is what is read.
    written = json.loads(ran.folder.run_json.read_text())["model"]
    assert written["trained"] == {"head.weight": 2, "head.bias": 1}


def test_of_a_task_that_says_nothing_the_parameters_are_told(run: Callable[[Job], Ran]) -> None:
    ran = run(make_job("Line"))
    model = RunRecord.load(ran.folder.run_json).model
    assert model is not None
    assert dict(model.trained) == {"weight": 2, "bias": 1}
    assert (model.frozen, dict(model.about)) == (0, {})
    assert not ran.folder.saved_model.exists()


def test_the_model_is_saved_in_its_own_form_too(run: Callable[[Job], Ran]) -> None:
    ran = run(make_job())
    state = torch.load(ran.folder.model_pt, weights_only=True)
    assert saved_weights(ran) == weights_of(ran.ranks[0].public.model)
    assert len(saved_weights(ran)) == sum(value.numel() for value in state.values())


def saved_weights(ran: Ran) -> list[float]:
    found: list[float] = json.loads((ran.folder.saved_model / "weights.json").read_text())
    return found


def test_a_run_that_stops_early_saves_its_model(run: Callable[[Job], Ran]) -> None:
    ran = run(make_job(privacy={"noise_multiplier": 2.0, "epsilon": 4.0}, training={"rounds": 40}))
    assert events_of(ran, Stopped)
    assert saved_weights(ran) == weights_of(ran.ranks[0].public.model)


def test_a_run_that_is_resumed_writes_its_model_over_what_is_there(
    run: Callable[[Job], Ran],
) -> None:
    first = run(make_job())
    weights = saved_weights(first)
    (first.folder.saved_model / "weights.json").write_text("torn")
    first.folder.run_json.unlink()
    second = run(make_job())
    assert second.errors == {}
    assert second.ranks[0].first_round == 5
    assert saved_weights(second) == weights


def test_what_takes_long_is_done_before_the_model_is_made() -> None:
    told: list[tuple[str, int, int]] = []
    rank = make_rank(make_job(), 0, progress=lambda *words: told.append(words))
    assert told[0] == ("things", 0, 40)
    assert told[-1] == ("things", 40, 40)
    assert isinstance(rank.public.task, Prepared)
    assert rank.public.task.is_ready


@pytest.fixture
def _one_loads_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial weights come from torch's one generator, which threads share and ranks don't."""
    loading = threading.Lock()

    def locked(*arguments: Any) -> Rank:
        with loading:
            return make_rank(*arguments)

    monkeypatch.setattr("mpcfl.parties.program.make_rank", locked)


@pytest.mark.usefixtures("_one_loads_after_the_other")
def test_one_party_tells_what_is_made_ready_and_no_more_often_than_it_helps() -> None:
    options = Namespace(
        keys=None, passphrases=None, party=None, party_files=None, debug=False, track=[]
    )
    told: dict[int, list[Event]] = {0: [], 1: []}

    def start(transport: MemoryTransport) -> None:
        with closing(connected(make_job(), transport)) as connection:
            _agree_on_start(make_job(), connection, options, told[transport.rank].append)

    run_parties(2, start, deadline_s=20.0)
    assert told[1] == []
    # One per tenth, and the beginning.
    assert told[0] == [Preparing("things", done, 40) for done in range(0, 41, 4)]


@pytest.mark.usefixtures("_one_loads_after_the_other")
def test_nobody_starts_if_a_party_can_not_get_ready() -> None:
    options = Namespace(
        keys=None, passphrases=None, party=None, party_files=None, debug=False, track=[]
    )

    def start(transport: MemoryTransport) -> None:
        job = make_job("Unready" if transport.rank == 1 else "Prepared")
        with closing(connected(make_job(), transport)) as connection:
            _agree_on_start(job, connection, options, lambda _: None)

    with pytest.raises(Exception, match="there is no disk; buy one"):
        run_parties(2, start, deadline_s=20.0)


def test_several_things_that_are_made_ready_have_tenths_of_their_own() -> None:
    told: list[Event] = []
    progress = _tenths(told.append)
    for what in ("one", "two"):
        for done in (0, 1, 2, 3):
            progress(what, done, 3)
    progress("nothing", 0, 0)
    lines = [event.line() for event in told]
    assert lines == [
        *(f"preparing one: {done} of 3 (kept for the next run)" for done in range(4)),
        *(f"preparing two: {done} of 3 (kept for the next run)" for done in range(4)),
        "preparing nothing: 0 of 0 (kept for the next run)",
    ]
    assert from_json(to_json(told[0])) == told[0]
