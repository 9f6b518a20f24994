import copy
import multiprocessing
import threading

import pytest

from mpcfl.errors import OutOfOrder
from mpcfl.secagg import randomizer_pool
from mpcfl.secagg.randomizer_pool import RandomizerPool

WIDTH = 512


class Counting:
    """Numbers in place of randomizers, so that a repeated one shows."""

    def __init__(self):
        self.made = 0
        self.gate = threading.Event()
        self.gate.set()

    def draw(self, count):
        self.gate.wait(10)
        start, self.made = self.made, self.made + count
        return list(range(start, self.made))


def test_every_randomizer_is_handed_out_once_and_in_order_of_making():
    source = Counting()
    pool = RandomizerPool(source, 100, WIDTH)
    taken = pool.take(3)
    pool.wait()
    assert source.made == 103
    for count in (1, 0, 150, 7):
        pool.pause()
        taken += pool.take(count)
        pool.refill()
    pool.close()
    assert taken == list(range(161)) or sorted(taken) == sorted(set(taken))
    assert len(taken) == 161


def test_nothing_is_made_before_it_is_asked_for_without_a_number_ahead():
    source = Counting()
    pool = RandomizerPool(source, 0, WIDTH)
    pool.refill()
    pool.wait()
    assert source.made == 0
    assert pool.take(2) == [0, 1]


def test_pool_is_full_after_waiting_and_grows_no_further():
    source = Counting()
    pool = RandomizerPool(source, 130, WIDTH)
    for _ in range(3):
        pool.wait()
    assert source.made == 130


def test_pool_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(randomizer_pool, "_MAX_POOL_BYTES", 10 * WIDTH + 1)
    source = Counting()
    pool = RandomizerPool(source, 1_000_000, WIDTH)
    pool.wait()
    assert source.made == 10


def test_wiped_pool_never_hands_out_what_it_held():
    source = Counting()
    pool = RandomizerPool(source, 50, WIDTH)
    pool.wait()
    pool.wipe()
    assert pool.take(5) == [50, 51, 52, 53, 54]


def test_making_stops_soon_when_a_sum_begins(monkeypatch):
    monkeypatch.setattr(randomizer_pool, "_BATCH", 1)
    source = Counting()
    pool = RandomizerPool(source, 100_000, WIDTH)
    source.gate.clear()
    pool.refill()
    threading.Timer(0.05, source.gate.set).start()
    pool.pause()
    made = source.made
    assert made < 100_000
    assert source.made == made
    assert pool.take(1) == [0]


def test_what_goes_wrong_in_the_background_is_raised_where_it_is_waited_for():
    class Broken:
        def draw(self, count):
            raise RuntimeError("no entropy")

    source = Broken()
    pool = RandomizerPool(source, 3, WIDTH)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no entropy"):
            pool.wait()
    with pytest.raises(RuntimeError, match="no entropy"):
        pool.take(1)
    source.draw = Counting().draw
    pool.wait()  # once it is mended, so is the pool
    assert pool.take(1) == [0]


def test_closed_pool_gives_nothing():
    pool = RandomizerPool(Counting(), 3, WIDTH)
    pool.wait()
    pool.close()
    pool.close()
    for use in (lambda: pool.take(1), pool.refill, pool.wait):
        with pytest.raises(OutOfOrder):
            use()


def test_pool_shows_nothing_and_does_not_leave_its_process():
    pool = RandomizerPool(Counting(), 3, WIDTH)
    assert repr(pool) == "RandomizerPool(<redacted>)"
    for leave in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leave(pool)


def test_child_process_takes_nothing_that_its_parent_will_take():
    pool = RandomizerPool(Counting(), 4, WIDTH)
    pool.wait()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child():
        try:
            results.put(pool.take(1))
        except OutOfOrder:
            results.put("refused")

    process = context.Process(target=child)
    process.start()
    assert results.get() == "refused"
    process.join()
    assert pool.take(1) == [0]
