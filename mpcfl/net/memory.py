"""All parties in one process, one thread each: the transport of `run_round()` and the tests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import PartyLost
from mpcfl.net.meter import Meter

T = TypeVar("T")
# A thread that waits looks this often whether another party has failed.
_POLL_S = 0.02


class MemoryNetwork:
    """Mailboxes between ``n_ranks`` threads; closed for all as soon as one of them fails."""

    def __init__(self, n_ranks: int, deadline_s: float = 60.0) -> None:
        self.n_ranks = n_ranks
        self.deadline_s = deadline_s
        self.failed = threading.Event()
        self._boxes: dict[tuple[int, int], queue.SimpleQueue[bytes]] = {
            (source, target): queue.SimpleQueue()
            for source in range(n_ranks)
            for target in range(n_ranks)
        }

    def put(self, source: int, target: int, message: bytes) -> None:
        """Deliver a message."""
        self._boxes[source, target].put(bytes(message))

    def get(self, source: int, target: int) -> bytes:
        """Wait for the next message from ``source`` to ``target``."""
        box = self._boxes[source, target]
        for _ in range(max(1, round(self.deadline_s / _POLL_S))):
            try:
                return box.get(timeout=_POLL_S)
            except queue.Empty:
                if self.failed.is_set():
                    raise PartyLost("another party failed", ()) from None
        raise PartyLost(f"party {source} sent nothing for {self.deadline_s:g} s", (source,))


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
            self._network.put(self.rank, target, message)
        received = {source: self._network.get(source, self.rank) for source in sources}
        for message in received.values():
            self.meter.count_received(len(message))
        return received

    def allgather(self, message: bytes) -> list[bytes]:
        """See `Transport.allgather`."""
        others = [rank for rank in range(self.n_ranks) if rank != self.rank]
        received = self.exchange(dict.fromkeys(others, message), others)
        return [received.get(rank, message) for rank in range(self.n_ranks)]

    def allreduce(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """See `Transport.allreduce`."""
        gathered = self.allgather(values.tobytes())
        total = np.zeros(values.shape, dtype=np.uint64)
        for message in gathered:
            total += np.frombuffer(message, dtype=np.uint64)
        return total

    def close(self) -> None:
        """See `Transport.close`; there is nothing to give back."""


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
