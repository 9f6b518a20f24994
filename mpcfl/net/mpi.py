"""The transport over MPI: non-blocking requests, polled against a deadline.

A blocking MPI call can't be timed out, so nothing here waits in one: even a duplicate of a
communicator is polled for. (`close` frees that duplicate, which is collective; it is not
called once something has failed.) A rank that waits sleeps with back-off (at most 1 ms), so
that CPU seconds mean work. Only upper-case (buffer) calls of mpi4py appear here; the
lower-case ones pickle.

Assumes nothing of the network: messages are opaque. Does not protect: see `channel.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpcfl.net.meter import Meter
from mpcfl.net.mpi_inbox import MAX_MESSAGE_BYTES, Inbox
from mpcfl.net.mpi_port import MpiPort
from mpcfl.net.mpi_requests import (
    TAG_GATHER,
    TAG_MESSAGE,
    TAG_REDUCE,
    TAG_SCATTER,
    TAGS_PER_EPOCH,
    Deadline,
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
        members: ranks of ``comm`` that take part, ascending; by default all. Ranks of the
            transport are places in this list.
        epoch: told apart by the tags of messages, so that what was sent before some rank was
            lost is never taken for a part of what follows.

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
        members: Sequence[int] | None = None,
        epoch: int = 0,
    ) -> None:
        self._comm = comm
        self.members = tuple(range(comm.Get_size())) if members is None else tuple(members)
        self.rank = self.members.index(comm.Get_rank())
        self.n_ranks = len(self.members)
        self.epoch = epoch
        self.deadline_s = deadline_s
        self.meter = Meter()
        self.names = tuple(names)
        # Called now and then by whoever waits; raises if waiting has lost its sense.
        self.watch: Callable[[], None] = lambda: None
        # Longest message that `exchange` takes; blocks have lengths that both sides know.
        self.max_message_bytes = MAX_MESSAGE_BYTES
        self._must_free = False
        if duplicate:
            self._comm = self._duplicate(comm)
            self._must_free = True
        return_errors(self._comm)

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`.

        Raises:
            ProtocolError: a rank sends more than ``max_message_bytes``.
        """
        tag = self._tag(TAG_MESSAGE)
        inboxes = {source: self._inbox(source, tag) for source in sources}
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
                    self._comm.Isend([piece, MPI.BYTE], dest=self.members[target], tag=tag)
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
        if self.n_ranks < self._comm.Get_size() or self.epoch > 0:
            return self._begin_reduction_of_some(words, count)
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
        return tuple(self.members.index(rank) for rank in ranks if rank in self.members)

    def port(self) -> MpiPort:
        """Return this rank's port for alarms, beside the transport; its parties are ``members``."""
        return MpiPort(self._comm)

    def successor(self, lost: Collection[int]) -> MpiTransport:
        """Return the transport of those who are left, in the next epoch; nothing is sent.

        Args:
            lost: ranks of this transport; what they still send is never looked at.
        """
        left = [member for rank, member in enumerate(self.members) if rank not in lost]
        following = MpiTransport(
            self._comm, self.deadline_s, (), members=left, epoch=self.epoch + 1
        )
        following.names = tuple(name for rank, name in enumerate(self.names) if rank not in lost)
        following.meter, following.watch = self.meter, self.watch
        following.max_message_bytes = self.max_message_bytes
        return following

    def _inbox(self, source: int, tag: int) -> Inbox:
        name = self.party_names([source])
        return Inbox(self._comm, self.members[source], tag, self.max_message_bytes, name)

    def _duplicate(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        duplicate, request = comm.Idup()
        with Deadline(self, self._others(), (duplicate, request)) as deadline:
            deadline.wait(request.Test, list)
        return duplicate

    def _begin(
        self,
        outgoing: Mapping[int, Block],
        incoming: Mapping[int, Block],
        tag: int,
        on_done: Callable[[], None] | None = None,
    ) -> Requests:
        """Post blocks whose lengths both sides know; nothing is copied."""

        def count() -> None:
            for block in outgoing.values():
                self.meter.count_sent(block.nbytes)
            for block in incoming.values():
                self.meter.count_received(block.nbytes)

        ranks = {*outgoing, *incoming}
        requests = Requests(self, ranks, (outgoing, incoming), on_done or count)
        with Deadline(self, ranks, requests):
            for source, block in incoming.items():
                member = self.members[source]
                for piece in block_pieces(block):
                    request = self._comm.Irecv([piece, MPI.BYTE], source=member, tag=self._tag(tag))
                    requests.add_receive(request, source, piece.nbytes)
            for target, block in outgoing.items():
                member = self.members[target]
                for piece in block_pieces(block):
                    send = self._comm.Isend([piece, MPI.BYTE], dest=member, tag=self._tag(tag))
                    requests.add(send)
        return requests

    def _begin_reduction_of_some(self, words: NDArray[Any], count: Callable[[], None]) -> Requests:
        """Add up without MPI's reduction, which takes all ranks of a communicator.

        Each rank sends its words to all others: vectors that are reduced so are short.
        """
        own = words.copy().view(np.uint8)
        inbox = {rank: np.empty_like(own) for rank in self._others()}

        def add_up() -> None:
            for block in inbox.values():
                np.add(words, block.view(words.dtype), out=words)
            count()

        outgoing = dict.fromkeys(self._others(), own)
        return self._begin(outgoing, inbox, TAG_REDUCE, add_up)

    def _tag(self, kind: int) -> int:
        return self.epoch * TAGS_PER_EPOCH + kind

    def _others(self) -> list[int]:
        """Return the other ranks, the next one first, so that not all send to one at once."""
        return [(self.rank + step) % self.n_ranks for step in range(1, self.n_ranks)]
