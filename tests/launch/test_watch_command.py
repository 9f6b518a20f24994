"""`mpcfl watch`: what people and scripts see of a run, and how it ends."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mpcfl.errors import ConfigError, MpcflError
from mpcfl.launch import watch_command
from mpcfl.launch.cli import app
from mpcfl.launch.watch_view import watch_view
from mpcfl.report import live_state
from mpcfl.report.live_state import read_state
from mpcfl.report.run_record import append_round

sys.path.append(str(Path(__file__).parent.parent / "report"))

from run_folders import held, make_folder, record, run_record


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(watch_command, "_LOOK_S", 0.005)


def mpcfl(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_json_prints_one_document_of_the_present_and_ends(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 3)) as folder:
        done = mpcfl("watch", folder.path, "--json")
        assert done.exit_code == 0
        assert json.loads(done.stdout) == json.loads(read_state(folder.path).to_json())


@pytest.mark.parametrize("option", ["--once", "--json"])
def test_one_look_at_a_run_that_failed_is_no_failure(tmp_path: Path, option: str) -> None:
    folder = make_folder(tmp_path / "run", 3)
    done = mpcfl("watch", folder.path, option)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "interrupted" in done.stdout


def test_once_shows_the_present_for_people(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 3)) as folder:
        append_round(folder.rounds_jsonl, record(4, parties=("north", "south", "west")))
        done = mpcfl("watch", folder.path, "--once")
    assert done.exit_code == 0
    for words in ("running", "4 of 20", "0.75 of 4", "parties 3 of 4", "east (lost)", "0.8125"):
        assert words in done.stdout


@pytest.mark.parametrize("option", [[], ["--once"], ["--json"]])
def test_where_there_is_no_run_the_remedy_is_told(tmp_path: Path, option: list[str]) -> None:
    done = mpcfl("watch", tmp_path / "nothing", *option)
    assert isinstance(done.exception, ConfigError)
    assert "holds no run" in str(done.exception)


def watched(path: Path, *, terminal: bool, act: Callable[[], None]) -> tuple[str, Exception | None]:
    """Follow a run that something happens to meanwhile; return what was shown."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    error: Exception | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch_command, "wide_console", lambda: console)
        acting = threading.Timer(0.05, act)
        acting.start()
        try:
            watch_command.watch(path)
        except MpcflError as found:
            error = found
        acting.join()
    return text.getvalue(), error


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_followed_to_its_end(tmp_path: Path, terminal: bool) -> None:
    folder = make_folder(tmp_path / "run", 2)

    def go_on() -> None:
        for number in range(3, 21):
            append_round(folder.rounds_jsonl, record(number))
        run_record(folder, 20).save(folder.run_json)

    with held(folder):
        shown, error = watched(folder.path, terminal=terminal, act=go_on)
    assert error is None
    assert "ended: 20 rounds, epsilon 1.75 of 4" in shown.splitlines()[-1]
    assert "20 of 20" in shown or not terminal


def test_without_a_terminal_each_round_is_one_line_told_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", 2)

    def go_on() -> None:
        append_round(folder.rounds_jsonl, record(3))
        append_round(folder.rounds_jsonl, record(4, parties=("north", "south", "west")))
        append_round(folder.rounds_jsonl, record(5, parties=("north", "south", "west")))
        run_record(folder, 20, stopped_early="the budget is spent").save(folder.run_json)

    with held(folder):
        shown, _ = watched(folder.path, terminal=False, act=go_on)
    lines = shown.splitlines()
    assert lines[0].startswith("digits: 4 parties (north, south, east, west), 20 rounds")
    assert lines[1] == "running"
    rounds = [line for line in lines if line.startswith("round ")]
    assert [int(line[5:8]) for line in rounds] == list(range(1, 21))
    assert rounds[2] == (
        "round  3/20  epsilon 0.6875 of 4  loss 0.3333  accuracy 0.7500  750 ms  2.00 KiB sent"
    )
    assert lines[-1].startswith("stopped early after round 20 of 20")


def test_a_party_that_is_lost_is_told_before_the_round_without_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", 1)
    for number in (2, 3):
        append_round(folder.rounds_jsonl, record(number, parties=("north", "south", "west")))
    shown, _ = watched(folder.path, terminal=False, act=lambda: None)
    told = [number for number, line in enumerate(shown.splitlines()) if "was lost" in line]
    assert told == [2]
    assert "east was lost; 3 parties went on: north, south, west" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_breaks_off_is_a_failure_with_a_remedy(tmp_path: Path, terminal: bool) -> None:
    with held(make_folder(tmp_path / "run", 2)) as folder:
        gone = threading.Event()

        def fail() -> None:
            broken = run_record(folder, 2, model_sha256="", stopped_early="failed: west was lost")
            broken.save(folder.run_json)
            gone.set()

    # Nobody holds it any more.
    shown, error = watched(folder.path, terminal=terminal, act=fail)
    assert gone.is_set()
    assert "interrupted after round 2 of 20" in str(error)
    assert "mpcfl run --resume" in str(error)
    _, error = watched(folder.path, terminal=terminal, act=lambda: None)
    assert "failed after round 2 of 20: west was lost" in str(error)
    assert "round" in shown


def test_a_picture_can_be_made_of_every_moment(tmp_path: Path) -> None:
    for rounds, unit in ((0, "record"), (1, "none"), (20, "record")):
        with held(make_folder(tmp_path / f"{rounds}{unit}", rounds, unit=unit)) as folder:
            text = io.StringIO()
            Console(file=text, width=120).print(watch_view(read_state(folder.path)))
        assert f"{rounds} of 20" in text.getvalue()
        assert ("at delta" in text.getvalue().splitlines()[2]) == (unit == "record")


def test_whoever_stops_watching_is_told_that_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with held(make_folder(tmp_path / "run", 2)) as folder:
        monkeypatch.setattr(watch_command.time, "sleep", interrupt)
        done = mpcfl("watch", folder.path)
    assert done.exit_code == 130
    assert "no longer watching; the run is not touched" in done.stderr
