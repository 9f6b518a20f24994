"""Checks on masks as they show on the wire: uniform, never used twice, never repeated.

A value under a fresh uniform mask is uniform in its ring whatever it was, so is the
difference of two such values, and no block of bytes comes twice. Bounds hold at a
false-positive rate of 1e-9 per finding, shared among all figures looked at (union bound):
Hoeffding's inequality for single bits and for every two bits of a word, the asymptotic law of
Pearson's chi-square, with at least 64 expected per cell, for the leading and trailing bits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from mpcfl.audit.observe import Observation, Words
from mpcfl.audit.verdict import FALSE_POSITIVE_RATE, Finding

_MAX_WORD_BITS = 64
_BYTE_BITS = 8
_CELLS_EXPECT = 64
_MAX_CELL_BITS = 8
# Single bits, pairs of bits, cells.
_KINDS_OF_FIGURES = 3
# Rows of signs that are multiplied at a time: 4 MiB at 64 bits.
_SIGN_ROWS = 1 << 14
# Shorter streams are framing, not vectors.
MIN_STREAM_BYTES = 256
# 128 bits: chance repetitions among 2^20 blocks have a probability of 2^-89.
_BLOCK_BYTES = 16
# A frame of a message may be the same every time; masks start after it.
_HEADER_BYTES = 64


def word_bits(stream: bytes, dim: int) -> int:
    """Return the bits that a stream spends on each coordinate; 8 if it is no vector of words.

    The words may leave the last byte unfinished; a vector has more than eight coordinates.
    """
    bits, rest = divmod(_BYTE_BITS * len(stream), dim)
    return bits if rest < _BYTE_BITS <= bits <= _MAX_WORD_BITS else _BYTE_BITS


def words_of(stream: bytes, dim: int) -> Words:
    """Decode a stream as little-endian words of `word_bits` bits, uint64."""
    return _pack(_bits(stream, word_bits(stream, dim)))


def _bits(stream: bytes, width: int) -> NDArray[np.uint8]:
    flat = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), bitorder="little")
    return flat[: len(flat) // width * width].reshape(-1, width)


def _pack(bits: NDArray[np.uint8]) -> Words:
    wide = np.zeros((len(bits), _MAX_WORD_BITS), dtype=np.uint8)
    wide[:, : bits.shape[1]] = bits
    return np.packbits(wide, axis=1, bitorder="little").view(np.uint64).reshape(-1)


def check_uniform(check: str, observations: Sequence[Observation], number: int) -> Finding:
    """Check that what every rank sent in sum ``number`` of each session is uniform."""
    samples = [
        _bits(stream, word_bits(stream, observation.settings.dim))
        for observation in observations
        for stream in observation.streams(number).values()
        if len(stream) >= MIN_STREAM_BYTES
    ]
    return _uniform_finding(check, samples, "words sent for flat inputs")


def check_reuse(observations: Sequence[Observation], numbers: Sequence[int]) -> Finding:
    """Check that the same input, sent in two sums or two sessions, differs by a uniform vector."""
    samples = []
    sums = [(o.streams(n), o.settings.dim) for o in observations for n in numbers]
    for (first, dim), (second, _) in itertools.combinations(sums, 2):
        for key, stream in first.items():
            other = second.get(key, b"")
            if len(stream) == len(other) >= MIN_STREAM_BYTES:
                width = word_bits(stream, dim)
                difference = words_of(stream, dim) - words_of(other, dim)
                samples.append(_bits(difference.astype("<u8").tobytes(), 64)[:, :width])
    return _uniform_finding("mask-reuse", samples, "differences of what one input was sent as")


def _uniform_finding(check: str, samples: list[NDArray[np.uint8]], what: str) -> Finding:
    if not samples:
        return Finding(check, False, f"there are no {what} to look at; nothing was sent")
    n_bits = sum(sample.shape[1] for sample in samples)
    n_pairs = sum(math.comb(sample.shape[1], 2) for sample in samples)
    # A third of the rate for the bits, one for their pairs and one for the cells.
    worst_excess = max(
        *(_balance_excess(sample, n_bits) for sample in samples),
        *(_pair_excess(sample, n_pairs) for sample in samples),
    )
    p_values = [p for sample in samples for p in _cell_p_values(sample)]
    bound = FALSE_POSITIVE_RATE / _KINDS_OF_FIGURES / max(1, len(p_values))
    p_value = min(p_values, default=1.0)
    smallest = min(len(sample) for sample in samples)
    passed = worst_excess <= 1 and p_value > bound
    detail = (
        f"{what}, {len(samples)} vectors of {smallest:,} or more: the least uniform bit, or pair "
        f"of bits, lies at {worst_excess:.2f} of its bound, the smallest chi-square p-value is "
        f"{p_value:.1e} (bound {bound:.1e})"
    )
    figures = {"bit_excess": worst_excess, "p_value": p_value, "p_bound": bound}
    return Finding(check, passed, detail, figures)


def _balance_excess(bits: NDArray[np.uint8], n_bits: int) -> float:
    """Return the largest deviation of a bit's count from one half, as a part of its bound."""
    count = len(bits)
    # Hoeffding: P(|ones - n/2| >= d) <= 2 exp(-2 d^2 / n).
    bound = math.sqrt(count / 2 * math.log(2 * _KINDS_OF_FIGURES * n_bits / FALSE_POSITIVE_RATE))
    ones = bits.sum(axis=0, dtype=np.int64)
    return float(np.max(np.abs(ones - count / 2)) / bound)


def _pair_excess(bits: NDArray[np.uint8], n_pairs: int) -> float:
    """Return the largest deviation of how often two bits agree, as a part of its bound.

    Two different bits of a uniform word agree in half of all words, independently.
    """
    count, width = bits.shape
    products = np.zeros((width, width))
    for start in range(0, count, _SIGN_ROWS):
        # Sums of at most 2^14 signs are exact in single precision.
        signs = np.float32(1) - 2 * bits[start : start + _SIGN_ROWS].astype(np.float32)
        products += signs.T @ signs
    np.fill_diagonal(products, 0)
    # The same bound for a sum of signs, which is twice the deviation of a count.
    bound = math.sqrt(2 * count * math.log(2 * _KINDS_OF_FIGURES * n_pairs / FALSE_POSITIVE_RATE))
    return float(np.max(np.abs(products)) / bound)


def _cell_p_values(bits: NDArray[np.uint8]) -> list[float]:
    """Return the chi-square p-values of the leading and of the trailing bits of the words."""
    count, width = bits.shape
    used = min(_MAX_CELL_BITS, width, int(math.log2(max(1, count // _CELLS_EXPECT))))
    if used < 1:
        return []
    p_values = []
    for part in (bits[:, -used:], bits[:, :used]):
        counts = np.bincount(_pack(part).astype(np.int64), minlength=1 << used)
        expected = count / (1 << used)
        statistic = float(np.sum((counts - expected) ** 2) / expected)
        p_values.append(float(chi2.sf(statistic, (1 << used) - 1)))
    return p_values


def check_repeats(observations: Sequence[Observation], *, inner: bool = False) -> Finding:
    """Check that no rank ever sends the same 16 bytes twice, in any sum of any session.

    Args:
        observations: sessions with the same parties; flat inputs show a mask block that is
            used twice within a sum, equal inputs one that is used in two sums.
        inner: look at messages before they were sealed, as for ciphertexts under a channel.
    """
    windows: dict[tuple[int, int], list[Words]] = {}
    for observation in observations:
        for number in range(len(observation.inputs)):
            for (sender, _), stream in observation.streams(number, inner=inner).items():
                if len(stream) >= MIN_STREAM_BYTES:
                    blocks = _windows(stream, observation.settings.dim)
                    windows.setdefault((sender, blocks.shape[1]), []).append(blocks)
    repeated = sum(_count_repeats(np.concatenate(parts)) for parts in windows.values())
    total = sum(len(part) for parts in windows.values() for part in parts)
    detail = (
        f"{repeated:,} of {total:,} blocks of {_BLOCK_BYTES} bytes or more came a second time "
        "from one rank; no block may"
    )
    name = "ciphertext-repeats" if inner else "mask-repeats"
    return Finding(
        name, repeated == 0 and total > 0, detail, {"repeated": repeated, "blocks": total}
    )


def _windows(stream: bytes, dim: int) -> Words:
    """Return the blocks of 128 bits or more at every byte, or at every word, shape (k, ...)."""
    width = word_bits(stream, dim)
    if width % _BYTE_BITS:
        words = words_of(stream, dim)
        return np.lib.stride_tricks.sliding_window_view(words, -(-8 * _BLOCK_BYTES // width))
    data = np.frombuffer(stream[_HEADER_BYTES:], dtype=np.uint8)
    blocks = np.lib.stride_tricks.sliding_window_view(data, _BLOCK_BYTES)
    return np.ascontiguousarray(blocks).view(np.uint64)


def _count_repeats(blocks: Words) -> int:
    ordered = blocks[np.lexsort(blocks.T)]
    return int(np.sum(np.all(ordered[1:] == ordered[:-1], axis=1)))
