"""Rows of tokens: which end is kept, where padding stands, and that they are made once."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_texts import MAX_TOKENS, N_REVIEWS, TEST_RECORDS, VOCABULARY, review

from mpcfl.errors import ConfigError
from mpcfl.learn.text.pretrained import Pretrained

PAD, CLS, SEP = (VOCABULARY.index(word) for word in ("[PAD]", "[CLS]", "[SEP]"))


def words_of(row: torch.Tensor) -> list[str]:
    return [VOCABULARY[number] for number in row.tolist()]


@pytest.mark.parametrize("keep", ["end", "start"])
def test_a_long_text_keeps_the_chosen_end_and_its_special_tokens(
    make_task: Callable[..., Any], keep: str
) -> None:
    ids = make_task(keep=keep)._table.ids
    assert ids.shape == (N_REVIEWS, MAX_TOKENS)
    assert ids.dtype == torch.int64
    room = MAX_TOKENS - 2
    for number in range(N_REVIEWS):
        words = review(number)[0].split()
        kept = words[-room:] if keep == "end" else words[:room]
        padding = ["[PAD]"] * (room - len(kept))
        assert words_of(ids[number]) == ["[CLS]", *kept, "[SEP]", *padding]
    lengths = [len(review(number)[0].split()) for number in range(N_REVIEWS)]
    assert min(lengths) < room < max(lengths), "both kinds of texts are needed here"


def test_labels_stay_with_their_texts(make_task: Callable[..., Any]) -> None:
    labels = make_task()._table.labels
    assert labels.tolist() == [review(number)[1] for number in range(N_REVIEWS)]


def test_texts_are_tokenized_once_and_then_read(
    make_task: Callable[..., Any], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_task()._table
    monkeypatch.setattr(Pretrained, "tokenizer", lambda *_: pytest.fail("tokenized again"))
    second = make_task()._table
    assert second.key == first.key
    assert torch.equal(second.ids, first.ids)
    assert torch.equal(second.labels, first.labels)
    assert np.array_equal(second.test_rows, first.test_rows)
    assert np.array_equal(second.train_rows, first.train_rows)


@pytest.mark.parametrize("other", [{"max_tokens": 16}, {"keep": "start"}, {"dataset": "other"}])
def test_what_changes_the_tokens_is_another_entry_of_the_cache(
    make_task: Callable[..., Any], fresh_cache: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    if "dataset" in other:
        records = [(f"w{i} good", i % 2) for i in range(60)]
        other = {"test_records": 20, "dataset": str(write_csv(tmp_path, records))}
    first = make_task()._table
    second = make_task(**other)._table
    assert second.key != first.key
    assert second.ids.shape != first.ids.shape or not torch.equal(second.ids, first.ids)
    assert len(list(fresh_cache.glob("tokens-*"))) == 2
    # What is kept of the split is not in the entry.
    assert make_task(test_records=20)._table.key == first.key
    assert len(list(fresh_cache.glob("tokens-*"))) == 2


def write_csv(folder: Path, records: list[tuple[str, int]]) -> Path:
    path = folder / "own.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *records])
    return path


def test_shards_are_disjoint_and_complete_and_apart_from_the_test_records(
    make_task: Callable[..., Any],
) -> None:
    task = make_task(train="lora")
    shards = [task.party_data(party, 3) for party in range(3)]
    sizes = [len(inputs) for inputs, _ in shards]
    assert sum(sizes) == N_REVIEWS - TEST_RECORDS
    assert max(sizes) - min(sizes) <= 1
    assert len(task.test_data()[0]) == TEST_RECORDS
    everything = torch.cat([*(inputs for inputs, _ in shards), task.test_data()[0]])
    assert sorted(everything.tolist()) == sorted(task._table.ids.tolist())


def test_a_split_by_label_deals_out_the_same_records(make_task: Callable[..., Any]) -> None:
    task = make_task(train="lora", split="dirichlet", concentration=0.3)
    shards = [task.party_data(party, 3) for party in range(3)]
    even = make_task(train="lora").party_data(0, 1)[0]
    dealt = torch.cat([inputs for inputs, _ in shards])
    assert sorted(dealt.tolist()) == sorted(even.tolist())
    shares = [float(labels.double().mean()) for _, labels in shards]
    assert max(shares) - min(shares) > 0.2
    for party, shard in enumerate(shards):
        again = task.party_data(party, 3)
        assert all(torch.equal(*pair) for pair in zip(shard, again, strict=True))


def test_a_text_that_occurs_twice_is_trained_on_only(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    twice = [(f"w{i} w{i + 1} good", i % 2) for i in range(20)] * 2
    once = [(f"w{i} w{i + 2} bad", i % 2) for i in range(30)]
    task = make_task(dataset=str(write_csv(tmp_path, twice + once)), test_records=10)
    assert set(task._table.test_rows) <= set(range(40, 70))
    assert set(range(40)) <= set(task._table.train_rows)


@pytest.mark.parametrize("label", [-1, 2, 2**32])
def test_a_label_out_of_range_is_refused_without_saying_where(
    make_task: Callable[..., Any], tmp_path: Path, label: int
) -> None:
    records = [(f"w{i} good", i % 2) for i in range(60)]
    records[17] = ("w9 secret", label)
    task = make_task(dataset=str(write_csv(tmp_path, records)))
    with pytest.raises(
        ConfigError, match=r"task_options\.labels = 2: own\.csv has labels outside of 0 to 1"
    ) as caught:
        task.test_data()
    assert "secret" not in str(caught.value)
    assert "17" not in str(caught.value)


def test_more_classes_are_taken_where_the_job_says_so(
    make_task: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_csv(tmp_path, [(f"w{i} good", i % 3) for i in range(60)])
    task = make_task(dataset=str(path), labels=3, test_records=30)
    assert np.bincount(task.test_data()[1]).tolist() == [10, 10, 10]
    assert task.model()(task.test_data()[0]).shape == (30, 3)


def test_too_few_records_for_the_test_are_refused(make_task: Callable[..., Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"task_options\.test_records = 500: reviews\.csv has 200 different texts"
    ):
        make_task(test_records=500).test_data()


def test_made_up_examples_have_the_shapes_of_all_others_and_need_no_data(
    make_task: Callable[..., Any],
) -> None:
    for train in ("head", "lora"):
        real = make_task(train=train).test_data()
        made_up = make_task(train=train, dataset="no such file.csv").examples()
        for values, others in zip(real, made_up, strict=True):
            assert values.shape[1:] == others.shape[1:]
            assert values.dtype == others.dtype
            assert len(others) == 2
