"""Long vectors go through every stage in pieces, and come out as short ones do, bit for bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpcfl.dp import (
    NoisePlan,
    NoiseShare,
    add_noise,
    clip_rows,
    draw_noise_share,
    make_fixed_point_plan,
    make_plan,
    pieces,
    quantize_rows,
    rounding,
    sum_levels,
)
from mpcfl.dp.counts import weigh_rows
from mpcfl.dp.grid import round_grid
from mpcfl.errors import QuantizeError

DIM = 7
PLAN = make_plan(
    epsilon=8.0, delta=1e-5, rounds=10, parties=10, dim=DIM, clip_norm=1.0, modulus_bits=16
)
COUNTED = make_plan(
    epsilon=8.0,
    delta=1e-5,
    rounds=10,
    parties=10,
    dim=DIM,
    clip_norm=1.0,
    modulus_bits=24,
    counts=2,
)
OPEN = make_fixed_point_plan(parties=3, dim=DIM, rounds=1, modulus_bits=32)
ANY_ROWS = arrays(np.float64, (3, DIM), elements=st.floats())
FINITE_ROWS = arrays(np.float64, (3, DIM), elements=st.floats(-100, 100))


@contextmanager
def long_is(values: int) -> Iterator[None]:
    """Make vectors of more than so many values long ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_VALUES", values)
        yield


def staged(rows: np.ndarray, plan: NoisePlan, weight: float = 1.0) -> tuple[Any, ...]:
    """Return what stages 2 and 3 make of some rows, and their sum."""
    counts = np.linspace(-1, 1, len(rows) * plan.counts).reshape(len(rows), plan.counts)
    clipped, not_finite = clip_rows(rows.copy(), plan.clip_norm)
    floats = weigh_rows(clipped, weight).copy()
    levels = quantize_rows(floats.copy(), round_grid(plan, 0), counts)
    return floats, not_finite, levels, sum_levels([levels, levels[:1]], plan)


@pytest.mark.parametrize("plan", [PLAN, COUNTED], ids=["model", "counts"])
@given(rows=ANY_ROWS, weight=st.sampled_from([1.0, 0.3]))
def test_pieces_change_no_bit_of_any_row(plan: NoisePlan, rows: np.ndarray, weight: float) -> None:
    whole = staged(rows, plan, weight)
    with long_is(3):
        in_pieces = staged(rows, plan, weight)
    # Beyond float64's range alone, squares are added up piece by piece.
    extreme = np.abs(np.nan_to_num(rows)).max() > 1e100
    np.testing.assert_allclose(in_pieces[0], whole[0], rtol=1e-15 if extreme else 0)
    assert in_pieces[1] == whole[1]
    for one, other in zip(in_pieces[2:], whole[2:], strict=True):
        assert (one.dtype, other.dtype) == (np.int32, np.int64)
        np.testing.assert_array_equal(one, other)


@given(ANY_ROWS)
def test_the_integer_bound_holds_for_any_floats_in_pieces(rows: np.ndarray) -> None:
    with long_is(2):
        levels = quantize_rows(rows.copy(), round_grid(PLAN, 0))
    for row in levels:
        assert sum(int(level) ** 2 for level in row) <= PLAN.norm_bound_int


def test_a_row_over_the_bound_shrinks_as_a_short_one_does() -> None:
    edge = math.sqrt(PLAN.norm_bound_int) / PLAN.scale
    rows = np.zeros((4, DIM))
    rows[:, -1] = [edge * (1 + 2.0**-18) + 1 / PLAN.scale, 2 * edge, 0.5, edge * (1 + 2.0**-19)]
    whole = quantize_rows(rows.copy(), round_grid(PLAN, 0))
    with long_is(2):
        levels = quantize_rows(rows, round_grid(PLAN, 0))
    np.testing.assert_array_equal(levels, whole)
    assert levels[1].tolist() == [0] * DIM
    exact = dataclasses.replace(PLAN, scale=2.0**21, norm_bound_int=(2**21 - 2) ** 2)
    with long_is(2):
        shrunk = quantize_rows(np.eye(1, DIM), round_grid(exact, 0))
    assert shrunk[0, 0] == 2**21 - 2


def test_a_row_whose_norm_alone_is_over_the_bound_shrinks_too() -> None:
    plan = dataclasses.replace(PLAN, scale=2.0**21, norm_bound_int=2**43 - 1)
    row = np.zeros((1, DIM))
    row[0, [0, -1]] = 1.0
    whole = quantize_rows(row.copy(), round_grid(plan, 0))
    with long_is(2):
        levels = quantize_rows(row, round_grid(plan, 0))
    np.testing.assert_array_equal(levels, whole)
    assert levels[0, 0] == levels[0, -1] == 2**21 - 2


@pytest.mark.parametrize("norm_bound_int", [63_000_000, 62_999_999])
def test_the_bound_is_exact_to_one_unit_over_all_pieces(norm_bound_int: int) -> None:
    plan = dataclasses.replace(PLAN, scale=1.0, norm_bound_int=norm_bound_int)
    with long_is(2):
        levels = quantize_rows(np.full((2, DIM), 3000.0), round_grid(plan, 0))
    kept = 3000 if norm_bound_int == 7 * 3000**2 else 0
    np.testing.assert_array_equal(levels, np.full((2, DIM), kept))


def test_what_was_written_is_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding._LongRow, "fits", lambda *_: True)
    rows = np.array([[0.0] * 6 + [3.0], [0.5] + [0.0] * 6])
    with long_is(2):
        levels = quantize_rows(rows, round_grid(PLAN, 0))
    assert levels[0].tolist() == [0] * DIM
    assert levels[1, 0] == round(0.5 * PLAN.scale)


def test_long_rows_are_worked_on_where_they_lie() -> None:
    rows = np.full((2, DIM), 0.01)
    with long_is(3):
        clipped, _ = clip_rows(rows, PLAN.clip_norm)
        levels = quantize_rows(weigh_rows(clipped, 0.5), round_grid(PLAN, 0))
    assert np.shares_memory(clipped, rows)
    assert np.shares_memory(levels, rows)
    np.testing.assert_array_equal(levels, np.full((2, DIM), round(0.005 * PLAN.scale)))


@given(FINITE_ROWS)
def test_without_privacy_pieces_change_no_bit_either(rows: np.ndarray) -> None:
    whole = staged(rows, OPEN)[2:]
    with long_is(3):
        in_pieces = staged(rows, OPEN)[2:]
    for one, other in zip(in_pieces, whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [1e300, math.nan])
def test_without_privacy_a_piece_that_does_not_fit_is_refused(bad: float) -> None:
    rows = np.zeros((1, DIM))
    rows[0, -1] = bad
    with long_is(3), pytest.raises(QuantizeError, match="modulus_bits above 32"):
        quantize_rows(rows, round_grid(OPEN, 0))


@pytest.mark.parametrize("times", [1, 3, 5])
def test_a_sum_that_32_bits_can_not_hold_is_exact_before_it_saturates(times: int) -> None:
    plan = dataclasses.replace(PLAN, norm_bound_int=(2**31 - 1) ** 2, saturation_int=2**31 - 1)
    up = np.zeros((1, DIM), dtype=np.int32)
    up[0, :2] = 2**31 - 1, 5
    with long_is(3):
        total = sum_levels([up] * times + [-up] * (times - 1), plan)
        high = sum_levels([up] * times, plan)
    assert (total.dtype, high.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(total, up[0])
    assert high[:2].tolist() == [2**31 - 1, 5 * times]


@pytest.mark.parametrize("modulus_bits", [33, 48, 64])
def test_rings_of_more_than_32_bits_take_64(modulus_bits: int) -> None:
    plan = dataclasses.replace(PLAN, modulus_bits=modulus_bits)
    with long_is(3):
        levels = quantize_rows(np.eye(1, DIM) * 0.5, round_grid(plan, 0))
        total = sum_levels([levels], plan)
    assert (levels.dtype, total.dtype) == (np.int64, np.int64)
    assert total[0] == round(0.5 * plan.scale)


def test_noise_is_added_in_the_memory_of_the_noise() -> None:
    levels, noise = np.arange(DIM, dtype=np.int32), np.full(DIM, -3, dtype=np.int32)
    with long_is(3):
        noised = add_noise(levels, NoiseShare(noise))
    np.testing.assert_array_equal(noised, np.arange(DIM) - 3)
    np.testing.assert_array_equal(levels, np.arange(DIM))
    assert np.shares_memory(noised, noise)


@pytest.mark.parametrize("place", [0, 4, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_noise_that_leaves_32_bits_is_added_exactly(place: int, sign: int) -> None:
    levels, noise = np.zeros(DIM, dtype=np.int32), np.arange(DIM, dtype=np.int32)
    levels[place] = noise[place] = sign * (2**31 - 2)
    expected = levels.astype(np.int64) + noise
    with long_is(3):
        noised = add_noise(levels, NoiseShare(noise.copy()))
    assert noised.dtype == np.int64
    np.testing.assert_array_equal(noised, expected)


@pytest.mark.parametrize("largest", [2**31 - 1, 2**31])
def test_a_long_share_holds_every_draw_exactly(
    largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(sigma: int, size: int, _: object) -> np.ndarray:
        drawn.append(size)
        return np.full(size, largest, dtype=np.int64)

    monkeypatch.setattr("mpcfl.dp.noise._SAMPLERS", {"discrete-gaussian": draw})
    monkeypatch.setattr("mpcfl.dp.noise._DRAWS_AT_ONCE", 4)
    with long_is(3):
        noise = draw_noise_share(PLAN).take()
    assert drawn == [4, 3]
    assert noise.dtype == (np.int32 if largest < 2**31 else np.int64)
    assert noise.tolist() == [largest] * DIM


def test_a_long_share_is_fresh_in_every_piece(
    monkeypatch: pytest.MonkeyPatch, keyed_bits: Callable[[int], Any]
) -> None:
    monkeypatch.setattr("mpcfl.dp.noise._DRAWS_AT_ONCE", 50)
    plan = dataclasses.replace(PLAN, dim=200)
    with long_is(3):
        noise = draw_noise_share(plan, keyed_bits(1)).take()
        other = draw_noise_share(plan, keyed_bits(2)).take()
    assert noise.shape == (200,)
    assert len({noise[start : start + 50].tobytes() for start in range(0, 200, 50)}) == 4
    assert not np.array_equal(noise, other)
