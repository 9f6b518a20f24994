"""The folder of a grid's results: it grows line by line, and can be gone on with.

``records.jsonl`` is only ever appended to. ``grid.toml`` is a copy of the grid file, so that a
folder says by itself what was run. A line that was torn by the end of the process that wrote it
is moved to ``records.torn``.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mpcfl.bench.machine import checkout_commit, this_machine
from mpcfl.bench.record import Machine, Record, load_records
from mpcfl.errors import ConfigError
from mpcfl.report.run_folder import claim_empty_folder

RECORDS_FILE = "records.jsonl"
GRID_FILE = "grid.toml"
TORN_FILE = "records.torn"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What has to be equal for all records of a folder."""

    machine: Machine
    commit: str | None


@dataclass(frozen=True, slots=True)
class Results:
    """A folder that is being written.

    Attributes:
        stream: of its records, locked.
        earlier: the records that it held before.
        torn: what is to be said of a line that was set aside; None if there was none.
    """

    path: Path
    surroundings: Surroundings
    stream: IO[str]
    earlier: tuple[Record, ...] = ()
    torn: str | None = None

    def append(self, record: Record) -> None:
        """Keep a record, whatever happens next to this process."""
        self.stream.write(record.to_json() + "\n")
        self.stream.flush()


@contextmanager
def begin_results(out: Path, grid_text: str) -> Iterator[Results]:
    """Make a folder, or take one that is there and empty.

    Raises:
        ConfigError: ``out`` is not empty or can't be written.
    """
    claim_empty_folder(out)
    surroundings = Surroundings(this_machine(), checkout_commit())
    (out / GRID_FILE).write_text(grid_text, encoding="utf-8")
    with (out / RECORDS_FILE).open("x", encoding="utf-8") as stream:
        _lock(stream, out)
        yield Results(out, surroundings, stream)


@contextmanager
def resume_results(out: Path, grid_text: str) -> Iterator[Results]:
    """Go on with the results of a grid that was interrupted.

    Raises:
        ConfigError: they are of another grid file, machine or commit, are being written, or
            can't be read.
    """
    require_grid(out, grid_text)
    surroundings = Surroundings(this_machine(), checkout_commit())
    try:
        stream = (out / RECORDS_FILE).open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out / RECORDS_FILE}: can't go on with it: {error.strerror}") from None
    with stream:
        _lock(stream, out)
        torn = _set_torn_line_aside(out)
        earlier = tuple(load_records(out))
        _require_same(earlier, surroundings, out)
        yield Results(out, surroundings, stream, earlier, torn)


def require_grid(out: Path, grid_text: str) -> None:
    """Refuse a folder without results, or with those of another grid file.

    Raises:
        ConfigError: says which.
    """
    if not (out / GRID_FILE).is_file():
        raise ConfigError(
            f"{out} holds no grid to go on with (there is no {GRID_FILE}); name the folder that "
            "mpcfl bench printed as its output"
        )
    if (out / GRID_FILE).read_text(encoding="utf-8") != grid_text:
        raise ConfigError(
            f"{out} holds results of another grid file, see {out / GRID_FILE}; go on without a "
            "name (mpcfl bench --resume), or start anew with --out"
        )


def _lock(stream: IO[str], out: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(f"the grid in {out} is still running; wait until it ends") from None


def _set_torn_line_aside(out: Path) -> str | None:
    """Move what follows the last end of a line to a file of its own; say so."""
    records = out / RECORDS_FILE
    content = records.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return None
    with (out / TORN_FILE).open("ab") as stream:
        stream.write(content[whole:] + b"\n")
    with records.open("r+b") as stream:
        stream.truncate(whole)
    return (
        f"the last record in {records} was torn; moved to {out / TORN_FILE}, and its cell runs "
        "again"
    )


def _require_same(earlier: tuple[Record, ...], now: Surroundings, out: Path) -> None:
    for record in earlier:
        if record.machine.fingerprint != now.machine.fingerprint:
            raise ConfigError(
                f"{out} holds records of another machine ({record.machine.cpu}, "
                f"{record.machine.cores} cores, Linux {record.machine.kernel}); start anew with "
                "--out"
            )
        if record.commit != now.commit:
            raise ConfigError(
                f"{out} holds records of commit {record.commit or 'unknown'}, this is "
                f"{now.commit or 'unknown'}; check that one out again, or start anew with --out"
            )
