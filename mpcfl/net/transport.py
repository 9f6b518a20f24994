"""The plug point between a protocol and what carries its messages.

A transport moves opaque bytes between the ranks of one session, counts them, and never
waits past its deadline. It offers no secrecy and no authenticity; `net/channel.py` adds
both. Contract test: `tests/contract/test_transport.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.meter import Meter

Rank = NewType("Rank", int)
# Raw bytes, shape (n,), contiguous.
Block = NDArray[np.uint8]


class Pending(Protocol):
    """Blocks under way: none of their buffers may be read or written until all have arrived."""

    def poll(self) -> bool:
        """Make progress; return True once everything has left and arrived.

        Raises:
            PartyLost: a rank died.
        """
        ...

    def wait(self) -> None:
        """Return once everything has left and arrived.

        Raises:
            PartyLost: a rank died, or something is missing at the deadline.
            ProtocolError: a block has another length than its buffer.
        """
        ...

    def arrived(self) -> frozenset[int]:
        """Return the sources whose block is completely in its buffer, which may be read then.

        Waits for nothing, and may be asked for after a failure as well: then of what was begun
        first, first, as blocks of one source arrive in order.
        """
        ...


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

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> Pending:
        """Start to send block r to rank r and to fill ``inbox`` with what the others send here.

        All ranks call it together, as often and in the same order; so with `begin_gather`.

        Args:
            blocks: one per rank, in order of rank; this rank's own one stays.
            inbox: by every other rank, a buffer of exactly the length that it sends.
        """
        ...

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> Pending:
        """Start to send ``own`` to all others and to fill ``inbox`` with theirs."""
        ...

    def begin_allreduce(self, words: NDArray[Any]) -> Pending:
        """Start to replace ``words`` by the sum over all ranks, mod 2^32 or 2^64.

        Args:
            words: uint32 or uint64, shape (n,), contiguous; equal at all ranks in type and
                length. (MPI may stop a sum of shorter words at their largest value.) In few long
                messages it is slower than a scatter and a gather, in many short ones faster.

        Raises:
            TypeError: other words.
        """
        ...

    def close(self) -> None:
        """Give back what the transport holds; all ranks call it together.

        Does nothing the second time, nor after an exchange that failed.
        """
        ...


def check_reducible(words: NDArray[Any]) -> None:
    """Refuse what `Transport.begin_allreduce` does not take.

    Raises:
        TypeError: the words are neither uint32 nor uint64.
    """
    if words.dtype not in (np.uint32, np.uint64):
        raise TypeError(f"a reduction takes uint32 or uint64, not {words.dtype}")
