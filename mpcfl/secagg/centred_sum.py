"""Where an opened sum goes: chunk by chunk, less a public offset, centred mod 2^b."""

from __future__ import annotations

import numpy as np

from mpcfl.net.codec import Words
from mpcfl.secagg.base import Levels
from mpcfl.secagg.masks import WordType


class CentredSum:
    """Takes a sum of words, which are reduced where they lie; a `Sink` of `net/reduction.py`.

    Args:
        total: takes the sum, shape (dim,), int32 or int64.
        dtype: of the words; where it is as wide as ``total``, they land in there.
        modulus_bits: b, at most the bits of a word.
        offset: what the words add up to beside the sum, mod 2^b.
    """

    def __init__(self, total: Levels, dtype: WordType, modulus_bits: int, offset: int = 0) -> None:
        self._total = total
        self._dtype = dtype
        self._offset = dtype.type(offset % (1 << (dtype.itemsize * 8)))
        self._in_place = total.dtype.itemsize == dtype.itemsize
        self._signed = np.dtype(f"i{dtype.itemsize}")
        self._spare = self._signed.type(dtype.itemsize * 8 - modulus_bits)

    def landing(self, where: slice) -> Words:
        """See `Sink.landing`."""
        if self._in_place:
            return self._total[where].view(self._dtype)
        return np.empty(where.stop - where.start, dtype=self._dtype)

    def finish(self, where: slice, total: Words) -> None:
        """See `Sink.finish`."""
        if self._offset:
            total -= self._offset
        signed = total.view(self._signed)
        if self._spare:
            np.left_shift(signed, self._spare, out=signed)
            np.right_shift(signed, self._spare, out=signed)
        if not self._in_place:
            self._total[where] = signed
