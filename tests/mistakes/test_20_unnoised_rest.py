"""Mistake 20: part of what is released carries no noise, or the noise only part of it.

Who made it: NVFlare#343 (its SVTPrivacy), FLIP#1145 (the stock sparse-vector settings cost an
epsilon of 70,333 per round), MediSwarm#530 (PercentilePrivacy is no differential privacy). What
goes wrong: a coordinate that is sent as it is, or only when it is large, is not covered by any
figure. What would have to break here: a coordinate of the opened sum with another noise than its
share from every party, or noise that depends on the values that it hides.
"""

from __future__ import annotations

import numpy as np
import pytest

from mpcfl.dp import NoiseShare, plan_for_job

ROUNDS = 200


@pytest.fixture
def every_coordinate_is_noised(job_of, line_task, opened_rounds, variance_fits):
    """Tell whether each coordinate's noise has the planned variance, with no signal beside it.

    Two-sided at 1e-9 over all 13 coordinates; 200 rounds reject no noise, half of the
    variance and double of it surely.
    """

    class Silent(line_task):
        n_inputs = 12

        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return inputs, 0 * targets

    job = job_of(Silent, training={"rounds": ROUNDS})
    variance = 3 * plan_for_job(job, 13).local_sigma ** 2

    def check() -> bool:
        sums = opened_rounds(job)
        assert sums.shape == (ROUNDS, 13)
        return all(variance_fits(column, variance, tests=13) for column in sums.T)

    return check


@pytest.mark.stat
def test_every_coordinate_of_what_is_opened_is_noised(every_coordinate_is_noised):
    assert every_coordinate_is_noised()


def bias_is_left_out(right, plan, bits=None):
    """The last coordinate is sent as it is."""
    noise = right(plan, bits).take()
    noise[-1] = 0
    return NoiseShare(noise)


def too_little(right, plan, bits=None):
    """One coordinate gets a third of the noise."""
    noise = right(plan, bits).take()
    noise[3] //= 3
    return NoiseShare(noise)


@pytest.mark.stat
@pytest.mark.parametrize("mistake", [bias_is_left_out, too_little])
def test_the_check_fires_on_one_coordinate(mistake, every_coordinate_is_noised, sabotage):
    with sabotage("mpcfl.round:draw_noise_share", mistake):
        assert not every_coordinate_is_noised()


@pytest.mark.stat
def test_the_check_fires_on_noise_for_large_values_only(every_coordinate_is_noised, sabotage):
    def sparse(right, levels, share):
        return np.where(np.abs(levels) > 0, right(levels, share), 0)

    with sabotage("mpcfl.round:add_noise", sparse):
        assert not every_coordinate_is_noised()


def test_noise_is_drawn_without_a_look_at_the_values(job_of, line_task, opened, keyed):
    """With equal bits the noise is equal whatever the data: two signals differ by data only."""

    class Other(line_task):
        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return inputs, 0 * targets

    signals = [
        opened(job_of(line_task), keyed(first=k)) - opened(job_of(Other), keyed(first=k))
        for k in (1, 101)
    ]
    np.testing.assert_array_equal(signals[0], signals[1])
