"""Weights, adaptive clipping, rotation, Skellam noise and local placement, from end to end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpcfl.config import Job, parse_job
from mpcfl.dp.plan import View
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.train import local_update
from mpcfl.round import PublicState, public_state, run_round, run_rounds


def job(
    privacy: dict[str, Any] | None = None,
    parties: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **tables: dict[str, Any],
) -> Job:
    return parse_job(
        {
            "task": "digits",
            "parties": {"count": 4, **(parties or {})},
            "privacy": {
                "unit": "record",
                "epsilon": 8.0,
                "records": 1437,
                "sample_rate": 0.5,
                **(privacy or {}),
            },
            "training": {"rounds": 40, **(training or {})},
            "server": {"learning_rate": 0.5, "momentum": 0.9, **tables.get("server", {})},
            "aggregation": {"backend": "plain", **tables.get("aggregation", {})},
        },
        "test",
    )


def accuracy(public: PublicState) -> float:
    return evaluate(public.model, public.task)["accuracy"]


# Each floor is more than ten standard deviations below the mean of five runs; guessing reaches 0.1.
@pytest.mark.parametrize(
    ("wanted", "floor"),
    [
        (job({"clipping": "adaptive", "clip_norm": 0.3}), 0.87),
        (job({"mechanism": "skellam"}), 0.87),
        (
            job(
                {"rotation": "hadamard", "sample_rate": 0.1},
                aggregation={"modulus_bits": 20},
                training={"rounds": 40},
            ),
            0.8,
        ),
        (
            job(
                {"placement": "local", "sample_rate": 0.1, "clip_norm": 0.5},
                parties={"count": 2},
                training={"rounds": 15, "local_steps": 10, "learning_rate": 0.5},
                server={"learning_rate": 1.0, "momentum": 0.0},
            ),
            0.75,
        ),
    ],
    ids=["adaptive", "skellam", "hadamard", "local"],
)
def test_digits_are_learned_within_the_budget(wanted: Job, floor: float) -> None:
    public = run_rounds(wanted)
    assert public.plan.epsilon() <= 8.0
    assert accuracy(public) > floor


def test_adaptive_clipping_moves_the_norm_and_nothing_that_privacy_rests_on() -> None:
    norms: list[float] = []
    wanted = job({"clipping": "adaptive", "clip_norm": 0.05, "clip_learning_rate": 0.3})
    public = run_rounds(
        wanted, after_round=lambda _, __, seen: norms.append(seen.counted.clip_norm)
    )
    before = public_state(wanted)
    # Gradients of digits are far longer than 0.05, so the norm must rise.
    assert norms[20] > 0.2
    assert before.plan.fingerprint() == public.plan.fingerprint()
    assert public.plan.counts == 1


def test_the_count_is_a_noised_coordinate_inside_the_joint_bound() -> None:
    wanted = job({"clipping": "adaptive"})
    plan = public_state(wanted).plan
    result = run_round(wanted)
    assert result.opened.shape == (plan.dim + 1,)
    # In the clear the count would be a whole number of levels h.
    counts = [int(run_round(wanted).opened[-1]) for _ in range(3)]
    assert any(count % plan.count_level_int for count in counts)
    model_part = plan.norm_bound_int - plan.count_level_int**2
    assert 0 < model_part < plan.norm_bound_int


PARTY = {"unit": "party", "sample_rate": 1.0, "records": None, "epsilon": 1e8, "clip_norm": 3.0}
# A budget so large that the noise is small against the update, so that means can be compared.


@pytest.mark.parametrize(
    "parties",
    [
        {"count": 3, "weighting": "public", "weights": [1, 2, 5]},
        {"count": 3, "weighting": "private", "max_records": 1000},
    ],
    ids=["public", "private"],
)
def test_a_weighted_mean_is_the_weighted_mean(parties: dict[str, Any]) -> None:
    training = {"rounds": 1, "learning_rate": 0.5, "batch_size": 400, "local_steps": 3}
    plain = {"learning_rate": 1.0, "momentum": 0.0}

    wanted = job(PARTY, parties, training, server=plain)
    start = public_state(wanted)
    sizes = [len(start.task.party_data(party, 3)[0]) for party in range(3)]
    weights = parties.get("weights", sizes)
    own = [
        local_update(
            start.model, start.task.party_data(k, 3), start.task, start.job.training, round_id=0
        )[0]
        for k in range(3)
    ]
    assert max(np.linalg.norm(u) for u in own) < 3.0
    expected = sum(w * u for w, u in zip(weights, own, strict=True)) / sum(weights)
    noise = start.plan.local_sigma * math.sqrt(3) / start.plan.scale
    smallest_divisor = 0.4
    # Five sigma of each coordinate's noise, and the weight's own noise on the longest update.
    level = start.plan.count_level_int
    relative = 5 * start.plan.local_sigma * math.sqrt(3) / level if level else 0.0
    bound = 5 * noise / smallest_divisor + relative * np.abs(expected).max()
    moved = run_round(wanted).parameters - start.parameters
    assert np.abs(moved - expected).max() < bound
    # The bound can tell: it is far below the update itself.
    assert bound < 0.1 * np.abs(expected).max()


def test_with_local_placement_every_view_is_the_same_and_needs_no_other_party() -> None:
    plan = public_state(
        job(
            {"placement": "local", "sample_rate": 0.1},
            parties={"count": 2},
            training={"rounds": 3, "local_steps": 5},
        )
    ).plan
    assert len({plan.epsilon(view=view) for view in View}) == 1
