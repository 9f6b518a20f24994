"""Whole runs that feed trackers: interrupted, taken over, and with stores that fail.

And who holds the folder of a run meanwhile, by which a live view knows that it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.parties import recorder
from mpcfl.parties.events import Ended, Untracked, from_json, to_json
from mpcfl.parties.setup import Rank
from mpcfl.report.live_state import Phase, read_state
from mpcfl.report.run_folder import RunFolder, RunLock
from mpcfl.report.run_record import RunRecord, is_complete
from mpcfl.report.tracker_choice import read_choices

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "report")]

from parties_in_threads import Ran, run_job
from tracker_stores import (
    as_tensorboard_keeps,
    expected,
    mlflow_figures,
    mlflow_runs,
    tensorboard_figures,
)

pytestmark = pytest.mark.usefixtures("no_page")

ROUNDS = 3


def make_job(max_dropout: int = 1) -> Job:
    document = {
        "task": "parties_in_threads:Line",
        "parties": {
            "count": 3,
            "names": ["adelaide", "benedict", "cydonia"],
            "max_dropout": max_dropout,
        },
        "privacy": {"unit": "none"},
        "training": {"rounds": ROUNDS},
        "aggregation": {"backend": "ring"},
    }
    return parse_job(document, "inline")


def feeding(*names: str) -> Callable[[Rank], None]:
    """Return what has a party feed trackers if it is to write the folder."""

    def prepare(rank: Rank) -> None:
        rank.trackers = read_choices(names)

    return prepare


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ran]:
    """Return a function that runs a job, or goes on with it, in a folder of its own."""

    def in_folder(names: Sequence[str], dies_at: Any = None, job: Job | None = None) -> Ran:
        folder = RunFolder(tmp_path / "run")
        return run_job(job or make_job(), folder, dies_at, prepare=feeding(*names))

    return in_folder


def require_whole_store(ran: Ran) -> None:
    """Every figure of every round is in the store once, and is that of run.json."""
    assert is_complete(ran.folder.run_json)
    record = RunRecord.load(ran.folder.run_json)
    assert [one.round for one in record.rounds] == list(range(1, ROUNDS + 1))
    wanted = as_tensorboard_keeps(expected(record.rounds, None, record))
    assert tensorboard_figures(ran.folder.path / "tensorboard") == wanted


def test_a_run_is_in_both_stores(run: Callable[..., Ran]) -> None:
    ran = run(["tensorboard", "mlflow"])
    assert ran.errors == {}
    require_whole_store(ran)
    record = RunRecord.load(ran.folder.run_json)
    assert mlflow_figures(ran.folder.path / "mlruns") == expected(record.rounds, None, record)
    (stored,) = mlflow_runs(ran.folder.path / "mlruns")
    assert stored.info.status == "FINISHED"
    assert stored.data.params["aggregation.backend"] == "ring"
    for path in ran.folder.path.glob("*/*tfevents*"):
        assert b"benedict" not in path.read_bytes()


# From the middle of the first round to beyond the last; every message of the writer would do.
@pytest.mark.parametrize("message", [10, 18, 20, 37, 38, 50])
def test_whoever_takes_over_writes_each_round_once(run: Callable[..., Ran], message: int) -> None:
    ran = run(["tensorboard"], {0: message})
    require_whole_store(ran)


def test_a_run_that_is_resumed_has_each_round_once(run: Callable[..., Ran]) -> None:
    strict = make_job(max_dropout=0)
    broken = run(["tensorboard"], {0: 30}, strict)
    assert not is_complete(broken.folder.run_json)
    ran = run(["tensorboard"], None, strict)
    assert ran.errors == {}
    require_whole_store(ran)
    assert len(list(ran.folder.path.glob("tensorboard/*"))) == 2


def test_trackers_may_come_with_the_resumption_only(run: Callable[..., Ran]) -> None:
    strict = make_job(max_dropout=0)
    run([], {1: 40}, strict)
    ran = run(["tensorboard"], None, strict)
    require_whole_store(ran)


def test_a_store_that_fails_does_not_stop_the_run(run: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run(["tensorboard", f"mlflow={tmp_path / 'file' / 'below'}"])
    assert ran.errors == {}
    told = [event for event in ran.events if isinstance(event, Untracked)]
    assert [event.tracker for event in told] == ["mlflow"]
    assert isinstance(ran.events[-1], Ended)
    require_whole_store(ran)


def test_what_is_told_of_a_tracker_is_one_line() -> None:
    event = Untracked("mlflow", "OSError: no space")
    assert event.line().startswith("tracker mlflow is left out from here on (OSError: no space)")
    assert from_json(to_json(event)) == event


def test_whoever_takes_over_holds_the_folder_until_the_end(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this a live view knows that the run goes on, though its first process is dead."""
    seen: list[Phase] = []
    after_round = recorder.Recorder.after_round

    def looking(self: recorder.Recorder, *arguments: Any) -> None:
        after_round(self, *arguments)
        if self._takes_over:
            seen.append(read_state(self._folder.path).phase)

    monkeypatch.setattr(recorder.Recorder, "after_round", looking)
    ran = run([], {0: 18})
    assert seen
    assert set(seen) == {Phase.RUNNING}
    # It has let go.
    RunLock(ran.folder).close()


def test_a_folder_that_is_still_held_is_no_hindrance(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: RunFolder) -> None:
        raise ConfigError("the run is still going")

    monkeypatch.setattr(recorder, "RunLock", refuse)
    assert is_complete(run([], {0: 18}).folder.run_json)
