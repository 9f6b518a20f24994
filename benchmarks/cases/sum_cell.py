"""One launch of the sum benchmarks: what is timed side by side, and the record it leaves.

A cell is one mpirun. Its variants add the same kind of vectors in turns, in an order that is
drawn afresh for every block, so that whatever slows the machine down meets all of them. A
record holds every raw value; a launch that fails leaves a record too, with the reason.
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpcfl.bench.machine import checkout_commit, installed_versions, this_machine
from mpcfl.errors import ConfigError
from mpcfl.launch.mpirun import Outcome, compose, supervise

# History: 1 the first.
SCHEMA = 1
# The name of the variant that is no backend: MPI.Allreduce on float32.
ALLREDUCE = "allreduce"
RANK_PROGRAM = Path(__file__).parent / "sum_rank.py"
# Standard error of a failed launch; the last words are of mpirun, the reason is above them.
_REASON_LINES = 30

Record = dict[str, Any]
Command = Callable[[int, Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to add the vectors.

    Attributes:
        name: within its cell.
        backend: `ALLREDUCE`, or a registered backend through `mpcfl.open_secure_sum`.
        modulus_bits: b of the ring; unused by `ALLREDUCE`.
        dtype: of the vectors that go in and come out.
        options: of `mpcfl.open_secure_sum`.
        timed: False if its sum is only compared with the exact one.
    """

    name: str
    backend: str
    modulus_bits: int = 32
    dtype: str = "int32"
    options: Mapping[str, Any] = field(default_factory=dict)
    timed: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """One mpirun.

    Attributes:
        values: timed sums per variant.
        warmups: sums per variant before those; recorded, not used.
        interface: network interface whose bytes the kernel counts; "" for none.
        addresses: of the first and the last rank's host; the link between them is then measured
            first.
        rate: that this link should have, as in "1gbit"; "" for none.
        mpi_options: more of the command line of mpirun.
    """

    name: str
    parties: int
    dim: int
    variants: tuple[Variant, ...]
    values: int = 9
    warmups: int = 2
    timeout_s: float = 240.0
    interface: str = ""
    addresses: tuple[str, ...] = ()
    mpi_options: tuple[str, ...] = ()
    rate: str = ""


def parse_cell(document: Mapping[str, Any]) -> Cell:
    """Read what `asdict` made of a cell and JSON of that."""
    tuples = {name: tuple(document[name]) for name in ("addresses", "mpi_options")}
    variants = tuple(Variant(**variant) for variant in document["variants"])
    return Cell(**{**document, **tuples, "variants": variants})


def draw_order(cell: Cell) -> list[list[str]]:
    """Return the names of the timed variants for every block, each block in random order."""
    names = [variant.name for variant in cell.variants if variant.timed]
    shuffle = secrets.SystemRandom().shuffle
    blocks = [list(names) for _ in range(cell.warmups + cell.values)] if names else []
    for block in blocks:
        shuffle(block)
    return blocks


def launch(case: str, cell: Cell, command: Command = compose) -> Record:
    """Run one cell and return its record; a failure is recorded, not raised.

    Args:
        case: the program that asks, kept in the record.
        cell: what to run.
        command: makes the line that starts a Python program on so many ranks.
    """
    order, started_at = draw_order(cell), datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="mpcfl-bench-") as folder:
        plan, out = Path(folder) / "plan.json", Path(folder) / "out.json"
        plan.write_text(json.dumps({"cell": asdict(cell), "order": order}), encoding="utf-8")
        line = command(cell.parties, [str(RANK_PROGRAM), str(plan), str(out)])
        at = line.index(sys.executable)
        line[at:at] = cell.mpi_options
        said: list[str] = []  # mpirun's own errors are on standard output
        outcome = supervise(line, said.append, cell.timeout_s)
        measured = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return {
        "schema": SCHEMA,
        "case": case,
        **asdict(cell),
        "order": order,
        "started_at": started_at,
        "commit": checkout_commit(),
        "machine": asdict(this_machine()),
        "versions": installed_versions(),
        "failure": failure_of(outcome, said, cell.timeout_s),
        "measured": measured,
    }


def failure_of(outcome: Outcome, said: Sequence[str], timeout_s: float) -> str | None:
    """Return why a launch failed, in the last words of its processes; None if it did not."""
    if outcome.timed_out:
        return f"timed out after {timeout_s:g} s"
    if outcome.exit_code == 0:
        return None
    tail = [*said, *outcome.stderr_tail][-_REASON_LINES:]
    return "\n".join((f"exit code {outcome.exit_code}", *tail))


def say(text: str) -> None:
    """Tell people how it goes; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def append_record(path: Path | None, record: Record) -> None:
    """Add one line to a file of records, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def load_records(path: Path, case: str) -> list[Record]:
    """Return the records that one case left in a file.

    Raises:
        ConfigError: the file can't be read, or holds records of two machines or another schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: can't read records: {error.strerror}") from None
    records = [record for line in lines if (record := json.loads(line))["case"] == case]
    if any(record["schema"] != SCHEMA for record in records):
        raise ConfigError(f"{path}: not all records have schema {SCHEMA}; remake them")
    if len(fingerprints(records)) > 1:
        raise ConfigError(f"{path}: the records come from several machines; keep one machine's")
    return records


def fingerprints(records: Iterable[Record]) -> set[str]:
    """Return which machines made the records."""
    return {record["machine"]["fingerprint"] for record in records}
