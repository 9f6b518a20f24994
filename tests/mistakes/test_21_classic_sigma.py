"""Mistake 21: sigma = sqrt(2 ln(1.25/delta)) / epsilon, and a sensitivity that is set by hand.

Who made it: Flower's LocalDpMod, whose `sensitivity` is independent of its `clipping_norm`, and
most tutorials. What goes wrong: the formula is proved for epsilon < 1 only; at 50 it gives a z
of 0.097 where 0.15 is needed, and the true epsilon is 96; at 1 its z is 30 % too large. It is used
per round, and for zero-out where records are replaced (twice the sensitivity: 8 becomes 19). What
would have to break here: calibration is not exact for the whole composition, or the noise does
not grow with clip_norm.
"""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from mpcfl.errors import PlanError

EPSILONS = (0.3, 1.0, 4.0, 20.0, 50.0)


def classic(epsilon: float, delta: float = 1e-5) -> float:
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def is_exact(z: float, epsilon: float, true_epsilon, rounds: int = 1) -> bool:
    spent = true_epsilon(z, rounds=rounds)
    return epsilon * (1 - 1e-4) <= spent <= epsilon


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_plan_spends_exactly_its_budget(epsilon, plan_of, true_epsilon):
    plan = plan_of(epsilon=epsilon, rounds=1)
    assert is_exact(plan.noise_multiplier, epsilon, true_epsilon)
    assert not is_exact(classic(epsilon), epsilon, true_epsilon)


def test_the_classic_formula_overstates_below_and_understates_above(true_epsilon):
    assert true_epsilon(classic(1.0)) == pytest.approx(0.751, abs=0.001)
    assert true_epsilon(classic(50.0)) == pytest.approx(96.4, abs=0.1)
    assert classic(50.0) == pytest.approx(0.097, abs=0.001)


def test_a_planner_with_the_classic_formula_is_caught_by_the_plan(plan_of, sabotage):
    with (
        sabotage("mpcfl.dp.planner:calibrate", lambda right, target: classic(target.epsilon)),
        pytest.raises(PlanError, match="spend epsilon"),
    ):
        plan_of(epsilon=50.0, rounds=1)


def test_the_budget_is_for_all_rounds_together(plan_of, true_epsilon):
    plan = plan_of(rounds=100)
    assert is_exact(plan.noise_multiplier, 8.0, true_epsilon, rounds=100)
    # Epsilon / rounds for each of them is sound, and needs six times the noise.
    per_round = plan_of(epsilon=8.0 / 100, delta=1e-5 / 100, rounds=1).noise_multiplier
    assert per_round > 6 * plan.noise_multiplier


def noise_follows_the_clip_norm(plan_of) -> bool:
    """In float space the noise of the sum is proportional to the clip norm, and to it alone."""
    small, large = (plan_of(clip_norm=norm) for norm in (0.25, 5.0))
    ratio = (large.local_sigma / large.scale) / (small.local_sigma / small.scale)
    return small.noise_multiplier == large.noise_multiplier and ratio == pytest.approx(20, rel=1e-9)


def test_noise_is_tied_to_the_clip_norm(plan_of, sabotage):
    assert noise_follows_the_clip_norm(plan_of)

    def sensitivity_set_by_hand(right, request, *more):
        return right(dataclasses.replace(request, clip_norm=1.0), *more)

    with sabotage("mpcfl.dp.ring_fit:fit_sigma", sensitivity_set_by_hand):
        assert not noise_follows_the_clip_norm(plan_of)


def test_the_sensitivity_is_the_one_that_the_quantizer_enforces(plan_of):
    plan = plan_of()
    assert plan.l2_sensitivity == math.sqrt(plan.norm_bound_int)
    # A clipped row, rounded to nearest, fits; half a percent more would not be needed.
    rounded = plan.scale * plan.clip_norm + math.sqrt(plan.dim) / 2
    assert rounded == pytest.approx(plan.l2_sensitivity, rel=1e-6)


def test_replacing_costs_twice_the_sensitivity_and_the_report_names_its_relation(
    plan_of, true_epsilon, job_of, line_task, run_job
):
    z = plan_of().noise_multiplier
    assert true_epsilon(z / 2, rounds=10) == pytest.approx(19.1, abs=0.1)
    ran = run_job(job_of(line_task))
    relation = json.loads(ran.folder.run_json.read_text())["privacy"]["neighboring_relation"]
    assert relation == "zero-out-one-party"
