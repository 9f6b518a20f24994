"""Secret linear checks of integer vectors: tags that add up as the vectors do, and a digest.

A tag is <r, x> mod p of a vector x, with r secret, fresh for each use and drawn in the form
r[i W + j] = a[i] b[j], a and b uniform. A vector may come in parts: each has a tag and an a of
its own, and they have b in common. Tags of summands add up to the tag of the sum, so that whoever
knows that total and r can tell whether a vector is the sum. Soundness: a vector that differs from
the sum mod p, chosen without knowing r, has its tag with probability 2/p - 1/p^2 at most. The rows
of the difference meet b, where a row that is not zero gives zero with probability 1/p, and what
they give meets a: Schwartz 1980, Lemma 1, for a product of two linear forms; the proof is in
`docs/proofs.md`.

Tags are exact integers, computed in one of two ways that are equal bit for bit: by the kernel
`mpcfl.hazmat._dot` (`dot.c`), where it was built and p fits a word, and by `limb_products.py`
everywhere else.

Unsafe alone: a tag that is not masked tells something of its vector, and a second vector under
the same r tells more. Does not protect against anybody who knows r, or the key of a digest,
before the vectors are fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from mpcfl.hazmat.bits import BitSource
from mpcfl.hazmat.limb_products import MAX_COLUMNS, Limbs, Residues, Values, bilinear_form, cut

try:
    from mpcfl.hazmat import _dot
except ImportError:  # not built: no compiler, or one without integers of 128 bits
    _HAS_KERNEL = False
else:
    # One that was built in place from other sources may take other arguments.
    _HAS_KERNEL = _dot.INTERFACE == 1 and bool(_dot.AVAILABLE)

# The largest prime below 2^64, and a Mersenne prime for values that leave no bit between.
SHORT_PRIME = (1 << 64) - 59
LONG_PRIME = (1 << 127) - 1
_SHORT_PRIME_BITS = 63
DIGEST_BYTES = 16
_WORD_BITS = 64
# Values of so many bits fit an int32.
_NARROW_BITS = 32
# The library counts bytes of one call in 31 bits.
_DIGEST_PIECE_BYTES = 1 << 24


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Coefficients:
    """The secret r of the parts of one vector: of part k, r[i W + j] = a_k[i] b[j].

    Attributes:
        prime: p.
        modulus_bits: b, of the values.
        columns: b, integers in [0, p) as words of 64 bits, the low one first; shape (W, words).
        rows: a of all parts, one part after the other; shape (rows, words).
        starts: which of these rows is the first one of each part, and the number of all.
        limbs: what both are cut into; None where the kernel computes.
    """

    prime: int
    modulus_bits: int
    columns: Residues
    rows: Residues
    starts: tuple[int, ...]
    limbs: Limbs | None


def tag_prime(modulus_bits: int) -> int:
    """Return p for values in [-2^(b-1), 2^(b-1)): no two of them are equal mod p."""
    return SHORT_PRIME if modulus_bits <= _SHORT_PRIME_BITS else LONG_PRIME


def n_columns(lengths: Sequence[int]) -> int:
    """Return W, a power of two, for parts of these lengths; it belongs to what r is."""
    wanted = max(1, 4 * math.isqrt(max(lengths, default=0)))
    return min(MAX_COLUMNS, 1 << (wanted - 1).bit_length())


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
    drawn = _draw(bits, width + starts[-1], prime)
    columns, rows = drawn[:width], drawn[width:]
    return Coefficients(
        prime=prime,
        modulus_bits=modulus_bits,
        columns=columns,
        rows=rows,
        starts=starts,
        limbs=None if _uses_kernel(prime) else cut(columns, rows, modulus_bits),
    )


def raw_linear_tag(values: Values, coefficients: Coefficients, number: int) -> int:
    """Return <r, values> mod p of one part, exactly; secret unless it is masked.

    Args:
        values: shape (length,), int32 or int64, contiguous, each in [-2^(b-1), 2^(b-1)): others
            would give a wrong tag.
        coefficients: drawn for that length.
        number: of the part.
    """
    rows = slice(*coefficients.starts[number : number + 2])
    if coefficients.limbs is None:
        halves = 1 if coefficients.modulus_bits <= _NARROW_BITS else 2
        columns, factors = coefficients.columns[:, 0], coefficients.rows[rows, 0]
        total = int.from_bytes(
            _dot.bilinear_form(values, columns, factors, halves), "little", signed=True
        )
    else:
        total = bilinear_form(values, coefficients.limbs, rows)
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


def _uses_kernel(prime: int) -> bool:
    return _HAS_KERNEL and _n_words(prime) == 1


def _n_words(prime: int) -> int:
    return -(-prime.bit_length() // _WORD_BITS)


def _draw(bits: BitSource, count: int, prime: int) -> Residues:
    """Return uniform residues as words, shape (count, words); what is not below p is redrawn."""
    n_words = _n_words(prime)
    limit = [(prime >> (_WORD_BITS * place)) & ((1 << _WORD_BITS) - 1) for place in range(n_words)]
    top_mask = np.uint64((1 << limit[-1].bit_length()) - 1)
    drawn = bits.words(count * n_words).reshape(count, n_words)
    drawn[:, -1] &= top_mask
    missing = np.flatnonzero(~_is_below(drawn, limit))
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
