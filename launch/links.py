"""Links of a given rate and round trip between hosts on this machine.

Every host has one interface, `INTERFACE`. Without a round trip it is one end of a veth pair whose
other end is a port of a switch (a bridge in a namespace of its own). A token bucket (``tc tbf``)
limits what a host sends; another one at the switch's port limits what it receives, so that hosts
which send to one share its link, as on a switch.

A round trip is added by ``tc netem`` at the switch's ports where the kernel has it. Elsewhere a
relay takes the place of veth pairs and switch (`delay_relay`): the interfaces are TUN devices, the
bucket of what a host sends stays, and the relay limits what it receives. Rates are those of
Ethernet frames either way; what the kernel counts on a TUN device has no Ethernet headers.

Not modelled: loss other than by full queues, jitter, and the cost of a network card.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpcfl.bench.link_speed import bit_per_s
from mpcfl.errors import ConfigError, MpcflError
from mpcfl.launch.delay_relay import ETHERNET_BYTES, INTERFACE
from mpcfl.launch.namespaces import Host, kept, make_host, system

# Open MPI finds no way between two hosts that are a network of their own (/31).
_PREFIX_BITS = 24
_BRIDGE = "bridge0"
_TUN = Path("/dev/net/tun")
# What a bucket lets through at once: far less than what a sum takes, yet more than the kernel's
# timer is ever late. And never less than two Ethernet frames, of 1514 bytes each.
_BURST_S = 0.002
_LEAST_BURST_BYTES = 2 * 1514
# The queue in front of a bucket is that of a shallow switch, and a round trip longer, which is what
# one TCP connection needs to fill a long link. A small switch has this much for each port; with
# half of it some percent of the packets that three hosts send to a fourth at once are lost.
_QUEUE_S = 0.020
_LEAST_QUEUE_BYTES = 1 << 17
# As far as the Moon.
_LONGEST_MS = 2600.0
# Packets that netem may hold; the buckets before it bound them far below.
_NETEM_PACKETS = 1_000_000
# The programs that are run, and the Debian packages that have them.
_PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "hostname": "hostname",
}
_TRIAL = "ip link add trial0 type veth peer name trial1 && tc qdisc add dev trial0 "


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What the links between hosts are like.

    Attributes:
        rate: of every host's link in each direction, as ``tc`` writes it: "20mbit".
        round_trip_ms: between any two hosts, beside what the machine itself takes.
    """

    rate: str
    round_trip_ms: float = 0.0

    def __post_init__(self) -> None:
        bit_per_s(self.rate)  # refuses what is none
        if not 0.0 <= self.round_trip_ms <= _LONGEST_MS:
            raise ConfigError(
                f"a link can't have a round trip of {self.round_trip_ms:g} ms; use 0 or more, up "
                f"to {_LONGEST_MS:g}"
            )

    @property
    def burst_bytes(self) -> int:
        """Bytes that a bucket lets through at once."""
        return max(_LEAST_BURST_BYTES, round(bit_per_s(self.rate) / 8 * _BURST_S))

    @property
    def queue_s(self) -> float:
        """Seconds that a packet waits at most for a bucket."""
        least_s = 8 * _LEAST_QUEUE_BYTES / bit_per_s(self.rate)
        return max(least_s, _QUEUE_S + self.round_trip_ms / 1e3)

    def bucket(self, overhead: int = 0) -> list[str]:
        """Return the words that make a bucket, for ``tc qdisc add dev X PLACE``.

        Args:
            overhead: bytes that every packet has beyond those that the device knows of.
        """
        burst, queue_us = str(self.burst_bytes), round(self.queue_s * 1e6)
        rate = f"{round(bit_per_s(self.rate))}bit"
        words = ["tbf", "rate", rate, "burst", burst, "latency", f"{queue_us}us"]
        return [*words, "overhead", str(overhead)] if overhead else words


def obstacle(*, delayed: bool = False) -> str:
    """Return why hosts can't be made here and what to do about it; "" if they can.

    Args:
        delayed: with a round trip between them.
    """
    if os.geteuid() != 0:
        return "making network namespaces needs root; run this as root"
    for program, package in _PACKAGES.items():
        if shutil.which(program) is None:
            return f"the program {program} is not installed; run: apt-get install {package}"
    words = _try_alone("true")
    if words is not None:
        return (
            f"this system makes no namespaces ({words}); in a container, run it with the "
            "capabilities SYS_ADMIN and NET_ADMIN"
        )
    words = _try_alone(_TRIAL + "root tbf rate 1mbit burst 3028 latency 20ms")
    if words is not None:
        return f"this kernel has no veth or no tbf ({words}); use a kernel with both"
    words = _try_tun() if delayed and not has_netem() else ""
    if words:
        return (
            f"a round trip needs a kernel with netem, or {_TUN} ({words}); load the kernel's "
            "module sch_netem, or tun"
        )
    return ""


@functools.cache
def has_netem() -> bool:
    """Return whether the kernel delays packets, with a bucket behind the delay."""
    delay = _TRIAL + "root handle 1: netem delay 1ms"
    bucket = "tc qdisc add dev trial0 parent 1:1 tbf rate 1mbit burst 3028 latency 20ms"
    return _try_alone(f"{delay} && {bucket}") is None


def _try_alone(script: str) -> str | None:
    """Run a script in a network that is its own and ends with it; return its complaint, if any."""
    line = ["unshare", "--net", "--uts", "sh", "-c", script]
    tried = subprocess.run(line, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else " ".join(tried.stderr.split())


def _try_tun() -> str:
    """Return why there are no TUN devices; "" if there are."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def connected(hosts: Sequence[Host], link: LinkSettings, token: str) -> Iterator[str]:
    """Link hosts while the block lasts.

    Args:
        hosts: each with an address.
        link: what every one is linked to all others by.
        token: makes the switch's name unlike any other's.

    Yields:
        What adds the round trip: "none", "netem" or "relay".

    Raises:
        MpcflError: the system refused a step; the message has its words.
    """
    if link.round_trip_ms > 0 and not has_netem():
        with _relayed(hosts, link):
            for host in hosts:
                _bring_up(host, link.bucket(ETHERNET_BYTES))
            yield "relay"
        return
    with make_host(f"mpcfl-{token}-switch", "") as switch:
        system([*switch.enter(), "ip", "link", "add", _BRIDGE, "type", "bridge"])
        system([*switch.enter(), "ip", "link", "set", _BRIDGE, "up"])
        for number, host in enumerate(hosts):
            _plug_in(host, switch, f"port{number}", link)
        yield "netem" if link.round_trip_ms > 0 else "none"


def _plug_in(host: Host, switch: Host, port: str, link: LinkSettings) -> None:
    ends = ("netns", str(host.holder), "type", "veth", "peer", "name", port)
    system(["ip", "link", "add", INTERFACE, *ends, "netns", str(switch.holder)])
    queue = [*switch.enter(), "tc", "qdisc", "add", "dev", port]
    place = ["root"]
    if link.round_trip_ms > 0:
        half = f"{round(link.round_trip_ms * 500)}us"
        delay = ("netem", "delay", half, "limit", str(_NETEM_PACKETS))
        system([*queue, "root", "handle", "1:", *delay])
        place = ["parent", "1:1"]
    system([*queue, *place, *link.bucket()])
    system([*switch.enter(), "ip", "link", "set", port, "master", _BRIDGE, "up"])
    _bring_up(host, link.bucket())


def _bring_up(host: Host, bucket: Sequence[str]) -> None:
    """Give a host's interface its address and its bucket, and no traffic of its own accord."""
    own = ("addr", "add", f"{host.address}/{_PREFIX_BITS}", "dev", INTERFACE)
    system([*host.enter(), "ip", *own])
    system([*host.enter(), "tc", "qdisc", "add", "dev", INTERFACE, "root", *bucket])
    system([*host.enter(), "ip", "link", "set", INTERFACE, "addrgenmode", "none"])
    system([*host.enter(), "ip", "link", "set", INTERFACE, "up"])


@contextmanager
def _relayed(hosts: Sequence[Host], link: LinkSettings) -> Iterator[None]:
    """Run the relay; the hosts have their interfaces when the block begins."""
    numbers = (
        round(link.round_trip_ms * 500_000),
        round(bit_per_s(link.rate)),
        round(link.queue_s * 1e9),
    )
    ends = (f"{host.address}={host.holder}" for host in hosts)
    command = [sys.executable, "-P", "-m", "mpcfl.launch.delay_relay", *map(str, numbers), *ends]
    with kept(command):
        yield


def require_hosts(link: LinkSettings) -> None:
    """Refuse to go on where hosts with such links can't be made.

    Raises:
        MpcflError: names what is missing and the remedy.
    """
    found = obstacle(delayed=link.round_trip_ms > 0)
    if found:
        raise MpcflError(found)
