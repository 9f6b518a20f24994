"""From records of the sum benchmarks to figures, limits and tables; nothing is run here.

A ratio is that of two medians of one launch's turns. Its quartiles are those of the ratios
within each block, where both variants ran one after the other. Launches of one cell are put
together.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sum_cell import Record

from mpcfl.report.units import bytes_text, seconds_text

# Figures from here on are shown without decimals.
_WHOLE_FROM = 100

Column = Callable[[Record, str], list[float]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its quartiles, over ``n`` values."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What is read off the records of one cell.

    Attributes:
        measure: takes the cell's records, none of them failed.
        limit: the largest value that will do; None if there is no limit.
    """

    cell: str
    text: str
    measure: Callable[[Sequence[Record]], Spread]
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that was read off.

    Attributes:
        spread: None if a launch of the cell failed.
    """

    cell: str
    text: str
    spread: Spread | None
    limit: float | None

    @property
    def reached(self) -> bool | None:
        """True if the value is within its limit; None if there is no limit and no failure."""
        if self.spread is None:
            return False
        return None if self.limit is None else self.spread.median <= self.limit


def judge(records: Sequence[Record], figures: Iterable[Figure]) -> list[Finding]:
    """Return all figures of the cells that have records."""
    findings = []
    for figure in figures:
        launches = [record for record in records if record["name"] == figure.cell]
        failed = any(record["failure"] is not None for record in launches)
        if launches:
            spread = None if failed else figure.measure(launches)
            findings.append(Finding(figure.cell, figure.text, spread, figure.limit))
    return findings


def seconds(record: Record, variant: str) -> list[float]:
    """Return when the slowest rank knew the sum, for every timed value."""
    return [max(ranks) for ranks in _timed(record, variant, "seconds")]


def cpu_seconds(record: Record, variant: str) -> list[float]:
    """Return the mean processor seconds of a rank, for every timed value."""
    return [statistics.fmean(ranks) for ranks in _timed(record, variant, "cpu_seconds")]


def bytes_sent(record: Record, variant: str) -> list[float]:
    """Return the mean bytes that a rank handed to the transport, for every timed value."""
    return [statistics.fmean(ranks) for ranks in _timed(record, variant, "bytes_sent")]


def kernel_bytes(record: Record, variant: str) -> list[float]:
    """Return the mean bytes that a host sent on its link, for every timed value."""
    return [statistics.fmean(ranks) for ranks in _timed(record, variant, "kernel_bytes")]


def _timed(record: Record, variant: str, column: str) -> list[list[float]]:
    values: list[list[float]] = record["measured"]["values"][variant][column]
    return values[record["warmups"] :]


def ratio(of: str, against: str, column: Column = seconds) -> Callable[[Sequence[Record]], Spread]:
    """Return the measure of one variant over another, in one column."""

    def measure(records: Sequence[Record]) -> Spread:
        ours = [value for record in records for value in column(record, of)]
        theirs = [value for record in records for value in column(record, against)]
        paired = spread([a / b for a, b in zip(ours, theirs, strict=True)])
        middle = statistics.median(ours) / statistics.median(theirs)
        return Spread(middle, paired.low, paired.high, paired.n)

    return measure


def memory(of: str) -> Callable[[Sequence[Record]], Spread]:
    """Return the measure of how many vectors the largest rank grew by, in the sum's dtype.

    From before its session was opened to the end of its first sum; the input was there before.
    """

    def measure(records: Sequence[Record]) -> Spread:
        return spread([r["measured"]["peak_bytes"][of] / vector_bytes(r, of) for r in records])

    return measure


def vector_bytes(record: Record, variant: str) -> int:
    """Return the bytes of one vector that goes in."""
    (found,) = (v for v in record["variants"] if v["name"] == variant)
    return int(record["dim"]) * (8 if found["dtype"] == "int64" else 4)


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of some values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, method="inclusive", n=4)
    return Spread(middle, low, high, len(values))


def findings_table(findings: Sequence[Finding]) -> str:
    """Return the figures with their limits as a Markdown table."""
    lines = []
    for finding in findings:
        found = finding.spread
        value, quartiles, n = ("failed", "", "") if found is None else _texts(found)
        limit = "" if finding.limit is None else f"{finding.limit:g}"
        reached = {None: "", True: "yes", False: "**no**"}[finding.reached]
        lines.append((finding.cell, finding.text, value, quartiles, n, limit, reached))
    return _table(("cell", "figure", "value", "quartiles", "n", "limit", "reached"), lines)


def _texts(found: Spread) -> tuple[str, str, str]:
    digits = 0 if found.median >= _WHOLE_FROM else 3
    low, middle, high = (f"{v:.{digits}f}" for v in (found.low, found.median, found.high))
    return middle, f"{low} to {high}" if found.n > 1 else "", str(found.n)


def timings_table(records: Sequence[Record]) -> str:
    """Return the medians behind the figures as a Markdown table, a row per launch and variant."""
    head = ("cell", "variant", "median", "quartiles", "n", "CPU per rank", "sent per rank")
    lines = []
    for record in records:
        for variant in record["measured"].get("values", {}):
            time = spread(seconds(record, variant))
            sent = statistics.median(bytes_sent(record, variant))
            lines.append(
                (
                    record["name"],
                    variant,
                    seconds_text(time.median),
                    f"{seconds_text(time.low)} to {seconds_text(time.high)}",
                    str(time.n),
                    seconds_text(statistics.median(cpu_seconds(record, variant))),
                    bytes_text(sent) if sent else "",
                )
            )
    return _table(head, lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def failures(records: Iterable[Record]) -> list[str]:
    """Return one line per failed launch."""
    return [
        f"{record['name']} failed: {record['failure']}"
        for record in records
        if record["failure"] is not None
    ]


def as_json(findings: Sequence[Finding], records: Sequence[Record]) -> str:
    """Return the figures and every raw value behind them as one JSON document."""
    figures: list[dict[str, Any]] = [
        {
            "cell": f.cell,
            "figure": f.text,
            "value": None if f.spread is None else f.spread.median,
            "quartiles": None if f.spread is None else [f.spread.low, f.spread.high],
            "n": 0 if f.spread is None else f.spread.n,
            "limit": f.limit,
            "reached": f.reached,
        }
        for f in findings
    ]
    return json.dumps({"schema": 1, "figures": figures, "records": list(records)}, indent=1)
