from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpcfl.dp import (
    NoisePlan,
    clip_rows,
    dequantize_sum,
    make_fixed_point_plan,
    make_plan,
    quantize_rows,
    sum_levels,
)
from mpcfl.dp.grid import round_grid
from mpcfl.dp.rounding import exact_square_norms
from mpcfl.errors import QuantizeError

COARSE = make_plan(
    epsilon=8.0, delta=1e-5, rounds=10, parties=10, dim=6, clip_norm=1.0, modulus_bits=16
)


def square_norm(row: np.ndarray) -> int:
    return sum(int(level) ** 2 for level in row)


@given(arrays(np.float64, (2, 6), elements=st.floats()))
def test_the_integer_bound_holds_for_any_floats_at_all(rows: np.ndarray) -> None:
    levels = quantize_rows(rows, round_grid(COARSE, 0))
    assert levels.dtype == np.int64
    assert all(square_norm(row) <= COARSE.norm_bound_int for row in levels)


@given(arrays(np.float64, (2, 6), elements=st.floats(-1e6, 1e6)))
def test_a_clipped_row_never_needs_to_shrink(rows: np.ndarray) -> None:
    clipped, _ = clip_rows(rows, 1.0)
    levels = quantize_rows(clipped, round_grid(COARSE, 0))
    np.testing.assert_array_equal(levels, np.rint(clipped * COARSE.scale).astype(np.int64))


def test_a_row_just_over_the_bound_shrinks_and_one_far_over_is_zero() -> None:
    edge = math.sqrt(COARSE.norm_bound_int) / COARSE.scale
    rows = np.zeros((3, 6))
    rows[:, 0] = [edge * (1 + 2.0**-18) + 1 / COARSE.scale, 2 * edge, 0.5]
    levels = quantize_rows(rows, round_grid(COARSE, 0))
    assert levels[0, 0] in (0, math.isqrt(COARSE.norm_bound_int))
    assert levels[1, 0] == 0
    assert levels[2, 0] == round(0.5 * COARSE.scale)


def test_the_bound_is_exact_to_one_unit() -> None:
    # Squares add up to 54,000,000; no level alone is too large, and eight shrinks move none.
    rows = np.full((2, 6), 3000.0)
    exact = dataclasses.replace(COARSE, scale=1.0, norm_bound_int=54_000_000)
    kept = quantize_rows(rows, round_grid(exact, 0))
    np.testing.assert_array_equal(kept, rows)
    short = dataclasses.replace(COARSE, scale=1.0, norm_bound_int=53_999_999)
    zeroed = quantize_rows(rows, round_grid(short, 0))
    np.testing.assert_array_equal(zeroed, np.zeros((2, 6)))


def test_shrinking_rescues_a_row_that_misses_by_one_rounding() -> None:
    plan = dataclasses.replace(COARSE, scale=2.0**21, norm_bound_int=(2**21 - 2) ** 2)
    levels = quantize_rows(np.array([[1.0, 0, 0, 0, 0, 0]]), round_grid(plan, 0))
    assert levels[0, 0] == 2**21 - 2


@given(
    st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=5, max_size=5), min_size=1, max_size=3)
)
def test_norms_are_exact_beyond_64_bits(rows: list[list[int]]) -> None:
    levels = np.array(rows, dtype=np.int64)
    assert exact_square_norms(levels) == [square_norm(row) for row in levels]


def test_norms_are_exact_where_the_squares_only_fit_in_chunks() -> None:
    levels = np.full((2, 100), 2**30, dtype=np.int64)
    levels[1, 7] += 1
    assert exact_square_norms(levels) == [100 * 2**60, 100 * 2**60 + 2**31 + 1]


def test_float_norms_would_have_missed_what_the_integer_norm_finds() -> None:
    big = 2**27
    levels = np.array([[big, 1, 0, 0, 0, 0]], dtype=np.int64)
    assert float(np.linalg.norm(levels.astype(np.float64))) == float(big)
    assert exact_square_norms(levels)[0] > big**2


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 2**32))
def test_summing_blocks_equals_summing_all_rows(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)  # noqa: TID251 - inputs only
    blocks = [rng.integers(-50, 50, (k, COARSE.dim)) for k in sizes]
    expected = np.clip(np.concatenate(blocks).sum(axis=0), -COARSE.saturation_int, 10**9)
    np.testing.assert_array_equal(sum_levels(blocks, COARSE), expected)


def test_the_sum_saturates_at_both_ends(record_plan: NoisePlan) -> None:
    limit = record_plan.saturation_int
    block = np.zeros((2, record_plan.dim), dtype=np.int64)
    block[:, 0], block[:, 1], block[0, 2], block[0, 3] = limit, -limit, limit, -limit
    total = sum_levels([block], record_plan)
    assert total[:4].tolist() == [limit, -limit, limit, -limit]


def test_saturation_is_1_lipschitz_so_one_record_moves_it_by_at_most_its_norm(
    record_plan: NoisePlan,
) -> None:
    limit = record_plan.saturation_int
    base = np.full((1, record_plan.dim), limit - 3, dtype=np.int64)
    record = np.full((1, record_plan.dim), 7, dtype=np.int64)
    moved = sum_levels([base, record], record_plan) - sum_levels([base], record_plan)
    assert square_norm(moved) <= square_norm(record[0])


def test_a_sum_beyond_64_bits_is_exact_before_it_saturates() -> None:
    plan = dataclasses.replace(COARSE, norm_bound_int=(2**62) ** 2, saturation_int=2**61)
    up = np.full((1, 6), 2**62, dtype=np.int64)
    total = sum_levels([up, up, -up, -up, up, up, up], plan)
    np.testing.assert_array_equal(total, np.full(6, 2**61))


def test_no_blocks_sum_to_zero(record_plan: NoisePlan) -> None:
    np.testing.assert_array_equal(sum_levels([], record_plan), np.zeros(record_plan.dim))


def test_dequantizing_divides_by_the_scale_alone(party_plan: NoisePlan) -> None:
    total = np.arange(party_plan.dim, dtype=np.int64)
    opened = dequantize_sum(total, round_grid(party_plan, 0))
    np.testing.assert_array_equal(opened.values, total / party_plan.scale)
    assert opened.counts.shape == (0,)


def test_fixed_point_round_trips_within_half_a_level() -> None:
    plan = make_fixed_point_plan(parties=3, dim=4, rounds=1, modulus_bits=32)
    values = np.array([[127.9, -128.0, 1e-9, 0.3]])
    levels = sum_levels([quantize_rows(values, round_grid(plan, 0))], plan)
    back = dequantize_sum(levels, round_grid(plan, 0)).values
    np.testing.assert_allclose(back, values[0], rtol=0, atol=0.5 / plan.scale)


@pytest.mark.parametrize("bad", [129.0, -1e300, math.nan, math.inf])
def test_fixed_point_refuses_what_does_not_fit_and_says_what_to_do(bad: float) -> None:
    plan = make_fixed_point_plan(parties=3, dim=1, rounds=1, modulus_bits=32)
    with pytest.raises(QuantizeError, match="modulus_bits above 32"):
        quantize_rows(np.array([[bad]]), round_grid(plan, 0))


@pytest.mark.parametrize("parties", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("bits", [8 + 8, 24, 32, 64])
def test_fixed_point_scale_is_the_largest_power_of_two_that_fits(parties: int, bits: int) -> None:
    plan = make_fixed_point_plan(parties=parties, dim=1, rounds=1, modulus_bits=bits)
    half = 2 ** (bits - 1)
    assert parties * 128 * plan.scale < half <= parties * 128 * plan.scale * 2
    assert parties * plan.saturation_int < half
