"""Where an opened sum goes: chunk by chunk, less a public offset, centred mod 2^b."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpcfl.net.codec import Words
from mpcfl.net.reduction import Chunks, Reduction, Source
from mpcfl.secagg.base import IntVector, Levels
from mpcfl.secagg.masks import WordType
from mpcfl.secagg.salvage import Salvage, nothing_in


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
        signed = self._centre(total)
        if not self._in_place:
            self._total[where] = signed

    def salvage(self, reduction: Reduction) -> Salvage:
        """Return what this rank knows of the sum that a reduction brought here, in whole or part.

        Args:
            reduction: the one whose sink this is.
        """
        parts = reduction.chunks.parts
        known = nothing_in(parts)
        for number in range(reduction.n_finished * reduction.chunks.n_ranks):
            known[number] = self._total[parts[number]].astype(np.int64)
        for number, words in reduction.unfinished().items():
            known[number] = self._centre(words).astype(np.int64)
        return Salvage(parts, dict(sorted(known.items())))

    def _centre(self, words: Words) -> IntVector:
        """Return a sum less the offset, centred; a view of ``words``, which change."""
        if self._offset:
            words -= self._offset
        signed = words.view(self._signed)
        if self._spare:
            np.left_shift(signed, self._spare, out=signed)
            np.right_shift(signed, self._spare, out=signed)
        return signed


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class LastSum:
    """The reduction that a session ran last, and where it brought the sum.

    It keeps the opened vector, and after a failure words under masks, until the next sum begins.
    """

    reduction: Reduction
    sink: CentredSum

    def run(self, source: Source) -> None:
        """Add up all ranks' words.

        Raises:
            PartyLost: a rank died or did not come before the deadline.
        """
        self.reduction.run(source, self.sink)


def salvage_last(last: LastSum | None, chunks: Chunks) -> Salvage:
    """Return what is known of a session's last sum; nothing where none was begun."""
    if last is None:
        return Salvage(chunks.parts, nothing_in(chunks.parts))
    return last.sink.salvage(last.reduction)
