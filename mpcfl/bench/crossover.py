"""At which link rate two backends cost the same, by models fitted to the measured links.

Two models of `link_model.py` meet at one rate or at none: below it the one that sends less is
faster, above it the one that computes less. The interval holds the middle 95 % of the rates of
resampled launches. The unprotected baseline is left out, as are keys of different size.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mpcfl.bench.case_numbers import CaseNumbers, Cases, network_order
from mpcfl.bench.link_model import FittedVariant, LinkCell, LinkModel, crossing, fit_variant
from mpcfl.bench.record import SHARED_MEMORY, Parameters
from mpcfl.bench.summary import BASELINE, group_by_case

CONFIDENCE = 0.95
_RATE_UNITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))


@dataclass(frozen=True, slots=True)
class Crossover:
    """Two variants at one workload and round trip.

    Attributes:
        first: the one that is faster below the rate; at every rate if the rate is infinite.
        rate_bit_per_s: where both cost the same; infinite means never.
        low: lower end of the rate's interval; 0 where `second` may be faster at every rate,
            None without an interval.
        high: upper end; infinite where `first` may be faster at every rate.
        outside: the rate is not among those measured, and extrapolated.
        largest_error: of both models.
    """

    first: Parameters
    second: Parameters
    round_trip_ms: float
    rate_bit_per_s: float
    low: float | None
    high: float | None
    outside: bool
    largest_error: float

    @property
    def never(self) -> bool:
        """True if `first` is faster at every rate."""
        return math.isinf(self.rate_bit_per_s)

    @property
    def sure(self) -> bool:
        """True if `first` is faster at every rate, and the launches leave no doubt."""
        return self.never and self.low is not None and math.isinf(self.low)

    @property
    def interval(self) -> str:
        """The interval of the rate up to which `first` is faster, in words."""
        if self.low is None or self.high is None:
            return "one launch, no interval"
        if math.isinf(self.low):
            return "any rate"
        if math.isinf(self.high):
            return f"at least {rate_text(self.low)}" if self.low > 0 else "not determined"
        if self.low == 0:
            return f"at most {rate_text(self.high)}"
        return f"{rate_text(self.low)} to {rate_text(self.high)}"

    @property
    def sentence(self) -> str:
        """What a reader takes away."""
        delay = f" at {self.round_trip_ms:g} ms of round trip" if self.round_trip_ms else ""
        interval = f"{CONFIDENCE:.0%} interval: {self.interval}"
        if self.never:
            doubt = "" if self.sure else f" ({interval})"
            return f"{self.second.variant} never beats {self.first.variant}{delay}{doubt}"
        far = "; extrapolated" if self.outside else ""
        return (
            f"{self.first.variant} beats {self.second.variant} below "
            f"{rate_text(self.rate_bit_per_s)}{delay} ({interval}{far})"
        )


@dataclass(frozen=True, slots=True)
class LinkStudy:
    """All variants of one workload that ran on several networks.

    Attributes:
        round_trips_s: measured, by the milliseconds that were asked for.
        crossovers: of pairs that both were measured with a round trip, where there is one.
    """

    variants: tuple[FittedVariant, ...]
    round_trips_s: dict[float, float]
    crossovers: tuple[Crossover, ...]


def link_studies(cases: Cases) -> list[LinkStudy]:
    """Return one study per workload that any variant ran on two networks at least."""
    by_variant: dict[Parameters, list[CaseNumbers]] = {}
    for case in sorted(cases.measured, key=lambda case: network_order(case.parameters)):
        if case.parameters.link == SHARED_MEMORY or case.link is not None:
            by_variant.setdefault(unlinked(case.parameters), []).append(case)
    launches = _launch_seconds(cases)
    workloads: dict[tuple[object, ...], list[Parameters]] = {}
    for parameters in by_variant:
        workloads.setdefault(parameters.workload, []).append(parameters)
    studies = []
    for same in workloads.values():
        fitted = [
            fit_variant(p, [link_cell(case, launches[case.parameters]) for case in by_variant[p]])
            for p in same
            if len({case.parameters.link for case in by_variant[p]}) > 1
        ]
        if fitted:
            trips = _round_trips(case for p in same for case in by_variant[p])
            studies.append(LinkStudy(tuple(fitted), trips, tuple(_crossovers(fitted, trips))))
    return studies


def unlinked(parameters: Parameters) -> Parameters:
    """Return the same case in shared memory."""
    return replace(parameters, link=SHARED_MEMORY, round_trip_ms=0.0)


def link_cell(case: CaseNumbers, launch_s: Sequence[float]) -> LinkCell:
    """Return what the model needs of a case."""
    return LinkCell(
        rate_bit_per_s=math.inf if case.link is None else case.link.one_way_bit_per_s.median,
        round_trip_s=0.0 if case.link is None else case.link.round_trip_s.median,
        round_trip_ms=case.parameters.round_trip_ms,
        busiest_bytes=case.busiest_bytes,
        # In order of size, so that what is drawn of them does not depend on who ran first.
        launch_s=tuple(sorted(launch_s)),
    )


def rate_text(bit_per_s: float) -> str:
    """Return three significant digits with the unit that suits."""
    for size, unit in _RATE_UNITS:
        # 999.6 Mbit/s has three digits as 1 Gbit/s.
        if bit_per_s >= size * 0.9995:
            return f"{float(f'{bit_per_s / size:.3g}'):g} {unit}"
    return f"{float(f'{bit_per_s:.3g}'):g} bit/s"


def _launch_seconds(cases: Cases) -> dict[Parameters, list[float]]:
    return {
        parameters: [
            statistics.median(value.seconds for value in record.measured.values)
            for record in group
            if record.measured is not None
        ]
        for parameters, group in group_by_case(cases.records).items()
    }


def _round_trips(cases: Iterable[CaseNumbers]) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for case in cases:
        if case.link is not None:
            asked = case.parameters.round_trip_ms
            found.setdefault(asked, []).append(case.link.round_trip_s.median)
    return {asked: statistics.median(found[asked]) for asked in sorted(found)}


def _crossovers(
    fitted: Sequence[FittedVariant], round_trips_s: dict[float, float]
) -> Iterable[Crossover]:
    for asked_ms, round_trip_s in round_trips_s.items():
        for a, b in itertools.combinations(fitted, 2):
            known = a.tells(asked_ms) and b.tells(asked_ms)
            if known and _worth_comparing(a.parameters, b.parameters):
                yield _crossover(a, b, asked_ms, round_trip_s)


def _worth_comparing(a: Parameters, b: Parameters) -> bool:
    """Leave out the unprotected baseline, and keys of different strength."""
    if BASELINE in (a.backend, b.backend):
        return False
    return None in (a.key_bits, b.key_bits) or a.key_bits == b.key_bits


def _crossover(
    a: FittedVariant, b: FittedVariant, asked_ms: float, round_trip_s: float
) -> Crossover:
    a_below, rate = crossing(a.model, b.model, round_trip_s)
    first, second = (a, b) if a_below else (b, a)
    low, high = _interval(first.replicates, second.replicates, round_trip_s)
    rates = [cell.rate_bit_per_s for variant in (a, b) for cell in variant.cells]
    return Crossover(
        first=first.parameters,
        second=second.parameters,
        round_trip_ms=asked_ms,
        rate_bit_per_s=rate,
        low=low,
        high=high,
        outside=not min(rates) <= rate <= max(rates),
        largest_error=max(a.largest_error, b.largest_error),
    )


def _interval(
    first: Sequence[LinkModel], second: Sequence[LinkModel], round_trip_s: float
) -> tuple[float | None, float | None]:
    """Return the interval of the rate below which `first` is faster, rounded outwards."""
    if not first or not second:
        return None, None
    lows, highs = [], []
    for one, other in zip(first, second, strict=True):
        first_below, rate = crossing(one, other, round_trip_s)
        # Where the other one is faster on slow links, `first` is so nowhere, or above a rate.
        lows.append(rate if first_below else 0.0)
        highs.append(rate if first_below else 0.0 if math.isinf(rate) else math.inf)
    cut = math.floor((1 - CONFIDENCE) / 2 * len(lows))
    return sorted(lows)[cut], sorted(highs)[-1 - cut]
