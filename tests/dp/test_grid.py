from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpcfl.config import parse_job
from mpcfl.dp import NoisePlan, clip_rows, make_fixed_point_plan, make_plan, sum_levels
from mpcfl.dp.grid import round_grid
from mpcfl.dp.plan import plan_for_job, ring_plan_for_job
from mpcfl.dp.quantize import dequantize_sum, quantize_rows
from mpcfl.errors import ConfigError

PARTY: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-5, "rounds": 10, "parties": 10, "dim": 50, "clip_norm": 1.0,
    "modulus_bits": 32,
}  # fmt: skip
COUNTED = make_plan(**PARTY, counts=2)


def unit_rows(n_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)  # noqa: TID251 - inputs only
    rows = rng.normal(size=(n_rows, dim))
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def test_the_grid_moves_with_the_clip_norm_and_the_levels_stay(party_plan: NoisePlan) -> None:
    row = unit_rows(1, party_plan.dim)
    levels = []
    for clip_norm in (1.0, 0.125, 64.0):
        clipped, _ = clip_rows(row * clip_norm, clip_norm)
        grid = round_grid(party_plan, 0, clip_norm)
        levels.append(quantize_rows(clipped, grid))
        back = dequantize_sum(levels[-1][0], grid).values
        np.testing.assert_allclose(back, clipped[0], rtol=0, atol=0.5001 / grid.scale)
    np.testing.assert_array_equal(levels[0], levels[1])
    np.testing.assert_array_equal(levels[0], levels[2])


def test_the_planned_clip_norm_gives_the_planned_scale_to_the_bit(party_plan: NoisePlan) -> None:
    assert round_grid(party_plan, 3).scale == party_plan.scale
    assert round_grid(party_plan, 3, party_plan.clip_norm).scale == party_plan.scale


def test_without_privacy_the_grid_never_moves() -> None:
    plan = make_fixed_point_plan(parties=3, dim=4, rounds=1, modulus_bits=32)
    for clip_norm in (None, math.inf, 0.5):
        assert round_grid(plan, 0, clip_norm).scale == plan.scale
        assert math.isinf(round_grid(plan, 0, clip_norm).clip_norm)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_clip_norm_that_is_none_is_refused(bad: float, party_plan: NoisePlan) -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        round_grid(party_plan, 0, bad)


def test_counts_travel_behind_the_model_and_come_back() -> None:
    grid = round_grid(COUNTED, 0)
    rows, counts = unit_rows(3, 50) * (1 - 1e-9), np.array([[1.0, 0.25], [-1.0, 0.5], [1.0, 1.0]])
    opened = dequantize_sum(sum_levels([quantize_rows(rows, grid, counts)], COUNTED), grid)
    assert opened.values.shape == (50,)
    np.testing.assert_allclose(opened.counts, [1.0, 1.75], atol=3 * 0.5 / COUNTED.count_level_int)
    np.testing.assert_allclose(opened.values, rows.sum(axis=0), atol=3 * 0.5001 / COUNTED.scale)


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, -7.0])
def test_no_count_can_pass_its_level_nor_eat_the_bound_of_the_model(
    bad: float, rotation: str
) -> None:
    plan = make_plan(**{**PARTY, "modulus_bits": 18, "counts": 2, "rotation": rotation})
    row = np.zeros((1, 50))
    row[0, 7] = 1 - 1e-9
    levels = quantize_rows(row, round_grid(plan, 0), np.array([[bad, bad]]))[0]
    counts = levels[plan.rotated_dim :]
    assert set(np.abs(counts)) <= {0, plan.count_level_int}
    assert math.isnan(bad) == (not counts.any())
    alone = quantize_rows(row, round_grid(plan, 0), np.zeros((1, 2)))[0]
    if rotation == "none":
        np.testing.assert_array_equal(levels[:50], alone[:50])
    assert alone[: plan.rotated_dim].any()


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_the_model_part_cannot_take_what_is_kept_for_the_counts(rotation: str) -> None:
    plan = make_plan(**{**PARTY, "modulus_bits": 18, "counts": 2, "rotation": rotation})
    # Longer than clipped by what the counts take: within the joint bound, not within its own.
    length = math.sqrt((plan.model_bound_int + plan.norm_bound_int) / 2) / plan.scale
    for row in (unit_rows(1, 50) * length, np.eye(1, 50) * length):
        model = quantize_rows(row, round_grid(plan, 0), np.ones((1, 2)))[0, : plan.rotated_dim]
        assert int(model @ model) <= plan.model_bound_int


def test_a_hostile_model_part_leaves_the_counts_alone() -> None:
    counts = np.array([[1.0, -1.0]])
    for bad in (np.full((1, 50), math.nan), np.full((1, 50), 1e9)):
        levels = quantize_rows(bad, round_grid(COUNTED, 0), counts)[0]
        assert not levels[:50].any()
        assert levels[50:].tolist() == [COUNTED.count_level_int, -COUNTED.count_level_int]


def test_the_joint_bound_is_exact_in_integers() -> None:
    for bits in (16, 20, 32):
        plan = make_plan(**{**PARTY, "modulus_bits": bits, "counts": 2, "count_share": 0.2})
        level = plan.count_level_int
        assert plan.model_bound_int + 2 * level**2 == plan.norm_bound_int
        assert level == pytest.approx(0.2 * math.sqrt(plan.norm_bound_int), abs=1)
        # What is left to the model is what a row at the clip norm needs, and no level more.
        needed = plan.scale * plan.clip_norm + math.sqrt(50) / 2
        assert needed**2 == pytest.approx(plan.model_bound_int, abs=2 * needed)


def test_counts_that_are_missing_or_too_many_are_a_defect_of_the_caller() -> None:
    rows = np.zeros((1, 50))
    for counts in (None, np.zeros((1, 1)), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="counts must have shape"):
            quantize_rows(rows, round_grid(COUNTED, 0), counts)


def job(privacy: dict[str, Any], **tables: dict[str, Any]) -> Any:
    document = {
        "task": "digits",
        "parties": {"count": 4},
        "privacy": {"unit": "party", "epsilon": 8.0, **privacy},
        "training": {"rounds": 10},
        "aggregation": {"backend": "plain"},
    }
    return parse_job(document | tables, "job")


def test_a_job_carries_one_count_for_each_of_its_secrets() -> None:
    private = {"count": 4, "weighting": "private", "max_records": 100}
    assert plan_for_job(job({}), 50).counts == 0
    assert plan_for_job(job({"clipping": "adaptive"}), 50).counts == 1
    assert plan_for_job(job({}, parties=private), 50).counts == 1
    both = plan_for_job(job({"clipping": "adaptive", "count_share": 0.2}, parties=private), 50)
    assert both.vector_dim == 52
    assert both.count_level_int == pytest.approx(0.2 * math.sqrt(both.norm_bound_int), abs=1)
    assert ring_plan_for_job(job({"clipping": "adaptive"}), 50).vector_dim == 51


def test_under_local_placement_the_sum_is_fixed_point_and_saturates() -> None:
    local = {"unit": "record", "placement": "local", "records": 1000, "sample_rate": 0.1}
    local_job = job(local, training={"rounds": 10, "local_steps": 3})
    noise, ring = plan_for_job(local_job, 5), ring_plan_for_job(local_job, 5)
    assert (noise.local_steps, noise.placement, noise.unit) == (3, "local", "record")
    assert (ring.mechanism, ring.local_sigma, ring.placement) == ("none", 0, "local")
    assert ring.unit == "record"
    assert (noise.denominator(4), ring.denominator(4)) == (25.0, 4.0)
    limit = ring.saturation_int
    odd = np.array([[1e9, -math.inf, math.nan, 0.5, 1e308]])
    levels = quantize_rows(odd, round_grid(ring, 0))[0]
    assert levels.tolist() == [limit, -limit, 0, round(0.5 * ring.scale), limit]
    assert 4 * limit < 2**31
