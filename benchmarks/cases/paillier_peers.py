"""What one Paillier ciphertext costs, beside HEU's ZPaillier, pypaillier and phe.

    python benchmarks/cases/paillier_peers.py                    # all cells; some five minutes
    python benchmarks/cases/paillier_peers.py --smoke            # does it run? nothing is kept
    python benchmarks/cases/paillier_peers.py --table FILE.jsonl # runs nothing

Each library works in a process of its own on one and the same core, and only one at a time. Every
round visits every operation of every library, in an order of its own. Threshold keys, packing and
the setting of FLASHE's figures are timed in the same way. Figures of a busy machine say nothing.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from paillier_cell import new_record
from paillier_command import Program, run
from paillier_figures import KINDS, OTHERS, OURS, PEERS
from paillier_without_kernel import has_kernel
from sum_cell import Record

from mpcfl.errors import MpcflError

WORKER = Path(__file__).parent / "paillier_worker.py"
# Distributions whose version is not in every record anyway.
_DISTRIBUTIONS = ("sf-heu", "pypaillier")
_QUICK_KEY_BITS = 2048
_REMEDY = 'pip install "mpcfl[phe,paillier-peers]"'
# Of what a process that failed wrote last.
_REASON_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Bench:
    """Who is timed side by side.

    Attributes:
        rounds: timed visits per operation.
        warmups: rounds before those; recorded, not used.
        visit_s: an operation is repeated for so long, and done once at least.
        needs_all: without one of the subjects there is no record.
    """

    name: str
    subjects: tuple[str, ...]
    key_bits: int
    rounds: int = 9
    warmups: int = 1
    visit_s: float = 0.2
    needs_all: bool = True

    @property
    def is_quick(self) -> bool:
        """Whether one visit of everything takes no more than seconds."""
        return self.key_bits <= _QUICK_KEY_BITS and self.name != "flashe-steps"


def benches() -> list[Bench]:
    """Return every cell."""
    threshold = ("threshold, gmpy2", "threshold, kernel")
    flashe = ("FLASHE's setting, gmpy2", "FLASHE's setting, kernel")
    return [
        Bench("libraries-2048", (*OTHERS, *OURS), 2048),
        Bench("libraries-3072", (*OTHERS, *OURS), 3072, rounds=5),
        *(Bench(f"threshold-{bits}", threshold, bits, rounds=3) for bits in (2048, 3072)),
        Bench("packing", ("packing",), 2048),
        Bench("flashe-steps", flashe, 2048, rounds=3),
    ]


class Worker:
    """A process that times one subject; ``said`` is a file for its standard error."""

    def __init__(self, subject: str, key_bits: int, said: IO[str]) -> None:
        self.subject = subject
        self._said = said
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), subject, str(key_bits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            MpcflError: the process has ended; with the last that it said.
        """
        line = _there(self._process.stdout).readline()
        if not line:
            self._said.seek(0)
            raise MpcflError(f"{self.subject} ended: {self._said.read()[-_REASON_CHARACTERS:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def time(self, operation: str, visit_s: float) -> dict[str, float]:
        """Return the seconds of one item of an operation, by kind."""
        requests = _there(self._process.stdin)
        requests.write(json.dumps([operation, visit_s]) + "\n")
        requests.flush()
        return self.answer()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _there(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise MpcflError("a worker has no pipe")  # it is always started with both
    return pipe


@contextmanager
def _workers(bench: Bench) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = []
        for subject in bench.subjects:
            said = stack.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            )
            workers.append(Worker(subject, bench.key_bits, said))
            stack.callback(workers[-1].end)
        yield workers


def measure(bench: Bench) -> Record:
    """Run one cell and return its record; a failure is recorded, not raised."""
    record = new_record(PEERS, bench.name, asdict(bench))
    record["versions"] |= dict(_versions())
    try:
        with _workers(bench) as workers:
            record["measured"] = _time_all(bench, workers)
    except MpcflError as error:
        record["failure"] = str(error)
    return record


def _time_all(bench: Bench, workers: Sequence[Worker]) -> dict[str, Any]:
    # Keys are made by all processes at once, on the one core; nothing is timed before all are.
    ready = {worker: worker.answer() for worker in workers}
    missing = [a["missing"] for a in ready.values() if "missing" in a]
    if missing and bench.needs_all:
        raise MpcflError(f"{missing[0]!r} is not installed; run: {_REMEDY}")
    visits = [
        (worker, operation)
        for worker, answer in ready.items()
        for operation in answer.get("operations", ())
    ]
    found: dict[str, Any] = {kind: {w.subject: {} for w, _ in visits} for kind in KINDS}
    for _ in range(bench.warmups + bench.rounds):
        secrets.SystemRandom().shuffle(visits)
        for worker, operation in visits:
            answer = worker.time(operation, bench.visit_s)
            for kind, by_subject in found.items():
                values = by_subject[worker.subject].setdefault(operation, [])
                values.append(round(answer[kind], 9))
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in _DISTRIBUTIONS:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def plan(chosen: Sequence[Bench], smoke: bool) -> list[Bench]:
    """Return what is run; for a smoke test, once, what is quickly made and is on this machine."""
    return [_tiny(bench) for bench in chosen if bench.is_quick] if smoke else list(chosen)


def _tiny(bench: Bench) -> Bench:
    subjects = tuple(s for s in bench.subjects if has_kernel() or not s.endswith("kernel"))
    return replace(bench, subjects=subjects, rounds=1, warmups=0, visit_s=0.0, needs_all=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read, and print; see `paillier_command.run` for the exit code."""
    return run(Program(PEERS, __doc__, benches(), plan, measure), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
