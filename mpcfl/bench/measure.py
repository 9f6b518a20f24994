"""What one rank of a cell does: open a session, check the sum, time the stages.

The integers are public test vectors, equal on every run and for every backend: SHAKE-128
of a label that names the workload and the rank, repeated in longer vectors. They are no
secrets and protect none. The opened sum is compared with the exact sum before anything is
timed, and after every value.
"""

from __future__ import annotations

import hashlib
import resource
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from mpcfl.bench.grid import Cell
from mpcfl.bench.record import SETUP, Measurement, Parameters, Stage, Value
from mpcfl.config import Custody
from mpcfl.errors import ProtocolError
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import IntVector, Levels, SecureSum, SumSettings
from mpcfl.secagg.registry import load_backend

_LABEL = "mpcfl/bench/v2"
# Vectors repeat after this many integers, so that every rank can afford to make those of all.
# A prime: no chunk, slice or block begins at a multiple of it, so a misplaced one is seen.
_PERIOD = 65_521
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


def measure(cell: Cell, transport: Transport) -> Measurement:
    """Run one cell at one rank; all ranks call it together and get the same answer.

    Raises:
        BackendUnavailable: the backend or its package is not there.
        ProtocolError: the opened sum is not the sum of the inputs.
    """
    levels = cell_levels(cell.parameters, transport.rank)
    expected = expected_sum(cell.parameters)
    settings = _agree_settings(cell.parameters, transport)
    traffic = Traffic(transport.meter)
    start = time.perf_counter()
    session = load_backend(cell.parameters.backend)(transport, settings)
    setup_s = time.perf_counter() - start
    traffic.book(SETUP)
    try:
        _check_sum(session, transport, levels, expected)
        scrap = Traffic(transport.meter)
        warmups = [
            _time_sum(session, transport, levels, expected, scrap)[0] for _ in range(cell.warmups)
        ]
        timed = [
            _time_sum(session, transport, levels, expected, traffic) for _ in range(cell.values)
        ]
    finally:
        session.close()
    numbers = RankNumbers(
        setup_s=setup_s,
        warmups=tuple(warmups),
        values=tuple(seconds for seconds, _ in timed),
        bytes_sent=traffic.sent,
        bytes_received=traffic.received,
        messages=traffic.messages,
        cpu_seconds=sum(cpu_seconds for _, cpu_seconds in timed),
        # Linux counts in KiB.
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
    )
    gathered = transport.allgather(_NUMBERS.dump_json(numbers))
    return _join([_NUMBERS.validate_json(message) for message in gathered])


def cell_levels(parameters: Parameters, rank: int) -> Levels:
    """Return a rank's integers, shape (dim,), in the cell's dtype; the same on every machine.

    They fill the ring as far as the sum of all parties surely does not wrap.
    """
    return _repeat(_one_period(parameters, rank), parameters)


def expected_sum(parameters: Parameters) -> Levels:
    """Return the exact sum of all ranks' integers, shape (dim,), in the cell's dtype."""
    periods = (_one_period(parameters, rank) for rank in range(parameters.parties))
    return _repeat(sum(periods, np.zeros(1, dtype=np.int64)), parameters)


def _one_period(parameters: Parameters, rank: int) -> IntVector:
    workload = f"{parameters.parties}/{parameters.dim}/{parameters.modulus_bits}"
    stream = hashlib.shake_128(f"{_LABEL}/{workload}/{rank}".encode())
    words = np.frombuffer(stream.digest(8 * min(parameters.dim, _PERIOD)), dtype="<i8")
    headroom_bits = (parameters.parties - 1).bit_length()
    return words.astype(np.int64) >> np.int64(64 - parameters.modulus_bits + headroom_bits)


def _repeat(period: IntVector, parameters: Parameters) -> Levels:
    # Narrowing is exact: the grid refuses int32 for more than 32 bits.
    levels: Levels = np.resize(period, parameters.dim).astype(parameters.dtype)
    return levels


def _agree_settings(parameters: Parameters, transport: Transport) -> SumSettings:
    # Rank 0 names the session; the id is public and only has to be fresh.
    run_id = transport.allgather(secrets.token_hex(16).encode())[0].decode()
    return SumSettings(
        dim=parameters.dim,
        modulus_bits=parameters.modulus_bits,
        key_bits=_ANY_KEY_BITS if parameters.key_bits is None else parameters.key_bits,
        custody=Custody.HOLDER if parameters.custody is None else Custody(parameters.custody),
        run_id=run_id,
        neighbors=parameters.neighbors,
    )


def _check_sum(session: SecureSum, transport: Transport, levels: Levels, expected: Levels) -> None:
    """Make one sum and refuse to go on, at all ranks together, if any rank opened a wrong one."""
    opened = session.open(session.aggregate(session.protect(levels.copy())))
    right = opened.dtype == expected.dtype and bool(np.array_equal(opened, expected))
    answers = transport.allgather(b"\x01" if right else b"\x00")
    wrong = [rank for rank, answer in enumerate(answers) if answer != b"\x01"]
    if wrong:
        raise ProtocolError(
            f"the opened sum is not the sum of the inputs at ranks {wrong}; nothing was timed, "
            "run the contract tests of this backend"
        )


def _time_sum(
    session: SecureSum,
    transport: Transport,
    levels: Levels,
    expected: Levels,
    traffic: Traffic,
) -> tuple[StageSeconds, float]:
    """Return the seconds of the three stages and the processor seconds of one sum."""
    handed: Any = levels.copy()  # a backend may use its input as working space
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
    if not np.array_equal(handed, expected):
        raise ProtocolError("a timed sum is not the sum of the inputs; the cell is void")
    return (seconds[0], seconds[1], seconds[2]), cpu_seconds


def _join(ranks: list[RankNumbers]) -> Measurement:
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
