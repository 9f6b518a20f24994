"""A training loop in plain PyTorch as a task: four functions, as anybody writes them.

    def digits(**options):
        return LoopTask(Net, load_data, train, test, **options)

``train(model, data, **options)`` changes the model in place, with whatever optimizer, epochs and
batches it likes; what it changed is the party's update. The job's ``task_options`` are its keyword
arguments. A loop trains opaquely: the unit is "party" or "none" (`own_training.py`).
How to: `docs/how-to/flower.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpcfl.config import OptionValue
from mpcfl.errors import ConfigError
from mpcfl.learn.task import Records

# (loss, accuracy), as most test functions return.
_PAIR = 2


class LoopTask:
    """A task made of a party's own functions.

    Args:
        model: makes the initial model, with torch's generator seeded by ``training.seed``.
        load_data: from a party's index and the number of parties to its data, of any kind.
            Private: called once, at that party only.
        train: gets a copy of the global model, the party's data and the job's ``task_options``;
            changes the model in place, or returns the trained one.
        test: from a model to named figures, or to (loss, accuracy), on public data only: what it
            returns is published. Nothing is measured without it.
        num_examples: from a party's data to its number of records, for
            ``parties.weighting = "private"``; stays at the party.
        options: of ``train``; from the job's ``task_options``.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        load_data: Callable[[int, int], Any],
        train: Callable[..., nn.Module | None],
        test: Callable[[nn.Module], Any] | None = None,
        *,
        num_examples: Callable[[Any], int] | None = None,
        **options: OptionValue,
    ) -> None:
        self._make_model, self._load_data, self._train, self._test = model, load_data, train, test
        self._num_examples, self._options = num_examples, options
        self.counts_examples = num_examples is not None
        self._data: dict[tuple[int, int], Any] = {}

    def model(self) -> nn.Module:
        """See `Task.model`."""
        return self._make_model()

    def party_data(self, party: int, n_parties: int) -> Records:
        """Load a party's data, and return handles of it in place of records."""
        data = self._data[party, n_parties] = self._load_data(party, n_parties)
        count = 1 if self._num_examples is None else int(self._num_examples(data))
        return handles(party, n_parties, count)

    def test_data(self) -> Records:
        """Return a stand-in of the form of `party_data`; no figure is taken from it."""
        return handles(0, 1, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG002 - of the protocol
        """Refuse: such a task has no loss that others could ask for."""
        raise no_loss()

    def train_party(self, model: nn.Module, data: Records, round_id: int) -> nn.Module:  # noqa: ARG002 - of the protocol
        """See `TrainsItself.train_party`."""
        trained = self._train(model, self._data[whose(data)], **self._options)
        return model if trained is None else trained

    def measure(self, model: nn.Module, rounds_done: int) -> Mapping[str, float]:  # noqa: ARG002 - of the protocol
        """See `MeasuresItself.measure`; the model is in evaluation mode meanwhile."""
        if self._test is None:
            return {}
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                return _figures(self._test(model))
        finally:
            for module, training in modes.items():
                module.training = training


def _figures(found: Any) -> Mapping[str, float]:
    if isinstance(found, Mapping):
        return found
    if isinstance(found, tuple | list) and len(found) == _PAIR:
        return {"loss": found[0], "accuracy": found[1]}
    raise ConfigError(
        f"test() returned {type(found).__name__}; return a dict of names and numbers, or the pair "
        "(loss, accuracy)"
    )


def handles(party: int, n_parties: int, count: int) -> Records:
    """Return what stands for a party's data where its records are not rows of tensors.

    Args:
        party: whose.
        n_parties: of how many.
        count: of its records; rows are told apart by nothing.

    Returns:
        Inputs, shape (count, 2), int64: party and n_parties; targets, shape (count,), zeros.
    """
    inputs = torch.tensor([[party, n_parties]]).expand(count, 2)
    return inputs, torch.zeros(1, dtype=torch.int64).expand(count)


def whose(data: Records) -> tuple[int, int]:
    """Return the party and the number of parties that `handles` stand for."""
    party, n_parties = data[0][0].tolist()
    return party, n_parties


def no_loss() -> ConfigError:
    """Return the error of a task that trains by itself and is asked for a loss."""
    return ConfigError(
        "this task trains by code of its own and has no loss; use a task with a loss "
        "(docs/tasks.md) for what looks at single records"
    )
