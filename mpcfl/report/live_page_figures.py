"""The charts of a run that goes on; the round axis is as long as the job, so that they fill up."""

from __future__ import annotations

import html
from collections.abc import Callable

from mpcfl.report import live_state_words as words
from mpcfl.report import page
from mpcfl.report.live_page_chart import Chart, draw
from mpcfl.report.live_state import LiveState
from mpcfl.report.run_record import RoundRecord
from mpcfl.report.units import epsilon_text

_MILLISECONDS = 1e3
_BYTE_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def charts(state: LiveState) -> str:
    """Return all charts of a run that has a round."""
    drawn = [
        _measured(state, "accuracy", "Accuracy on public test data"),
        _measured(state, "loss", "Loss on public test data"),
        _spent(state),
        _seconds(state),
        _bytes(state),
        _alive(state),
    ]
    return page.section("Round by round", f'<div class="figures">{"".join(drawn)}</div>')


def _figure(caption: str, chart: Chart) -> str:
    names = chart.lines if len(chart.lines) > 1 else ()
    keys = "".join(
        f'<svg viewBox="0 0 10 10" aria-hidden="true"><circle class="key s{number}" cx="5" cy="5" '
        f'r="5"/></svg>{html.escape(name)}'
        for number, name in enumerate(names)
    )
    return f"<figure><figcaption>{html.escape(caption)}{keys}</figcaption>{draw(chart)}</figure>"


def _points(
    state: LiveState, height: Callable[[RoundRecord], float | None]
) -> list[tuple[int, float]]:
    pairs = ((one.round, height(one)) for one in state.rounds)
    return [(number, value) for number, value in pairs if value is not None]


def _measured(state: LiveState, name: str, caption: str) -> str:
    points = _points(state, lambda one: getattr(one, name))
    if not points:
        return ""
    top = 1.0 if name == "accuracy" else 0.0
    return _figure(caption, Chart(caption, {name: points}, state.rounds_planned, least_top=top))


def _spent(state: LiveState) -> str:
    points = _points(state, lambda one: one.epsilon)
    if not points:
        return ""
    caption, planned = "Epsilon spent, planned coalition's view", state.epsilon_planned
    limit = None if planned is None else (f"budget {epsilon_text(planned)}", planned)
    return _figure(caption, Chart(caption, {"spent": points}, state.rounds_planned, limit))


def _seconds(state: LiveState) -> str:
    pairs = [(one.round, *words.shares(one)) for one in state.rounds]
    is_quick = max(max(learning, protection) for _, learning, protection in pairs) < 1.0
    factor, unit = (_MILLISECONDS, "ms") if is_quick else (1.0, "s")
    lines = {
        "learning": [(number, learning * factor) for number, learning, _ in pairs],
        "protection": [(number, protection * factor) for number, _, protection in pairs],
    }
    caption = f"Time per round, {unit}"
    return _figure(caption, Chart(caption, lines, state.rounds_planned))


def _bytes(state: LiveState) -> str:
    most = max(one.bytes_sent for one in state.rounds)
    size, unit = next(pair for pair in _BYTE_UNITS if most >= pair[0] or pair[0] == 1)
    points = _points(state, lambda one: one.bytes_sent / size)
    caption = f"Bytes sent per round, all parties, {unit}"
    return _figure(caption, Chart(caption, {"sent": points}, state.rounds_planned))


def _alive(state: LiveState) -> str:
    points = _points(state, lambda one: len(one.parties))
    caption, top = "Parties taking part", len(state.parties)
    return _figure(
        caption, Chart(caption, {"parties": points}, state.rounds_planned, least_top=top)
    )
