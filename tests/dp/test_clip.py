from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpcfl.dp import clip_rows


def exact_square_norm(row: np.ndarray) -> float:
    scale = float(np.max(np.abs(row), initial=0.0)) or 1.0
    return scale * math.sqrt(math.fsum((float(x) / scale) ** 2 for x in row))


@given(
    arrays(np.float64, (3, 7), elements=st.floats(allow_nan=False, allow_infinity=False)),
    st.floats(1e-6, 1e6),
)
def test_every_finite_row_ends_within_the_clip_norm(rows: np.ndarray, clip_norm: float) -> None:
    clipped, n_not_finite = clip_rows(rows, clip_norm)
    assert n_not_finite == 0
    for row in clipped:
        assert exact_square_norm(row) <= clip_norm * (1 - 1e-10)


def test_rows_inside_the_ball_are_returned_bit_for_bit() -> None:
    rows = np.array([[0.3, -0.4], [1e-200, 0.0], [0.0, 0.0]])
    clipped, _ = clip_rows(rows, 1.0)
    np.testing.assert_array_equal(clipped, rows)


@pytest.mark.parametrize("size", [1e200, 1e308, 1e-200])
def test_direction_survives_norms_near_overflow(size: float) -> None:
    clipped, n_not_finite = clip_rows(np.full((1, 4), size), 1e-220)
    assert n_not_finite == 0
    # Four equal entries, so each is half of the norm; two roundings per entry.
    np.testing.assert_allclose(clipped, 0.5e-220 * (1 - 1e-9), rtol=4 * 2.0**-52)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip_norm", [1.0, math.inf])
def test_a_row_that_is_not_finite_becomes_zero_and_is_counted(bad: float, clip_norm: float) -> None:
    rows = np.array([[3.0, 4.0], [bad, 1.0], [0.1, 0.0]])
    clipped, n_not_finite = clip_rows(rows, clip_norm)
    assert n_not_finite == 1
    np.testing.assert_array_equal(clipped[1], [0.0, 0.0])
    assert clipped[0, 0] > 0.5
    assert rows[0, 0] == 3.0


def test_an_infinite_clip_norm_changes_nothing() -> None:
    rows = np.array([[1e200, -3.0], [0.0, 5.0]])
    np.testing.assert_array_equal(clip_rows(rows, math.inf)[0], rows)


def test_the_whole_row_is_clipped_not_its_parts() -> None:
    clipped, _ = clip_rows(np.array([[3.0, 0.0, 4.0, 0.0]]), 1.0)
    np.testing.assert_allclose(clipped, [[0.6, 0.0, 0.8, 0.0]], rtol=2e-9)


def test_no_rows_give_no_rows() -> None:
    clipped, n_not_finite = clip_rows(np.empty((0, 5)), 1.0)
    assert clipped.shape == (0, 5)
    assert n_not_finite == 0
