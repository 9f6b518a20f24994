"""The tables of a benchmark for programs and papers: CSV with every number, LaTeX to be included.

`cases.csv` has one row per case, `values.csv` every raw value of every rank, `crossovers.csv` and
`links.csv` what is derived of the networks. Seconds, bytes and bit/s are without rounding, as
Python prints a float so that it reads back equal; an empty field is a number that there is not.
The LaTeX files hold plain `tabular` environments and need the package booktabs alone.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from mpcfl.bench.case_numbers import CaseNumbers, Cases, asked_bit_per_s, networks
from mpcfl.bench.crossover import Crossover, LinkStudy, link_studies, rate_text
from mpcfl.bench.record import Measurement, Parameters, Record, Stage
from mpcfl.bench.summary import Row, number_cells
from mpcfl.report.atomic import write_atomically
from mpcfl.report.units import seconds_text

Cell = str | int | float | bool | None
_ESCAPES = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", '"': r"\textquotedbl{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
_PARAMETERS = (
    "backend", "parties", "dim", "modulus_bits", "key_bits", "custody", "link", "round_trip_ms",
    "dtype", "neighbors", "colluding",
)  # fmt: skip
_STAGES = tuple(stage.value for stage in Stage)
_CASE_NUMBERS = (
    "n_runs", "n_values", "n_failed", "median_s", "low_quartile_s", "high_quartile_s",
    "ratio_to_plain", *(f"{stage}_s" for stage in _STAGES), "setup_s", "setup_low_quartile_s",
    "setup_high_quartile_s", "bytes_per_sum", "bytes_per_coordinate",
    *(f"{stage}_bytes" for stage in _STAGES), "setup_bytes", "busiest_bytes", "cpu_s",
    "peak_rss_bytes", "sums_compared", "largest_error", "kernel_bytes_per_sum",
    "one_way_bit_per_s", "both_ways_bit_per_s", "measured_round_trip_s", "delay",
    "congestion_control", "remark",
)  # fmt: skip
_VALUE_FIELDS = ("run", "comparable", "started_at", "commit", "kind", "value", "rank")
HEADINGS = (
    "dim", "backend", "median", "IQR", "values in runs", "x plain", *_STAGES, "set-up",
    "bytes per coordinate", "peak memory", "remark",
)  # fmt: skip
LINK_HEADINGS = (
    "link", "round trip asked", "one way", "of asked", "both ways", "round trip measured", "delay",
    "congestion control",
)  # fmt: skip
CROSSOVER_HEADINGS = ("faster", "slower", "below", "interval", "model error")


def write_tables(records: Sequence[Record], folder: Path) -> None:
    """Write all tables into a folder, which is made; older ones are replaced.

    Raises:
        ConfigError: there is no record, or the records come from different machines.
    """
    texts = tables(records)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)


def tables(records: Sequence[Record]) -> dict[str, str]:
    """Return the text of each file by its name; the same records give the same bytes.

    Raises:
        ConfigError: there is no record, or the records come from different machines.
    """
    cases = Cases.of(records)
    studies = link_studies(cases)
    return {
        "cases.csv": cases_csv(cases),
        "values.csv": values_csv(cases.records),
        "crossovers.csv": crossovers_csv(studies),
        "links.csv": links_csv(cases),
        "cases.tex": cases_tex(cases.rows),
        "crossovers.tex": crossovers_tex(studies),
        "links.tex": _tabular(LINK_HEADINGS, link_rows(cases)),
    }


def cases_csv(cases: Cases) -> str:
    """Return one row per case, failed ones among them."""
    measured = {case.parameters: case for case in cases.measured}
    rows = (
        [*_parameters(row.parameters), *_case_numbers(row, measured.get(row.parameters))]
        for row in cases.rows
    )
    return _csv((*_PARAMETERS, *_CASE_NUMBERS), rows)


def values_csv(records: Iterable[Record]) -> str:
    """Return every timed value and every warm-up of every rank, launch by launch."""
    ordered = sorted(records, key=lambda record: (record.case, record.run))
    rows = (
        [*_parameters(record.parameters), *row]
        for record in ordered
        if record.measured is not None
        for row in _values(record, record.measured)
    )
    return _csv((*_PARAMETERS, *_VALUE_FIELDS, *(f"{s}_s" for s in _STAGES), "total_s"), rows)


def crossovers_csv(studies: Iterable[LinkStudy]) -> str:
    """Return one row per workload, round trip and pair of variants; a rate of inf is never."""
    rows = (
        (
            *(c.first.parties, c.first.dim, c.first.modulus_bits, c.first.dtype, c.round_trip_ms),
            *(c.first.variant, c.second.variant, c.rate_bit_per_s, c.low, c.high),
            *(c.outside, c.largest_error),
        )
        for study in studies
        for c in study.crossovers
    )
    headings = (
        "parties", "dim", "modulus_bits", "dtype", "round_trip_ms", "faster_below", "faster_above",
        "rate_bit_per_s", "low_bit_per_s", "high_bit_per_s", "extrapolated", "largest_model_error",
    )  # fmt: skip
    return _csv(headings, rows)


def links_csv(cases: Cases) -> str:
    """Return one row per launch on a link: what was asked for, measured and counted."""
    rows = (
        (
            *_parameters(r.parameters), r.run, asked_bit_per_s(r.parameters.link),
            *asdict(r.link).values(),
            None if r.measured is None else r.measured.bytes_per_sum() * len(r.measured.values),
            *_counted_by_kernel(r),
        )
        for r in sorted(cases.records, key=lambda record: (record.case, record.run))
        if r.link is not None
    )  # fmt: skip
    headings = (
        *_PARAMETERS, "run", "asked_bit_per_s", "shaping", "delay", "one_way_bit_per_s",
        "both_ways_bit_per_s", "round_trip_s", "congestion_control", "payload_bytes",
        "kernel_bytes", "kernel_packets",
    )  # fmt: skip
    return _csv(headings, rows)


def _counted_by_kernel(record: Record) -> tuple[int | None, int | None]:
    measured = record.measured
    if measured is None or not measured.interface_bytes:
        return None, None
    return sum(measured.interface_bytes), sum(measured.interface_packets)


def case_cells(row: Row) -> tuple[str, ...]:
    """Return a case as people read it, under `HEADINGS`."""
    return (f"{row.parameters.dim:,}", row.parameters.variant, *number_cells(row))


def link_rows(cases: Cases) -> list[tuple[str, ...]]:
    """Return one row per network, over all launches on it, under `LINK_HEADINGS`."""
    return [
        (
            network.link,
            f"{network.round_trip_ms:g} ms",
            rate_text(network.one_way_bit_per_s.median),
            f"{network.one_way_bit_per_s.median / network.asked_bit_per_s:.1%}",
            rate_text(network.both_ways_bit_per_s.median),
            seconds_text(network.round_trip_s.median),
            network.delay,
            network.congestion_control,
        )
        for network in networks(cases.records)
    ]


def crossover_cells(crossover: Crossover) -> tuple[str, ...]:
    """Return a cross-over as people read it, under `CROSSOVER_HEADINGS`."""
    rate = "any rate" if crossover.never else rate_text(crossover.rate_bit_per_s)
    return (
        crossover.first.variant,
        crossover.second.variant,
        f"{rate}, extrapolated" if crossover.outside and not crossover.never else rate,
        crossover.interval,
        f"{crossover.largest_error:.0%}",
    )


def cases_tex(rows: Iterable[Row]) -> str:
    """Return one tabular per number of parties, bits and network; a comment says which."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        p = row.parameters
        title = f"{p.parties} parties, b = {p.modulus_bits}, {p.dtype}, {p.network}"
        groups.setdefault(title, []).append(row)
    return "\n".join(
        f"% {_one_line(title)}\n{_tabular(HEADINGS, map(case_cells, same))}"
        for title, same in groups.items()
    )


def crossovers_tex(studies: Iterable[LinkStudy]) -> str:
    """Return one tabular per workload and round trip; a comment says which."""
    texts = []
    for study in studies:
        for round_trip_ms in study.round_trips_s:
            same = [c for c in study.crossovers if c.round_trip_ms == round_trip_ms]
            if same:
                p = same[0].first
                title = f"{p.parties} parties, dim {p.dim}, b = {p.modulus_bits}, {p.dtype}"
                comment = f"% {_one_line(title)}, round trip {round_trip_ms:g} ms\n"
                texts.append(comment + _tabular(CROSSOVER_HEADINGS, map(crossover_cells, same)))
    return "\n".join(texts)


def escape_tex(text: str) -> str:
    """Return text as LaTeX shows it unchanged."""
    escaped = "".join(_ESCAPES.get(sign, sign) for sign in " ".join(text.split()))
    return re.sub(r"(?<=\d) us\b", r" $\\mu$s", escaped)


def _parameters(parameters: Parameters) -> list[Cell]:
    document = asdict(parameters)
    return [document[name] for name in _PARAMETERS]


def _case_numbers(row: Row, case: CaseNumbers | None) -> list[Cell]:
    remark = "; ".join((*(f"failed: {reason}" for reason in row.failures), *row.doubts))
    numbers = row.numbers
    if case is None or numbers is None:
        return [0, 0, len(row.failures), *[None] * (len(_CASE_NUMBERS) - 4), remark]
    link = case.link
    return [
        *(numbers.n_runs, numbers.n_values, len(row.failures)),
        *(case.seconds.median, case.seconds.low, case.seconds.high, row.ratio),
        *(numbers.stages_s[stage] for stage in _STAGES),
        *(case.setup_s.median, case.setup_s.low, case.setup_s.high),
        *(case.bytes_per_sum.median, case.bytes_per_sum.median / case.coordinates),
        *(case.bytes_by_stage.get(stage) for stage in _STAGES),
        *(case.setup_bytes, case.busiest_bytes, case.cpu_s, numbers.peak_rss_bytes),
        *(case.sums_compared, case.largest_error),
        None if link is None else link.kernel_bytes,
        None if link is None else link.one_way_bit_per_s.median,
        None if link is None else link.both_ways_bit_per_s.median,
        None if link is None else link.round_trip_s.median,
        None if link is None else link.delay,
        None if link is None else link.congestion_control,
        remark,
    ]


def _values(record: Record, measured: Measurement) -> Iterable[list[Cell]]:
    head: list[Cell] = [record.run, record.comparable, record.started_at, record.commit]
    for kind, values in (("warm-up", measured.warmups), ("timed", measured.values)):
        for number, value in enumerate(values):
            for rank, total_s in enumerate(value.total):
                stages = (getattr(value, stage)[rank] for stage in _STAGES)
                yield [*head, kind, number, rank, *stages, total_s]


def _csv(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return stream.getvalue()


def _tabular(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_tex_row(headings), r"\midrule", *map(_tex_row, rows)]
    columns = "l" * len(headings)
    return "\n".join(
        (
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        )
    )


def _tex_row(cells: Sequence[str]) -> str:
    # A lone hyphen stands for a number that there is not.
    return " & ".join("--" if cell == "-" else escape_tex(cell) for cell in cells) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())
