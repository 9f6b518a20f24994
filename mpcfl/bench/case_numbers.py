"""What the launches of one case measured, with quartiles: the numbers of the report and tables.

`summary.py` has the numbers that a terminal shows; these go further, to bytes by stage, the
kernel's bytes, memory and the link. Quartiles of seconds are over all timed values; whatever
a launch has once (set-up, bytes, memory, the link) counts once per launch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpcfl.bench.link_speed import bit_per_s
from mpcfl.bench.record import SETUP, SHARED_MEMORY, MeasuredLink, Measurement, Parameters, Record
from mpcfl.bench.summary import Row, group_by_case, quartiles, settled, summarize
from mpcfl.errors import ConfigError

# A packet of a full Ethernet frame: 1,500 bytes with the headers of IP (20) and TCP (20, and 12
# of time stamps), in an Ethernet header of 14. The relay's device carries bare IP packets.
PACKET_HEADER_BYTES = 52
ETHERNET_HEADER_BYTES = 14
RELAY = "relay"


@dataclass(frozen=True, slots=True)
class Spread:
    """A median between its quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the quartiles of at least one value."""
        return cls(*quartiles([float(value) for value in values]))

    def over(self, divisor: float) -> Spread:
        """Return all three over the same number."""
        return Spread(self.low / divisor, self.median / divisor, self.high / divisor)


@dataclass(frozen=True, slots=True)
class LinkNumbers:
    """The network of a case as it was before its launches, and what the kernel counted on it.

    Attributes:
        delay: as in `MeasuredLink`; several if launches differ.
        payload_bytes: of one sum, all ranks together, counted at the transport.
        kernel_bytes: of one sum, all interfaces together; None where it was not counted.
        kernel_packets: that these bytes were in.
    """

    delay: str
    congestion_control: str
    one_way_bit_per_s: Spread
    both_ways_bit_per_s: Spread
    round_trip_s: Spread
    payload_bytes: float
    kernel_bytes: float | None
    kernel_packets: float

    @property
    def framed_bytes(self) -> float:
        """Payload bytes with the headers of all packets, as they pass the interface."""
        ethernet = 0 if self.delay == RELAY else ETHERNET_HEADER_BYTES
        return self.payload_bytes + self.kernel_packets * (PACKET_HEADER_BYTES + ethernet)


@dataclass(frozen=True, slots=True)
class NetworkNumbers:
    """One network over all launches on it, failed ones too: what was asked for and measured."""

    link: str
    round_trip_ms: float
    asked_bit_per_s: float
    one_way_bit_per_s: Spread
    both_ways_bit_per_s: Spread
    round_trip_s: Spread
    delay: str
    congestion_control: str


@dataclass(frozen=True, slots=True)
class CaseNumbers:
    """One measured case.

    Attributes:
        seconds: of one sum, until the slowest rank knew it.
        setup_s: until the session was open, at the slowest rank.
        bytes_per_sum: sent by all ranks together, set-up left out.
        bytes_by_stage: the same by stage, medians.
        setup_bytes: sent by all ranks together to open the session, median.
        busiest_bytes: of one sum, the most that any rank sent, or received, median.
        peak_rss_bytes: of the largest rank.
        cpu_s: of one sum, all ranks together, median.
        sums_compared: opened sums that every rank compared with the exact one.
        largest_error: of any coordinate of any of them.
        link: None in shared memory, and where the link was not measured.
    """

    row: Row
    seconds: Spread
    setup_s: Spread
    bytes_per_sum: Spread
    bytes_by_stage: dict[str, float]
    setup_bytes: float
    busiest_bytes: float
    peak_rss_bytes: Spread
    cpu_s: float
    sums_compared: int
    largest_error: float
    link: LinkNumbers | None

    @property
    def parameters(self) -> Parameters:
        """What the case varies."""
        return self.row.parameters

    @property
    def coordinates(self) -> int:
        """Coordinates of all parties together, which bytes and seconds are shared out over."""
        return self.parameters.dim * self.parameters.parties

    @property
    def stages_s(self) -> dict[str, float]:
        """Median seconds by stage at the slowest rank."""
        return {} if self.row.numbers is None else self.row.numbers.stages_s


@dataclass(frozen=True, slots=True)
class Cases:
    """All cases of a set of records, of one machine.

    Attributes:
        rows: every case, failed ones among them, in the summary's order.
        measured: those with a measurement, in the same order.
        records: what they were made from, without failed launches that were made again.
    """

    rows: tuple[Row, ...]
    measured: tuple[CaseNumbers, ...]
    records: tuple[Record, ...]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Cases:
        """Group the records.

        Raises:
            ConfigError: there is no record, or the records come from different machines.
        """
        if not records:
            raise ConfigError("there are no benchmark records to report; run a grid first")
        rows = tuple(summarize(records))
        groups = group_by_case(records)
        measured = (_numbers(row, groups[row.parameters]) for row in rows if row.numbers)
        return cls(rows, tuple(measured), tuple(settled(records)))


def networks(records: Iterable[Record]) -> list[NetworkNumbers]:
    """Return the networks that were measured, from fast to slow."""
    groups: dict[tuple[float, float], list[Record]] = {}
    for record in records:
        if record.link is not None:
            groups.setdefault(network_order(record.parameters), []).append(record)
    return [_network(groups[order]) for order in sorted(groups)]


def sums_compared(measured: Measurement) -> int:
    """Return the sums that were compared: one before all others, the warm-ups, the timed ones."""
    return 1 + len(measured.warmups) + len(measured.values)


def asked_bit_per_s(link: str) -> float | None:
    """Return the rate that a link was asked to have; None for shared memory.

    Raises:
        ConfigError: this is neither.
    """
    return None if link == SHARED_MEMORY else bit_per_s(link)


def network_order(parameters: Parameters) -> tuple[float, float]:
    """Return what sorts networks: shared memory first, then from fast to slow."""
    rate = asked_bit_per_s(parameters.link)
    return (0.0 if rate is None else 1 / rate, parameters.round_trip_ms)


def bytes_per_rank(by_stage: dict[str, tuple[int, ...]]) -> list[int]:
    """Return each rank's bytes of all stages but the set-up."""
    stages = [by_rank for stage, by_rank in by_stage.items() if stage != SETUP]
    return [sum(of_rank) for of_rank in zip(*stages, strict=True)]


def _numbers(row: Row, group: Sequence[Record]) -> CaseNumbers:
    measured = [record.measured for record in group if record.measured is not None]
    stages = [stage for stage in measured[0].bytes_sent if stage != SETUP]
    return CaseNumbers(
        row=row,
        seconds=Spread.of(value.seconds for m in measured for value in m.values),
        setup_s=Spread.of(max(m.setup_s) for m in measured),
        bytes_per_sum=Spread.of(m.bytes_per_sum() for m in measured),
        bytes_by_stage={
            stage: statistics.median(sum(m.bytes_sent[stage]) / len(m.values) for m in measured)
            for stage in stages
        },
        setup_bytes=statistics.median(sum(m.bytes_sent.get(SETUP, ())) for m in measured),
        busiest_bytes=statistics.median(_busiest_bytes(m) for m in measured),
        peak_rss_bytes=Spread.of(max(m.peak_rss_bytes) for m in measured),
        cpu_s=statistics.median(sum(m.cpu_seconds) / len(m.values) for m in measured),
        sums_compared=sum(map(sums_compared, measured)),
        largest_error=max(m.largest_error for m in measured),
        link=_link(group),
    )


def _network(group: Sequence[Record]) -> NetworkNumbers:
    p = group[0].parameters
    links = [record.link for record in group if record.link is not None]
    return NetworkNumbers(
        link=p.link,
        round_trip_ms=p.round_trip_ms,
        asked_bit_per_s=bit_per_s(p.link),
        one_way_bit_per_s=Spread.of(link.one_way_bit_per_s for link in links),
        both_ways_bit_per_s=Spread.of(link.both_ways_bit_per_s for link in links),
        round_trip_s=Spread.of(link.round_trip_s for link in links),
        delay=_names(link.delay for link in links),
        congestion_control=_names(link.congestion_control for link in links),
    )


def _names(found: Iterable[str]) -> str:
    return ", ".join(sorted(set(found)))


def _busiest_bytes(measured: Measurement) -> float:
    sent, received = dict(measured.bytes_sent), dict(measured.bytes_received)
    return max(*bytes_per_rank(sent), *bytes_per_rank(received)) / len(measured.values)


def _link(group: Iterable[Record]) -> LinkNumbers | None:
    runs = [(r.link, r.measured) for r in group if r.link is not None and r.measured is not None]
    if not runs:
        return None
    links: list[MeasuredLink] = [link for link, _ in runs]
    kernel = [sum(m.interface_bytes) / len(m.values) for _, m in runs if m.interface_bytes]
    return LinkNumbers(
        delay=_names(link.delay for link in links),
        congestion_control=_names(link.congestion_control for link in links),
        one_way_bit_per_s=Spread.of(link.one_way_bit_per_s for link in links),
        both_ways_bit_per_s=Spread.of(link.both_ways_bit_per_s for link in links),
        round_trip_s=Spread.of(link.round_trip_s for link in links),
        payload_bytes=statistics.median(m.bytes_per_sum() for _, m in runs),
        kernel_bytes=statistics.median(kernel) if kernel else None,
        kernel_packets=statistics.median(sum(m.interface_packets) / len(m.values) for _, m in runs),
    )
