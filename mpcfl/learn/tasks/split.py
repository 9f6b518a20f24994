"""How the built-in tasks turn one public data set into parties and a test set.

These data sets are public and stand in for private ones. The split is a fixed function of
the row numbers and the labels, so every party computes the same one without speaking. It says
nothing about how real parties' records differ: it makes a difference of a known kind and size.

Source: Li, Diao, Chen, He 2022 (arXiv 2102.02079), section 4, label skew by quantity of each
class (first in Yurochkin et al. 2019, arXiv 1905.12022): every class is dealt out to the parties
by proportions from a Dirichlet distribution of its own. Hsu, Qi, Brown 2019 (arXiv 1909.06335),
section 3, draw the proportions of the classes for every party instead, all parties of one size;
there small parties can't be had, and here they can.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from mpcfl.errors import ConfigError
from mpcfl.learn.task import Records

# Any constant serves; it was fixed before anything was trained.
_SPLIT_SEED = 2024
# Of a Dirichlet split, as in the experiments of its sources; half of an even share if that is less.
LEAST_RECORDS = 10
# One draw takes some 50 microseconds; what a thousand did not give is not to be had.
_MOST_DRAWS = 1000
# Below, gamma variates of this shape vanish in floating point; above, no two draws differ.
_LEAST_CONCENTRATION, _GREATEST_CONCENTRATION = 0.01, 1e6


class SplitKind(StrEnum):
    """How the training records of a public data set are dealt out to the parties."""

    IID = "iid"
    DIRICHLET = "dirichlet"


@dataclass(frozen=True, slots=True)
class PartySplit:
    """The task options ``split`` and ``concentration``, checked.

    Attributes:
        split: "iid", where party k of n takes every n-th record, or "dirichlet".
        concentration: of the Dirichlet distribution, for "dirichlet" only: 0.1 leaves most
            parties without some class, 100 is nearly "iid".
        repetition: which of several independent Dirichlet splits, from 0; no task option, but for
            studies that repeat them.

    Raises:
        ConfigError: one of them is out of range, or does not go with the other.
    """

    split: str = SplitKind.IID
    concentration: float | None = None
    repetition: int = 0

    def __post_init__(self) -> None:
        if self.split not in list(SplitKind):
            raise ConfigError(
                f"task_options.split = {self.split!r} is not valid: write "
                + " or ".join(f'"{kind}"' for kind in SplitKind)
            )
        if self.split == SplitKind.IID and self.concentration is not None:
            raise ConfigError(
                'task_options.concentration needs split = "dirichlet"; set it, or leave '
                "concentration out"
            )
        if self.split == SplitKind.DIRICHLET:
            self._check_concentration()

    def _check_concentration(self) -> None:
        value = self.concentration
        if value is None:
            raise ConfigError(
                'task_options.concentration is missing; split = "dirichlet" needs it: 0.3, say, '
                "and less for parties that differ more"
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not _LEAST_CONCENTRATION <= value <= _GREATEST_CONCENTRATION:
            raise ConfigError(
                f"task_options.concentration = {value!r} is not valid: it must be a number from "
                f"{_LEAST_CONCENTRATION:g} to {_GREATEST_CONCENTRATION:g}"
            )


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


def party_shard(train: Records, party: int, n_parties: int, split: PartySplit) -> Records:
    """Return one party's share of the training records.

    Args:
        train: inputs, and targets as class labels of shape (records,), int64. A party's records
            keep the order that they have here, so this order must mean nothing.
        party: index of the party, 0 <= party < n_parties.
        n_parties: number of parties that hold data.
        split: how the records are dealt out.

    Returns:
        Copies. The shards of all parties are disjoint and complete. With "iid" their sizes differ
        by at most 1; with "dirichlet" each has 10 records at least (or half of an even share, if
        that is less).

    Raises:
        ConfigError: such a small concentration leaves some of so many parties without records.
    """
    if split.split == SplitKind.IID or split.concentration is None:
        return strided_shard(train, party, n_parties)
    inputs, targets = train
    owners = _dirichlet_owners(targets.numpy(), n_parties, split.concentration, split.repetition)
    rows = torch.from_numpy(np.flatnonzero(owners == party))
    return inputs[rows], targets[rows]


def _dirichlet_owners(
    labels: NDArray[np.int64], n_parties: int, concentration: float, repetition: int
) -> NDArray[np.int64]:
    """Return which party has each record, shape (records,), int64."""
    if labels.ndim != 1:
        raise ValueError(f"a split by label needs one label per record, not shape {labels.shape}")
    _, classes, class_sizes = np.unique(labels, return_inverse=True, return_counts=True)
    # Public and reproducible, like the split into training and test records: it hides nothing.
    generator = check_random_state(_SPLIT_SEED + repetition)
    ends = _dirichlet_ends(class_sizes, n_parties, concentration, generator)
    owners = np.empty(len(labels), dtype=np.int64)
    for index, class_ends in enumerate(ends):
        places = np.flatnonzero(classes == index)
        owners[places] = np.searchsorted(class_ends, np.arange(len(places)), side="right")
    return owners


def _dirichlet_ends(
    class_sizes: NDArray[np.int64], n_parties: int, concentration: float, generator: Any
) -> NDArray[np.int64]:
    """Return where each party's records of each class end, shape (classes, n_parties), int64.

    All proportions are drawn anew until every party has enough, as both sources' programs do: the
    split is one of the distribution given that.
    """
    least = min(LEAST_RECORDS, int(class_sizes.sum()) // (2 * n_parties))
    for _ in range(_MOST_DRAWS):
        proportions = generator.dirichlet(np.full(n_parties, concentration), len(class_sizes))
        shares = np.cumsum(proportions, axis=1) * class_sizes[:, np.newaxis]
        ends: NDArray[np.int64] = np.rint(shares).astype(np.int64)
        # A sum of proportions may miss 1 by its rounding.
        ends[:, -1] = class_sizes
        sizes = np.diff(ends, axis=1, prepend=0).sum(axis=0)
        if sizes.min() >= least:
            return ends
    raise ConfigError(
        f"task_options.concentration = {concentration:g} leaves some of {n_parties} parties with "
        f"fewer than {least} records in each of {_MOST_DRAWS} draws; raise it, or set fewer parties"
    )
