"""The page of a benchmark: one self-contained HTML file made from the records alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mpcfl.bench import report_words as words
from mpcfl.bench import tables
from mpcfl.bench.case_numbers import Cases, network_order
from mpcfl.bench.crossover import link_studies
from mpcfl.bench.link_section import links_section
from mpcfl.bench.record import Record
from mpcfl.bench.report_figures import Facet, choose_looks
from mpcfl.bench.report_sections import (
    equality_section,
    memory_section,
    scaling_section,
    time_section,
    traffic_section,
)
from mpcfl.bench.summary import Row
from mpcfl.report import page
from mpcfl.report.atomic import write_atomically
from mpcfl.report.units import bytes_text

# Tables of all cases start folded where there are more of them than this.
_MOST_OPEN_ROWS = 40
_TEXT_COLUMNS = frozenset({"backend", "remark"})
_CONTENTS = {
    "time": "Time",
    "traffic": "Bytes",
    "scaling": "Scaling",
    "links": "Links and cross-overs",
    "memory": "Memory",
    "equality": "Results and protection",
    "method": "Method",
    "cases": "All cases",
    "versions": "Versions",
}


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
    cases = Cases.of(records)
    failed = [record for record in cases.records if record.failure is not None]
    grids = sorted({record.grid for record in cases.records})
    parts = [
        page.cards(_cards(cases, failed)),
        *_warnings(cases.records, failed),
        _failures(failed),
        *_figures(cases),
        page.section("Method", *_method(), anchor="method"),
        _all_cases(cases.rows),
        _provenance(cases.records),
    ]
    shown = {anchor: title for anchor, title in _CONTENTS.items() if _is_in(anchor, parts)}
    parts.insert(0, page.contents(shown))
    return page.page("mpcfl bench: " + ", ".join(grids), _lead(cases.records), parts, wide=True)


def _figures(cases: Cases) -> list[str]:
    if not cases.measured:
        return [page.section("Figures", page.paragraph("No run was measured."))]
    looks = choose_looks(cases.measured)
    studies = link_studies(cases)
    return [
        time_section(cases, looks),
        traffic_section(cases, looks),
        scaling_section(cases, looks),
        links_section(cases, studies, looks),
        memory_section(cases, looks),
        equality_section(cases),
    ]


def _is_in(anchor: str, parts: Iterable[str]) -> bool:
    return any(f'<section id="{anchor}">' in part for part in parts)


def _cards(cases: Cases, failed: Sequence[Record]) -> dict[str, str]:
    compared = sum(case.sums_compared for case in cases.measured)
    return {
        "cases": f"{len(cases.rows):,}",
        "runs": f"{len(cases.records):,}",
        "failed runs": f"{len(failed):,}",
        "sums compared with the exact one": f"{compared:,}",
    }


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


def _failures(failed: Sequence[Record]) -> str:
    if not failed:
        return ""
    rows = [(r.case, str(r.run), r.failure or "") for r in failed]
    everything = frozenset(range(len(rows)))
    table = page.table(("case", "run", "reason"), rows, everything)
    shown = table if len(rows) <= _MOST_OPEN_ROWS else page.folded("All failed runs", table)
    return page.section("Failed runs", shown)


def _method() -> list[str]:
    return [page.subsection(title, page.bullets(text)) for title, text in words.METHOD.items()]


def _all_cases(rows: Sequence[Row]) -> str:
    groups: dict[Facet, list[Row]] = {}
    for row in sorted(rows, key=lambda row: network_order(row.parameters)):
        groups.setdefault(Facet.of(row.parameters), []).append(row)
    opened = len(rows) <= _MOST_OPEN_ROWS
    numbers = frozenset(
        i for i, heading in enumerate(tables.HEADINGS) if heading not in _TEXT_COLUMNS
    )
    folds = []
    for facet, same in groups.items():
        failed = frozenset(i for i, row in enumerate(same) if row.failures)
        cells = [tables.case_cells(row) for row in same]
        table = page.table(tables.HEADINGS, cells, failed, numbers)
        title = f"{facet.title} ({len(same)} cases)"
        folds.append(page.folded(title, table, opened=opened or bool(failed)))
    return page.section("All cases", *folds, anchor="cases")


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
    table = page.table(("what", "version"), rows)
    return page.section("Versions and machine", table, anchor="versions")
