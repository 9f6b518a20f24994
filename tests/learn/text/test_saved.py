"""The folder of a trained model: plain transformers, or peft, load it, and mpcfl is not needed."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_texts import MAX_TOKENS, tiny_options

from mpcfl.learn.model import initial_model
from mpcfl.learn.task import DescribesModel, SavesModel
from mpcfl.learn.text.features import mean_of_tokens

WAYS = ("head", "lora", "full")
BASE_NAME = "somebody/tiny-base"
TEXTS = (
    "good film",
    "w1 bad w2 unheard-of words",
    " ".join(f"w{number}" for number in range(60)) + " poor",
)
SCORED_S = 120.0
# Float32 sums of 24 tokens and of 32 features, each of order 1.
TOLERANCE = 24 * 32 * float(np.finfo(np.float32).eps)

# What README.md says, word for word but for the texts and the place of the base.
PROGRAM = """
import json, os, re, socket, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mpcfl":
            raise ImportError("mpcfl must not be needed")

def refuse(*_, **__):
    raise AssertionError("the network must not be needed")

sys.meta_path.insert(0, Blocked())
socket.getaddrinfo = refuse
order = json.load(sys.stdin)
scores = {}
for folder in order["folders"]:
    os.chdir(folder)
    readme = open("README.md", encoding="utf-8").read()
    code = re.search(r"```python\\n(.*?)```", readme, re.DOTALL)[1]
    code = code.replace('["What a film!"]', repr(order["texts"]))
    code = code.replace(order["base_name"], order["base"])
    names = {}
    exec(code, names)
    scores[folder] = {"scores": names["scores"].tolist(), "names": names["model"].config.id2label}
assert not [name for name in sys.modules if name.partition(".")[0] == "mpcfl"]
print("scores:" + json.dumps(scores))
"""


@dataclass(frozen=True)
class Saved:
    """One saved model, and the model that it is."""

    folder: Path
    task: Any
    model: torch.nn.Module


@pytest.fixture(scope="module")
def saved(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """Return a saved model of each way to train, with trained values that are all their own."""
    from mpcfl.learn.registry import load_task

    folder = tmp_path_factory.mktemp("saved")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(texts / "cache"))
        for way in WAYS:
            task: Any = load_task("imdb", {**tiny_options(texts), "train": way})
            task.__dict__["pretrained"] = dataclasses.replace(task.pretrained, name=BASE_NAME)
            model = initial_model(task, seed=0)
            move(model)
            task.save(model, folder / way)
            found[way] = Saved(folder / way, task, model)
    return found


@torch.no_grad()
def move(model: torch.nn.Module) -> None:
    """Change all that is trained, so that what is not saved is missed."""
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        steps = torch.arange(parameter.numel(), dtype=torch.float32) + number
        parameter += 0.2 * steps.sin().view_as(parameter)


@torch.no_grad()
def scores_of(one: Saved) -> torch.Tensor:
    """Return what the run's own model says of the texts, cut as the run cuts them."""
    pretrained = one.task.pretrained
    ids = pretrained.tokenizer("end")(
        list(TEXTS), truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
    )["input_ids"]
    if one.task.options.train != "head":
        return torch.as_tensor(one.model(ids))
    features = mean_of_tokens(pretrained.encoder(), ids, pretrained.pad_id)
    return torch.as_tensor(one.model(one.task._scaled[1].apply(features)))


@pytest.fixture(scope="module")
def said(saved: dict[str, Saved], texts: Path) -> dict[str, Any]:
    """Return what the READMEs' own programs say of the texts, in a process without mpcfl."""
    order = {
        "folders": [str(one.folder) for one in saved.values()],
        "texts": TEXTS,
        "base_name": BASE_NAME,
        "base": str(texts / "tiny"),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=SCORED_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"^scores:(.*)$", done.stdout, re.MULTILINE)
    assert found is not None
    # The programs print what they are for, too.
    assert done.stdout.count("[") > len(saved)
    scores = json.loads(found[1])
    return {way: scores[str(one.folder)] for way, one in saved.items()}


@pytest.mark.parametrize("way", WAYS)
def test_the_program_of_the_readme_gives_the_scores_of_the_run_without_mpcfl(
    way: str, saved: dict[str, Saved], said: dict[str, Any]
) -> None:
    expected = scores_of(saved[way])
    found = torch.tensor(said[way]["scores"])
    assert float(expected.std(dim=0).min()) > 0.01, "texts must differ for this to mean anything"
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    assert torch.allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("way", ["head", "full"])
def test_classes_have_names(way: str, said: dict[str, Any]) -> None:
    assert said[way]["names"] == {"0": "negative", "1": "positive"}


@pytest.mark.parametrize("way", WAYS)
def test_the_folder_tells_nothing_of_the_run_and_holds_nothing_that_runs(
    way: str, saved: dict[str, Saved], texts: Path
) -> None:
    files = list(saved[way].folder.rglob("*"))
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    for path in files:
        content = path.read_bytes()
        for word in (str(texts), str(texts.parent), str(saved[way].folder)):
            assert word.encode() not in content, path
        assert re.search(rb"\bimport mpcfl|\bfrom mpcfl|mpcfl\.[a-z]", content) is None, path


def test_adapters_are_saved_without_their_base(saved: dict[str, Saved]) -> None:
    from safetensors.torch import load_file

    folder = saved["lora"].folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE_NAME
    assert not (folder / "model.safetensors").exists()
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert all("lora_" in name or "classifier" in name for name in names)
    # A is frozen and equal everywhere, yet nobody has it who only has the base.
    assert any("lora_A" in name for name in names)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_can_be_saved_over_one_that_is_there(way: str, saved: dict[str, Saved]) -> None:
    one = saved[way]
    before = {path.name: path.read_bytes() for path in one.folder.iterdir()}
    one.task.save(one.model, one.folder)
    assert {path.name: path.read_bytes() for path in one.folder.iterdir()} == before


def test_a_model_of_another_task_is_refused(saved: dict[str, Saved], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear is no model of this task"):
        saved["head"].task.save(torch.nn.Linear(2, 2), tmp_path / "model")


def test_the_task_says_what_its_model_is(saved: dict[str, Saved], make_task: Callable) -> None:
    for way, one in saved.items():
        assert isinstance(one.task, SavesModel)
        assert isinstance(one.task, DescribesModel)
        about = one.task.about()
        assert (about["base"], about["trained"]) == (BASE_NAME, way)
        assert (about["training_records"], about["test_records"]) == (160, 40)
        assert about["base_sha256"] == make_task().pretrained.digest
        assert len(str(about["base_sha256"])) == 64
