"""Handwritten digits in 8 x 8 pixels, held by several hospitals that read paper forms.

Source: scikit-learn's copy of the UCI test set "Optical Recognition of Handwritten Digits"
(1,797 records): 1,437 for training, 360 public ones for testing.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mpcfl.learn.task import Records
from mpcfl.learn.tasks.split import PartySplit, Split, fixed_split, party_shard

TEST_RECORDS = 360
# A pixel counts the dark points of a 4 x 4 square, 0 to 16: the data set's definition, not
# its extremes. Scaled to [-1, 1], a zero-mean range: clipping then wastes less of a gradient.
_HALF_RANGE = np.float32(8.0)


@cache
def _split() -> Split:
    pixels, labels = load_digits(return_X_y=True)
    return fixed_split(pixels.astype(np.float32) / _HALF_RANGE - 1, labels, TEST_RECORDS)


class DigitsTask:
    """Tell ten digits apart by softmax regression: 650 parameters."""

    # Of a subclass that takes no options and has an __init__ of its own, too.
    _split = PartySplit()

    def __init__(self, *, split: str = "iid", concentration: float | None = None) -> None:
        """Take the task options: how the training records are dealt out (`PartySplit`)."""
        self._split = PartySplit(split, concentration)

    def model(self) -> nn.Module:
        """Return a linear model from 64 pixels to 10 classes."""
        return nn.Linear(64, 10)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's shard: pixels in [-1, 1], shape (records, 64), and labels."""
        return party_shard(_split().train, party, n_parties, self._split)

    def test_data(self) -> Records:
        """Return the 360 public test records."""
        return _split().test

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(outputs, targets)
