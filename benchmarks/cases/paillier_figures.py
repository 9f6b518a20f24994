"""From records of the Paillier benchmarks to figures and limits; nothing is run here.

A ratio is that of two medians; its range runs from the smallest over the largest to the largest
over the smallest value.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from paillier_cell import CLIENTS, HOLDER
from sum_cell import Record

# The names of the programs, as records have them.
SPEED, PEERS = "paillier_speed", "paillier_peers"
OURS = ("mpcfl, gmpy2", "mpcfl, kernel")
RIVALS = ("HEU ZPaillier", "pypaillier")
OTHERS = ("phe", *RIVALS)
ENCRYPT, DECRYPT = "encrypt", "decrypt"
# What workers measure: processor time, which figures take, and wall clock.
KINDS = ("cpu_seconds", "seconds")
_MEGABYTE = 1e6
_MICRO = 1e6
_MILLI = 1e3

ByName = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class Range:
    """A median with the smallest and the largest of ``n`` values."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What is read off records.

    Attributes:
        cells: whose records it takes; none of them failed.
        limit: None if there is none.
        at_least: the limit is the smallest value that will do, and not the largest.
    """

    cells: tuple[str, ...]
    text: str
    measure: Callable[[ByName], Range]
    limit: float | None = None
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that was read off; without a value if a launch failed."""

    figure: Figure
    found: Range | None

    @property
    def reached(self) -> bool | None:
        """True if the value is within its limit; None if there is no limit and no failure."""
        if self.found is None:
            return False
        limit = self.figure.limit
        if limit is None:
            return None
        return self.found.median >= limit if self.figure.at_least else self.found.median <= limit


def judge(records: Iterable[Record], figures: Iterable[Figure]) -> list[Finding]:
    """Return all figures whose cells have records."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record["name"], []).append(record)
    findings = []
    for figure in figures:
        if all(name in by_name for name in figure.cells):
            launches = [record for name in figure.cells for record in by_name[name]]
            failed = any(record["failure"] is not None for record in launches)
            findings.append(Finding(figure, None if failed else figure.measure(by_name)))
    return findings


def spread(values: Sequence[float]) -> Range:
    """Return the median and the range of some values."""
    return Range(statistics.median(values), min(values), max(values), len(values))


def _ratio(over: Sequence[float], under: Sequence[float]) -> Range:
    middle = statistics.median(over) / statistics.median(under)
    n = min(len(over), len(under))
    return Range(middle, min(over) / max(under), max(over) / min(under), n)


# What launches say.


def round_costs(records: Sequence[Record]) -> list[float]:
    """Return microseconds of processor per coordinate and sum, of all ranks together."""
    return [
        sum(rank["sums"][number]["cpu_seconds"] for rank in record["measured"]["ranks"])
        / record["settings"]["dim"]
        * _MICRO
        for record in records
        for number in _timed(record)
    ]


def _timed(record: Record) -> range:
    """Return which sums count: those after the first, where there are any."""
    n_sums = len(record["measured"]["ranks"][0]["sums"])
    return range(min(1, n_sums - 1), n_sums)


def costs_with_setup(records: Sequence[Record]) -> list[float]:
    """Return the same for opening a session, tables included, and its first sum."""
    return [
        sum(
            rank["setup"]["cpu_seconds"] + rank["sums"][0]["cpu_seconds"]
            for rank in record["measured"]["ranks"]
        )
        / record["settings"]["dim"]
        * _MICRO
        for record in records
    ]


def round_seconds(records: Sequence[Record]) -> list[float]:
    """Return the wall clock of every timed sum, until the slowest rank has it."""
    return [
        max(rank["sums"][number]["seconds"] for rank in record["measured"]["ranks"])
        for record in records
        for number in _timed(record)
    ]


def setup_seconds(records: Sequence[Record]) -> list[float]:
    """Return the processor seconds of all ranks to open a session."""
    return [
        sum(rank["setup"]["cpu_seconds"] for rank in record["measured"]["ranks"])
        for record in records
    ]


def grown_megabytes(records: Sequence[Record]) -> list[float]:
    """Return by how much the largest rank grew from before its session to its first sum's end."""
    return [
        max(rank["grown_bytes"] for rank in record["measured"]["ranks"]) / _MEGABYTE
        for record in records
    ]


def ciphertext_bytes(records: Sequence[Record]) -> list[float]:
    """Return the most bytes of ciphertext per coordinate that a data party sends for one sum."""
    return [
        max(_sent(record, number)[0]) / record["settings"]["dim"]
        for record in records
        for number in _timed(record)
    ]


def opened_bytes(records: Sequence[Record]) -> list[float]:
    """Return the most bytes of opened sums per coordinate that one rank sends for one sum."""
    return [
        max(_sent(record, number)[1]) / record["settings"]["dim"]
        for record in records
        for number in _timed(record)
    ]


def _sent(record: Record, number: int) -> tuple[list[int], list[int]]:
    """Return the bytes of ciphertexts of data parties, and those of opened sums of all.

    Under `clients` ciphertexts go to the last rank and nothing else does; under `holder` the
    holder, rank 0, sends sums and the others send ciphertexts.
    """
    sums = [rank["sums"][number] for rank in record["measured"]["ranks"]]
    if record["settings"]["custody"] == HOLDER:
        return [s["bytes_sent"] for s in sums[1:]], [sums[0]["bytes_sent"]]
    parties = sums[:-1]
    ciphertexts = [s["sent_to"][-1] for s in parties]
    return ciphertexts, [s["bytes_sent"] - s["sent_to"][-1] for s in parties]


# What workers say.


def timed(records: Sequence[Record], subject: str, operation: str) -> list[float]:
    """Return the processor seconds of one item, for every timed round."""
    return [
        seconds
        for record in records
        for seconds in record["measured"]["cpu_seconds"][subject][operation][
            record["settings"]["warmups"] :
        ]
    ]


# The figures.


def figures(case: str) -> list[Figure]:
    """Return what is read off the records of a program, with the limits."""
    return {SPEED: _speed_figures, PEERS: _peer_figures}[case]()


def _speed_figures() -> list[Figure]:
    least = {("gmpy2", 2048): 700.0, ("kernel", 2048): 2500.0}
    ratios = [
        Figure(
            (f"phe-{bits}", f"{way}-{bits}"),
            f"processor time per coordinate, {bits} bits: phe / paillier with {way}{extra}",
            _cost_ratio(f"phe-{bits}", f"{way}-{bits}", costs),
            least.get((way, bits)) if not extra else None,
            at_least=True,
        )
        for extra, costs in (("", round_costs), (", opening and tables included", costs_with_setup))
        for bits in (2048, 3072)
        for way in ("gmpy2", "kernel")
    ]
    return ratios + [figure for custody in (CLIENTS, HOLDER) for figure in _size_figures(custody)]


def _cost_ratio(
    baseline: str, ours: str, costs: Callable[[Sequence[Record]], list[float]]
) -> Callable[[ByName], Range]:
    # The baseline's opening is never counted: per coordinate of its short vectors it is large.
    return lambda by_name: _ratio(round_costs(by_name[baseline]), costs(by_name[ours]))


def _size_figures(custody: str) -> list[Figure]:
    sent, grown = f"bytes-{custody}", f"memory-{custody}"
    texts = (
        f"{custody}: bytes of ciphertext that a data party sends, per coordinate",
        f"{custody}: bytes of opened sums that a rank sends, per coordinate",
        f"{custody}: memory besides the input at 10,000,000 coordinates, MB",
    )
    return [
        Figure((sent,), texts[0], lambda by: spread(ciphertext_bytes(by[sent])), 5.1),
        Figure((sent,), texts[1], lambda by: spread(opened_bytes(by[sent]))),
        Figure((grown,), texts[2], lambda by: spread(grown_megabytes(by[grown])), 300.0),
    ]


def _peer_figures() -> list[Figure]:
    pairs = [
        _peer_figure(f"libraries-{bits}", ours, operation, rival)
        for bits in (2048, 3072)
        for operation in (ENCRYPT, DECRYPT)
        for ours in OURS
        for rival in (*RIVALS, "phe")
    ]
    packing = [
        Figure(
            ("packing",),
            f"{operation} 1,000,000 values of 16 bits for 8 parties, ms",
            _milliseconds(operation),
            30.0,
        )
        for operation in ("pack", "unpack")
    ]
    return pairs + packing


def _peer_figure(cell: str, ours: str, operation: str, rival: str) -> Figure:
    def measure(by_name: ByName) -> Range:
        columns = [timed(by_name[cell], subject, operation) for subject in (ours, rival)]
        return _ratio(columns[0], columns[1])

    bits = cell.rpartition("-")[2]
    # phe is what this all starts from; with gmpy2 its decryption is ours.
    limit = 1.0 if bits == "2048" and rival in RIVALS else None
    return Figure((cell,), f"{operation}, {bits} bits: {ours} / {rival}", measure, limit)


def _milliseconds(operation: str) -> Callable[[ByName], Range]:
    return lambda by: spread([s * _MILLI for s in timed(by["packing"], "packing", operation)])
