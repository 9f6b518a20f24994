"""Long vectors, which are worked on piece by piece, and where they lie.

A vector of a language model is so long that a copy of it counts, and that a pass over it costs
what memory costs: so a stage does all it has to do to one piece, which stays in the cache, before
it goes on to the next. Shorter vectors are handled in one go, many rows at a time. Both ways give
the same values, bit for bit.

Public: what is long depends on the length alone, never on a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mpcfl.dp.noise_plan import NoisePlan

# Longer vectors are worked on in pieces, and where they lie. A piece takes 2 MiB of float64: it
# stays in the cache, and threads that draw noise or masks meanwhile seldom have to take turns.
PIECE_VALUES = 1 << 18
_INT32_BITS, _INT32_MAX = 32, 2**31 - 1
LevelType = np.dtype[np.int32] | np.dtype[np.int64]


def is_long(dim: int) -> bool:
    """Tell whether vectors of this length are worked on in pieces."""
    return dim > PIECE_VALUES


def pieces(dim: int, length: int | None = None) -> Iterator[slice]:
    """Yield the pieces of a vector, in order."""
    step = PIECE_VALUES if length is None else length
    return (slice(start, min(start + step, dim)) for start in range(0, dim, step))


def largest_level(plan: NoisePlan) -> int:
    """Return what no level of a row exceeds in size."""
    # Without noise of the sum's own nothing bounds a row's norm but its single levels.
    return plan.saturation_int if plan.local_sigma == 0 else math.isqrt(plan.norm_bound_int)


def level_type(plan: NoisePlan) -> LevelType:
    """Return what holds one row's levels, and the saturated sum of a party's rows.

    It is int32 for long vectors in rings of up to 32 bits, which halves their memory, and else
    int64.
    """
    largest = max(largest_level(plan), plan.saturation_int)
    if is_long(plan.vector_dim) and plan.modulus_bits <= _INT32_BITS and largest <= _INT32_MAX:
        return np.dtype(np.int32)
    return np.dtype(np.int64)
