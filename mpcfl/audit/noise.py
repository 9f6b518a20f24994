"""Is the noise what the plan says? Statistical checks over shares that were really drawn.

Every check is a function from observations to a `Finding`, wrong on a correct build with
probability at most 1e-9 in all (a check of many figures divides that among them). Power, at the
observations that `noise_run.py` collects (120,000 values per party, vectors of 20,000): a sigma
that is 3 % off is seen with probability above 1 - 1e-9, as is a correlation of 0.1 between any
two vectors. Rounding continuous noise instead of sampling discrete noise adds 1/12 to the variance:
120,000 values show that at sigma 1, no number that fits a computer shows it at sigma 2^20.

Does not see: dependence beyond correlation, bits that somebody can predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive, ndtr, ndtri
from scipy.stats import chi2, norm, t

from mpcfl.audit.verdict import FALSE_POSITIVE_RATE, Finding
from mpcfl.dp.accountant import ROUNDING_VARIANCE
from mpcfl.dp.noise_plan import NoisePlan

IntArray = NDArray[np.int64]

# Edges of the bins: 32 of equal weight, and one in a thousand at either end.
_EDGES = (1e-3, *(k / 32 for k in range(1, 32)), 1 - 1e-3)
# Above this sigma the sums of the mass over a bin are normal to 3e-9, far below what shows.
_LARGEST_EXACT_SIGMA = 4096
_REACH = 12
_LEAST_EXPECTED = 10.0


@dataclass(frozen=True, slots=True)
class NoiseLaw:
    """What one coordinate of one share should follow.

    Attributes:
        sigma: S, integer standard deviation, grid units.
        mechanism: "discrete-gaussian" or "skellam".
    """

    sigma: int
    mechanism: str = "discrete-gaussian"

    def bin_masses(self, edges: IntArray) -> NDArray[np.float64]:
        """Return the mass of (-inf, e_0], (e_0, e_1], ..., (e_last, inf)."""
        if self.sigma > _LARGEST_EXACT_SIGMA:
            below = ndtr((edges + 0.5) / self.sigma)
        else:
            reach = _REACH * self.sigma + _REACH
            cumulative = np.cumsum(self._masses(np.arange(-reach, reach + 1)))
            below = cumulative[edges + reach] / cumulative[-1]
        return np.diff(below, prepend=0.0, append=1.0)

    def _masses(self, points: IntArray) -> NDArray[np.float64]:
        if self.mechanism == "skellam":
            masses: NDArray[np.float64] = ive(np.abs(points), float(self.sigma) ** 2)
            return masses
        return np.exp(-0.5 * (points / self.sigma) ** 2)


def check_law(shares: Mapping[int, IntArray], law: NoiseLaw) -> Finding:
    """Hold every party's shares to the exact probabilities: chi-square goodness of fit.

    Args:
        shares: by party, all values that were seen, int64. Secret.
        law: of one value.
    """
    edges = np.unique(np.rint(law.sigma * ndtri(np.array(_EDGES))).astype(np.int64))
    masses = law.bin_masses(edges)
    chances = [_fit(values, edges, masses) for values in shares.values()]
    worst, level = min(chances), FALSE_POSITIVE_RATE / len(chances)
    return Finding(
        check="share-law",
        passed=worst >= level,
        detail=(
            f"each party's share against the exact {law.mechanism} law of sigma {law.sigma}: the "
            f"worst p-value of {len(chances)} parties is {worst:.2g} (fails below {level:.2g})"
        ),
        figures={"worst_p_value": worst, "fails_below": level, "parties": len(chances)},
    )


def _fit(values: IntArray, edges: IntArray, masses: NDArray[np.float64]) -> float:
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(masses))
    expected = masses * values.size
    kept = expected >= _LEAST_EXPECTED
    # Everything rare shares one bin, so that nothing that was seen is left out.
    seen = np.append(counts[kept], counts[~kept].sum())
    wanted = np.append(expected[kept], expected[~kept].sum())
    if wanted[-1] < _LEAST_EXPECTED:
        seen[-2], wanted[-2] = seen[-2:].sum(), wanted[-2:].sum()
        seen, wanted = seen[:-1], wanted[:-1]
    statistic = float(np.sum((seen - wanted) ** 2 / wanted))
    return float(chi2.sf(statistic, len(wanted) - 1))


def check_size(shares: Mapping[int, IntArray], sigma: int) -> Finding:
    """Hold the mean and the variance of every party's shares to 0 and sigma squared.

    Args:
        shares: by party, all values that were seen, int64. Secret.
        sigma: S of the plan.
    """
    level = FALSE_POSITIVE_RATE / (2 * len(shares))
    ratios, means, faults = [], [], 0
    for values in shares.values():
        scaled = values / sigma
        ratio, mean = float(np.mean(scaled**2)), float(np.mean(scaled))
        least, most = _ratio_bounds(values.size, level)
        most_mean = float(norm.isf(level / 2)) / math.sqrt(values.size)
        faults += not (least <= ratio <= most and abs(mean) <= most_mean)
        ratios.append(ratio)
        means.append(abs(mean))
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    return Finding(
        check="share-variance",
        passed=faults == 0,
        detail=(
            f"variance of a party's share over the planned {sigma}^2: furthest from one is "
            f"{furthest:.4f} (allowed {least:.4f} to {most:.4f}); largest mean {max(means):.5f} "
            f"sigma (allowed {most_mean:.5f})"
        ),
        figures={
            "variance_ratio": furthest,
            "least_ratio": least,
            "most_ratio": most,
            "largest_mean": max(means),
            "most_mean": most_mean,
        },
    )


def _ratio_bounds(size: int, level: float) -> tuple[float, float]:
    """Return what a mean of ``size`` squares may be: chi-square, which is not flatter than ours."""
    return float(chi2.ppf(level / 2, size)) / size, float(chi2.isf(level / 2, size)) / size


def check_left_after_collusion(shares: Mapping[int, IntArray], plan: NoisePlan) -> Finding:
    """Hold the sum of any n - t - max_dropout parties' shares to the plan's noise multiplier.

    Args:
        shares: by party, all values that were seen, equally many, int64. Secret.
        plan: the promise; windows of neighbours stand for all choices of parties.
    """
    parties = sorted(shares)
    counted = plan.parties - plan.colluding - plan.max_dropout
    needed = counted * plan.local_sigma**2
    level = FALSE_POSITIVE_RATE / len(parties)
    least, _ = _ratio_bounds(shares[parties[0]].size, 2 * level)
    ratios = []
    for start in range(len(parties)):
        window = [parties[(start + k) % len(parties)] for k in range(counted)]
        total = sum((shares[party] for party in window), np.zeros_like(shares[parties[0]]))
        ratios.append(float(np.mean(total.astype(np.float64) ** 2)) / needed)
    worst = min(ratios)
    multiplier = math.sqrt(max(0.0, worst * needed - ROUNDING_VARIANCE)) / plan.l2_sensitivity
    return Finding(
        check="noise-left-after-collusion",
        passed=worst >= least,
        detail=(
            f"{counted} of {len(parties)} parties' shares together, the least of "
            f"{len(ratios)} choices: {worst:.4f} of the planned variance (at least {least:.4f}), a "
            f"noise multiplier of {multiplier:.4f} (planned {plan.noise_multiplier:.4f})"
        ),
        figures={
            "variance_ratio": worst,
            "least_ratio": least,
            "noise_multiplier": multiplier,
            "noise_multiplier_planned": plan.noise_multiplier,
        },
    )


def check_unrelated(vectors: Sequence[IntArray], check: str, what: str) -> Finding:
    """Hold all pairs of vectors of noise to a correlation of zero, and to being different.

    Args:
        vectors: at least two, of one length, int64. Secret.
        check: name of the finding.
        what: where they come from, for the text.
    """
    matrix = np.stack(vectors).astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))
    # A vector of zeros has no direction; it is as bad as a repeated one.
    empty = int(np.count_nonzero(norms == 0))
    matrix /= np.where(norms == 0, 1.0, norms)[:, None]
    cosines = np.abs((matrix @ matrix.T)[np.triu_indices(len(matrix), 1)])
    largest = float(cosines.max())
    freedom = matrix.shape[1] - 1
    quantile = float(t.isf(FALSE_POSITIVE_RATE / (2 * len(cosines)), freedom))
    most = quantile / math.sqrt(freedom + quantile**2)
    return Finding(
        check=check,
        passed=largest <= most and empty == 0,
        detail=(
            f"{what}: the largest correlation of {len(cosines)} pairs is {largest:.4f} (allowed "
            f"{most:.4f}); {empty} of {len(vectors)} vectors are empty"
        ),
        figures={
            "largest_correlation": largest,
            "most_correlation": most,
            "pairs": len(cosines),
            "empty": empty,
        },
    )


def check_opened(opened: IntArray, total: IntArray, expected_variance: float) -> Finding:
    """Hold opened sums of zero updates to the parties' shares, exactly, and to their variance.

    Args:
        opened: opened sums, int64. Public.
        total: the sums of all parties' inputs mod 2^b, centred, the same shape, int64. Secret.
        expected_variance: n S^2 of the plan.
    """
    different = int(np.count_nonzero(opened != total))
    ratio = float(np.mean(opened.astype(np.float64) ** 2)) / expected_variance
    least, most = _ratio_bounds(opened.size, FALSE_POSITIVE_RATE)
    return Finding(
        check="noise-in-the-opened-sum",
        passed=different == 0 and least <= ratio <= most,
        detail=(
            f"{different} of {opened.size} opened values differ from the sum of all shares; their "
            f"variance is {ratio:.4f} of the planned one (allowed {least:.4f} to {most:.4f})"
        ),
        figures={
            "different": different,
            "variance_ratio": ratio,
            "least_ratio": least,
            "most_ratio": most,
        },
    )
