"""Exact bilinear forms of integers by floating-point matrix products, on any machine.

The form of a vector v in rows is the sum of a[i] v[i, j] b[j] over all i and j; `linear_tag.py`
says what for. Both a and b are cut into limbs so short that every product and every sum of them is
an integer up to 2^53, which float64 holds, in whatever order they are added up. The vector times b
is one product, what that gives times a is the second, and the few dozen integers that are left are
put together by Python's.

Hides nothing: it is arithmetic, and memory that held secrets is not wiped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD_BITS = 64
# Integers up to here are exact in float64.
_EXACT_BITS = 53
# Values up to here go into a product as they are; longer ones as two halves of so many bits.
_NARROW_BITS = 32
# Where the halves of an int64 lie in memory.
_LOWER, _UPPER = (0, 1) if sys.byteorder == "little" else (1, 0)
# With longer rows more limbs were needed, with shorter ones the second product would count.
MAX_COLUMNS = 1 << 10
# So many rows are added up at a time, halves of what they gave times limbs of a.
_ROWS_AT_A_TIME = 1 << 10
_SUM_HALF_BITS = 27
_ROW_LIMB_BITS = _EXACT_BITS - _SUM_HALF_BITS - 10
# 256 KiB of float64, which stay in the second-level cache.
_PIECE_VALUES = 1 << 15

Residues = NDArray[np.uint64]
Reals = NDArray[np.float64]
Values = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Limbs:
    """The factors a and b, cut up; secret if they are.

    Attributes:
        modulus_bits: b; values lie in [-2^(b-1), 2^(b-1)).
        columns: of b, shape (columns, limbs).
        rows: of a, shape (rows, limbs).
        column_shifts: what power of two each limb of ``columns`` counts for.
        row_shifts: as above, for ``rows``.
    """

    modulus_bits: int
    columns: Reals
    rows: Reals
    column_shifts: list[int]
    row_shifts: list[int]


def cut(columns: Residues, rows: Residues, modulus_bits: int) -> Limbs:
    """Cut both factors up, for values in [-2^(b-1), 2^(b-1)).

    Args:
        columns: b, words of 64 bits, the low one first; shape (columns, words), at most
            `MAX_COLUMNS` columns.
        rows: a, as above, shape (rows, words).
        modulus_bits: b of the values.
    """
    value_bits = modulus_bits - 1 if modulus_bits <= _NARROW_BITS else _NARROW_BITS
    # The longest with which a row of products adds up to less than 2^53.
    column_bits = _EXACT_BITS - value_bits - (len(columns) - 1).bit_length()
    return Limbs(
        modulus_bits=modulus_bits,
        columns=_cut_words(columns, column_bits),
        rows=_cut_words(rows, _ROW_LIMB_BITS),
        column_shifts=_shifts(column_bits, columns.shape[1]),
        row_shifts=_shifts(_ROW_LIMB_BITS, rows.shape[1]),
    )


def bilinear_form(values: Values, limbs: Limbs, rows: slice) -> int:
    """Return the form of a vector, exactly.

    Args:
        values: shape (length,), int32 or int64, contiguous, each in the range of ``limbs``.
        limbs: of a and b.
        rows: which rows of a are the vector's: as many as it has, the last one perhaps shorter.
    """
    if limbs.modulus_bits <= _NARROW_BITS:
        return _add_up(limbs, rows, _product(values, limbs.columns, _as_it_is))
    lower = _add_up(limbs, rows, _product(values, limbs.columns, _lower_half))
    upper = _add_up(limbs, rows, _product(values, limbs.columns, _upper_half))
    return lower + (upper << _NARROW_BITS)


def _cut_words(words: Residues, limb_bits: int) -> Reals:
    """Return the limbs of each integer, the low ones first; shape (integers, limbs)."""
    shifts = np.array(_shifts(limb_bits, 1), dtype=np.uint64)
    limbs = (words[:, :, np.newaxis] >> shifts) & np.uint64((1 << limb_bits) - 1)
    return limbs.astype(np.float64).reshape(len(words), words.shape[1] * shifts.size)


def _shifts(limb_bits: int, n_words: int) -> list[int]:
    """Return what power of two each limb of so many words counts for."""
    starts = range(0, n_words * _WORD_BITS, _WORD_BITS)
    return [start + low for start in starts for low in range(0, _WORD_BITS, limb_bits)]


def _add_up(limbs: Limbs, rows: slice, products: Reals) -> int:
    """Return the sum of all rows' products, each times a of its row.

    Args:
        limbs: of a and b.
        rows: as in `bilinear_form`.
        products: of values and limbs of b, integers up to 2^53, shape (rows, limbs).
    """
    factors = limbs.rows[rows]
    total = 0
    for start in range(0, len(products), _ROWS_AT_A_TIME):
        piece = products[start : start + _ROWS_AT_A_TIME]
        upper = np.floor(piece * 0.5**_SUM_HALF_BITS)
        lower = piece - upper * 2.0**_SUM_HALF_BITS
        some = factors[start : start + _ROWS_AT_A_TIME].T
        for half_shift, half in ((0, lower), (_SUM_HALF_BITS, upper)):
            sums = (some @ half).astype(np.int64).tolist()
            for row_shift, row in zip(limbs.row_shifts, sums, strict=True):
                for column_shift, value in zip(limbs.column_shifts, row, strict=True):
                    total += value << (half_shift + row_shift + column_shift)
    return total


def _product(values: Values, limbs: Reals, take: Callable[[Values, Reals], None]) -> Reals:
    """Return rows times limbs; the last row may be shorter."""
    columns = len(limbs)
    whole, rest = divmod(values.size, columns)
    products = np.empty((whole + (rest > 0), limbs.shape[1]))
    matrix = values[: whole * columns].reshape(whole, columns)
    step = max(1, _PIECE_VALUES // columns)
    piece = np.empty((min(step, whole), columns))
    for start in range(0, whole, step):
        rows = matrix[start : start + step]
        take(rows, piece[: len(rows)])
        np.matmul(piece[: len(rows)], limbs, out=products[start : start + len(rows)])
    if rest:
        tail = np.empty(rest)
        take(values[whole * columns :], tail)
        np.matmul(tail, limbs[:rest], out=products[whole])
    return products


def _as_it_is(values: Values, out: Reals) -> None:
    out[...] = values


def _lower_half(values: Values, out: Reals) -> None:
    out[...] = values.view(np.uint32)[..., _LOWER::2]


def _upper_half(values: Values, out: Reals) -> None:
    """Take what the lower half, which is never negative, leaves."""
    out[...] = values.view(np.int32)[..., _UPPER::2]
