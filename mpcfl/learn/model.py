"""The model as a flat vector: where training's tensors meet the protocol's numbers.

The vector holds the trainable parameters, in the order of `named_parameters`, in float64.
It is public: every party knows the model of every round. Buffers and frozen parameters are
not in it; they stay as the task made them, equal at all parties by `model_digest`.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpcfl.config import Unit
from mpcfl.dp.pieces import pieces
from mpcfl.errors import ConfigError
from mpcfl.learn.task import Task

Vector = NDArray[np.float64]
_DIGEST_TAG = b"mpcfl/v1 model-digest"


def initial_model(task: Task, seed: int) -> nn.Module:
    """Return the model that all parties start from; torch's global generator is left as it was.

    Args:
        task: the task; its `model` draws from torch's generator.
        seed: the public ``training.seed``. It protects nothing: initial weights are public.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251  public start values, equal at all parties
        return task.model()


def check_model(model: nn.Module, unit: Unit) -> None:
    """Refuse a model that the protocol can't train soundly.

    Raises:
        ConfigError: the model has no trainable parameter, or has batch normalization.
    """
    if not _trainable(model):
        raise ConfigError(
            "the task's model has no trainable parameter; return a model in which at least one "
            "parameter has requires_grad"
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            why = (
                "it mixes the records of a batch, so that no record has a gradient of its own"
                if unit is Unit.RECORD
                else "it keeps statistics of each party's private data that are never averaged"
            )
            raise ConfigError(
                f"the task's model has {type(module).__name__} at \"{name}\", which can't be used: "
                f"{why}; replace it by torch.nn.GroupNorm"
            )


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trainable_size(model: nn.Module) -> int:
    """Return the length of the flat vector of the model's trainable parameters."""
    return sum(parameter.numel() for parameter in _trainable(model))


def flat_parameters(model: nn.Module) -> Vector:
    """Return a copy of the trainable parameters, shape (dim,), float64."""
    flat: Vector = flat_rows([p.detach().unsqueeze(0) for p in _trainable(model)], 1)[0]
    return flat


def flat_change(model: nn.Module, before: nn.Module) -> Vector:
    """Return new minus old trainable parameters, shape (dim,), float64."""
    change, at = flat_parameters(model), 0
    for parameter in _trainable(before):
        old = parameter.detach().cpu().reshape(-1)
        part, at = change[at : at + old.numel()], at + old.numel()
        # A whole parameter in float64 may be a good part of the model.
        for piece in pieces(old.numel()):
            part[piece] -= old[piece].double().numpy()
    return change


def flat_rows(tensors: list[Tensor], n_rows: int) -> NDArray[np.float64]:
    """Return tensors of equally many rows beside each other, flat.

    Args:
        tensors: each of shape (n_rows, ...), one per parameter; empty afterwards, so that each
            can be let go once it was copied, where nobody else holds it.
        n_rows: k.

    Returns:
        Shape (k, dim), float64.
    """
    widths = [math.prod(tensor.shape[1:]) for tensor in tensors]
    rows = torch.empty((n_rows, sum(widths)), dtype=torch.float64)
    for part in torch.split(rows, widths, dim=1):
        part.copy_(tensors.pop(0).reshape(n_rows, -1))
    flat: NDArray[np.float64] = rows.numpy()
    return flat


def load_flat_parameters(model: nn.Module, vector: Vector) -> None:
    """Write a flat vector into the trainable parameters, in their own dtypes.

    Args:
        model: changed in place; each value is rounded to nearest in its parameter's dtype.
        vector: shape (dim,), float64, as `flat_parameters` orders it.
    """
    dim = trainable_size(model)
    if vector.shape != (dim,):
        raise ValueError(f"the model has {dim} trainable values, the vector {vector.shape}")
    parameters = _trainable(model)
    # A view of the vector, which is only read; torch takes no array that can't be written to.
    flat = torch.from_numpy(vector if vector.flags.writeable else vector.copy())
    with torch.no_grad():
        parts = torch.split(flat, [parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def model_digest(model: nn.Module) -> bytes:
    """Return the SHA-256 digest of names, shapes, dtypes and bytes of the whole state.

    Equal digests mean bit-for-bit equal models, frozen parameters and buffers included.
    """
    digest = hashlib.sha256(_DIGEST_TAG)
    for name, tensor in model.state_dict().items():
        # The length before the head keeps two states from being encoded alike; the head
        # fixes the number of bytes that follow it.
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        digest.update(len(head).to_bytes(4, "big") + head)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.digest()
