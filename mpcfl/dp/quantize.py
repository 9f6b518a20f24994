"""Stage 3: floats to integer levels under an exact integer norm bound, and back after opening.

The sensitivity of the release is a fact about integers, proved by integer arithmetic for every
row; no float is trusted for it (Casacuberta et al. 2022, Mironov 2012 show what happens
otherwise). The sum of a party's rows is saturated coordinate by coordinate, which is
1-Lipschitz and therefore keeps the sensitivity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mpcfl.config import Unit
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.errors import QuantizeError

IntVector = NDArray[np.int64]

_MAX_TRIES = 8
_SHRINK = 1.0 - 2.0**-20
_INT64_MAX = 2**63 - 1


def quantize_rows(rows: NDArray[np.float64], plan: NoisePlan) -> IntVector:
    """Map clipped rows to the integer grid with an exact norm bound per row.

    A row that misses the bound is shrunk by 1 - 2^-20 and rounded again, at most 8 times, and
    is zero after that: the guarantee never depends on what the caller passed.

    Args:
        rows: clipped rows, shape (k, dim), float64, norm at most ``plan.clip_norm``. Secret.
        plan: gives the scale and the bound.

    Returns:
        Levels q = rint(scale x), shape (k, dim), int64, with
        ``sum(q**2) <= plan.norm_bound_int`` exactly for every row.

    Raises:
        QuantizeError: without privacy only, a value does not fit ``plan.saturation_int``.

    Privacy: one row changes the sum by at most sqrt(plan.norm_bound_int) in L2, grid units.
    Source: nearest rounding moves a coordinate by at most 1/2, so ||q|| <= scale C + sqrt(dim)/2.
    """
    if plan.unit is Unit.NONE:
        return _fixed_point(rows, plan)
    levels = np.empty(rows.shape, dtype=np.int64)
    todo = np.arange(len(rows))
    scale = plan.scale
    for _ in range(1 + _MAX_TRIES):
        rounded, fits = _round_rows(rows if len(todo) == len(rows) else rows[todo], scale, plan)
        levels[todo] = rounded
        todo = todo[~fits]
        if len(todo) == 0:
            return levels
        scale *= _SHRINK
    levels[todo] = 0
    return levels


def _round_rows(
    rows: NDArray[np.float64], scale: float, plan: NoisePlan
) -> tuple[IntVector, NDArray[np.bool_]]:
    """Round to nearest; say for each row whether the integers meet the norm bound."""
    with np.errstate(over="ignore"):
        scaled = rows * scale
    np.rint(scaled, out=scaled)
    bound = plan.norm_bound_int
    largest = np.max(np.abs(scaled), axis=1, initial=0.0)
    # NaN compares as false; what remains is far below 2^53, so the cast is exact.
    fits = largest <= float(min(math.isqrt(bound), 2**52))
    scaled[~fits] = 0.0
    levels = scaled.astype(np.int64)
    fits &= np.array([norm <= bound for norm in exact_square_norms(levels)], dtype=np.bool_)
    return levels, fits


def exact_square_norms(levels: IntVector) -> list[int]:
    """Return sum(q**2) of every row, shape (k, dim), as Python integers without any rounding."""
    n_rows, dim = levels.shape
    largest = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
    if largest * largest > _INT64_MAX:
        return [sum(int(level) ** 2 for level in row) for row in levels]
    # So many squares fit into an int64 whatever their values are.
    chunk = min(dim, _INT64_MAX // max(1, largest * largest))
    norms = [0] * n_rows
    for start in range(0, dim, max(1, chunk)):
        piece = levels[:, start : start + chunk]
        partial = np.einsum("ij,ij->i", piece, piece).tolist()
        norms = [norm + part for norm, part in zip(norms, partial, strict=True)]
    return norms


def _fixed_point(rows: NDArray[np.float64], plan: NoisePlan) -> IntVector:
    scaled = np.rint(rows * plan.scale)
    largest = float(np.max(np.abs(scaled), initial=0.0))
    if not largest <= plan.saturation_int:
        raise QuantizeError(
            f"a value of the update does not fit the fixed-point range of "
            f"+-{plan.saturation_int / plan.scale:g}; lower the learning rate, or raise "
            f"aggregation.modulus_bits above {plan.modulus_bits}"
        )
    return scaled.astype(np.int64)


def sum_levels(blocks: Iterable[IntVector], plan: NoisePlan) -> IntVector:
    """Add all rows of one party exactly, then saturate each coordinate.

    Args:
        blocks: arrays of levels, shape (k, dim), int64, any k; every row from `quantize_rows`.
        plan: gives the saturation M; at party level M is never reached.

    Returns:
        The sum, clamped to [-M, M], shape (dim,), int64. Secret: add noise before it leaves.
    """
    total = np.zeros(plan.dim, dtype=np.int64)
    largest_row = math.isqrt(plan.norm_bound_int)
    bound = 0
    for block in blocks:
        bound += len(block) * largest_row
        if bound > _INT64_MAX:
            # Python integers from here on: slow, and never wrong.
            total = total.astype(object) + block.astype(object).sum(axis=0)
        else:
            total += block.sum(axis=0)
    limit = plan.saturation_int
    clamped: IntVector = np.clip(total, -limit, limit).astype(np.int64)
    return clamped


def dequantize_sum(total: IntVector, plan: NoisePlan, contributors: int) -> NDArray[np.float64]:
    """Turn an opened sum into the mean update.

    Args:
        total: opened sum of all contributors, shape (dim,), int64, centred. Public.
        plan: gives the scale and the denominator.
        contributors: number of parties in the sum.

    Returns:
        Mean, shape (dim,), float64: over parties, or over the public expected number of
        sampled records, never over a true count (that would need noise of its own).
    """
    return total / (plan.scale * plan.denominator(contributors))
