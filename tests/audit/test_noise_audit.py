"""`mpcfl audit noise`: the checks pass real shares and fail each faulty build.

False-positive rate of every check: 1e-9 by construction. Power at 120,000 values per party: sigma
3 % off moves the variance by 14 of its deviations, and 6 are allowed; the other faults are further.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mpcfl import round as thread
from mpcfl.audit.noise import (
    NoiseLaw,
    check_law,
    check_left_after_collusion,
    check_opened,
    check_size,
    check_unrelated,
)
from mpcfl.audit.noise_run import NoiseSettings, audit_noise, check_single_use
from mpcfl.audit.verdict import AuditReport
from mpcfl.config import Job, parse_job
from mpcfl.dp.noise import NoiseShare, draw_noise_share
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.dp.plan import make_plan
from mpcfl.dp.sampler import sample_discrete_gaussian
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import SystemBits, raw_keyed_bits

pytestmark = pytest.mark.stat

SIZE = 120_000
CHECKS = [
    "share-law",
    "share-variance",
    "noise-left-after-collusion",
    "shares-unrelated",
    "noise-in-the-opened-sum",
    "shares-unrelated-after-fork",
    "share-used-once",
]
Draw = Callable[..., NoiseShare]


def job_of(parties: int = 3, backend: str = "plain", **privacy: Any) -> Job:
    table = {"unit": "record", "epsilon": 4.0, "records": 100, "sample_rate": 0.5} | privacy
    document = {
        "task": "toy",
        "parties": {"count": parties},
        "privacy": table,
        "training": {"rounds": 5},
        "aggregation": {"backend": backend},
    }
    return parse_job(document, "test")


def failed(report: AuditReport) -> set[str]:
    return {finding.check for finding in report.findings if not finding.passed}


def plan_of(**changes: Any) -> NoisePlan:
    plan = make_plan(
        epsilon=4.0, delta=1e-5, rounds=5, parties=4, dim=20_000, clip_norm=1.0, modulus_bits=32
    )
    return replace(plan, **changes)


def scaled(factor: float) -> Draw:
    """Shares of a sigma that is off by a factor; zero leaves them out."""

    def draw(plan: NoisePlan, bits: object = None) -> NoiseShare:
        sigma = round(plan.local_sigma * factor)
        if sigma == 0:
            return NoiseShare(np.zeros(plan.vector_dim, dtype=np.int64))
        return draw_noise_share(replace(plan, local_sigma=sigma))

    return draw


@pytest.mark.parametrize(
    "job",
    [
        job_of(backend="crypten"),
        job_of(unit="party", sample_rate=1.0),
        job_of(mechanism="skellam"),
    ],
    ids=["record", "party", "skellam"],
)
def test_a_healthy_build_passes_every_check(job: Job) -> None:
    report = audit_noise(job)
    assert [finding.check for finding in report.findings] == CHECKS
    assert report.passed, report.lines()


def test_a_sigma_three_percent_too_small_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "draw_noise_share", scaled(0.97))
    assert failed(audit_noise(job_of())) >= {
        "share-variance",
        "noise-left-after-collusion",
        "noise-in-the-opened-sum",
    }


def test_a_sigma_divided_by_root_n_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "draw_noise_share", scaled(3**-0.5))
    assert failed(audit_noise(job_of())) >= set(CHECKS[:3])


def test_a_party_that_leaves_out_its_noise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = thread.draw_noise_share
    quiet: set[int] = set()

    def draw(plan: NoisePlan, bits: object = None) -> NoiseShare:
        # The first thread to come, in every session: one party of three.
        quiet.add(threading.get_ident()) if not quiet else None
        return scaled(0.0)(plan) if threading.get_ident() in quiet else drawn(plan)

    monkeypatch.setattr(thread, "draw_noise_share", draw)
    found = failed(audit_noise(job_of(), NoiseSettings(rounds=4)))
    assert found >= {"share-law", "share-variance", "noise-left-after-collusion"}
    # A missing share has no direction either.
    assert "shares-unrelated" in found


def test_parties_that_share_a_seed_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(plan: NoisePlan, bits: object = None) -> NoiseShare:
        return draw_noise_share(plan, raw_keyed_bits(bytes(32)))

    monkeypatch.setattr(thread, "draw_noise_share", draw)
    found = failed(audit_noise(job_of()))
    # n equal shares add up to n^2 times the variance of one.
    assert found >= {"shares-unrelated", "noise-in-the-opened-sum"}


def test_noise_that_is_used_again_in_later_rounds_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, np.ndarray] = {}

    def draw(plan: NoisePlan, bits: object = None) -> NoiseShare:
        mine = threading.get_ident()
        if mine not in kept:
            kept[mine] = draw_noise_share(plan).take()
        return NoiseShare(kept[mine].copy())

    monkeypatch.setattr(thread, "draw_noise_share", draw)
    report = audit_noise(job_of())
    assert "shares-unrelated" in failed(report)
    assert report.findings[3].figures["largest_correlation"] == pytest.approx(1.0)


def test_a_sum_that_is_not_the_sum_of_the_shares_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def protect_less(levels: np.ndarray, share: NoiseShare) -> np.ndarray:
        return levels + share.take() // 2

    monkeypatch.setattr(thread, "add_noise", protect_less)
    assert failed(audit_noise(job_of())) >= {"share-variance", "noise-in-the-opened-sum"}
    opened = sample_discrete_gaussian(sigma=100, size=1000)
    changed = opened.copy()
    changed[17] += 1
    assert check_opened(opened, opened, 100.0**2).passed
    assert not check_opened(changed, opened, 100.0**2).passed


def test_children_that_go_on_with_their_parent_s_generator_fail() -> None:
    class Counter:
        """A generator whose whole state is copied by a fork."""

        state = os.urandom(16)

        def words(self, count: int) -> np.ndarray:
            self.state = hashlib.sha256(self.state).digest()
            return raw_keyed_bits(self.state).words(count)

    bits = Counter()
    report = audit_noise(
        job_of(), NoiseSettings(dim=2000), draw=lambda plan: draw_noise_share(plan, bits)
    )
    assert failed(report) == {"shares-unrelated-after-fork"}


def test_a_child_that_fails_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpcfl.audit.noise_run._CHILD_DEADLINE_S", 0.2)
    parent = os.getpid()

    def hang(plan: NoisePlan) -> NoiseShare:
        if os.getpid() != parent:
            time.sleep(60)
        return draw_noise_share(plan)

    start = time.monotonic()
    report = audit_noise(job_of(), NoiseSettings(dim=2000), draw=hang)
    assert failed(report) == {"shares-unrelated-after-fork"}
    assert time.monotonic() - start < 30


def test_a_share_that_can_be_used_again_fails() -> None:
    class Reusable:
        def take(self) -> np.ndarray:
            return np.zeros(3, dtype=np.int64)

    assert check_single_use(plan_of(), draw_noise_share).passed
    assert not check_single_use(plan_of(), lambda _: Reusable()).passed


def rounded_normal(sigma: int) -> np.ndarray:
    uniform = (SystemBits().words(SIZE) >> np.uint64(11)) * 2.0**-53
    return np.rint(sigma * stats.norm.ppf(uniform + 2.0**-54)).astype(np.int64)


@pytest.mark.parametrize("sigma", [1, 2, 8, 5000])
def test_the_law_of_a_share_is_held_at_every_size(sigma: int) -> None:
    shares = {party: sample_discrete_gaussian(sigma=sigma, size=SIZE) for party in range(3)}
    assert check_law(shares, NoiseLaw(sigma)).passed
    assert check_size(shares, sigma).passed
    # One party alone is off: by 3 %, or by a whole level where that is more.
    wrong = max(sigma + 1, round(1.03 * sigma))
    off = {**shares, 1: sample_discrete_gaussian(sigma=wrong, size=SIZE)}
    assert not check_size(off, sigma).passed
    moved = {**shares, 2: shares[2] + max(1, sigma // 10)}
    assert not check_size(moved, sigma).passed
    assert not check_law(moved, NoiseLaw(sigma)).passed


def test_rounded_continuous_noise_fails_at_small_sigma() -> None:
    # Its variance is larger by 1/12, which is 20 deviations at sigma 1 and 120,000 values.
    shares = {0: rounded_normal(1)}
    assert not check_law(shares, NoiseLaw(1)).passed
    assert not check_size(shares, 1).passed


def test_normal_noise_where_skellam_was_planned_fails_at_small_sigma() -> None:
    # The excess kurtosis of Skellam noise is 1/sigma^2.
    shares = {0: sample_discrete_gaussian(sigma=1, size=SIZE)}
    assert check_law(shares, NoiseLaw(1)).passed
    assert not check_law(shares, NoiseLaw(1, "skellam")).passed


def test_heavier_tails_of_the_same_variance_fail() -> None:
    # Every hundredth value is three times as large, all others a little smaller.
    values = sample_discrete_gaussian(sigma=1000, size=SIZE).astype(np.float64)
    values *= np.where(np.arange(SIZE) % 100 == 0, 3.0, np.sqrt((100 - 9) / 99))
    shares = {0: np.rint(values).astype(np.int64)}
    assert not check_law(shares, NoiseLaw(1000)).passed


def test_any_choice_of_parties_must_carry_the_planned_noise() -> None:
    plan = plan_of(local_sigma=1000)
    shares = {p: sample_discrete_gaussian(sigma=1000, size=SIZE) for p in range(4)}
    assert check_left_after_collusion(shares, plan).passed
    # What party 3 adds, party 1 takes away again: each alone looks right.
    cancelled = {**shares, 3: -shares[1]}
    assert check_size(cancelled, 1000).passed
    assert not check_left_after_collusion(cancelled, plan).passed


def test_a_correlation_of_a_tenth_is_seen_and_none_is_not() -> None:
    first, second = (sample_discrete_gaussian(sigma=1000, size=20_000) for _ in range(2))
    assert check_unrelated([first, second], "x", "two vectors").passed
    partly = np.rint(0.1 * first + 0.995 * second).astype(np.int64)
    assert not check_unrelated([first, partly], "x", "two vectors").passed
    assert not check_unrelated([first, np.zeros_like(first)], "x", "two vectors").passed


@pytest.mark.parametrize("privacy", [{"unit": "none"}, {"placement": "local"}])
def test_a_job_without_shares_of_noise_is_refused(privacy: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="looks at noise in shares"):
        audit_noise(job_of(**privacy))
