"""`mpcfl watch`: follow a run by its folder; it does not know, and loses nothing by it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from mpcfl.errors import MpcflError
from mpcfl.launch.live import wide_console
from mpcfl.launch.watch_view import watch_view
from mpcfl.report import live_state_words as words
from mpcfl.report.live_state import LiveState, read_state

_LOOK_S = 0.5


def print_state(path: Path) -> None:
    """Print the present state as one JSON document.

    Raises:
        ConfigError: there is no run in the folder.
    """
    sys.stdout.write(read_state(path).to_json())


def show_state(path: Path) -> None:
    """Print the present state for people.

    Raises:
        ConfigError: there is no run in the folder.
    """
    state = read_state(path)
    console = wide_console()
    console.print(watch_view(state), highlight=False)
    if state.phase.is_over:
        console.print(words.end_line(state), highlight=False, markup=False, soft_wrap=True)


def watch(path: Path) -> None:
    """Show a run until it is over.

    Raises:
        ConfigError: there is no run in the folder.
        MpcflError: the run failed, or was interrupted.
    """
    console = wide_console()
    state = _watch_terminal(path, console) if console.is_terminal else _watch_lines(path, console)
    if not state.phase.is_good:
        raise MpcflError(words.end_line(state))
    console.print(words.end_line(state), highlight=False, markup=False, soft_wrap=True)


def _watch_terminal(path: Path, console: Console) -> LiveState:
    state = read_state(path)
    with Live(watch_view(state), console=console, auto_refresh=False) as live:
        while not state.phase.is_over:
            time.sleep(_LOOK_S)
            state = read_state(path)
            live.update(watch_view(state), refresh=True)
    return state


@dataclass(slots=True)
class _Lines:
    """Prints what is new, a line each."""

    console: Console
    rounds: int = 0
    alive: tuple[str, ...] = ()
    phase: str = ""

    def show(self, state: LiveState) -> None:
        """Print the rounds since the last call."""
        if not self.phase:
            self._print(words.title(state))
            self.alive = state.parties
        if state.phase != self.phase and not state.phase.is_over:
            self._print(state.phase)
        self.phase = state.phase
        for one in state.rounds:
            if one.round <= self.rounds:
                continue
            lost = tuple(name for name in self.alive if name not in one.parties)
            if lost:
                self._print(words.lost_line(lost, one.parties))
            self._print(words.round_line(state, one))
            self.rounds, self.alive = one.round, one.parties

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _watch_lines(path: Path, console: Console) -> LiveState:
    lines = _Lines(console)
    while True:
        state = read_state(path)
        lines.show(state)
        if state.phase.is_over:
            return state
        time.sleep(_LOOK_S)
