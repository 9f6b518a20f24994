"""All parties in one process, one thread each: the transport of `run_round()` and the tests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import PartyLost, ProtocolError
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Block, check_reducible

T = TypeVar("T")
# A thread that waits looks this often whether another party has failed.
_POLL_S = 0.02


class _Kind(Enum):
    """What a message is part of: order holds within a kind only, as with tags of MPI."""

    MESSAGE = auto()
    SCATTER = auto()
    GATHER = auto()
    REDUCE = auto()


class MemoryNetwork:
    """Mailboxes between ``n_ranks`` threads; closed for all as soon as one of them fails."""

    def __init__(self, n_ranks: int, deadline_s: float = 60.0) -> None:
        self.n_ranks = n_ranks
        self.deadline_s = deadline_s
        self.failed = threading.Event()
        self._boxes: dict[tuple[int, int, _Kind], queue.SimpleQueue[bytes]] = {}

    def put(self, source: int, target: int, kind: _Kind, message: bytes) -> None:
        """Deliver a message."""
        self._box(source, target, kind).put(bytes(message))

    def get(self, source: int, target: int, kind: _Kind) -> bytes:
        """Wait for the next message of a kind from ``source`` to ``target``."""
        box = self._box(source, target, kind)
        for _ in range(max(1, round(self.deadline_s / _POLL_S))):
            try:
                return box.get(timeout=_POLL_S)
            except queue.Empty:
                if self.failed.is_set():
                    raise PartyLost("another party failed", ()) from None
        raise PartyLost(f"party {source} sent nothing for {self.deadline_s:g} s", (source,))

    def _box(self, source: int, target: int, kind: _Kind) -> queue.SimpleQueue[bytes]:
        # One call of a built-in method: threads that come together get the same box.
        return self._boxes.setdefault((source, target, kind), queue.SimpleQueue())


class MemoryTransport:
    """One rank's end of a `MemoryNetwork`; implements `Transport`."""

    def __init__(self, network: MemoryNetwork, rank: int) -> None:
        self.rank = rank
        self.n_ranks = network.n_ranks
        self.meter = Meter()
        self._network = network

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`."""
        for target, message in outgoing.items():
            self.meter.count_sent(len(message))
            self._network.put(self.rank, target, _Kind.MESSAGE, message)
        received = {
            source: self._network.get(source, self.rank, _Kind.MESSAGE) for source in sources
        }
        for message in received.values():
            self.meter.count_received(len(message))
        return received

    def allgather(self, message: bytes) -> list[bytes]:
        """See `Transport.allgather`."""
        others = [rank for rank in range(self.n_ranks) if rank != self.rank]
        received = self.exchange(dict.fromkeys(others, message), others)
        return [received.get(rank, message) for rank in range(self.n_ranks)]

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> _Arrivals:
        """See `Transport.begin_scatter`."""
        outgoing = {rank: block for rank, block in enumerate(blocks) if rank != self.rank}
        return self._begin(_Kind.SCATTER, outgoing, inbox)

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> _Arrivals:
        """See `Transport.begin_gather`."""
        return self._begin(_Kind.GATHER, dict.fromkeys(inbox, own), inbox)

    def begin_allreduce(self, words: NDArray[Any]) -> _Arrivals:
        """See `Transport.begin_allreduce`; counted as the messages that it takes here."""
        check_reducible(words)
        others = [rank for rank in range(self.n_ranks) if rank != self.rank]
        inbox = {rank: np.empty(words.nbytes, dtype=np.uint8) for rank in others}

        def add_up() -> None:
            for block in inbox.values():
                np.add(words, block.view(words.dtype), out=words)

        own = dict.fromkeys(others, words.view(np.uint8))
        arrivals = self._begin(_Kind.REDUCE, own, inbox)
        arrivals.then = add_up
        return arrivals

    def close(self) -> None:
        """See `Transport.close`; there is nothing to give back."""

    def _begin(
        self, kind: _Kind, outgoing: Mapping[int, Block], inbox: Mapping[int, Block]
    ) -> _Arrivals:
        messages = {target: block.tobytes() for target, block in outgoing.items()}
        for target, message in messages.items():
            self.meter.count_sent(len(message))
            self._network.put(self.rank, target, kind, message)

        def take(source: int) -> bytes:
            message = self._network.get(source, self.rank, kind)
            self.meter.count_received(len(message))
            return message

        def is_unchanged() -> bool:
            return all(
                outgoing[target].tobytes() == message for target, message in messages.items()
            )

        return _Arrivals(take, inbox, is_unchanged)


class _Arrivals:
    """Blocks that other threads deliver; implements `Pending`.

    Attributes:
        then: called once all are there.
    """

    def __init__(
        self,
        take: Callable[[int], bytes],
        inbox: Mapping[int, Block],
        is_unchanged: Callable[[], bool],
    ) -> None:
        self.then: Callable[[], None] = lambda: None
        self._take = take
        self._is_unchanged = is_unchanged
        self._inbox = inbox
        self._done = False

    def poll(self) -> bool:
        """See `Pending.poll`; blocks are taken by `wait` only."""
        return self._done

    def wait(self) -> None:
        """See `Pending.wait`.

        Raises:
            ProtocolError: a block has another length than its buffer; or a buffer was changed
                while it was under way: over MPI, the others would have got something else.
        """
        if not self._done:
            if not self._is_unchanged():
                raise ProtocolError("a buffer was changed before its bytes had left")
            self._done = True
            for source, block in self._inbox.items():
                message = self._take(source)
                if len(message) != block.nbytes:
                    raise ProtocolError(
                        f"rank {source} sent a block of {len(message)} bytes, expected are "
                        f"{block.nbytes}; give all ranks the same settings"
                    )
                block[:] = np.frombuffer(message, dtype=np.uint8)
            self.then()


def run_parties(
    n_ranks: int, party: Callable[[MemoryTransport], T], deadline_s: float = 60.0
) -> list[T]:
    """Run ``party`` once per rank, each in a thread of its own; return results by rank.

    Raises:
        Exception: the first failure that is not itself a consequence of another one.
    """
    network = MemoryNetwork(n_ranks, deadline_s)
    results: dict[int, T] = {}
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = party(MemoryTransport(network, rank))
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failures.append(error)
            network.failed.set()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((f for f in failures if not isinstance(f, PartyLost)), failures[0])
    return [results[rank] for rank in range(n_ranks)]
