"""Texts as rows of tokens, split once and for all into training and public test records.

A text that occurs more than once in the data set stays on the training side, so that no test
record is one that was trained on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

from mpcfl.errors import ConfigError
from mpcfl.learn.block_cache import cache_key, cache_root, whole_array
from mpcfl.learn.text.options import TextOptions
from mpcfl.learn.text.pretrained import Pretrained
from mpcfl.learn.text.reviews import Reviews, ReviewSource, review_source

# Any constant serves; it was fixed before anything was trained.
_SPLIT_SEED = 2024
# Columns behind the tokens: the label, and whether the text occurs only once.
_EXTRA = 2
_LABEL, _IS_UNIQUE = -2, -1


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """All records as tokens. As secret as the texts.

    Attributes:
        key: names what the rows were made from.
        ids: tokens, padded at the end, shape (records, max_tokens), int64.
        labels: shape (records,), int64.
        train_rows: rows of the training records.
        test_rows: rows of the public test records.
    """

    key: str
    ids: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    train_rows: NDArray[np.int64] = field(repr=False)
    test_rows: NDArray[np.int64] = field(repr=False)


def token_table(options: TextOptions, pretrained: Pretrained) -> TokenTable:
    """Return the records of a job, from disk if they were tokenized before.

    Raises:
        ConfigError: the data set can't be read, has labels out of range, or too few records.
    """
    source = review_source(options.dataset)
    key = cache_key("tokens", source.digest, pretrained.digest, options.max_tokens, options.keep)
    table = whole_array(
        cache_root() / f"tokens-{key}",
        "tokens",
        lambda: _tokenized(source.read(), pretrained.tokenizer(options.keep), options.max_tokens),
    )
    labels = table[:, _LABEL].astype(np.int64)
    _check_labels(labels, source, options)
    train_rows, test_rows = _split(labels, table[:, _IS_UNIQUE] == 1, options, source)
    ids = torch.from_numpy(table[:, :-_EXTRA].astype(np.int64))
    return TokenTable(key, ids, torch.from_numpy(labels), train_rows, test_rows)


def _tokenized(reviews: Reviews, tokenizer: Any, max_tokens: int) -> NDArray[np.int32]:
    """Return tokens, label and uniqueness side by side, shape (records, max_tokens + 2)."""
    rows = tokenizer(
        list(reviews.texts),
        truncation=True,
        max_length=max_tokens,
        padding="max_length",
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    times = Counter(reviews.texts)
    is_unique = [times[text] == 1 for text in reviews.texts]
    return np.column_stack([np.array(rows), reviews.labels, is_unique]).astype(np.int32)


def _check_labels(labels: NDArray[np.int64], source: ReviewSource, options: TextOptions) -> None:
    # Which labels there may be is public; which record has a wrong one is not said.
    if labels.min() < 0 or labels.max() >= options.labels:
        raise ConfigError(
            f"task_options.labels = {options.labels}: {source.name} has labels outside of 0 to "
            f"{options.labels - 1}; set labels to the number of classes"
        )


def _split(
    labels: NDArray[np.int64],
    is_unique: NDArray[np.bool_],
    options: TextOptions,
    source: ReviewSource,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    unique = np.flatnonzero(is_unique)
    try:
        rest, test = train_test_split(
            unique,
            test_size=options.test_records,
            random_state=_SPLIT_SEED,
            stratify=labels[unique],
        )
    except ValueError:
        raise ConfigError(
            f"task_options.test_records = {options.test_records}: {source.name} has "
            f"{len(unique)} different texts, too few to keep so many of every class for the test; "
            "lower test_records"
        ) from None
    train = np.concatenate([rest, np.flatnonzero(~is_unique)])
    # One fixed order in which classes are mixed: parties take every n-th.
    order = np.argsort([cache_key(_SPLIT_SEED, row) for row in train])
    return train[order], test
