"""The `plain` backend: integers in the clear. The oracle of all others, and the baseline.

Protects nothing: whoever sees the network sees every party's input. Runs with privacy
refuse it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.transport import Transport
from mpcfl.secagg.base import IntVector, SumSettings, centre, check_levels, check_range


class PlainSum:
    """A session of sums without protection; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings) -> None:
        self._transport = transport
        self._settings = settings

    def protect(self, levels: IntVector | None) -> NDArray[np.uint64]:
        """See `SecureSum.protect`; returns a copy of the integers as residues mod 2^64."""
        vector = check_levels(levels, self._settings.dim)
        check_range(vector, self._settings.modulus_bits)
        # The reduction may work in place, and the caller keeps its vector.
        return vector.view(np.uint64).copy()

    def aggregate(self, protected: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """See `SecureSum.aggregate`; every rank receives the sum mod 2^64."""
        return self._transport.allreduce(protected)

    def open(self, aggregated: NDArray[np.uint64]) -> IntVector:
        """See `SecureSum.open`; 2^b divides 2^64, so centring the reduced sum is exact."""
        return centre(aggregated.view(np.int64), self._settings.modulus_bits)

    def close(self) -> None:
        """There is no key to forget."""


def open_plain_sum(transport: Transport, settings: SumSettings) -> PlainSum:
    """Open a session; see `BackendFactory`."""
    return PlainSum(transport, settings)
