"""The closed form of the continuous Gaussian mechanism: epsilon, delta and mu, rounded outward.

A Gaussian release of noise multiplier z has mu = 1/z, and adaptive composition adds squares,
mu^2 = sum 1/z_i^2 (Dong, Roth, Su 2022, Corollary 3.3). Balle and Wang 2018 (arXiv
1805.06530), Theorem 8: delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu).
Every function here errs on the side of less privacy.
"""

from __future__ import annotations

import math
from functools import lru_cache

_UNIT_ROUNDOFF = 2.0**-52


def curve_delta(epsilon: float, mu: float) -> float:
    """Return delta of a Gaussian release at ``epsilon``, rounded up."""
    if mu == 0.0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    # Imported here: scipy.special alone doubles the import time of mpcfl.dp.
    from scipy.special import log_ndtr

    upper = float(log_ndtr(mu / 2 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    if lower >= upper:
        # Only rounding can do this, where delta is far below what a float can resolve.
        return math.exp(upper)
    share = -math.expm1(lower - upper)
    # Both logarithms carry a few relative roundings, which the difference may magnify.
    slack = 8 * _UNIT_ROUNDOFF * (1 + abs(upper) + abs(lower) + epsilon)
    return min(1.0, math.exp(upper) * (share + slack))


@lru_cache(maxsize=4096)
def curve_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon of a Gaussian release at ``delta``, rounded up."""
    if mu == 0.0:
        return 0.0
    if math.isinf(mu):
        return math.inf
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    if curve_delta(low, mu) <= delta:
        return 0.0
    while curve_delta(high, mu) > delta:
        high *= 1.0 + 1e-6
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if curve_delta(middle, mu) > delta else (low, middle)
    return high


def curve_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose release stays within (epsilon, delta), rounded down."""
    low, high = 0.0, 1.0
    while curve_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if curve_delta(epsilon, middle) <= delta else (low, middle)
    return low
