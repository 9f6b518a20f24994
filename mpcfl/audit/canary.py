"""Canaries: a task around a task, with records that each push one parameter of their own.

The model gets m further parameters that nothing else uses. The loss of canary i is linear
in parameter i, steep enough to be clipped, so that its clipped gradient is clip_norm along one
axis: what the clipping allows at most, in a direction that no other record shares. This is
the strongest adversary, who crafts gradients; records crafted in input space would do less.

Real records train the real model as ever. Source of the idea: Steinke, Nasr, Jagielski 2023
(arXiv 2305.08846), section 6; Nasr et al. 2023 (arXiv 2302.07956), "Dirac" canaries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpcfl.learn.task import Records, Task

# Over the clip norm: the margin keeps the clipped norm the same whatever the rounding.
_STEEPNESS = 2.0
_REAL = -1


class CanaryOutputs(NamedTuple):
    """What the model says about a batch: the task's outputs, and each record's canary value."""

    outputs: Tensor
    values: Tensor
    is_canary: Tensor


class CanaryModel(nn.Module):
    """The task's model beside one parameter per canary.

    A record is a row of numbers: its canary's index, or -1, then its flattened inputs.
    """

    def __init__(self, model: nn.Module, example: Tensor, n_canaries: int) -> None:
        super().__init__()
        # A module's own parameters come before those of its children: slots 0 to m - 1.
        self.canaries = nn.Parameter(torch.zeros(n_canaries))
        self.model = model
        self._shape, self._dtype = example.shape, example.dtype

    def forward(self, rows: Tensor) -> CanaryOutputs:
        """Run the task's model on the inputs, and look up the canaries."""
        index = rows[:, 0]
        inputs = rows[:, 1:].to(self._dtype).reshape(len(rows), *self._shape)
        slots = torch.arange(len(self.canaries), dtype=rows.dtype)
        own = (index.unsqueeze(1) == slots).to(self.canaries.dtype)
        return CanaryOutputs(self.model(inputs), own @ self.canaries, index >= 0)


class CanaryTask:
    """A task with canaries in some of its parties' data; implements `Task` at record level."""

    def __init__(
        self, task: Task, n_canaries: int, held: dict[int, list[int]], clip_norm: float
    ) -> None:
        """Wrap a task.

        Args:
            task: the real one.
            n_canaries: m, parameters to add.
            held: by party, the canaries that are in its data.
            clip_norm: of the plan.
        """
        self._task = task
        self._n_canaries = n_canaries
        self._held = held
        self._slope = _STEEPNESS * clip_norm
        inputs, targets = task.test_data()
        # Canaries carry a public record, whose loss is not looked at.
        self._filler = inputs[:1], targets[:1]

    def model(self) -> nn.Module:
        """Return the task's model with the canaries' parameters, which start at zero."""
        return CanaryModel(self._task.model(), self._filler[0][0], self._n_canaries)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the party's real records and its canaries."""
        inputs, targets = self._task.party_data(party, n_parties)
        canaries = torch.tensor(self._held.get(party, []), dtype=torch.int64)
        filler_inputs, filler_targets = self._filler
        fill = torch.zeros(len(canaries), dtype=torch.int64)
        rows = torch.cat([_rows(inputs), _rows(filler_inputs[fill], canaries)])
        return rows, torch.cat([targets, filler_targets[fill]])

    def test_data(self) -> Records:
        """Return the task's public records, none of them a canary."""
        inputs, targets = self._task.test_data()
        return _rows(inputs), targets

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the task's loss of a real record, or the canary's.

        Args:
            outputs: `CanaryOutputs` of a batch of one; a task's signature knows one tensor only.
            targets: of the record.
        """
        real = self._task.loss(outputs.outputs, targets)
        return torch.where(outputs.is_canary.any(), -self._slope * outputs.values.sum(), real)


def _rows(inputs: Tensor, index: Tensor | None = None) -> Tensor:
    """Flatten inputs behind their canary's index, in a type that holds both exactly."""
    dtype = torch.float64 if inputs.is_floating_point() else torch.int64
    marks = torch.full((len(inputs),), _REAL) if index is None else index
    return torch.cat([marks.unsqueeze(1).to(dtype), inputs.flatten(1).to(dtype)], dim=1)
