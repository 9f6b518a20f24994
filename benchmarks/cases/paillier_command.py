"""The command line that the Paillier benchmarks share: choose cells, run them, print, judge."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from paillier_cell import RESULTS, commit, forget, load
from paillier_figures import Figure, Finding, Range, figures, judge
from paillier_page import page, tables_of
from sum_case import INTERRUPTED
from sum_cell import Record, append_record, say
from sum_table import failures

from mpcfl.errors import ConfigError, MpcflError


class Named(Protocol):
    """A cell."""

    @property
    def name(self) -> str:
        """How people ask for it."""
        ...


Cell = TypeVar("Cell", bound=Named)


@dataclass(frozen=True, slots=True)
class Program(Generic[Cell]):
    """What one of the programs runs.

    Attributes:
        case: its name in records.
        cells: all of them.
        plan: turns chosen cells into launches, in their order; the flag asks for tiny ones.
        measure: makes one launch.
    """

    case: str
    description: str | None
    cells: Sequence[Cell]
    plan: Callable[[Sequence[Cell], bool], list[Cell]]
    measure: Callable[[Cell], Record]


def _parse(program: Program[Any], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(program.description or "").partition("\n")[0])
    parser.add_argument("--only", help="these cells, with commas between them")
    parser.add_argument(
        "--record",
        type=Path,
        help=f"keep records here and the page beside them; default: {RESULTS.name} in results/",
    )
    parser.add_argument("--table", type=Path, help="run nothing; print what this file has")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--no-limits", action="store_true", help="missed limits are no failure")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny cells, no limits, nothing kept: does it run?"
    )
    return parser.parse_args(arguments)


def run(program: Program[Cell], arguments: Sequence[str] | None) -> int:
    """Measure, or read, and print; 1 if a launch failed, or a limit counts and was missed."""
    options = _parse(program, arguments)
    try:
        if options.table is None:
            records = list(_measure(program, options))
        else:
            records = [r for r in load(options.table) if r["case"] == program.case]
            if not records:
                raise ConfigError(f"{options.table} has no records of {program.case}")
    except MpcflError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return _report(program.case, records, options)


def _measure(program: Program[Cell], options: argparse.Namespace) -> Iterator[Record]:
    """Run what was asked for; records of the same cells are replaced, one by one as they come."""
    chosen = _choose(program.cells, options.only)
    launches = program.plan(chosen, options.smoke)
    path: Path | None = options.record
    if path is None and not options.smoke:
        path = RESULTS
    if path is not None:
        commit()
        forget(path, program.case, [cell.name for cell in chosen])
    for number, cell in enumerate(launches, start=1):
        say(f"{number} of {len(launches)}: {cell.name}")
        record = program.measure(cell)
        append_record(path, record)
        yield record
    if path is not None:
        path.with_suffix(".md").write_text(page(load(path)), encoding="utf-8")


def _choose(cells: Sequence[Cell], only: str | None) -> list[Cell]:
    by_name = {cell.name: cell for cell in cells}
    names = list(by_name) if only is None else only.split(",")
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ConfigError(f"there is no cell {unknown[0]!r}; known are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def _report(case: str, records: Sequence[Record], options: argparse.Namespace) -> int:
    # A smoke run leaves out what a machine lacks, and its figures say nothing.
    findings = [] if options.smoke else judge(records, figures(case))
    if options.json:
        print(_as_json(findings, records))
    else:
        print("\n\n".join(tables_of(case, findings, records).values()))
    failed = failures(records)
    missed = [_miss(f.figure, f.found) for f in findings if f.reached is False and f.found]
    for text in (*failed, *missed):
        say(text)
    return int(bool(failed) or (bool(missed) and not options.no_limits))


def _miss(figure: Figure, found: Range) -> str:
    side = "below" if figure.at_least else "above"
    return f"missed: {figure.text}: {found.median:.3f} is {side} {figure.limit:g}"


def _as_json(findings: Sequence[Finding], records: Sequence[Record]) -> str:
    found = [
        {
            "cells": finding.figure.cells,
            "figure": finding.figure.text,
            "found": None if finding.found is None else asdict(finding.found),
            "limit": finding.figure.limit,
            "at_least": finding.figure.at_least,
            "reached": finding.reached,
        }
        for finding in findings
    ]
    return json.dumps({"schema": 1, "figures": found, "records": list(records)}, indent=1)
