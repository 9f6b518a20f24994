"""Did B get slower than A? Per case a ratio with an interval; "not significant" is an answer.

Values of one launch share its memory layout and its luck, so a launch counts once, by its
median. The interval is Hodges and Lehmann's: the ratios of all pairs of launches, one from
A and one from B, cut at both ends by the exact distribution of Mann and Whitney's U
(Hollander, Wolfe, Chicken 2014, section 4.3). It assumes no distribution of the times,
only that A's and B's differ by a factor. "Significant" means that it excludes 1.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpcfl.bench.record import Parameters, Record, require_one_machine
from mpcfl.bench.summary import group_by_case
from mpcfl.errors import ConfigError

# Two-sided, per case: five launches a side are just enough for it (2 / 252 < 0.01).
SIGNIFICANCE = 0.01
# A slowdown below this share is real at best and never worth a red build.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class CaseChange:
    """One case in both sets of records.

    Attributes:
        ratio: B over A, the median of the ratios of all pairs of launches; None if either
            side has no measurement.
        low: lower end of the confidence interval; 0 where there are too few launches.
        high: upper end; infinite where there are too few launches.
        newly_failed: B has a failed launch where A has none.
    """

    parameters: Parameters
    n_runs: tuple[int, int]
    ratio: float | None
    low: float
    high: float
    newly_failed: bool

    @property
    def significant(self) -> bool:
        """True if the interval excludes 1."""
        return self.low > 1 or self.high < 1

    @property
    def regressed(self) -> bool:
        """True if B fails, or is surely slower and by more than the tolerance."""
        slower = self.significant and self.ratio is not None and self.ratio > 1 + TOLERANCE
        return self.newly_failed or slower

    @property
    def verdict(self) -> str:
        """One phrase for people."""
        if self.newly_failed:
            return "failed in B"
        if self.ratio is None:
            return "not measured in both"
        if not self.significant:
            too_few = math.isinf(self.high)
            return "not significant" + (", too few runs" if too_few else "")
        return "slower" if self.ratio > 1 else "faster"


def compare(records_a: Sequence[Record], records_b: Sequence[Record]) -> list[CaseChange]:
    """Compare the cases that both sets have.

    Raises:
        ConfigError: different machines, records of a trial grid, or no case in common.
    """
    require_one_machine([*records_a, *records_b])
    if not all(record.comparable for record in (*records_a, *records_b)):
        raise ConfigError(
            "the records are of a trial grid, which is labeled not comparable; run both sides "
            "with a grid that has comparable = true"
        )
    cases_a, cases_b = group_by_case(records_a), group_by_case(records_b)
    changes = [_change(p, cases_a[p], cases_b[p]) for p in cases_a if p in cases_b]
    if not changes:
        raise ConfigError("the two sets of records have no case in common; run the same grid twice")
    return sorted(changes, key=lambda change: change.parameters.case)


def any_regression(changes: Iterable[CaseChange]) -> bool:
    """Return True if a build should fail."""
    return any(change.regressed for change in changes)


def table(changes: Iterable[CaseChange]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells as text, for a terminal."""
    rows: list[tuple[str, ...]] = [
        (
            change.parameters.case,
            f"{change.n_runs[0]} / {change.n_runs[1]}",
            "-" if change.ratio is None else f"{change.ratio:.3f}",
            "-" if math.isinf(change.high) else f"{change.low:.3f} to {change.high:.3f}",
            change.verdict,
        )
        for change in changes
    ]
    return ("case", "runs A / B", "B over A", f"{1 - SIGNIFICANCE:.0%} interval", "verdict"), rows


def u_distribution(n_a: int, n_b: int) -> list[int]:
    """Return in how many of the orders of n_a + n_b values U is 0, 1, ..., n_a n_b.

    The counts are the coefficients of the Gaussian binomial [n_a + n_b choose n_a]:
    the product over i of (1 - q^(n_b + i)) / (1 - q^i).
    """
    size = n_a * n_b + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n_a + 1):
        for u in range(size - 1, n_b + i - 1, -1):
            counts[u] -= counts[u - n_b - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return counts


def _change(parameters: Parameters, a: Sequence[Record], b: Sequence[Record]) -> CaseChange:
    medians_a, medians_b = _run_medians(a), _run_medians(b)
    ratio, low, high = None, 0.0, math.inf
    if medians_a and medians_b:
        ratio, low, high = _ratio_interval(medians_a, medians_b)
    failed_a, failed_b = (any(r.failure is not None for r in side) for side in (a, b))
    return CaseChange(
        parameters=parameters,
        n_runs=(len(medians_a), len(medians_b)),
        ratio=ratio,
        low=low,
        high=high,
        newly_failed=failed_b and not failed_a,
    )


def _run_medians(records: Iterable[Record]) -> list[float]:
    return [
        statistics.median(value.seconds for value in record.measured.values)
        for record in records
        if record.measured is not None
    ]


def _ratio_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return the Hodges-Lehmann ratio of b over a and its interval, which is rounded outwards."""
    ratios = sorted(y / x for x, y in itertools.product(a, b))
    # The interval leaves out the `cut` smallest and largest ratios; it misses the true factor
    # with probability 2 P(U < cut), so cut is the largest one that keeps that in bounds.
    counts = u_distribution(len(a), len(b))
    allowed = SIGNIFICANCE / 2 * sum(counts)
    tail, cut = counts[0], 0
    while tail <= allowed:
        cut += 1
        tail += counts[cut]
    ratio = statistics.median(ratios)
    return (ratio, ratios[cut - 1], ratios[-cut]) if cut else (ratio, 0.0, math.inf)
