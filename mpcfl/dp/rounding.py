"""Rounds rows to integers under an exact bound on their squared norm.

Two ways. *To nearest*, in wide rings: adds at most 1/2 per coordinate. *Conditionally at random*,
in rings of few bits: each coordinate goes up or down so that it is right on average, and the row is
drawn again until its norm meets the bound. With beta = exp(-1/2) one draw misses a bound of
c^2 + d/4 + c + sqrt(d)/2 with probability beta at most, for rows of norm c (Kairouz, Liu, Steinke
2021, arXiv 2102.06387, Theorem 1). After `MAX_DRAWS` draws the row is rounded towards zero, which
can't raise its norm. Whatever happens, the integer bound is checked in integers: the very ones
that are returned.

The number of draws depends on a party's own row and bits only. Drawing again makes a
row a little smaller than it should be on average: the bias is at most sqrt(d) beta / (1 - beta)
levels in L2 and far less in practice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.pieces import PIECE_VALUES, LevelType, pieces
from mpcfl.hazmat.bits import BitSource

IntVector = NDArray[np.int64]
RealVector = NDArray[np.float64]
RealMatrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

# beta^32 is 1e-7; real rows are accepted at the first draw nearly always.
MAX_DRAWS = 32
_MAX_SHRINKS = 8
_SHRINK = 1.0 - 2.0**-20
_INT64_MAX = 2**63 - 1
# All that float64 leaves of a 64-bit word: probabilities are rounded up to multiples of 2^-53.
_UNIFORM_SHIFT = np.uint64(11)


def round_to_nearest(rows: RealMatrix, scale: float, bound: int) -> IntVector:
    """Scale rows and round each value to the nearest integer.

    A row that misses the bound is shrunk by 1 - 2^-20 and rounded again, at most 8 times, and
    is zero after that: the bound never depends on what the caller passed.

    Args:
        rows: shape (k, d), float64. Secret.
        scale: levels per unit.
        bound: on sum(q**2) of a row.

    Returns:
        Levels, shape (k, d), int64, with ``sum(q**2) <= bound`` exactly.
    """
    levels = np.empty(rows.shape, dtype=np.int64)
    todo = np.arange(len(rows))
    for shrunk in _scales(scale):
        with np.errstate(over="ignore"):
            scaled = (rows if len(todo) == len(rows) else rows[todo]) * shrunk
        np.rint(scaled, out=scaled)
        rounded, fits = _checked(scaled, bound)
        levels[todo] = rounded
        todo = todo[~fits]
        if len(todo) == 0:
            return levels
    levels[todo] = 0
    return levels


def round_in_place(rows: RealMatrix, scale: float, bound: int, dtype: LevelType) -> IntVector:
    """Do what `round_to_nearest` does to long rows, over their own memory, piece by piece.

    Args:
        rows: shape (k, d), float64, contiguous. Secret; nothing is left of them.
        scale: levels per unit.
        bound: on sum(q**2) of a row.
        dtype: of the levels, at most 64 bits; one level of isqrt(bound) must fit.

    Returns:
        Levels, shape (k, d), with ``sum(q**2) <= bound`` exactly, in the memory of ``rows``.
    """
    # A level is not longer than what it is made of, so none lies on floats still to be read.
    levels: IntVector = rows.view(dtype)[:, : rows.shape[1]]
    room = np.empty(PIECE_VALUES), np.empty(PIECE_VALUES, dtype=np.int64)
    for row, out in zip(rows, levels, strict=True):
        _round_row(_LongRow(row, bound, room), scale, out)
    return levels


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _LongRow:
    """A row that is to be rounded, and room for one piece as whole numbers and as integers."""

    values: RealVector
    bound: int
    room: tuple[RealVector, IntVector]

    def whole(self, scale: float) -> Iterator[tuple[slice, RealVector]]:
        """Yield the whole numbers of each piece, and where it lies; they are overwritten."""
        for piece in pieces(self.values.size):
            whole = self.room[0][: piece.stop - piece.start]
            with np.errstate(over="ignore"):
                np.multiply(self.values[piece], scale, out=whole)
            yield piece, np.rint(whole, out=whole)

    def square_norm(self, levels: RealVector | IntVector) -> int:
        """Return the exact sum(q**2) of a piece of whole numbers that 64 bits hold."""
        integers = self.room[1][: levels.size]
        np.copyto(integers, levels, casting="unsafe")
        return exact_square_norms(integers[np.newaxis])[0]

    def fits(self, scale: float) -> bool:
        """Tell whether the row meets its bound at this scale."""
        norm, most = 0, _largest_level(self.bound)
        for _, whole in self.whole(scale):
            # NaN compares as false.
            if not (whole.max() <= most and whole.min() >= -most):
                return False
            norm += self.square_norm(whole)
        return norm <= self.bound


def _round_row(row: _LongRow, scale: float, out: IntVector) -> None:
    """Write the levels of a row into ``out``, which may be the row's own memory."""
    fitting = next((scale for scale in _scales(scale) if row.fits(scale)), None)
    norm = 0
    if fitting is not None:
        for piece, whole in row.whole(fitting):
            out[piece] = whole
            # Of what was written, so that nothing before it is trusted.
            norm += row.square_norm(out[piece])
    if fitting is None or norm > row.bound:
        out[:] = 0


def _scales(scale: float) -> Iterator[float]:
    for _ in range(1 + _MAX_SHRINKS):
        yield scale
        scale *= _SHRINK


def round_conditionally(scaled: RealMatrix, bound: int, bits: BitSource) -> IntVector:
    """Round rows at random, each value up or down to be right on average, until the norm fits.

    Args:
        scaled: rows in levels, shape (k, d), float64. Secret.
        bound: on sum(q**2) of a row.
        bits: this party's own secret source.

    Returns:
        Levels, shape (k, d), int64, with ``sum(q**2) <= bound`` exactly; a row that rounding
        towards zero can't bring under the bound was not clipped, and is zero.
    """
    below = np.floor(scaled)
    fraction = scaled - below
    levels = np.empty(scaled.shape, dtype=np.int64)
    todo = np.arange(len(scaled))
    for _ in range(MAX_DRAWS):
        whole = len(todo) == len(scaled)
        drawn = _drawn(below if whole else below[todo], fraction if whole else fraction[todo], bits)
        rounded, fits = _checked(drawn, bound)
        levels[todo] = rounded
        todo = todo[~fits]
        if len(todo) == 0:
            return levels
    # Values that don't fit come back as zero.
    levels[todo] = _checked(np.trunc(scaled[todo]), bound)[0]
    return levels


def _drawn(below: RealMatrix, fraction: RealMatrix, bits: BitSource) -> RealMatrix:
    """Go up with a probability of the fraction, down otherwise."""
    words = bits.words(below.size).reshape(below.shape)
    return below + ((words >> _UNIFORM_SHIFT) * 2.0**-53 < fraction)


def _checked(whole: RealMatrix, bound: int) -> tuple[IntVector, Mask]:
    """Turn whole numbers into integers; say which rows meet the bound, and zero the others."""
    largest = np.max(np.abs(whole), axis=1, initial=0.0)
    # NaN compares as false.
    fits = largest <= _largest_level(bound)
    whole[~fits] = 0.0
    levels = whole.astype(np.int64)
    fits &= np.array([norm <= bound for norm in exact_square_norms(levels)], dtype=np.bool_)
    levels[~fits] = 0
    return levels, fits


def _largest_level(bound: int) -> float:
    """Return what no level of a row exceeds; far below 2^53, so that casts are exact."""
    return float(min(math.isqrt(bound), 2**52))


def exact_square_norms(levels: IntVector) -> list[int]:
    """Return sum(q**2) of every row, shape (k, d), as Python integers without any rounding."""
    n_rows, dim = levels.shape
    largest = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
    if largest * largest > _INT64_MAX:
        return [sum(int(level) ** 2 for level in row) for row in levels]
    # So many squares fit into an int64 whatever their values are.
    chunk = min(dim, _INT64_MAX // max(1, largest * largest))
    norms = [0] * n_rows
    for start in range(0, dim, max(1, chunk)):
        piece = levels[:, start : start + chunk]
        partial = np.einsum("ij,ij->i", piece, piece).tolist()
        norms = [norm + part for norm, part in zip(norms, partial, strict=True)]
    return norms
