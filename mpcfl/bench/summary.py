"""From raw values to one row per case: median, quartiles, n, and the ratio to the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpcfl.bench.record import Measurement, Parameters, Record, Stage, require_one_machine
from mpcfl.report.units import bytes_text, seconds_text

BASELINE = "plain"
# House rule for a result: at least five launches of three values.
_FEWEST_RUNS = 5
_FEWEST_VALUES = 3
# Above this share of the median, the spread deserves a word (pyperf warns at 10 % of the mean).
_WIDE_SPREAD = 0.25


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the launches of one case measured, all together.

    Attributes:
        n_runs: launches that measured.
        n_values: timed sums, over all launches.
        median_s: of all values; with its quartiles.
        stages_s: median seconds by stage; they need not add up to the median of the total.
        setup_s: median seconds until the session was open, at the slowest rank.
        bytes_per_coordinate: sent by all ranks together for one sum, over dim x parties.
        peak_rss_bytes: the largest of any rank and launch.
        cpu_s: median processor seconds of one sum, all ranks together.
    """

    n_runs: int
    n_values: int
    median_s: float
    low_quartile_s: float
    high_quartile_s: float
    stages_s: dict[str, float]
    setup_s: float
    bytes_per_coordinate: float
    peak_rss_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One case.

    Attributes:
        numbers: None if every launch failed.
        ratio: median over the baseline's median at the same workload; None without one.
        failures: reasons, one per failed launch.
        doubts: what a reader should know before citing the row.
    """

    parameters: Parameters
    numbers: Numbers | None
    ratio: float | None
    failures: tuple[str, ...]
    doubts: tuple[str, ...]


def summarize(records: Sequence[Record]) -> list[Row]:
    """Return one row per case, by workload and then by median.

    Raises:
        ConfigError: the records come from different machines.
    """
    require_one_machine(records)
    cases = group_by_case(records)
    baselines = {
        parameters.workload: _median_s(group)
        for parameters, group in cases.items()
        if parameters.backend == BASELINE
    }
    rows = [_row(p, group, baselines.get(p.workload)) for p, group in cases.items()]
    return sorted(
        rows,
        key=lambda row: (
            row.parameters.workload,
            float("inf") if row.numbers is None else row.numbers.median_s,
            row.parameters.case,
        ),
    )


def group_by_case(records: Iterable[Record]) -> dict[Parameters, list[Record]]:
    """Put records with equal parameters together, of those that count."""
    cases: dict[Parameters, list[Record]] = {}
    for record in settled(records):
        cases.setdefault(record.parameters, []).append(record)
    return cases


def settled(records: Iterable[Record]) -> list[Record]:
    """Return the records without failed launches that were made again later, as --resume does."""
    kept: list[Record] = []
    failed: dict[tuple[Parameters, int], Record] = {}
    for record in records:
        launch = (record.parameters, record.run)
        replaced = failed.pop(launch, None)
        if replaced is not None:
            kept = [other for other in kept if other is not replaced]
        if record.failure is not None:
            failed[launch] = record
        kept.append(record)
    return kept


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile, interpolated between the values."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def all_seconds(measured: Iterable[Measurement]) -> list[float]:
    """Return every timed value of all launches."""
    return [value.seconds for m in measured for value in m.values]


def table(rows: Iterable[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells as text, for a terminal or a page."""
    headings = (
        "backend", "parties", "dim", "bits", "dtype", "link", "median", "IQR", "values in runs",
        "x plain", "protect", "aggregate", "open", "set-up", "B/coordinate", "peak memory",
        "remark",
    )  # fmt: skip
    return headings, [_cells(row) for row in rows]


def document(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain data, for JSON."""
    return [asdict(row) for row in rows]


def _measured(group: Iterable[Record]) -> list[Measurement]:
    return [r.measured for r in group if r.measured is not None]


def _median_s(group: Iterable[Record]) -> float | None:
    seconds = all_seconds(_measured(group))
    return statistics.median(seconds) if seconds else None


def _row(parameters: Parameters, group: Sequence[Record], baseline_s: float | None) -> Row:
    failures = tuple(r.failure for r in group if r.failure is not None)
    measured = _measured(group)
    if not measured:
        return Row(parameters, None, None, failures, ())
    numbers = _numbers(parameters, measured)
    return Row(
        parameters=parameters,
        numbers=numbers,
        ratio=None if baseline_s is None else numbers.median_s / baseline_s,
        failures=failures,
        doubts=_doubts(group, measured, numbers),
    )


def _numbers(parameters: Parameters, measured: Sequence[Measurement]) -> Numbers:
    values = [value for m in measured for value in m.values]
    low, median, high = quartiles([value.seconds for value in values])
    coordinates = parameters.dim * parameters.parties
    return Numbers(
        n_runs=len(measured),
        n_values=len(values),
        median_s=median,
        low_quartile_s=low,
        high_quartile_s=high,
        stages_s={
            stage.value: statistics.median(value.stage_seconds(stage) for value in values)
            for stage in Stage
        },
        setup_s=statistics.median(max(m.setup_s) for m in measured),
        bytes_per_coordinate=statistics.median(m.bytes_per_sum() for m in measured) / coordinates,
        peak_rss_bytes=max(max(m.peak_rss_bytes) for m in measured),
        cpu_s=statistics.median(sum(m.cpu_seconds) / len(m.values) for m in measured),
    )


def _doubts(
    group: Sequence[Record], measured: Sequence[Measurement], numbers: Numbers
) -> tuple[str, ...]:
    doubts = []
    if not all(record.comparable for record in group):
        doubts.append("trial, not comparable")
    elif len(measured) < _FEWEST_RUNS or min(len(m.values) for m in measured) < _FEWEST_VALUES:
        doubts.append(f"fewer than {_FEWEST_RUNS} runs of {_FEWEST_VALUES} values")
    largest_error = max(m.largest_error for m in measured)
    if largest_error > 0:
        doubts.append(f"inexact: coordinates off by up to {largest_error:.3g}")
    spread = (numbers.high_quartile_s - numbers.low_quartile_s) / numbers.median_s
    if spread > _WIDE_SPREAD:
        doubts.append(f"IQR is {spread:.0%} of the median")
    return tuple(doubts)


def _cells(row: Row) -> tuple[str, ...]:
    p = row.parameters
    names = (p.variant, str(p.parties), str(p.dim), str(p.modulus_bits), p.dtype, p.network)
    return (*names, *number_cells(row))


def number_cells(row: Row) -> tuple[str, ...]:
    """Return what was measured of a case as text: from its median to the remark."""
    remark = "; ".join((*(f"failed: {reason}" for reason in row.failures), *row.doubts))
    numbers = row.numbers
    if numbers is None:
        return ("failed", *["-"] * 9, remark)
    return (
        seconds_text(numbers.median_s),
        seconds_text(numbers.high_quartile_s - numbers.low_quartile_s),
        f"{numbers.n_values} in {numbers.n_runs}",
        "-" if row.ratio is None else f"{row.ratio:.3g}",
        *(seconds_text(numbers.stages_s[stage.value]) for stage in Stage),
        seconds_text(numbers.setup_s),
        f"{numbers.bytes_per_coordinate:.3g}",
        bytes_text(numbers.peak_rss_bytes),
        remark,
    )
