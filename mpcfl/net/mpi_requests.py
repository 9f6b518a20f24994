"""MPI requests under a deadline: what `mpi.py` posts, this waits for.

Nothing here blocks in MPI: requests are polled, with a sleep in between that grows to 1 ms.
A dead peer and a silent peer both become `PartyLost`, with a name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpcfl.errors import PartyLost, ProtocolError
from mpcfl.net.meter import Meter

TAG_ALARM, TAG_MESSAGE, TAG_SCATTER, TAG_GATHER, TAG_REDUCE = range(5)
# Tags of one epoch of a transport; alarms have the same one in all.
TAGS_PER_EPOCH = 8
# MPI counts are 32-bit; a message is cut into pieces of this many bytes, and a piece that
# is shorter than this ends it.
PIECE_BYTES = 1 << 28
_MAX_SLEEP_S = 1e-3
# The first polls only give way to other processes on the same core.
_FIRST_SLEEP_S = 1e-6
_SLEEP_GROWTH = 1.5
# How often a wait asks who is dead: MPI may know it and still leave a request pending for ever.
_ASK_DEAD_S = 0.05
# What is under way: MPI reads and writes the buffers of a request until it is done, also if its
# owner has failed elsewhere and forgotten it.
_under_way: set[Requests] = set()


class Owner(Protocol):
    """Whose requests these are: a transport that knows names, the dead and its deadline."""

    deadline_s: float
    meter: Meter
    watch: Callable[[], None]

    def party_names(self, ranks: Iterable[int]) -> str:
        """Return the names of some ranks, for an error text."""
        ...

    def failed_ranks(self) -> tuple[int, ...]:
        """Return the ranks that MPI knows to be dead."""
        ...

    def abandon(self, in_use: object) -> None:
        """Keep what MPI may still use after a failure."""
        ...


class Deadline:
    """Turns a peer's death and a silent peer into `PartyLost` with its name.

    Args:
        owner: whose deadline and names to use.
        ranks: whom it waits for.
        in_use: requests and buffers, kept alive if anything fails.
    """

    def __init__(self, owner: Owner, ranks: Iterable[int], in_use: object) -> None:
        self._owner = owner
        self._ranks = tuple(ranks)
        self._in_use = in_use
        self._end = time.monotonic() + owner.deadline_s

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self._owner.abandon(self._in_use)
        if not isinstance(error, MPI.Exception):
            return
        # A dead peer shows as one of several error classes, by the call that met it.
        ranks = self._owner.failed_ranks()
        if not ranks and error.Get_error_class() == MPI.ERR_REVOKED:
            raise PartyLost("another rank gave up; see the error there") from error
        if not ranks:
            raise PartyLost(f"MPI failed: {error.Get_error_string()}") from error
        raise self._died(ranks) from error

    def wait(self, is_done: Callable[[], bool], missing: Callable[[], Sequence[int]]) -> None:
        """Poll until ``is_done``; fail for a dead rank at once, at the deadline for a silent one.

        Args:
            is_done: makes progress; what came before its sender died is still taken.
            missing: tells from whom something is awaited.
        """
        sleep_s = 0.0
        next_ask = time.monotonic() + _ASK_DEAD_S
        while not is_done():
            now = time.monotonic()
            if now > next_ask:
                next_ask = now + _ASK_DEAD_S
                self._look_for_alarms(missing)
                dead = tuple(rank for rank in self._owner.failed_ranks() if rank in self._ranks)
                if dead:
                    raise self._died(dead)
            if now > self._end:
                ranks = tuple(missing()) or self._ranks
                raise PartyLost(
                    f"{self._owner.party_names(ranks)} did not answer within "
                    f"{self._owner.deadline_s:g} s; see whether it still runs, or raise "
                    "aggregation.deadline_s",
                    ranks,
                )
            time.sleep(sleep_s)
            sleep_s = min(_MAX_SLEEP_S, sleep_s * _SLEEP_GROWTH + _FIRST_SLEEP_S)

    def _look_for_alarms(self, missing: Callable[[], Sequence[int]]) -> None:
        try:
            self._owner.watch()
        except PartyLost as lost:
            waited_s = time.monotonic() - self._end + self._owner.deadline_s
            lost.awaited = dict.fromkeys(missing(), waited_s)
            raise

    def _died(self, ranks: tuple[int, ...]) -> PartyLost:
        return PartyLost(f"{self._owner.party_names(ranks)} died during the run", ranks)


class Requests:
    """Requests that were posted together; implements `Pending`.

    Blocks of a wrong length are found once they are here. Open MPI itself handles a long block
    (above some KiB) badly whose buffer is too short: callers compare their settings first.

    Args:
        owner: the transport.
        ranks: whom they wait for.
        buffers: what the requests read and write; kept alive until they are done.
        on_done: called once, when all are done.
    """

    def __init__(
        self, owner: Owner, ranks: Iterable[int], buffers: object, on_done: Callable[[], None]
    ) -> None:
        self._owner = owner
        self._ranks = tuple(ranks)
        self._buffers = buffers
        self._on_done: Callable[[], None] | None = on_done
        self._all: list[MPI.Request] = []
        self._statuses: list[MPI.Status] = []
        # By place in the list: from whom a request receives, and how many bytes.
        self._expected: dict[int, tuple[int, int]] = {}

    def add(self, request: MPI.Request) -> None:
        """Add a request that receives nothing from one rank alone."""
        _under_way.add(self)
        self._all.append(request)
        self._statuses.append(MPI.Status())

    def add_receive(self, request: MPI.Request, source: int, n_bytes: int) -> None:
        """Add a request that has to receive ``n_bytes`` from ``source``."""
        self._expected[len(self._all)] = source, n_bytes
        self.add(request)

    def poll(self) -> bool:
        """See `Pending.poll`."""
        with self._deadline():
            return self._finished()

    def wait(self) -> None:
        """See `Pending.wait`."""
        with self._deadline() as deadline:
            deadline.wait(self._finished, self._missing)

    def arrived(self) -> frozenset[int]:
        """See `Pending.arrived`; a source that sends nothing is not among them."""
        missing = {
            source for place, (source, _) in self._expected.items() if not self._is_here(place)
        }
        return frozenset(source for source, _ in self._expected.values()) - missing

    def _is_here(self, place: int) -> bool:
        """Tell whether a receive is complete; asks only, so that `poll` still finds its status."""
        request, status = self._all[place], MPI.Status()
        try:
            if request == MPI.REQUEST_NULL:
                # A test has taken its status, also one that failed for the sake of another.
                status = self._statuses[place]
            elif not request.Get_status(status):
                return False
        except MPI.Exception:
            return False
        whole = status.Get_count(MPI.BYTE) == self._expected[place][1]
        return whole and status.Get_error() == MPI.SUCCESS

    def _deadline(self) -> Deadline:
        return Deadline(self._owner, self._ranks, self)

    def _finished(self) -> bool:
        if self._on_done is None:
            return True
        try:
            if not MPI.Request.Testall(self._all, self._statuses):
                return False
        except MPI.Exception as error:
            if error.Get_error_class() == MPI.ERR_IN_STATUS:
                raise self._error_in_status() from error
            raise
        self._check_lengths()
        done, self._on_done = self._on_done, None
        self._buffers = None
        _under_way.discard(self)
        done()
        return True

    def _check_lengths(self) -> None:
        for place, (source, n_bytes) in self._expected.items():
            received = self._statuses[place].Get_count(MPI.BYTE)
            if received != n_bytes:
                raise ProtocolError(_wrong_length(source, self._owner))

    def _error_in_status(self) -> Exception:
        """Return what ended the requests, of which MPI says that one or more failed."""
        codes = [status.Get_error() for status in self._statuses]
        for place, (source, _) in self._expected.items():
            if MPI.Get_error_class(codes[place]) == MPI.ERR_TRUNCATE:
                return ProtocolError(_wrong_length(source, self._owner))
        # Some may only be pending; the first that failed says why.
        failures = (MPI.ERR_PENDING, MPI.SUCCESS)
        failed = [code for code in codes if MPI.Get_error_class(code) not in failures]
        return MPI.Exception(failed[0] if failed else MPI.ERR_OTHER)

    def _missing(self) -> list[int]:
        # Not by a test, which would take the request's status away.
        return [s for place, (s, _) in self._expected.items() if not self._all[place].Get_status()]


def _wrong_length(source: int, owner: Owner) -> str:
    where = f" in stage {owner.meter.current}" if owner.meter.current else ""
    return (
        f"{owner.party_names([source])} sent a block of another length than this rank expects"
        f"{where}; it was changed on its way, or the ranks' settings or lengths of vectors differ"
    )


def return_errors(comm: MPI.Intracomm) -> None:
    """Have errors on a communicator raised here; by MPI's default they end the process."""
    current = comm.Get_errhandler()
    if current != MPI.ERRORS_RETURN:
        comm.Set_errhandler(MPI.ERRORS_RETURN)
    current.Free()


def message_pieces(message: bytes) -> list[memoryview]:
    """Cut a message into pieces below the 32-bit limit; the last one is short, or empty."""
    view = memoryview(message)
    return [view[i : i + PIECE_BYTES] for i in range(0, len(view) + 1, PIECE_BYTES)]


def block_pieces(block: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Cut a block, whose length both sides know, into pieces; none where it is empty."""
    return [block[i : i + PIECE_BYTES] for i in range(0, len(block), PIECE_BYTES)]
