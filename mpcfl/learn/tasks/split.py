"""How the built-in tasks turn one public data set into parties and a test set.

These data sets are public and stand in for private ones. The split is a fixed function of
the row numbers and the labels, so every party computes the same one without speaking.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from mpcfl.learn.task import Records

# Any constant serves; it was fixed before anything was trained.
_SPLIT_SEED = 2024


class Split(NamedTuple):
    """A data set in two disjoint parts."""

    train: Records
    test: Records


def fixed_split(inputs: NDArray[np.float32], labels: NDArray[Any], test_records: int) -> Split:
    """Split rows into training and test records, each class in its proportion.

    Args:
        inputs: one row per record, shape (records, ...), float32, already scaled.
        labels: class of each record, shape (records,).
        test_records: number of test records.
    """
    train_rows, test_rows = train_test_split(
        np.arange(len(inputs)), test_size=test_records, random_state=_SPLIT_SEED, stratify=labels
    )
    return Split(*(_take(inputs, labels, rows) for rows in (train_rows, test_rows)))


def _take(inputs: NDArray[np.float32], labels: NDArray[Any], rows: NDArray[np.int64]) -> Records:
    return torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows].astype(np.int64))


def strided_shard(train: Records, party: int, n_parties: int) -> Records:
    """Return every n-th training record from the party's index on.

    The shards of all parties are disjoint and complete, and their sizes differ by at most 1.
    """
    inputs, targets = train
    return inputs[party::n_parties].clone(), targets[party::n_parties].clone()
