"""What a job may say about a text task, and how it hears what it may not."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mpcfl.config import load_job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.learn.registry import load_task

JOB = """
task = "imdb"
[task_options]
dataset = "reviews.csv"
train = "lora"
max_tokens = 64
lora_alpha = 8
[parties]
count = 2
[privacy]
unit = "none"
[training]
rounds = 1
[aggregation]
backend = "plain"
"""


@pytest.fixture
def document() -> dict[str, Any]:
    return tomllib.loads(JOB)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trian": "head"}, "unknown key task_options.trian; did you mean train?"),
        ({"splt": "iid"}, "unknown key task_options.splt; did you mean split?"),
        ({"frobnicate": 1}, "unknown key task_options.frobnicate; known keys are"),
        ({"train": "hed"}, "task_options.train = 'hed' is not valid: input should be 'head'"),
        ({"train": 1}, "task_options.train = 1"),
        ({"keep": "middle"}, "task_options.keep = 'middle'"),
        ({"lora_form": "b"}, "task_options.lora_form = 'b'"),
        ({"dataset": ""}, "task_options.dataset = ''"),
        ({"model": 3}, "task_options.model = 3"),
        ({"max_tokens": 7}, "task_options.max_tokens = 7"),
        ({"max_tokens": 8193}, "task_options.max_tokens = 8193"),
        ({"max_tokens": "64"}, "task_options.max_tokens = '64'"),
        ({"max_tokens": 64.0}, "task_options.max_tokens = 64.0"),
        ({"test_records": 0}, "task_options.test_records = 0"),
        ({"labels": 1}, "task_options.labels = 1"),
        ({"labels": True}, "task_options.labels = True"),
        ({"lora_rank": 0}, "task_options.lora_rank = 0"),
        ({"lora_alpha": 0}, "task_options.lora_alpha = 0"),
        ({"lora_alpha": "a"}, "task_options.lora_alpha = 'a'"),
        ({"split": "random"}, "task_options.split = 'random'"),
        ({"split": "dirichlet"}, "task_options.concentration is missing"),
        ({"concentration": 0.3}, "task_options.concentration needs split"),
        ({"split": "dirichlet", "concentration": -1}, "task_options.concentration = -1"),
    ],
)
def test_a_wrong_option_is_one_sentence_that_names_it(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task("imdb", options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_are_in_order_are_taken_and_all_others_have_defaults() -> None:
    task: Any = load_task("imdb", {"train": "lora", "lora_alpha": 8, "split": "iid"})
    assert task.options.lora_alpha == 8.0
    assert (task.options.dataset, task.options.model) == ("movie-reviews", "all-MiniLM-L6-v2")
    assert (task.options.lora_form, task.options.max_tokens) == ("ffa", 128)


def test_a_typo_in_a_job_file_is_found_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(JOB.replace("max_tokens", "max_token"))
    job = load_job(path)
    with pytest.raises(ConfigError, match=r"task_options\.max_token; did you mean max_tokens\?"):
        load_task(job.task, job.task_options)


def test_the_digest_of_a_job_depends_on_values_and_not_on_their_order(
    document: dict[str, Any],
) -> None:
    turned = copy.deepcopy(document)
    turned["task_options"] = dict(reversed(document["task_options"].items()))
    assert list(turned["task_options"]) != list(document["task_options"])
    digest = parse_job(document, "job").digest()
    assert parse_job(turned, "job").digest() == digest
    for key, value in (("max_tokens", 65), ("train", "head"), ("lora_alpha", 9), ("keep", "end")):
        changed = copy.deepcopy(document)
        changed["task_options"][key] = value
        assert parse_job(changed, "job").digest() != digest, key
