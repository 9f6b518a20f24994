"""Runs a grid: one fresh launch per cell, one record per launch, failures included."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mpcfl.bench.cell import CellResult, parse_result
from mpcfl.bench.cells import Cell
from mpcfl.bench.machine import installed_versions
from mpcfl.bench.progress import Launch, seconds_left
from mpcfl.bench.record import SCHEMA, Phase, Record
from mpcfl.bench.result_folder import Results, Surroundings
from mpcfl.errors import MpcflError

# A reason is for people; the end of a longer one says most.
_REASON_CHARACTERS = 300


class Finished(Protocol):
    """What is left of a launch; `subprocess.CompletedProcess` with text output is one."""

    returncode: int
    stderr: str


class Start(Protocol):
    """Starts ``python -m mpcfl.bench.cell CELL OUT`` on ``cell.n_ranks`` MPI ranks and waits."""

    def __call__(self, cell: Cell, cell_file: Path, out_file: Path, /) -> Finished:
        """Run the launch to its end.

        Raises:
            subprocess.TimeoutExpired: it took longer than ``cell.timeout_s`` and was killed.
            OSError: it could not be started.
            MpcflError: its hosts could not be made.
        """
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One record more.

    Attributes:
        done: cells of this call that are over.
        total: cells of this call.
        seconds_left: an estimate for the others.
    """

    record: Record
    done: int
    total: int
    seconds_left: float


OnStep = Callable[[Step], None]


def run_grid(
    cells: Sequence[Cell], start: Start, results: Results, on_step: OnStep | None = None
) -> list[Record]:
    """Run the cells in the given order and keep every record as it comes.

    Args:
        cells: from `make_cells`, already in random order.
        start: starts one launch; this package knows no launcher.
        results: where the records go.
        on_step: called after each record.

    Returns:
        What the folder holds then: its earlier records, and one per cell; a launch that failed
        or took too long is a failed record.
    """
    records, over = list(results.earlier), list[Launch]()
    for done, cell in enumerate(cells, start=1):
        start_s = time.monotonic()
        record = _run_cell(cell, start, results.surroundings)
        over.append(Launch.of(cell, time.monotonic() - start_s, record.measured))
        records.append(record)
        results.append(record)
        if on_step is not None:
            left_s = seconds_left(over, cells[done:]) or 0.0
            on_step(Step(record, done, len(cells), left_s))
    return records


def _run_cell(cell: Cell, start: Start, surroundings: Surroundings) -> Record:
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="mpcfl-bench-") as folder:
        cell_file, out_file = Path(folder) / "cell.json", Path(folder) / "result.json"
        cell_file.write_text(cell.to_json(), encoding="utf-8")
        result = _launch(cell, start, cell_file, out_file)
    return Record(
        schema=SCHEMA,
        grid=cell.grid,
        case=cell.parameters.case,
        parameters=cell.parameters,
        phase=Phase.SUM,
        run=cell.run,
        comparable=cell.comparable,
        started_at=started_at,
        commit=surroundings.commit,
        machine=surroundings.machine,
        versions=result.versions or installed_versions(),
        failure=result.failure,
        measured=result.measured,
        link=result.link,
    )


def _launch(cell: Cell, start: Start, cell_file: Path, out_file: Path) -> CellResult:
    try:
        finished = start(cell, cell_file, out_file)
    except subprocess.TimeoutExpired:
        return _failed(f"timed out after {cell.timeout_s:g} s")
    except (OSError, MpcflError) as error:
        return _failed(f"could not be started: {error}")
    reported = _read_result(out_file)
    if reported is not None and reported.failure is not None:
        return reported
    if finished.returncode != 0:
        return _failed(f"exit code {finished.returncode}: {_last_words(finished.stderr)}")
    if reported is not None:
        return reported
    if out_file.exists():
        return _failed("its result can't be read; did mpcfl change while the grid ran?")
    return _failed("ended without a result; start it by hand to see why")


def _read_result(out_file: Path) -> CellResult | None:
    """Return what the ranks wrote, or None if there is nothing, or only half of it."""
    try:
        return parse_result(out_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _failed(reason: str) -> CellResult:
    return CellResult(measured=None, versions={}, failure=reason)


def _last_words(text: str) -> str:
    """Return the last line, or mpirun's last words, which stand between lines of dashes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = lines[-1:]
    if words and not words[0].strip("-"):
        end = len(lines) - 1
        rules = [place for place in range(end) if not lines[place].strip("-")]
        words = lines[(rules[-1] + 1 if rules else 0) : end]
    return " ".join(words)[-_REASON_CHARACTERS:] or "nothing on standard error"
