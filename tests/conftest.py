"""Fixtures that tests of several layers share."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and all that it wrote."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Finished]

# Fixtures whose tests start processes of their own.
_STARTING = frozenset({"mpcfl_command", "mpirun"})
_NO_ULFM = "MPICH has no ULFM here"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests that start processes of their own; `make test` runs them beside the others."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if _STARTING.intersection(fixtures):
            item.add_marker(pytest.mark.mpi)
        for needs in item.iter_markers("open_mpi"):
            if _is_mpich():
                item.add_marker(pytest.mark.skip(reason=(*needs.args, _NO_ULFM)[0]))


def _is_mpich() -> bool:
    """Tell whether tests run under MPICH; without any MPI they say so themselves."""
    from mpcfl.errors import BackendUnavailable
    from mpcfl.launch.mpi_line import MpiKind, kind_of
    from mpcfl.launch.mpirun import find_mpirun

    try:
        return kind_of(find_mpirun()) is MpiKind.MPICH
    except BackendUnavailable:
        return False


@pytest.fixture
def listening() -> Callable[[], None]:
    """Return what a child calls first, so that signals which the test run ignores reach it."""

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return listen


def _run_to_end(command: Sequence[str], *, timeout_s: float, cwd: Path) -> Finished:
    """Run a command in its own session; a hang becomes a failure that leaves nothing behind."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        pytest.fail(f"hung for {timeout_s} s: {shlex.join(map(str, command))}\n{stdout}\n{stderr}")
    return Finished(process.returncode, stdout, stderr)


@pytest.fixture
def mpcfl_command(tmp_path: Path) -> Run:
    """Return a function that runs `mpcfl ARGS` in a fresh folder."""

    def run(
        *arguments: object,
        timeout_s: float = 120,
        cwd: Path | None = None,
        program: Sequence[object] = ("-m", "mpcfl.launch"),
    ) -> Finished:
        command = [sys.executable, *map(str, program), *map(str, arguments)]
        return _run_to_end(command, timeout_s=timeout_s, cwd=cwd or tmp_path)

    return run


@pytest.fixture
def mpirun(tmp_path: Path) -> Run:
    """Return a function that runs `python ARGS` on n ranks of a real mpirun."""

    def run(n_ranks: int, *arguments: object, timeout_s: float = 120) -> Finished:
        from mpcfl.launch.mpirun import compose, never_began

        command = compose(n_ranks, [str(argument) for argument in arguments])
        done = _run_to_end(command, timeout_s=timeout_s, cwd=tmp_path)
        if never_began(done.code, done.stderr):
            done = _run_to_end(command, timeout_s=timeout_s, cwd=tmp_path)
        return done

    return run


@pytest.fixture
def repository() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).parent.parent
