"""What a network between hosts really carries: measured beside MPI, with sockets of its own.

The first and the last rank of a communicator are the two ends. Streams are timed where they
arrive, after TCP has found its speed: a first part of every stream is not timed, and a slow one is
followed by another. The figures are what TCP delivers to a program, without headers, hence a little
less than the rate of the link.
"""

from __future__ import annotations

import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpcfl.errors import ConfigError

if TYPE_CHECKING:
    from mpi4py import MPI

_RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
# A stream is timed for as many bytes as the link carries in this time, or in ten round trips. Half
# of that goes before: TCP's slow start needs two round trips' worth.
_TIMED_S, _TIMED_ROUND_TRIPS = 0.4, 10
_PIECE_BYTES, _LEAST_PIECES = 1 << 14, 8
# Points of a stream's progress that its rate is read off; they make two thousand pairs.
_POINTS = 64
# Single bytes go there and back for half a second, at least and at most so often.
_BYTES_S, _LEAST_BYTES, _MOST_BYTES = 0.5, 11, 201
# TCP may take a wrong idea of a link from its first packets, and keep it for a while. What a link
# carries is the best of some streams, if the first has not come near the rate.
_TRIES, _ENOUGH = 4, 0.9
# What the asking end wants next.
_BYTE, _ONE_WAY, _BOTH_WAYS, _END = b"p", b"s", b"b", b"e"
_DEADLINE_S = 30.0
_LOOK_S = 0.002
# Columns of /proc/net/dev after the name: eight of what came in, then bytes and packets that
# went out.
_SENT_COLUMN = 8
_FIGURE = struct.Struct("<d")
_LENGTHS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """What was measured; as in `record.MeasuredLink`.

    Attributes:
        one_way_bit_per_s: what TCP delivers from the first host to the last.
        both_ways_bit_per_s: the same with streams in both directions at once; the slower one.
        round_trip_s: median of single bytes there and back.
        congestion_control: of TCP, by its name in the kernel.
    """

    one_way_bit_per_s: float
    both_ways_bit_per_s: float
    round_trip_s: float
    congestion_control: str


@dataclass(frozen=True, slots=True)
class _Stream:
    """Bytes of a stream: those that only bring TCP to its speed, and those that are timed."""

    untimed: int
    timed: int


def bit_per_s(rate: str) -> float:
    """Return the rate that a text such as "20mbit" means, in bit/s.

    Raises:
        ConfigError: it means none.
    """
    found = _RATE.fullmatch(rate)
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if value <= 0.0:
        raise ConfigError(
            f"{rate!r} is no rate of a link; write a number and kbit, mbit or gbit, as in '20mbit'"
        )
    return value


def transmitted_bytes(interface: str) -> int:
    """Return the bytes that the kernel sent on an interface of this host so far; 0 for "".

    All headers that the interface has are included, and what was sent again after a loss.

    Raises:
        ConfigError: this host has no such interface.
    """
    return _sent(interface, 0)


def transmitted_packets(interface: str) -> int:
    """Return the packets that these bytes were in; see `transmitted_bytes`."""
    return _sent(interface, 1)


def _sent(interface: str, column: int) -> int:
    if not interface:
        return 0
    # Unlike /sys, it shows the network namespace of the process that reads it.
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()
    rows = {name.strip(): fields.split() for name, _, fields in (r.partition(":") for r in lines)}
    if interface not in rows:
        raise ConfigError(f"there is no interface {interface!r} here; found {', '.join(rows)}")
    return int(rows[interface][_SENT_COLUMN + column])


def measure_link(
    comm: MPI.Intracomm, addresses: Sequence[str], rate_bit_per_s: float
) -> LinkSpeed | None:
    """Return what the link carries at rank 0, None elsewhere; all ranks call it.

    Args:
        comm: its first and last rank are the ends.
        addresses: of the hosts; the first is that of rank 0.
        rate_bit_per_s: what the link should carry; streams are made as long as it takes to tell.
    """
    rank, last = comm.Get_rank(), comm.Get_size() - 1
    port, found = np.zeros(1, dtype=np.int64), None
    if rank == 0:
        with socket.create_server((addresses[0], 0)) as server:
            server.settimeout(_DEADLINE_S)
            port[0] = server.getsockname()[1]
            comm.Bcast(port)
            with server.accept()[0] as peer:
                found = ask(peer, rate_bit_per_s)
    else:
        comm.Bcast(port)
        if rank == last:
            with socket.create_connection((addresses[0], int(port[0])), _DEADLINE_S) as peer:
                answer(peer)
    _wait_asleep(comm)
    return found


def _wait_asleep(comm: MPI.Intracomm) -> None:
    """Be a barrier that leaves the processors to the two ends meanwhile; MPI's would not."""
    everybody = comm.Ibarrier()
    while not everybody.Test():
        time.sleep(_LOOK_S)


def ask(peer: socket.socket, rate_bit_per_s: float) -> LinkSpeed:
    """Measure the link to a peer that runs `answer` on the other end of this connection."""
    _set_up(peer)
    round_trip_s = _time_bytes(peer)
    timed_s = max(_TIMED_S, _TIMED_ROUND_TRIPS * round_trip_s)
    stream = _stream(rate_bit_per_s, timed_s)
    enough = _ENOUGH * rate_bit_per_s / 8
    one_way = _best(lambda: _one_way(peer, stream), enough)
    both_ways = _best(lambda: _both_ways(peer, stream), enough)
    peer.sendall(_END)
    algorithm = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return LinkSpeed(
        one_way_bit_per_s=8 * one_way,
        both_ways_bit_per_s=8 * both_ways,
        round_trip_s=round_trip_s,
        congestion_control=algorithm.rstrip(b"\0").decode(),
    )


def answer(peer: socket.socket) -> None:
    """Be the other end of `ask`."""
    _set_up(peer)
    while (asked := _receive_exactly(peer, 1)) != _END:
        if asked == _BYTE:
            peer.sendall(_BYTE)
            continue
        stream = _Stream(*_LENGTHS.unpack(_receive_exactly(peer, _LENGTHS.size)))
        with _sending(peer, stream if asked == _BOTH_WAYS else None):
            figure = _receive(peer, stream)
        peer.sendall(_FIGURE.pack(figure))


def _one_way(peer: socket.socket, stream: _Stream) -> float:
    peer.sendall(_ONE_WAY + _LENGTHS.pack(stream.untimed, stream.timed))
    _send(peer, stream)
    return _figure_of_peer(peer)


def _both_ways(peer: socket.socket, stream: _Stream) -> float:
    peer.sendall(_BOTH_WAYS + _LENGTHS.pack(stream.untimed, stream.timed))
    with _sending(peer, stream):
        back = _receive(peer, stream)
    return min(back, _figure_of_peer(peer))


def _best(measure: Callable[[], float], enough: float) -> float:
    """Return the highest of some figures; no more are taken once one is enough."""
    best = 0.0
    for _ in range(_TRIES):
        best = max(best, measure())
        if best >= enough:
            break
    return best


@contextmanager
def _sending(peer: socket.socket, stream: _Stream | None) -> Iterator[None]:
    """Send a stream, if there is one, while the block reads another."""
    if stream is None:
        yield
        return
    sender = threading.Thread(target=_send, args=(peer, stream), daemon=True)
    sender.start()
    yield
    sender.join()


def _stream(rate_bit_per_s: float, timed_s: float) -> _Stream:
    timed = max(_LEAST_PIECES * _PIECE_BYTES, round(rate_bit_per_s / 8 * timed_s))
    return _Stream(untimed=timed // 2, timed=timed)


def _time_bytes(peer: socket.socket) -> float:
    """Return the median seconds that a byte takes there and back."""
    round_trips: list[float] = []
    while len(round_trips) < _MOST_BYTES:
        if len(round_trips) >= _LEAST_BYTES and sum(round_trips) > _BYTES_S:
            break
        start = time.perf_counter()
        peer.sendall(_BYTE)
        _receive_exactly(peer, 1)
        round_trips.append(time.perf_counter() - start)
    return statistics.median(round_trips)


def _set_up(peer: socket.socket) -> None:
    peer.settimeout(_DEADLINE_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _send(peer: socket.socket, stream: _Stream) -> None:
    piece, left = bytes(_PIECE_BYTES), stream.untimed + stream.timed
    while left > 0:
        peer.sendall(piece[:left])
        left -= len(piece)


def _receive(peer: socket.socket, stream: _Stream) -> float:
    """Read a stream; return the bytes per second at which its timed part came."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    seconds, counts = [], []
    received, total = 0, stream.untimed + stream.timed
    while received < total:
        got = peer.recv_into(buffer[: total - received])
        if got == 0:
            raise ConnectionError("the other end of the link is gone")
        received += got
        if received > stream.untimed:
            seconds.append(time.perf_counter())
            counts.append(received)
    return slope(seconds, counts)


def slope(seconds: Sequence[float], counts: Sequence[int]) -> float:
    """Return how fast the counts grow: the median slope between any two points (Theil, Sen).

    Unlike the last count over the last time, it stays the same if this process was held up for a
    part of the time, and then found waiting what had come meanwhile.

    Args:
        seconds: times, in order; shape (n,), n >= 2.
        counts: shape (n,).
    """
    few = np.unique(np.linspace(0, len(seconds) - 1, _POINTS).round().astype(int))
    times, heights = np.asarray(seconds)[few], np.asarray(counts, dtype=np.float64)[few]
    first, second = np.triu_indices(len(few), k=1)
    return float(np.median((heights[second] - heights[first]) / (times[second] - times[first])))


def _receive_exactly(peer: socket.socket, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        piece = peer.recv(n_bytes - len(found))
        if not piece:
            raise ConnectionError("the other end of the link is gone")
        found += piece
    return found


def _figure_of_peer(peer: socket.socket) -> float:
    figure: float = _FIGURE.unpack(_receive_exactly(peer, _FIGURE.size))[0]
    return figure
