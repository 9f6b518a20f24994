"""`mpcfl bench`: run a grid of cells, each a fresh mpirun, and compare two results."""

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
    cells = make_cells(load_grid(_find_grid(grid)))
    folder = out or Path("runs") / f"bench-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
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
    rows = summarize(records)
    (folder / "summary.json").write_text(json.dumps(document(rows), indent=2) + "\n")
    if as_json:
        sys.stdout.write(json.dumps(document(rows), indent=2) + "\n")
    else:
        _print_table(console, *table(rows))
        console.print(f"see {folder}/report.html", highlight=False, soft_wrap=True)
    return all(record.failure is None for record in records)


def run_compare(first: Path, second: Path, *, as_json: bool) -> bool:
    """Compare two results; return True if nothing became significantly slower."""
    changes = compare(load_records(first), load_records(second))
    if as_json:
        sys.stdout.write(json.dumps([asdict(change) for change in changes], indent=2) + "\n")
    else:
        _print_table(wide_console(), *change_table(changes))
    return not any_regression(changes)


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
