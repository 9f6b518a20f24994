"""Mistake 24: a rejection loop without an end, or one whose length depends on the secret.

Who made it: TensorFlow Federated's conditional rounding (beta > 0), which looped on TFLite until
its default became unconditional. What goes wrong: a row that can never meet the bound stops the
party for ever, which all others see; a loop over noise until the result is small changes the law
and the time. What would have to break here: rounding tries more than a fixed number of times,
or the sampler reads more bits for some levels than for others.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mpcfl.dp import clip_rows, draw_noise_share
from mpcfl.dp.rounding import MAX_DRAWS, round_conditionally
from mpcfl.hazmat.bits import SystemBits


class CountedBits:
    """Counts the words that are read from a source."""

    def __init__(self, source) -> None:
        self.read = 0
        self._source = source

    def words(self, count: int) -> np.ndarray:
        self.read += count
        return self._source.words(count)


ADVERSARIAL = [
    np.full((1, 50), np.nan),
    np.full((1, 50), np.inf),
    np.full((1, 50), 1e308),
    np.full((1, 50), 1.0),
    np.eye(1, 50) * (1 + 2.0**-15),
]


@pytest.fixture
def tries(plan_of, quantized, sabotage):
    """Return how often the rounding of a row is tried, and the row; stops after 200."""

    def count(row) -> tuple[int, np.ndarray]:
        seen = []

        def watched(right, *arguments):
            seen.append(1)
            if len(seen) > 200:
                raise RecursionError
            return right(*arguments)

        with sabotage("mpcfl.dp.rounding:exact_square_norms", watched):
            levels = quantized(row, plan_of())
        return len(seen), levels

    return count


@pytest.mark.parametrize("row", ADVERSARIAL, ids=["nan", "infinity", "huge", "long", "barely"])
def test_a_row_that_never_fits_ends_as_zero_after_eight_retries(row, tries):
    n_tries, levels = tries(row)
    assert n_tries <= 9
    assert not levels.any()


def test_a_row_that_fits_is_rounded_once(tries):
    n_tries, levels = tries(clip_rows(ADVERSARIAL[3], 1.0)[0])
    assert n_tries == 1
    assert levels.any()


def test_the_check_fires_on_a_loop_without_an_end(tries, monkeypatch):
    monkeypatch.setattr("mpcfl.dp.rounding._MAX_SHRINKS", 10**9)
    with pytest.raises(RecursionError):
        tries(ADVERSARIAL[3])


@pytest.mark.parametrize("row", ADVERSARIAL[:4], ids=["nan", "infinity", "huge", "long"])
def test_conditional_rounding_ends_as_well(row):
    bits = CountedBits(SystemBits())
    with np.errstate(over="ignore", invalid="ignore"):
        levels = round_conditionally(1e4 * row, 100, bits)
    assert bits.read == MAX_DRAWS * row.size
    assert not levels.any()


def test_conditional_rounding_that_fits_reads_each_word_once():
    bits = CountedBits(SystemBits())
    row = np.full((1, 64), 0.5)
    levels = round_conditionally(row, 64, bits)
    assert bits.read == 64
    assert set(np.unique(levels)) <= {0, 1}


@pytest.fixture
def work_is_independent_of_values(job_of, line_task, opened, keyed, sabotage):
    """Tell whether two sums under equal bits read equally many words, whatever the data."""

    class Other(line_task):
        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return 100 * inputs, -100 * targets * (party != 1)

    def check() -> bool:
        read = []
        for task in (line_task, Other):
            counted = [CountedBits(source) for source in keyed()]
            opened(job_of(task), counted)
            read.append([bits.read for bits in counted])
        assert min(read[0]) > 0
        return read[0] == read[1]

    return check


def test_the_sampler_works_the_same_for_all_values(work_is_independent_of_values, sabotage):
    assert work_is_independent_of_values()
    own = threading.local()

    def remember(right, plan, bits=None):
        own.plan, own.bits = plan, bits
        return right(plan, bits)

    def until_the_sign_is_right(right, levels, share):
        noised = right(levels, share)
        while (noised[0] < 0) != (levels[0] < 0):
            noised = right(levels, draw_noise_share(own.plan, own.bits))
        return noised

    with (
        sabotage("mpcfl.round:draw_noise_share", remember),
        sabotage("mpcfl.round:add_noise", until_the_sign_is_right),
    ):
        assert not work_is_independent_of_values()
