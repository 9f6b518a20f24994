"""Four rows and a line: the toy problem of PySyft's tutorial on model averaging.

Source: PySyft tutorials, part 4, "Federated Learning with Model Averaging": Bob holds the
first two rows, Alice the last two; each takes 5 steps of gradient descent at rate 0.1, the
two models are averaged, 10 times. The tutorial has no test data and watches the loss on
these rows, and so does this task: it is for looking at, not for measuring privacy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpcfl.learn.task import Records

_INPUTS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
_TARGETS = ((0.0,), (0.0,), (1.0,), (1.0,))


class ToyTask:
    """Learn that the target is the first of two inputs."""

    def model(self) -> nn.Module:
        """Return a line through two inputs: 3 parameters."""
        return nn.Linear(2, 1)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's contiguous share: rows 0-1 and 2-3 for two parties.

        With more than 4 parties some hold no row at all.
        """
        start, stop = (len(_INPUTS) * index // n_parties for index in (party, party + 1))
        inputs, targets = self.test_data()
        return inputs[start:stop], targets[start:stop]

    def test_data(self) -> Records:
        """Return all four rows."""
        return torch.tensor(_INPUTS), torch.tensor(_TARGETS)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed squared error, as in the tutorial."""
        return ((outputs - targets) ** 2).sum(dtype=torch.float64)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the share of rows on the right side of one half."""
        return {"accuracy": float(((outputs > 0.5) == (targets > 0.5)).double().mean())}
