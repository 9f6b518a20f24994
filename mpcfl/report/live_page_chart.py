"""Line charts that are drawn in a millisecond, for a page that is made anew every second.

`chart.py` draws the report's; to draw these by it would take a machine that trains too long. They
have the same colors and follow light and dark. Nothing in them needs a style of its own, so that
the page can forbid those.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 16, 30
# More points than this many can't be told apart.
_MOST_POINTS = 400
# Points so few are marked: a line through a single one would be invisible.
_MARKED_POINTS = 30
_TICKS = 4
_HEADROOM = 1.06

STYLE = """
.chart text { fill: var(--muted); font-size: 13px; }
.chart .grid { stroke: var(--line); stroke-width: .8; }
.chart .limit { stroke: var(--muted); stroke-width: 1.3; stroke-dasharray: 5 4; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.s0 { stroke: var(--series-0); } .line.s1 { stroke: var(--series-1); }
.dot.s0, .key.s0 { fill: var(--series-0); } .dot.s1, .key.s1 { fill: var(--series-1); }
"""


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw.

    Attributes:
        title: for those who can't see it.
        lines: name to points (round, height).
        last_x: right end of the x axis, which begins at 1.
        limit: a named horizontal line, as a budget is.
        least_top: the y axis reaches at least so far.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[int, float]]]
    last_x: int
    limit: tuple[str, float] | None = None
    least_top: float = 0.0


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a round and a height are in the picture."""

    last_x: int
    bottom: float
    top: float

    def x(self, value: float) -> float:
        share = (value - 1) / max(1, self.last_x - 1)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def draw(chart: Chart) -> str:
    """Return one ``<svg>`` element; the same chart gives the same text."""
    scale = _scale(chart)
    marks = [_line(number, points, scale) for number, points in enumerate(chart.lines.values())]
    limit = "" if chart.limit is None else _limit(*chart.limit, scale)
    return (
        f'<svg class="chart" role="img" aria-label="{html.escape(chart.title)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{_grid(scale)}{limit}{"".join(marks)}</svg>'
    )


def _scale(chart: Chart) -> _Scale:
    heights = [height for points in chart.lines.values() for _, height in points]
    if chart.limit is not None:
        heights.append(chart.limit[1])
    # From zero on, so that noise around a constant does not look like a trend.
    low, high = min([0.0, *heights]), max([chart.least_top, *heights])
    if high == low:
        high = low + 1.0
    rounds = [number for points in chart.lines.values() for number, _ in points]
    return _Scale(max([chart.last_x, *rounds]), low, low + (high - low) * _HEADROOM)


def _grid(scale: _Scale) -> str:
    parts = []
    for value in ticks(scale.bottom, scale.top):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(1, scale.last_x):
        if value == int(value) and value >= 1:
            place = f'x="{scale.x(value)}" y="{HEIGHT - 8}"'
            parts.append(f'<text {place} text-anchor="middle">{value:g}</text>')
    return "".join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers from ``low`` to ``high``."""
    if high <= low:
        return [low]
    rough = (high - low) / _TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _line(number: int, points: Sequence[tuple[int, float]], scale: _Scale) -> str:
    kept = _thinned(points)
    places = [(scale.x(x), scale.y(y)) for x, y in kept]
    series = f"s{number % 2}"
    path = " ".join(f"{x},{y}" for x, y in places)
    dots = "".join(
        f'<circle class="dot {series}" cx="{x}" cy="{y}" r="3"/>'
        for x, y in (places if len(places) <= _MARKED_POINTS else places[-1:])
    )
    return f'<polyline class="line {series}" points="{path}"/>{dots}'


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return points evenly, and always the last."""
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    return [*points[:-1:stride], *points[-1:]]


def _limit(name: str, value: float, scale: _Scale) -> str:
    y = scale.y(value)
    return (
        f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{_LEFT + 6}" y="{y + 14}">{html.escape(name)}</text>'
    )
