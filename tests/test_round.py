"""The round as an executable specification: one sum, whatever backend protects it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from mpcfl.config import Job, parse_job
from mpcfl.dp import NoisePlan, NoiseShare, draw_noise_share
from mpcfl.hazmat.bits import BitSource, KeystreamBits, raw_keyed_bits
from mpcfl.round import RoundResult, public_state, run_round, run_rounds
from mpcfl.secagg.registry import backend_names

N_PARTIES = 3
RECORDS_PER_PARTY = 4
DIM = 3
CLIP_NORM = 0.5
UNITS = ("record", "party", "none")
FALSE_POSITIVE_RATE = 1e-9

# Least squares from a model of zeros: the gradient of a record is -2 t (x0, x1, 1).
TASKS = '''
import torch
from torch import nn


class Line:
    """Three parties, four records each."""

    def model(self):
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    def party_data(self, party, n_parties):
        inputs = torch.tensor([[0.5, -1.0], [1.0, 0.25], [-0.75, 0.5], [2.0, 1.0]]) + 0.125 * party
        return inputs, 0.5 * inputs[:, :1] - inputs[:, 1:] + 0.25

    def test_data(self):
        return self.party_data(0, 3)

    def loss(self, outputs, targets):
        return nn.functional.mse_loss(outputs, targets)


class Learnt(Line):
    """The model fits already: every gradient and every update is exactly zero."""

    def party_data(self, party, n_parties):
        inputs, targets = super().party_data(party, n_parties)
        return inputs, torch.zeros_like(targets)


class LearntAtPartyOne(Line):
    def party_data(self, party, n_parties):
        inputs, targets = super().party_data(party, n_parties)
        return inputs, torch.zeros_like(targets) if party == 1 else targets


class LastRecordMissing(Line):
    """Party 1 has three records."""

    def party_data(self, party, n_parties):
        inputs, targets = super().party_data(party, n_parties)
        return (inputs[:3], targets[:3]) if party == 1 else (inputs, targets)


class LastRecordBad(Line):
    """Party 1's last record is not finite."""

    value = float("nan")

    def party_data(self, party, n_parties):
        inputs, targets = super().party_data(party, n_parties)
        if party == 1:
            inputs = inputs.clone()
            inputs[3, 0] = self.value
        return inputs, targets


class LastRecordInfinite(LastRecordBad):
    value = float("inf")


class LastRecordOverflows(LastRecordBad):
    """Every value is finite, but the gradient is not."""

    value = 3e38

    def party_data(self, party, n_parties):
        inputs, targets = super().party_data(party, n_parties)
        if party == 1:
            targets = targets.clone()
            targets[3] = 1000.0
        return inputs, targets
'''


@pytest.fixture(autouse=True)
def task_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "line_tasks.py").write_text(TASKS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "line_tasks", raising=False)


def job_of(unit: str, task: str = "Line", sample_rate: float = 1.0, **aggregation: Any) -> Job:
    privacy: dict[str, Any] = {"unit": unit, "clip_norm": CLIP_NORM, "sample_rate": sample_rate}
    if unit != "none":
        privacy["epsilon"] = 4.0
    if unit == "record":
        privacy["records"] = N_PARTIES * RECORDS_PER_PARTY
    document = {
        "task": f"line_tasks:{task}",
        "parties": {"count": N_PARTIES},
        "privacy": privacy,
        "training": {"rounds": 2, "batch_size": RECORDS_PER_PARTY},
        "aggregation": {"backend": "plain", "key_bits": 2048} | aggregation,
    }
    return parse_job(document, "test")


def keyed(first: int) -> list[KeystreamBits]:
    return [raw_keyed_bits(bytes([first + rank]) * 32) for rank in range(N_PARTIES)]


def opened(job: Job, key: int = 1) -> NDArray[np.int64]:
    return run_round(job, keyed(key)).opened


def ways_to_protect() -> list[dict[str, str]]:
    """Every registered backend but the oracle, in every custody that it has."""
    ways = [{"backend": name} for name in backend_names() if name != "plain"]
    return [*ways, {"backend": "phe", "custody": "clients"}]


@pytest.mark.parametrize("way", ways_to_protect(), ids=lambda way: "-".join(way.values()))
@pytest.mark.parametrize("unit", UNITS)
def test_equal_bits_open_the_same_integers_as_plain(unit: str, way: dict[str, str]) -> None:
    # q < 1 at record level, so that the Poisson samples are compared too.
    rate = 0.75 if unit == "record" else 1.0
    expected = run_round(job_of(unit, sample_rate=rate), keyed(1))
    found = run_round(job_of(unit, sample_rate=rate, **way), keyed(1))
    assert expected.opened.shape == (DIM,)
    assert np.count_nonzero(expected.opened) == DIM
    np.testing.assert_array_equal(found.opened, expected.opened)
    np.testing.assert_array_equal(found.parameters, expected.parameters)


@pytest.mark.parametrize("unit", ["record", "party"])
def test_other_bits_open_another_sum(unit: str) -> None:
    assert np.any(opened(job_of(unit), key=1) != opened(job_of(unit), key=101))


def test_the_bits_of_each_single_party_matter() -> None:
    reference = opened(job_of("party"))
    for rank in range(N_PARTIES):
        bits = keyed(1)
        bits[rank] = raw_keyed_bits(bytes([200]) * 32)
        assert np.any(run_round(job_of("party"), bits).opened != reference), rank


@pytest.mark.parametrize("unit", ["record", "party"])
def test_without_injected_bits_no_two_runs_open_the_same_sum(unit: str) -> None:
    first, second = run_round(job_of(unit)), run_round(job_of(unit))
    assert np.any(first.opened != second.opened)


def test_without_privacy_the_sum_does_not_depend_on_any_bits() -> None:
    job = job_of("none")
    np.testing.assert_array_equal(opened(job, key=1), opened(job, key=101))
    np.testing.assert_array_equal(opened(job, key=1), run_round(job).opened)


@pytest.mark.parametrize("unit", ["record", "party"])
def test_noise_has_the_planned_size(unit: str) -> None:
    # Every update is zero, so the opened sum is the noise and nothing else.
    job = job_of(unit, task="Learnt")
    runs = 20
    noise = np.concatenate([opened(job, key=10 * run) for run in range(runs)]).astype(np.float64)
    sigma = np.sqrt(N_PARTIES) * public_state(job).plan.local_sigma
    statistic = float(np.sum((noise / sigma) ** 2))
    assert chi2.ppf(FALSE_POSITIVE_RATE / 2, noise.size) < statistic
    assert statistic < chi2.isf(FALSE_POSITIVE_RATE / 2, noise.size)


@pytest.mark.parametrize("unit", ["record", "party"])
def test_noise_does_not_depend_on_the_data(unit: str) -> None:
    """With equal bits the noise is equal, so the signal is the same under any bits."""
    signals = [opened(job_of(unit), key) - opened(job_of(unit, "Learnt"), key) for key in (1, 101)]
    np.testing.assert_array_equal(signals[0], signals[1])
    assert np.any(signals[0] != 0)


def test_sum_less_noise_is_the_sum_of_clipped_descent_steps() -> None:
    signal = opened(job_of("record")) - opened(job_of("record", "Learnt"))
    expected = np.zeros(DIM)
    for party in range(N_PARTIES):
        inputs = np.array([[0.5, -1.0], [1.0, 0.25], [-0.75, 0.5], [2.0, 1.0]]) + 0.125 * party
        for x, y in inputs:
            gradient = -2 * (0.5 * x - y + 0.25) * np.array([x, y, 1.0])
            norm = float(np.linalg.norm(gradient))
            expected -= gradient * min(1.0, CLIP_NORM / norm)
    scale = public_state(job_of("record")).plan.scale
    # Each record is rounded once, by half a step; clipping leaves a margin of 1e-9 of its norm;
    # gradients come in float32.
    n_records = N_PARTIES * RECORDS_PER_PARTY
    bound = n_records * (0.5 / scale + CLIP_NORM * (1e-9 + 8 * np.finfo(np.float32).eps))
    assert np.max(np.abs(signal / scale - expected)) <= bound


def test_the_party_level_signal_never_exceeds_what_clipping_allows() -> None:
    job = job_of("party")
    signal = opened(job) - opened(job_of("party", "Learnt"))
    plan = public_state(job).plan
    assert 0 < np.linalg.norm(signal) <= N_PARTIES * np.sqrt(plan.norm_bound_int)


@pytest.mark.parametrize("task", ["LastRecordBad", "LastRecordInfinite", "LastRecordOverflows"])
def test_a_record_that_is_not_finite_contributes_zero(task: str) -> None:
    without = opened(job_of("record", "LastRecordMissing"))
    np.testing.assert_array_equal(opened(job_of("record", task)), without)
    # The comparison sees a single record: the same one, finite, changes the sum.
    assert np.any(opened(job_of("record")) != without)


@pytest.mark.parametrize("task", ["LastRecordBad", "LastRecordInfinite", "LastRecordOverflows"])
@pytest.mark.parametrize("unit", ["party", "none"])
def test_an_update_that_is_not_finite_contributes_zero_but_noise(unit: str, task: str) -> None:
    with_zero = opened(job_of(unit, "LearntAtPartyOne"))
    np.testing.assert_array_equal(opened(job_of(unit, task)), with_zero)
    assert np.any(opened(job_of(unit)) != with_zero)


def test_a_later_round_is_trained_on_as_well() -> None:
    first: RoundResult = run_round(job_of("none"), round_id=0)
    second: RoundResult = run_round(job_of("none"), round_id=1)
    assert np.any(first.opened != 0)
    assert np.any(second.opened != 0)


def test_the_aggregator_of_custody_clients_is_one_more_rank() -> None:
    result = run_round(job_of("none", backend="phe", custody="clients"))
    assert len(result.bytes_sent) == N_PARTIES + 1
    assert min(result.bytes_sent) > 0


class RecordedBits:
    """Keyed bits that note who reads how many words, in order."""

    def __init__(self, key: int) -> None:
        self._bits = raw_keyed_bits(bytes([key]) * 32)
        self.read: list[int] = []
        self.threads: set[int] = set()

    def words(self, count: int) -> NDArray[np.uint64]:
        self.read.append(count)
        self.threads.add(threading.get_ident())
        return self._bits.words(count)


@pytest.fixture
def every_share_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have shares of any length drawn ahead, so that tests need no long ones."""
    monkeypatch.setattr("mpcfl.dp.noise_ahead._LEAST_COORDINATES", 1)


@pytest.mark.usefixtures("every_share_is_long")
@pytest.mark.parametrize("backend", ["plain", "ring", "crypten"])
@pytest.mark.parametrize("unit", ["record", "party"])
def test_making_things_ahead_changes_neither_bits_nor_sums_of_the_oracle(
    unit: str, backend: str
) -> None:
    rate = 0.75 if unit == "record" else 1.0
    read, sums = [], []
    for precompute in (False, True):
        bits = [RecordedBits(1 + party) for party in range(N_PARTIES)]
        job = job_of(unit, sample_rate=rate, backend=backend, precompute=precompute)
        sums.append(run_round(job, bits).opened)
        read.append([source.read for source in bits])
        # Each party reads its bits in its own thread, stage after stage.
        assert [len(source.threads) for source in bits] == [1] * N_PARTIES
    assert read[0] == read[1]
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], opened(job_of(unit, sample_rate=rate)))


@pytest.mark.usefixtures("every_share_is_long")
@pytest.mark.parametrize("precompute", [False, True])
def test_each_share_is_in_the_sum_it_was_drawn_for_and_in_no_other(
    precompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to learn, so that each opened sum is its round's noise and nothing else."""
    shares: list[NDArray[np.int64]] = []
    names: set[str] = set()

    def recorded(plan: NoisePlan, bits: BitSource | None = None) -> NoiseShare:
        noise = draw_noise_share(plan, bits).take()
        shares.append(noise.copy())
        names.add(threading.current_thread().name.split("_")[0])
        return NoiseShare(noise)

    monkeypatch.setattr("mpcfl.round.draw_noise_share", recorded)
    job = job_of("party", task="Learnt", backend="ring", precompute=precompute)
    # The noise of a round moves the model by less than a level of the next one.
    server = job.server.model_copy(update={"learning_rate": 1e-15})
    job = job.model_copy(update={"server": server})
    n_rounds = 0

    def check(round_id: int, total: NDArray[np.int64], _: object) -> None:
        nonlocal n_rounds
        n_rounds += 1
        drawn = shares[N_PARTIES * round_id : N_PARTIES * (round_id + 1)]
        np.testing.assert_array_equal(total, np.sum(drawn, axis=0))

    run_rounds(job, after_round=check)
    assert n_rounds == job.training.rounds
    assert len(shares) == N_PARTIES * n_rounds
    assert ("noise" in names) == precompute
