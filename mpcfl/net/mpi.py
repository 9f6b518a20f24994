"""The transport over MPI: non-blocking requests, polled against a deadline.

A blocking MPI call can't be timed out, so nothing here waits in one: even a duplicate of a
communicator is polled for. (`close` frees that duplicate, which is collective; it is not
called once something has failed.) A rank that waits sleeps with back-off (at most 1 ms), so
that CPU seconds mean work. Only upper-case (buffer) calls of mpi4py appear here; the
lower-case ones pickle.

Assumes nothing of the network: messages are opaque. Does not protect: see `channel.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpcfl.errors import PartyLost
from mpcfl.net.meter import Meter

_TAG_MESSAGE = 1
_TAG_BLOCK = 2
# MPI counts are 32-bit; a message is cut into pieces of this many bytes, and a piece that
# is shorter than this ends it.
_PIECE_BYTES = 1 << 28
_MAX_SLEEP_S = 1e-3
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
        _return_errors(self._comm)

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`."""
        inboxes = {source: _Inbox(self._comm, source) for source in sources}
        sends: list[MPI.Request] = []
        in_use = (inboxes, sends, outgoing)
        with _Deadline(self, (*outgoing, *sources), in_use) as deadline:
            for target, message in outgoing.items():
                self._post_sends(target, message, _TAG_MESSAGE, sends)
            deadline.wait(
                lambda: (
                    [s for s, inbox in inboxes.items() if not inbox.poll()],
                    MPI.Request.Testall(sends),
                )
            )
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

    def allreduce(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """See `Transport.allreduce`.

        Reduce-scatter, then allgather, each as one direct exchange between all pairs: 2 (n-1)/n
        vectors leave and reach every rank, which is the least that any algorithm needs.
        """
        if self.n_ranks == 1:
            return values
        slices = np.array_split(values, self.n_ranks)
        own, others = slices[self.rank], self._others()
        inbox = np.empty((len(others), own.size), dtype=np.uint64)
        self._swap({rank: slices[rank] for rank in others}, dict(zip(others, inbox, strict=True)))
        for summand in inbox:
            own += summand
        self._swap(dict.fromkeys(others, own), {rank: slices[rank] for rank in others})
        return values

    def close(self) -> None:
        """See `Transport.close`: Open MPI has a limited number of communicators.

        Frees the duplicate, once, and not after a failure, when other ranks may never come.
        Does nothing to a communicator that is used as it is.
        """
        if self._must_free:
            self._must_free = False
            self._comm.Free()

    def abandon(self, in_use: object) -> None:
        """Keep what MPI may still use after a failure; `close` does nothing from then on."""
        _abandoned.append(in_use)
        self._must_free = False

    def _duplicate(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        duplicate, request = comm.Idup()
        with _Deadline(self, self._others(), (duplicate, request)) as deadline:
            deadline.wait(lambda: ([], request.Test()))
        return duplicate

    def _post_sends(
        self,
        target: int,
        message: bytes | NDArray[np.uint64],
        tag: int,
        requests: list[MPI.Request],
    ) -> None:
        """Post sends; those before a failure are in ``requests`` too, as `extend` goes by item."""
        requests.extend(
            self._comm.Isend([piece, MPI.BYTE], dest=target, tag=tag) for piece in _pieces(message)
        )

    def _swap(
        self,
        outgoing: Mapping[int, NDArray[np.uint64]],
        incoming: Mapping[int, NDArray[np.uint64]],
    ) -> None:
        """Exchange blocks whose sizes both sides know, without copies."""
        receives: dict[int, list[MPI.Request]] = {source: [] for source in incoming}
        sends: list[MPI.Request] = []
        in_use = (receives, sends, incoming, outgoing)
        with _Deadline(self, (*outgoing, *incoming), in_use) as deadline:
            for source, block in incoming.items():
                for piece in _pieces(block):
                    request = self._comm.Irecv([piece, MPI.BYTE], source=source, tag=_TAG_BLOCK)
                    receives[source].append(request)
            for target, block in outgoing.items():
                self._post_sends(target, block, _TAG_BLOCK, sends)
            deadline.wait(
                lambda: (
                    [s for s, requests in receives.items() if not MPI.Request.Testall(requests)],
                    MPI.Request.Testall(sends),
                )
            )
        for block in outgoing.values():
            self.meter.count_sent(block.nbytes)
        for block in incoming.values():
            self.meter.count_received(block.nbytes)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.n_ranks) if rank != self.rank]

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
            ranks = MPI.Group.Translate_ranks(failed, None, self._comm.Get_group())
        except (MPI.Exception, NotImplementedError):
            return ()
        return tuple(int(rank) for rank in ranks)


class _Inbox:
    """One message on its way in from one source, piece by piece."""

    __slots__ = ("_comm", "_done", "_piece", "_request", "_source", "content")

    def __init__(self, comm: MPI.Intracomm, source: int) -> None:
        self._comm, self._source = comm, source
        self._request: MPI.Request | None = None
        self._piece = bytearray()
        self._done = False
        self.content = bytearray()

    def poll(self) -> bool:
        """Make progress; return True once the whole message is in ``content``."""
        while not self._done:
            if self._request is None and not self._match():
                return False
            if self._request is not None and not self._request.Test():
                return False
            self.content += self._piece
            self._done = len(self._piece) < _PIECE_BYTES
            self._request = None
        return True

    def _match(self) -> bool:
        status = MPI.Status()
        message = self._comm.Improbe(source=self._source, tag=_TAG_MESSAGE, status=status)
        if message is None:
            return False
        self._piece = bytearray(status.Get_count(MPI.BYTE))
        self._request = message.Irecv([self._piece, MPI.BYTE])
        return True


class _Deadline:
    """Turns a peer's death and a silent peer into `PartyLost` with its name.

    Args:
        transport: whose deadline and names to use.
        ranks: whom it waits for.
        in_use: requests and buffers, kept alive if anything fails.
    """

    def __init__(self, transport: MpiTransport, ranks: Iterable[int], in_use: object) -> None:
        self._transport = transport
        self._ranks = tuple(ranks)
        self._in_use = in_use
        self._end = time.monotonic() + transport.deadline_s

    def __enter__(self) -> _Deadline:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._transport.abandon(self._in_use)
        if not isinstance(error, MPI.Exception):
            return
        # A dead peer shows as one of several error classes, by the call that met it.
        ranks = self._transport.failed_ranks()
        if not ranks:
            raise PartyLost(f"MPI failed: {error.Get_error_string()}") from error
        who = self._transport.party_names(ranks)
        raise PartyLost(f"{who} died during the run", ranks) from error

    def wait(self, poll: Callable[[], tuple[list[int], bool]]) -> None:
        """Poll until no source is missing and all sends are done."""
        sleep_s = 0.0
        while True:
            missing, sent = poll()
            if not missing and sent:
                return
            if time.monotonic() > self._end:
                ranks = tuple(missing or self._ranks)
                raise PartyLost(
                    f"{self._transport.party_names(ranks)} did not answer within "
                    f"{self._transport.deadline_s:g} s; see whether it still runs, or raise "
                    "aggregation.deadline_s",
                    ranks,
                )
            time.sleep(sleep_s)
            sleep_s = min(_MAX_SLEEP_S, sleep_s * 1.5 + 1e-6)


def _return_errors(comm: MPI.Intracomm) -> None:
    """Have errors on a communicator raised here; by MPI's default they end the process."""
    current = comm.Get_errhandler()
    if current != MPI.ERRORS_RETURN:
        comm.Set_errhandler(MPI.ERRORS_RETURN)
    current.Free()


def _pieces(message: bytes | NDArray[np.uint64]) -> list[memoryview]:
    """Cut a buffer into pieces below the 32-bit limit; the last one is short, or empty."""
    if isinstance(message, np.ndarray):
        if message.size == 0:
            return []
        view = message.data.cast("B")
        return [view[i : i + _PIECE_BYTES] for i in range(0, len(view), _PIECE_BYTES)]
    view = memoryview(message)
    return [view[i : i + _PIECE_BYTES] for i in range(0, len(view) + 1, _PIECE_BYTES)]
