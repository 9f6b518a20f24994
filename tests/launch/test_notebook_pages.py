"""The pages on notebooks, Flower clients and training loops: their code runs as it is printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpcfl
from mpcfl.config import load_job

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "flower_digits"


def blocks(page: str, opening: str) -> list[str]:
    text = (DOCS / "how-to" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{opening}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page for people, which takes a while."""
    monkeypatch.setattr("mpcfl.report.html.write_run_report", lambda _, path: path.write_text(""))


def test_the_cells_of_a_notebook_run_one_after_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cells = blocks("notebooks.md", "python")
    assert len(cells) == 3
    # Each has its own names but for what the one before it has imported.
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(cell, "notebooks.md", "exec"), names)  # noqa: S102 - that is the test
    assert "round 3/3" in capsys.readouterr().out
    assert len(names["losses"]) == 10
    assert names["result"].epsilon <= 4.0
    assert names["mean"].shape == (5,)
    # Seven standard deviations of the noise in the mean, and the bias of clipping the last update.
    plan = names["plan"]
    sigma = plan.local_sigma * np.sqrt(3) / plan.scale / 3
    clipped = names["updates"] / np.maximum(1, np.linalg.norm(names["updates"], axis=1))[:, None]
    bound = 7 * sigma + 1 / plan.scale
    assert np.abs(names["mean"] - clipped.mean(axis=0)).max() <= bound


def test_the_files_of_the_flower_example_are_as_printed() -> None:
    (code,) = blocks("flower.md", 'python title="federated.py"')
    (job,) = blocks("flower.md", 'toml title="job.toml"')
    assert code == (EXAMPLE / "federated.py").read_text(encoding="utf-8")
    assert job == (EXAMPLE / "job.toml").read_text(encoding="utf-8")


def test_the_training_loop_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("flower.md", 'python title="loop.py"')
    (tmp_path / "loop.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "loop", raising=False)
    changes = ['task="loop:digits"', "training.rounds=4", 'aggregation.backend="ring"']
    job = load_job(EXAMPLE / "job.toml", changes).model_dump(mode="json")
    job["task_options"] = {"epochs": 2}
    result = mpcfl.Federation(None, job).run(on_round=lambda _: None)
    # Ten classes: chance is 0.1.
    assert (result.metrics["accuracy"] or 0.0) > 0.85
    import loop

    # In a notebook the function is given as it is.
    again = mpcfl.Federation(loop.digits, job).run(on_round=lambda _: None)
    assert again.record.model_sha256 == result.record.model_sha256
    monkeypatch.delitem(sys.modules, "loop")
