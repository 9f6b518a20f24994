"""Delays every packet between hosts, where the kernel has no netem: a relay between TUN devices.

    python -m mpcfl.launch.delay_relay DELAY_NS RATE_BIT_PER_S QUEUE_NS ADDRESS=PID...

Opens a TUN device in the network namespace of every process PID, says "ready", and hands each IP
packet on to the device of its destination DELAY_NS later. What a host receives is limited to
RATE_BIT_PER_S; a packet that would wait longer than QUEUE_NS for that is dropped, as by a switch.
What a host sends is limited by the kernel, in front of the device. As a program, it carries some
hundreds of Mbit/s in all, and takes processor time from the ranks beside it; netem is better.

It ends when its standard input is closed, hence with the program that started it; the devices end
with it. Of a packet only the destination is read, and nothing is changed.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# Of an Ethernet header. These devices have none; rates are meant with it, as on other links.
ETHERNET_BYTES = 14
# Of every host's device.
INTERFACE = "mpcfl0"
# From <linux/if_tun.h>.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000  # from <linux/sched.h>
_LIBC = ctypes.CDLL(None, use_errno=True)
# Where an IPv4 header holds the destination, and its length without options.
_DESTINATION, _HEADER_BYTES = slice(16, 20), 20
_LARGEST_BYTES = 1 << 16
# After so many packets of one host it is looked again whether others are due.
_BATCH = 32
# No two looks are closer than this: one for each packet takes twice as much of the processors,
# which this program shares with the ranks. A packet that is alone on its way is not held up by it.
_PAUSE_NS = 200_000
_BITS_NS = 8 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class Line:
    """What every packet meets on its way.

    Attributes:
        delay_ns: from sender to receiver.
        rate_bit_per_s: at which a host receives.
        queue_ns: that a packet waits at most because of the rate.
    """

    delay_ns: int
    rate_bit_per_s: int
    queue_ns: int


class DelayLine:
    """Packets on their way, to be delivered in the order of their due times."""

    def __init__(self, line: Line, ports: Mapping[bytes, int]) -> None:
        """Begin with no packets.

        Args:
            line: what they meet.
            ports: by destination address, four bytes.
        """
        self._line = line
        self._ports = ports
        # When a port will have received all that was sent to it so far.
        self._free_ns = dict.fromkeys(ports.values(), 0)
        self._heap: list[tuple[int, int, int, bytes]] = []
        # Packets that are due together stay in their order.
        self._count = itertools.count()

    def accept(self, packet: bytes, now_ns: int) -> bool:
        """Take a packet on its way; False if it is dropped: nobody's, or too long a queue."""
        port = None
        if len(packet) >= _HEADER_BYTES and packet[0] >> 4 == 4:
            port = self._ports.get(packet[_DESTINATION])
        if port is None:
            return False
        arrival_ns = now_ns + self._line.delay_ns
        due_ns = max(arrival_ns, self._free_ns[port])
        if due_ns - arrival_ns > self._line.queue_ns:
            return False
        frame_bytes = ETHERNET_BYTES + len(packet)
        self._free_ns[port] = due_ns + frame_bytes * _BITS_NS // self._line.rate_bit_per_s
        heapq.heappush(self._heap, (due_ns, next(self._count), port, packet))
        return True

    def due(self, now_ns: int) -> Iterator[tuple[int, bytes]]:
        """Take out, one by one, what is to be delivered by now: (port, packet)."""
        while self._heap and self._heap[0][0] <= now_ns:
            _, _, port, packet = heapq.heappop(self._heap)
            yield port, packet

    @property
    def next_ns(self) -> int | None:
        """When the next packet is due; None if there is none."""
        return self._heap[0][0] if self._heap else None


@contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Be in the network namespace of a process while the block lasts."""
    with Path("/proc/self/ns/net").open() as own, Path(f"/proc/{pid}/ns/net").open() as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"could not enter a network namespace: {os.strerror(number)}")


def open_device(pid: int) -> int:
    """Make the TUN device of a host; return its file descriptor, which does not block."""
    with _network_of(pid):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(device, _TUNSETIFF, request)
    return device


def relay(devices: Sequence[int], line: DelayLine, ending: int) -> None:
    """Hand packets on until ``ending`` can be read from; the ports of ``line`` are the devices."""
    ready: list[int] = []
    while ending not in ready:
        looked_ns = time.monotonic_ns()
        for device in ready:
            _take_in(device, line)
        for device, packet in line.due(time.monotonic_ns()):
            # A device may be down; its packets are lost then, as on a cable that is pulled.
            with suppress(OSError):
                os.write(device, packet)
        time.sleep(_seconds_until(looked_ns + _PAUSE_NS))
        wait_s = None if line.next_ns is None else _seconds_until(line.next_ns)
        # Unlike poll and epoll, it takes a part of a millisecond.
        ready, _, _ = select.select([ending, *devices], [], [], wait_s)


def _seconds_until(then_ns: int) -> float:
    return max(0, then_ns - time.monotonic_ns()) / 1e9


def _take_in(device: int, line: DelayLine) -> None:
    for _ in range(_BATCH):
        try:
            packet = os.read(device, _LARGEST_BYTES)
        except BlockingIOError:
            return
        line.accept(packet, time.monotonic_ns())


def _hurry() -> None:
    """Go before the ranks whenever a packet is due: they share the processors with this program."""
    # Where that is not allowed, delays are less exact; they are measured and recorded.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main(arguments: Sequence[str]) -> int:
    """Open the devices and relay; return the exit status."""
    numbers, ends = arguments[:3], [end.partition("=") for end in arguments[3:]]
    devices = [open_device(int(pid)) for _, _, pid in ends]
    addresses = [socket.inet_aton(address) for address, _, _ in ends]
    line = DelayLine(Line(*map(int, numbers)), dict(zip(addresses, devices, strict=True)))
    _hurry()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    relay(devices, line, sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
