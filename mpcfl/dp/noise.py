"""Stage 4: add this party's share of the noise, which can be used exactly once.

The shares of all honest parties together carry the noise that the plan asks for; no single
party knows more than its own. Reusing a share for a second opening would reveal the
difference of two updates, so a share is spent by adding it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.accountant import Mechanism
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.dp.pieces import is_long, level_type, pieces
from mpcfl.dp.sampler import draw_discrete_gaussian
from mpcfl.dp.skellam import draw_skellam
from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import BitSource, SystemBits

IntVector = NDArray[np.int64]
# So many draws of a long share are made at once: 8 MiB of int64.
_DRAWS_AT_ONCE = 1 << 20


class NoiseShare:
    """One party's single-use summand of the noise. Secret.

    It can't be shown, tested for truth, copied or pickled, and is dead in a child process:
    each of these would allow the same noise to be used twice.
    """

    __slots__ = ("_noise", "_process_id")

    def __init__(self, noise: IntVector) -> None:
        self._noise: IntVector | None = noise
        self._process_id = os.getpid()

    def take(self) -> IntVector:
        """Hand over the noise, shape (dim,), int32 or int64, and forget it.

        Raises:
            OutOfOrder: the share was used before, or crossed a fork.
        """
        noise, self._noise = self._noise, None
        if noise is None or os.getpid() != self._process_id:
            raise OutOfOrder("a noise share was used twice; draw a new share for every attempt")
        return noise

    def __repr__(self) -> str:
        return "NoiseShare(<redacted>)"

    def __bool__(self) -> bool:
        raise TypeError("a noise share has no truth value")

    def __reduce__(self) -> Any:
        raise TypeError("a noise share must not be copied or leave its process")


def draw_noise_share(plan: NoisePlan, bits: BitSource | None = None) -> NoiseShare:
    """Draw this party's share for one attempt.

    Args:
        plan: gives ``vector_dim``, the mechanism and the integer ``local_sigma``; zero means no
            noise (no privacy, or noise that was added before).
        bits: for tests and for the in-process oracle only; by default a fresh system source.
    """
    if plan.local_sigma == 0:
        return NoiseShare(np.zeros(plan.vector_dim, dtype=level_type(plan)))
    source = SystemBits() if bits is None else bits
    draw = _SAMPLERS[Mechanism(plan.mechanism)]
    if not is_long(plan.vector_dim):
        return NoiseShare(draw(plan.local_sigma, plan.vector_dim, source))
    noise: IntVector = np.empty(plan.vector_dim, dtype=level_type(plan))
    for piece in pieces(noise.size, _DRAWS_AT_ONCE):
        noise = _written(noise, piece, draw(plan.local_sigma, piece.stop - piece.start, source))
    return NoiseShare(noise)


def _draw_skellam_share(sigma: int, size: int, bits: BitSource) -> IntVector:
    return draw_skellam(sigma * sigma, size, bits)


_SAMPLERS: dict[Mechanism, Callable[[int, int, BitSource], IntVector]] = {
    Mechanism.DISCRETE_GAUSSIAN: draw_discrete_gaussian,
    Mechanism.SKELLAM: _draw_skellam_share,
}


def add_noise(levels: IntVector, share: NoiseShare) -> IntVector:
    """Add a noise share to this party's levels and spend the share.

    Args:
        levels: shape (dim,), int32 or int64, from `quantize.sum_levels`; not changed. Secret.
        share: unused share of the same length.

    Returns:
        The noised levels, shape (dim,), of the wider type; exact, so int64 where int32 does not
        hold them. They may lie where the share's noise was. Still secret alone: one share is less
        than the noise of the sum, so they leave the party only under a secure sum.

    Raises:
        OutOfOrder: the share was used before.
    """
    noise = share.take()
    if noise.shape != levels.shape:
        raise ValueError(f"levels have shape {levels.shape}, the noise share {noise.shape}")
    if not is_long(noise.size):
        return levels.astype(np.int64, copy=False) + noise
    for piece in pieces(noise.size):
        noise = _written(noise, piece, levels[piece].astype(np.int64) + noise[piece])
    return noise


def _written(vector: IntVector, piece: slice, values: NDArray[np.int64]) -> IntVector:
    """Put values into a vector; return the vector, as int64 if they do not fit otherwise."""
    fits = np.iinfo(vector.dtype)
    if int(values.min(initial=0)) < fits.min or int(values.max(initial=0)) > fits.max:
        vector = vector.astype(np.int64)
    vector[piece] = values
    return vector
