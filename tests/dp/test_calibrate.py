from __future__ import annotations

import math

import pytest

from mpcfl.dp.accountant import AccountantKind, Mechanism
from mpcfl.dp.calibrate import Target, _solve, calibrate


@pytest.mark.parametrize(
    ("accountant", "mechanism"),
    [
        (AccountantKind.PLD, Mechanism.DISCRETE_GAUSSIAN),
        (AccountantKind.RDP, Mechanism.DISCRETE_GAUSSIAN),
        (AccountantKind.PLD, Mechanism.SKELLAM),
    ],
)
@pytest.mark.parametrize(
    ("epsilon", "delta", "releases", "rate"),
    [(0.1, 1e-5, 10, 1.0), (8.0, 1e-9, 1, 1.0), (4.0, 1e-5, 60, 0.2), (50.0, 1e-5, 10, 0.5)],
)
def test_the_result_meets_the_target_and_little_less_does_not(
    epsilon: float,
    delta: float,
    releases: int,
    rate: float,
    accountant: AccountantKind,
    mechanism: str,
) -> None:
    target = Target(epsilon, delta, releases, rate, accountant, mechanism)
    z = calibrate(target)
    assert target.spent(z) <= epsilon
    # The search stops 2e-6 below its target, and epsilon falls at least as z^-0.5.
    assert target.spent(z * (1 - 1e-5)) > epsilon


def test_skellam_needs_more_noise_than_renyi_bounds_at_all_orders_ask_for() -> None:
    for rate in (1.0, 0.2):
        skellam, renyi = (
            calibrate(Target(8.0, 1e-5, 10, rate, AccountantKind.RDP, mechanism))
            for mechanism in (Mechanism.SKELLAM, Mechanism.DISCRETE_GAUSSIAN)
        )
        assert renyi <= skellam


def test_a_budget_beyond_numerical_composition_is_still_met() -> None:
    target = Target(800.0, 1e-5, 10, 0.5, AccountantKind.PLD)
    assert 0.99 * 800.0 < target.spent(calibrate(target)) <= 800.0


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("jump", [0.7, 0.0, math.inf])
def test_the_search_ends_on_the_safe_side_of_a_step(start: float, jump: float) -> None:
    def step(z: float) -> float:
        return (5.0 if jump == 0.0 else max(jump, 5.0)) if z < 2.0 else min(jump, 0.7)

    assert 2.0 <= _solve(step, 1.0, start) <= 2.0 * (1 + 1e-5)
