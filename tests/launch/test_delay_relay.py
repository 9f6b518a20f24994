"""The relay that delays packets: with a clock of the test's own, and over pairs of sockets."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.launch.delay_relay import ETHERNET_BYTES, DelayLine, Line, relay

FIRST, SECOND = (socket.inet_aton(f"198.18.0.{number}") for number in (1, 2))
PORTS = {FIRST: 10, SECOND: 11}
DELAY_NS = 20_000_000
# Eight bits a nanosecond: a byte a nanosecond.
BYTE_PER_NS = 8_000_000_000


def packet(destination: bytes, content: bytes = b"") -> bytes:
    """Return an IPv4 packet as far as the relay looks."""
    return b"\x45" + bytes(11) + bytes(4) + destination + content


@pytest.fixture
def line() -> DelayLine:
    return DelayLine(Line(DELAY_NS, BYTE_PER_NS, queue_ns=10_000), PORTS)


def test_a_packet_is_handed_on_unchanged_at_its_due_time_and_not_before(line: DelayLine) -> None:
    sent = packet(SECOND, b"content")
    assert line.accept(sent, now_ns=1_000)
    assert line.next_ns == 1_000 + DELAY_NS
    assert list(line.due(DELAY_NS + 999)) == []
    assert list(line.due(DELAY_NS + 1_000)) == [(PORTS[SECOND], sent)]
    assert list(line.due(10 * DELAY_NS)) == []
    assert line.next_ns is None


@pytest.mark.parametrize(
    "dropped",
    [
        packet(socket.inet_aton("192.0.2.1")),
        packet(FIRST)[:-1],
        b"\x60" + packet(FIRST)[1:] + bytes(20),
        b"",
    ],
    ids=["to nobody", "too short", "IPv6", "empty"],
)
def test_what_is_for_none_of_the_hosts_is_dropped(line: DelayLine, dropped: bytes) -> None:
    assert not line.accept(dropped, now_ns=0)
    assert line.next_ns is None


def test_a_host_receives_no_faster_than_its_rate_and_another_host_is_not_held_up(
    line: DelayLine,
) -> None:
    large = packet(FIRST, bytes(980))
    for _ in range(3):
        assert line.accept(large, now_ns=0)
    assert line.accept(packet(SECOND), now_ns=0)
    dues = []
    while line.next_ns is not None:
        dues.append((line.next_ns - DELAY_NS, next(line.due(line.next_ns))[0]))
    frame_ns = ETHERNET_BYTES + len(large)
    assert dues == [(0, 10), (0, 11), (frame_ns, 10), (2 * frame_ns, 10)]


def test_a_packet_that_would_wait_longer_than_the_queue_is_dropped(line: DelayLine) -> None:
    frame_ns = ETHERNET_BYTES + len(packet(FIRST, bytes(980)))
    fit = 1 + 10_000 // frame_ns
    taken = [line.accept(packet(FIRST, bytes(980)), now_ns=0) for _ in range(fit + 2)]
    assert taken == [True] * fit + [False, False]
    # Time empties the queue.
    assert line.accept(packet(FIRST), now_ns=frame_ns)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FIRST, SECOND]), st.binary(max_size=40), st.integers(0, 3 * DELAY_NS)
        )
    )
)
def test_every_host_receives_what_was_sent_to_it_in_the_order_of_sending(
    sent: list[tuple[bytes, bytes, int]],
) -> None:
    line = DelayLine(Line(DELAY_NS, BYTE_PER_NS, queue_ns=DELAY_NS), PORTS)
    expected, received, now_ns = defaultdict(list), defaultdict(list), 0
    for destination, content, pause_ns in sent:
        now_ns += pause_ns
        for port, found in line.due(now_ns):
            received[port].append(found)
        assert line.accept(packet(destination, content), now_ns)
        expected[PORTS[destination]].append(packet(destination, content))
    assert line.next_ns is None or line.next_ns > now_ns
    for port, found in line.due(now_ns + 10 * DELAY_NS):
        received[port].append(found)
    assert received == expected


@pytest.fixture
def cables() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Two devices of the relay with the hosts' ends: packets stay packets."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    for ours, theirs in pairs:
        ours.setblocking(False)
        theirs.settimeout(10)
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


def test_the_relay_hands_on_late_and_in_order_and_ends_when_it_is_told(
    cables: list[tuple[socket.socket, socket.socket]],
) -> None:
    devices = [ours.fileno() for ours, _ in cables]
    (_, first), (_, second) = cables
    line = DelayLine(
        Line(DELAY_NS, BYTE_PER_NS, queue_ns=DELAY_NS),
        dict(zip((FIRST, SECOND), devices, strict=True)),
    )
    told, telling = os.pipe()
    running = threading.Thread(target=relay, args=(devices, line, told))
    running.start()
    sent = [packet(SECOND, bytes([number])) for number in range(100)]
    start = time.monotonic_ns()
    for one in sent:
        first.send(one)
    received = [second.recv(1 << 16) for _ in sent]
    assert time.monotonic_ns() - start >= DELAY_NS
    second.send(packet(FIRST, b"back"))
    assert first.recv(1 << 16) == packet(FIRST, b"back")
    os.close(telling)
    running.join(10)
    os.close(told)
    assert not running.is_alive()
    assert received == sent


def test_a_device_that_is_down_loses_its_packets_and_no_others(
    cables: list[tuple[socket.socket, socket.socket]],
) -> None:
    devices = [ours.fileno() for ours, _ in cables]
    (_, first), (_, second) = cables
    # What is written to an end whose other end is closed is refused.
    third = socket.inet_aton("198.18.0.3")
    down, closed = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    closed.close()
    line = DelayLine(
        Line(0, BYTE_PER_NS, queue_ns=DELAY_NS),
        {FIRST: devices[0], SECOND: devices[1], third: down.fileno()},
    )
    told, telling = os.pipe()
    running = threading.Thread(target=relay, args=(devices, line, told))
    running.start()
    first.send(packet(third))
    first.send(packet(SECOND))
    assert second.recv(1 << 16) == packet(SECOND)
    os.close(telling)
    running.join(10)
    os.close(told)
    down.close()
    assert not running.is_alive()
