"""Exact samplers on the integers, driven by a bit source: discrete Gaussian and Poisson sample.

The discrete Gaussian N_Z(0, sigma^2) has P[x] proportional to exp(-x^2 / (2 sigma^2)).
Karney's algorithm D (2016), in the form of Canonne, Kamath and Steinke 2020 (arXiv
2004.00010), for integer sigma: write x = +-(k sigma + j), draw k >= 0 with weight
exp(-k^2/2) and j uniform in [0, sigma), and accept with probability
exp(-j (2 k sigma + j) / (2 sigma^2)), whose exponent is a ratio of integers.

Decisions are made in float64 or on 64 bits where these are certain, and otherwise by integer
arithmetic with as many further bits as it takes, so the law is exact. The running
time depends on rejected candidates, not on the values returned; constant time is not claimed.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from mpmath.libmp import from_rational, mpf_exp, to_fixed
from numpy.typing import NDArray

from mpcfl.dp.inversion import (
    EXACT_ARITHMETIC,
    Inversion,
    LazyUniform,
    checked_arguments,
    draws_in_blocks,
    uniform_below,
)
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import BitSource as BitSource
from mpcfl.hazmat.bits import SystemBits

MAX_SIGMA = 1 << 28

# A float64 decision is trusted only if both sides differ by more than this; the true error of
# the computed probability is below 2^-49 (three roundings of an exponent below 15, one exp).
_FILTER_MARGIN = 2.0**-40
# One accepted draw needs 1.4 candidates for large sigma, and fewer than 2 for every sigma.
_CANDIDATES_PER_DRAW = 1.42
_GUARD_BITS = 64


def sample_discrete_gaussian(*, sigma: int, size: int) -> NDArray[np.int64]:
    """Draw from the discrete Gaussian N_Z(0, sigma^2), exactly, from the system's generator.

    Args:
        sigma: integer parameter, 1 to 2^28.
        size: number of independent draws.

    Returns:
        Draws, shape (size,), int64.

    Raises:
        ConfigError: sigma is not an integer in range, or size is negative.
    """
    return draw_discrete_gaussian(sigma, size, SystemBits())


def draw_discrete_gaussian(sigma: int, size: int, bits: BitSource) -> NDArray[np.int64]:
    """Draw from N_Z(0, sigma^2) with the given bits; see `sample_discrete_gaussian`."""
    sigma, size = checked_arguments("sigma", sigma, MAX_SIGMA, size)
    return draws_in_blocks(
        size, _CANDIDATES_PER_DRAW, lambda n_candidates: _draw_block(sigma, n_candidates, bits)
    )


def _draw_block(sigma: int, n_candidates: int, bits: BitSource) -> NDArray[np.int64]:
    """Make candidates and return the accepted ones, in order, int64."""
    words = bits.words(3 * n_candidates).reshape(3, n_candidates)
    k = _block_law().draw(words[0], bits)
    negative = (words[1] & np.uint64(1)).astype(np.bool_)
    j, unbiased = uniform_below(words[1], sigma)
    magnitude = k * sigma + j
    accepted = _accept(j, magnitude, sigma, (words[2], bits))
    # Zero has two signs; one of them is refused.
    accepted &= unbiased & ~(negative & (magnitude == 0))
    np.negative(magnitude, where=negative, out=magnitude)
    draws: NDArray[np.int64] = magnitude[accepted]
    return draws


def _accept(
    j: NDArray[np.int64],
    magnitude: NDArray[np.int64],
    sigma: int,
    uniform: tuple[NDArray[np.uint64], BitSource],
) -> NDArray[np.bool_]:
    """Accept each candidate with probability exp(-j (2 k sigma + j) / (2 sigma^2))."""
    # With m = k sigma + j the numerator is j (2 m - j), below 2^62 for k up to 15.
    numerator = j * (2 * magnitude - j)
    denominator = 2 * sigma * sigma
    probability = np.exp(numerator * (-1.0 / denominator))
    words, bits = uniform
    surplus = probability - words * 2.0**-64
    accepted: NDArray[np.bool_] = surplus > 0.0
    for index in np.flatnonzero(np.abs(surplus) < _FILTER_MARGIN):
        lazy = LazyUniform(int(words[index]), bits)
        accepted[index] = _exact_accept(int(numerator[index]), denominator, lazy)
    return accepted


def _exact_accept(numerator: int, denominator: int, uniform: LazyUniform) -> bool:
    # A probability of one is never undecided: the uniform number is below it.
    if numerator == 0:
        return True
    return uniform.is_below(lambda n_bits: _exp_fixed(numerator, denominator, n_bits))


def _exp_fixed(numerator: int, denominator: int, n_bits: int) -> int:
    """Return exp(-numerator/denominator) 2^n_bits, rounded, less than 1 off."""
    precision = n_bits + _GUARD_BITS
    exponent = from_rational(-numerator, denominator, precision)
    with EXACT_ARITHMETIC:
        return (int(to_fixed(mpf_exp(exponent, precision), n_bits + 1)) + 1) >> 1


@lru_cache(maxsize=256)
def _cumulative_fixed(k: int, n_bits: int) -> int:
    """Return 2^n_bits P[K <= k] for weights exp(-i^2/2), less than 1 off."""
    precision = n_bits + _GUARD_BITS
    # Beyond this index all weights together are below 2^-precision.
    last = math.isqrt(2 * precision) + 2
    weights = [_exp_fixed(i * i, 2, precision) for i in range(max(last, k) + 1)]
    total = sum(weights)
    return ((sum(weights[: k + 1]) << n_bits) + total // 2) // total


@lru_cache(maxsize=1)
def _block_law() -> Inversion:
    """Return the law of k: weight exp(-k^2/2)."""
    return Inversion(_cumulative_fixed)


def poisson_sample(
    n_records: int, sample_rate: float, bits: BitSource | None = None
) -> NDArray[np.int64]:
    """Pick each record independently with probability ``sample_rate``.

    Args:
        n_records: number of records of this party.
        sample_rate: q in (0, 1]; rounded down to a multiple of 2^-64, so that the real rate is
            never above the one that is accounted.
        bits: for tests and the in-process oracle only; by default a fresh system source. Which
            records were picked is secret, also from the other parties.

    Returns:
        Indices of the picked records, ascending, int64, shape (m,).
    """
    if not 0.0 < sample_rate <= 1.0:
        raise ConfigError(f"sample_rate is {sample_rate}; it must lie in (0, 1]")
    if sample_rate == 1.0:
        return np.arange(n_records, dtype=np.int64)
    threshold = np.uint64(int(Fraction(sample_rate) * 2**64))
    source = SystemBits() if bits is None else bits
    return np.flatnonzero(source.words(n_records) < threshold).astype(np.int64)


def draw_generator_seed() -> int:
    """Return 64 secret bits, for a library's generator that the guarantee needs to be secret."""
    return int(SystemBits().words(1)[0])
