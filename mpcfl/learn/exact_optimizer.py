"""Opacus' engine and optimizer with exact noise: what each step of local DP-SGD is made of.

Opacus draws its noise as floats from torch's generator; its secure mode needs a package that no
longer installs, and even there float noise shows the value beneath it (Mironov 2012). Here the
clipped per-record gradients become integers under an exact norm bound, and the noise is drawn
exactly on that grid from the operating system's bits: the stages that protect the distributed
placement. What stays Opacus' own is the hooks that give every record its gradient
(`opacus_gradients.py`), the order of a step, and the accountant, a cross-check of ours.

Assumes: the party itself is honest; whoever sees its parameters after a step is the adversary.
Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1. This is the only module that imports
Opacus at its top, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.accountants import create_accountant
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from mpcfl.dp.clip import clip_rows
from mpcfl.dp.grid import Grid
from mpcfl.dp.noise import add_noise, draw_noise_share
from mpcfl.dp.quantize import dequantize_sum, quantize_rows, sum_levels
from mpcfl.dp.sampler import BitSource
from mpcfl.learn.opacus_gradients import with_hooks

Matrix = NDArray[np.float64]
IntVector = NDArray[np.int64]


class ExactOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimizer, with integers and exact noise between the gradients and the step.

    Attributes:
        grid: of the round; its plan sizes the noise.
        bits: injected by tests only; None means the operating system.
        not_finite: records whose gradient was not finite so far. Secret.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, grid: Grid, bits: BitSource | None = None
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=grid.plan.noise_multiplier,
            max_grad_norm=grid.clip_norm,
            # Public, and never the true size of a sample.
            expected_batch_size=grid.plan.denominator(contributors=1),
        )
        self.grid = grid
        self.bits = bits
        self.not_finite = 0
        self._levels: IntVector | None = None

    @property
    def accumulated_iterations(self) -> int:
        """Return 1: however many blocks a sample came in, it is one release of one sample."""
        return 1

    def step(self, closure: Callable[[], Iterable[Matrix]]) -> None:
        """Take one step of DP-SGD.

        Args:
            closure: yields the gradients of one Poisson sample in blocks, shape (k, dim),
                float64, unclipped, one row per record; no block at all for an empty sample.
        """
        self.clip_and_accumulate(closure())
        self.add_noise()
        self.scale_grad()
        # Accounted for before the noised gradient changes anything.
        self.step_hook(self)
        self.original_optimizer.step()

    def clip_and_accumulate(self, blocks: Iterable[Matrix]) -> None:
        """Clip and quantize every record's gradient and add them up, exactly."""
        self._levels = sum_levels(self._quantized(blocks), self.grid.plan)

    def _quantized(self, blocks: Iterable[Matrix]) -> Iterator[IntVector]:
        for rows in blocks:
            clipped, not_finite = clip_rows(rows, self.grid.clip_norm)
            self.not_finite += not_finite
            yield quantize_rows(clipped, self.grid)

    def add_noise(self) -> None:
        """Add fresh noise to the integers; what leaves the grid for ``p.grad`` is noised."""
        levels, self._levels = self._levels, None
        if levels is None:
            raise RuntimeError("add_noise() was called without clip_and_accumulate() before it")
        noised = add_noise(levels, draw_noise_share(self.grid.plan, self.bits))
        gradient = dequantize_sum(noised, self.grid).values
        ends = np.cumsum([parameter.numel() for parameter in self.params])
        for parameter, piece in zip(self.params, np.split(gradient, ends[:-1]), strict=True):
            parameter.grad = torch.tensor(
                piece, dtype=parameter.dtype, device=parameter.device
            ).view_as(parameter)


class ExactEngine(PrivacyEngine):  # type: ignore[misc]  # Opacus has no types
    """One party's privacy engine for a whole run: its accountant sees every step.

    `attach` takes the place of ``make_private``, whose data loader would sample with torch's
    generator, and at a rate of one over a number of batches.
    """

    def __init__(self) -> None:
        # Not Opacus' own, which warns that its noise is not secure: it is not used.
        self.accountant = create_accountant(mechanism="prv")
        self.secure_mode = False
        self.secure_rng = None
        self.dataset = None

    def attach(
        self, model: nn.Module, grid: Grid, learning_rate: float, bits: BitSource | None
    ) -> tuple[GradSampleModule, ExactOptimizer]:
        """Wrap a model of the party's own, and make the optimizer that trains it.

        Args:
            model: gets Opacus' hooks, so never the global model.
            grid: of the round; its plan gives noise and sample rate.
            learning_rate: of plain gradient descent.
            bits: for tests only.
        """
        module = with_hooks(model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = ExactOptimizer(torch.optim.SGD(trainable, lr=learning_rate), grid, bits)
        hook = self.accountant.get_optimizer_hook_fn(sample_rate=grid.plan.sample_rate)
        optimizer.attach_step_hook(hook)
        return module, optimizer
