"""The command line that the sum benchmarks share: choose cells, run them, print, judge."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import sum_table
from sum_cell import Cell, Command, Record, append_record, launch, load_records, say
from sum_table import Figure

from mpcfl.errors import ConfigError, MpcflError
from mpcfl.launch.mpirun import compose

# The exit code after Ctrl-C, as shells have it.
INTERRUPTED = 130
_SMOKE_DIM = 1000
_SMOKE_VALUES = 2


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the shared options; the first line of ``description`` is shown."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--values", type=int, default=9, help="timed sums of each variant")
    parser.add_argument("--only", help="these cells, with commas between them")
    parser.add_argument("--record", type=Path, help="append a line per launch to this file")
    parser.add_argument("--table", type=Path, help="run nothing; print what this file has")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--no-limits", action="store_true", help="missed limits are no failure")
    parser.add_argument(
        "--smoke", action="store_true", help=f"vectors of {_SMOKE_DIM}, no limits: does it run?"
    )
    return parser


def choose(cells: Sequence[Cell], options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the command line asks for.

    Raises:
        ConfigError: a name is unknown, or there would be no values.
    """
    by_name = {cell.name: cell for cell in cells}
    names = list(by_name) if options.only is None else options.only.split(",")
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ConfigError(f"there is no cell {unknown[0]!r}; known are {', '.join(by_name)}")
    if options.values < 1:
        raise ConfigError(f"--values {options.values} is not positive; 7 and more make a figure")
    chosen = [replace(by_name[name], values=options.values) for name in names]
    if options.smoke:
        return [replace(c, dim=_SMOKE_DIM, values=_SMOKE_VALUES, warmups=1) for c in chosen]
    return chosen


def measure(
    case: str, cells: Sequence[Cell], record: Path | None, command: Command = compose
) -> list[Record]:
    """Run cells one after the other and return their records; each is kept as it comes."""
    records = []
    for cell in cells:
        say(f"{cell.name}: {cell.parties} ranks, {cell.dim:,} coordinates")
        records.append(launch(case, cell, command))
        append_record(record, records[-1])
    return records


def read(case: str, path: Path) -> list[Record]:
    """Return the records of a case in a file.

    Raises:
        MpcflError: there are none, or they don't go together.
    """
    records = load_records(path, case)
    if not records:
        raise MpcflError(f"{path} has no records of {case}; make some with --record {path}")
    return records


def report(
    records: Sequence[Record], figures: Sequence[Figure], options: argparse.Namespace
) -> int:
    """Print what was found; 1 if a launch failed, or a limit counts and was missed."""
    findings = sum_table.judge(records, figures)
    if options.json:
        print(sum_table.as_json(findings, records))
    else:
        print(sum_table.findings_table(findings), sum_table.timings_table(records), sep="\n\n")
    failures = sum_table.failures(records)
    missed = [f for f in findings if f.reached is False and f.spread is not None]
    for failure in failures:
        say(failure)
    for finding in missed:
        say(f"missed: {finding.cell}: {finding.text} above {finding.limit:g}")
    limits_count = not (options.no_limits or options.smoke)
    return int(bool(failures) or (bool(missed) and limits_count))
