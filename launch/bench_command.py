"""`mpcfl bench`: run a grid of cells, each a fresh mpirun, compare two results, look beyond."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mpcfl.bench.compare import any_regression, compare
from mpcfl.bench.compare import table as change_table
from mpcfl.bench.grid import Cell, load_grid, make_cells
from mpcfl.bench.record import Record, load_records
from mpcfl.bench.report import write_report
from mpcfl.bench.run import run_grid
from mpcfl.bench.scaling import require_model, study
from mpcfl.bench.scaling_report import document as scaling_document
from mpcfl.bench.scaling_report import remarks, tables
from mpcfl.bench.summary import document, summarize, table
from mpcfl.errors import ConfigError
from mpcfl.launch.live import wide_console
from mpcfl.launch.mpirun import compose, supervise


def run_bench(grid: str, out: Path | None, *, as_json: bool) -> bool:
    """Run a grid and print its table; return True if no cell failed.

    Raises:
        ConfigError: the grid is wrong, or the folder is not empty or can't be written.
    """
    console = wide_console(stderr=as_json)
    folder = _folder(out)
    records = _measure(make_cells(load_grid(_find_grid(grid))), folder, console)
    rows = summarize(records)
    if as_json:
        sys.stdout.write(json.dumps(document(rows), indent=2) + "\n")
    else:
        _print_table(console, *table(rows))
        console.print(f"see {folder}/report.html", highlight=False, soft_wrap=True)
    return all(record.failure is None for record in records)


def run_scaling(grid: str, out: Path | None, *, as_json: bool) -> bool:
    """Run a grid, fit the cost model and look beyond; return True if nothing failed.

    Raises:
        ConfigError: the grid is wrong or too small for the model, or the folder is not empty
            or can't be written.
    """
    console = wide_console(stderr=as_json)
    cells = make_cells(load_grid(_find_grid(grid)))
    require_model(cell.parameters for cell in cells)
    folder = _folder(out)
    records = _measure(cells, folder, console)
    result = study(records)
    text = json.dumps(scaling_document(result, records), indent=2) + "\n"
    (folder / "scaling.json").write_text(text)
    if as_json:
        sys.stdout.write(text)
    else:
        for title, headings, rows in tables(result):
            console.print(f"\n{title}", highlight=False)
            _print_table(console, headings, rows)
        for remark in remarks(result):
            console.print(remark, highlight=False, markup=False, soft_wrap=True)
        console.print(f"see {folder}/scaling.json", highlight=False, soft_wrap=True)
    return result.is_complete


def run_compare(first: Path, second: Path, *, as_json: bool) -> bool:
    """Compare two results; return True if nothing became significantly slower."""
    changes = compare(load_records(first), load_records(second))
    if as_json:
        sys.stdout.write(json.dumps([asdict(change) for change in changes], indent=2) + "\n")
    else:
        _print_table(wide_console(), *change_table(changes))
    return not any_regression(changes)


def _folder(out: Path | None) -> Path:
    return out or Path("runs") / f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def _measure(cells: list[Cell], folder: Path, console: Console) -> list[Record]:
    """Run all cells; leave their records, summary and report in the folder."""
    console.print(f"output: {folder}", highlight=False, soft_wrap=True)

    def on_record(done: int, total: int, record: Record) -> None:
        state = "failed: " + record.failure if record.failure else "done"
        console.print(
            f"cell {done}/{total}  {record.case}  {state}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    records = run_grid(cells, _start, folder, on_record)
    write_report(records, folder / "report.html")
    rows = document(summarize(records))
    (folder / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    return records


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
    packaged = Path(str(files("mpcfl.launch"))) / "grids" / f"{grid}.toml"
    if packaged.is_file():
        return packaged
    known = ", ".join(sorted(p.stem for p in packaged.parent.glob("*.toml")))
    raise ConfigError(f"{grid}: no such grid file, and no packaged grid; known: {known}")


def _start(cell: Cell, cell_file: Path, out_file: Path, /) -> subprocess.CompletedProcess[str]:
    command = compose(cell.n_ranks, ["-m", "mpcfl.bench.cell", str(cell_file), str(out_file)])
    outcome = supervise(command, lambda _: None, timeout_s=cell.timeout_s)
    if outcome.timed_out:
        raise subprocess.TimeoutExpired(command, cell.timeout_s)
    return subprocess.CompletedProcess(
        command, outcome.exit_code, stderr="\n".join(outcome.stderr_tail)
    )
