"""What a link between two hosts really carries: measured beside MPI, with sockets of its own.

The first and the last rank of a communicator are the two ends. The figures are what TCP
delivers to a program, without headers: a little less than the rate of the link.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

_STREAM_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_ROUND_TRIPS = 201
_DEADLINE_S = 30.0
# Columns of /proc/net/dev after the name: eight of what came in, then bytes that went out.
_SENT_COLUMN = 8


def transmitted_bytes(interface: str) -> int:
    """Return the bytes that the kernel sent on an interface of this host so far; 0 for ""."""
    if not interface:
        return 0
    # Unlike /sys, it shows the network namespace of the process that reads it.
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()
    rows = {name.strip(): fields.split() for name, _, fields in (r.partition(":") for r in lines)}
    return int(rows[interface][_SENT_COLUMN])


def measure_link(comm: MPI.Intracomm, addresses: Sequence[str]) -> dict[str, Any] | None:
    """Return bandwidths and the round trip at rank 0, None elsewhere; all ranks call it.

    Args:
        comm: its first and last rank are the ends.
        addresses: of their hosts, in this order.
    """
    rank, last = comm.Get_rank(), comm.Get_size() - 1
    port, found = np.zeros(1, dtype=np.int64), None
    if rank == 0:
        with socket.create_server((addresses[0], 0)) as server:
            server.settimeout(_DEADLINE_S)
            port[0] = server.getsockname()[1]
            comm.Bcast(port)
            with server.accept()[0] as peer:
                found = _measure(peer)
    else:
        comm.Bcast(port)
        if rank == last:
            with socket.create_connection((addresses[0], int(port[0])), _DEADLINE_S) as peer:
                _answer(peer)
    comm.Barrier()
    return found


def _measure(peer: socket.socket) -> dict[str, Any]:
    _set_up(peer)
    round_trips = []
    for _ in range(_ROUND_TRIPS):
        start = time.perf_counter()
        peer.sendall(b"p")
        _receive(peer, 1)
        round_trips.append(time.perf_counter() - start)
    one_way, both_ways = (_streams(peer, receives) for receives in (False, True))
    return {
        "stream_bytes": _STREAM_BYTES,
        "round_trip_s": statistics.median(round_trips),
        "one_way_bit_per_s": 8 * _STREAM_BYTES / one_way,
        "both_ways_bit_per_s": 8 * _STREAM_BYTES / both_ways,
        "congestion_control": peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        .rstrip(b"\0")
        .decode(),
    }


def _streams(peer: socket.socket, receives: bool) -> float:
    """Send a stream, and receive one meanwhile if asked; seconds until the other end has all."""
    start = time.perf_counter()
    sender = threading.Thread(target=_send_stream, args=(peer,))
    sender.start()
    if receives:
        _receive(peer, _STREAM_BYTES)
    sender.join()
    _receive(peer, 1)
    return time.perf_counter() - start


def _answer(peer: socket.socket) -> None:
    """Be the other end of `_measure`."""
    _set_up(peer)
    for _ in range(_ROUND_TRIPS):
        _receive(peer, 1)
        peer.sendall(b"p")
    _receive(peer, _STREAM_BYTES)
    peer.sendall(b"a")
    sender = threading.Thread(target=_send_stream, args=(peer,))
    sender.start()
    _receive(peer, _STREAM_BYTES)
    sender.join()
    peer.sendall(b"a")


def _set_up(peer: socket.socket) -> None:
    peer.settimeout(_DEADLINE_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _send_stream(peer: socket.socket) -> None:
    piece = bytes(_PIECE_BYTES)
    for _ in range(_STREAM_BYTES // _PIECE_BYTES):
        peer.sendall(piece)


def _receive(peer: socket.socket, n_bytes: int) -> None:
    """Read exactly so many bytes and forget them."""
    buffer = bytearray(min(n_bytes, _PIECE_BYTES))
    while n_bytes > 0:
        got = peer.recv_into(buffer, min(n_bytes, len(buffer)))
        if got == 0:
            raise ConnectionError("the other end of the link is gone")
        n_bytes -= got
