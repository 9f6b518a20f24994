"""The model as a flat vector: where training's tensors meet the protocol's numbers.

The vector holds the trainable parameters, in the order of `named_parameters`, in float64.
It is public: every party knows the model of every round. Buffers and frozen parameters are
not in it; they stay as the task made them, equal at all parties by `model_digest`.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpcfl.config import Unit
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


def flat_parameters(model: nn.Module) -> Vector:
    """Return a copy of the trainable parameters, shape (dim,), float64."""
    parts = [p.detach().cpu().reshape(-1).double() for p in _trainable(model)]
    flat: Vector = torch.cat(parts).numpy()
    return flat


def load_flat_parameters(model: nn.Module, vector: Vector) -> None:
    """Write a flat vector into the trainable parameters, in their own dtypes.

    Args:
        model: changed in place; each value is rounded to nearest in its parameter's dtype.
        vector: shape (dim,), float64, as `flat_parameters` orders it.
    """
    parameters = _trainable(model)
    ends = np.cumsum([parameter.numel() for parameter in parameters])
    if vector.shape != (ends[-1],):
        raise ValueError(f"the model has {ends[-1]} trainable values, the vector {vector.shape}")
    with torch.no_grad():
        for parameter, piece in zip(parameters, np.split(vector, ends[:-1]), strict=True):
            parameter.copy_(torch.tensor(piece).view_as(parameter))


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
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.digest()
