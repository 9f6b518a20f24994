"""Noise that is drawn beside the training: used once, by its own attempt, or thrown away."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mpcfl.dp import NoisePlan, NoiseShare, add_noise, draw_noise_share
from mpcfl.dp.noise_ahead import ShareAhead
from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import BitSource, KeystreamBits

LONG = 1 << 17


@pytest.fixture
def long_plan(party_plan: NoisePlan) -> NoisePlan:
    """A plan whose shares are worth a thread."""
    return dataclasses.replace(party_plan, dim=LONG)


def noise_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("noise")]


class Drawn:
    """`draw_noise_share`, and who called it with which bits."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.bits: list[BitSource | None] = []

    def __call__(self, plan: NoisePlan, bits: BitSource | None = None) -> NoiseShare:
        self.threads.append(threading.current_thread().name)
        self.bits.append(bits)
        return draw_noise_share(plan, bits)


def test_a_long_share_is_there_before_it_is_asked_for(long_plan: NoisePlan) -> None:
    ready = threading.Event()

    def draw(plan: NoisePlan, bits: BitSource | None) -> NoiseShare:
        share = draw_noise_share(plan, bits)
        ready.set()
        return share

    with ShareAhead(draw, long_plan, ahead=True) as ahead:
        assert ready.wait(30)
        assert ahead.take().take().shape == (LONG,)
    assert noise_threads() == []


@pytest.mark.stat
def test_the_share_is_one_draw_of_the_plans_noise(long_plan: NoisePlan) -> None:
    drawn = Drawn()
    with ShareAhead(drawn, long_plan, ahead=True) as ahead:
        noise = ahead.take().take()
    assert len(drawn.threads) == 1
    assert drawn.threads[0].startswith("noise")
    # Two-sided at 1e-9; a sigma that is 5 % off is 20 deviations away.
    ratio = float(np.mean(noise.astype(np.float64) ** 2)) / long_plan.local_sigma**2
    assert abs(ratio - 1) < stats.norm.isf(5e-10) * math.sqrt(2 / LONG)


@pytest.mark.parametrize("reason", ["off", "short", "no noise", "injected bits"])
def test_nothing_is_drawn_ahead_where_it_should_not_be(
    long_plan: NoisePlan,
    party_plan: NoisePlan,
    keyed_bits: Callable[[int], KeystreamBits],
    reason: str,
) -> None:
    plan = party_plan if reason == "short" else long_plan
    if reason == "no noise":
        plan = dataclasses.replace(plan, local_sigma=0)
    bits = keyed_bits(5) if reason == "injected bits" else None
    drawn = Drawn()
    with ShareAhead(drawn, plan, bits, ahead=reason != "off") as ahead:
        time.sleep(0.01)
        assert drawn.threads == []
        ahead.take()
    assert drawn.threads == [threading.current_thread().name]
    assert drawn.bits == [bits]


def test_injected_bits_give_the_same_share_ahead_or_not(
    long_plan: NoisePlan, keyed_bits: Callable[[int], KeystreamBits]
) -> None:
    with ShareAhead(draw_noise_share, long_plan, keyed_bits(3), ahead=True) as ahead:
        found = ahead.take().take()
    np.testing.assert_array_equal(found, draw_noise_share(long_plan, keyed_bits(3)).take())


@pytest.mark.parametrize("ahead", [False, True])
def test_a_share_is_handed_over_once(long_plan: NoisePlan, ahead: bool) -> None:
    drawn = Drawn()
    with ShareAhead(drawn, long_plan, ahead=ahead) as share:
        levels = np.zeros(LONG, dtype=np.int64)
        taken = share.take()
        add_noise(levels, taken)
        with pytest.raises(OutOfOrder, match="twice"):
            share.take()
        with pytest.raises(OutOfOrder, match="twice"):
            add_noise(levels, taken)
    assert len(drawn.threads) == 1


@pytest.mark.parametrize("ahead", [False, True])
def test_an_attempt_that_is_over_has_no_share(long_plan: NoisePlan, ahead: bool) -> None:
    with ShareAhead(draw_noise_share, long_plan, ahead=ahead) as share:
        pass
    with pytest.raises(OutOfOrder):
        share.take()


@pytest.mark.stat
def test_two_attempts_have_nothing_in_common(long_plan: NoisePlan) -> None:
    shares: list[NDArray[np.int64]] = []
    for _ in range(2):
        with ShareAhead(draw_noise_share, long_plan, ahead=True) as ahead:
            shares.append(ahead.take().take())
    # Two-sided at 1e-9; equal noise has a correlation of 1, 360 deviations away.
    correlation = float(np.corrcoef(shares[0], shares[1])[0, 1])
    assert abs(correlation) < stats.norm.isf(5e-10) / math.sqrt(LONG)


def test_an_attempt_that_fails_stops_the_drawing_and_leaves_no_thread(
    long_plan: NoisePlan,
) -> None:
    blocks = 0
    start = time.monotonic()

    def nearly_endless(plan: NoisePlan, bits: BitSource | None) -> NoiseShare:
        nonlocal blocks
        assert bits is not None
        while time.monotonic() < start + 20:
            bits.words(8)
            blocks += 1
        return draw_noise_share(plan)

    def fails() -> None:
        with ShareAhead(nearly_endless, long_plan, ahead=True):
            while blocks == 0:
                time.sleep(0.001)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert time.monotonic() < start + 10
    assert noise_threads() == []


def test_what_fails_in_the_background_is_raised_where_the_share_is_taken(
    long_plan: NoisePlan,
) -> None:
    def fails(*_: object) -> NoiseShare:
        raise MemoryError

    with ShareAhead(fails, long_plan, ahead=True) as ahead:
        time.sleep(0.01)
        with pytest.raises(MemoryError):
            ahead.take()
    assert noise_threads() == []


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("is_drawn", [False, True], ids=["under way", "drawn"])
def test_a_share_that_is_drawn_ahead_does_not_cross_a_fork(
    long_plan: NoisePlan, is_drawn: bool
) -> None:
    go_on, ready = threading.Event(), threading.Event()

    def draw(plan: NoisePlan, bits: BitSource | None) -> NoiseShare:
        go_on.wait(30)
        share = draw_noise_share(plan, bits)
        ready.set()
        return share

    with ShareAhead(draw, long_plan, ahead=True) as ahead:
        if is_drawn:
            go_on.set()
            assert ready.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits for a thread which it doesn't have
            try:
                ahead.take()
            except OutOfOrder:
                os._exit(0)
            os._exit(1)
        go_on.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ahead.take().take().shape == (LONG,)


def test_one_vector_is_held_and_none_afterwards(long_plan: NoisePlan) -> None:
    ready = threading.Event()

    def draw(plan: NoisePlan, bits: BitSource | None) -> NoiseShare:
        share = draw_noise_share(plan, bits)
        ready.set()
        return share

    draw_noise_share(long_plan)  # tables are made once
    tracemalloc.start()
    try:
        with ShareAhead(draw, long_plan, ahead=True):
            assert ready.wait(30)
            time.sleep(0.01)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    vector_bytes = 8 * LONG
    assert vector_bytes <= held < 1.1 * vector_bytes
    assert left < 0.1 * vector_bytes


@pytest.mark.parametrize("leak", [copy.copy, copy.deepcopy])
def test_it_can_be_neither_shown_nor_copied(
    long_plan: NoisePlan, leak: Callable[[object], object]
) -> None:
    with ShareAhead(draw_noise_share, long_plan, ahead=True) as ahead:
        assert "redacted" in repr(ahead)
        with pytest.raises(TypeError):
            leak(ahead)
