"""Charts as SVG text that stands inside an HTML page and follows its light or dark colors.

Matplotlib's object interface draws them; nothing global is touched and nothing is shown.
The same numbers give the same bytes. Colors leave as CSS variables, which
`page.STYLE` defines for both color schemes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from mpcfl.report.units import seconds_text

INK = "#1d2430"
MUTED = "#5b6573"
LINE = "#d5dae1"
# Distinguishable with the common color deficiencies (Okabe and Ito 2008), darkened for white.
SERIES = ("#0a64a4", "#c25a00", "#00805f", "#a8437f", "#7a6a00", "#4a90c4", "#7d4cc2", "#6b7280")
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    **{color: f"series-{i}" for i, color in enumerate(SERIES)},
}
_WIDTH_INCHES = 5.8
_BAR_INCHES = 0.3
_LINE_STYLES = ("-", "--", ":", "-.")
# Any: the keys are a closed set of literals in the stubs of some versions, strings in others.
_SETTINGS: Any = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10.0,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    # A name with two dollar signs is a name, not a formula.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


@dataclass(frozen=True, slots=True)
class Interval:
    """A median between its quartiles; one row of an interval chart."""

    label: str
    low: float
    median: float
    high: float
    series: int


def line_chart(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    axis_labels: tuple[str, str],
    limit: tuple[str, float] | None = None,
) -> str:
    """Draw lines over whole numbers, as rounds are.

    Args:
        x: positions, equal for all lines.
        lines: name to heights; None leaves a gap.
        axis_labels: of x and y.
        limit: a named horizontal line, as a budget is.

    Returns:
        One ``<svg>`` element.
    """
    with mpl.rc_context(_SETTINGS):
        figure, axes = _blank(3.0)
        for i, (name, heights) in enumerate(lines.items()):
            gaps = [float("nan") if height is None else height for height in heights]
            # A line through a single point would be invisible.
            marker = "o" if len(gaps) <= 30 else ""
            # Lines that coincide, as bytes sent and received do, differ by their dashes.
            style = _LINE_STYLES[i % len(_LINE_STYLES)] + marker
            axes.plot(x, gaps, style, color=_color(i), markersize=4, linewidth=2, label=name)
        if limit is not None:
            axes.axhline(limit[1], color=MUTED, linestyle="--", linewidth=1.2, label=limit[0])
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        # From zero on, so that noise around a constant does not look like a trend.
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if _any_negative(lines) else 0.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1 or limit is not None:
            axes.legend(loc="best", fontsize=9)
        return _svg(figure, ", ".join(lines))


def stacked_columns(
    x: Sequence[int], layers: Mapping[str, Sequence[float]], axis_labels: tuple[str, str]
) -> str:
    """Draw one stacked column per position, as the seconds of each stage in each round."""
    with mpl.rc_context(_SETTINGS):
        figure, axes = _blank(3.2)
        base = [0.0] * len(x)
        for i, (name, heights) in enumerate(layers.items()):
            axes.bar(x, heights, bottom=base, width=0.8, color=_color(i), label=name)
            base = [low + height for low, height in zip(base, heights, strict=True)]
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_above(axes, len(layers))
        return _svg(figure, "seconds by stage and round")


def stacked_shares(labels: Sequence[str], layers: Mapping[str, Sequence[float]]) -> str:
    """Draw one bar per label, cut in shares of its own total, which stands beside it in seconds.

    Totals that differ by orders of magnitude can't share a linear axis, and parts can't be
    stacked on a logarithmic one; `intervals` shows the totals.
    """
    with mpl.rc_context(_SETTINGS):
        figure, axes = _blank(_height(len(labels)))
        totals = [sum(parts) for parts in zip(*layers.values(), strict=True)]
        base = [0.0] * len(labels)
        for i, (name, seconds) in enumerate(layers.items()):
            shares = [100 * s / t if t > 0 else 0.0 for s, t in zip(seconds, totals, strict=True)]
            axes.barh(range(len(labels)), shares, left=base, color=_color(i), label=name)
            base = [low + share for low, share in zip(base, shares, strict=True)]
        for row, total in enumerate(totals):
            axes.text(101.5, row, seconds_text(total), va="center", fontsize=9)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 122)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("share of the time of one sum, %")
        _legend_above(axes, len(layers))
        return _svg(figure, "share of each stage")


def intervals(rows: Sequence[Interval], x_label: str, tick_text: Callable[[float], str]) -> str:
    """Draw medians with their quartiles on a logarithmic axis, one row each."""
    with mpl.rc_context(_SETTINGS):
        figure, axes = _blank(_height(len(rows)))
        for position, row in enumerate(rows):
            arms = [[row.median - row.low], [row.high - row.median]]
            axes.errorbar(
                [row.median], [position], xerr=arms, fmt="o", capsize=3, color=_color(row.series)
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.invert_yaxis()
        axes.set_xlabel(x_label)
        return _svg(figure, x_label)


def bars(labels: Sequence[str], values: Sequence[float], x_label: str) -> str:
    """Draw one bar per label."""
    with mpl.rc_context(_SETTINGS):
        figure, axes = _blank(_height(len(labels)))
        axes.barh(range(len(labels)), values, color=SERIES[0])
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
        return _svg(figure, x_label)


def _any_negative(lines: Mapping[str, Sequence[float | None]]) -> bool:
    return any(height is not None and height < 0 for line in lines.values() for height in line)


def _blank(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def _height(n_rows: int) -> float:
    return 1.1 + _BAR_INCHES * n_rows


def _color(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _legend_above(axes: Axes, n_entries: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(n_entries, 6), fontsize=9,
        handlelength=1.0, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def _svg(figure: Figure, title: str) -> str:
    """Write the figure and strip what an inline picture must not have: foreign addresses, size."""
    stream = io.StringIO()
    # The salt names the marks inside the picture; by title, so that two on a page do not clash.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg (.*?)width="[^"]*"', r'<svg role="img" \1', text, count=1, flags=re.DOTALL)
    text = re.sub(r' height="[^"]*pt"', "", text, count=1)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
