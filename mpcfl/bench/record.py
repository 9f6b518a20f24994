"""The result of one benchmark run, as immutable data with a schema version.

A record holds every raw value, never a mean, and everything needed to judge it: the
parameters, warm-ups, failure, traffic, versions, commit and machine. Records of different
machines never share a table (`summary.py`, `compare.py` refuse them).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpcfl.errors import ConfigError

# History: /1 the first. /2 adds dtype, neighbors and colluding to the parameters. /3 adds links
# between hosts (round_trip_ms, link, what their interfaces sent) and inexact peers (largest_error).
SCHEMA = "mpcfl.bench.record/3"
# What the parameters of earlier schemas left unsaid: the vectors of /1 held int64, its masks came
# from all pairs; messages were not delayed.
_UNSAID: Mapping[str, Mapping[str, Any]] = {
    "mpcfl.bench.record/1": {
        "dtype": "int64", "neighbors": None, "colluding": None, "round_trip_ms": 0.0
    },
    "mpcfl.bench.record/2": {"round_trip_ms": 0.0},
}  # fmt: skip
# The same of a measurement: all was exact, and in one host.
_UNSAID_IN_MEASUREMENT: Mapping[str, Any] = {
    "interface_bytes": [], "interface_packets": [], "largest_error": 0.0
}  # fmt: skip
SHARED_MEMORY = "shared-memory"
_EXACT_KEYS = ConfigDict(extra="forbid", strict=True)


class Phase(StrEnum):
    """Which part of a session the values time."""

    SUM = "sum"  # one sum in an open session: protect, aggregate, open


class Stage(StrEnum):
    """The stages of a sum, in order; the traffic counts have ``setup`` before them."""

    PROTECT = "protect"
    AGGREGATE = "aggregate"
    OPEN = "open"


SETUP = "setup"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What is varied; two records with equal parameters measure the same thing.

    Attributes:
        key_bits: size of a Paillier modulus; None where the backend has no key.
        custody: who holds the private key; None where the backend has no key.
        link: what carries the messages: "shared-memory", or the rate of every host's link in each
            direction, one host per rank, as ``tc`` writes it ("100mbit").
        round_trip_ms: that was added between any two hosts, milliseconds.
        dtype: of the vectors in and out.
        neighbors: k, the ranks that each rank shares masks with; None where these are all
            others, and where the backend has no masks.
        colluding: the colluding parties that k is enough for; None where k is.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    backend: str
    parties: int
    dim: int
    modulus_bits: int
    key_bits: int | None
    custody: str | None
    link: str
    dtype: str
    neighbors: int | None
    colluding: int | None
    round_trip_ms: float = 0.0

    @property
    def variant(self) -> str:
        """The backend with what only some backends vary."""
        key = "" if self.key_bits is None else f" {self.key_bits} bit, {self.custody}"
        graph = "" if self.neighbors is None else f" {self.neighbors} neighbors"
        return f"{self.backend}{key}{graph}"

    @property
    def case(self) -> str:
        """A short name for people."""
        return (
            f"{self.variant}, {self.parties} parties, dim {self.dim}, "
            f"b {self.modulus_bits}, {self.dtype}, {self.network}"
        )

    @property
    def network(self) -> str:
        """The link, with the round trip where one was added."""
        delay = f" + {self.round_trip_ms:g} ms" if self.round_trip_ms else ""
        return f"{self.link}{delay}"

    @property
    def workload(self) -> tuple[int, int, int, str, float, str]:
        """What must be equal for two backends to stand beside each other."""
        return (
            *(self.parties, self.dim, self.modulus_bits, self.link, self.round_trip_ms),
            self.dtype,
        )


@dataclass(frozen=True, slots=True)
class Value:
    """The seconds of one sum; each tuple is indexed by rank. Wall clock from a barrier on."""

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    protect: tuple[float, ...]
    aggregate: tuple[float, ...]
    open: tuple[float, ...]
    total: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Seconds until the slowest rank knew the sum."""
        return max(self.total)

    def stage_seconds(self, stage: Stage) -> float:
        """Return a stage's seconds at the slowest rank, so that the stages add up to `seconds`."""
        by_rank: tuple[float, ...] = getattr(self, stage.value)
        return by_rank[self.total.index(self.seconds)]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the ranks of one run measured; each tuple is indexed by rank.

    Attributes:
        setup_s: seconds to open the session: load the backend's libraries, make and agree keys.
        warmups: values before the timed ones, kept to be judged.
        values: the timed values.
        bytes_sent: by stage, payload at the transport; ``setup`` once, the other stages over
            all timed values together.
        bytes_received: the same, received.
        messages: messages sent, likewise.
        cpu_seconds: processor time of the timed values together.
        peak_rss_bytes: largest resident set of the process, Python and libraries included.
        interface_bytes: that the kernel sent on each host's interface for the timed values
            together, all headers included; empty in shared memory.
        interface_packets: in which it sent them, likewise.
        largest_error: largest distance of an opened coordinate from the exact sum; 0 for every
            backend, since those are exact.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    setup_s: tuple[float, ...]
    warmups: tuple[Value, ...]
    values: tuple[Value, ...]
    bytes_sent: Mapping[str, tuple[int, ...]]
    bytes_received: Mapping[str, tuple[int, ...]]
    messages: Mapping[str, tuple[int, ...]]
    cpu_seconds: tuple[float, ...]
    peak_rss_bytes: tuple[int, ...]
    interface_bytes: tuple[int, ...] = ()
    interface_packets: tuple[int, ...] = ()
    largest_error: float = 0.0

    def bytes_per_sum(self) -> float:
        """Return the bytes that all ranks together sent for one sum, without the set-up."""
        total = sum(sum(by_rank) for stage, by_rank in self.bytes_sent.items() if stage != SETUP)
        return total / len(self.values)


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """What the network between the hosts of a run was, measured before it with TCP alone.

    Attributes:
        shaping: what limits the rate: "tbf", the kernel's token bucket.
        delay: what adds the round trip: "none", "netem" (the kernel), or "relay" (a program of ours
            that holds every packet back).
        one_way_bit_per_s: what TCP delivers from the first host to the last, in the best of up to
            four streams.
        both_ways_bit_per_s: the same in each direction, with streams in both at once.
        round_trip_s: median of single bytes there and back.
        congestion_control: of TCP, by its name in the kernel.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    shaping: str
    delay: str
    one_way_bit_per_s: float
    both_ways_bit_per_s: float
    round_trip_s: float
    congestion_control: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a record was made; no host name, because records are published."""

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one cell: measured, or failed with a reason.

    Attributes:
        run: number of the process launch among those with equal parameters.
        comparable: False for grids too small to draw a conclusion from.
        started_at: UTC, ISO 8601.
        commit: of the checkout, ``-dirty`` appended if it was changed; None outside of one.
        failure: None, or why there is no measurement.
        link: None in shared memory, and where a launch failed before it was measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    schema: str
    grid: str
    case: str
    parameters: Parameters
    phase: Phase
    run: int
    comparable: bool
    started_at: str
    commit: str | None
    machine: Machine
    versions: Mapping[str, str]
    failure: str | None
    measured: Measurement | None
    link: MeasuredLink | None = None

    def __post_init__(self) -> None:
        if (self.failure is None) == (self.measured is None):
            raise ValueError("a record is either measured or failed")

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return _ADAPTER.dump_json(self).decode()


_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record)


def parse_record(text: str, source: str) -> Record:
    """Read one record; ``source`` is named in every error.

    Raises:
        ConfigError: not JSON, an unknown schema, or other keys than this schema has.
    """
    try:
        document: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}: not a JSON record: {error}") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if isinstance(found, str) and found in _UNSAID:
        document = _as_present(document, source)
        text, found = json.dumps(document), SCHEMA
    if found != SCHEMA:
        raise ConfigError(
            f"{source}: schema {found!r} is not known, this version reads {SCHEMA!r}; "
            "read it with the version of mpcfl that wrote it"
        )
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: {key}: {first['msg']}; remake the record") from None


def _as_present(earlier: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a record of an earlier schema as one of this; whatever else is wrong stays so."""
    schema = earlier["schema"]
    completed = {**earlier, "schema": SCHEMA}
    if "link" in earlier:
        raise ConfigError(f"{source}: link: {schema} has no such key; remake the record")
    for key, unsaid in (("parameters", _UNSAID[schema]), ("measured", _UNSAID_IN_MEASUREMENT)):
        part = earlier.get(key)
        if not isinstance(part, dict):
            continue
        later = sorted(unsaid.keys() & part.keys())
        if later:
            raise ConfigError(
                f"{source}: {key}.{later[0]}: {schema} has no such key; remake the record"
            )
        completed[key] = {**part, **unsaid}
    return completed


def load_records(path: Path) -> list[Record]:
    """Read all records of a JSON lines file, or of the ``records.jsonl`` in a folder.

    Raises:
        ConfigError: the file can't be read or a line is no record; the line is named.
    """
    file = path / "records.jsonl" if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: can't read benchmark records: {error.strerror}") from None
    return [parse_record(line, f"{file}, line {i}") for i, line in enumerate(lines, start=1)]


def require_one_machine(records: Iterable[Record]) -> None:
    """Refuse records that were made on different machines.

    Raises:
        ConfigError: names the fingerprints.
    """
    machines = {r.machine.fingerprint: r.machine for r in records}
    if len(machines) > 1:
        found = "; ".join(f"{m.fingerprint} ({m.cpu}, {m.cores} cores)" for m in machines.values())
        raise ConfigError(
            f"the records come from different machines: {found}; run both on one machine, "
            "timings of different machines say nothing about the code"
        )
