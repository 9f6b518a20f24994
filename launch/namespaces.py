"""A host on this machine: a network and a UTS namespace, kept by a process.

A host has its own interfaces and its own host name, and no name in the file system: a holder
process keeps it, and the holder ends when its standard input is closed. So it vanishes with the
program that made it, even if that is killed outright.

Files, processes and memory are shared with this machine, but for one folder where a host is given
its own: what runs on a host is separated for measuring, not for safety. Needs Linux, root, and
``ip``, ``unshare`` and ``nsenter``.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mpcfl.errors import MpcflError

_HOLD = 'hostname "$0" && ip link set lo up && echo ready && exec cat'
_HOLD_FILES = f'mount -t tmpfs -o mode=0700 files "$1" && {_HOLD}'
_DEADLINE_S = 10.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI keeps it; only our names are touched


@dataclass(frozen=True, slots=True)
class Host:
    """One of the hosts.

    Attributes:
        name: its host name, unlike any other's.
        address: of its interface; "" if it has none.
        holder: process number of the process that keeps its namespaces.
        has_own_files: there is a folder that shows other files here than on other hosts.
    """

    name: str
    address: str
    holder: int
    has_own_files: bool = False

    def enter(self) -> list[str]:
        """Return the beginning of a command line that runs the rest of it on this host."""
        files = ["--mount", f"--wd={Path.cwd()}"] if self.has_own_files else []
        return ["nsenter", "--target", str(self.holder), "--net", "--uts", *files]


@contextmanager
def make_host(name: str, address: str, own_folder: Path | None = None) -> Iterator[Host]:
    """Keep a host; at the end nothing that runs on it is left.

    Args:
        name: of the host.
        address: of its interface, which somebody else makes.
        own_folder: an existing folder whose files on this host, empty at first and kept in
            memory, no other host and no program outside can reach.

    Raises:
        MpcflError: the system refused; the message has its words.
    """
    private, hold = (
        ([], [_HOLD, name])
        if own_folder is None
        else (["--mount"], [_HOLD_FILES, name, str(own_folder)])
    )
    with kept(["unshare", "--net", "--uts", *private, "sh", "-c", *hold]) as holder:
        try:
            yield Host(name, address, holder, own_folder is not None)
        finally:
            _end_members(holder)
            for left in _SHARED_MEMORY.glob(f"*{name}*"):
                left.unlink(missing_ok=True)


@contextmanager
def kept(command: Sequence[str]) -> Iterator[int]:
    """Run a program from the moment when it says "ready" until the block ends; give its number.

    It ends when its standard input is closed, hence with this program.

    Raises:
        MpcflError: it ended, or said something else; the message has its words.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C reaches this program alone, which then ends what it began in its own order.
        start_new_session=True,
    ) as child:
        assert child.stdout is not None and child.stderr is not None  # noqa: S101, PT018 - pipes
        try:
            if child.stdout.readline() != "ready\n":
                refuse(command, child.stderr.read())
            yield child.pid
        finally:
            child.kill()


def system(command: Sequence[str]) -> None:
    """Run a command of the system; refuse if it fails.

    Raises:
        MpcflError: it is not there, failed or hung.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpcflError(f"could not run {command[0]} ({error}); is iproute2 there?") from None
    if done.returncode != 0:
        refuse(command, done.stderr)


def refuse(command: Sequence[str], words: str) -> NoReturn:
    """Raise what says that a command of the system failed, with its words."""
    raise MpcflError(
        f"`{shlex.join(command)}` failed: {' '.join(words.split())}; hosts on this machine need "
        "the right to make namespaces and a kernel with veth and tbf"
    )


def members(holder: int) -> list[int]:
    """Return all processes in the network namespace of a holder, the holder included."""
    try:
        namespace = Path(f"/proc/{holder}/ns/net").stat().st_ino
    except OSError:
        return []
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        # A process may have ended meanwhile.
        with suppress(OSError):
            if link.stat().st_ino == namespace:
                found.append(int(link.parts[2]))
    return found


def _end_members(holder: int) -> None:
    """Kill what still runs on a host, the holder excepted."""
    # Before the holder entered a namespace of its own, it shares that of this program.
    if os.getpid() in members(holder):
        return
    for pid in members(holder):
        if pid != holder:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have the first signal that would end this program end the block; ignore those after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    listening = [number for number, handler in held.items() if handler is not signal.SIG_IGN]

    def leave(number: int, _: FrameType | None) -> NoReturn:
        for other in listening:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in listening:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in listening:
            signal.signal(number, held[number])
