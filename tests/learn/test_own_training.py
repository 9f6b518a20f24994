"""Tasks that train by themselves: plain loops, what they are refused, and what they may print."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mpcfl.config import Job, TrainingTable, parse_job
from mpcfl.errors import ConfigError
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.loop import LoopTask
from mpcfl.learn.model import initial_model
from mpcfl.learn.quiet import muted
from mpcfl.learn.task import Task, TrainsItself
from mpcfl.learn.train import check_local_update, local_update, local_update_or_nan
from mpcfl.net.meter import Meter
from mpcfl.parties.setup import make_rank
from mpcfl.round import protected_sum, public_state, run_rounds
from mpcfl.secagg.base import SumId

N_PARTIES = 3
TRAINING = TrainingTable(rounds=1)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1))


def load_data(party: int, n_parties: int) -> dict[str, Any]:
    return {"party": party, "of": n_parties, "rows": [0.0] * (4 + party)}


def train(model: nn.Module, data: dict[str, Any], step: float = 1.0) -> None:
    """Add the party's number plus one, times step, to every parameter."""
    assert data["of"] == N_PARTIES
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step * (data["party"] + 1))


def task_of(train: Any = train, **more: Any) -> LoopTask:
    return LoopTask(make_model, load_data, train, **more)


def job_of(unit: str = "none", **tables: dict[str, Any]) -> Job:
    records = {"records": 12} if unit == "record" else {}
    document = {
        "task": "some:loop",
        "parties": {"count": N_PARTIES} | tables.get("parties", {}),
        "privacy": {"unit": unit}
        | ({} if unit == "none" else {"epsilon": 4.0})
        | records
        | tables.get("privacy", {}),
        "training": {"rounds": 2} | tables.get("training", {}),
        "aggregation": {"backend": "plain"},
    }
    return parse_job(document, "test")


def one_update(task: LoopTask, local: Any = local_update) -> Any:
    data = task.party_data(1, N_PARTIES)
    return local(initial_model(task, 0), data, task, TRAINING, 0)


def test_loop_satisfies_the_protocols() -> None:
    assert isinstance(task_of(), Task)
    assert isinstance(task_of(), TrainsItself)


def test_update_is_what_the_loop_changed() -> None:
    update = one_update(task_of(step=0.25))
    assert update.dtype == np.float64
    assert update.shape == (1, 9)
    # Parameters are float32, below 1.
    np.testing.assert_allclose(update, 0.5, rtol=0, atol=2 * np.finfo(np.float32).eps)


def test_a_loop_may_return_the_trained_model_in_place_of_changing_it() -> None:
    def returns(model: nn.Module, data: Any) -> nn.Module:
        trained = make_model()
        trained.load_state_dict(model.state_dict())
        train(trained, data)
        return trained

    np.testing.assert_allclose(one_update(task_of(returns)), 2.0, rtol=0, atol=1e-6)


def test_the_global_model_is_left_as_it_was() -> None:
    task = task_of()
    model = initial_model(task, 0)
    before = [parameter.clone() for parameter in model.parameters()]
    local_update(model, task.party_data(0, N_PARTIES), task, TRAINING, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_rounds_average_what_all_parties_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpcfl.round.load_task", lambda *_: task_of())
    public = run_rounds(job_of())
    start = initial_model(task_of(), 0)
    for before, after in zip(start.parameters(), public.model.parameters(), strict=True):
        torch.testing.assert_close(after, before + 2 * 2.0, rtol=0, atol=1e-4)


def test_data_are_loaded_once() -> None:
    calls = []
    task = LoopTask(make_model, lambda *of: calls.append(of) or load_data(*of), train)
    data = task.party_data(1, N_PARTIES)
    for round_id in range(2):
        local_update(initial_model(task, 0), data, task, TRAINING, round_id)
    assert calls == [(1, N_PARTIES)]


def returns_another_model(model: nn.Module, data: Any) -> nn.Module:
    return nn.Linear(2, 2)


def returns_a_number(model: nn.Module, data: Any) -> Any:
    return 0.5


def leaves(model: nn.Module, data: Any) -> Any:
    sys.exit("row 17")


def fails(model: nn.Module, data: Any) -> Any:
    raise RuntimeError("row 17")


@pytest.mark.parametrize("loop", [returns_another_model, returns_a_number, leaves, fails])
def test_a_loop_that_fails_is_an_error_or_at_party_level_no_number(loop: Any) -> None:
    with pytest.raises((ConfigError, RuntimeError)):
        one_update(task_of(loop))
    assert np.isnan(one_update(task_of(loop), local_update_or_nan)).all()


@pytest.mark.parametrize(
    ("returned", "figures"),
    [
        ({"f1": torch.tensor(0.5)}, {"f1": 0.5}),
        ((0.25, 0.75), {"loss": 0.25, "accuracy": 0.75}),
    ],
)
def test_figures_are_those_of_its_test(returned: Any, figures: dict[str, float]) -> None:
    def test(model: nn.Module) -> Any:
        assert not model.training
        assert not torch.is_grad_enabled()
        return returned

    model = make_model().train()
    assert evaluate(model, task_of(test=test)) == figures
    assert all(module.training for module in model.modules())


def test_without_a_test_nothing_is_measured() -> None:
    assert evaluate(make_model(), task_of()) == {}


@pytest.mark.parametrize("returned", [0.5, (1, 2, 3), {"a": "b"}, "loss"])
def test_other_figures_are_refused(returned: Any) -> None:
    with pytest.raises(ConfigError, match="names and numbers"):
        evaluate(make_model(), task_of(test=lambda _: returned))


REFUSED = [
    ("record", {}, r'privacy.unit = "record" needs the gradient .* "party"'),
    ("record", {"privacy": {"placement": "local"}}, r'placement = "local" adds .* "party"'),
    (
        "party",
        {"parties": {"weighting": "private", "max_records": 9}},
        "needs the number of records .* num_examples",
    ),
    ("none", {"training": {"learning_rate": 0.5}}, "training.learning_rate would do nothing"),
    ("party", {"training": {"local_steps": 2}}, "training.local_steps would do nothing"),
    ("party", {"training": {"device": "cuda"}}, "training.device would do nothing"),
]


@pytest.mark.parametrize(("unit", "tables", "words"), REFUSED)
def test_what_code_of_its_own_can_not_give_is_refused(
    unit: str, tables: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        public_state(job_of(unit, **tables), task_of())


@pytest.mark.parametrize("unit", ["party", "none"])
def test_the_other_units_are_not(unit: str) -> None:
    assert public_state(job_of(unit), task_of()).plan.dim == 9


def test_private_weights_need_the_number_of_examples() -> None:
    job = job_of("party", parties={"weighting": "private", "max_records": 9})
    task = task_of(num_examples=lambda data: len(data["rows"]))
    public_state(job, task)
    assert [len(task.party_data(party, N_PARTIES)[0]) for party in range(N_PARTIES)] == [4, 5, 6]


def test_its_code_is_not_tried_on_what_is_no_partys_data() -> None:
    check_local_update(make_model(), task_of(fails), TRAINING)


def test_a_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no loss"):
        task_of().loss(torch.zeros(1), torch.zeros(1))


def test_only_threads_that_are_muted_are_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    inside, outside = threading.Event(), threading.Event()
    before = sys.stdout

    def quiet() -> None:
        with muted(), muted():
            inside.set()
            outside.wait(10.0)
            print("secret")
        print("after")

    thread = threading.Thread(target=quiet)
    thread.start()
    inside.wait(10.0)
    print("public")
    outside.set()
    thread.join()
    assert capsys.readouterr().out == "public\nafter\n"
    assert sys.stdout is before


def test_a_stream_that_was_put_there_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    other = sys.__stdout__
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with muted():
        sys.stdout = other
    assert sys.stdout is other


def test_lines_that_are_written_at_once_are_not_heard_either(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with muted():
        sys.stdout.writelines(["sec", "ret\n"])
        sys.stderr.writelines(["secret\n"])
    heard = capsys.readouterr()
    assert heard.out == heard.err == ""


class Talks:
    """Says what it sees of its records, wherever it is asked."""

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def party_data(self, party: int, n_parties: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.arange(8.0).reshape(4, 2) / 8
        print(f"party {party} has {len(inputs)} patients")
        return inputs, inputs.sum(dim=1, keepdim=True)

    def test_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.ones(2, 2)
        return inputs, inputs.sum(dim=1, keepdim=True)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        print("a record of", tuple(targets.shape))
        return nn.functional.mse_loss(outputs, targets)


@pytest.mark.parametrize(
    ("unit", "is_heard"), [("record", False), ("party", False), ("none", True)]
)
def test_what_a_task_prints_of_private_records_stays_at_the_party(
    capsys: pytest.CaptureFixture[str], unit: str, is_heard: bool
) -> None:
    privacy: dict[str, object] = {"unit": unit}
    if unit != "none":
        privacy |= {"epsilon": 8.0}
    if unit == "record":
        privacy |= {"records": 8, "sample_rate": 1.0}
    document = {
        "task": f"{__name__}:Talks",
        "parties": {"count": 2},
        "privacy": privacy,
        "training": {"rounds": 1},
        "aggregation": {"backend": "plain" if unit == "none" else "ring"},
    }
    job = parse_job(document, "inline")
    rank = make_rank(job, 0, task=Talks())
    assert ("patients" in capsys.readouterr().out) is is_heard
    assert rank.party is not None
    secure = types.SimpleNamespace(
        protect=lambda levels, _: levels, aggregate=lambda x: x, open=lambda x: x
    )
    protected_sum(rank.public, rank.party, secure, SumId(0), Meter())
    assert ("a record of" in capsys.readouterr().out) is is_heard
