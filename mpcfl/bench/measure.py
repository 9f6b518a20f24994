"""What one rank of a cell does: open a session, check the sum, time the stages.

The opened sum is compared with the exact sum before anything is timed, and after every value;
only a peer that says how inexact it is may miss it by so much.

The kernel's count of bytes is read when all ranks are ready for the first timed value, and when
all have ended the last: apart from the values it holds the barriers between them, some hundred
bytes each.
"""

from __future__ import annotations

import resource
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from mpcfl.bench.cells import Cell
from mpcfl.bench.integers import cell_levels, expected_sum
from mpcfl.bench.link_speed import transmitted_bytes, transmitted_packets
from mpcfl.bench.peers import PEERS, PeerSession
from mpcfl.bench.record import SETUP, Measurement, Parameters, Stage, Value
from mpcfl.config import Custody
from mpcfl.errors import ProtocolError
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumSettings
from mpcfl.secagg.registry import load_backend

# Backends without a key ignore it; the settings want a number.
_ANY_KEY_BITS = 3072
_KIB = 1024

StageSeconds = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """What one rank measured; sent to all ranks as JSON after the last value."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    setup_s: float
    warmups: tuple[StageSeconds, ...]
    values: tuple[StageSeconds, ...]
    bytes_sent: Mapping[str, int]
    bytes_received: Mapping[str, int]
    messages: Mapping[str, int]
    cpu_seconds: float
    peak_rss_bytes: int
    interface_bytes: int
    interface_packets: int
    largest_error: float


_NUMBERS: TypeAdapter[RankNumbers] = TypeAdapter(RankNumbers)


class Traffic:
    """Splits a meter's running totals by stage."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last = (0, 0, 0)
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.messages: dict[str, int] = {}
        self.skip()

    def skip(self) -> None:
        """Leave out what was counted since the last call."""
        self._last = self._now()

    def book(self, stage: str) -> None:
        """Add what was counted since the last call to ``stage``."""
        now = self._now()
        for by_stage, new, old in zip(
            (self.sent, self.received, self.messages), now, self._last, strict=True
        ):
            by_stage[stage] = by_stage.get(stage, 0) + new - old
        self._last = now

    def _now(self) -> tuple[int, int, int]:
        return self._meter.bytes_sent, self._meter.bytes_received, self._meter.messages_sent


@dataclass(frozen=True, slots=True)
class _Task:
    """What one rank brings to every sum of a cell, and what it has to open.

    Attributes:
        levels: None at an aggregator.
        expected: the exact sum; empty at an aggregator.
        tolerance: by which an opened coordinate may miss it.
    """

    levels: Levels | None
    expected: Levels
    tolerance: float


@dataclass(frozen=True, slots=True)
class _Timed:
    """One sum at one rank."""

    seconds: StageSeconds
    cpu_seconds: float
    error: float


def measure(cell: Cell, transport: Transport) -> Measurement:
    """Run one cell at one rank; all ranks call it together and get the same answer.

    Raises:
        BackendUnavailable: the backend or its package is not there.
        ProtocolError: the opened sum is not the sum of the inputs.
    """
    tolerance, opens = _find_backend(cell.parameters)
    task = _make_task(cell.parameters, transport.rank, tolerance)
    run_id = _agree_run_id(transport)
    traffic = Traffic(transport.meter)
    start = time.perf_counter()
    session = opens(transport, run_id)
    setup_s = time.perf_counter() - start
    traffic.book(SETUP)
    try:
        error = _check_sum(session, transport, task)
        scrap = Traffic(transport.meter)
        warmups = [_time_sum(session, transport, task, scrap) for _ in range(cell.warmups)]
        transport.allgather(b"")  # what other ranks still send belongs to the warm-ups
        kernel_start = _kernel_counts(cell.interface)
        timed = [_time_sum(session, transport, task, traffic) for _ in range(cell.values)]
        transport.allgather(b"")
        kernel_end = _kernel_counts(cell.interface)
    finally:
        session.close()
    numbers = RankNumbers(
        setup_s=setup_s,
        warmups=tuple(value.seconds for value in warmups),
        values=tuple(value.seconds for value in timed),
        bytes_sent=traffic.sent,
        bytes_received=traffic.received,
        messages=traffic.messages,
        cpu_seconds=sum(value.cpu_seconds for value in timed),
        # Linux counts in KiB.
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        interface_bytes=kernel_end[0] - kernel_start[0],
        interface_packets=kernel_end[1] - kernel_start[1],
        largest_error=max(error, *(value.error for value in (*warmups, *timed))),
    )
    gathered = transport.allgather(_NUMBERS.dump_json(numbers))
    return _join([_NUMBERS.validate_json(message) for message in gathered], bool(cell.interface))


def _make_task(parameters: Parameters, rank: int, tolerance: float) -> _Task:
    if rank >= parameters.parties:
        return _Task(None, np.empty(0, dtype=np.int64), tolerance)
    return _Task(cell_levels(parameters, rank), expected_sum(parameters), tolerance)


def _find_backend(parameters: Parameters) -> tuple[float, Callable[[Transport, str], PeerSession]]:
    """Import a backend or a peer; return its tolerance and what opens its session.

    Nothing else is imported, so that the memory of a backend is not that of another one's library.
    """
    peer = PEERS.get(parameters.backend)
    factory: Callable[[Transport, SumSettings], PeerSession] = (
        load_backend(parameters.backend) if peer is None else peer.opens
    )
    tolerance = 0.0 if peer is None else peer.tolerance * parameters.parties

    def opens(transport: Transport, run_id: str) -> PeerSession:
        return factory(transport, _settings(parameters, run_id))

    return tolerance, opens


def _kernel_counts(interface: str) -> tuple[int, int]:
    return transmitted_bytes(interface), transmitted_packets(interface)


def _agree_run_id(transport: Transport) -> str:
    # Rank 0 names the session; the id is public and only has to be fresh.
    return transport.allgather(secrets.token_hex(16).encode())[0].decode()


def _settings(parameters: Parameters, run_id: str) -> SumSettings:
    return SumSettings(
        dim=parameters.dim,
        modulus_bits=parameters.modulus_bits,
        key_bits=_ANY_KEY_BITS if parameters.key_bits is None else parameters.key_bits,
        custody=Custody.HOLDER if parameters.custody is None else Custody(parameters.custody),
        run_id=run_id,
        neighbors=parameters.neighbors,
    )


def _copy(levels: Levels | None) -> Levels | None:
    """Return what a backend may use as working space."""
    return None if levels is None else levels.copy()


def _error(opened: Any, task: _Task) -> float:
    """Return the largest distance of an opened coordinate from the exact sum.

    It is infinite where the two can't be compared: another shape, or another type of an exact sum.
    """
    exact = task.expected
    if opened.shape != exact.shape or (task.tolerance == 0 and opened.dtype != exact.dtype):
        return float("inf")
    if np.array_equal(opened, exact):
        return 0.0
    distance = float(np.abs(opened.astype(np.float64) - exact.astype(np.float64)).max())
    # Unequal integers are at least 1 apart, even where float64 can't tell.
    return max(distance, 1.0) if opened.dtype.kind == "i" else distance


def _check_sum(session: PeerSession, transport: Transport, task: _Task) -> float:
    """Make one sum; refuse to go on, at all ranks together, if any rank opened a wrong one.

    Returns:
        The largest error at this rank.
    """
    opened = session.open(session.aggregate(session.protect(_copy(task.levels))))
    error = _error(opened, task)
    answers = transport.allgather(b"\x01" if error <= task.tolerance else b"\x00")
    wrong = [rank for rank, answer in enumerate(answers) if answer != b"\x01"]
    if wrong:
        raise ProtocolError(
            f"the opened sum is not the sum of the inputs at ranks {wrong}; nothing was timed, "
            "run the contract tests of this backend"
        )
    return error


def _time_sum(session: PeerSession, transport: Transport, task: _Task, traffic: Traffic) -> _Timed:
    """Return the seconds of the three stages and the processor seconds of one sum."""
    handed: Any = _copy(task.levels)
    steps: tuple[Callable[[Any], Any], ...] = (session.protect, session.aggregate, session.open)
    seconds = []
    transport.allgather(b"")  # the barrier: nobody starts before all are ready
    traffic.skip()
    cpu_start = time.process_time()
    for stage, step in zip(Stage, steps, strict=True):
        start = time.perf_counter()
        handed = step(handed)
        seconds.append(time.perf_counter() - start)
        traffic.book(stage.value)
    cpu_seconds = time.process_time() - cpu_start
    error = _error(handed, task)
    if not error <= task.tolerance:  # nor if it is no number
        raise ProtocolError("a timed sum is not the sum of the inputs; the cell is void")
    return _Timed((seconds[0], seconds[1], seconds[2]), cpu_seconds, error)


def _join(ranks: list[RankNumbers], has_interface: bool) -> Measurement:
    """Turn one object per rank into tuples indexed by rank."""
    return Measurement(
        setup_s=tuple(r.setup_s for r in ranks),
        warmups=_values([r.warmups for r in ranks]),
        values=_values([r.values for r in ranks]),
        bytes_sent=_by_stage([r.bytes_sent for r in ranks]),
        bytes_received=_by_stage([r.bytes_received for r in ranks]),
        messages=_by_stage([r.messages for r in ranks]),
        cpu_seconds=tuple(r.cpu_seconds for r in ranks),
        peak_rss_bytes=tuple(r.peak_rss_bytes for r in ranks),
        interface_bytes=tuple(r.interface_bytes for r in ranks if has_interface),
        interface_packets=tuple(r.interface_packets for r in ranks if has_interface),
        largest_error=max(r.largest_error for r in ranks),
    )


def _values(by_rank: list[tuple[StageSeconds, ...]]) -> tuple[Value, ...]:
    return tuple(
        Value(
            protect=tuple(seconds[0] for seconds in same_sum),
            aggregate=tuple(seconds[1] for seconds in same_sum),
            open=tuple(seconds[2] for seconds in same_sum),
            total=tuple(sum(seconds) for seconds in same_sum),
        )
        for same_sum in zip(*by_rank, strict=True)
    )


def _by_stage(by_rank: list[Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    return {stage: tuple(counts[stage] for counts in by_rank) for stage in by_rank[0]}
