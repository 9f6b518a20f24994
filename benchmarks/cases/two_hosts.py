"""Two hosts on one machine: network namespaces joined by a link of a given rate.

Each host is a network and a UTS namespace (own interfaces, own host name) without a name in the
file system: a holder process keeps it, and the holder ends when its standard input is closed.
So the namespaces and their link vanish with the program that made them, even if that is killed
outright. The link is a veth pair with a token bucket (``tc tbf``) at both ends.

Files, processes and memory are shared: what runs on these hosts is separated for measuring, not
for safety. Needs Linux, root, and ``ip``, ``tc``, ``unshare`` and ``nsenter``.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mpcfl.errors import MpcflError
from mpcfl.launch.mpirun import compose

INTERFACE = "mpcfl0"
# Two addresses of a block that is reserved for benchmarks of networks (RFC 2544).
ADDRESSES = ("198.18.0.1", "198.18.0.2")
# Open MPI finds no way between two hosts that are a network of their own (/31).
_PREFIX_BITS = 24
# A burst above the 64 KiB that the kernel hands to a network card in one piece: the bucket
# would cut smaller ones up, which costs the processor time that a card doesn't. The queue of
# 20 ms is that of a shallow switch.
_BUCKET = ("burst", "256kb", "latency", "20ms")
_HOLD = 'hostname "$0" && echo ready && exec cat'
_DEADLINE_S = 10.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI keeps it; only our names are touched


@dataclass(frozen=True, slots=True)
class Host:
    """One of the hosts.

    Attributes:
        name: its host name, unlike any other's.
        address: of its interface.
        holder: process number of the process that keeps its namespaces.
    """

    name: str
    address: str
    holder: int

    def enter(self) -> list[str]:
        """Return the beginning of a command line that runs the rest of it on this host."""
        return ["nsenter", "--target", str(self.holder), "--net", "--uts"]


Hosts = tuple[Host, ...]


def require_root() -> None:
    """Refuse to go on without root.

    Raises:
        MpcflError: this process has not its rights.
    """
    if os.geteuid() != 0:
        raise MpcflError("making network namespaces needs root; run this case as root")


@contextmanager
def two_hosts(rate: str) -> Iterator[tuple[Host, Host]]:
    """Make two hosts and the link between them; take all of it away at the end.

    Args:
        rate: of the link, as ``tc`` writes it ("1gbit").

    Raises:
        MpcflError: not root, or the system refused a step; the message has its words.
    """
    require_root()
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        token = secrets.token_hex(4)
        first, second = (
            stack.enter_context(make_host(f"mpcfl-{token}-{letter}", address))
            for letter, address in zip("ab", ADDRESSES, strict=True)
        )
        _connect((first, second), rate)
        yield first, second


@contextmanager
def mpi_command(hosts: Hosts) -> Iterator[MpiCommand]:
    """Give the means to start MPI on all hosts, while the block lasts."""
    with tempfile.TemporaryDirectory(prefix="mpcfl-hosts-") as folder:
        agent = Path(folder) / "agent"
        agent.write_text(_agent_script(hosts), encoding="utf-8")
        agent.chmod(0o700)
        yield MpiCommand(hosts, Path(folder) / "hostfile", agent)


@dataclass(frozen=True, slots=True)
class MpiCommand:
    """Composes mpirun on hosts, an equal share of the ranks on each; a `sum_cell.Command`.

    Attributes:
        agent: what mpirun starts a daemon on another host with, in the place of ssh.
    """

    hosts: Hosts
    hostfile: Path
    agent: Path

    def __call__(self, n_ranks: int, program: Sequence[str]) -> list[str]:
        """Return the command line; the first ranks are on the first host."""
        slots = n_ranks // len(self.hosts)
        lines = (f"{host.address} slots={slots}\n" for host in self.hosts)
        self.hostfile.write_text("".join(lines), encoding="ascii")
        line = compose(n_ranks, program)
        at = line.index(sys.executable)
        return [*self.hosts[0].enter(), *line[:at], *self._options(), *line[at:]]

    def _options(self) -> list[str]:
        daemons = {"plm_ssh_agent": str(self.agent), "oob_tcp_if_include": INTERFACE}
        # Shared memory joins the ranks of one host only; MPI tells hosts apart by their names.
        ranks = {"btl": "self,sm,tcp", "btl_tcp_if_include": INTERFACE}
        line = ["--hostfile", str(self.hostfile)]
        for name, value in daemons.items():
            line += ["--prtemca", name, value]
        for name, value in ranks.items():
            line += ["--mca", name, value]
        return line


def _agent_script(hosts: Hosts) -> str:
    """Return a shell script that does what ``ssh HOST COMMAND...`` does, for these hosts."""
    cases = "".join(
        f'{host.address}) exec {shlex.join(host.enter())} sh -c "$*" ;;\n' for host in hosts
    )
    return f'#!/bin/sh\nhost=$1\nshift\ncase "$host" in\n{cases}esac\nexit 1\n'


@contextmanager
def make_host(name: str, address: str) -> Iterator[Host]:
    """Keep a host; at the end nothing that runs on it is left."""
    command = ["unshare", "--net", "--uts", "sh", "-c", _HOLD, name]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C reaches this program alone, which then ends what it began in its own order.
        start_new_session=True,
    ) as holder:
        assert holder.stdout is not None and holder.stderr is not None  # noqa: S101, PT018 - pipes
        try:
            if holder.stdout.readline() != "ready\n":
                _refuse(command, holder.stderr.read())
            yield Host(name, address, holder.pid)
        finally:
            _end_members(holder.pid)
            for left in _SHARED_MEMORY.glob(f"*{name}*"):
                left.unlink(missing_ok=True)
            holder.kill()


def _connect(hosts: tuple[Host, Host], rate: str) -> None:
    first, second = (str(host.holder) for host in hosts)
    ends = ("netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
    system(["ip", "link", "add", INTERFACE, *ends])
    for host in hosts:
        system([*host.enter(), "ip", "link", "set", "lo", "up"])
        own = ("addr", "add", f"{host.address}/{_PREFIX_BITS}", "dev", INTERFACE)
        system([*host.enter(), "ip", *own])
        bucket = ("dev", INTERFACE, "root", "tbf", "rate", rate, *_BUCKET)
        system([*host.enter(), "tc", "qdisc", "add", *bucket])
        system([*host.enter(), "ip", "link", "set", INTERFACE, "up"])


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
        _refuse(command, done.stderr)


def _refuse(command: Sequence[str], words: str) -> NoReturn:
    raise MpcflError(
        f"`{shlex.join(command)}` failed: {' '.join(words.split())}; this case needs the right "
        "to make namespaces and a kernel with veth and tbf"
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
    held = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
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
