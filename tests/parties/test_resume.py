"""Which job is run: the one that is named, or that of the folder to resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpcfl.config import load_job
from mpcfl.errors import ConfigError
from mpcfl.parties.resume import Request
from mpcfl.report.run_folder import RunFolder, RunLock

JOB = """
task = "toy"
[parties]
count = 2
names = ["bob", "alice"]
[privacy]
unit = "none"
[training]
rounds = 10
[aggregation]
backend = "plain"
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


@pytest.fixture
def folder(tmp_path: Path, job_file: Path) -> RunFolder:
    """The folder of a run of three parties that wrote a checkpoint."""
    folder = RunFolder(tmp_path / "out")
    folder.checkpoint.mkdir(parents=True)
    job = load_job(job_file, [], 3)
    folder.job_json.write_text(json.dumps(job.model_dump(mode="json")))
    return folder


def test_the_job_of_the_folder_is_taken_as_it_was(folder: RunFolder, job_file: Path) -> None:
    ran = load_job(job_file, [], 3)
    assert Request(None, resume=folder.path).load().digest() == ran.digest()
    assert Request(job_file, parties=3, resume=folder.path).load() == ran


def test_another_job_is_refused_with_the_keys_that_differ(
    folder: RunFolder, job_file: Path
) -> None:
    changes = ["training.rounds=11", 'aggregation.backend="crypten"']
    with pytest.raises(ConfigError) as caught:
        Request(job_file, changes, 3, folder.path).load()
    text = str(caught.value)
    assert (
        "aggregation.backend (was 'plain', is 'crypten'), training.rounds (was 10, is 11)" in text
    )
    assert "parties" not in text
    with pytest.raises(ConfigError, match=r"parties\.count \(was 3, is 2\)"):
        Request(job_file, resume=folder.path).load()


@pytest.mark.parametrize("asked", [{"overrides": ["training.rounds=11"]}, {"parties": 2}])
def test_options_without_a_job_are_refused(folder: RunFolder, asked: dict) -> None:
    with pytest.raises(ConfigError, match="keeps its job; leave -n, --set and --backend out"):
        Request(None, resume=folder.path, **asked).load()


def test_out_and_resume_exclude_each_other(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out can't be given with --resume"):
        Request(None, resume=folder.path, out=tmp_path / "new").load()


def test_one_of_both_must_be_named(job_file: Path) -> None:
    with pytest.raises(ConfigError, match="name a JOB, or the folder of a run with --resume"):
        Request(None).load()
    assert Request(job_file).load().training.rounds == 10


def test_what_can_not_be_resumed_says_why(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(ConfigError, match="holds no run to resume"):
            Request(None, resume=path).load()
    lock = RunLock(folder)
    with pytest.raises(ConfigError, match="is still going; wait until it ends"):
        Request(None, resume=folder.path).load()
    lock.close()
    folder.job_json.write_text("{")
    with pytest.raises(ConfigError, match=r"job\.json: not a JSON file"):
        Request(None, resume=folder.path).load()
    folder.checkpoint.rmdir()
    with pytest.raises(
        ConfigError, match=r"has no checkpoint: .*a version of mpcfl that wrote none"
    ):
        Request(None, resume=folder.path).load()
