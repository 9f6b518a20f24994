"""Words of b bits on the wire: b bits each, cut into planes that whole machine words can carry.

A word of b bits is kept in the smallest machine word that holds it (its container: 1, 2, 4
or 8 bytes). On the wire, b is written as a sum of powers of two, say 20 = 16 + 4, and each
part travels by itself: first the low 16 bits of all words, then their upper 4 bits, two to a
byte. Casts and shifts of whole vectors do that at memory speed, where cutting single words
across byte borders would not. Where b fills its container, the vector itself is the message.

Lengths depend on the number of words and on b alone. Bits above b are dropped.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A vector of one of the containers: uint8, uint16, uint32 or uint64.
Words = NDArray[Any]
Packed = NDArray[np.uint8]
# So many words fill whole bytes in every plane.
WORDS_PER_GROUP = 8
_CONTAINERS = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64))
_BYTE_BITS = 8


class WordCodec:
    """Packs vectors of words of b bits, 8 to 64."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.dtype = next(c for c in _CONTAINERS if c.itemsize * _BYTE_BITS >= bits)
        # Where b is 8, 16, 32 or 64 there is nothing to pack.
        self.is_identity = self.dtype.itemsize * _BYTE_BITS == bits

    @cached_property
    def _planes(self) -> tuple[tuple[int, int], ...]:
        """Width and lowest bit of each plane, widest first."""
        planes, shift = [], 0
        for width in (64, 32, 16, 8, 4, 2, 1):
            if self.bits & width:
                planes.append((width, shift))
                shift += width
        return tuple(planes)

    def reduce(self, words: Words, out: Words) -> None:
        """Write the words mod 2^b into ``out``."""
        np.bitwise_and(words, self.dtype.type((1 << self.bits) - 1), out=out)

    def packed_bytes(self, n_words: int) -> int:
        """Return how many bytes ``n_words`` take on the wire."""
        if self.is_identity:
            return n_words * self.dtype.itemsize
        return _groups(n_words) * self.bits

    def pack(self, words: Words) -> Packed:
        """Return the bytes of a contiguous vector; a view of it where there is nothing to pack."""
        if self.is_identity:
            return words.view(np.uint8)
        padded = _padded(words)
        packed = np.empty(self.packed_bytes(len(words)), dtype=np.uint8)
        position = 0
        for width, shift in self._planes:
            end = position + len(padded) * width // _BYTE_BITS
            shifted = padded >> self.dtype.type(shift) if shift else padded
            _pack_plane(shifted, width, packed[position:end])
            position = end
        return packed

    def unpack(self, packed: Packed, out: Words) -> None:
        """Write the words in ``packed`` into ``out``, shape (n,); each is below 2^b."""
        if self.is_identity:
            out[:] = packed.view(self.dtype)
            return
        padded = _groups(len(out)) * WORDS_PER_GROUP
        words = out if padded == len(out) else np.empty(padded, dtype=self.dtype)
        position = 0
        for width, shift in self._planes:
            end = position + padded * width // _BYTE_BITS
            plane = _unpack_plane(packed[position:end], width)
            if shift == 0:
                words[:] = plane
            else:
                words |= np.left_shift(plane, shift, dtype=self.dtype)
            position = end
        if words is not out:
            out[:] = words[: len(out)]


def _groups(n_words: int) -> int:
    return -(-n_words // WORDS_PER_GROUP)


def _padded(words: Words) -> Words:
    missing = -len(words) % WORDS_PER_GROUP
    return np.concatenate((words, np.zeros(missing, words.dtype))) if missing else words


def _pack_plane(words: Words, width: int, out: Packed) -> None:
    """Write the low ``width`` bits of each word; below a byte, byte i holds words i, i + m, ..."""
    if width >= _BYTE_BITS:
        # The cast drops the upper bits.
        out.view(f"<u{width // _BYTE_BITS}")[:] = words
        return
    low = words.astype(np.uint8) & np.uint8((1 << width) - 1)
    rows = low.reshape(_BYTE_BITS // width, len(out))
    out[:] = rows[0]
    for row in range(1, len(rows)):
        out |= rows[row] << np.uint8(row * width)


def _unpack_plane(packed: Packed, width: int) -> Words:
    if width >= _BYTE_BITS:
        return packed.view(f"<u{width // _BYTE_BITS}")
    shifts = np.arange(0, _BYTE_BITS, width, dtype=np.uint8)[:, None]
    return ((packed >> shifts) & np.uint8((1 << width) - 1)).reshape(-1)
