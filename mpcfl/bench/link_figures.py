"""The charts of links: what they carried, and seconds against their rate with the fitted models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from mpcfl.bench.case_numbers import NetworkNumbers, Spread
from mpcfl.bench.crossover import LinkStudy, rate_text
from mpcfl.bench.link_model import FittedVariant
from mpcfl.bench.report_figures import Looks, network_text, point, sampled
from mpcfl.bench.summary import BASELINE
from mpcfl.report import panels
from mpcfl.report.units import seconds_text

# More panels than this in one chart are too small to read.
MOST_PANELS = 6


def network_chart(title: str, networks: Sequence[NetworkNumbers]) -> str:
    """Draw what TCP delivered of the rate that was asked for, and the round trip."""
    one, other = panels.Look(0), panels.Look(1, 1)
    labels = [network_text(network.link, network.round_trip_ms) for network in networks]
    share = panels.Axis("one way, of the rate asked for", "{:.0%}".format, linear=True)
    both = panels.Axis("both ways at once, each", "{:.0%}".format, linear=True)
    trip = panels.Axis("round trip of the empty link", seconds_text, most_ticks=4)
    columns = (
        (share, one, [point(n.one_way_bit_per_s.over(n.asked_bit_per_s)) for n in networks]),
        (both, other, [point(n.both_ways_bit_per_s.over(n.asked_bit_per_s)) for n in networks]),
        (trip, one, [point(n.round_trip_s) for n in networks]),
    )
    return panels.points(
        title,
        labels,
        [
            panels.Column(axis, tuple((look, point) for point in points))
            for axis, look, points in columns
        ],
    )


def link_chart(title: str, studies: Sequence[tuple[LinkStudy, float]], looks: Looks) -> str:
    """Draw seconds against the link's rate, a panel per workload and round trip.

    Args:
        title: of the chart.
        studies: each with the round trip to show, in milliseconds as asked for.
        looks: of the variants.
    """
    rates = sorted({rate for study, ms in studies for rate in _rates(study, ms)})
    meetings = [leader_changes(study, ms) for study, ms in studies]
    # Meeting points beyond the slowest link are shown, as far as one would believe them.
    start = min((rate for marks in meetings for rate, _ in marks), default=rates[0]) / 1.5
    start = min(rates[0] / 2, max(start, rates[0] / 30))
    # Shared memory has no rate; it stands to the right of all that have.
    ends, edge = (start, rates[-1] * 2), rates[-1] * 12
    drawn = []
    for (study, round_trip_ms), marks in zip(studies, meetings, strict=True):
        trip_s = study.round_trips_s[round_trip_ms]
        curves = [
            panels.Curve(
                variant.parameters.variant,
                looks[variant.parameters.variant],
                tuple(_link_points(variant, round_trip_ms, edge)),
                model=sampled(_by_rate(variant, trip_s), *ends),
            )
            for variant in study.variants
            if variant.tells(round_trip_ms)
        ]
        p = study.variants[0].parameters
        trip = f", + {round_trip_ms:g} ms" if round_trip_ms else ""
        shown = tuple((rate, height) for rate, height in marks if ends[0] <= rate <= ends[1])
        drawn.append(
            panels.Panel(f"{p.parties} parties, dim {p.dim:,}{trip}", tuple(curves), shown)
        )

    def tick_text(rate: float) -> str:
        return "shared\nmemory" if rate >= edge * 0.99 else rate_text(rate).replace(" ", "\n")

    x = panels.Axis("link rate, one way, as measured", tick_text, (*_thinned(rates), edge))
    return panels.curve_panels(title, drawn, x, panels.Axis("time of one sum", seconds_text))


def leader_changes(study: LinkStudy, round_trip_ms: float) -> tuple[tuple[float, float], ...]:
    """Return rate and seconds of each place where another protected variant becomes the fastest."""
    known = (variant for variant in study.variants if variant.tells(round_trip_ms))
    models = {variant.parameters: variant.model for variant in known}
    trip_s = study.round_trips_s[round_trip_ms]
    found = []
    for crossover in study.crossovers:
        rate = crossover.rate_bit_per_s
        if crossover.round_trip_ms != round_trip_ms or crossover.never:
            continue
        height = models[crossover.first].seconds(rate, trip_s)
        others = [
            model.seconds(rate, trip_s)
            for p, model in models.items()
            if p.backend != BASELINE and p not in (crossover.first, crossover.second)
        ]
        if height <= min(others, default=height):
            found.append((rate, height))
    return tuple(sorted(found))


def _by_rate(variant: FittedVariant, round_trip_s: float) -> Callable[[float], float]:
    return lambda rate: variant.model.seconds(rate, round_trip_s)


def _rates(study: LinkStudy, round_trip_ms: float) -> set[float]:
    return {
        cell.rate_bit_per_s
        for variant in study.variants
        for cell in variant.cells
        if cell.round_trip_ms == round_trip_ms and math.isfinite(cell.rate_bit_per_s)
    }


def _link_points(
    variant: FittedVariant, round_trip_ms: float, edge: float
) -> Iterable[panels.Point]:
    for cell in variant.cells:
        if math.isinf(cell.rate_bit_per_s):
            yield point(Spread.of(cell.launch_s), edge)
        elif cell.round_trip_ms == round_trip_ms:
            yield point(Spread.of(cell.launch_s), cell.rate_bit_per_s)


def _thinned(rates: Sequence[float]) -> tuple[float, ...]:
    """Return ticks that do not overlap: each variant measured a link at a slightly other rate."""
    ticks: list[float] = []
    for rate in rates:
        if not ticks or rate > 1.5 * ticks[-1]:
            ticks.append(rate)
    return tuple(ticks)
