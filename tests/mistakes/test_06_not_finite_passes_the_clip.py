"""Mistake 6: NaN, infinity or an all-zero update passes the clip, or stops it.

Who made it: Flower takes min(1, C / norm), which is 1 for a NaN norm, so the update is released
unclipped, and divides by zero for a zero update; Opacus' factor for NaN is NaN. What goes
wrong: sensitivity without bound, or a crash that tells something about the data. What would
have to break here: a row that is not finite, or zero, leaves the clip or the quantizer with
anything but a bounded value.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpcfl.dp import clip_rows

BAD = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0)
ROWS = arrays(np.float64, (2, 6), elements=st.one_of(st.floats(), st.sampled_from(BAD)))
CLIP_NORM = 0.5


def is_bounded(rows: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.all(np.isfinite(rows)) and np.all(np.linalg.norm(rows, axis=1) <= CLIP_NORM))


def textbook_clip(right, rows, clip_norm):
    """The mistake, as it is usually written."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows * np.fmin(1.0, clip_norm / norms), 0


@given(ROWS)
def test_whatever_goes_in_a_bounded_row_comes_out(rows):
    clipped, not_finite = clip_rows(rows, CLIP_NORM)
    assert is_bounded(clipped)
    assert not_finite == np.count_nonzero(~np.all(np.isfinite(rows), axis=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e308])
def test_the_check_fires_on_the_textbook_clip(bad):
    rows = np.full((1, 6), bad)
    assert is_bounded(clip_rows(rows, CLIP_NORM)[0])
    assert not is_bounded(textbook_clip(None, rows, CLIP_NORM)[0]) or bad == 1e308


def test_a_zero_row_stays_zero():
    clipped, not_finite = clip_rows(np.zeros((1, 6)), CLIP_NORM)
    assert not clipped.any()
    assert not_finite == 0


@pytest.mark.parametrize("mode", [{}, {"rotation": "hadamard", "modulus_bits": 18}])
@given(rows=ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_quantizer_trusts_no_clip(rows, mode, plan_of, quantized):
    plan = plan_of(dim=6, **mode)
    for row in quantized(rows, plan):
        assert sum(int(level) ** 2 for level in row) <= plan.norm_bound_int


@pytest.fixture
def bad_update_counts_as_none(job_of, line_task, opened, keyed):
    """Tell whether a party with a NaN update changes a real sum like one with none at all."""

    def build(value: float):
        class BadParty(line_task):
            def party_data(self, party, n_parties):
                inputs, targets = super().party_data(party, n_parties)
                if party == 1:
                    # Zero targets: a model of zeros has no gradient.
                    targets = torch.full_like(targets, value)
                return inputs, targets

        return opened(job_of(BadParty), keyed())

    return lambda: bool(np.array_equal(build(math.nan), build(0.0)))


def naive_rounding(right, rows, *more):
    """Rounding without a look at the norm; an undefined value becomes some integer."""
    return np.where(np.isfinite(rows), right(np.nan_to_num(rows), *more), 1 << 20)


def test_a_real_sum_holds_nothing_of_an_update_that_is_not_finite(
    bad_update_counts_as_none, sabotage
):
    assert bad_update_counts_as_none()
    # Two stages stand in its way: one mistaken stage alone changes nothing.
    with sabotage("mpcfl.round:clip_rows", textbook_clip):
        assert bad_update_counts_as_none()
        with sabotage("mpcfl.round:quantize_rows", naive_rounding):
            assert not bad_update_counts_as_none()
