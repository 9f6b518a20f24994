"""The example of docs/tasks.md is run as it is printed there."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from mpcfl.config import Job, parse_job
from mpcfl.learn.apply import apply_mean, initial_state
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.model import check_model, flat_parameters, initial_model, load_flat_parameters
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Task
from mpcfl.learn.train import check_record_gradients, record_gradients

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def job() -> Job:
    return parse_job(tomllib.loads(block("toml")), "wine.toml")


@pytest.fixture
def task(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    (tmp_path / "wine_task.py").write_text(block("python"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "wine_task", raising=False)
    return load_task(job.task)


def train(job: Job, task: Task, rounds: int) -> dict[str, float]:
    """Run rounds at record level without noise: clipped gradients over all records."""
    model = initial_model(task, job.training.seed)
    parameters = flat_parameters(model)
    state = initial_state(parameters.size, job.server)
    for _ in range(rounds):
        total = np.zeros_like(parameters)
        for party in range(job.parties.count):
            data = task.party_data(party, job.parties.count)
            sample = np.arange(len(data[0]), dtype=np.int64)
            for rows in record_gradients(model, data, task, sample, job.training):
                norms = np.linalg.norm(rows, axis=1, keepdims=True)
                total += (rows * np.minimum(1.0, job.privacy.clip_norm / norms)).sum(axis=0)
        assert job.privacy.records is not None
        parameters, state = apply_mean(parameters, total / job.privacy.records, state, job.server)
        load_flat_parameters(model, parameters)
    return evaluate(model, task)


def test_documented_task_satisfies_the_protocol(job: Job, task: Task) -> None:
    assert isinstance(task, Task)
    model = initial_model(task, seed=0)
    check_model(model, job.privacy.unit)
    check_record_gradients(model, task)


def test_documented_job_states_the_true_number_of_records(job: Job, task: Task) -> None:
    shards = [task.party_data(p, job.parties.count)[0] for p in range(job.parties.count)]
    assert job.privacy.records == sum(len(shard) for shard in shards)


def test_documented_task_learns(job: Job, task: Task) -> None:
    assert train(job, task, rounds=5)["accuracy"] >= 0.9


def test_documented_class_has_about_thirty_lines() -> None:
    assert len(block("python").splitlines()) <= 35
