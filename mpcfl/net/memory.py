"""All parties in one process, one thread each: the transport of `run_round()` and the tests."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

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
    ALARM = auto()


class Lane(NamedTuple):
    """What messages are part of, and in which epoch of a transport: each has its own order."""

    kind: _Kind
    epoch: int = 0

    @property
    def name(self) -> str:
        """Return the kind's name."""
        return self.kind.name


# The same in all epochs.
_ALARMS = Lane(_Kind.ALARM)


class _Silent(Exception):
    """Nothing came from the other end of a way, and nothing will."""


class MemoryNetwork:
    """Mailboxes between ``n_ranks`` threads; closed for all as soon as one of them fails.

    Attributes:
        failed: set once a thread failed; whoever waits then gives up.
        dead: threads that are gone, where the others are to go on without them.
        watches: by seat, what is called now and then by a thread that waits; raises if waiting
            has lost its sense.
    """

    def __init__(self, n_ranks: int, deadline_s: float = 60.0) -> None:
        self.n_ranks = n_ranks
        self.deadline_s = deadline_s
        self.failed = threading.Event()
        self.dead: set[int] = set()
        self.watches: dict[int, Callable[[], None]] = {}
        self._boxes: dict[tuple[int, int, Lane], queue.SimpleQueue[bytes]] = {}

    def put(self, source: int, target: int, lane: Lane, message: bytes) -> None:
        """Deliver a message."""
        self._box(source, target, lane).put(bytes(message))

    def get(self, source: int, target: int, lane: Lane) -> bytes:
        """Wait for the next message on a lane; the target's watch is called meanwhile."""
        for _ in range(max(1, round(self.deadline_s / _POLL_S))):
            # Asked first: what was said before a death still counts.
            is_dead = source in self.dead
            try:
                return self._box(source, target, lane).get(timeout=_POLL_S)
            except queue.Empty:
                if self.failed.is_set():
                    raise PartyLost("another party failed", ()) from None
                if is_dead:
                    raise _Silent(f"party {source} died") from None
                self.watches.get(target, _nothing)()
        raise _Silent(f"party {source} sent nothing for {self.deadline_s:g} s")

    def has(self, source: int, target: int, lane: Lane) -> bool:
        """Tell whether a message lies there for ``target``, which alone takes it."""
        return not self._box(source, target, lane).empty()

    def _box(self, source: int, target: int, lane: Lane) -> queue.SimpleQueue[bytes]:
        # One call of a built-in method: threads that come together get the same box.
        return self._boxes.setdefault((source, target, lane), queue.SimpleQueue())


class MemoryPort:
    """One party's port for alarms on a `MemoryNetwork`; implements `Port`."""

    def __init__(self, network: MemoryNetwork, own: int) -> None:
        self._network, self._own = network, own

    def post(self, party: int, message: bytes) -> None:
        """See `Port.post`."""
        self._network.put(self._own, party, _ALARMS, message)

    def take(self, party: int) -> bytes | None:
        """See `Port.take`."""
        if not self._network.has(party, self._own, _ALARMS):
            return None
        return self._network.get(party, self._own, _ALARMS)

    def is_dead(self, party: int) -> bool:
        """See `Port.is_dead`."""
        return party in self._network.dead


class MemoryTransport:
    """One rank's end of a `MemoryNetwork`; implements `Transport`.

    Args:
        network: of threads.
        seat: of this one; its rank, unless some threads take no part.
        members: seats of those who take part, ascending; by default all.
        epoch: messages of different epochs are never taken for each other.
        names: a name per rank, for errors.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        seat: int,
        *,
        members: Sequence[int] | None = None,
        epoch: int = 0,
        names: Sequence[str] = (),
    ) -> None:
        self.members = tuple(range(network.n_ranks)) if members is None else tuple(members)
        self.rank = self.members.index(seat)
        self.n_ranks = len(self.members)
        self.epoch = epoch
        self.deadline_s = network.deadline_s
        self.names = tuple(names)
        self.meter = Meter()
        self._network = network
        # By kind and source, the blocks that are awaited from there, in the order of arrival.
        self._awaited: dict[tuple[_Kind, int], deque[_Arrivals]] = {}

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`."""
        for target, message in outgoing.items():
            self.meter.count_sent(len(message))
            self._put(target, _Kind.MESSAGE, message)
        received = {source: self._get(source, _Kind.MESSAGE) for source in sources}
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

    def port(self) -> MemoryPort:
        """Return this party's port for alarms."""
        return MemoryPort(self._network, self.members[self.rank])

    def successor(self, lost: Collection[int]) -> MemoryTransport:
        """Return the transport of those who are left, in the next epoch; nothing is sent."""
        ranks = [rank for rank in range(self.n_ranks) if rank not in lost]
        following = MemoryTransport(
            self._network,
            self.members[self.rank],
            members=[self.members[rank] for rank in ranks],
            epoch=self.epoch + 1,
            names=[self.names[rank] for rank in ranks if rank < len(self.names)],
        )
        following.meter = self.meter
        return following

    @property
    def watch(self) -> Callable[[], None]:
        """Return what is called now and then while this thread waits."""
        return self._network.watches.get(self.members[self.rank], _nothing)

    @watch.setter
    def watch(self, watch: Callable[[], None]) -> None:
        self._network.watches[self.members[self.rank]] = watch

    def _put(self, target: int, kind: _Kind, message: bytes) -> None:
        seats = self.members[self.rank], self.members[target]
        self._network.put(*seats, Lane(kind, self.epoch), message)

    def _get(self, source: int, kind: _Kind) -> bytes:
        seats = self.members[source], self.members[self.rank]
        try:
            return self._network.get(*seats, Lane(kind, self.epoch))
        except _Silent as silent:
            raise PartyLost(str(silent), (source,)) from None

    def _begin(
        self, kind: _Kind, outgoing: Mapping[int, Block], inbox: Mapping[int, Block]
    ) -> _Arrivals:
        messages = {target: block.tobytes() for target, block in outgoing.items()}
        for target, message in messages.items():
            self.meter.count_sent(len(message))
            self._put(target, kind, message)

        def is_there(source: int) -> bool:
            # What comes next may belong to what was begun before.
            is_next = self._awaited[kind, source][0] is arrivals
            seats = self.members[source], self.members[self.rank]
            return is_next and self._network.has(*seats, Lane(kind, self.epoch))

        def take(source: int) -> bytes:
            message = self._get(source, kind)
            self._awaited[kind, source].remove(arrivals)
            self.meter.count_received(len(message))
            return message

        def is_unchanged() -> bool:
            return all(
                outgoing[target].tobytes() == message for target, message in messages.items()
            )

        arrivals = _Arrivals(is_there, take, inbox, is_unchanged)
        for source in inbox:
            self._awaited.setdefault((kind, source), deque()).append(arrivals)
        return arrivals


class _Arrivals:
    """Blocks that other threads deliver; implements `Pending`.

    Attributes:
        then: called once all are there.
    """

    def __init__(
        self,
        is_there: Callable[[int], bool],
        take: Callable[[int], bytes],
        inbox: Mapping[int, Block],
        is_unchanged: Callable[[], bool],
    ) -> None:
        self.then: Callable[[], None] = lambda: None
        self._is_there = is_there
        self._take = take
        self._is_unchanged = is_unchanged
        self._inbox = inbox
        self._done = False
        self._here: set[int] = set()

    def poll(self) -> bool:
        """See `Pending.poll`; blocks are taken by `wait` only."""
        return self._done

    def arrived(self) -> frozenset[int]:
        """See `Pending.arrived`."""
        for source, block in self._inbox.items():
            if source not in self._here and self._is_there(source):
                message = self._take(source)
                if len(message) == block.nbytes:
                    self._land(source, message)
        return frozenset(self._here)

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
            for source in self._inbox:
                if source not in self._here:
                    self._land(source, self._take(source))
            self.then()

    def _land(self, source: int, message: bytes) -> None:
        block = self._inbox[source]
        if len(message) != block.nbytes:
            raise ProtocolError(
                f"rank {source} sent a block of {len(message)} bytes, expected are "
                f"{block.nbytes}; give all ranks the same settings"
            )
        block[:] = np.frombuffer(message, dtype=np.uint8)
        self._here.add(source)


def _nothing() -> None:
    """Whoever waits does nothing else."""


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
