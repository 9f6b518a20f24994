"""The tasks of the accuracy table with several splits each, in place of the packaged one.

A single split of 1,797 records is easier or harder than the average one by about a hundredth,
which all runs on it share. So every seed of the table splits the same public records anew, as
the packaged tasks do: one fifth for testing, each class in its proportion, shards dealt out row
by row. The seeds count from 0 and were not selected. The test sets of two seeds overlap.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Records, Task
from mpcfl.learn.tasks.split import Split, strided_shard

CLASS_NAMES = {"digits": "Digits", "mnist5k": "Mnist5k"}


@cache
def _split(name: str, seed: int) -> Split:
    packaged = load_task(name)
    train, test = packaged.party_data(0, 1), packaged.test_data()
    inputs, labels = torch.cat([train[0], test[0]]), torch.cat([train[1], test[1]])
    parts = train_test_split(
        np.arange(len(labels)), test_size=len(test[1]), random_state=seed, stratify=labels.numpy()
    )
    return Split(*((inputs[rows], labels[rows]) for rows in map(torch.from_numpy, parts)))


def resplit(name: str, seed: int) -> type[Task]:
    """Return the class of a packaged task with another split.

    Args:
        name: of the packaged task.
        seed: of the split; public.
    """

    class Resplit:
        """A packaged task's model and loss on another split of its records."""

        def __init__(self) -> None:
            self._packaged = load_task(name)

        def model(self) -> nn.Module:
            """Return the packaged task's model."""
            return self._packaged.model()

        def party_data(self, party: int, n_parties: int) -> Records:
            """Return the party's shard of this split's training records."""
            return strided_shard(_split(name, seed).train, party, n_parties)

        def test_data(self) -> Records:
            """Return this split's test records."""
            return _split(name, seed).test

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            """Return the packaged task's loss."""
            return self._packaged.loss(outputs, targets)

    return Resplit


# A job names a class by its path, so each needs a name of its own.
Digits0, Digits1, Digits2, Digits3, Digits4 = (resplit("digits", seed) for seed in range(5))
Digits5, Digits6, Digits7, Digits8, Digits9 = (resplit("digits", seed) for seed in range(5, 10))
Mnist5k0, Mnist5k1, Mnist5k2, Mnist5k3, Mnist5k4 = (resplit("mnist5k", seed) for seed in range(5))


def task_path(name: str, seed: int) -> str:
    """Return what a job names to train a packaged task on the split of a seed."""
    return f"{__name__}:{CLASS_NAMES[name]}{seed}"
