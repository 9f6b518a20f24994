"""Stage 1 with ``placement = "local"``: DP-SGD inside the party, so that it needs to trust nobody.

Each local step takes a secret Poisson sample of the party's records, clips every record's
gradient, adds noise that alone is enough for the whole guarantee, and descends. What the
party then shares is a function of noised values only, so it stays private even if all other
parties collude and the aggregation fails; the sum hides it only on top of that. The
price is accuracy: every party adds the noise that the distributed placement adds once.

Adversary: everybody but the party itself. Epsilon covers all local steps of all rounds
that the plan counts; records of different parties are disjoint. Opacus gives the per-record
gradients and a second accountant, `exact_optimizer` the noise.

Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1; Yousefpour et al. 2021 (arXiv
2109.12298) for Opacus.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from mpcfl.config import Placement, TrainingTable
from mpcfl.dp.grid import round_grid
from mpcfl.dp.plan import NoisePlan
from mpcfl.dp.sampler import BitSource, poisson_sample
from mpcfl.errors import BackendUnavailable
from mpcfl.learn.blocks import RecordBlocks
from mpcfl.learn.model import flat_parameters
from mpcfl.learn.task import Records, Task

Matrix = NDArray[np.float64]


class LocalTrainer:
    """One party's local training for a whole run: one engine, whose accountant is never reset.

    Attributes:
        not_finite: records that were not finite, or failed, so far; for the party's own log.
    """

    def __init__(
        self,
        records: Records,
        task: Task,
        training: TrainingTable,
        plan: NoisePlan,
        bits: BitSource | None = None,
    ) -> None:
        """Make the trainer.

        Args:
            records: inputs and targets of this party. They never leave it.
            task: gives the loss.
            training: ``local_steps``, ``learning_rate`` and ``microbatch``; its ``batch_size``
                is not used, the plan's sample rate is.
            plan: of the local placement.
            bits: for tests and the in-process oracle only; by default fresh system sources.
        """
        if plan.placement is not Placement.LOCAL or plan.local_steps != training.local_steps:
            raise ValueError("the plan is not one of local training with these local steps")
        self.not_finite = 0
        # A record with a graph of its own would fail at its second backward pass.
        self._records = (records[0].detach(), records[1].detach())
        self._task = task
        self._training = training
        self._plan = plan
        self._bits = bits
        self._engine = load_exact_optimizer().ExactEngine()

    def update(self, model: nn.Module, round_id: int) -> Matrix:
        """Train a copy of the global model with privacy and return what that changed.

        Every call is a release of its own: a retried round samples and draws anew.

        Args:
            model: the global model; left unchanged, and without hooks.
            round_id: which round, from 0.

        Returns:
            New minus old parameters, shape (1, dim), float64: a function of noised values only.
        """
        local_model = copy.deepcopy(model).train()
        training, plan = self._training, self._plan
        module, optimizer = self._engine.attach(
            local_model, round_grid(plan, round_id), training.learning_rate, self._bits
        )
        gradients = RecordGradients(module, optimizer, self._task)
        for _ in range(training.local_steps):
            sample = poisson_sample(len(self._records[0]), plan.sample_rate, self._bits)
            blocks = gradients.of_sample(self._records, sample, training.microbatch)
            optimizer.step(lambda blocks=blocks: blocks)
        self.not_finite += optimizer.not_finite
        update: Matrix = flat_parameters(local_model) - flat_parameters(model)
        return update[np.newaxis]

    def account(self) -> dict[str, Any]:
        """Return the state of Opacus' accountant: public figures, plain types.

        ``history`` lists (noise multiplier, sample rate, steps); its steps grow by
        ``local_steps`` with every update of this process. For a cross-check only: what counts,
        also after a resume, is the ledger.
        """
        return dict(self._engine.accountant.state_dict())


class RecordGradients:
    """Per-record gradients by Opacus' hooks; a record on which they fail becomes NaN."""

    def __init__(self, module: nn.Module, optimizer: Any, task: Task) -> None:
        """Take a wrapped model and its `ExactOptimizer`."""
        self._module = module
        self._optimizer = optimizer
        self._task = task
        self._loss: Callable[[Tensor, Tensor], Tensor] = vmap(
            lambda output, target: task.loss(output.unsqueeze(0), target.unsqueeze(0)),
            randomness="different",
        )

    def of_sample(
        self, records: Records, sample: NDArray[np.int64], microbatch: int
    ) -> Iterator[Matrix]:
        """Yield the gradients of the sampled records, unclipped.

        Args:
            records: this party's inputs and targets.
            sample: indices of the sampled records, shape (sampled,), int64; may be empty.
            microbatch: most records in one pass; bounds the memory.

        Yields:
            Blocks of shape (k, dim), float64, k <= microbatch, in the order of ``sample``.

        Privacy: a row depends on its record and the parameters alone (`blocks.py` says up to
        what): each record has a loss of its own, and no layer that mixes records passes
        `check_local_training`.
        """
        inputs, targets = self._task.test_data()
        blocks = RecordBlocks(
            gradients=self._of_batch_or_clean,
            stand_in=(inputs[:1], targets[:1]),
            dim=flat_parameters(self._module).size,
            microbatch=microbatch,
        )
        yield from blocks.of_sample(records, sample)

    def _of_batch_or_clean(self, inputs: Tensor, targets: Tensor) -> Matrix:
        try:
            return self.of_batch(inputs, targets)
        except Exception:
            load_exact_optimizer().forget_pass(self._module)
            raise

    def of_batch(self, inputs: Tensor, targets: Tensor) -> Matrix:
        """Return the gradient of each record's own loss, shape (k, dim), float64.

        Raises:
            Exception: whatever the task's model or loss raises.
        """
        # A sum, so that no record's gradient is scaled by how many others there are.
        losses = self._loss(self._module(inputs), targets)
        torch.autograd.backward(losses.sum())
        rows: Matrix = self._optimizer.record_rows(len(inputs))
        return rows


def load_exact_optimizer() -> ModuleType:
    """Import `exact_optimizer`, and Opacus with it, where it is used.

    Raises:
        BackendUnavailable: Opacus is not installed.
    """
    try:
        from mpcfl.learn import exact_optimizer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opacus":
            raise
        raise BackendUnavailable(
            'privacy.placement = "local" needs the package opacus, which is not installed; '
            'install it with: pip install "mpcfl[local]"'
        ) from error
    return exact_optimizer
