"""All parties of a job in this process, one thread each: for notebooks, trials and tests.

The parties go through the same handshake, the same ledgers and the same rounds as ranks do under
MPI (`program.py`); only what carries their messages differs. They share one memory, so nothing
here keeps one party's data from another: it is for data that all lie on one machine anyway.
"""

from __future__ import annotations

import queue
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mpcfl.config import Job
from mpcfl.dp.sampler import BitSource
from mpcfl.errors import PartyLost
from mpcfl.learn.task import Task
from mpcfl.net.handshake import HandshakeContext, authenticate
from mpcfl.net.identity import Identity
from mpcfl.net.memory import Lane, MemoryNetwork, MemoryTransport
from mpcfl.parties.checkpoints import agree_on_beginning
from mpcfl.parties.connection import Carrier, Connection
from mpcfl.parties.events import Ended, Event
from mpcfl.parties.folders import agree_on_folder
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.program import serve_rounds
from mpcfl.parties.rules import check_job, rank_names, require_quorum
from mpcfl.parties.setup import Rank, make_rank
from mpcfl.report.run_folder import require_vacant
from mpcfl.round import party_data

# Called once per party.
MakeTask = Callable[[], Task]


class _Stopped(BaseException):
    """The run was stopped from outside; no `except Exception` of a party sees that."""


class _Network(MemoryNetwork):
    """A network that can be stopped: every party ends at its next message."""

    def __init__(self, n_ranks: int, deadline_s: float) -> None:
        super().__init__(n_ranks, deadline_s)
        self.is_stopped = False

    def stop(self) -> None:
        """End all parties soon."""
        self.is_stopped = True
        self.failed.set()

    def put(self, source: int, target: int, lane: Lane, message: bytes) -> None:
        """See `MemoryNetwork.put`."""
        if self.is_stopped:
            raise _Stopped
        super().put(source, target, lane, message)

    def get(self, source: int, target: int, lane: Lane) -> bytes:
        """See `MemoryNetwork.get`."""
        try:
            return super().get(source, target, lane)
        except PartyLost:
            if self.is_stopped:
                raise _Stopped from None
            raise


@dataclass(frozen=True, slots=True)
class InProcess:
    """What is to be run in this process.

    Attributes:
        job: the run.
        out: a new or empty folder for its results.
        make_task: makes each party's task; by default the one that the job names.
        insecure: allow comparison backends.
        bits: one source per data party for sampling and noise, for tests; empty means the
            operating system.
    """

    job: Job
    out: Path
    make_task: MakeTask | None = None
    insecure: bool = False
    bits: Sequence[BitSource] = ()


def run_in_process(what: InProcess, tell: Callable[[Event], None]) -> Rank:
    """Run a whole job; its folder then holds what `mpcfl run` leaves.

    Args:
        what: the job, and where its results go.
        tell: is told of every event, in the thread that called; what it raises ends the run.

    Returns:
        The lowest data party that came to the end, its model included.

    Raises:
        ConfigError: the job is refused, or the folder is not empty.
        MpcflError: the run can't go on, as under MPI.
        Exception: whatever the task's code raised, where that ended the run.
    """
    check_job(what.job, what.insecure)
    require_vacant(what.out)
    # One after the other: initial weights come from torch's one generator.
    ranks = [_make_rank(what, number) for number in range(what.job.n_ranks)]
    network = _Network(what.job.n_ranks, what.job.aggregation.deadline_s)
    threads = _Threads(what, ranks, network)
    with _one_thread_each(), threads:
        ended = False
        for event in threads.events():
            ended = ended or isinstance(event, Ended)
            tell(event)
    # As under MPI: what the others did without is no error.
    if not ended:
        raise threads.failure()
    return next(rank for rank in ranks if rank.number in threads.finished)


def _make_rank(what: InProcess, number: int) -> Rank:
    task = None if what.make_task is None else what.make_task()
    rank = make_rank(what.job, number, task=task)
    if rank.party is not None and what.bits:
        rank.party = party_data(rank.public, number, rank.party.records, what.bits[number])
    return rank


class _Threads:
    """One thread per party; all of them are gone when the block ends."""

    def __init__(self, what: InProcess, ranks: Sequence[Rank], network: _Network) -> None:
        self.finished: set[int] = set()
        self._what, self._ranks, self._network = what, ranks, network
        self._told: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._live, args=(rank,), name=f"party {rank.number}")
            for rank in ranks
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        if any(thread.is_alive() for thread in self._threads):
            self._network.stop()
        for thread in self._threads:
            thread.join()

    def events(self) -> Iterator[Event]:
        """Yield what the parties tell until the last of them has ended."""
        left = len(self._threads)
        while left:
            event = self._told.get()
            if event is None:
                left -= 1
            else:
                yield event

    def failure(self) -> BaseException:
        """Return what ended the run: rather its cause than what followed from it."""
        causes = (error for error in self._failures if not isinstance(error, PartyLost))
        return next(causes, self._failures[0])

    def _live(self, rank: Rank) -> None:
        transport = MemoryTransport(self._network, rank.number)
        try:
            self._take_part(rank, transport)
            self.finished.add(rank.number)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for this
            self._failures.append(error)
        finally:
            # As where a process ends, which the others see.
            self._network.dead.add(rank.number)
            self._told.put(None)

    def _take_part(self, rank: Rank, transport: MemoryTransport) -> None:
        options = Namespace(resume=None, out=self._what.out)
        with (
            closing(_connected(self._what.job, transport)) as connection,
            closing(agree_on_folder(options, rank, connection)) as place,
        ):
            open_ledgers(rank, connection, place.folder)
            agree_on_beginning(rank, place, connection)
            serve_rounds(rank, place, connection, self._told.put)


def _connected(job: Job, transport: MemoryTransport) -> Connection:
    """Make the handshake, with an identity that nobody knows before or after."""
    names = rank_names(job)
    transport.names = names
    identity = Identity.new()
    agreed = authenticate(
        transport, identity, None, HandshakeContext(job.digest().hex(), names, ())
    )
    numbers = tuple(range(job.n_ranks))
    carrier = Carrier(transport, transport.port(), numbers, lambda left: require_quorum(job, left))
    return Connection(carrier, identity, agreed)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Have torch compute with one thread per party, as ranks do: sums then round alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
