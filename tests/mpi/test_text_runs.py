"""Language models over a real mpirun, tiny ones: from texts to a folder that transformers loads."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "learn" / "text"))

from tiny_texts import HIDDEN_SIZE, N_REVIEWS, TEST_RECORDS, save_texts, tiny_options

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(
        find_spec("transformers") is None or find_spec("peft") is None, reason="no extra text"
    ),
]

WARM_COMMAND = Path(__file__).parent / "warm_command.py"
LIMIT_S = 180
N_PARTIES = 2
# Half of the test records would be chance; the words of these reviews leave no doubt.
BETTER_THAN_CHANCE = 0.75

JOB = """
task = "imdb"
[parties]
count = 2
names = ["ada", "ben"]
[privacy]
unit = "record"
epsilon = 8.0
records = 160
sample_rate = 0.5
[training]
rounds = 4
microbatch = 8
[server]
momentum = 0.5
[aggregation]
"""
HEAD = ('task_options.train="head"', 'aggregation.backend="ring"', "training.evaluate_every=3")
LORA = ('task_options.train="lora"', 'aggregation.backend="crypten"', "task_options.lora_rank=2")
LORA += ('training.gradients="opacus"', "training.rounds=2", "privacy.sample_rate=0.2")


@dataclass(frozen=True)
class TextRun:
    """A run that ended well."""

    out: Path
    stdout: str
    record: dict[str, Any] = field(repr=False)

    @property
    def round_lines(self) -> list[str]:
        return [line for line in self.stdout.splitlines() if line.startswith("round")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all runs: texts, a base, and a cache in which nothing is yet."""
    folder = save_texts(tmp_path_factory.mktemp("texts"))
    (folder / "job.toml").write_text(JOB + 'backend = "ring"\n')
    return folder


def run(folder: Path, name: str, changes: Sequence[str], warm: Any) -> TextRun:
    options = [f"task_options.{key}={json.dumps(v)}" for key, v in tiny_options(folder).items()]
    settings = [part for change in (*options, *changes) for part in ("--set", change)]
    command = [sys.executable, WARM_COMMAND, warm.path, "run", "job.toml", *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        done = subprocess.run(
            [str(part) for part in [*command, "--out", name]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    out = folder / name
    return TextRun(out, done.stdout, json.loads((out / "run.json").read_text()))


@pytest.fixture(scope="module")
def head(folder: Path, warm: Any) -> TextRun:
    return run(folder, "head", HEAD, warm)


@pytest.fixture(scope="module")
def lora(folder: Path, warm: Any, head: TextRun) -> TextRun:
    """Return a run of adapters, after that of the head: the tokens are there."""
    return run(folder, "lora", LORA, warm)


@pytest.mark.parametrize("way", ["head", "lora"])
def test_every_round_prints_the_budget_that_is_spent(
    way: str, request: pytest.FixtureRequest
) -> None:
    ran: TextRun = request.getfixturevalue(way)
    printed = [float(re.search(r"epsilon (\d+\.\d+)", line)[1]) for line in ran.round_lines]
    assert len(printed) == ran.record["job"]["training"]["rounds"]
    assert all(before < after for before, after in itertools.pairwise([0.0, *printed]))
    assert ran.record["privacy"]["epsilon"] == pytest.approx(printed[-1], abs=1e-3)
    assert printed[-1] <= 8.0


def test_what_is_computed_once_is_told_before_the_rounds(head: TextRun, lora: TextRun) -> None:
    lines = head.stdout.splitlines()
    made = [number for number, line in enumerate(lines) if line.startswith("preparing features")]
    assert "1 of 1" in lines[made[-1]]
    assert made[-1] < lines.index(head.round_lines[0])
    assert "preparing" not in lora.stdout


def test_the_head_is_measured_when_due_and_is_better_than_chance(head: TextRun) -> None:
    measured = [entry["round"] for entry in head.record["rounds"] if entry["accuracy"] is not None]
    assert measured == [3, 4]
    assert ["accuracy" in line for line in head.round_lines] == [False, False, True, True]
    assert head.record["metrics"]["accuracy"] >= BETTER_THAN_CHANCE


def test_only_what_is_trained_travels(head: TextRun, lora: TextRun) -> None:
    assert head.record["dim"] == 2 * HIDDEN_SIZE + 2
    trained = lora.record["model"]["trained"]
    assert lora.record["dim"] == sum(trained.values()) < lora.record["model"]["frozen"]
    assert not [name for name in trained if "lora_A" in name]
    for ran, way in ((head, "head"), (lora, "lora")):
        about = ran.record["model"]["about"]
        assert about["trained"] == way
        assert about["training_records"] == N_REVIEWS - TEST_RECORDS
        sizes = [value.numel() for value in state(ran).values()]
        model = ran.record["model"]
        assert sum(sizes) == sum(model["trained"].values()) + model["frozen"]


def state(ran: TextRun) -> dict[str, torch.Tensor]:
    return torch.load(ran.out / "model.pt", weights_only=True)


def test_the_model_is_there_in_a_form_that_transformers_loads(head: TextRun) -> None:
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(head.out / "model")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    direction = model.classifier.weight[1] - model.classifier.weight[0]
    trained = state(head)["classifier.weight"]
    # The scale of the features is in it, which changes no sign.
    assert torch.equal(direction.sign(), (trained[1] - trained[0]).sign())


def test_adapters_are_there_in_a_form_that_peft_loads(lora: TextRun, folder: Path) -> None:
    from safetensors.torch import load_file

    found = load_file(lora.out / "model" / "adapter_model.safetensors")
    trained = [value for name, value in state(lora).items() if ".lora_B." in name]
    saved = [value for name, value in found.items() if ".lora_B." in name]
    assert len(saved) == len(trained) > 0
    assert sorted(v.sum().item() for v in saved) == sorted(v.sum().item() for v in trained)
    assert all(value.any() for value in saved)
