"""A run that goes on, as a picture of a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mpcfl.report import live_state_words as words
from mpcfl.report.live_state import LiveState, Phase
from mpcfl.report.overhead import overhead_line
from mpcfl.report.run_record import RoundRecord
from mpcfl.report.units import bytes_text, epsilon_text, seconds_text

# A terminal shows the newest rounds; the report holds all of them.
_ROWS = 12
_BAR_COLUMNS = 40
_STYLES = {
    Phase.PREPARING: "cyan",
    Phase.RUNNING: "green",
    Phase.ENDED: "bold green",
    Phase.STOPPED: "yellow",
    Phase.FAILED: "bold red",
    Phase.INTERRUPTED: "bold red",
}


def watch_view(state: LiveState) -> RenderableType:
    """Return the whole picture."""
    parts: list[RenderableType] = [
        Text.assemble((state.phase, _STYLES[state.phase]), "  ", words.title(state)),
        _bars(state),
        _parties(state),
    ]
    if state.rounds:
        parts += ["", _table(state)]
    cost = overhead_line([one.seconds for one in state.rounds])
    if cost:
        parts += ["", Text(cost, style="dim")]
    return Group(*parts)


def _bars(state: LiveState) -> Table:
    grid = Table.grid(padding=(0, 2))
    done = ProgressBar(state.rounds_planned, words.rounds_done(state), width=_BAR_COLUMNS)
    grid.add_row("rounds", done, words.progress(state), words.time_left(state))
    if state.epsilon_planned is not None:
        spent = ProgressBar(
            state.epsilon_planned,
            state.epsilon or 0.0,
            width=_BAR_COLUMNS,
            complete_style="yellow",
            finished_style="yellow",
        )
        grid.add_row("epsilon", spent, words.epsilon(state), f"at delta {state.delta:g}")
    return grid


def _parties(state: LiveState) -> Text:
    text = Text(f"parties {words.alive(state)}: ")
    names = [
        Text(f"{name} (lost)", style="red") if name in state.lost else Text(name, style="green")
        for name in state.parties
    ]
    return text.append_text(Text(", ").join(names))


def _table(state: LiveState) -> Table:
    table = Table(box=None, pad_edge=False)
    headings = ("round", "parties", "epsilon", "accuracy", "loss", "learning", "protection", "sent")
    for heading in headings:
        table.add_column(heading, justify="right")
    for one in state.rounds[-_ROWS:]:
        table.add_row(*_cells(one))
    table.add_row("all", *[""] * 6, words.bytes_sent(state), style="bold")
    return table


def _cells(one: RoundRecord) -> tuple[str, ...]:
    learning, protection = words.shares(one)
    return (
        str(one.round),
        str(len(one.parties)),
        "-" if one.epsilon is None else epsilon_text(one.epsilon),
        words.number(one.accuracy),
        words.number(one.loss),
        seconds_text(learning),
        seconds_text(protection),
        bytes_text(one.bytes_sent),
    )
