from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.linalg import hadamard

from mpcfl.dp import NoisePlan, make_plan, sum_levels
from mpcfl.dp.grid import round_grid
from mpcfl.dp.quantize import dequantize_sum, quantize_rows
from mpcfl.dp.rotation import rotate_rows, round_signs, unrotate, walsh_hadamard
from mpcfl.dp.rounding import MAX_DRAWS, exact_square_norms, round_conditionally
from mpcfl.hazmat.bits import KeystreamBits

Keyed = Callable[[int], KeystreamBits]
LOW: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-5, "rounds": 10, "parties": 10, "dim": 100, "clip_norm": 1.0,
    "modulus_bits": 12, "rotation": "hadamard",
}  # fmt: skip
PLAN = make_plan(**LOW)


def random_rows(n_rows: int, dim: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(n_rows, dim))  # noqa: TID251 - inputs only


@pytest.mark.parametrize("exponent", [0, 1, 2, 6, 7, 8, 11])
def test_the_fast_transform_is_the_matrix_product(exponent: int) -> None:
    rows = random_rows(3, 1 << exponent)
    expected = rows @ hadamard(1 << exponent)
    # At most 2^e additions of numbers of size 2^(e/2) or so.
    atol = 4.0**exponent * 2.0**-50
    np.testing.assert_allclose(walsh_hadamard(rows.copy()), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dim", [1, 2, 3, 100, 128, 1000, 40_000])
def test_the_rotation_keeps_norms_and_comes_back(dim: int) -> None:
    plan = dataclasses.replace(PLAN, dim=dim)
    rows = random_rows(2, dim)
    rotated = rotate_rows(rows, plan, 3)
    assert rotated.shape == (2, plan.rotated_dim)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=1), norms, rtol=1e-12)
    levels = np.rint(rotated[0] * 2.0**30).astype(np.int64)
    # Rounding moves each coordinate by 1/2 at most; the rotation keeps the norm of that.
    atol = math.sqrt(plan.rotated_dim) / 2 * 2.0**-30
    np.testing.assert_allclose(unrotate(levels, plan, 3) * 2.0**-30, rows[0], rtol=0, atol=atol)


@given(arrays(np.int64, (3, 128), elements=st.integers(-(2**20), 2**20)))
def test_the_rotated_sum_is_the_sum_of_the_rotated(levels: np.ndarray) -> None:
    apart = sum(unrotate(row, PLAN, 1) for row in levels)
    # Exact integers before the division by sqrt(d'), which rounds once each.
    np.testing.assert_allclose(unrotate(levels.sum(axis=0), PLAN, 1), apart, rtol=0, atol=1e-6)


def test_the_inverse_is_exact_before_it_is_scaled() -> None:
    plan = dataclasses.replace(PLAN, dim=1 << 10)
    levels = np.rint(random_rows(1, 1 << 10)[0] * 2**18).astype(np.int64)
    exact = hadamard(1 << 10, dtype=np.int64) @ levels
    signs = round_signs(plan, 2).astype(np.int64)
    np.testing.assert_array_equal(unrotate(levels, plan, 2) * 32, signs * exact)


def test_signs_are_fair_public_and_new_every_round() -> None:
    plan = dataclasses.replace(PLAN, dim=1 << 16)
    first, second = round_signs(plan, 0), round_signs(plan, 1)
    assert set(first) == {-1.0, 1.0}
    # Two-sided 1e-9 each; round_signs has no randomness, so this holds or never does.
    limit = stats.norm.isf(5e-10) * math.sqrt(1 << 16)
    assert abs(first.sum()) < limit
    assert abs((first * second).sum()) < limit
    round_signs.cache_clear()
    np.testing.assert_array_equal(round_signs(plan, 0), first)
    other = dataclasses.replace(plan, rounds=plan.rounds + 1)
    assert abs((round_signs(other, 0) * first).sum()) < limit
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 3.0


def test_a_spike_is_flat_after_the_rotation() -> None:
    row = np.zeros((1, 100))
    row[0, 42] = 1.0
    rotated = rotate_rows(row, PLAN, 0)
    np.testing.assert_allclose(np.abs(rotated), 1 / math.sqrt(128), rtol=1e-12)


@given(arrays(np.float64, (2, 100), elements=st.floats()))
def test_the_integer_bound_holds_for_any_floats_at_all(rows: np.ndarray) -> None:
    levels = quantize_rows(rows, round_grid(PLAN, 0))
    assert max(exact_square_norms(levels)) <= PLAN.norm_bound_int


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_rows_at_the_clip_norm_are_kept_by_conditional_rounding(
    bits: int, keyed_bits: Keyed
) -> None:
    plan = make_plan(**{**LOW, "modulus_bits": bits})
    rows = random_rows(200, 100)
    rows *= (1 - 1e-9) / np.linalg.norm(rows, axis=1)[:, None]
    levels = quantize_rows(rows, round_grid(plan, 0), None, keyed_bits(1))
    norms = exact_square_norms(levels)
    assert max(norms) <= plan.norm_bound_int
    # No row was rounded towards zero: that takes off 4 levels and more.
    towards_zero = np.trunc(rotate_rows(rows, plan, 0) * plan.scale)
    least = plan.scale * plan.clip_norm - 2.5
    assert np.linalg.norm(towards_zero, axis=1).max() < least < math.sqrt(min(norms))


def test_the_worst_row_for_the_bound_is_drawn_until_it_fits(keyed_bits: Keyed) -> None:
    # Every value half-way between two integers: rounding adds d/4 to the squared norm on average.
    rows = np.full((2000, 64), 2.5)
    c = 2.5 * 8
    bound = math.floor(c * c + 64 / 4 + c + 8 / 2)
    levels = round_conditionally(rows, bound, keyed_bits(2))
    norms = np.array(exact_square_norms(levels))
    assert norms.max() <= bound
    # About one draw in nine fails; beta = 0.61 is what the theorem promises at least.
    unbounded = round_conditionally(rows, 10**6, keyed_bits(2))
    failed = np.mean(np.array(exact_square_norms(unbounded)) > bound)
    assert 0.02 < failed < math.exp(-0.5)
    assert not np.array_equal(levels, unbounded)


def test_what_no_draw_meets_is_rounded_towards_zero_and_only_then_zeroed() -> None:
    class Always:
        """Every draw goes up."""

        drawn = 0

        def words(self, count: int) -> np.ndarray:
            self.drawn += count
            return np.zeros(count, dtype=np.uint64)

    rows = np.array([[1.5, 1.5, -1.5, 0.0], [3.0, 0.0, 0.0, 0.0], [2.0, 2.0, -2.0, 0.0]])
    bits = Always()
    # Up means 2, 2, -1: 9 is too much for a bound of 8; towards zero means 3. The others were
    # not clipped: one level alone is too large, or only all of them together.
    levels = round_conditionally(rows, 8, bits)
    assert levels.tolist() == [[1, 1, -1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert bits.drawn == MAX_DRAWS * rows.size


@pytest.mark.stat
def test_random_rounding_is_right_on_average(keyed_bits: Keyed) -> None:
    # 200,000 rows, 8 values: mean error below 6.4 standard errors (1e-9 for all eight), where
    # rounding to nearest would be off by 0.25, or 500 standard errors.
    values = np.array([0.25, -0.25, 1.75, -3.25, 0.0, 7.0, 0.5, -0.001])
    rows = np.tile(values, (200_000, 1))
    levels = round_conditionally(rows, 10**6, keyed_bits(7))
    error = np.abs(levels.mean(axis=0) - values)
    assert (error <= 6.4 * 0.5 / math.sqrt(len(rows))).all()
    assert np.abs(np.rint(values) - values).max() > 0.2
    np.testing.assert_array_equal(levels[:, 4:6], rows[:, 4:6])


def test_the_bits_of_rounding_are_the_systems_by_default() -> None:
    rows = random_rows(1, 100) / 20
    first, second = (quantize_rows(rows, round_grid(PLAN, 0)) for _ in range(2))
    assert not np.array_equal(first, second)


def test_many_rows_are_rotated_in_pieces(keyed_bits: Keyed, monkeypatch: Any) -> None:
    rows = random_rows(9, 100) / 20
    whole = quantize_rows(rows, round_grid(PLAN, 0), None, keyed_bits(3))
    monkeypatch.setattr("mpcfl.dp.quantize._VALUES_AT_ONCE", 2 * PLAN.rotated_dim)
    pieces = quantize_rows(rows, round_grid(PLAN, 0), None, keyed_bits(3))
    np.testing.assert_allclose(pieces.sum(axis=0), whole.sum(axis=0), atol=9)


def test_a_round_of_low_bit_sums_returns_the_mean(keyed_bits: Keyed) -> None:
    plan, parties = make_plan(**{**LOW, "modulus_bits": 16}), 10
    grid = round_grid(plan, 4)
    rows = random_rows(parties, 100)
    rows *= (1 - 1e-9) / np.linalg.norm(rows, axis=1)[:, None]
    shares = [
        sum_levels([quantize_rows(row[None], grid, None, keyed_bits(9))], plan) for row in rows
    ]
    opened = dequantize_sum(np.sum(shares, axis=0), grid)
    error = np.linalg.norm(opened.values - rows.sum(axis=0))
    # Rounding alone: each coordinate of each row has a variance of 1/4 at most.
    assert error < 2 * math.sqrt(parties * plan.rotated_dim / 4) / plan.scale


def test_a_wide_plan_does_not_rotate(party_plan: NoisePlan) -> None:
    assert (party_plan.rotated_dim, party_plan.vector_dim) == (50, 50)
    assert (PLAN.rotated_dim, PLAN.vector_dim) == (128, 128)
