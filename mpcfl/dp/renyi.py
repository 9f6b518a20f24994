"""Renyi accounting: published bounds only, at the default orders of dp-accounting.

Conversion to epsilon: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), Proposition 12.
Sampled Gaussian: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530). Sum of discrete Gaussians:
Kairouz, Liu, Steinke 2021 (arXiv 2102.06387), Theorem 1. All figures are upper bounds up to
float rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float64]

_INTEGER_ORDERS = (*range(11, 64), 128, 256, 512, 1024)
# The default orders of dp-accounting 0.6; a test compares them.
ORDERS: FloatVector = np.array([*(1 + x / 10 for x in range(1, 100)), *_INTEGER_ORDERS])


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


@dataclass(frozen=True, slots=True)
class DiscreteSum:
    """A sum of independent discrete Gaussian noise shares on Z^dim, added to integers.

    Attributes:
        l2_sensitivity: on the integer grid.
        local_sigma: S, of every share.
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
    def tau(self) -> float:
        """Return the distance of the sum from one discrete Gaussian (Theorem 1), per coordinate.

        Half of it bounds the absolute log ratio of the two probability mass functions.
        """
        scaled = -2 * math.pi**2 * self.local_sigma**2
        terms = (math.exp(scaled * k / (k + 1)) for k in range(1, self.n_shares))
        return 10 * math.fsum(terms)


def discrete_divergences(noise: DiscreteSum, sample_rate: float) -> FloatVector:
    """Return the published Renyi bound at `ORDERS` for one release with this noise.

    At a sample rate below one only integer orders are valid; the others are infinite.

    Source: Kairouz, Liu, Steinke 2021, Theorem 1, the smallest of its three forms. Sampling:
    Mironov, Talwar, Zhang 2019, Theorem 5, whose formula holds for integer orders because
    x -> q - x exchanges the two outputs of symmetric additive noise.
    """
    plain = _published_bound(noise, ORDERS)
    if sample_rate == 1.0:
        return plain
    sampled = np.full(len(ORDERS), math.inf)
    for index, alpha in enumerate(ORDERS):
        if alpha.is_integer():
            sampled[index] = _amplify(noise, sample_rate, int(alpha))
    return sampled


def _published_bound(noise: DiscreteSum, alpha: FloatVector) -> FloatVector:
    tau, dim, l2 = noise.tau, noise.dim, noise.l2_sensitivity
    l1 = l2 * min(math.sqrt(dim), l2)
    sigma = math.sqrt(noise.variance)
    separate = alpha / 2 * (l2 / sigma) ** 2 + tau * dim
    linear = alpha / 2 * ((l2 / sigma) ** 2 + 2 * l1 * tau / sigma + tau**2 * dim)
    joint = alpha / 2 * (l2 / sigma + math.sqrt(dim) * tau) ** 2
    return np.minimum(np.minimum(separate, linear), joint)


def _amplify(noise: DiscreteSum, sample_rate: float, alpha: int) -> float:
    from scipy.special import gammaln, logsumexp

    k = np.arange(alpha + 1, dtype=np.float64)
    divergences = _published_bound(noise, np.maximum(k, 2.0))
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
