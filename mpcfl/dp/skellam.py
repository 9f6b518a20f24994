"""An exact sampler for Skellam noise: the difference of two Poisson variables of mean v/2.

P[X = x] = p(x) = exp(-v) I_x(v), with variance v. A sum of independent Skellam variables is
Skellam, so that shares add up without any slack. As in `sampler`, write x = +-(k B + j) with
B = isqrt(v): draw k >= 0 with weight p(k B) and j uniform in [0, B), and accept with probability

    p(k B + j) / p(k B) <= 1,

refusing one of the two zeros. The product of weight and probability is p(x), so the law is exact
and no tail is cut off. What remains is to decide on probabilities that are costly to compute:

1. On a grid of spacing C, a power of two, three figures are tabulated once per variance: the
   ratio P = p(s) / p(k B), the slope -log p(s+1)/p(s), and the curvature
   l(s) = log p(s)^2 / (p(s-1) p(s+1)).
2. Between, for i < C, log p(s+i)/p(s) = -i slope - sum_{a=1}^{i-1} (i - a) l(s+a). As l decreases
   on x >= 0 (``docs/proofs.md``), putting l(s) for every l(s+a) is at most
   (l(s) - l(s+C)) C (C-1) / 2 too low. This bound is computed, and is 2^-29 or less.
3. A comparison closer than this bound and 2^-40 for float rounding is decided by integer
   arithmetic on exact masses (`skellam_law`), with further random bits as it takes.

Adversary and assumptions: as for `sampler`; constant time is not claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.inversion import (
    Inversion,
    LazyUniform,
    checked_arguments,
    draws_in_blocks,
    uniform_below,
)
from mpcfl.dp.skellam_law import block_law, masses_of, ratio_fixed
from mpcfl.hazmat.bits import BitSource, SystemBits

# With it B = 2^28, and products of 32-bit words and B stay below 2^64.
MAX_VARIANCE = 1 << 56

# A decision in float64 is trusted only beyond this and the bound of step 2; the true float error is
# below 2^-45 (a few roundings of an exponent below 32, one exp).
_FLOAT_MARGIN = 2.0**-40
# Grid points per block of width B at least (unless B is smaller).
_GRID_POINTS = 64
# Absolute accuracy of tabulated masses. They are above 2^-128, of which ratios need 120 bits.
_TABLE_BITS = 320
_CANDIDATES_PER_DRAW = 1.45


def sample_skellam(*, variance: int, size: int) -> NDArray[np.int64]:
    """Draw from the symmetric Skellam law, exactly, from the system's generator.

    Args:
        variance: integer, 1 to 2^56.
        size: number of independent draws.

    Returns:
        Draws, shape (size,), int64.

    Raises:
        ConfigError: variance is not an integer in range, or size is negative.
    """
    return draw_skellam(variance, size, SystemBits())


def draw_skellam(variance: int, size: int, bits: BitSource) -> NDArray[np.int64]:
    """Draw from the Skellam law with the given bits; see `sample_skellam`."""
    variance, size = checked_arguments("variance", variance, MAX_VARIANCE, size)
    table = _grid_table(variance)
    return draws_in_blocks(
        size, _CANDIDATES_PER_DRAW, lambda n_candidates: _draw_block(table, n_candidates, bits)
    )


@dataclass(frozen=True, slots=True)
class _GridTable:
    """What float decisions need, one entry per grid point, block after block.

    Attributes:
        variance: v.
        width: B.
        spacing_bits: log2 of C.
        block_law: the law of k.
        n_blocks: blocks in the table; further ones are decided exactly.
        probability: P of the grid point.
        slope: of the negative logarithm there, less half the curvature.
        half_curvature: l/2 there.
        margin: how close to its threshold a uniform number is left to exact arithmetic.
    """

    variance: int
    width: int
    spacing_bits: int
    block_law: Inversion
    n_blocks: int
    probability: NDArray[np.float64]
    slope: NDArray[np.float64]
    half_curvature: NDArray[np.float64]
    margin: float

    @property
    def points_per_block(self) -> int:
        return len(self.probability) // self.n_blocks


def _draw_block(table: _GridTable, n_candidates: int, bits: BitSource) -> NDArray[np.int64]:
    """Make candidates and return the accepted ones, in order, int64."""
    words = bits.words(3 * n_candidates).reshape(3, n_candidates)
    k = table.block_law.draw(words[0], bits)
    negative = (words[1] & np.uint64(1)).astype(np.bool_)
    j, unbiased = uniform_below(words[1], table.width)
    accepted = _accept(table, (k, j), words[2], bits)
    magnitude = k * table.width + j
    # Zero has two signs; one of them is refused.
    accepted &= unbiased & ~(negative & (magnitude == 0))
    np.negative(magnitude, where=negative, out=magnitude)
    draws: NDArray[np.int64] = magnitude[accepted]
    return draws


def _accept(
    table: _GridTable,
    candidates: tuple[NDArray[np.int64], NDArray[np.int64]],
    words: NDArray[np.uint64],
    bits: BitSource,
) -> NDArray[np.bool_]:
    """Accept each candidate (k, j) with probability p(k B + j) / p(k B)."""
    k, j = candidates
    known = np.minimum(k, table.n_blocks - 1)
    point = known * table.points_per_block + (j >> table.spacing_bits)
    probability = table.probability[point]
    if table.spacing_bits:
        i = j & ((1 << table.spacing_bits) - 1)
        # i slope + i (i - 1) / 2 curvature, with the second half of each moved into the slope.
        probability = probability * np.exp(
            -i * (table.slope[point] + i * table.half_curvature[point])
        )
    surplus = probability - words * 2.0**-64
    accepted: NDArray[np.bool_] = surplus > 0.0
    for index in np.flatnonzero((np.abs(surplus) < table.margin) | (known < k)):
        lazy = LazyUniform(int(words[index]), bits)
        accepted[index] = _exact_accept(table, int(k[index]), int(j[index]), lazy)
    return accepted


def _exact_accept(table: _GridTable, k: int, j: int, uniform: LazyUniform) -> bool:
    # A probability of one is never undecided: the uniform number is below it.
    if j == 0:
        return True
    start = k * table.width
    return uniform.is_below(lambda n_bits: ratio_fixed(table.variance, (start + j, start), n_bits))


@lru_cache(maxsize=8)
def _grid_table(variance: int) -> _GridTable:
    width = math.isqrt(variance)
    spacing_bits = max(0, (width // _GRID_POINTS).bit_length() - 1)
    per_block = -(-width >> spacing_bits)
    law = block_law(variance)
    n_blocks = len(law.thresholds)
    masses = masses_of(variance, _TABLE_BITS)
    blocks = []
    for k in range(n_blocks):
        # One point more than the block needs bounds the change of the curvature in the last gap.
        here, after = (
            masses.along(k * width + offset, 1 << spacing_bits, per_block + 1) for offset in (0, 1)
        )
        blocks.append(_block_columns(variance, k * width, spacing_bits, (here, after)))
    probability, slope, curvature = (np.array(column) for column in zip(*blocks, strict=True))
    spacing = 1 << spacing_bits
    change = float(np.max(curvature[:, :-1] - curvature[:, 1:])) * spacing * (spacing - 1) / 2
    half = curvature[:, :-1] / 2
    return _GridTable(
        variance=variance,
        width=width,
        spacing_bits=spacing_bits,
        block_law=law,
        n_blocks=n_blocks,
        probability=probability[:, :-1].ravel(),
        slope=(slope[:, :-1] - half).ravel(),
        half_curvature=half.ravel(),
        margin=change + _FLOAT_MARGIN,
    )


def _block_columns(
    variance: int, start: int, spacing_bits: int, masses: tuple[list[int], list[int]]
) -> tuple[list[float], list[float], list[float]]:
    """Return probability, slope and curvature at the grid points of one block.

    Args:
        variance: v.
        start: k B.
        spacing_bits: of the grid.
        masses: p(s) and p(s + 1) of its points s.
    """
    probability, slope, curvature = [], [], []
    for index, (here, after) in enumerate(zip(*masses, strict=True)):
        point = start + (index << spacing_bits)
        # I_{s-1} = I_{s+1} + (2 s / v) I_s
        before = after + 2 * point * here // variance
        probability.append(here / masses[0][0])
        slope.append(math.log1p((here - after) / after))
        curvature.append(math.log1p((here * here - before * after) / (before * after)))
    return probability, slope, curvature
