"""Mistake 1: every party is assumed honest, so that the noise is split over all n of them.

Who made it: TensorFlow Federated sizes the local noise as central / sqrt(n) and "assumes that
there will not be missing local noise shares". What goes wrong: a party in the coalition knows
its own share. With 10 parties a planned epsilon of 8 is really 8.53 against one of them, 9.94
against three, 12.26 if five drop out, and 35.6 against nine. What would have to break here: the
plan sizes the noise for fewer missing shares than n - colluding - max_dropout, or the round
draws less than the plan asks for.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from mpcfl.dp import draw_noise_share, plan_for_job
from mpcfl.errors import PlanError


@pytest.mark.parametrize(("colluding", "max_dropout"), [(1, 0), (3, 0), (1, 4), (9, 0)])
def test_the_shares_that_the_coalition_does_not_know_meet_the_budget(
    colluding, max_dropout, plan_of, true_epsilon
):
    plan = plan_of(colluding=colluding, max_dropout=max_dropout)
    honest = 10 - colluding - max_dropout
    known_to_nobody = math.sqrt(honest) * plan.local_sigma / plan.l2_sensitivity
    spent = true_epsilon(known_to_nobody, rounds=10)
    assert 8.0 * (1 - 1e-4) < spent <= 8.0
    # One honest share less and the same check fires.
    if honest > 1:
        fewer = math.sqrt(honest - 1) * plan.local_sigma / plan.l2_sensitivity
        assert true_epsilon(fewer, rounds=10) > 8.4


@pytest.mark.parametrize(("missing", "really"), [(1, 8.53), (3, 9.94), (5, 12.26), (9, 35.6)])
def test_what_the_mistake_costs(missing, really, plan_of, true_epsilon):
    asked = plan_of().noise_multiplier
    assert true_epsilon(asked, rounds=10) == pytest.approx(8.0, abs=1e-6)
    left = asked * math.sqrt((10 - missing) / 10)
    assert true_epsilon(left, rounds=10) == pytest.approx(really, abs=0.05)


def test_a_planner_that_forgets_the_coalition_is_caught_by_the_plan(plan_of, monkeypatch):
    monkeypatch.setattr(
        "mpcfl.dp.plan.PlanRequest.honest", property(lambda request: request.parties)
    )
    with pytest.raises(PlanError, match=r"spend epsilon 8\.527"):
        plan_of()


@pytest.mark.stat
def test_a_real_sum_less_the_coalitions_noise_keeps_the_planned_variance(
    job_of, silent_task, opened_rounds, keyed, changed_plan
):
    """One-sided at 1e-9; 14,800 draws or more reject 3/4 of the variance by 15 deviations."""
    job = job_of(silent_task, parties={"count": 4}, training={"rounds": 50})
    planned = plan_for_job(job, dim=400)

    def enough(local_sigma: int) -> bool:
        drawn = dataclasses.replace(planned, local_sigma=local_sigma)
        coalition = keyed(4)[0]
        sums = opened_rounds(job, keyed(4))
        honest = sums - [draw_noise_share(drawn, coalition).take() for _ in sums]
        needed = (planned.noise_multiplier * planned.l2_sensitivity) ** 2
        ratio = float(np.mean(honest.astype(np.float64) ** 2)) / needed
        return ratio > 1 - stats.norm.isf(1e-9) * math.sqrt(2 / honest.size)

    assert enough(planned.local_sigma)
    # With so little noise the budget ends after 37 of the 50 rounds.
    for_all_four = math.isqrt(planned.local_sigma**2 * 3 // 4)
    with changed_plan(local_sigma=for_all_four):
        assert not enough(for_all_four)
