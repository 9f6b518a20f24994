"""Renyi accounting at the default orders of dp-accounting.

Conversion to epsilon: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Proposition 12.
Sampled Gaussian: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530). Sum of discrete Gaussians:
Kairouz, Liu, Steinke 2021 (arXiv 2102.06387), Theorem 1. Skellam: Agarwal, Kairouz, Liu 2021
(arXiv 2110.04995), and the curvature bound that ``docs/proofs.md`` proves. All figures are
upper bounds up to float rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from mpmath.ctx_mp import MPContext
from numpy.typing import NDArray

from mpcfl.dp.inversion import EXACT_ARITHMETIC

FloatVector = NDArray[np.float64]

_INTEGER_ORDERS = (*range(11, 64), 128, 256, 512, 1024)
# The default orders of dp-accounting 0.6; a test compares them.
ORDERS: FloatVector = np.array([*(1 + x / 10 for x in range(1, 100)), *_INTEGER_ORDERS])
IS_INTEGER_ORDER: NDArray[np.bool_] = np.floor(ORDERS) == ORDERS


def renyi_epsilon(divergences: FloatVector, delta: float) -> float:
    """Convert Renyi divergences at `ORDERS` to the smallest epsilon at ``delta``."""
    alpha = ORDERS
    epsilons = divergences + np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)
    # Total variation is at most sqrt(1 - exp(-KL)) (Bretagnolle, Huber), so epsilon is zero.
    epsilons = np.where(delta**2 + np.expm1(-divergences) > 0, 0.0, epsilons)
    return max(0.0, float(np.min(epsilons)))


@lru_cache(maxsize=256)
def _sampled_gaussian_curve(noise_multiplier: float, sample_rate: float) -> tuple[float, ...]:
    # Imported here: dp_accounting takes most of a second to import.
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant: Any = RdpAccountant(ORDERS.tolist())
    gaussian = dp_event.GaussianDpEvent(noise_multiplier)
    with _without_order_warnings():
        accountant.compose(dp_event.PoissonSampledDpEvent(sample_rate, gaussian))
    return tuple(float(divergence) for divergence in accountant.rdp)


def gaussian_divergences(noise_multiplier: float, sample_rate: float) -> FloatVector:
    """Return the Renyi divergences at `ORDERS` of one (Poisson-sampled) Gaussian release."""
    if sample_rate == 1.0:
        return ORDERS / (2 * noise_multiplier**2)
    return np.array(_sampled_gaussian_curve(noise_multiplier, sample_rate))


@contextmanager
def _without_order_warnings() -> Iterator[None]:
    """Hide one message of dp-accounting: an order without a finite bound is left out, safely."""

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def at_integer_orders(divergences: FloatVector) -> FloatVector:
    """Return the divergences, infinite at orders that are not integers."""
    return np.where(IS_INTEGER_ORDER, divergences, math.inf)


@dataclass(frozen=True, slots=True)
class DiscreteSum:
    """A sum of independent, equal noise shares on Z^dim, added to integers.

    Attributes:
        l2_sensitivity: on the integer grid.
        local_sigma: S of every share: sigma of a discrete Gaussian, or the standard deviation
            of a Skellam share.
        n_shares: m, number of shares in the sum.
        dim: number of coordinates.
    """

    l2_sensitivity: float
    local_sigma: float
    n_shares: int
    dim: int

    @property
    def variance(self) -> float:
        """Return m S^2."""
        return self.n_shares * self.local_sigma**2

    @property
    def l1_sensitivity(self) -> float:
        """Return the bound on the L1 norm that the L2 bound implies for integers."""
        return self.l2_sensitivity * min(math.sqrt(self.dim), self.l2_sensitivity)

    @property
    def tau(self) -> float:
        """Return the distance of discrete Gaussian shares' sum from one (Theorem 1).

        Half of it bounds, per coordinate, the absolute log ratio of the probability mass
        functions of the sum and of the discrete Gaussian of the same variance.
        """
        scaled = -2 * math.pi**2 * self.local_sigma**2
        terms = (math.exp(scaled * k / (k + 1)) for k in range(1, self.n_shares))
        return 10 * math.fsum(terms)


Bound = Callable[[DiscreteSum, FloatVector], FloatVector]


def discrete_divergences(noise: DiscreteSum, sample_rate: float) -> FloatVector:
    """Return the published bound at `ORDERS` for one release with discrete Gaussian shares.

    At a sample rate below one only integer orders are valid; the others are infinite.

    Source: Kairouz, Liu, Steinke 2021, Theorem 1, the smallest of its three forms.
    """
    if sample_rate == 1.0:
        return discrete_bound(noise, ORDERS)
    return _amplified(discrete_bound, noise, sample_rate)


def skellam_divergences(noise: DiscreteSum, sample_rate: float) -> FloatVector:
    """Return the better bound at `ORDERS` for one release with Skellam shares.

    Only integer orders are valid; the others are infinite.
    """

    def smaller(noise: DiscreteSum, alpha: FloatVector) -> FloatVector:
        return np.minimum(skellam_bound(noise, alpha), curvature_bound(noise, alpha))

    if sample_rate == 1.0:
        return at_integer_orders(smaller(noise, ORDERS))
    return _amplified(smaller, noise, sample_rate)


def discrete_bound(noise: DiscreteSum, alpha: FloatVector) -> FloatVector:
    """Return the bound for discrete Gaussian shares (Kairouz, Liu, Steinke 2021, Theorem 1)."""
    tau, dim, l2 = noise.tau, noise.dim, noise.l2_sensitivity
    sigma = math.sqrt(noise.variance)
    separate = alpha / 2 * (l2 / sigma) ** 2 + tau * dim
    linear = alpha / 2 * ((l2 / sigma) ** 2 + 2 * noise.l1_sensitivity * tau / sigma + tau**2 * dim)
    joint = alpha / 2 * (l2 / sigma + math.sqrt(dim) * tau) ** 2
    return np.minimum(np.minimum(separate, linear), joint)


def skellam_bound(noise: DiscreteSum, alpha: FloatVector) -> FloatVector:
    """Return the published bound for Skellam shares, at integer orders (Agarwal et al. 2021)."""
    mu, l1, l2_squared = noise.variance, noise.l1_sensitivity, noise.l2_sensitivity**2
    curved = ((2 * alpha - 1) * l2_squared + 6 * l1) / (4 * mu**2)
    return alpha * l2_squared / (2 * mu) + np.minimum(curved, 3 * l1 / (2 * mu))


def curvature_bound(noise: DiscreteSum, alpha: FloatVector) -> FloatVector:
    """Return the bound for Skellam shares from the curvature of their law, at integer orders."""
    return alpha * (noise.l2_sensitivity**2 * skellam_curvature(noise.variance) / 2)


@lru_cache(maxsize=1024)
def skellam_curvature(variance: float) -> float:
    """Return L = 2 log(I_0(mu) / I_1(mu)) at mu = ``variance``, rounded up.

    L bounds the second differences of the negative log mass function; L mu tends to one.
    """
    # A context of its own: the precision of mpmath's is shared with other threads.
    mp = MPContext()
    # The ratio is 1 + 1/(2 mu) + ...: its logarithm loses as many bits as mu has.
    mp.prec = 128 + max(0, math.frexp(variance)[1])
    with EXACT_ARITHMETIC:
        mu = mp.mpf(variance)
        curvature = float(2 * mp.log(mp.besseli(0, mu) / mp.besseli(1, mu)))
    return math.nextafter(curvature, math.inf)


def _amplified(bound: Bound, noise: DiscreteSum, sample_rate: float) -> FloatVector:
    """Return the divergences at `ORDERS` of Poisson-sampled releases, from those without.

    Source: Mironov, Talwar, Zhang 2019, Theorem 5, whose formula holds for integer orders because
    x -> D - x exchanges the two outputs of symmetric additive noise (``docs/proofs.md``).
    """
    sampled = np.full(len(ORDERS), math.inf)
    for index in np.flatnonzero(IS_INTEGER_ORDER):
        sampled[index] = _amplify(bound, noise, sample_rate, int(ORDERS[index]))
    return sampled


def _amplify(bound: Bound, noise: DiscreteSum, sample_rate: float, alpha: int) -> float:
    from scipy.special import gammaln, logsumexp

    k = np.arange(alpha + 1, dtype=np.float64)
    divergences = bound(noise, np.maximum(k, 2.0))
    divergences[:2] = 0.0
    log_terms = (
        gammaln(alpha + 1)
        - gammaln(k + 1)
        - gammaln(alpha - k + 1)
        + (alpha - k) * math.log1p(-sample_rate)
        + k * math.log(sample_rate)
        + (k - 1) * divergences
    )
    return float(logsumexp(log_terms)) / (alpha - 1)
