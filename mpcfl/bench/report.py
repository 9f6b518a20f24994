"""The page of a benchmark: one self-contained HTML file made from the records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpcfl.bench.record import Record, Stage
from mpcfl.bench.summary import Numbers, Row, summarize, table
from mpcfl.errors import ConfigError
from mpcfl.report import chart, page
from mpcfl.report.atomic import write_atomically
from mpcfl.report.units import bytes_text, seconds_text

_MIB = 1 << 20
METHOD = (
    "Every run is a fresh start of one process per party under mpirun, with one thread each, "
    "and the runs come in random order. All backends sum the same integers.",
    "Before anything is timed, every rank compares the opened sum with the exact sum of the "
    "inputs; a backend that is wrong fails. Every timed sum is compared too, outside the clock.",
    "A value is the wall clock from a barrier until the slowest rank knows the sum, in an open "
    "session. Opening it (loading libraries, making and agreeing keys) is the set-up, shown apart.",
    "Medians and quartiles are over all values of all runs. The stages in a bar are those of "
    "the slowest rank; the ratio is the median over the plain baseline's at the same workload.",
    "Bytes are payload counted at the transport, without headers, sent by all ranks for one sum, "
    "over parties x dim; set-up is left out. The traffic of crypten-stock does not pass our "
    "transport: it is computed from the lengths of its vectors.",
    "Peak memory is the largest resident set of any process, Python and its libraries included, "
    "and a few vectors that the check of the sum holds.",
)


def write_report(records: Sequence[Record], path: Path) -> None:
    """Write the page; an older one is replaced as a whole.

    Raises:
        ConfigError: there is no record, or the records come from different machines.
    """
    write_atomically(path, bench_report(records))


def bench_report(records: Sequence[Record]) -> str:
    """Return the page as text; the same records give the same bytes.

    Raises:
        ConfigError: there is no record, or the records come from different machines.
    """
    if not records:
        raise ConfigError("there are no benchmark records to report; run a grid first")
    rows = summarize(records)
    failed = [record for record in records if record.failure is not None]
    grids = sorted({record.grid for record in records})
    parts = [
        page.cards(
            {
                "cases": str(len(rows)),
                "runs": str(len(records)),
                "failed runs": str(len(failed)),
            }
        ),
        *_warnings(records, failed),
        _table(rows),
        _charts(rows),
        _failures(failed),
        page.section("Method", page.bullets(METHOD)),
        _provenance(records),
    ]
    return page.page("mpcfl bench: " + ", ".join(grids), _lead(records), parts)


def _lead(records: Sequence[Record]) -> str:
    machine = records[0].machine
    return (
        f"{machine.cpu}, {machine.cores} cores, {bytes_text(machine.memory_bytes)} of memory; "
        f"first run {min(record.started_at for record in records)}"
    )


def _warnings(records: Sequence[Record], failed: Sequence[Record]) -> list[str]:
    warnings = []
    if failed:
        text = f"{len(failed)} of {len(records)} runs failed; the reasons are below."
        warnings.append(page.note(text, bad=True))
    if not all(record.comparable for record in records):
        warnings.append(
            page.note(
                "A trial grid: it shows that all cases run. Its figures are not comparable with "
                "those of any other run."
            )
        )
    return warnings


def _table(rows: Sequence[Row]) -> str:
    headings, cells = table(rows)
    failed = frozenset(i for i, row in enumerate(rows) if row.failures)
    return page.section("All cases", page.table(headings, cells, failed))


def _charts(rows: Sequence[Row]) -> str:
    measured = [(_label(row), row.numbers) for row in rows if row.numbers is not None]
    if not measured:
        return page.section("Figures", page.paragraph("No run was measured."))
    labels = [label for label, _ in measured]
    backends = sorted({row.parameters.backend for row in rows})
    series = [backends.index(row.parameters.backend) for row in rows if row.numbers is not None]
    charts = {
        "Time of one sum: median and quartiles": chart.intervals(
            [
                _interval(label, n, color)
                for (label, n), color in zip(measured, series, strict=True)
            ],
            "logarithmic axis",
            seconds_text,
        ),
        "Where the time goes: share of each stage, and the sum of the stages' medians": (
            chart.stacked_shares(
                labels, {s.value: [n.stages_s[s.value] for _, n in measured] for s in Stage}
            )
        ),
        "Bytes sent per coordinate and party": chart.intervals(
            [
                _point(label, n.bytes_per_coordinate, color)
                for (label, n), color in zip(measured, series, strict=True)
            ],
            "bytes, logarithmic axis",
            bytes_text,
        ),
        "Peak memory of the largest rank": chart.bars(
            labels, [n.peak_rss_bytes / _MIB for _, n in measured], "MiB"
        ),
    }
    return page.section("Figures", page.figures(charts))


def _label(row: Row) -> str:
    p = row.parameters
    return f"{p.variant}, n={p.parties}, dim {p.dim}, b={p.modulus_bits}, {p.dtype}"


def _interval(label: str, n: Numbers, series: int) -> chart.Interval:
    return chart.Interval(label, n.low_quartile_s, n.median_s, n.high_quartile_s, series)


def _point(label: str, value: float, series: int) -> chart.Interval:
    return chart.Interval(label, value, value, value, series)


def _failures(failed: Sequence[Record]) -> str:
    if not failed:
        return ""
    rows = [(r.case, str(r.run), r.failure or "") for r in failed]
    everything = frozenset(range(len(rows)))
    return page.section("Failed runs", page.table(("case", "run", "reason"), rows, everything))


def _provenance(records: Sequence[Record]) -> str:
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.versions.items():
            versions.setdefault(name, set()).add(version)
    machine = records[0].machine
    rows = [(name, ", ".join(sorted(found))) for name, found in sorted(versions.items())]
    commits = sorted({record.commit or "not a checkout" for record in records})
    rows += [("commit", ", ".join(commits)), ("kernel", machine.kernel)]
    rows += [("machine fingerprint", machine.fingerprint)]
    rows += [("record schema", records[0].schema)]
    return page.section("Versions and machine", page.table(("what", "version"), rows))
