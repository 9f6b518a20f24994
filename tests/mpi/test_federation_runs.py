"""What a notebook trains in one process, processes under mpirun train bit for bit alike."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import mpcfl

pytestmark = pytest.mark.mpi

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "flower_digits"


def in_one_process(job: Any, *overrides: str) -> mpcfl.FederationResult:
    return mpcfl.Federation(None, job, overrides=overrides).run(on_round=lambda _: None)


def test_a_packaged_job_gives_the_same_model_in_one_process(mpcfl_command: Any) -> None:
    changes = ('privacy.unit="none"', "training.rounds=3", "training.local_steps=5")
    options = [part for change in changes for part in ("--set", change)]
    done = mpcfl_command("run", "digits", *options, "--json")
    assert done.code == 0, done.stderr
    run, result = json.loads(done.stdout), in_one_process("digits", *changes)
    assert result.record.model_sha256 == run["model_sha256"]
    assert result.metrics == run["metrics"]
    assert [r.loss for r in result.record.rounds] == [r["loss"] for r in run["rounds"]]


def test_an_unchanged_flower_client_trains_under_mpirun_and_in_one_process(
    mpcfl_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flwr", reason="make setup installs Flower; pip alone can't")
    folder = shutil.copytree(EXAMPLE, tmp_path / "example")
    done = mpcfl_command("run", "job.toml", "--json", cwd=folder)
    assert done.code == 0, done.stderr
    run = json.loads(done.stdout)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("client", "federated"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    result = in_one_process(folder / "job.toml")
    assert result.record.model_sha256 == run["model_sha256"]
    assert result.metrics == run["metrics"]
    # Ten classes: chance is 0.1.
    assert run["metrics"]["accuracy"] > 0.85
    assert [r["loss"] for r in run["rounds"]] == sorted(
        (r["loss"] for r in run["rounds"]), reverse=True
    )
