"""Mistake 4: a weighted average is released with the noise of a uniform one.

Who made it: Flower's fixed clipping with `aggregate`, which weights by `num_examples` while the
noise is z C / number of clients. What goes wrong: one party that holds half of all records of
10 parties moves the mean by C / 2 and not C / 10; an epsilon of 8 is really 69. What would have
to break here: a party's part in the sum passes the integer bound that the noise was sized for,
by its number of records or by a weight above one; or the sum is divided by private numbers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpcfl.config import PartiesTable
from mpcfl.dp import plan_for_job
from mpcfl.dp.counts import party_weight
from mpcfl.round import run_round

RECORDS = (900, 100, 100)
DIM = 3


WEIGHTINGS = [
    {},
    {"weighting": "public", "weights": [9.0, 1.0, 1.0]},
    {"weighting": "private", "max_records": 500},
]


@pytest.fixture
def rich_job(job_of, line_task):
    """Party 0 has nine times the records of the others, and all updates exceed the clip norm."""

    class Rich(line_task):
        def party_data(self, party, n_parties):
            inputs = torch.ones(RECORDS[party], self.n_inputs)
            return inputs, 1e3 * torch.ones(RECORDS[party], 1)

    training = {"batch_size": 1000, "rounds": 1}
    return lambda parties: job_of(Rich, parties=parties, training=training)


@pytest.fixture
def within_bound(opened, keyed, sabotage, rich_job):
    """Tell whether each party's part in a real sum stays within the bound of the plan."""

    def check(parties) -> bool:
        job, parts = rich_job(parties), []

        def watched(right, levels, share):
            parts.append(levels)
            return right(levels, share)

        with sabotage("mpcfl.round:add_noise", watched):
            opened(job, keyed())
        bound = plan_for_job(job, DIM).norm_bound_int
        assert len(parts) == 3
        assert all(part.any() for part in parts)
        return all(sum(int(level) ** 2 for level in part) <= bound for part in parts)

    return check


@pytest.mark.parametrize("parties", WEIGHTINGS, ids=["uniform", "public", "private"])
def test_no_weight_takes_a_party_past_the_bound(parties, within_bound, sabotage):
    assert within_bound(parties)
    share = RECORDS[0] / sum(RECORDS) * len(RECORDS)

    def by_records(right, *arguments):
        return np.rint(right(*arguments) * share).astype(np.int64)

    with sabotage("mpcfl.round:sum_levels", by_records):
        assert not within_bound(parties)


def test_the_sum_is_not_divided_by_private_numbers(rich_job, keyed, sabotage):
    scale = plan_for_job(rich_job({}), DIM).scale

    def is_public_mean() -> bool:
        result = run_round(rich_job({}), keyed())
        return bool(np.allclose(result.parameters, result.opened / (scale * 3), rtol=1e-12, atol=0))

    assert is_public_mean()
    with sabotage(
        "mpcfl.round:apply_mean",
        lambda right, parameters, mean, *more: right(parameters, mean * 3 / sum(RECORDS), *more),
    ):
        assert not is_public_mean()


def test_eight_is_really_sixty_nine(plan_of, true_epsilon):
    z = plan_of().noise_multiplier
    assert true_epsilon(z, rounds=10) == pytest.approx(8.0, abs=1e-6)
    assert true_epsilon(z / 5, rounds=10) == pytest.approx(69, abs=1)


@pytest.mark.parametrize("table", WEIGHTINGS, ids=["uniform", "public", "private"])
def test_no_weight_passes_one(table):
    parties = PartiesTable(count=3, **table)
    weights = [party_weight(parties, party, n) for party, n in enumerate(RECORDS)]
    assert max(weights) == 1.0
    assert min(weights) > 0.0


def test_private_weights_divide_by_their_noised_sum_only(rich_job, keyed, sabotage):
    """Equal opened sums give equal models: the true weights are nowhere else."""
    private = rich_job(WEIGHTINGS[2])
    plan = plan_for_job(private, DIM)

    def is_post_processing() -> bool:
        result = run_round(private, keyed())
        noised = result.opened[-1] / plan.count_level_int / 3
        divisor = 3 * min(max(noised, 1 / 500), 1.0)
        expected = result.opened[:DIM] / plan.scale / divisor
        return bool(np.allclose(result.parameters, expected, rtol=1e-12, atol=0))

    assert is_post_processing()

    def by_true_weights(right, opened, expected_rows, *more):
        _, after = right(opened, expected_rows, *more)
        return opened.values / (1 + 0.2 + 0.2), after

    with sabotage("mpcfl.round:opened_mean", by_true_weights):
        assert not is_post_processing()
