"""Show how far a grid is: a line per cell, and in a terminal a bar with the time that is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mpcfl.bench.progress import duration_text
from mpcfl.bench.run import OnStep, Step


@contextmanager
def grid_view(console: Console, total: int) -> Iterator[OnStep]:
    """Yield what shows one step; ``total`` is the number of cells to come."""
    if not console.is_terminal:
        yield lambda step: _print_line(console, step)
        return
    columns = (
        *(TextColumn("cells"), BarColumn(), MofNCompleteColumn()),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("cells", total=total, left="")

        def show(step: Step) -> None:
            _print_line(progress.console, step)
            progress.update(bar, completed=step.done, left=_left(step))

        yield show


def _print_line(console: Console, step: Step) -> None:
    failure = step.record.failure
    state = "done" if failure is None else f"failed: {failure}"
    left = f"  ({_left(step)})" if _left(step) else ""
    console.print(
        f"cell {step.done}/{step.total}  {step.record.case}  {state}{left}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _left(step: Step) -> str:
    """Return how long the others will take; nothing after the last one."""
    if step.done == step.total:
        return ""
    return f"about {duration_text(step.seconds_left)} left"
