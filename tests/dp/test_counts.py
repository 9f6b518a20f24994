"""Counts inside the vector: adaptive clipping and weights, as functions of opened, noised sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.config import Job, parse_job
from mpcfl.dp.counts import (
    CountState,
    count_rows,
    denominator,
    learn_from_counts,
    party_weight,
)


def job(privacy: dict[str, Any] | None = None, parties: dict[str, Any] | None = None) -> Job:
    return parse_job(
        {
            "task": "toy",
            "parties": {"count": 4, **(parties or {})},
            "privacy": {"unit": "party", "epsilon": 4.0, **(privacy or {})},
            "training": {"rounds": 3},
            "aggregation": {"backend": "plain"},
        },
        "test",
    )


ADAPTIVE = {"clipping": "adaptive", "clip_quantile": 0.5, "clip_learning_rate": 0.2}
PRIVATE = {"weighting": "private", "max_records": 100}


def test_the_plain_job_counts_nothing() -> None:
    assert count_rows(np.ones((3, 5)), 1.0, job(), 1.0).shape == (3, 0)


def test_a_row_on_the_clip_norm_meets_it_and_one_above_does_not() -> None:
    rows = np.array([[3.0, 4.0], [3.0, 4.0001], [0.0, 0.0]])
    counts = count_rows(rows, 5.0, job(ADAPTIVE), 1.0)
    assert counts.tolist() == [[1.0], [-1.0], [1.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_a_row_that_is_not_finite_or_overflows_counts_as_clipped(value: float) -> None:
    counts = count_rows(np.array([[value, 1.0]]), 5.0, job(ADAPTIVE), 1.0)
    assert counts.tolist() == [[-1.0]]


def test_counts_of_both_kinds_come_in_the_order_in_which_they_are_read() -> None:
    both = job(ADAPTIVE, PRIVATE)
    counts = count_rows(np.array([[9.0]]), 5.0, both, 0.25)
    assert counts.tolist() == [[-1.0, 0.25]]
    state = learn_from_counts(CountState(1.0), np.array([-4.0, 1.0]), both, 4.0)
    assert state.clip_norm == pytest.approx(math.exp(0.2 * 0.5))
    assert (state.weight_sum, state.weight_rounds) == (0.25, 1)


@given(st.floats(-1e9, 1e9))
def test_one_step_moves_the_clip_norm_by_at_most_the_rate_whatever_was_opened(
    opened: float,
) -> None:
    state = learn_from_counts(CountState(2.0), np.array([opened]), job(ADAPTIVE), 4.0)
    assert 2.0 * math.exp(-0.1) <= state.clip_norm * (1 + 1e-12)
    assert state.clip_norm <= 2.0 * math.exp(0.1) * (1 + 1e-12)


def test_the_clip_norm_settles_at_the_quantile_of_the_norms() -> None:
    norms = np.linspace(0.0, 10.0, 1001)[:, np.newaxis]
    adaptive = job({**ADAPTIVE, "clip_quantile": 0.8})
    state = CountState(0.1)
    for _ in range(200):
        counts = count_rows(norms, state.clip_norm, adaptive, 1.0).sum(axis=0)
        state = learn_from_counts(state, counts, adaptive, len(norms))
    # The last steps are below rate x (one record of 1,001).
    assert state.clip_norm == pytest.approx(8.0, rel=0.01)


def test_weights() -> None:
    public = job(parties={"weighting": "public", "weights": [1, 2, 4, 1]}).parties
    assert [party_weight(public, party, 7) for party in range(4)] == [0.25, 0.5, 1.0, 0.25]
    private = job(parties=PRIVATE).parties
    assert [party_weight(private, 0, n) for n in (1, 50, 100, 10**6)] == [0.01, 0.5, 1.0, 1.0]
    assert party_weight(job().parties, 3, 12345) == 1.0


def test_public_weights_divide_by_the_weights_of_those_who_took_part() -> None:
    weighted = job(parties={"weighting": "public", "weights": [1, 2, 4, 1]})
    assert denominator(weighted, [0, 1, 2, 3], 4.0, CountState(1.0)) == 2.0
    assert denominator(weighted, [0, 2], 2.0, CountState(1.0)) == 1.25


@given(st.floats(-1e12, 1e12))
def test_private_weights_never_divide_by_less_than_a_record_or_more_than_the_cap(
    opened: float,
) -> None:
    private = job(parties=PRIVATE)
    state = learn_from_counts(CountState(1.0), np.array([opened]), private, 4.0)
    divisor = denominator(private, [0, 1, 2, 3], 4.0, state)
    assert 4.0 / 100 <= divisor <= 4.0


def test_private_weights_average_their_noise_over_the_rounds() -> None:
    private = job(parties=PRIVATE)
    state = CountState(1.0)
    for opened in (1.0, 3.0, 2.0):
        state = learn_from_counts(state, np.array([opened]), private, 4.0)
    assert denominator(private, [0, 1, 2, 3], 4.0, state) == pytest.approx(2.0)
