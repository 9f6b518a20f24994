"""Charts as SVG text that stands inside an HTML page and follows its light or dark colors.

Matplotlib's object interface draws them; nothing global is touched and nothing is shown.
The same numbers give the same bytes. Colors leave as CSS variables, which
`page.STYLE` defines for both color schemes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#1d2430"
MUTED = "#5b6573"
LINE = "#d5dae1"
# Distinguishable with the common color deficiencies (Okabe and Ito 2008), darkened for white.
SERIES = ("#0a64a4", "#c25a00", "#00805f", "#a8437f", "#7a6a00", "#4a90c4", "#7d4cc2", "#6b7280")
# Parts of a total where colors mean something else: steps of one gray.
PARTS = ("#39465a", "#8593a8", "#c4ccd8")
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    **{shade: f"series-{i}" for i, shade in enumerate(SERIES)},
    **{shade: f"part-{i}" for i, shade in enumerate(PARTS)},
}
WIDTH_INCHES = 5.8
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


def settings() -> AbstractContextManager[None]:
    """Return the context in which every chart of a page is drawn."""
    context: AbstractContextManager[None] = mpl.rc_context(_SETTINGS)
    return context


def color(index: int) -> str:
    """Return the color of a series; they repeat after the last one."""
    return SERIES[index % len(SERIES)]


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
    with settings():
        figure, axes = _blank(3.0)
        for i, (name, heights) in enumerate(lines.items()):
            gaps = [float("nan") if height is None else height for height in heights]
            # A line through a single point would be invisible.
            marker = "o" if len(gaps) <= 30 else ""
            # Lines that coincide, as bytes sent and received do, differ by their dashes.
            style = _LINE_STYLES[i % len(_LINE_STYLES)] + marker
            axes.plot(x, gaps, style, color=color(i), markersize=4, linewidth=2, label=name)
        if limit is not None:
            axes.axhline(limit[1], color=MUTED, linestyle="--", linewidth=1.2, label=limit[0])
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        # From zero on, so that noise around a constant does not look like a trend.
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if _any_negative(lines) else 0.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1 or limit is not None:
            axes.legend(loc="best", fontsize=9)
        return svg(figure, ", ".join(lines))


def stacked_columns(
    x: Sequence[int], layers: Mapping[str, Sequence[float]], axis_labels: tuple[str, str]
) -> str:
    """Draw one stacked column per position, as the seconds of each stage in each round."""
    with settings():
        figure, axes = _blank(3.2)
        base = [0.0] * len(x)
        for i, (name, heights) in enumerate(layers.items()):
            axes.bar(x, heights, bottom=base, width=0.8, color=color(i), label=name)
            base = [low + height for low, height in zip(base, heights, strict=True)]
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(axes, len(layers))
        return svg(figure, "seconds by stage and round")


def _any_negative(lines: Mapping[str, Sequence[float | None]]) -> bool:
    return any(height is not None and height < 0 for line in lines.values() for height in line)


def _blank(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.add_subplot()


def legend_above(axes: Axes, n_entries: int) -> None:
    """Put the legend above a chart, in one line where there is room."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(n_entries, 6), fontsize=9,
        handlelength=1.0, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def svg(figure: Figure, title: str) -> str:
    """Write the figure and strip what an inline picture must not have: foreign addresses, size."""
    stream = io.StringIO()
    # The salt names the marks inside the picture; by title, so that two on a page do not clash.
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg (.*?)width="[^"]*"', r"<svg \1", text, count=1, flags=re.DOTALL)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
    text = re.sub(r' height="[^"]*pt"', "", text, count=1)
    for shade, variable in VARIABLES.items():
        text = text.replace(shade, f"var(--{variable})")
    return text
