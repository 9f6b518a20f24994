"""`mpcfl audit dp` on the real protocol: healthy builds pass, builds with too little noise don't.

A healthy build fails with probability below 1e-8: 1e-9 from independent canaries; the bound for
any run stays 8 of its deviations below the promise (simulated: 1.8 +- 0.2 where 4 is promised,
0.85 +- 0.13 where 2 is). Noise of sigma/sqrt(n) at n = 4 is seen by independent canaries with
probability above 1 - 1e-12, and at n = 16 by the bound for any run too (3.8 +- 0.21 against 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mpcfl import round as thread
from mpcfl.audit.canary import CanaryTask
from mpcfl.audit.privacy import (
    CanarySettings,
    audit_privacy,
    left_for_coalition,
    run_with_canaries,
)
from mpcfl.audit.session import Seen
from mpcfl.audit.verdict import AuditReport
from mpcfl.config import Job, TrainingTable, parse_job
from mpcfl.dp.clip import clip_rows
from mpcfl.dp.noise import NoiseShare, draw_noise_share
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.errors import ConfigError
from mpcfl.learn.model import initial_model
from mpcfl.learn.tasks.digits import DigitsTask
from mpcfl.learn.train import record_gradients

SMALL = CanarySettings(canaries=500, rounds=2)

EIGHT = TrainingTable(rounds=1, microbatch=8)


def job_of(parties: int = 4, backend: str = "plain", **privacy: Any) -> Job:
    table = {"unit": "record", "epsilon": 4.0, "records": 1437, "sample_rate": 0.5} | privacy
    document = {
        "task": "digits",
        "parties": {"count": parties},
        "privacy": table,
        "training": {"rounds": 20},
        "aggregation": {"backend": backend},
    }
    return parse_job(document, "test")


def verdicts(report: AuditReport) -> dict[str, bool]:
    return {finding.check: finding.passed for finding in report.findings}


def weakened(divisor: int) -> Callable[..., NoiseShare]:
    def draw(plan: NoisePlan, bits: object = None) -> NoiseShare:
        return draw_noise_share(replace(plan, local_sigma=plan.local_sigma // divisor))

    return draw


@pytest.mark.stat
def test_a_healthy_build_passes_with_bounds_below_the_promise() -> None:
    report = audit_privacy(job_of(backend="crypten"))
    assert report.passed, report.lines()
    for finding in report.findings:
        assert 0.5 < finding.figures["epsilon_lower_bound"] < 4.0
        assert finding.figures["epsilon_claimed"] == pytest.approx(4.0)
    assert report.findings[1].figures["power_against_sigma_over_sqrt_n"] > 1 - 1e-6


@pytest.mark.stat
def test_noise_of_sigma_over_root_n_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "draw_noise_share", weakened(2))
    report = audit_privacy(job_of(parties=4))
    assert not report.passed
    sharp = report.findings[1]
    assert sharp.check == "epsilon-of-independent-canaries"
    assert not sharp.passed
    assert sharp.figures["epsilon_lower_bound"] > sharp.figures["epsilon_claimed"]


@pytest.mark.stat
def test_sixteen_parties_show_it_even_to_the_bound_for_any_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    healthy = audit_privacy(job_of(parties=16, epsilon=2.0))
    assert healthy.passed, healthy.lines()
    monkeypatch.setattr(thread, "draw_noise_share", weakened(4))
    report = audit_privacy(job_of(parties=16, epsilon=2.0))
    assert set(verdicts(report).values()) == {False}


@pytest.mark.stat
def test_a_record_that_counts_twice_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*arguments: Any) -> Iterator[np.ndarray]:
        for rows in record_gradients(*arguments):
            yield rows
            yield rows

    monkeypatch.setattr(thread, "record_gradients", twice)
    assert not audit_privacy(job_of()).passed


@pytest.mark.stat
def test_a_clip_norm_that_is_not_held_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither clipped nor checked as integers: a canary pulls with twice the clip norm."""
    monkeypatch.setattr(thread, "clip_rows", lambda rows, _: clip_rows(rows, 2.0))

    def unchecked(rows: np.ndarray, grid: Any, *_: object) -> np.ndarray:
        return np.rint(rows * grid.scale).astype(np.int64)

    monkeypatch.setattr(thread, "quantize_rows", unchecked)
    assert not audit_privacy(job_of()).passed


@pytest.mark.stat
def test_a_sampled_run_is_judged_by_its_own_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bound on the accuracy is not exact here; without any noise it is passed by far.
    settings = CanarySettings(canaries=1000, rounds=6, sample_rate=0.5)
    assert audit_privacy(job_of(epsilon=2.0), settings).passed
    monkeypatch.setattr(thread, "draw_noise_share", weakened(1 << 10))
    assert not audit_privacy(job_of(epsilon=2.0), settings).passed


@pytest.mark.stat
def test_without_noise_the_scores_are_the_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coalition's own inputs come off, and nothing but the canary moves its coordinate."""
    monkeypatch.setattr(
        thread,
        "draw_noise_share",
        lambda plan, _: NoiseShare(np.zeros(plan.vector_dim, dtype=np.int64)),
    )
    run = run_with_canaries(job_of(), SMALL)
    # One rounding of half a level per round, and the margin of the clip.
    slack = SMALL.rounds * (0.5 / run.plan.scale + 2e-9)
    assert np.all(np.abs(run.scores - SMALL.rounds * run.included) <= slack)
    # Each canary is in by a fair coin; outside with probability 1e-9.
    assert 180 < np.count_nonzero(run.included) < 320


def test_the_coalition_takes_its_own_inputs_off_in_the_ring() -> None:
    plan = run_with_canaries(job_of(), SMALL).plan
    half = 1 << (plan.modulus_bits - 1)
    own = {0: np.array([[half - 1, 5], [7, -9]]), 1: np.array([[3, -1], [0, 0]])}
    others = np.array([[2, -4], [-6, 8]])
    total = own[0] + own[1] + others
    opened = (total + half) % (2 * half) - half
    assert opened[0, 0] < 0
    np.testing.assert_array_equal(left_for_coalition(Seen(opened, own), plan), [-4.0, 4.0])


def test_a_canary_pulls_one_axis_and_real_records_none_of_these() -> None:
    real = DigitsTask()
    task = CanaryTask(real, 5, {1: [0, 3]}, clip_norm=1.0)
    model = initial_model(task, seed=0)
    records = task.party_data(1, 4)
    n_real = len(real.party_data(1, 4)[0])
    sample = np.arange(n_real, n_real + 2)
    assert len(records[0]) == n_real + 2
    canaries = np.concatenate(list(record_gradients(model, records, task, sample, EIGHT)))
    clipped, _ = clip_rows(canaries, 1.0)
    expected = np.zeros((2, canaries.shape[1]))
    expected[0, 0] = expected[1, 3] = 1.0
    np.testing.assert_allclose(clipped, expected, atol=2e-9)

    ordinary = np.arange(10)
    found = np.concatenate(list(record_gradients(model, records, task, ordinary, EIGHT)))
    plain = initial_model(real, seed=0)
    wanted = np.concatenate(
        list(record_gradients(plain, real.party_data(1, 4), real, ordinary, EIGHT))
    )
    np.testing.assert_array_equal(found[:, :5], 0.0)
    # The same float32 operations, in batches of another layout.
    np.testing.assert_allclose(found[:, 5:], wanted, atol=1e-5)


def test_integer_inputs_stay_exact_behind_the_index() -> None:
    class Words(DigitsTask):
        def model(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Embedding(70_000, 4), torch.nn.Flatten())

        def test_data(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.tensor([[65_537, 3], [1, 2]]), torch.tensor([0, 1])

    task = CanaryTask(Words(), 3, {}, clip_norm=1.0)
    outputs = task.model()(task.test_data()[0])
    assert outputs.outputs.shape == (2, 8)
    assert outputs.values.tolist() == [0.0, 0.0]
    assert not outputs.is_canary.any()


@pytest.mark.parametrize(
    ("privacy", "remedy"),
    [
        ({"unit": "party", "sample_rate": 1.0}, 'unit = "record"'),
        ({"unit": "none"}, 'unit = "record"'),
        ({"placement": "local"}, 'placement = "distributed"'),
        ({"rotation": "hadamard"}, 'rotation = "none"'),
        ({"clipping": "adaptive"}, 'clipping = "fixed"'),
    ],
)
def test_a_promise_that_it_can_not_test_is_refused(privacy: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        audit_privacy(job_of(**privacy), SMALL)


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(ConfigError, match="64 canaries"):
        audit_privacy(job_of(), CanarySettings(canaries=10))
