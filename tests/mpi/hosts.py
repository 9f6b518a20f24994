"""Hosts on one machine whose links can be cut, and the traffic of one; see `mpcfl.launch.hosts`."""

from __future__ import annotations

import ctypes
import secrets
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mpcfl.launch.hosts import INTERFACE, Host, obstacle
from mpcfl.launch.mpirun import compose
from mpcfl.launch.namespaces import make_host, system


def _obstacle() -> str:
    """Return why hosts can't be made or watched here; "" if they can."""
    found = obstacle()
    if found:
        return found
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except OSError as error:
        return f"capturing packets needs CAP_NET_RAW: {error.strerror}"
    return ""


_OBSTACLE = _obstacle()
NEEDS_NAMESPACES = pytest.mark.skipif(bool(_OBSTACLE), reason=_OBSTACLE)
_LIBC = ctypes.CDLL(None, use_errno=True)
# From <linux/if_ether.h> and <linux/if_packet.h>.
_ALL_PROTOCOLS, _OUTGOING, _SOL_PACKET, _PACKET_STATISTICS = 0x0003, 4, 263, 6
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 256 << 20
# Packets on the loopback interface may hold 64 KiB and their headers.
_LARGEST_BYTES = 1 << 17
_ETHERNET_BYTES, _TCP, _SYN = 14, 6, 0x02
_WRAP = 1 << 32


def cut_off(host: Host) -> None:
    """Take a host's interface down; nothing leaves or reaches it from then on."""
    system([*host.enter(), "ip", "link", "set", INTERFACE, "down"])


@contextmanager
def lone_host() -> Iterator[Host]:
    """Make a host with a loopback interface and no other."""
    with make_host(f"mpcfl-{secrets.token_hex(4)}-alone", "127.0.0.1") as host:
        yield host


def over_loopback(host: Host, n_ranks: int, program: Sequence[str]) -> list[str]:
    """Return the line that runs MPI on one host, with every message on its loopback interface."""
    line = compose(n_ranks, program)
    options = ("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo")
    return [*host.enter(), line[0], *options, *line[1:]]


@dataclass(frozen=True)
class _Connection:
    """One direction of a TCP connection: the number of its first byte, and what came by number."""

    first: int
    pieces: dict[int, bytes] = field(default_factory=dict)

    def content(self) -> bytes:
        """Return all bytes in order; fails if some are missing."""
        content = bytearray()
        for start in sorted(self.pieces):
            assert start <= len(content), "the capture lacks a part of a connection"
            content += self.pieces[start][len(content) - start :]
        return bytes(content)


class Capture:
    """All TCP traffic on the loopback interface of a host, while the block lasts."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._connections: list[_Connection] = []
        self._current: dict[bytes, _Connection] = {}
        self.n_packets = 0

    def __enter__(self) -> Capture:
        self._socket = self._open()
        self._ending = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._reader.join()
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self._socket.close()
        assert struct.unpack("II", statistics)[1] == 0, "the kernel dropped captured packets"

    def streams(self) -> list[bytes]:
        """Return what went through every connection, each direction by itself."""
        return [connection.content() for connection in self._connections]

    def _open(self) -> socket.socket:
        """Open the socket in the host's namespace; a socket stays where it was made."""
        made: list[socket.socket] = []

        def make() -> None:
            with Path(f"/proc/{self._host.holder}/ns/net").open() as namespace:
                if _LIBC.setns(namespace.fileno(), 0) != 0:
                    return
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
            tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            tap.bind(("lo", _ALL_PROTOCOLS))
            tap.settimeout(0.05)
            made.append(tap)

        # A namespace is entered by one thread alone, and left with it.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert made, "could not capture in the namespace of the host"
        return made[0]

    def _read(self) -> None:
        while True:
            try:
                packet, address = self._socket.recvfrom(_LARGEST_BYTES)
            except TimeoutError:
                if self._ending.is_set():
                    return
                continue
            # On this interface every packet is seen going and coming.
            if address[2] != _OUTGOING:
                self.n_packets += 1
                self._sort_in(packet[_ETHERNET_BYTES:])

    def _sort_in(self, packet: bytes) -> None:
        version = packet[0] >> 4
        if version == 4:
            size, protocol = (packet[0] & 15) * 4, packet[9]
            ends, packet = packet[12:20], packet[: int.from_bytes(packet[2:4], "big")]
        else:
            size, protocol, ends = 40, packet[6], packet[8:40]
        if protocol != _TCP:
            return
        segment = packet[size:]
        name = ends + segment[:4]
        number = int.from_bytes(segment[4:8], "big")
        if segment[13] & _SYN:
            self._current[name] = _Connection((number + 1) % _WRAP)
            self._connections.append(self._current[name])
            return
        data = segment[(segment[12] >> 4) * 4 :]
        if data:
            connection = self._current[name]
            connection.pieces[(number - connection.first) % _WRAP] = data
