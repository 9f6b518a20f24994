"""Secret linear checks of integer vectors: tags that add up as the vectors do, and a digest.

A tag is <r, x> mod p of a vector x, with r secret, fresh for each use and drawn in the form
r[i W + j] = a[i] b[j], a and b uniform. A vector may come in parts: each has a tag and an a of
its own, and they have b in common. Tags of summands add up to the tag of the sum, so that whoever
knows that total and r can tell whether a vector is the sum. Soundness: a vector that differs from
the sum mod p, chosen without knowing r, has its tag with probability 2/p - 1/p^2 at most. The rows
of the difference meet b, where a row that is not zero gives zero with probability 1/p, and what
they give meets a: Schwartz 1980, Lemma 1, for a product of two linear forms; the proof is in
`docs/proofs.md`.

Tags are exact integers, computed by two floating-point matrix products: both factors are cut into
limbs so short that every product and every sum of them is an integer up to 2^53, in whatever order
they are added up. A few dozen such integers are then put together by Python's.

Unsafe alone: a tag that is not masked tells something of its vector, and a second vector under
the same r tells more. Does not protect against anybody who knows r, or the key of a digest,
before the vectors are fixed.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from mpcfl.hazmat.bits import BitSource

# The largest prime below 2^64, and a Mersenne prime for values that leave no bit between.
SHORT_PRIME = (1 << 64) - 59
LONG_PRIME = (1 << 127) - 1
_SHORT_PRIME_BITS = 63
DIGEST_BYTES = 16
_WORD_BITS = 64
# Integers up to here are exact in float64.
_EXACT_BITS = 53
# Values up to here go into a product as they are; longer ones as two halves of so many bits.
_NARROW_BITS = 32
# Where the halves of an int64 lie in memory.
_LOWER, _UPPER = (0, 1) if sys.byteorder == "little" else (1, 0)
# With longer rows more limbs were needed, with shorter ones the second product would count.
_MAX_COLUMNS = 1 << 10
# So many rows are added up at a time, halves of what they gave times limbs of a.
_ROWS_AT_A_TIME = 1 << 10
_SUM_HALF_BITS = 27
_ROW_LIMB_BITS = _EXACT_BITS - _SUM_HALF_BITS - 10
# 256 KiB of float64, which stay in the second-level cache.
_PIECE_VALUES = 1 << 15
# The library counts bytes of one call in 31 bits.
_DIGEST_PIECE_BYTES = 1 << 24

Residues = NDArray[np.uint64]
Reals = NDArray[np.float64]
Values = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Coefficients:
    """The secret r of the parts of one vector: of part k, r[i W + j] = a_k[i] b[j].

    Attributes:
        prime: p.
        modulus_bits: b, of the values.
        columns: b, integers in [0, p) as words of 64 bits, the low one first; shape (W, words).
        rows: a of all parts, one part after the other; shape (rows, words).
        starts: which of these rows is the first one of each part, and the number of all.
        column_limbs: what ``columns`` are cut into, shape (W, limbs).
        row_limbs: what ``rows`` are cut into, shape (rows, limbs).
    """

    prime: int
    modulus_bits: int
    columns: Residues
    rows: Residues
    starts: tuple[int, ...]
    column_limbs: Reals
    row_limbs: Reals


def tag_prime(modulus_bits: int) -> int:
    """Return p for values in [-2^(b-1), 2^(b-1)): no two of them are equal mod p."""
    return SHORT_PRIME if modulus_bits <= _SHORT_PRIME_BITS else LONG_PRIME


def n_columns(lengths: Sequence[int]) -> int:
    """Return W, a power of two, for parts of these lengths; it belongs to what r is."""
    wanted = max(1, 4 * math.isqrt(max(lengths, default=0)))
    return min(_MAX_COLUMNS, 1 << (wanted - 1).bit_length())


def raw_residues(bits: BitSource, count: int, prime: int) -> list[int]:
    """Return ``count`` integers that are uniform in [0, p), exactly."""
    return _integers(_draw(bits, count, prime))


def raw_coefficients(
    bits: BitSource, lengths: Sequence[int], modulus_bits: int, prime: int | None = None
) -> Coefficients:
    """Draw r for the parts of one vector; the same bits give the same r.

    Args:
        bits: a stream that only those who may check the sum can read, used for nothing else.
        lengths: of the parts.
        modulus_bits: b.
        prime: p, below 2^128; by default what `tag_prime` says.
    """
    prime = tag_prime(modulus_bits) if prime is None else prime
    width = n_columns(lengths)
    starts = (0, *itertools.accumulate(-(-length // width) for length in lengths))
    columns, rows = _draw(bits, width, prime), _draw(bits, starts[-1], prime)
    return Coefficients(
        prime=prime,
        modulus_bits=modulus_bits,
        columns=columns,
        rows=rows,
        starts=starts,
        column_limbs=_cut_into_limbs(columns, _column_limb_bits(width, modulus_bits)),
        row_limbs=_cut_into_limbs(rows, _ROW_LIMB_BITS),
    )


def raw_linear_tag(values: Values, coefficients: Coefficients, number: int) -> int:
    """Return <r, values> mod p of one part, exactly; secret unless it is masked.

    Args:
        values: shape (length,), int32 or int64, contiguous, each in [-2^(b-1), 2^(b-1)): others
            would give a wrong tag.
        coefficients: drawn for that length.
        number: of the part.
    """
    limbs, bits = coefficients.column_limbs, coefficients.modulus_bits
    rows = coefficients.row_limbs[slice(*coefficients.starts[number : number + 2])]
    if bits <= _NARROW_BITS:
        total = _add_up(coefficients, rows, _product(values, limbs, _as_it_is))
    else:
        lower = _add_up(coefficients, rows, _product(values, limbs, _lower_half))
        upper = _add_up(coefficients, rows, _product(values, limbs, _upper_half))
        total = lower + (upper << _NARROW_BITS)
    return total % coefficients.prime


def raw_vector_digest(key: bytes, vector: NDArray[Any]) -> bytes:
    """Return 16 bytes that tell vectors of one length apart, if the key comes after the vectors.

    Two different vectors of m bytes have the same digest with probability (m / 16 + 2) / 2^128
    at most over a uniform key, as AES is taken for a random permutation: GMAC of NIST SP 800-38D
    under a key that is used once. Whoever knows the key can make vectors of equal digest.

    Args:
        key: 32 bytes, single use.
        vector: contiguous; its bytes count.
    """
    mac = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
    view = vector.reshape(-1).view(np.uint8).data
    for start in range(0, len(view), _DIGEST_PIECE_BYTES):
        mac.authenticate_additional_data(view[start : start + _DIGEST_PIECE_BYTES])
    mac.finalize()
    return mac.tag


def _draw(bits: BitSource, count: int, prime: int) -> Residues:
    """Return uniform residues as words, shape (count, words); what is not below p is redrawn."""
    n_words = -(-prime.bit_length() // _WORD_BITS)
    limit = [(prime >> (_WORD_BITS * place)) & ((1 << _WORD_BITS) - 1) for place in range(n_words)]
    top_mask = np.uint64((1 << limit[-1].bit_length()) - 1)
    drawn = np.empty((count, n_words), dtype=np.uint64)
    missing = np.arange(count)
    while missing.size:
        fresh = bits.words(missing.size * n_words).reshape(-1, n_words)
        fresh[:, -1] &= top_mask
        drawn[missing] = fresh
        missing = missing[~_is_below(fresh, limit)]
    return drawn


def _is_below(words: Residues, limit: list[int]) -> NDArray[np.bool_]:
    """Compare integers of several words with p, from the low word up."""
    below = np.zeros(len(words), dtype=np.bool_)
    for place, bound in enumerate(limit):
        word, threshold = words[:, place], np.uint64(bound)
        below = (word < threshold) | ((word == threshold) & below)
    return below


def _integers(words: Residues) -> list[int]:
    """Return integers of several words as Python's."""
    integers: list[int] = words[:, 0].tolist()
    for place in range(1, words.shape[1]):
        upper: list[int] = words[:, place].tolist()
        integers = [
            low | high << (_WORD_BITS * place) for low, high in zip(integers, upper, strict=True)
        ]
    return integers


def _column_limb_bits(columns: int, modulus_bits: int) -> int:
    """Return the longest limbs with which a row of W products adds up to less than 2^53."""
    value_bits = modulus_bits - 1 if modulus_bits <= _NARROW_BITS else _NARROW_BITS
    return _EXACT_BITS - value_bits - (columns - 1).bit_length()


def _cut_into_limbs(words: Residues, limb_bits: int) -> Reals:
    """Return the limbs of each word, the low ones first; shape (integers, limbs)."""
    shifts = np.array(_shifts(limb_bits, 1), dtype=np.uint64)
    limbs = (words[:, :, np.newaxis] >> shifts) & np.uint64((1 << limb_bits) - 1)
    return limbs.astype(np.float64).reshape(len(words), words.shape[1] * shifts.size)


def _shifts(limb_bits: int, n_words: int) -> list[int]:
    """Return what power of two each limb counts for."""
    starts = range(0, n_words * _WORD_BITS, _WORD_BITS)
    return [start + low for start in starts for low in range(0, _WORD_BITS, limb_bits)]


def _add_up(coefficients: Coefficients, row_limbs: Reals, products: Reals) -> int:
    """Return the sum of all rows' products, each times a of its row.

    Args:
        coefficients: of the whole vector.
        row_limbs: of these rows.
        products: of values and limbs of b, integers up to 2^53, shape (rows, limbs).
    """
    n_words = coefficients.columns.shape[1]
    column_bits = _column_limb_bits(len(coefficients.columns), coefficients.modulus_bits)
    column_shifts = _shifts(column_bits, n_words)
    row_shifts = _shifts(_ROW_LIMB_BITS, n_words)
    total = 0
    for start in range(0, len(products), _ROWS_AT_A_TIME):
        piece = products[start : start + _ROWS_AT_A_TIME]
        upper = np.floor(piece * 0.5**_SUM_HALF_BITS)
        lower = piece - upper * 2.0**_SUM_HALF_BITS
        limbs = row_limbs[start : start + _ROWS_AT_A_TIME].T
        for half_shift, half in ((0, lower), (_SUM_HALF_BITS, upper)):
            sums = (limbs @ half).astype(np.int64).tolist()
            for row_shift, row in zip(row_shifts, sums, strict=True):
                for column_shift, value in zip(column_shifts, row, strict=True):
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
