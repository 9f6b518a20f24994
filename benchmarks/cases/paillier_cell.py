"""One launch of the Paillier benchmarks: a sum over MPI, and the record it leaves.

A launch is one mpirun of one session: a few coordinates are summed and compared first, then the
vectors of the cell, with the processor seconds of every rank between two barriers. A record holds
every raw value; a launch that fails leaves a record too, with the reason.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from sum_cell import Command, Record, failure_of, fingerprints

from mpcfl.bench.machine import checkout_commit, installed_versions, this_machine
from mpcfl.errors import ConfigError
from mpcfl.launch.mpirun import compose, supervise

# History: 1 the first.
SCHEMA = 1
RANK_PROGRAM = Path(__file__).parent / "paillier_rank.py"
RESULTS = Path(__file__).parents[1] / "results" / "paillier.jsonl"
# What computes modular powers.
KERNEL, GMPY2 = "kernel", "gmpy2"
CLIENTS, HOLDER, THRESHOLD = "clients", "holder", "threshold"


@dataclass(frozen=True, slots=True)
class Round:
    """What is summed, by whom, and how often.

    Attributes:
        parties: data parties; custody `clients` takes one more rank.
        dim: coordinates, of 16 bits.
        arithmetic: `KERNEL` or `GMPY2`; without a meaning for `phe`, which always takes gmpy2.
        launches: mpiruns.
        sums: timed sums of a session, after its first one; with 0 that one is timed.
        precompute: randomizers are made before the clock starts.
    """

    name: str
    backend: str = "paillier"
    parties: int = 4
    dim: int = 1_000_000
    key_bits: int = 2048
    custody: str = CLIENTS
    arithmetic: str = KERNEL
    launches: int = 5
    sums: int = 0
    precompute: bool = False
    timeout_s: float = 600.0

    @property
    def n_ranks(self) -> int:
        """Processes of a launch."""
        return self.parties + int(self.custody == CLIENTS)


def launch(case: str, cell: Round, command: Command = compose) -> Record:
    """Run one launch and return its record; a failure is recorded, not raised.

    Args:
        case: the program that asks, kept in the record.
        cell: what to run.
        command: makes the line that starts a Python program on so many ranks.
    """
    head = new_record(case, cell.name, asdict(cell))
    with tempfile.TemporaryDirectory(prefix="mpcfl-bench-") as folder:
        plan, out = Path(folder) / "plan.json", Path(folder) / "out.json"
        plan.write_text(json.dumps(asdict(cell)), encoding="utf-8")
        line = command(cell.n_ranks, [str(RANK_PROGRAM), str(plan), str(out)])
        said: list[str] = []  # mpirun's own errors are on standard output
        outcome = supervise(line, said.append, cell.timeout_s)
        measured = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return {**head, "failure": failure_of(outcome, said, cell.timeout_s), "measured": measured}


def new_record(case: str, name: str, settings: Mapping[str, Any]) -> Record:
    """Return a record without what was measured."""
    return {
        "schema": SCHEMA,
        "case": case,
        "name": name,
        "settings": dict(settings),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        # Of the whole machine, over the minute before; what was measured beside others shows here.
        "load_before": os.getloadavg()[0],
        "commit": commit(),
        "machine": asdict(this_machine()),
        "versions": installed_versions(),
        "failure": None,
        "measured": {},
    }


@cache
def commit() -> str | None:
    """Return the commit of the checkout as it was before records changed a file of it."""
    return checkout_commit()


def load(path: Path) -> list[Record]:
    """Return all records of a file, of every case.

    Raises:
        ConfigError: the file can't be read, or holds records of two machines or another schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: can't read records: {error.strerror}") from None
    records = [json.loads(line) for line in lines]
    if any(record["schema"] != SCHEMA for record in records):
        raise ConfigError(f"{path}: not all records have schema {SCHEMA}; remake them")
    if len(fingerprints(records)) > 1:
        raise ConfigError(f"{path}: the records come from several machines; keep one machine's")
    return records


def forget(path: Path, case: str, names: Sequence[str]) -> None:
    """Take the records of some cells out of a file, because they are about to be remade."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not _is_of(json.loads(line), case, names)]
    path.write_text("".join(kept), encoding="utf-8")


def _is_of(record: Record, case: str, names: Sequence[str]) -> bool:
    return record["case"] == case and record["name"] in names
