"""A task: what is learned, from which data, measured how. The plug point for users' own.

A user's own task is a class with the four methods of `Task`, named in the job as
``task = "package.module:TaskClass"``; it is called without arguments at every party.
How to write one: `docs/tasks.md`. Contract test: `tests/contract/test_task.py`.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

# Inputs, shape (records, ...), and targets, shape (records, ...), row by row.
Records: TypeAlias = tuple[Tensor, Tensor]


@runtime_checkable
class Task(Protocol):
    """One learning problem, split over parties."""

    def model(self) -> nn.Module:
        """Return the initial model.

        Called with torch's generator seeded by the public ``training.seed``, so that all
        parties start alike; they compare a digest before round 0. Drawing from any other
        generator makes the parties differ, and the run refuses to start.
        """
        ...

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return the records of one party: inputs and targets, one record per row.

        Private: called only at that party. Anything done to the inputs (scaling, say) must
        use public constants, or it leaks outside the guarantee.

        Args:
            party: index of the party, 0 <= party < n_parties.
            n_parties: number of parties that hold data.
        """
        ...

    def test_data(self) -> Records:
        """Return public inputs and targets; what is measured on them may be published."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar.

        At record level it is called with one record at a time, as a batch of one, inside
        torch.func: it must not read values back into Python (``.item()``, ``if loss > 1``).
        """
        ...


@runtime_checkable
class MeasuresOwnMetrics(Protocol):
    """An optional fifth method of a task; it replaces the accuracy that mpcfl reports."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return named figures of the public test data.

        Args:
            outputs: the model's outputs for all test inputs, shape (records, ...).
            targets: the test targets, shape (records, ...).
        """
        ...
