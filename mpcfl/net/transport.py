"""The plug point between a protocol and what carries its messages.

A transport moves opaque bytes between the ranks of one session, counts them, and never
waits past its deadline. It offers no secrecy and no authenticity; `net/channel.py` adds
both. Contract test: `tests/contract/test_transport.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.meter import Meter

Rank = NewType("Rank", int)


class Transport(Protocol):
    """Messages between ``n_ranks`` parties; every call is bounded by a deadline."""

    rank: int
    n_ranks: int
    meter: Meter

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """Send each message to its rank and return one message from each source.

        Sends and receives overlap, so parties may exchange in any order; messages from one
        rank to another arrive in the order they were sent.

        Raises:
            PartyLost: a source or a destination died, or nothing came before the deadline.
        """
        ...

    def allgather(self, message: bytes) -> list[bytes]:
        """Return every rank's message, in order of rank; all ranks call it together."""
        ...

    def allreduce(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the sum of all ranks' vectors mod 2^64, shape (dim,); all ranks call it together.

        May use ``values`` as its working space.
        """
        ...

    def close(self) -> None:
        """Give back what the transport holds; all ranks call it together.

        Does nothing the second time, nor after an exchange that failed.
        """
        ...
