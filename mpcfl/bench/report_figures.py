"""The charts of a benchmark page: which cases stand in which, so that large grids stay legible.

A chart of totals has one row per variant of one workload on one network. Of the lengths that
were measured it shows two: the longest that most variants have, and the longest of all.
Charts of curves have one small panel per number of parties or per length, with equal axes.
A variant has one color, marker and dash on the whole page.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mpcfl.bench.case_numbers import CaseNumbers, Spread
from mpcfl.bench.dimension_fit import DimensionFit, fit_cost_model, model_seconds, modeled
from mpcfl.bench.record import Parameters, Stage
from mpcfl.report import panels
from mpcfl.report.units import seconds_text

# A family keeps its color on every page; others take the rest in the order of their names.
_COLORS = (
    ("plain", 7), ("crypten-stock", 5), ("crypten", 0), ("ring", 2), ("phe", 3), ("paillier", 1),
    ("tenseal", 6), ("heu", 4),
)  # fmt: skip
_N_COLORS = 8
_MIB = 1 << 20
_CURVE_POINTS = 33
STAGES = tuple(stage.value for stage in Stage)
Looks = Mapping[str, panels.Look]


@dataclass(frozen=True, slots=True)
class Facet:
    """Cases that differ in backend and length only: those of one chart of totals, or of two."""

    parties: int
    modulus_bits: int
    dtype: str
    link: str
    round_trip_ms: float

    @classmethod
    def of(cls, parameters: Parameters) -> Facet:
        """Return the facet of a case."""
        p = parameters
        return cls(p.parties, p.modulus_bits, p.dtype, p.link, p.round_trip_ms)

    @property
    def title(self) -> str:
        """The facet in words."""
        return f"{self.parties} parties, b = {self.modulus_bits}, {self.dtype}, {self.network}"

    @property
    def network(self) -> str:
        """The network in words."""
        return network_text(self.link, self.round_trip_ms)


def network_text(link: str, round_trip_ms: float) -> str:
    """Return a network in words."""
    return link if not round_trip_ms else f"{link}, round trip {round_trip_ms:g} ms"


def choose_looks(cases: Iterable[CaseNumbers]) -> dict[str, panels.Look]:
    """Return how each variant looks, by its name."""
    variants = sorted({(case.parameters.backend, case.parameters.variant) for case in cases})
    others = sorted({backend for backend, _ in variants if _family(backend) is None})
    used: dict[int, int] = {}
    looks = {}
    for backend, variant in variants:
        known = _family(backend)
        color = others.index(backend) % _N_COLORS if known is None else known
        looks[variant] = panels.Look(color, used.get(color, 0))
        used[color] = looks[variant].shape + 1
    return looks


def shown_dims(cases: Sequence[CaseNumbers]) -> list[int]:
    """Return the longest length that most variants have, and the longest of all."""
    dims = sorted({case.parameters.dim for case in cases}, reverse=True)
    most = max(dims, key=lambda dim: sum(case.parameters.dim == dim for case in cases))
    return list(dict.fromkeys((most, dims[0])))


def time_chart(title: str, cases: Sequence[CaseNumbers], looks: Looks) -> str:
    """Draw seconds per coordinate with the share of each stage, and the set-up apart."""
    return panels.totals(
        title,
        [
            panels.SharedTotal(
                label=case.parameters.variant,
                look=looks[case.parameters.variant],
                total=point(case.seconds.over(case.parameters.dim)),
                parts=tuple(case.stages_s.get(stage, 0.0) for stage in STAGES),
                beside=point(case.setup_s),
            )
            for case in _sorted(cases, lambda case: case.seconds)
        ],
        panels.TotalAxes(
            total=panels.Axis("time of one sum per coordinate", seconds_text),
            parts=STAGES,
            beside=panels.Axis("set-up, once per session", seconds_text, most_ticks=3),
        ),
    )


def bytes_chart(title: str, cases: Sequence[CaseNumbers], looks: Looks) -> str:
    """Draw bytes per coordinate and party with the share of each stage, and the set-up apart."""
    return panels.totals(
        title,
        [
            panels.SharedTotal(
                label=case.parameters.variant,
                look=looks[case.parameters.variant],
                total=point(case.bytes_per_sum.over(case.coordinates)),
                parts=tuple(case.bytes_by_stage.get(stage, 0.0) for stage in STAGES),
                beside=point(Spread(*[case.setup_bytes] * 3)),
            )
            for case in _sorted(cases, lambda case: case.bytes_per_sum)
        ],
        panels.TotalAxes(
            total=panels.Axis("bytes of one sum per coordinate and party", decimal_bytes_text),
            parts=STAGES,
            beside=panels.Axis("set-up, all parties", decimal_bytes_text, most_ticks=3),
        ),
    )


def memory_chart(title: str, cases: Sequence[CaseNumbers], looks: Looks) -> str:
    """Draw the largest rank's peak memory."""
    ordered = _sorted(cases, lambda case: case.peak_rss_bytes)
    labels = [case.parameters.variant for case in ordered]
    rows = tuple(
        (looks[label], point(case.peak_rss_bytes.over(_MIB)))
        for label, case in zip(labels, ordered, strict=True)
    )
    axis = panels.Axis("peak resident set", "{:.3g} MiB".format, linear=True)
    return panels.points(title, labels, [panels.Column(axis, rows)])


def dimension_chart(
    title: str, cases: Sequence[CaseNumbers], fits: Sequence[DimensionFit], looks: Looks
) -> str:
    """Draw seconds against length, a panel per number of parties; lines are the fits."""
    found = {replace(fit.parameters, dim=0): fit for fit in fits}
    drawn = []
    for parties, same in _grouped(cases, "parties"):
        curves = []
        for variant, points in _by_variant(same):
            fit = found.get(replace(points[-1].parameters, dim=0))
            ends = (points[0].parameters.dim, points[-1].parameters.dim)
            curves.append(
                panels.Curve(
                    variant,
                    looks[variant],
                    tuple(point(case.seconds, case.parameters.dim) for case in points),
                    model=() if fit is None else sampled(fit.seconds, *ends),
                    joined=fit is None,
                )
            )
        drawn.append(panels.Panel(f"{parties} parties", tuple(curves)))
    x = panels.Axis("coordinates", count_text)
    return panels.curve_panels(title, drawn, x, panels.Axis("time of one sum", seconds_text))


def parties_chart(
    title: str, cases: Sequence[CaseNumbers], all_cases: Sequence[CaseNumbers], cores: int,
    looks: Looks,
) -> str:  # fmt: skip
    """Draw seconds against the number of parties, a panel per length.

    Args:
        title: of the chart.
        cases: that are shown, of one network.
        all_cases: that the cost model is fitted to, where it can be.
        cores: of the machine.
        looks: of the variants.
    """
    model = fit_cost_model(all_cases, cores)
    drawn = []
    for dim, same in _grouped(cases, "dim"):
        curves = []
        for variant, points in _by_variant(same):
            counts = [case.parameters.parties for case in points]
            known = model is not None and modeled(points[0].parameters)
            predicted = tuple(
                (float(case.parameters.parties), model_seconds(case.parameters, model, cores)(dim))
                for case in points
                if known and model is not None
            )
            curves.append(
                panels.Curve(
                    variant,
                    looks[variant],
                    tuple(point(case.seconds, n) for case, n in zip(points, counts, strict=True)),
                    model=predicted,
                    joined=not known,
                )
            )
        drawn.append(panels.Panel(f"dim {dim:,}", tuple(curves)))
    ticks = tuple(sorted({float(case.parameters.parties) for case in cases}))
    x = panels.Axis("parties", count_text, ticks)
    return panels.curve_panels(title, drawn, x, panels.Axis("time of one sum", seconds_text))


def decimal_bytes_text(n_bytes: float) -> str:
    """Return bytes with a decimal unit, which suits the decades of a logarithmic axis."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes:.3g} B"


def count_text(value: float) -> str:
    """Return a whole number as an axis shows it."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _sorted(
    cases: Iterable[CaseNumbers], value: Callable[[CaseNumbers], Spread]
) -> list[CaseNumbers]:
    """Return the cases with the smallest median first."""
    return sorted(cases, key=lambda case: (value(case).median, case.parameters.variant))


def _family(backend: str) -> int | None:
    # The longest name first: crypten-stock is not crypten.
    for name, color in sorted(_COLORS, key=lambda entry: -len(entry[0])):
        if backend == name or backend.startswith(f"{name}-"):
            return color
    return None


def point(spread: Spread, x: float = 0.0) -> panels.Point:
    """Return a spread as a chart takes it."""
    return panels.Point(x, spread.low, spread.median, spread.high)


def _grouped(cases: Iterable[CaseNumbers], name: str) -> list[tuple[int, list[CaseNumbers]]]:
    groups: dict[int, list[CaseNumbers]] = {}
    for case in cases:
        groups.setdefault(getattr(case.parameters, name), []).append(case)
    return sorted(groups.items())


def _by_variant(cases: Iterable[CaseNumbers]) -> list[tuple[str, list[CaseNumbers]]]:
    ordered = sorted(
        cases, key=lambda c: (c.parameters.variant, c.parameters.dim, c.parameters.parties)
    )
    grouped = itertools.groupby(ordered, key=lambda case: case.parameters.variant)
    return [(variant, list(same)) for variant, same in grouped]


def sampled(
    height: Callable[[float], float], start: float, end: float
) -> tuple[tuple[float, float], ...]:
    """Return a function's values at logarithmic steps, without those that have no logarithm."""
    steps = (_CURVE_POINTS - 1) if end > start else 0
    x = [start * (end / start) ** (i / steps) if steps else start for i in range(steps + 1)]
    return tuple((at, height(at)) for at in x if height(at) > 0)
