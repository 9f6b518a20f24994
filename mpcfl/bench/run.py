"""Runs a grid: one fresh launch per cell, one record per launch, failures included."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mpcfl.bench.cell import CellResult, parse_result
from mpcfl.bench.grid import Cell
from mpcfl.bench.machine import checkout_commit, installed_versions, this_machine
from mpcfl.bench.record import SCHEMA, Machine, Phase, Record
from mpcfl.report.run_folder import claim_empty_folder

RECORDS_FILE = "records.jsonl"
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
        """
        ...


OnRecord = Callable[[int, int, Record], None]


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What is equal for all records of one call."""

    machine: Machine
    commit: str | None


def run_grid(
    cells: Sequence[Cell], start: Start, out: Path, on_record: OnRecord | None = None
) -> list[Record]:
    """Run the cells in the given order and keep every record as it comes.

    Args:
        cells: from `make_cells`, already in random order.
        start: starts one launch; this package knows no launcher.
        out: folder for ``records.jsonl``; new or empty.
        on_record: called after each record with (how many are done, of how many, the record).

    Returns:
        One record per cell; a launch that failed or took too long is a failed record.

    Raises:
        ConfigError: ``out`` is not empty or can't be written.
    """
    claim_empty_folder(out)
    surroundings = _Surroundings(this_machine(), checkout_commit())
    records: list[Record] = []
    with (out / RECORDS_FILE).open("x", encoding="utf-8") as stream:
        for cell in cells:
            record = _run_cell(cell, start, surroundings)
            records.append(record)
            stream.write(record.to_json() + "\n")
            stream.flush()  # an interrupted grid keeps what it has
            if on_record is not None:
                on_record(len(records), len(cells), record)
    return records


def _run_cell(cell: Cell, start: Start, surroundings: _Surroundings) -> Record:
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
    )


def _launch(cell: Cell, start: Start, cell_file: Path, out_file: Path) -> CellResult:
    try:
        finished = start(cell, cell_file, out_file)
    except subprocess.TimeoutExpired:
        return _failed(f"timed out after {cell.timeout_s:g} s")
    except OSError as error:
        return _failed(f"could not be started: {error}")
    result = _read_result(out_file)
    if result is not None and result.failure is not None:
        return result
    if finished.returncode != 0:
        return _failed(f"exit code {finished.returncode}: {_last_line(finished.stderr)}")
    if result is None:
        return _failed("ended without a result; start it by hand to see why")
    return result


def _read_result(out_file: Path) -> CellResult | None:
    """Return what the ranks wrote, or None if there is nothing or only half of it."""
    try:
        return parse_result(out_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _failed(reason: str) -> CellResult:
    return CellResult(measured=None, versions={}, failure=reason)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[-_REASON_CHARACTERS:] if lines else "nothing on standard error"
