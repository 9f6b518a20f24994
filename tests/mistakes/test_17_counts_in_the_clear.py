"""Mistake 17: the count of adaptive clipping is seen in the clear, or noised by the server.

Who made it: TensorFlow Federated adds the noise of its quantile count on the server, and
releases `clipped_count` without any. What goes wrong: whether a party's norm met the clip norm
is a fact about its data; who runs the server, or reads its log, sees it. A count beside the bound
of the update also makes the sensitivity larger than the one that is charged. What would have to
break here: the count is no coordinate of the noised vector, gets its noise from fewer than all
parties, lies outside the joint bound, or is not in what the ledger charges.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpcfl.dp import NoiseShare, plan_for_job
from mpcfl.round import run_rounds

ROUNDS = 200
DIM = 3
ADAPTIVE = {"clipping": "adaptive", "clip_learning_rate": 1e-9}


@pytest.fixture
def still_job(job_of, line_task):
    """Every update is zero and meets the clip norm: the true count is +1 for each party."""

    class Still(line_task):
        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return inputs, 0 * targets

    return job_of(Still, privacy=ADAPTIVE, training={"rounds": ROUNDS})


@pytest.fixture
def count_is_noised_by_all(still_job, opened_rounds, variance_fits):
    """Tell whether the opened count is 3 h and noise of variance 3 S^2, in 200 rounds.

    Two-sided at 1e-9. No noise, or that of one party alone, is rejected surely.
    """
    plan = plan_for_job(still_job, DIM)

    def check() -> bool:
        sums = opened_rounds(still_job)
        assert sums.shape == (ROUNDS, DIM + 1)
        noise = sums[:, -1] - 3 * plan.count_level_int
        return variance_fits(noise, 3 * plan.local_sigma**2)

    return check


@pytest.mark.stat
def test_the_count_carries_one_share_of_noise_from_every_party(count_is_noised_by_all):
    assert count_is_noised_by_all()


def in_the_clear(right, plan, bits=None):
    """The count is sent as it is."""
    noise = right(plan, bits).take()
    noise[-1] = 0
    return NoiseShare(noise)


def by_the_server(right, plan, bits=None):
    """One share of noise in place of three: that of whoever adds up."""
    noise = right(plan, bits).take()
    noise[-1] = round(noise[-1] / math.sqrt(3))
    return NoiseShare(noise)


@pytest.mark.stat
@pytest.mark.parametrize("mistake", [in_the_clear, by_the_server])
def test_the_check_fires_on_a_count_with_less_noise(mistake, count_is_noised_by_all, sabotage):
    with sabotage("mpcfl.round:draw_noise_share", mistake):
        assert not count_is_noised_by_all()


@pytest.fixture
def within_the_joint_bound(job_of, line_task, opened, keyed, sabotage):
    """Tell whether update and count of each party together keep the bound that is charged."""

    class Long(line_task):
        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return inputs, 1e4 * targets

    job = job_of(Long, privacy=ADAPTIVE | {"count_share": 0.4})
    plan = plan_for_job(job, DIM)

    def check() -> bool:
        parts = []

        def watched(right, levels, share):
            parts.append(levels)
            return right(levels, share)

        with sabotage("mpcfl.round:add_noise", watched):
            opened(job, keyed())
        assert all(part[-1] < 0 for part in parts)
        return all(sum(int(level) ** 2 for level in part) <= plan.norm_bound_int for part in parts)

    return check


def test_update_and_count_share_one_bound(within_the_joint_bound, sabotage):
    assert within_the_joint_bound()

    def beside_the_bound(right, rows, grid, *more):
        # The update takes all of the bound, as if the count cost nothing.
        levels = right(rows, grid, *more)
        whole = math.sqrt(grid.plan.norm_bound_int / grid.plan.model_bound_int)
        levels[:, :-1] = np.rint(levels[:, :-1] * whole)
        return levels

    with sabotage("mpcfl.round:quantize_rows", beside_the_bound):
        assert not within_the_joint_bound()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_the_count_is_in_what_is_charged(share, plan_of, true_epsilon):
    plan = plan_of(counts=1, count_share=share)
    whole = plan.model_bound_int + plan.count_level_int**2
    honest = math.sqrt(9 * plan.local_sigma**2 - 4)

    def charged_for(norm_bound: int) -> bool:
        return plan.epsilon() >= true_epsilon(honest / math.sqrt(norm_bound), rounds=10) - 1e-6

    assert charged_for(whole)
    assert plan.epsilon() <= 8.0
    # With the whole bound for the update and the count beside it, the figure would be too small.
    assert not charged_for(plan.norm_bound_int + plan.count_level_int**2)


def test_two_counts_are_charged_like_one_vector(plan_of):
    plan = plan_of(counts=2)
    assert plan.model_bound_int + 2 * plan.count_level_int**2 == plan.norm_bound_int
    assert plan.vector_dim == plan.dim + 2


def test_the_ledger_charges_an_adaptive_round_in_full(job_of, line_task, run_job):
    job = job_of(line_task, privacy={"clipping": "adaptive"}, aggregation={"backend": "crypten"})
    ran = run_job(job)
    assert ran.error is None
    plan = ran.publics[0].plan
    z = math.sqrt(2 * plan.local_sigma**2 - 4) / math.sqrt(plan.norm_bound_int)
    assert [c["noise_multiplier"] for c in ran.reserves(0)] == pytest.approx([z, z], rel=1e-12)
    # One release per round pays for both: the count is part of the same vector.
    assert ran.openings == 2
    assert len({public.counted.clip_norm for public in ran.publics}) == 1


def test_the_clip_norm_follows_from_opened_numbers_alone(job_of, line_task, keyed):
    """Whoever sees the sums can compute every clip norm: nothing else flows into it."""
    job = job_of(line_task, privacy={"clipping": "adaptive"}, training={"rounds": 3})
    plan = plan_for_job(job, DIM)
    counts, norms = [], []

    def note(_, total, public):
        counts.append(int(total[-1]) / plan.count_level_int / 3)
        norms.append(public.counted.clip_norm)

    run_rounds(job, keyed(), note)
    assert 1.0 not in norms
    clip_norm = 1.0
    for count, norm in zip(counts, norms, strict=True):
        met = min(max((count + 1) / 2, 0.0), 1.0)
        clip_norm *= math.exp(-0.2 * (met - 0.5))
        assert norm == pytest.approx(clip_norm, rel=1e-12)
