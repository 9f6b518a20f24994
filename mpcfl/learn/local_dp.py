"""Stage 1 with ``placement = "local"``: DP-SGD inside the party, so that it needs to trust nobody.

Each local step takes a secret Poisson sample of the party's records, clips every record's
gradient, adds noise that alone is enough for the whole guarantee, and descends. What the
party then shares is a function of noised values only, so it stays private even if all other
parties collude and the aggregation fails; the sum hides it only on top of that. The
price is accuracy: every party adds the noise that the distributed placement adds once.

Adversary: everybody but the party itself. Epsilon covers all local steps of all rounds
that the plan counts; records of different parties are disjoint. Opacus gives the per-record
gradients (`opacus_gradients`) and a second accountant, `exact_optimizer` the noise.

Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1; Yousefpour et al. 2021 (arXiv
2109.12298) for Opacus.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpcfl.config import Placement, TrainingTable
from mpcfl.dp.grid import round_grid
from mpcfl.dp.plan import NoisePlan
from mpcfl.dp.sampler import BitSource, poisson_sample
from mpcfl.learn.blocks import RecordBlocks
from mpcfl.learn.model import flat_change, trainable_size
from mpcfl.learn.opacus_gradients import OpacusGradients, import_with_opacus
from mpcfl.learn.proximal import hold_back
from mpcfl.learn.task import Records, Task, example_records

Matrix = NDArray[np.float64]

# What in a job asks for this.
CHOSEN = 'privacy.placement = "local"'


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
            training: ``local_steps``, ``learning_rate``, ``proximal_mu``, ``microbatch`` and
                ``device``; its ``batch_size`` is not used, the plan's sample rate is.
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
        training, plan, device = self._training, self._plan, torch.device(self._training.device)
        local_model = copy.deepcopy(model).train().to(device)
        module, optimizer = self._engine.attach(
            local_model, round_grid(plan, round_id), training.learning_rate, self._bits
        )
        hold_back(optimizer.original_optimizer, model, training.proximal_mu)
        inputs, targets = example_records(self._task)
        blocks = RecordBlocks(
            gradients=OpacusGradients(module, self._task, device),
            stand_in=(inputs[:1], targets[:1]),
            dim=trainable_size(model),
            microbatch=training.microbatch,
        )
        for _ in range(training.local_steps):
            sample = poisson_sample(len(self._records[0]), plan.sample_rate, self._bits)
            rows = blocks.of_sample(self._records, sample)
            optimizer.step(lambda rows=rows: rows)
        self.not_finite += optimizer.not_finite
        return flat_change(local_model, model)[np.newaxis]

    def account(self) -> dict[str, Any]:
        """Return the state of Opacus' accountant: public figures, plain types.

        ``history`` lists (noise multiplier, sample rate, steps); its steps grow by
        ``local_steps`` with every update of this process. For a cross-check only: what counts,
        also after a resume, is the ledger.
        """
        return dict(self._engine.accountant.state_dict())


def load_exact_optimizer() -> ModuleType:
    """Import `exact_optimizer`, and Opacus with it, where it is used.

    Raises:
        BackendUnavailable: Opacus is not installed.
    """
    return import_with_opacus("mpcfl.learn.exact_optimizer", CHOSEN)
