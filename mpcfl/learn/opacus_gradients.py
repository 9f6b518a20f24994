"""Per-record gradients by Opacus' hooks: for models that torch.func can't differentiate in blocks.

Hooks on every layer that is trained catch its inputs and the gradient of its outputs, from which
the layer's gradient follows for each record: most language models work, frozen layers cost
nothing. One record at a time needs no hooks: there autograd's own gradient is the record's. Both
placements of the noise take their rows from here.

Not used is Opacus' ghost clipping, which never forms a record's gradient: it yields the sum of the
clipped gradients, in floating point. How far a record moves that sum is proved nowhere,
whereas here every record's own integers have a norm that is checked in integers.

Assumes: no layer mixes records and nothing but the parameters is remembered from pass to pass,
which `opacus_check.py` tries on public records before any private one is read.

Source: Yousefpour et al. 2021 (arXiv 2109.12298) for Opacus; Lee, Kifer 2021 (arXiv 2009.03106)
and Bu et al. 2022 (arXiv 2205.10683) for ghost clipping. Opacus is imported where it is used.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from mpcfl.errors import BackendUnavailable
from mpcfl.learn.device import secret_device_generator
from mpcfl.learn.model import flat_rows
from mpcfl.learn.task import Records, Task

Matrix = NDArray[np.float64]

_HOOK_WARNING = "Full backward hook is firing"


class OpacusGradients:
    """The gradient of each record's own loss, by Opacus' hooks."""

    def __init__(self, module: Any, task: Task, device: torch.device) -> None:
        """Take a module of `with_hooks`, the task that gives the loss, and where the module is."""
        self._module = module
        self._device = device
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._padding = _padding_rows(module)
        self._loss: Callable[[Tensor, Tensor], Tensor] = vmap(
            lambda output, target: task.loss(output.unsqueeze(0), target.unsqueeze(0)),
            randomness="different",
        )

    def __call__(self, inputs: Tensor, targets: Tensor) -> Matrix:
        """Return one row per record, shape (k, dim), float64, in the order of the parameters.

        Args:
            inputs: shape (k, ...), of records; token numbers (k, tokens), int64, for instance.
            targets: shape (k, ...).

        Raises:
            Exception: whatever the task's model or loss raises. Nothing of the pass is left.

        Privacy: a row depends on its record and the parameters alone (`blocks.py` says up to
        what): each record has a loss of its own, and no layer that mixes records passes
        `opacus_check.py`.
        """
        inputs, targets = inputs.to(self._device), targets.to(self._device)
        try:
            with secret_device_generator(self._device):
                # A sum, so that no record's gradient is scaled by how many others there are.
                losses = self._loss(self._module(inputs), targets)
                torch.autograd.backward(losses.sum())
            return flat_rows([self._taken(p, len(inputs)) for p in self._trained], len(inputs))
        finally:
            forget_pass(self._module)

    def _taken(self, parameter: Any, n_records: int) -> Tensor:
        """Take the gradients that the last pass left at one parameter."""
        sample, total = parameter.grad_sample, parameter.grad
        parameter.grad_sample = parameter.grad = None
        if sample is None and total is None:
            return _zeros(parameter, n_records)
        if sample is None or len(sample) != n_records:
            raise ValueError(
                "a layer takes something else than records as its first dimension, or a parameter "
                "is used outside the forward() of its own layer"
            )
        if parameter in self._padding:
            # The row of padding is never trained, which Opacus does not know.
            sample[:, self._padding[parameter]] = 0.0
        taken: Tensor = sample
        return taken


def _zeros(parameter: Tensor, n_records: int) -> Tensor:
    """Return the gradients of a loss that a parameter is not in."""
    return parameter.detach().new_zeros(1).expand(n_records, *parameter.shape)


def _padding_rows(module: nn.Module) -> dict[Tensor, int]:
    """Return for each embedding with a row of padding which row that is."""
    return {
        layer.weight: layer.padding_idx
        for layer in module.modules()
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None
    }


class OneByOne:
    """The gradient of each record's own loss, every record in a pass of its own."""

    def __init__(self, model: nn.Module, task: Task, device: torch.device) -> None:
        """Take a model of the caller's own, as it is on the device."""
        self._model = model
        self._task = task
        self._device = device
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, inputs: Tensor, targets: Tensor) -> Matrix:
        """Return one row per record, as `OpacusGradients` does."""
        records = zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True)
        rows = [self._row(record) for record in records]
        # A row may be as long as all else together: one alone is not copied.
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _row(self, record: Records) -> Matrix:
        inputs, targets = (values.to(self._device) for values in record)
        with secret_device_generator(self._device):
            loss = self._task.loss(self._model(inputs), targets)
            gradients = torch.autograd.grad(loss, self._trained, allow_unused=True)
        rows = [
            _zeros(parameter, 1) if gradient is None else gradient.unsqueeze(0)
            for parameter, gradient in zip(self._trained, gradients, strict=True)
        ]
        del gradients
        return flat_rows(rows, 1)


def with_hooks(model: nn.Module) -> Any:
    """Return a model wrapped in Opacus' module, whose hooks its trained layers get.

    Args:
        model: of the caller's own; never the global model. `opacus_check.py` has passed it.

    Raises:
        Exception: Opacus refuses a layer that is trained and has buffers.
    """
    from opacus.grad_sample import GradSampleModule

    _ignore_hook_warning()
    for layer in model.modules():
        if any(p.requires_grad for p in layer.parameters(recurse=False)):
            # Hooks look away in evaluation mode, in which a task may keep its model to have no
            # dropout; layers with parameters of their own do the same in either mode.
            layer.training = True
    module = GradSampleModule(model, loss_reduction="sum")
    module.forbid_grad_accumulation()
    return module


def _ignore_hook_warning() -> None:
    """Silence torch on a first layer whose inputs need no gradient, as with every first layer."""
    # Once only: parties that are threads share the filters, and adding one takes it away first.
    # A filter's text is a pattern, or None for any.
    if _HOOK_WARNING not in [getattr(text, "pattern", None) for _, text, *_ in warnings.filters]:
        warnings.filterwarnings("ignore", _HOOK_WARNING, UserWarning)


def forget_pass(module: nn.Module) -> None:
    """Drop all gradients, and what Opacus' hooks keep of a pass that failed half-way."""
    for layer in module.modules():
        layer.__dict__.pop("activations", None)
        layer.__dict__.pop("max_batch_len", None)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = None
            parameter.__dict__.pop("_current_grad_sample", None)
            parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus' attribute
            parameter._forward_counter = 0  # type: ignore[attr-defined]  # Opacus' attribute


def gradient_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy to take gradients of, in training mode, with buffers and hooks of its own.

    Args:
        model: left unchanged. On the CPU the copy shares the values of its parameters, since
            nothing is trained here: a large model is not held twice.
        device: where the copy is.
    """
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    return copy.deepcopy(model, shared).train().to(device)


def import_with_opacus(name: str, chosen: str) -> ModuleType:
    """Import a module that needs Opacus, where it is used.

    Args:
        name: of the module.
        chosen: what in the job asks for Opacus.

    Raises:
        BackendUnavailable: Opacus is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opacus":
            raise
        raise BackendUnavailable(
            f"{chosen} needs the package opacus, which is not installed; install it with: "
            'pip install "mpcfl[local]"'
        ) from error
