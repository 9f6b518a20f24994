"""Which party runs on which host, and the `mpirun` line that starts each there with its own file.

A hostfile is a list of hosts, one on a line, as Open MPI and MPICH write it:

    # one party each, in the order of the job's names
    north.example.org
    10.0.0.2  slots=2

Parties take the hosts from the top, as many each as it has slots (1 where none are given); an
aggregator comes last. Every party is an application of its own in the line (MPMD), so that it can
be given its own party file, which lies on its host and is not read here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcfl.errors import ConfigError, PartyLost
from mpcfl.launch.mpi_line import MpiKind, crowded_options, kind_of, start_options
from mpcfl.launch.mpirun import find_mpirun

# What names a host, and can't be taken for an option of a remote shell.
_HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?"
_LINE = re.compile(rf"(?P<host>{_HOST})(?::(?P<count>\d+)|\s+slots\s*=\s*(?P<slots>\d+))?")


# How mpirun names it.
_REMOTE = re.compile(r"Remote host:\s+(?P<host>\S+)")


@dataclass(frozen=True, slots=True)
class Host:
    """A line of a hostfile.

    Attributes:
        name: or address.
        slots: how many parties may run there.
    """

    name: str
    slots: int


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile.

    Raises:
        ConfigError: it can't be read, or a line names no host, or a host twice; the text names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{path}: can't read the hostfile: {reason}") from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        found = _LINE.fullmatch(words)
        slots = 0 if found is None else int(found["count"] or found["slots"] or 1)
        if found is None or slots < 1:
            raise ConfigError(
                f"{path}: line {number}: {words!r} is not a host; write NAME, or NAME slots=2"
            )
        if found["host"] in hosts:
            raise ConfigError(
                f"{path}: line {number}: {found['host']} is there twice; give it slots=2 instead"
            )
        hosts[found["host"]] = Host(found["host"], slots)
    return tuple(hosts.values())


def place_parties(names: Sequence[str], hosts: Sequence[Host], source: Path) -> dict[str, Host]:
    """Return each party's host; the first parties are on the first host.

    Raises:
        ConfigError: there are fewer slots than parties.
    """
    places = [host for host in hosts for _ in range(host.slots)]
    if len(places) < len(names):
        missing = ", ".join(names[len(places) :])
        raise ConfigError(
            f"{source}: {len(places)} slots for {len(names)} parties, none is left for {missing}; "
            "add their hosts"
        )
    return dict(zip(names, places, strict=False))


def compose_on_hosts(
    programs: Mapping[str, Sequence[str]], places: Mapping[str, Host]
) -> list[str]:
    """Return the command line that runs each party's own Python program on its host.

    Args:
        programs: by name of the party, in the order of their ranks.
        places: by name of the party.

    Raises:
        BackendUnavailable: there is no mpirun, or one that we don't know how to call.
    """
    mpirun = find_mpirun()
    kind = kind_of(mpirun)
    most = max(list(places.values()).count(place) for place in places.values())
    options = start_options(kind)
    if most > (os.cpu_count() or 1):
        options += crowded_options(kind)
    line = [str(mpirun)]
    for number, (name, program) in enumerate(programs.items()):
        if number > 0:
            line.append(":")
        line += ["-n", "1", *_at(places[name], kind), *options, sys.executable, *program]
        # What MPI is told of the whole job stands in its first part only.
        options = []
    return line


def _at(host: Host, kind: MpiKind) -> list[str]:
    if kind is MpiKind.MPICH:
        return ["-host", host.name]
    return ["--host", f"{host.name}:{host.slots}"]


def refuse_unreached(printed: Sequence[str], *, began: bool, remedy: str | None) -> None:
    """Raise what mpirun says of a host that it lost, or never reached, if it says so.

    Args:
        printed: the last lines of mpirun's.
        began: the parties had begun with their rounds.
        remedy: the command that continues the run, if there is one.

    Raises:
        PartyLost: it does; the text names the host.
    """
    found = next(filter(None, map(_REMOTE.search, printed)), None)
    if found is None:
        return
    host = found["host"]
    if began:
        raise PartyLost(
            f"mpirun lost its daemon on {host} and ended the run; continue it with: {remedy}"
        )
    raise PartyLost(
        f"mpirun could not start its daemon on {host}; from here `ssh {host} true` must work "
        f"without a question, and {sys.executable} with mpcfl must be there as well (see "
        "docs/how-to/hosts.md)"
    )
