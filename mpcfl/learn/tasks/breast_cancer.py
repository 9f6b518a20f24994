"""Breast cancer diagnosis from 30 measurements of cell nuclei, held by several hospitals.

Source: scikit-learn's copy of the UCI data set "Breast Cancer Wisconsin (Diagnostic)"
(569 records): 455 for training, 114 public ones for testing.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mpcfl.learn.task import Records
from mpcfl.learn.tasks.split import PartySplit, Split, fixed_split, party_shard

TEST_RECORDS = 114
# Least and greatest value of each feature as the data set's own description publishes them
# (table "Summary Statistics"). Written down here and not computed from the records: a
# maximum of private data is a leak that no noise covers.
# fmt: off
FEATURE_MIN = (
    6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05,
    0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001,
    7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055,
)
FEATURE_MAX = (
    28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097,
    2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03,
    36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208,
)
# fmt: on


@cache
def _split() -> Split:
    features, labels = load_breast_cancer(return_X_y=True)
    low, high = np.array(FEATURE_MIN), np.array(FEATURE_MAX)
    # The table is rounded, so a record may lie a little outside it.
    scaled = np.clip(2.0 * (features - low) / (high - low) - 1.0, -1.0, 1.0)
    return fixed_split(scaled.astype(np.float32), labels, TEST_RECORDS)


class BreastCancerTask:
    """Tell benign (1) from malignant (0) by logistic regression: 31 parameters."""

    # Of a subclass that takes no options and has an __init__ of its own, too.
    _split = PartySplit()

    def __init__(self, *, split: str = "iid", concentration: float | None = None) -> None:
        """Take the task options: how the training records are dealt out (`PartySplit`)."""
        self._split = PartySplit(split, concentration)

    def model(self) -> nn.Module:
        """Return a linear model from 30 features to one logit."""
        return nn.Linear(30, 1)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's shard: features in [-1, 1], shape (records, 30), and labels."""
        return party_shard(_split().train, party, n_parties, self._split)

    def test_data(self) -> Records:
        """Return the 114 public test records."""
        return _split().test

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of the logits."""
        return binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype))
