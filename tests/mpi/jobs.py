"""MPI jobs for tests: small ones, on warm ranks (`warm_ranks.py`), watched to their end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mpcfl.launch.mpirun import compose, supervise

_WARM_RANKS = Path(__file__).parent / "warm_ranks.py"
# On a busy machine the imports alone take a while.
_READY_S = 120.0
_GRACE_S = 5.0
# The server ends its ranks first, on a busy machine in a while.
_SERVER_GRACE_S = 30.0

# A task that is quick to import and to train, with a loss that any party can lower.
TASK = """
import torch
from torch import nn


class SmallTask:
    def model(self):
        return nn.Linear(40, 1)

    def party_data(self, party, n_parties):
        inputs, targets = self.test_data()
        return inputs[party::n_parties], targets[party::n_parties]

    def test_data(self):
        inputs = (torch.arange(80 * 40).reshape(80, 40) * 0.7).sin()
        return inputs, (inputs.sum(dim=1, keepdim=True) > 0.02).float()

    def loss(self, outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)
"""


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: mpirun's exit code; 0 if the run was over and mpirun was not waited for any longer;
            None if the job hung and was killed.
        seconds: that it took.
        lingered: some of it was there a while after the run was over, and was ended.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    lingered: bool = False


Compose = Callable[[int, Sequence[str]], list[str]]


@dataclass(frozen=True)
class WarmServer:
    """The process that forks ranks; ends with the block that made it."""

    path: Path
    pid: int

    def stub(self, arguments: Sequence[object]) -> list[str]:
        """Return what mpirun starts in the place of ``python ARGUMENTS``."""
        line = ("-S", "-E", str(_WARM_RANKS), "stub", str(self.path))
        return [*line, *map(str, arguments)]

    def ranks(self) -> list[int]:
        """Return the process numbers of all ranks that are alive."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(child) for child in children]


@contextmanager
def warm_server() -> Iterator[WarmServer]:
    """Start the process that forks ranks; at the end it and all ranks are gone."""
    with tempfile.TemporaryDirectory(prefix="mpcfl-warm-") as folder:
        path = Path(folder) / "ranks"
        with subprocess.Popen(
            [sys.executable, str(_WARM_RANKS), "serve", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n", "the warm ranks did not start"
                yield WarmServer(path, process.pid)
            finally:
                process.stdin.close()
                try:
                    process.wait(_SERVER_GRACE_S)
                finally:
                    process.kill()


def run_job(
    warm: WarmServer,
    n_ranks: int,
    arguments: Sequence[object],
    folder: Path,
    *,
    deadline_s: float = 60.0,
    command: Compose = compose,
) -> Ended:
    """Run ``python ARGUMENTS`` on warm ranks to its end, as `mpcfl run` does.

    Args:
        warm: where the ranks come from.
        n_ranks: how many.
        arguments: a script and what it gets.
        folder: where the ranks work; also for the temporary files of MPI.
        deadline_s: after which the job is killed, and its code None.
        command: composes the line of mpirun.
    """
    lines: list[str] = []
    done = threading.Event()

    def on_line(line: str) -> None:
        lines.append(line)
        if line.startswith("done: "):
            # Nobody is waited for who was stopped, or cut off.
            done.set()

    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    there = ["env", "-C", str(folder), f"TMPDIR={temporary}"]
    start = time.monotonic()
    line = [*there, *command(n_ranks, warm.stub(arguments))]
    outcome = supervise(line, on_line, timeout_s=deadline_s, done=done)
    seconds = time.monotonic() - start
    words = "\n".join(lines), "\n".join(outcome.stderr_tail)
    if not outcome.timed_out:
        return Ended(outcome.exit_code, *words, seconds)
    return Ended(0 if done.is_set() else None, *words, seconds, lingered=True)


def left_behind(warm: WarmServer, within_s: float = _GRACE_S) -> list[str]:
    """Return what is known of ranks that are still there after a while; empty if none is."""
    end = time.monotonic() + within_s
    while (pids := warm.ranks()) and time.monotonic() < end:
        time.sleep(0.02)
    return [f"process {pid}: {_describe(pid)}" for pid in pids]


def _describe(pid: int) -> str:
    with suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        state = next(line for line in status if line.startswith("State:"))
        where = Path(f"/proc/{pid}/wchan").read_text()
        ranks = [word.decode() for word in environment if word.startswith(b"PMIX_RANK=")]
        return f"{state} {where} {ranks}"
    return "gone by now"
