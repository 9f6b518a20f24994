"""Charts of many cases: small multiples of curves, and rows of totals beside their shares.

They share what `chart.py` says of colors, bytes and pages. Values span orders of magnitude, so
their axes are logarithmic; parts can't be stacked on such an axis, which is why the shares
have an axis of their own beside the totals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from mpcfl.report import chart

WIDE_INCHES = 10.4
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_PANEL_INCHES = 2.9
_MOST_COLUMNS = 3
_LEGEND_INCHES = 0.28
_ROW_INCHES = 0.31
_MODEL_WIDTH, _POINT_SIZE = 1.6, 5.0
TickText = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Look:
    """How one variant looks in all charts of a page: a color, a marker and a dash."""

    color: int
    shape: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A median between its quartiles, at a position."""

    x: float
    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One variant in one panel: what was measured, and what a model says.

    Attributes:
        model: positions and heights, in order; empty without a model.
        joined: points are joined by thin lines, where there is no model to show the way.
    """

    label: str
    look: Look
    points: tuple[Point, ...]
    model: tuple[tuple[float, float], ...] = ()
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One of several small charts with equal axes.

    Attributes:
        marks: places where curves meet.
    """

    title: str
    curves: tuple[Curve, ...]
    marks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis says.

    Attributes:
        ticks: positions; empty for powers of ten.
        linear: from zero on, instead of logarithmic.
        most_ticks: where powers of ten are the ticks.
    """

    label: str
    text: TickText
    ticks: tuple[float, ...] = ()
    linear: bool = False
    most_ticks: int = 7


@dataclass(frozen=True, slots=True)
class SharedTotal:
    """One row of totals: a median between quartiles, its parts, and something beside it.

    Attributes:
        parts: of the total, in the order of the chart's part names; only their shares count.
        beside: on an axis of its own, as the set-up is; None leaves the row empty there.
    """

    label: str
    look: Look
    total: Point
    parts: tuple[float, ...]
    beside: Point | None


@dataclass(frozen=True, slots=True)
class Column:
    """Points beside each other on one axis, a row each; None leaves the row empty."""

    axis: Axis
    rows: tuple[tuple[Look, Point | None], ...]


@dataclass(frozen=True, slots=True)
class TotalAxes:
    """What the axes of a chart of totals say."""

    total: Axis
    parts: tuple[str, ...]
    beside: Axis


def curve_panels(title: str, panels: Sequence[Panel], x: Axis, y: Axis) -> str:
    """Draw small multiples with equal logarithmic axes, one legend above them.

    Args:
        title: names the chart; two of a page must differ.
        panels: at least one.
        x: of all panels.
        y: of all panels.

    Returns:
        One ``<svg>`` element.
    """
    columns = min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    looks = {curve.label: curve.look for panel in panels for curve in panel.curves}
    legend_rows = -(-len(looks) // 4)
    with chart.settings():
        height = rows * _PANEL_INCHES + 0.4 + _LEGEND_INCHES * legend_rows
        figure = Figure(figsize=(WIDE_INCHES, height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        all_axes: list[Axes] = list(grid.flat)
        for axes, panel in zip(all_axes, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        # The panel above a hidden one has to say what its axis means.
        for axes in all_axes[max(0, len(panels) - columns) : len(panels)]:
            axes.tick_params(axis="x", which="both", labelbottom=True)
        _logarithmic(all_axes[0].xaxis, x)
        _logarithmic(all_axes[0].yaxis, y)
        for axes in all_axes:
            axes.tick_params(labelsize=9)
        figure.supxlabel(x.label, fontsize=10, color=chart.MUTED)
        figure.supylabel(y.label, fontsize=10, color=chart.MUTED)
        handles = [_handle(label, looks[label]) for label in looks]
        figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9)
        return chart.svg(figure, title)


def totals(title: str, rows: Sequence[SharedTotal], axes: TotalAxes) -> str:
    """Draw one row per case: the total, the share of each part, and what stands beside it.

    Returns:
        One ``<svg>`` element.
    """
    with chart.settings():
        height = 1.25 + _ROW_INCHES * len(rows)
        figure = Figure(figsize=(WIDE_INCHES, height), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(4, 4, 2))
        _draw_points(left, [(row.look, row.total) for row in rows], axes.total)
        _draw_shares(middle, rows, axes.parts)
        _draw_points(right, [(row.look, row.beside) for row in rows], axes.beside)
        _name_rows(left, [row.label for row in rows])
        for other in (middle, right):
            other.tick_params(axis="y", length=0)
        return chart.svg(figure, title)


def points(title: str, labels: Sequence[str], columns: Sequence[Column]) -> str:
    """Draw one median with quartiles per row, in one column or several beside each other.

    Returns:
        One ``<svg>`` element.
    """
    with chart.settings():
        height = 0.9 + _ROW_INCHES * len(labels)
        width = WIDE_INCHES if len(columns) > 1 else chart.WIDTH_INCHES
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)
        for axes, column in zip(grid.flat, columns, strict=True):
            _draw_points(axes, column.rows, column.axis)
            axes.tick_params(axis="y", length=0)
        _name_rows(grid.flat[0], labels)
        return chart.svg(figure, title)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_title(panel.title, fontsize=9.5, color=chart.INK, loc="left")
    for curve in panel.curves:
        color, dash = chart.color(curve.look.color), _DASHES[curve.look.shape % len(_DASHES)]
        if curve.model:
            axes.plot(*zip(*curve.model, strict=True), dash, color=color, linewidth=_MODEL_WIDTH)
        if curve.joined and len(curve.points) > 1:
            path = [(point.x, point.median) for point in curve.points]
            axes.plot(*zip(*path, strict=True), dash, color=color, linewidth=0.8)
        if curve.points:
            _draw_errors(axes, curve)
    for x, y in panel.marks:
        axes.plot(
            [x], [y], "o", markersize=9, markerfacecolor="none", markeredgecolor=chart.INK,
            markeredgewidth=1.1,
        )  # fmt: skip


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", labelcolor=chart.INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _draw_errors(axes: Axes, curve: Curve) -> None:
    medians = [point.median for point in curve.points]
    arms = [
        [point.median - point.low for point in curve.points],
        [point.high - point.median for point in curve.points],
    ]
    axes.errorbar(
        [point.x for point in curve.points], medians, yerr=arms, fmt=_marker(curve.look),
        color=chart.color(curve.look.color), markersize=_POINT_SIZE, capsize=2.5,
    )  # fmt: skip


def _draw_points(axes: Axes, rows: Sequence[tuple[Look, Point | None]], axis: Axis) -> None:
    for position, (look, point) in enumerate(rows):
        if point is not None and point.median > 0:
            arms = [[point.median - point.low], [point.high - point.median]]
            axes.errorbar(
                [point.median], [position], xerr=arms, fmt=_marker(look), capsize=3,
                color=chart.color(look.color), markersize=6,
            )  # fmt: skip
            axes.annotate(
                axis.text(point.median), (point.median, position), (0, 5.5),
                textcoords="offset points", fontsize=7.5, ha="center", color=chart.INK,
            )  # fmt: skip
    shown = [point for _, point in rows if point is not None]
    if axis.linear:
        axes.set_xlim(0, 1.1 * max((point.high for point in shown), default=1.0))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(lambda value, _: axis.text(value))
    else:
        axes.set_xscale("log")
        axes.set_xlim(_decades(shown))
        _logarithmic(axes.xaxis, axis)
    axes.set_xlabel(axis.label, fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)


def _decades(points: Sequence[Point]) -> tuple[float, float]:
    """Return powers of ten around the points, so that any axis has two ticks at least."""
    positive = [value for point in points for value in (point.low, point.high) if value > 0]
    if not positive:
        return 0.1, 10.0
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return 10.0**low * 0.7, 10.0 ** max(high, low + 1) * 1.4


def _draw_shares(axes: Axes, rows: Sequence[SharedTotal], names: Sequence[str]) -> None:
    base = [0.0] * len(rows)
    for part, name in enumerate(names):
        shares = [_share(row, part) for row in rows]
        axes.barh(
            range(len(rows)), shares, left=base, height=0.62,
            color=chart.PARTS[part % len(chart.PARTS)], label=name,
        )  # fmt: skip
        base = [low + share for low, share in zip(base, shares, strict=True)]
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of each stage, %", fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)
    chart.legend_above(axes, len(names))


def _share(row: SharedTotal, part: int) -> float:
    whole = sum(row.parts)
    return 100 * row.parts[part] / whole if whole > 0 else 0.0


def _logarithmic(axis: XAxis | YAxis, says: Axis) -> None:
    if says.ticks:
        axis.set_major_locator(FixedLocator(list(says.ticks)))
    else:
        axis.set_major_locator(LogLocator(base=10, numticks=says.most_ticks))
    # Minor ticks are most of what a chart costs to draw.
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: says.text(value))


def _marker(look: Look) -> str:
    return _MARKERS[look.shape % len(_MARKERS)]


def _handle(label: str, look: Look) -> Line2D:
    return Line2D(
        [], [], color=chart.color(look.color), marker=_marker(look), markersize=_POINT_SIZE,
        linestyle=_DASHES[look.shape % len(_DASHES)], linewidth=_MODEL_WIDTH, label=label,
    )  # fmt: skip
