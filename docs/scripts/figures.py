"""Figures of the documentation, drawn anew from what was measured: `make figures`.

    python docs/scripts/figures.py [FOLDER]

Each is one SVG file with colors for light and dark pages. The same records give the same bytes
with the same version of matplotlib.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

from mpcfl.bench.record import load_records
from mpcfl.bench.summary import Numbers, Row, summarize
from mpcfl.config import load_job
from mpcfl.dp.noise_plan import View
from mpcfl.dp.plan import plan_for_job
from mpcfl.launch.jobs import find_job
from mpcfl.report import chart
from mpcfl.report.page import STYLE
from mpcfl.report.units import seconds_text

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_FIGURES = _ROOT / "docs" / "figures"
# Coordinates of the packaged job's model, a softmax regression of 64 pixels on 10 digits.
_DIGITS_DIM = 650
_VIEWS = {
    View.COALITION: "the planned coalition",
    View.OUTSIDER: "an outsider",
    View.OWN_SHARE: "if the secure sum failed",
}
_BACKENDS = ("plain", "ring", "crypten", "crypten-stock", "paillier")
_COORDINATES = 10_000
_ONE_HOST = "shared-memory"
_KEY_BITS = (None, 3072)


def epsilon_by_round() -> str:
    """Draw what the rounds of the packaged job `digits` cost, by who looks."""
    job = load_job(find_job("digits"))
    plan = plan_for_job(job, _DIGITS_DIM)
    rounds = range(1, job.training.rounds + 1)
    lines = {
        name: [plan.epsilon(rounds=count, view=view) for count in rounds]
        for view, name in _VIEWS.items()
    }
    budget = ("budget", job.privacy.epsilon or 0.0)
    return _file(chart.line_chart(list(rounds), lines, ("rounds", "epsilon"), limit=budget))


def accuracy_by_epsilon() -> str:
    """Draw test accuracy against epsilon, with the spread over runs, for each placement."""
    runs = [json.loads(line) for line in _lines(_RESULTS / "utility.jsonl")]
    with chart.settings():
        figure = Figure(figsize=(chart.WIDTH_INCHES, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for i, task in enumerate(("digits", "mnist5k")):
            for placement, style in (("distributed", "-o"), ("local", "--s")):
                _accuracy_line(axes, _chosen(runs, task, placement), style, i, placement)
            without = _chosen(runs, task, "none")
            level = statistics.mean(run["accuracy"] for run in without)
            label = f"{task}, without noise"
            axes.axhline(level, color=chart.color(i), linestyle=":", linewidth=1.2, label=label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 4, 8]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("epsilon")
        axes.set_ylabel("test accuracy")
        axes.legend(loc="lower right", fontsize=9)
        return _file(chart.svg(figure, "test accuracy against epsilon"))


def _chosen(runs: Iterable[Mapping[str, Any]], task: str, placement: str) -> list[Any]:
    return [run for run in runs if run["task"] == task and run["placement"] == placement]


def _accuracy_line(axes: Axes, runs: list[Any], style: str, color: int, placement: str) -> None:
    by_epsilon: dict[float, list[float]] = {}
    for run in runs:
        by_epsilon.setdefault(run["epsilon"], []).append(run["accuracy"])
    epsilons = sorted(by_epsilon)
    means = [statistics.mean(by_epsilon[epsilon]) for epsilon in epsilons]
    spreads = [statistics.stdev(by_epsilon[epsilon]) for epsilon in epsilons]
    axes.errorbar(
        epsilons, means, yerr=spreads, fmt=style, color=chart.color(color), capsize=3,
        markersize=4, linewidth=1.6, label=f"{runs[0]['task']}, noise {placement}",
    )  # fmt: skip


def time_by_backend() -> str:
    """Draw how long one sum takes on one host, by backend, for two and four parties."""
    rows = summarize(load_records(_RESULTS / "laptop" / "records.jsonl"))
    measured = {
        (row.parameters.variant, row.parameters.parties): row.numbers
        for row in rows
        if row.numbers is not None and _is_shown(row)
    }
    names = sorted({name for name, _ in measured}, key=lambda name: _slowest(measured, name))
    with chart.settings():
        figure = Figure(figsize=(chart.WIDTH_INCHES, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for i, parties in enumerate((2, 4)):
            for place, name in enumerate(names):
                numbers = measured.get((name, parties))
                if numbers is not None:
                    _time_point(axes, numbers, place, i)
            axes.plot([], [], "os"[i], color=chart.color(i), label=f"{parties} parties")
        axes.set_yticks(range(len(names)), names)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value)))
        axes.set_xlabel(f"time for a sum of {_COORDINATES:,} coordinates")
        axes.legend(loc="lower right", fontsize=9)
        return _file(chart.svg(figure, "time for one sum, by backend"))


def _is_shown(row: Row) -> bool:
    p = row.parameters
    one_size = p.dim == _COORDINATES and p.modulus_bits == 32 and p.key_bits in _KEY_BITS
    return one_size and p.link == _ONE_HOST and p.backend in _BACKENDS


def _slowest(measured: Mapping[tuple[str, int], Numbers], name: str) -> float:
    return max(numbers.median_s for (other, _), numbers in measured.items() if other == name)


def _time_point(axes: Axes, numbers: Numbers, place: int, series: int) -> None:
    median = numbers.median_s
    spread = [[median - numbers.low_quartile_s], [numbers.high_quartile_s - median]]
    height = place + 0.16 * (1 - 2 * series)
    axes.errorbar(
        [median], [height], xerr=spread, fmt="os"[series], color=chart.color(series),
        capsize=2, markersize=5,
    )  # fmt: skip


FIGURES: Mapping[str, Callable[[], str]] = {
    "epsilon-by-round": epsilon_by_round,
    "accuracy-by-epsilon": accuracy_by_epsilon,
    "time-by-backend": time_by_backend,
}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _file(svg: str) -> str:
    """Return a chart of a page as a file of its own: with the page's colors, for both schemes."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)[:2]
    colors = (
        f":root{{{_variables(light)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{_variables(dark)}}}}}"
    )
    start = svg.index(">") + 1
    return f"{svg[:start]}<style>{colors} text{{font-family:sans-serif}}</style>{svg[start:]}\n"


def _variables(rules: str) -> str:
    return "".join(f"{name}:{value};" for name, value in re.findall(r"(--[\w-]+): *(#\w+)", rules))


def main(folder: Path) -> None:
    """Write all figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _FIGURES)
