"""How far a run is, as its folder tells it at any moment."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import ConfigError
from mpcfl.report import live_state
from mpcfl.report import live_state_words as words
from mpcfl.report.live_state import Phase, read_state
from mpcfl.report.run_record import append_round, replace_rounds

sys.path.append(str(Path(__file__).parent))

from run_folders import NAMES, held, make_folder, record, run_record


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_LOOK_AGAIN_S", 0.0)


def test_a_run_that_goes_on_is_told_by_its_rounds(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 7)) as folder:
        state = read_state(folder.path)
    assert (state.phase, state.reason) == (Phase.RUNNING, "")
    assert (len(state.rounds), state.rounds_planned) == (7, 20)
    assert (state.epsilon, state.epsilon_planned) == (0.9375, 4.0)
    assert (state.last("accuracy"), state.last("loss")) == (1 - 0.75 / 7, 1 / 7)
    assert (state.alive, state.lost) == (NAMES, ())
    assert not state.phase.is_over
    assert words.end_line(state) == ""
    assert words.time_left(state) == "about 10 s left"


def test_a_run_without_a_checkpoint_is_preparing(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run")) as folder:
        folder.checkpoint.rmdir()
        state = read_state(folder.path)
    assert state.phase is Phase.PREPARING
    assert (state.epsilon, words.epsilon(state)) == (0.0, "0 of 4")
    assert (words.progress(state), words.time_left(state)) == ("0 of 20", "")
    assert state.alive == NAMES


def test_a_run_that_nobody_holds_was_interrupted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "my run", 3)
    # As a run that goes on saves it every second.
    run_record(folder, 2, model_sha256="").save(folder.run_json)
    state = read_state(folder.path)
    assert state.phase is Phase.INTERRUPTED
    assert len(state.rounds) == 3
    line = words.end_line(state)
    assert line.startswith(
        "the run was interrupted after round 3 of 20: no process on this machine"
    )
    assert line.endswith(f"mpcfl run --resume '{folder.path}'")


def test_a_run_that_failed_says_why_until_it_is_resumed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", 3)
    broken = run_record(folder, 3, model_sha256="", stopped_early="failed: west was lost")
    broken.save(folder.run_json)
    state = read_state(folder.path)
    assert (state.phase, state.reason) == (Phase.FAILED, "west was lost")
    assert "failed after round 3 of 20: west was lost; continue it with" in words.end_line(state)
    with held(folder):
        assert read_state(folder.path).phase is Phase.RUNNING


def test_a_run_that_ended_is_told_by_its_record(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", 20)
    run_record(folder, 20).save(folder.run_json)
    state = read_state(folder.path)
    assert (state.phase, state.dim) == (Phase.ENDED, 650)
    assert state.metrics == {"accuracy": 0.9375, "loss": 0.25}
    assert (state.last("accuracy"), state.last("loss")) == (0.9375, 0.25)
    assert words.end_line(state) == (
        "ended: 20 rounds, epsilon 1.75 of 4, test accuracy 0.9375, test loss 0.2500; see "
        f"{folder.path}/report.html"
    )
    # The one who wrote it may not have let go yet.
    with held(folder):
        assert read_state(folder.path).phase is Phase.ENDED


def test_a_run_that_stopped_early_is_no_failure(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", 5)
    run_record(folder, 5, stopped_early="the budget is spent").save(folder.run_json)
    state = read_state(folder.path)
    assert (state.phase, state.phase.is_over, state.phase.is_good) == (Phase.STOPPED, True, True)
    assert words.end_line(state).startswith(
        "stopped early after round 5 of 20, epsilon 0.8125 of 4"
    )


def test_a_lost_party_is_named(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 2)) as folder:
        append_round(folder.rounds_jsonl, record(3, parties=("north", "south", "west")))
        state = read_state(folder.path)
    assert (state.alive, state.lost) == (("north", "south", "west"), ("east",))
    assert words.alive(state) == "3 of 4"
    assert words.round_line(state, state.rounds[-1]).endswith("3 of 4 parties")


def test_a_run_that_is_resumed_or_taken_over_may_have_fewer_rounds(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 6)) as folder:
        replace_rounds(folder.rounds_jsonl, [record(number) for number in range(1, 5)])
        assert len(read_state(folder.path).rounds) == 4


def test_a_line_that_is_being_written_is_no_round_yet(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 4)) as folder:
        whole = folder.rounds_jsonl.read_bytes()
        before = whole.rstrip().rindex(b"\n") + 1
        for length in range(before, len(whole), 7):
            folder.rounds_jsonl.write_bytes(whole[:length])
            assert len(read_state(folder.path).rounds) == 3
        (folder.run_json).write_text('{"schema": "mpcfl.run/1", "job')
        assert read_state(folder.path).phase is Phase.RUNNING


def test_rounds_that_can_not_be_read_are_taken_from_the_record(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 4)) as folder:
        folder.rounds_jsonl.write_bytes(b"\0" * 50 + b"\n")
        assert read_state(folder.path).rounds == ()
        run_record(folder, 3, model_sha256="").save(folder.run_json)
        assert len(read_state(folder.path).rounds) == 3


def test_a_job_that_is_half_written_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "run", 1)
    whole = folder.job_json.read_text()
    folder.job_json.write_text(whole[:50])
    monkeypatch.setattr(live_state.time, "sleep", lambda _: folder.job_json.write_text(whole))
    assert read_state(folder.path).task == "digits"


@pytest.mark.parametrize("missing", ["folder", "job"])
def test_where_there_is_no_run_the_remedy_is_told(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "nothing"
    if missing == "job":
        path.mkdir()
    with pytest.raises(
        ConfigError, match=r"holds no run \(there is no job.json\); name the folder"
    ):
        read_state(path)


def test_a_damaged_job_is_an_error(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    folder.job_json.write_text("{")
    with pytest.raises(ConfigError, match="not a JSON file"):
        read_state(folder.path)


def test_who_may_only_read_can_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(make_folder(tmp_path / "run", 1)) as folder:
        opened: list[int] = []
        open_file = os.open

        def noting(path: Path, flags: int, *more: Any) -> int:
            opened.append(flags)
            return open_file(path, flags, *more)

        monkeypatch.setattr(os, "open", noting)
        assert read_state(folder.path).phase is Phase.RUNNING
    assert opened
    assert not any(flags & (os.O_WRONLY | os.O_RDWR) for flags in opened)


def test_a_look_does_not_hold_the_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", 1)
    read_state(folder.path)
    with held(folder):
        pass


def test_nothing_private_is_read(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 3)) as folder:
        assert "SECRET" not in read_state(folder.path).to_json()


def test_without_privacy_no_epsilon_is_claimed(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 3, unit="none")) as folder:
        state = read_state(folder.path)
    assert (state.epsilon, state.epsilon_planned, state.has_privacy) == (None, None, False)
    assert words.epsilon(state) == "no privacy"
    assert "no privacy" in words.title(state)
    assert "epsilon" not in words.round_line(state, state.rounds[0])


def test_no_budget_is_promised_before_it_is_known(tmp_path: Path) -> None:
    """Where inputs are shown, the job's epsilon is not what the run promises."""
    with held(make_folder(tmp_path / "run", 1, aggregation={"backend": "plain"})) as folder:
        state = read_state(folder.path)
        assert (state.epsilon_planned, words.epsilon(state)) == (None, "0.5625 spent")
        assert "epsilon not known yet" in words.title(state)
        run_record(folder, 1, model_sha256="").save(folder.run_json)
        assert read_state(folder.path).epsilon_planned == 4.0


def test_rounds_that_are_not_measured_leave_the_last_value(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 4)) as folder:
        append_round(folder.rounds_jsonl, record(5, accuracy=None, loss=None))
        state = read_state(folder.path)
    assert state.last("accuracy") == 1 - 0.75 / 4
    assert replace(state, rounds=()).last("accuracy") is None
    assert words.number(None) == "-"


def test_the_document_has_what_scripts_need(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 3)) as folder:
        document = json.loads(read_state(folder.path).to_json())
    assert document["schema"] == "mpcfl.live/1"
    assert {name: document[name] for name in ("phase", "epsilon", "rounds_planned", "alive")} == {
        "phase": "running",
        "epsilon": 0.6875,
        "rounds_planned": 20,
        "alive": list(NAMES),
    }
    assert [one["bytes_sent"] for one in document["rounds"]] == [2049, 2050, 2051]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "1 s"), (59.0, "59 s"), (90.0, "2 min"), (5400.0, "1.5 h")]
)
def test_a_time_is_told_as_people_do(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text
