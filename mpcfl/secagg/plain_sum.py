"""The `plain` backend: integers in the clear. The oracle of all others, and the baseline.

Protects nothing: whoever sees the network sees every party's input. Runs with privacy
refuse it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.reduction import allreduce
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    Levels,
    SumId,
    SumSettings,
    centre,
    check_levels,
    check_range,
)


class PlainSum:
    """A session of sums without protection; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings) -> None:
        self._transport = transport
        self._settings = settings
        self._dtype: np.dtype[Any] = np.dtype(np.int64)

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> NDArray[np.uint64]:
        """See `SecureSum.protect`; returns a copy of the integers as residues mod 2^64."""
        del sum_id  # there is no key to bind to it
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        self._dtype = vector.dtype
        # The reduction works in place, and the caller keeps its vector.
        return vector.astype(np.int64).view(np.uint64)

    def aggregate(self, protected: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """See `SecureSum.aggregate`; every rank receives the sum mod 2^64."""
        return allreduce(self._transport, protected)

    def open(self, aggregated: NDArray[np.uint64]) -> Levels:
        """See `SecureSum.open`; 2^b divides 2^64, so centring the reduced sum is exact."""
        total = centre(aggregated.view(np.int64), self._settings.modulus_bits)
        return total.astype(self._dtype, copy=False)

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def close(self) -> None:
        """There is no key to forget."""


def open_plain_sum(transport: Transport, settings: SumSettings) -> PlainSum:
    """Open a session; see `BackendFactory`."""
    return PlainSum(transport, settings)
