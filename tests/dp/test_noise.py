from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mpcfl.dp import (
    NoisePlan,
    NoiseShare,
    add_noise,
    draw_noise_share,
    make_fixed_point_plan,
    make_plan,
)
from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import KeystreamBits


def test_a_noise_share_can_be_used_once(party_plan: NoisePlan) -> None:
    share = draw_noise_share(party_plan)
    add_noise(np.zeros(party_plan.dim, dtype=np.int64), share)
    with pytest.raises(OutOfOrder, match="twice"):
        add_noise(np.zeros(party_plan.dim, dtype=np.int64), share)


def test_noise_is_added_and_the_levels_stay_as_they_were(
    party_plan: NoisePlan, keyed_bits: Callable[[int], KeystreamBits]
) -> None:
    levels = np.arange(party_plan.dim, dtype=np.int64)
    noised = add_noise(levels, draw_noise_share(party_plan, keyed_bits(3)))
    expected = draw_noise_share(party_plan, keyed_bits(3)).take()
    np.testing.assert_array_equal(noised - levels, expected)
    np.testing.assert_array_equal(levels, np.arange(party_plan.dim))


def test_two_shares_of_one_plan_are_independent(party_plan: NoisePlan) -> None:
    first, second = (draw_noise_share(party_plan).take() for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_share_shows_nothing() -> None:
    share = NoiseShare(np.array([123456], dtype=np.int64))
    assert "123456" not in repr(share) + str(share) + f"{share}"


@pytest.mark.parametrize("leak", [copy.copy, copy.deepcopy, bool])
def test_a_share_can_be_neither_copied_nor_tested(leak: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        leak(NoiseShare(np.zeros(1, dtype=np.int64)))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_share_is_dead_in_a_forked_child(party_plan: NoisePlan) -> None:
    share = draw_noise_share(party_plan)
    child = os.fork()
    if child == 0:
        try:
            share.take()
        except OutOfOrder:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_a_share_is_as_long_as_what_is_summed(mechanism: str) -> None:
    plan = make_plan(
        epsilon=8.0, delta=1e-5, rounds=10, parties=10, dim=50, clip_norm=1.0, modulus_bits=14,
        rotation="hadamard", counts=2, mechanism=mechanism,
    )  # fmt: skip
    assert draw_noise_share(plan).take().shape == (66,)


@pytest.mark.stat
@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
def test_a_share_has_the_variance_and_the_shape_of_its_mechanism(
    party_plan: NoisePlan, mechanism: str
) -> None:
    # Two-sided at 1e-9 for the variance; a sigma 1 % off is 14 deviations away. At sigma 2 the
    # fourth moment tells the two mechanisms apart: 3 v^2 and 3 v^2 + v, 40 deviations or so.
    plan = dataclasses.replace(party_plan, dim=1_000_000, local_sigma=2, mechanism=mechanism)
    share = draw_noise_share(plan).take().astype(np.float64)
    limit = stats.norm.isf(5e-10)
    assert abs(np.mean(share**2) / 4 - 1) < limit * math.sqrt(2.3 / plan.dim)
    extra = {"discrete-gaussian": 0.0, "skellam": 4.0}[mechanism]
    assert np.mean(share**4) == pytest.approx(
        48 + extra, abs=limit * math.sqrt(105 * 2.5**2 * 256 / plan.dim) / 2
    )


def test_without_privacy_the_share_is_zero() -> None:
    plan = make_fixed_point_plan(parties=2, dim=3, rounds=1, modulus_bits=32)
    levels = np.array([1, -2, 3], dtype=np.int64)
    np.testing.assert_array_equal(add_noise(levels, draw_noise_share(plan)), levels)


def test_a_share_of_another_length_is_a_defect_of_the_caller(party_plan: NoisePlan) -> None:
    with pytest.raises(ValueError, match="shape"):
        add_noise(np.zeros(3, dtype=np.int64), draw_noise_share(party_plan))


@pytest.mark.stat
def test_honest_shares_alone_carry_the_planned_variance(party_plan: NoisePlan) -> None:
    # One-sided at 1e-9; 1,000,000 sums also reject a sigma 1 % too small by 8 deviations.
    plan = dataclasses.replace(party_plan, dim=1_000_000)
    total = np.zeros(plan.dim, dtype=np.int64)
    for _ in range(plan.parties - plan.colluding - plan.max_dropout):
        total += draw_noise_share(plan).take()
    needed = (plan.noise_multiplier * plan.l2_sensitivity) ** 2
    ratio = float(np.mean(total.astype(np.float64) ** 2)) / needed
    least = 1 - stats.norm.isf(1e-9) * math.sqrt(2 / plan.dim)
    assert ratio > least
    assert ratio * 0.99**2 < least
