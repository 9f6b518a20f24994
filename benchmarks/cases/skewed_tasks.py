"""Packaged tasks whose records are dealt out by label several times over, for `non_iid.py`."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Records
from mpcfl.learn.tasks.split import PartySplit, party_shard


class SkewedTask:
    """A packaged task's model, loss and test records, and one of many splits over parties."""

    def __init__(
        self, *, name: str, split: str, concentration: float | None = None, repetition: int = 0
    ) -> None:
        """Take the packaged task's name, and what `PartySplit` takes."""
        self._packaged = load_task(name)
        self._split = PartySplit(split, concentration, repetition)

    def model(self) -> nn.Module:
        """Return the packaged task's model."""
        return self._packaged.model()

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's share of the packaged task's training records."""
        return party_shard(self._packaged.party_data(0, 1), party, n_parties, self._split)

    def test_data(self) -> Records:
        """Return the packaged task's public test records."""
        return self._packaged.test_data()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the packaged task's loss."""
        return self._packaged.loss(outputs, targets)


def sizes_and_skew(task: SkewedTask, n_parties: int) -> tuple[list[int], float]:
    """Return the parties' numbers of records, and how much their labels differ.

    The skew is the total variation distance between a party's classes and everybody's, the mean
    over the parties: 0 if all are alike, 0.9 if each of ten even classes has a party of its own.
    """
    labels = [task.party_data(party, n_parties)[1].numpy() for party in range(n_parties)]
    classes = int(max(own.max() for own in labels)) + 1
    counts = np.array([np.bincount(own, minlength=classes) for own in labels], dtype=float)
    everybody = counts.sum(axis=0) / counts.sum()
    distances = np.abs(counts / counts.sum(axis=1, keepdims=True) - everybody).sum(axis=1) / 2
    return [len(own) for own in labels], float(distances.mean())
