"""Mistake 2: a sum of discrete Gaussians is taken for one, at a sigma where it is none.

Who made it: integer sigmas of 1 and less after rounding, in low-bit rings, with the term tau of
Kairouz, Liu and Steinke (2021) left out. What goes wrong: at a local sigma of 1/2 (10 parties,
16 coordinates, sensitivity 10) the published figure is 87.7, without tau 50.1. What would have
to break here: the planner uses a sigma below 8, or the figures for small sigmas drop tau.
"""

from __future__ import annotations

import math

import pytest

from mpcfl.dp import discrete_gaussian_epsilon
from mpcfl.dp.renyi import DiscreteSum, discrete_divergences, renyi_epsilon
from mpcfl.errors import PlanError

# From comfortable to so tight that the planner goes down to its smallest sigma.
REQUESTS = [
    {"modulus_bits": bits, "epsilon": epsilon, "dim": dim, "parties": parties, "rounds": 1}
    for bits in (16, 20, 32)
    for epsilon in (0.02, 0.05, 0.1, 0.5, 8.0)
    for dim in (1, 1 << 20)
    for parties in (40, 4000)
]


def tightest_plans(plan_of):
    for request in REQUESTS:
        try:
            yield plan_of(**request)
        except PlanError:
            continue


def smallest_sigma(plan_of) -> int:
    return min(plan.local_sigma for plan in tightest_plans(plan_of))


def test_no_plan_uses_a_sigma_below_eight(plan_of, sabotage):
    assert smallest_sigma(plan_of) >= 8
    # Some requests are so tight that only a smaller sigma would do.
    with sabotage("mpcfl.dp.ring_fit:sigmas", lambda right, request: [*right(request), 4, 2, 1]):
        assert smallest_sigma(plan_of) < 8


def test_in_every_plan_what_tau_adds_is_invisible(plan_of):
    for plan in tightest_plans(plan_of):
        noise = DiscreteSum(plan.l2_sensitivity, plan.local_sigma, plan.parties, plan.dim)
        assert noise.tau * plan.dim * plan.rounds < 1e-200


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_figures_for_small_sigmas_contain_tau(accountant, monkeypatch):
    def figure() -> float:
        return discrete_gaussian_epsilon(
            l2_sensitivity=10, local_sigma=1, parties=60, colluding=1, dim=1 << 20, rounds=1,
            delta=1e-5, accountant=accountant,
        )  # fmt: skip

    # tau = 10 sum exp(-2 pi^2 k/(k+1)): it starts with exp(-pi^2) and tends to exp(-2 pi^2).
    tau = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 59))
    assert DiscreteSum(10.0, 1, 59, 1).tau == pytest.approx(tau, rel=1e-12)
    with_tau = figure()
    monkeypatch.setattr(DiscreteSum, "tau", 0.0)
    assert figure() < with_tau - 0.5


def test_the_published_example_contains_tau(monkeypatch):
    # The public functions take a sigma of 1 at least, so the curve behind them is asked.
    noise = DiscreteSum(10.0, 0.5, 10, 16)
    assert noise.tau == pytest.approx(2.35, abs=0.01)
    assert renyi_epsilon(discrete_divergences(noise, 1.0), 1e-5) == pytest.approx(87.7, rel=0.02)
    monkeypatch.setattr(DiscreteSum, "tau", 0.0)
    assert renyi_epsilon(discrete_divergences(noise, 1.0), 1e-5) < 52
