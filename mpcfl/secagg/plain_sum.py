"""The `plain` backend: integers in the clear. The oracle of all others, and the baseline.

Protects nothing: whoever sees the network sees every party's input. Runs with privacy
refuse it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcfl.net.codec import WordCodec, Words
from mpcfl.net.reduction import Chunks, Reduction
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    IntVector,
    Levels,
    SumId,
    SumSettings,
    check_levels,
    check_range,
)
from mpcfl.secagg.centred_sum import CentredSum, LastSum, salvage_last
from mpcfl.secagg.salvage import Salvage

_CODEC = WordCodec(64)


class PlainSum:
    """A session of sums without protection; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings) -> None:
        self._transport = transport
        self._settings = settings
        self._chunks = Chunks.of(settings.dim, transport.n_ranks, _CODEC.dtype.itemsize)
        self._dtype: np.dtype[Any] = np.dtype(np.int64)
        self._last: LastSum | None = None

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: of every chunk, the slices that the ranks add up."""
        return self._chunks.parts

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> IntVector:
        """See `SecureSum.protect`; returns a copy of the integers."""
        del sum_id  # there is no key to bind to it
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        self._dtype, self._last = vector.dtype, None
        # The reduction works in place, and the caller keeps its vector.
        return vector.astype(np.int64)

    def aggregate(self, protected: IntVector) -> IntVector:
        """See `SecureSum.aggregate`; every rank receives the sum mod 2^64, in ``protected``.

        2^b divides 2^64, so centring the reduced sum is exact.
        """
        sink = CentredSum(protected, _CODEC.dtype, self._settings.modulus_bits)
        self._last = LastSum(Reduction(self._transport, _CODEC, self._chunks), sink)
        self._last.run(_already_there)
        return protected

    def open(self, aggregated: IntVector) -> Levels:
        """See `SecureSum.open`; the sum is there since `aggregate`."""
        return aggregated.astype(self._dtype, copy=False)

    def salvage(self) -> Salvage:
        """See `SecureSum.salvage`: slices that were added up here, and slices that came."""
        return salvage_last(self._last, self._chunks)

    def prepare(self) -> None:
        """There is nothing to prepare; see `SecureSum.prepare`."""
        self._last = None

    def close(self) -> None:
        """There is no key to forget."""
        self._last = None


def _already_there(number: int, out: Words) -> None:
    """Make a chunk of what this rank puts in: the sum goes where its vector is."""


def open_plain_sum(transport: Transport, settings: SumSettings) -> PlainSum:
    """Open a session; see `BackendFactory`."""
    return PlainSum(transport, settings)
