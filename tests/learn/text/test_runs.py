"""Runs of tiny language models, all parties in this process: what travels, and what comes out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_texts import HIDDEN_SIZE, N_REVIEWS, TEST_RECORDS, tiny_options

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.learn.model import initial_model
from mpcfl.learn.registry import load_task
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RunRecord
from mpcfl.round import public_state, run_round

sys.path.append(str(Path(__file__).parents[2] / "parties"))

from parties_in_threads import run_job

WAYS = ("head", "lora", "full")
N_RECORDS = N_REVIEWS - TEST_RECORDS
N_PARTIES = 2


def make_job(texts: Path, train: str, **more: Any) -> Job:
    """Return a job of two parties at record level; head by vmap, all else by Opacus."""
    # Embeddings of places are looked up once for all records that pass together.
    training: dict[str, Any] = {"rounds": 2, "microbatch": 1 if train == "full" else 8}
    if train != "head":
        training["gradients"] = "opacus"
    document = {
        "task": "imdb",
        "task_options": {
            **tiny_options(texts),
            "train": train,
            "lora_rank": 2,
        },
        "parties": {"count": more.pop("count", N_PARTIES)},
        "privacy": {
            "unit": "record",
            "epsilon": 8.0,
            "records": N_RECORDS,
            "sample_rate": 0.2,
        },
        "training": training | more.pop("training", {}),
        "server": {"learning_rate": 0.5},
        "aggregation": {"backend": "ring", "key_bits": 2048, **more},
    }
    return parse_job(document, "inline")


@dataclass(frozen=True)
class TextRun:
    """A run that ended."""

    job: Job
    folder: RunFolder
    record: RunRecord


@pytest.fixture(scope="module", params=WAYS)
def ran(
    request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> TextRun:
    """Return a run of each way to train."""
    job = make_job(texts, request.param)
    folder = RunFolder(tmp_path_factory.mktemp("run") / request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(texts / "cache"))
        patch.setattr("mpcfl.report.html.write_run_report", lambda *_: None)
        done = run_job(job, folder)
    assert done.errors == {}
    return TextRun(job, folder, RunRecord.load(folder.run_json))


def test_the_vector_that_travels_is_what_is_trained(ran: TextRun) -> None:
    model = initial_model(load_task("imdb", ran.job.task_options), ran.job.training.seed)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert ran.record.model is not None
    assert ran.record.dim == sum(trained.values())
    assert dict(ran.record.model.trained) == trained
    frozen = sum(p.numel() for p in model.parameters()) - sum(trained.values())
    assert ran.record.model.frozen == frozen
    way = ran.job.task_options["train"]
    if way == "head":
        assert (ran.record.dim, frozen) == (2 * HIDDEN_SIZE + 2, 0)
    else:
        assert (frozen == 0) is (way == "full")
    # b = 32: a mask of each coordinate has 4 bytes, and nothing else is of that size.
    sent = min(entry.bytes_sent for entry in ran.record.rounds) / N_PARTIES
    assert 4 * ran.record.dim <= sent < 8 * ran.record.dim + 20_000


def test_what_is_frozen_is_as_it_was_and_all_else_is_not(ran: TextRun) -> None:
    before = initial_model(load_task("imdb", ran.job.task_options), ran.job.training.seed)
    after = torch.load(ran.folder.model_pt, weights_only=True)
    assert before.state_dict().keys() == after.keys()
    assert ran.record.model is not None
    for name, value in before.state_dict().items():
        assert torch.equal(value, after[name]) is (name not in ran.record.model.trained), name


def test_the_record_says_what_the_model_is(ran: TextRun) -> None:
    assert ran.record.model is not None
    about = ran.record.model.about
    assert about["trained"] == ran.job.task_options["train"]
    assert (about["training_records"], about["test_records"]) == (N_RECORDS, TEST_RECORDS)
    assert {"transformers", "peft"} <= set(ran.record.versions)


def test_every_round_has_its_budget_and_accuracy(ran: TextRun) -> None:
    spent = [entry.epsilon for entry in ran.record.rounds]
    assert len(spent) == 2
    assert 0 < spent[0] < spent[1] <= 8.0
    assert all(0 <= entry.accuracy <= 1 for entry in ran.record.rounds)


def test_the_model_folder_is_there(ran: TextRun) -> None:
    from transformers import AutoTokenizer

    folder = ran.folder.saved_model
    weights = "adapter_model" if ran.job.task_options["train"] == "lora" else "model"
    assert (folder / f"{weights}.safetensors").is_file()
    assert "transformers" in (folder / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(folder).truncation_side == "left"


def test_several_records_at_a_time_are_refused_where_they_would_share_a_gradient(
    texts: Path,
) -> None:
    job = make_job(texts, "full", training={"microbatch": 8})
    with pytest.raises(ConfigError, match=r"set training\.microbatch = 1"):
        public_state(job)


@pytest.mark.parametrize("backend", ["crypten", "paillier"])
def test_equal_bits_open_the_same_sum_whatever_protects_it(texts: Path, backend: str) -> None:
    expected, found = (
        run_round(make_job(texts, "head", backend=name), keyed()) for name in ("ring", backend)
    )
    assert np.count_nonzero(expected.opened) > HIDDEN_SIZE
    assert np.array_equal(found.opened, expected.opened)
    assert np.array_equal(found.parameters, expected.parameters)


def keyed() -> list[Any]:
    return [raw_keyed_bits(bytes([1 + rank]) * 32) for rank in range(N_PARTIES)]
