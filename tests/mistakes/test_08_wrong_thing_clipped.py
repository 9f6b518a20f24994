"""Mistake 8: weights are clipped and not updates, or tensor by tensor, or noise is added twice.

Who made it: epfml/disco#317 (weights clipped), per-tensor clipping in many home-made loops,
fedbiomed#1443 (noise of the client and of the server). What goes wrong: clipped weights destroy
the model and bound nothing; k tensors clipped to C each have a joint norm of sqrt(k) C; noise
twice costs accuracy for no figure. What would have to break here: what is clipped is not the
whole update as one vector, or the sum carries other noise than one share per party.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mpcfl.dp import draw_noise_share, plan_for_job

CLIP_NORM = 0.5
DIM = 3


@pytest.fixture
def signal_norms(job_of, line_task, opened, keyed):
    """Return each party's part in a real sum, as a norm in units of the clip norm."""

    def measure(task) -> float:
        # One party moves; with equal bits the difference of two sums is its part.
        class Still(task):
            def loss(self, outputs, targets):
                return 0.0 * super().loss(outputs, targets)

        options = {"privacy": {"clip_norm": CLIP_NORM}, "training": {"rounds": 1}}
        job = job_of(task, **options)
        part = opened(job, keyed()) - opened(job_of(Still, **options), keyed())
        plan = plan_for_job(job, DIM)
        return float(np.linalg.norm(part)) / plan.scale / CLIP_NORM / 3

    return measure


@pytest.fixture
def large_weights(line_task):
    """Weights of norm 100, and updates far below the clip norm, equal at all parties."""

    class LargeWeights(line_task):
        def model(self):
            model = nn.Linear(2, 1)
            nn.init.constant_(model.weight, 100 / 2**0.5)
            nn.init.zeros_(model.bias)
            return model

        def party_data(self, party, n_parties):
            inputs = torch.zeros(3, 2)
            # Only the bias has a gradient, of 1; the learning rate is 0.1.
            return inputs, -0.5 * torch.ones(3, 1)

    return LargeWeights


@pytest.fixture
def equal_tensors(line_task):
    """Both tensors of the model have updates whose norm is far above the clip norm."""

    class EqualTensors(line_task):
        def party_data(self, party, n_parties):
            inputs = torch.full((3, 2), 2**-0.5)
            return inputs, 1e3 * torch.ones(3, 1)

    return EqualTensors


def test_an_update_is_clipped_and_never_the_weights(signal_norms, large_weights, sabotage):
    def is_untouched() -> bool:
        # The update is 0.1: not one coordinate is clipped, however large the weights are.
        return abs(signal_norms(large_weights) - 0.1 / CLIP_NORM) < 1e-4

    assert is_untouched()

    def clips_weights(right, rows, clip_norm):
        old = np.array([[100 / 2**0.5, 100 / 2**0.5, 0.0]])
        clipped, bad = right(old + rows, clip_norm)
        return clipped - right(old, clip_norm)[0], bad

    with sabotage("mpcfl.round:clip_rows", clips_weights):
        assert not is_untouched()


def test_the_norm_is_that_of_all_tensors_together(signal_norms, equal_tensors, sabotage):
    assert signal_norms(equal_tensors) == pytest.approx(1.0, abs=1e-4)

    def by_tensor(right, rows, clip_norm):
        return np.concatenate(
            [right(piece, clip_norm)[0] for piece in (rows[:, :2], rows[:, 2:])], axis=1
        ), 0

    # The norm is sqrt(2) C then; the quantizer refuses it and sends zero.
    with sabotage("mpcfl.round:clip_rows", by_tensor):
        assert signal_norms(equal_tensors) == 0.0


@pytest.mark.stat
def test_the_sum_carries_one_share_of_noise_per_party(
    job_of, silent_task, opened_rounds, sabotage, variance_fits
):
    """Two-sided at 1e-9; 8,000 draws reject double the variance by 60 standard deviations."""
    job = job_of(silent_task, training={"rounds": 20})
    plan = plan_for_job(job, 400)
    assert variance_fits(opened_rounds(job), 3 * plan.local_sigma**2)

    def twice(right, levels, share):
        return right(right(levels, share), draw_noise_share(plan))

    with sabotage("mpcfl.round:add_noise", twice):
        assert not variance_fits(opened_rounds(job), 3 * plan.local_sigma**2)
