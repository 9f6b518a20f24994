"""A task: what is learned, from which data, measured how. The plug point for users' own.

A user's own task is a class with the four methods of `Task`, named in the job as
``task = "package.module:TaskClass"``; it is called with the job's ``task_options`` as keyword
arguments at every party. What else it may have is below, one protocol for each.
How to write one: `docs/tasks.md`. Contract test: `tests/contract/test_task.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from mpcfl.config import OptionValue
from mpcfl.learn.block_cache import TellProgress

# Inputs, shape (records, ...), and targets, shape (records, ...), row by row.
Records: TypeAlias = tuple[Tensor, Tensor]
# Two would do to see that one record changes another's gradient.
_EXAMPLES = 4


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
    """An optional method of a task; it replaces the accuracy that mpcfl reports."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return named figures of the public test data.

        Args:
            outputs: the model's outputs for all test inputs, shape (records, ...).
            targets: the test targets, shape (records, ...).
        """
        ...


@runtime_checkable
class MeasuresItself(Protocol):
    """An optional method of a task that measures its models by code of its own."""

    def measure(self, model: nn.Module, rounds_done: int) -> Mapping[str, float]:
        """Return named figures of a model; may be none. What they say is published.

        Then ``loss`` and ``test_data`` are not asked for any figure. No record of a party may have
        a part in what is returned.

        Args:
            model: public; left unchanged.
            rounds_done: how many rounds made it; 0 for the initial one.
        """
        ...


@runtime_checkable
class TrainsItself(Protocol):
    """An optional method of a task whose parties train by code of their own, as a whole.

    What such code does with a single record can't be seen, so that it can't be bounded: only the
    party as a whole can be hidden. The job's unit is "party" or "none".
    """

    def train_party(self, model: nn.Module, data: Records, round_id: int) -> nn.Module:
        """Return the model after training on one party's data; called only at that party.

        It may raise anything, and return anything: at party level such an update is zero.

        Args:
            model: a copy of the global one, to be used in any way.
            data: what `party_data` returned.
            round_id: index of the round, from 0.

        Returns:
            A model with the same trainable parameters; may be ``model`` itself.
        """
        ...


@runtime_checkable
class CountsExamples(Protocol):
    """An optional attribute of a task that trains itself.

    Attributes:
        counts_examples: ``party_data`` has a row for every record, so that private weights of
            parties can be formed.
    """

    counts_examples: bool


@runtime_checkable
class ReadsPartyData(Protocol):
    """A task whose parties say, each in its own party file, where their data lie."""

    def locate(self, path: Path) -> None:
        """Take the path of this party's data; called before any other method, at that party only.

        Private, as the data are: it must not change the model, nor anything that is public.
        """
        ...


@runtime_checkable
class Prepares(Protocol):
    """An optional method of a task whose data take long to get ready."""

    def prepare(self, progress: TellProgress) -> None:
        """Download, tokenize, precompute: whatever is to be done once and kept.

        Called at every party before it waits for any other; `block_cache.py` has several ranks
        of one machine share the work.

        Args:
            progress: to be told what is made, and how many of how many pieces are there. Public.
        """
        ...


@runtime_checkable
class HasExamples(Protocol):
    """An optional method of a task whose test data take long to load."""

    def examples(self) -> Records:
        """Return two public or made-up records, of the shapes and types of all others.

        A model is tried on them before any private record is read, and by ``mpcfl plan``.
        """
        ...


@runtime_checkable
class DescribesModel(Protocol):
    """An optional method of a task; what it says goes into `run.json` and the report."""

    def about(self) -> Mapping[str, OptionValue]:
        """Return public facts: which base the model has, from which data set."""
        ...


@runtime_checkable
class SavesModel(Protocol):
    """An optional method of a task whose models have a usual form on disk."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the final model into a folder, beside ``model.pt``, which every run has.

        Args:
            model: public.
            folder: to be made, or written over where a run is resumed.
        """
        ...


def example_records(task: Task) -> Records:
    """Return a few public records to try a model on."""
    if isinstance(task, HasExamples):
        return task.examples()
    inputs, targets = task.test_data()
    return inputs[:_EXAMPLES], targets[:_EXAMPLES]
