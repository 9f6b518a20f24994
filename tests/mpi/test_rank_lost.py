"""A party is killed in a run of four: the others go on, or stop with its name; nothing hangs.

One job for each point at which it can die, with the rank and the backend by turns. `chaos.py` has
all of them, and kills at random times.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import Keys, Verdict, run_trial
from jobs import Ended, WarmServer
from judge import judge
from trials import KINDS, NAMES, Point, Trial, one_per_point

pytestmark = [pytest.mark.mpi, pytest.mark.open_mpi]

RING, HOLDER = KINDS[0], KINDS[2]
Run = Callable[[Trial], Verdict]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("ceremony") / "keys")


@pytest.fixture
def run(tmp_path: Path, warm: WarmServer, keys: Keys) -> Run:
    def start(trial: Trial) -> Verdict:
        return run_trial(trial, warm, keys, tmp_path)

    return start


def assert_well(verdict: Verdict) -> None:
    said = verdict.ended.stdout + verdict.ended.stderr
    assert not verdict.problems, f"{verdict.trial.name}: {verdict.problems}\n{said}"


def test_every_rank_dies_once_under_every_backend() -> None:
    trials = one_per_point()
    assert {(trial.rank, trial.kind.name) for trial in trials} == {
        (rank, kind.name) for rank in range(len(NAMES)) for kind in KINDS
    }


@pytest.mark.parametrize("trial", one_per_point(), ids=lambda trial: trial.name)
def test_three_go_on_when_one_is_killed(trial: Trial, run: Run) -> None:
    verdict = run(trial)
    assert_well(verdict)
    assert verdict.went_on


def test_two_dead_of_four_are_too_many_and_are_named(run: Run, tmp_path: Path) -> None:
    """The plan is for one; the two who are left open nothing more, and stop within seconds."""
    verdict = run(Trial(RING, 1, Point("aggregate", "enter"), 2, with_it=(3,)))
    # Five for the parties, as many again for mpirun on a busy machine.
    assert time.time() - float((tmp_path / "met").read_text()) < 10
    said = verdict.ended.stderr
    assert not verdict.went_on
    assert verdict.ended.code != 0
    sentence = next(line for line in said.splitlines() if "mpcfl: error: " in line)
    assert "ben" in sentence, said
    assert "dan" in sentence, said


def test_a_stopped_party_is_left_behind_after_the_deadline(run: Run, tmp_path: Path) -> None:
    """It is no more dead than a process that the system doesn't let run: only time can tell.

    One deadline in all, although in a chain each waits for the one before it.
    """
    deadline_s = 8.0
    verdict = run(
        Trial(
            HOLDER,
            2,
            Point("aggregate", "enter"),
            2,
            signal=signal.SIGSTOP,
            settings=(f"aggregation.deadline_s={deadline_s}",),
        )
    )
    assert_well(verdict)
    assert verdict.went_on
    # Five seconds to notice; the last round and mpirun's end take some on a busy machine.
    assert time.time() - float((tmp_path / "met").read_text()) < 2 * deadline_s + 5


# The judge itself: what it is for has to be found.


def judged(trial: Trial, ended: Ended, folder: Path) -> str:
    return "; ".join(judge(trial, ended, folder))


def test_the_judge_finds_a_hang_a_nameless_stop_and_a_needless_one(tmp_path: Path) -> None:
    trial = Trial(RING, 2, Point("open", "enter"), 1)
    assert "not over after 60 s" in judged(trial, Ended(None, "", "", 60.0), tmp_path)
    nameless = judged(trial, Ended(1, "", "mpcfl: error: MPI failed", 3.0), tmp_path)
    assert "its point was never reached" in nameless
    assert "without the name of who is missing" in nameless
    (tmp_path / "met").touch()
    named = Ended(1, "", "mpcfl: error: cyd (rank 2) died during the run", 3.0)
    assert not judged(trial, named, tmp_path)
    transcripts = tmp_path / "out" / "transcript"
    transcripts.mkdir(parents=True)
    (transcripts / "party-0.jsonl").write_text('{"schema":1,"kind":"charge"}\n')
    assert "three parties could have gone on" in judged(trial, named, tmp_path)


def test_the_judge_finds_a_dead_party_in_the_record_of_a_later_round(
    run: Run, tmp_path: Path
) -> None:
    trial = Trial(RING, 3, Point("train", "enter"), 2)
    verdict = run(trial)
    assert_well(verdict)
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    record["rounds"][2]["parties"] = list(NAMES)
    path.write_text(json.dumps(record))
    assert "round 3 names" in judged(trial, verdict.ended, tmp_path)
    # A ledger that charges for less than the transcripts show.
    ledger = tmp_path / "out" / "ledger" / "party-0.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:4]))
    assert "ledger" in judged(trial, verdict.ended, tmp_path)
