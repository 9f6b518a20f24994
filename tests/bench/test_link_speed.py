"""What is measured of a link: the arithmetic, the kernel's counter, and both ends over loopback."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mpcfl.bench import link_speed as module
from mpcfl.bench.link_speed import (
    answer,
    ask,
    bit_per_s,
    slope,
    transmitted_bytes,
    transmitted_packets,
)
from mpcfl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "meant"), [("20mbit", 20e6), ("1gbit", 1e9), ("1.5mbit", 1.5e6), ("56kbit", 56e3)]
)
def test_a_rate_means_what_tc_means_by_it(text: str, meant: float) -> None:
    assert bit_per_s(text) == meant


@pytest.mark.parametrize("text", ["", "fast", "20", "20Mbit", "-1mbit", "0mbit", "20mbit "])
def test_a_text_that_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="is no rate of a link; write a number and kbit, mbit"):
        bit_per_s(text)


def test_the_slope_of_a_straight_line_is_exact() -> None:
    seconds = np.linspace(5.0, 6.0, 301)
    assert slope(list(seconds), [round(1e6 * s) for s in seconds]) == pytest.approx(1e6, rel=1e-4)


def test_the_slope_is_that_of_the_link_if_the_process_was_held_up() -> None:
    arrived = np.linspace(0.0, 1.0, 400)
    # For a fifth of the time nothing was read; then all that had come was, at once.
    held = np.where(arrived < 0.2, 0.2 + 1e-6 * arrived, arrived)
    counts = [round(1e7 * a) for a in arrived]
    assert slope(list(held), counts) == pytest.approx(1e7, rel=1e-3)
    whole = (counts[-1] - counts[0]) / (held[-1] - held[0])
    assert whole > 1.2e7


def test_two_points_are_enough_for_a_slope() -> None:
    assert slope([1.0, 1.5], [100, 200]) == 200.0


def test_the_kernel_counts_what_leaves_with_its_headers() -> None:
    before = transmitted_bytes("lo"), transmitted_packets("lo")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        for _ in range(10):
            sender.sendto(bytes(1000), receiver.getsockname())
            receiver.recv(2000)
    # 20 bytes of IP and 8 of UDP are sure; others may use this interface too.
    assert transmitted_bytes("lo") - before[0] >= 10 * 1028
    assert transmitted_packets("lo") - before[1] >= 10


def test_without_an_interface_nothing_is_counted_and_an_unknown_one_is_refused() -> None:
    assert transmitted_bytes("") == transmitted_packets("") == 0
    with pytest.raises(ConfigError, match=r"no interface 'mpcfl9' here; found .*lo"):
        transmitted_bytes("mpcfl9")


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def test_both_ends_agree_on_what_goes_there_and_back() -> None:
    asking, answering = connection()
    with asking, answering, ThreadPoolExecutor(1) as other:
        answered = other.submit(answer, answering)
        found = ask(asking, rate_bit_per_s=1e6)
        answered.result(timeout=10)
        # Every byte that was sent was read.
        asking.shutdown(socket.SHUT_WR)
        assert answering.recv(1) == b""
    assert found.one_way_bit_per_s > 0
    assert found.both_ways_bit_per_s > 0
    assert 0 < found.round_trip_s < 10
    assert found.congestion_control


@pytest.mark.parametrize(
    ("figures", "best", "taken"),
    [((9.5,), 9.5, 1), ((6.0, 9.0), 9.0, 2), ((6.0, 8.9, 3.0, 5.0, 9.9), 8.9, 4)],
)
def test_a_slow_stream_is_followed_by_others_and_the_best_one_counts(
    figures: tuple[float, ...], best: float, taken: int
) -> None:
    left = list(figures)
    assert module._best(lambda: left.pop(0), enough=9.0) == best
    assert len(figures) - len(left) == taken


def test_an_end_that_goes_away_is_an_error_and_no_hang() -> None:
    asking, answering = connection()
    closing = threading.Timer(0.05, answering.close)
    closing.start()
    with asking, pytest.raises(ConnectionError):
        ask(asking, rate_bit_per_s=1e6)
    closing.join()
