"""What both exact samplers share: uniform numbers with as many digits as a decision needs.

A sampler decides on the first 64 bits where these are enough, which is nearly always, and
otherwise on exact arithmetic with further bits. So its law is exact, given perfect bits.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import BitSource

# mpmath keeps constants in caches that are not safe under threads, and the parties of
# `run_round` are threads: whoever computes with mpmath here holds this lock.
EXACT_ARITHMETIC = threading.RLock()

# Candidates per block: 3 words each, so that a block stays in the second-level cache.
_BLOCK = 1 << 14
_PREFIX_BITS = 16
_AMBIGUOUS = -1
_GUARD_BITS = 64

Bound = Callable[[int], int]


class LazyUniform:
    """A uniform real number in [0, 1) whose binary digits are drawn as they are needed."""

    __slots__ = ("_bits", "_n_bits", "_value")

    def __init__(self, first_word: int, bits: BitSource) -> None:
        self._value = first_word
        self._n_bits = 64
        self._bits = bits

    def is_below(self, bound: Bound) -> bool:
        """Compare with a real number b, given as ``bound(n)`` within 1 of b 2^n."""
        while True:
            near = bound(self._n_bits)
            # The number lies in [value, value + 1) / 2^n and b in [near - 1, near + 1] / 2^n.
            if self._value + 1 <= near - 1:
                return True
            if self._value >= near + 1:
                return False
            self._value = (self._value << 64) | int(self._bits.words(1)[0])
            self._n_bits += 64


class Inversion:
    """Draws k = 0, 1, ... by inverting its distribution function; no tail is cut off.

    Attributes:
        thresholds: floor(2^64 P[K <= k]) for every k that 64 bits can tell apart, ascending,
            uint64. A word above a threshold means a larger k for certain; equality is decided
            exactly. The last one is the largest word, so that the far tail is always decided
            exactly.
    """

    __slots__ = ("_cumulative", "_k_of_prefix", "thresholds")

    def __init__(self, cumulative: Callable[[int, int], int]) -> None:
        """Prepare the table.

        Args:
            cumulative: (k, n) -> 2^n P[K <= k], less than 1 off.
        """
        self._cumulative = cumulative
        largest = 2**64 - 1
        thresholds: list[int] = []
        while (wide := cumulative(len(thresholds), 64 + _GUARD_BITS) >> _GUARD_BITS) < largest:
            thresholds.append(wide)
        self.thresholds = np.array([*thresholds, largest], dtype=np.uint64)
        prefixes = np.arange(1 << _PREFIX_BITS, dtype=np.uint64) << np.uint64(64 - _PREFIX_BITS)
        table = np.searchsorted(self.thresholds, prefixes).astype(np.int8)
        # A threshold among the words of one prefix leaves k open.
        table[self.thresholds >> np.uint64(64 - _PREFIX_BITS)] = _AMBIGUOUS
        self._k_of_prefix = table

    def draw(self, uniform: NDArray[np.uint64], bits: BitSource) -> NDArray[np.int64]:
        """Return one k per uniform word, int64."""
        k: NDArray[np.int64]
        k = self._k_of_prefix[uniform >> np.uint64(64 - _PREFIX_BITS)].astype(np.int64)
        for index in np.flatnonzero(k == _AMBIGUOUS):
            word = uniform[index]
            found = int(np.searchsorted(self.thresholds, word))
            tie = self.thresholds[found] == word
            k[index] = self.decide(LazyUniform(int(word), bits)) if tie else found
        return k

    def decide(self, uniform: LazyUniform) -> int:
        """Return k for a uniform real number, exactly."""
        k = 0
        while not uniform.is_below(lambda n_bits: self._cumulative(k, n_bits)):  # noqa: B023 - used before k moves
            k += 1
        return k


def uniform_below(
    words: NDArray[np.uint64], bound: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Map the upper 32 bits of each word to j below ``bound`` < 2^32, by Lemire's method.

    Returns:
        j = floor(w bound / 2^32), int64, and which of them to keep: dropping the others, fewer
        than ``bound`` of 2^32, makes every j equally likely.
    """
    product = (words >> np.uint64(32)) * np.uint64(bound)
    j = (product >> np.uint64(32)).view(np.int64)
    return j, (product & np.uint64(0xFFFF_FFFF)) >= np.uint64((1 << 32) % bound)


def checked_arguments(name: str, value: int, largest: int, size: int) -> tuple[int, int]:
    """Return a sampler's parameter and size as integers, or raise ConfigError."""
    try:
        value, size = operator.index(value), operator.index(size)
    except TypeError:
        raise ConfigError(
            f"{name} and size must be integers; choose the scale so that {name} is one"
        ) from None
    if not 1 <= value <= largest:
        power = largest.bit_length() - 1
        raise ConfigError(f"{name} is {value}; it must lie between 1 and 2^{power} = {largest}")
    if size < 0:
        raise ConfigError(f"size is {size}; it must not be negative")
    return value, size


def draws_in_blocks(
    size: int, candidates_per_draw: float, draw_block: Callable[[int], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Fill an array with accepted draws, shape (size,), int64.

    Args:
        size: how many.
        candidates_per_draw: about how many candidates one accepted draw needs.
        draw_block: makes so many candidates and returns the accepted ones.
    """
    out = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        missing = size - filled
        used = draw_block(min(_BLOCK, int(missing * candidates_per_draw) + 32))[:missing]
        out[filled : filled + len(used)] = used
        filled += len(used)
    return out
