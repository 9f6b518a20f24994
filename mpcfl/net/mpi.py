"""The transport over MPI: non-blocking requests, polled against a deadline.

A blocking MPI call can't be timed out, so nothing here waits in one: even a duplicate of a
communicator is polled for. (`close` frees that duplicate, which is collective; it is not
called once something has failed.) A rank that waits sleeps with back-off (at most 1 ms), so
that CPU seconds mean work. Only upper-case (buffer) calls of mpi4py appear here; the
lower-case ones pickle.

Assumes nothing of the network: messages are opaque. Does not protect: see `channel.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from mpi4py import MPI
from numpy.typing import NDArray

from mpcfl.net.meter import Meter
from mpcfl.net.mpi_requests import (
    TAG_GATHER,
    TAG_MESSAGE,
    TAG_SCATTER,
    Deadline,
    Inbox,
    Requests,
    block_pieces,
    message_pieces,
    return_errors,
)
from mpcfl.net.transport import Block, check_reducible

# Requests that an exchange left open when it failed, and their buffers. MPI may read and
# write them until the process ends, so they outlive the transport as well.
_abandoned: list[object] = []


class MpiTransport:
    """One rank's end of an MPI communicator; implements `Transport`.

    Args:
        comm: an intracommunicator. It is used as it is: nobody else may talk on it as long as
            the transport is in use, and its errors are returned from then on, never fatal.
        deadline_s: longest wait in seconds for any one exchange, and for the duplicate; may be
            set later.
        names: a name per rank, for errors; ranks are numbered where it is empty; may be set
            later.
        duplicate: talk on a duplicate of ``comm``, so that others may talk on ``comm``; all
            ranks make their transports together.

    Raises:
        PartyLost: a rank died, or did not duplicate ``comm`` before the deadline.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        deadline_s: float = 120.0,
        names: Sequence[str] = (),
        *,
        duplicate: bool = False,
    ) -> None:
        self._comm = comm
        self.rank = comm.Get_rank()
        self.n_ranks = comm.Get_size()
        self.deadline_s = deadline_s
        self.meter = Meter()
        self.names = tuple(names)
        self._must_free = False
        if duplicate:
            self._comm = self._duplicate(comm)
            self._must_free = True
        return_errors(self._comm)

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`."""
        inboxes = {source: Inbox(self._comm, source) for source in sources}
        sends: list[MPI.Request] = []

        def missing() -> list[int]:
            return [source for source, inbox in inboxes.items() if not inbox.poll()]

        def is_done() -> bool:
            # Sends make progress whether or not anything is missing.
            return MPI.Request.Testall(sends) & (not missing())

        with Deadline(self, (*outgoing, *sources), (inboxes, sends, outgoing)) as deadline:
            for target, message in outgoing.items():
                # Those before a failure are in ``sends`` too, as `extend` goes by item.
                sends.extend(
                    self._comm.Isend([piece, MPI.BYTE], dest=target, tag=TAG_MESSAGE)
                    for piece in message_pieces(message)
                )
            deadline.wait(is_done, missing)
        for message in outgoing.values():
            self.meter.count_sent(len(message))
        received = {source: bytes(inbox.content) for source, inbox in inboxes.items()}
        for message in received.values():
            self.meter.count_received(len(message))
        return received

    def allgather(self, message: bytes) -> list[bytes]:
        """See `Transport.allgather`."""
        others = self._others()
        received = self.exchange(dict.fromkeys(others, message), others)
        return [received.get(rank, message) for rank in range(self.n_ranks)]

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> Requests:
        """See `Transport.begin_scatter`."""
        return self._begin({rank: blocks[rank] for rank in self._others()}, inbox, TAG_SCATTER)

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> Requests:
        """See `Transport.begin_gather`."""
        return self._begin(dict.fromkeys(self._others(), own), inbox, TAG_GATHER)

    def begin_allreduce(self, words: NDArray[Any]) -> Requests:
        """See `Transport.begin_allreduce`; counted as one vector sent and one received."""
        check_reducible(words)

        def count() -> None:
            self.meter.count_sent(words.nbytes)
            self.meter.count_received(words.nbytes)

        requests = Requests(self, self._others(), words, count)
        if self.n_ranks > 1 and words.size:
            with Deadline(self, self._others(), requests):
                requests.add(self._comm.Iallreduce(MPI.IN_PLACE, words, op=MPI.SUM))
        return requests

    def close(self) -> None:
        """See `Transport.close`: Open MPI has a limited number of communicators.

        Frees the duplicate, once, and not after a failure, when other ranks may never come.
        Does nothing to a communicator that is used as it is.
        """
        if self._must_free:
            self._must_free = False
            self._comm.Free()

    def abandon(self, in_use: object = None) -> None:
        """Give up after a failure: keep what MPI may still use; `close` does nothing from then on.

        A communicator of our own is revoked, so that no rank goes on waiting for one that has
        given up, or takes what was sent before for a part of something new.
        """
        _abandoned.append(in_use)
        if self._must_free:
            self._must_free = False
            # Where MPI has no fault tolerance, the others wait for their deadline.
            with suppress(MPI.Exception, NotImplementedError):
                self._comm.Revoke()

    def party_names(self, ranks: Iterable[int]) -> str:
        """Return the names of some ranks, for an error text."""
        return ", ".join(
            f"{self.names[rank]} (rank {rank})" if rank < len(self.names) else f"rank {rank}"
            for rank in sorted(set(ranks))
        )

    def failed_ranks(self) -> tuple[int, ...]:
        """Return the ranks that MPI knows to be dead; empty where it can't tell."""
        try:
            failed = self._comm.Get_failed()
            group = self._comm.Get_group()
            ranks = tuple(int(rank) for rank in MPI.Group.Translate_ranks(failed, None, group))
            failed.Free()
            group.Free()
        except (MPI.Exception, NotImplementedError):
            return ()
        return ranks

    def _duplicate(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        duplicate, request = comm.Idup()
        with Deadline(self, self._others(), (duplicate, request)) as deadline:
            deadline.wait(request.Test, list)
        return duplicate

    def _begin(
        self, outgoing: Mapping[int, Block], incoming: Mapping[int, Block], tag: int
    ) -> Requests:
        """Post blocks whose lengths both sides know; nothing is copied."""

        def count() -> None:
            for block in outgoing.values():
                self.meter.count_sent(block.nbytes)
            for block in incoming.values():
                self.meter.count_received(block.nbytes)

        ranks = {*outgoing, *incoming}
        requests = Requests(self, ranks, (outgoing, incoming), count)
        with Deadline(self, ranks, requests):
            for source, block in incoming.items():
                for piece in block_pieces(block):
                    request = self._comm.Irecv([piece, MPI.BYTE], source=source, tag=tag)
                    requests.add_receive(request, source, piece.nbytes)
            for target, block in outgoing.items():
                for piece in block_pieces(block):
                    requests.add(self._comm.Isend([piece, MPI.BYTE], dest=target, tag=tag))
        return requests

    def _others(self) -> list[int]:
        """Return the other ranks, the next one first, so that not all send to one at once."""
        return [(self.rank + step) % self.n_ranks for step in range(1, self.n_ranks)]
