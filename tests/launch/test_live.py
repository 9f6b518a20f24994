"""What `mpcfl run` shows at the end of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mpcfl.launch.live import live_view
from mpcfl.parties.events import Ended, RoundDone, Untracked

PRICE = "protection took 50 ms a round, 5.0 % of the training time (open 4.0, clip 1.0)"


def done(number: int) -> RoundDone:
    seconds = {"train": 1.0, "clip": 0.01, "open": 0.04, "apply": 0.3}
    return RoundDone(number, 2, 4, 1.0, 2.0, {"loss": 0.5}, seconds, 1000)


def ended(*, before: bool = False) -> Ended:
    return Ended(2, 2.0, 2.0, 1e-5, {"loss": 0.5}, "runs/one", before=before)


def shown(*events: RoundDone | Ended | Untracked, terminal: bool = False) -> list[str]:
    """Return the lines that people see; a terminal's own signs are left in."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with live_view(console) as show:
        for event in events:
            show(event)
    return text.getvalue().splitlines()


def test_the_last_line_says_what_protection_took() -> None:
    lines = shown(done(1), done(2), ended())
    assert lines[-2].startswith("done: 2 rounds")
    assert lines[-1] == PRICE


def test_a_terminal_says_it_too() -> None:
    assert any(PRICE in line for line in shown(done(1), done(2), ended(), terminal=True))


def test_it_is_told_at_the_end_only() -> None:
    assert not any("protection took" in line for line in shown(done(1), done(2)))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_did_nothing_tells_no_price(terminal: bool) -> None:
    lines = shown(ended(before=True), terminal=terminal)
    assert not any("protection took" in line for line in lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_tracker_that_is_left_out_is_told(terminal: bool) -> None:
    event = Untracked("mlflow", "OSError: no space")
    lines = shown(done(1), event, done(2), ended(), terminal=terminal)
    assert any(event.line() in line for line in lines)
