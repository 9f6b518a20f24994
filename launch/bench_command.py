"""`mpcfl bench`: run a grid of cells, each a fresh mpirun, compare two results, look beyond."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mpcfl.bench.cells import Cell, make_cells, remaining
from mpcfl.bench.compare import any_regression, backend_table, compare
from mpcfl.bench.compare import document as comparison_document
from mpcfl.bench.compare import table as change_table
from mpcfl.bench.grid import Grid, load_grid
from mpcfl.bench.record import Record, load_records
from mpcfl.bench.report import write_report
from mpcfl.bench.result_folder import GRID_FILE, Results, begin_results, resume_results
from mpcfl.bench.run import run_grid
from mpcfl.bench.scaling import require_model, study
from mpcfl.bench.scaling_report import document as scaling_document
from mpcfl.bench.scaling_report import remarks, tables
from mpcfl.bench.sides import load_side
from mpcfl.bench.summary import Row, document, settled, summarize, table
from mpcfl.bench.tables import write_tables
from mpcfl.errors import ConfigError
from mpcfl.launch.bench_cell import require_hosts_for, start_cell
from mpcfl.launch.bench_view import grid_view
from mpcfl.launch.live import wide_console


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the command line asks for.

    Attributes:
        grid: a file, or the name of a packaged grid; None for that of ``resume``.
        out: folder of new results; None for a name made from the time.
        resume: folder of results to go on with, in the place of ``out``.
    """

    grid: str | None
    out: Path | None = None
    resume: Path | None = None
    as_json: bool = False


def run_bench(options: BenchOptions) -> bool:
    """Run a grid and print its table; return True if no cell failed.

    Raises:
        ConfigError: the grid is wrong, the folder of new results is not empty or can't be
            written, or that of earlier ones is of another grid, machine or commit.
        MpcflError: the grid has links, and hosts can't be made here.
    """
    console, grid, folder = _prepare(options)
    records = _measure(grid, make_cells(grid), folder, options, console)
    rows = summarize(records)
    if options.as_json:
        sys.stdout.write(json.dumps(document(rows), indent=2) + "\n")
    else:
        _print_table(console, *table(rows))
        _say(console, f"see {folder}/report.html")
    return all(record.failure is None for record in records)


def run_scaling(options: BenchOptions) -> bool:
    """Run a grid, fit the cost model and look beyond; return True if nothing failed.

    Raises:
        ConfigError: as `run_bench`, or the grid is too small for the model.
        MpcflError: as `run_bench`.
    """
    console, grid, folder = _prepare(options)
    cells = make_cells(grid)
    require_model(cell.parameters for cell in cells)
    records = _measure(grid, cells, folder, options, console)
    result = study(records)
    text = json.dumps(scaling_document(result, records), indent=2) + "\n"
    (folder / "scaling.json").write_text(text)
    if options.as_json:
        sys.stdout.write(text)
    else:
        for title, headings, rows in tables(result):
            console.print(f"\n{title}", highlight=False)
            _print_table(console, headings, rows)
        for line in (*remarks(result), f"see {folder}/scaling.json"):
            _say(console, line)
    return result.is_complete


def run_compare(first: Path, second: Path, *, as_json: bool) -> bool:
    """Compare two results; return True if nothing became significantly slower."""
    comparison = compare(load_side(first), load_side(second))
    if as_json:
        sys.stdout.write(json.dumps(comparison_document(comparison), indent=2) + "\n")
        return not any_regression(comparison)
    console = wide_console()
    for headings, rows in (change_table(comparison), backend_table(comparison)):
        _print_table(console, headings, rows)
        console.print()
    for remark in comparison.remarks:
        _say(console, remark)
    return not any_regression(comparison)


def run_report(source: Path, out: Path | None, *, as_json: bool) -> None:
    """Make the page, the tables and the summary anew from records alone.

    Args:
        source: a folder of results, or a file of records.
        out: where they go; the folder of the records by default.
        as_json: print the summary as well.

    Raises:
        ConfigError: there are no records, they are of several machines, or can't be read.
    """
    records = settled(load_records(source))
    default = source if source.is_dir() else source.parent
    folder = default if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    rows = _write_results(records, folder)
    if as_json:
        sys.stdout.write(json.dumps(document(rows), indent=2) + "\n")
    else:
        _say(wide_console(), f"see {folder}/report.html")


def _prepare(options: BenchOptions) -> tuple[Console, Grid, Path]:
    """Return where to print, what to run, and where its results go.

    Raises:
        ConfigError: no such grid, or a wrong one; or both folders were named.
    """
    if options.out is not None and options.resume is not None:
        raise ConfigError("--resume goes on in its own folder; leave --out away")
    new = options.out or Path("runs") / f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    folder = new if options.resume is None else options.resume
    grid = load_grid(folder / GRID_FILE if options.grid is None else _find_grid(options.grid))
    return wide_console(stderr=options.as_json), grid, folder


def _measure(
    grid: Grid, cells: Sequence[Cell], folder: Path, options: BenchOptions, console: Console
) -> list[Record]:
    """Run the cells that are not measured yet; leave all records, summary and report in the folder.

    Returns:
        The records that count: a failed launch that was made again is not among them.
    """
    require_hosts_for(cells)
    with _results(grid, folder, options) as results:
        waiting = remaining(cells, results.earlier)
        lines = [f"output: {folder}", results.torn]
        if options.resume is not None:
            lines.append(f"{len(cells) - len(waiting)} of {len(cells)} cells are measured already")
        for line in filter(None, lines):
            _say(console, line)
        try:
            with grid_view(console, len(waiting)) as show:
                records = settled(run_grid(waiting, start_cell, results, show))
        except KeyboardInterrupt:
            _say(console, f"interrupted; go on with: mpcfl bench --resume {folder}")
            raise
    _write_results(records, folder)
    return records


def _write_results(records: Sequence[Record], folder: Path) -> list[Row]:
    write_report(records, folder / "report.html")
    write_tables(records, folder / "tables")
    rows = summarize(records)
    (folder / "summary.json").write_text(json.dumps(document(rows), indent=2) + "\n")
    return rows


def _results(grid: Grid, folder: Path, options: BenchOptions) -> AbstractContextManager[Results]:
    if options.resume is None:
        return begin_results(folder, grid.text)
    return resume_results(folder, grid.text)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_table(console: Console, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    view = Table(box=None, pad_edge=False)
    for heading in headings:
        view.add_column(heading, overflow="fold")
    for row in rows:
        view.add_row(*row)
    console.print(view, highlight=False, markup=False)


def _find_grid(grid: str) -> Path:
    path = Path(grid)
    if path.is_file():
        return path
    packaged = Path(str(files("mpcfl.grids"))) / f"{grid}.toml"
    if packaged.is_file():
        return packaged
    known = ", ".join(sorted(p.stem for p in packaged.parent.glob("*.toml")))
    raise ConfigError(f"{grid}: no such grid file, and no packaged grid; known: {known}")
