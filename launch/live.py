"""Show a run while it goes on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mpcfl.parties.events import (
    Ended,
    Event,
    Failed,
    Lost,
    Preparing,
    RoundDone,
    Started,
    Stopped,
    Untracked,
    figure,
)
from mpcfl.report.overhead import overhead_line
from mpcfl.report.units import bytes_text

# A terminal shows the newest rounds; the report holds all of them.
_ROWS = 12
_PIPE_COLUMNS = 200
_STAGES = ("train", "clip", "quantize", "noise", "protect", "aggregate", "open", "apply")

Show = Callable[[Event], None]


def wide_console(*, stderr: bool = False) -> Console:
    """Return a console that doesn't fold tables at 80 columns where there is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=_PIPE_COLUMNS)


@contextmanager
def live_view(console: Console) -> Iterator[Show]:
    """Yield a function that shows one event; what protection took is shown at the end."""
    rounds: list[RoundDone] = []
    if not console.is_terminal:

        def tell(event: Event) -> None:
            if isinstance(event, RoundDone):
                rounds.append(event)
            _print_line(console, event)
            _print_overhead(console, event, rounds)

        yield tell
        return
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    bar = progress.add_task("rounds", total=None)
    with Live(console=console, refresh_per_second=8) as live:

        def show(event: Event) -> None:
            if isinstance(event, RoundDone):
                rounds.append(event)
                progress.update(bar, completed=event.round, total=event.rounds)
                live.update(Group(_table(rounds[-_ROWS:]), progress))
            elif not isinstance(event, Failed):
                live.console.print(event.line(), highlight=False, soft_wrap=True)
                _print_overhead(live.console, event, rounds)

        yield show


def _print_line(console: Console, event: Event) -> None:
    if isinstance(event, Preparing | Started | RoundDone | Lost | Stopped | Untracked | Ended):
        console.print(event.line(), highlight=False, markup=False, soft_wrap=True)


def _print_overhead(console: Console, event: Event, rounds: list[RoundDone]) -> None:
    line = overhead_line([one.seconds for one in rounds]) if isinstance(event, Ended) else ""
    if line:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(rounds: list[RoundDone]) -> Table:
    table = Table(box=None, pad_edge=False)
    # Not every round need be measured.
    names = list(dict.fromkeys(name for event in rounds for name in event.metrics))
    for heading in ("round", "parties", "epsilon", "of", *names, *_STAGES, "sent"):
        table.add_column(heading, justify="right")
    for event in rounds:
        table.add_row(
            str(event.round),
            str(event.parties),
            "-" if event.epsilon is None else f"{event.epsilon:.4f}",
            "-" if event.epsilon_planned is None else f"{event.epsilon_planned:g}",
            *(figure(event.metrics[name]) if name in event.metrics else "" for name in names),
            *(f"{event.seconds.get(stage, 0.0):.3f}" for stage in _STAGES),
            bytes_text(event.bytes_sent),
        )
    return table
