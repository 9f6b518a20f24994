"""Vectors as callers hold them: numpy arrays, or torch tensors on the CPU; neither is copied."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(levels: Any) -> NDArray[Any]:
    """Return the numpy array that shares its memory with ``levels``.

    Raises:
        TypeError: it is neither a numpy array nor a dense torch tensor on the CPU.
    """
    if isinstance(levels, np.ndarray):
        return levels
    if not _is_tensor(levels):
        raise TypeError(
            f"levels must be a numpy array or a torch tensor, not {type(levels).__name__}"
        )
    try:
        array: NDArray[Any] = levels.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            "levels must be a dense tensor on the CPU; move them there with .cpu()"
        ) from error
    return array


def as_given(total: NDArray[Any], levels: Any) -> Any:
    """Return ``total`` as the kind of vector that ``levels`` is, sharing its memory."""
    return sys.modules["torch"].from_numpy(total) if _is_tensor(levels) else total


def _is_tensor(levels: Any) -> bool:
    # Whoever holds a tensor has loaded torch; nobody else should have to.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(levels, torch.Tensor)
