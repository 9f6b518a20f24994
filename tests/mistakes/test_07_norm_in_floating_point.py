"""Mistake 7: the sensitivity rests on a norm that was computed in floating point.

Who made it: Opacus ("unsafe even with secure_mode", opacus#616), d3p#9 and others; shown by
Mironov (2012) and Casacuberta et al. (2022). What goes wrong: sums of squares round, so a vector
that passes the test is longer than the bound; clipping in float32 left norms 7e-4 above 1 at
2^24 coordinates. What would have to break here: the quantizer's check is no exact integer
arithmetic.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mpcfl.dp import clip_rows


def exact(row: np.ndarray) -> int:
    return sum(int(level) ** 2 for level in row)


def adversarial_rows(dim: int) -> np.ndarray:
    """Rows whose exact norms miss 2^54 by 1 or a few, where float64 sees no difference."""
    rows = np.zeros((4, dim))
    rows[:, 0] = 2.0**27
    rows[0, 1] = 1.0
    rows[1, 1:3] = 1.0
    rows[2, -1] = -1.0
    # Row 3 meets the bound exactly and must be kept.
    return rows


@pytest.fixture
def bound_holds(plan_of, quantized):
    """Tell whether the integer bound holds exactly for rows that were made to break it."""
    plan = dataclasses.replace(plan_of(dim=8), scale=1.0, norm_bound_int=2**54)

    def check() -> bool:
        levels = quantized(adversarial_rows(8), plan)
        assert levels[3, 0] == 2**27
        return all(exact(row) <= 2**54 for row in levels)

    return check


def float_norms(right, levels):
    """The mistake: sums of squares in float64, with a rounding each."""
    return [int(norm) for norm in np.sum(levels.astype(np.float64) ** 2, axis=1)]


def test_the_bound_is_exact_where_float64_sees_no_difference(bound_holds, sabotage):
    assert bound_holds()
    with sabotage("mpcfl.dp.rounding:exact_square_norms", float_norms):
        assert not bound_holds()


def test_clipping_in_single_precision_misses_the_bound_and_ours_does_not():
    # Many equal values: every partial sum of float32 is rounded the same way.
    row = np.full(1 << 20, 0.1, dtype=np.float32)
    square = np.cumsum(row * row, dtype=np.float32)[-1]
    factor = np.float32(1.0) / np.sqrt(square)
    single = (row * factor).astype(np.float64)
    assert math.fsum(value * value for value in single) > 1.0 + 1e-4
    ours = clip_rows(row[np.newaxis].astype(np.float64), 1.0)[0][0]
    assert 1.0 - 1e-8 < math.fsum(value * value for value in ours) <= 1.0


def test_a_row_that_barely_misses_is_shrunk_and_one_that_can_not_fit_is_zero(plan_of, quantized):
    plan = dataclasses.replace(plan_of(dim=8), scale=1.0, norm_bound_int=2**54)
    rows = np.full((1, 8), 2.0**27)
    np.testing.assert_array_equal(quantized(rows, plan), np.zeros((1, 8)))
