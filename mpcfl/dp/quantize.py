"""Stage 3: floats to integer levels under an exact integer norm bound, and back after opening.

The sensitivity of the release is a fact about integers, proved by integer arithmetic for every
row; no float is trusted for it (Casacuberta et al. 2022, Mironov 2012 show what happens
otherwise). A row is the model's coordinates, rotated in rings of few bits, and behind them the
secret counts; each of the two keeps within its own part of the bound, so that neither can take
what is the other's. The sum of a party's rows is saturated coordinate by coordinate, which is
1-Lipschitz and therefore keeps the sensitivity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.config import Unit
from mpcfl.dp.grid import Grid
from mpcfl.dp.noise_plan import ROTATED, NoisePlan
from mpcfl.dp.pieces import is_long, largest_level, level_type, pieces
from mpcfl.dp.rotation import rotate_rows, unrotate
from mpcfl.dp.rounding import exact_square_norms as exact_square_norms
from mpcfl.dp.rounding import round_conditionally, round_in_place, round_to_nearest
from mpcfl.errors import QuantizeError
from mpcfl.hazmat.bits import BitSource, SystemBits

IntVector = NDArray[np.int64]
RealMatrix = NDArray[np.float64]

_INT64_MAX = 2**63 - 1
# Values that are rotated and rounded at once: 32 MiB per temporary array.
_VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened sum in float space: public, noised, not yet divided by anything.

    Attributes:
        values: of the model's coordinates, shape (dim,), float64.
        counts: of the secret counts, shape (plan.counts,), float64, one count being 1.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.float64]


def quantize_rows(
    rows: RealMatrix,
    grid: Grid,
    counts: RealMatrix | None = None,
    bits: BitSource | None = None,
) -> IntVector:
    """Map clipped rows and their counts to the integer grid, under an exact bound for each.

    Args:
        rows: clipped rows, shape (k, dim), float64, norm at most ``grid.clip_norm``. Secret. They
            are the stage's to use: of long rows nothing may be left, as levels lie there then.
        grid: of this round.
        counts: shape (k, plan.counts), float64, in [-1, 1]; NaN counts as zero. Secret.
        bits: for tests and the in-process oracle only; by default a fresh system source. Rounding
            in rings of few bits is random, and as secret as the rows.

    Returns:
        Levels, shape (k, plan.vector_dim), int64, or as `level_type` says. For every row,
        ``sum(q**2)`` is at most ``plan.model_bound_int`` over the model's coordinates, each count
        at most ``plan.count_level_int``, and so the whole at most ``plan.norm_bound_int``, exactly.

    Raises:
        QuantizeError: without privacy only, a value does not fit ``plan.saturation_int``.

    Privacy: one row changes the sum by at most sqrt(plan.norm_bound_int) in L2, grid units.
    Source: nearest rounding moves a coordinate by at most 1/2, so ||q|| <= scale C + sqrt(dim)/2;
    random rounding: `rounding.py`.
    """
    plan = grid.plan
    if plan.local_sigma == 0:
        return _fixed_point(rows, plan)
    if plan.rotation == ROTATED:
        model = _rotated_levels(rows, grid, SystemBits() if bits is None else bits)
    elif is_long(plan.dim):
        model = round_in_place(rows, grid.scale, plan.model_bound_int, level_type(plan))
    else:
        model = round_to_nearest(rows, grid.scale, plan.model_bound_int)
    if plan.counts == 0:
        return model
    both = model, _count_levels(counts, (len(rows), plan))
    return np.concatenate(both, axis=1, dtype=level_type(plan), casting="same_kind")


def _rotated_levels(rows: RealMatrix, grid: Grid, bits: BitSource) -> IntVector:
    plan = grid.plan
    levels = np.empty((len(rows), plan.rotated_dim), dtype=np.int64)
    # Infinities would become NaN all over the row; the rounding makes it zero either way.
    n_rows = max(1, _VALUES_AT_ONCE // plan.rotated_dim)
    for start in range(0, len(rows), n_rows):
        some = slice(start, start + n_rows)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = rotate_rows(rows[some], plan, grid.round_id) * grid.scale
            levels[some] = round_conditionally(scaled, plan.model_bound_int, bits)
    return levels


def _count_levels(counts: RealMatrix | None, expected: tuple[int, NoisePlan]) -> IntVector:
    n_rows, plan = expected
    if counts is None or counts.shape != (n_rows, plan.counts):
        found = "none" if counts is None else f"shape {counts.shape}"
        raise ValueError(f"counts must have shape {(n_rows, plan.counts)}, found {found}")
    level = plan.count_level_int
    inside = np.clip(np.nan_to_num(counts, nan=0.0), -1.0, 1.0)
    # The clip of the integers is what the bound rests on.
    rounded = np.rint(inside * level).astype(np.int64)
    bounded: IntVector = np.clip(rounded, -level, level)
    return bounded


def _fixed_point(rows: RealMatrix, plan: NoisePlan) -> IntVector:
    if not is_long(plan.dim):
        return _fixed_point_piece(rows, plan)
    levels: IntVector = rows.view(level_type(plan))[:, : plan.dim]
    for row, out in zip(rows, levels, strict=True):
        for piece in pieces(plan.dim):
            out[piece] = _fixed_point_piece(row[piece], plan)
    return levels


def _fixed_point_piece(values: RealMatrix, plan: NoisePlan) -> IntVector:
    with np.errstate(over="ignore"):
        scaled = np.rint(values * plan.scale)
    limit = plan.saturation_int
    if plan.unit is not Unit.NONE:
        # Private already: clamping is post-processing, and stopping would depend on data.
        inside = np.clip(np.nan_to_num(scaled, nan=0.0), -limit, limit)
        # A limit that is no float64 may have been rounded up.
        clamped: IntVector = np.clip(inside.astype(np.int64), -limit, limit)
        return clamped
    if not float(np.max(np.abs(scaled), initial=0.0)) <= limit:
        raise QuantizeError(
            f"a value of the update does not fit the fixed-point range of "
            f"+-{limit / plan.scale:g}; lower the learning rate, or raise "
            f"aggregation.modulus_bits above {plan.modulus_bits}"
        )
    return scaled.astype(np.int64)


def sum_levels(blocks: Iterable[IntVector], plan: NoisePlan) -> IntVector:
    """Add all rows of one party exactly, then saturate each coordinate.

    Args:
        blocks: arrays of levels, shape (k, plan.vector_dim), any k; every row from
            `quantize_rows`.
        plan: gives the saturation M; at party level M is never reached.

    Returns:
        The sum, clamped to [-M, M], shape (plan.vector_dim,), int64, or as `level_type` says.
        Secret: add noise before it leaves.
    """
    total: NDArray[Any] = np.zeros(plan.vector_dim, dtype=level_type(plan))
    most_per_row = largest_level(plan)
    bound = 0
    for block in _handed_over(blocks):
        more = len(block) * most_per_row
        if bound + more > _most(total):
            bound = _largest(total)
            total = _widened(total, bound + more)
        bound += more
        _add_rows(total, block)
        del block
    limit = plan.saturation_int
    np.clip(total, -limit, limit, out=total)
    clamped: IntVector = total.astype(level_type(plan), copy=False)
    return clamped


def _handed_over(blocks: Iterable[IntVector]) -> Iterator[IntVector]:
    """Yield the blocks and keep none: one may be as long as all else together."""
    iterator = iter(blocks)
    while block := [*itertools.islice(iterator, 1)]:
        yield block.pop()


def _most(total: NDArray[Any]) -> float:
    """Return the largest integer that the type holds, or infinity."""
    return math.inf if total.dtype == object else int(np.iinfo(total.dtype).max)


def _largest(total: NDArray[Any]) -> int:
    return max(int(total.max(initial=0)), -int(total.min(initial=0)))


def _widened(total: NDArray[Any], bound: int) -> NDArray[Any]:
    """Return the sum in the narrowest type that holds integers up to the bound."""
    if bound <= _most(total):
        return total
    # Python integers at last: slow, and never wrong.
    return total.astype(np.int64 if bound <= _INT64_MAX else object)


def _add_rows(total: NDArray[Any], block: IntVector) -> None:
    if total.dtype == object:
        block = block.astype(object)
    for piece in pieces(total.size):
        total[piece] += block[:, piece].sum(axis=0) if len(block) != 1 else block[0, piece]


def dequantize_sum(opened: IntVector | NDArray[np.float64], grid: Grid) -> Opened:
    """Turn an opened sum of integers back into floats; `NoisePlan.denominator` makes it a mean.

    Args:
        opened: sum of all contributors, shape (plan.vector_dim,), int64 or int32, centred.
            Public. Or float64, in the same units, where coordinates of different contributors were
            scaled.
        grid: of the round.

    Returns:
        The sum in float space, the same bits at every party.
    """
    plan = grid.plan
    model = opened[: plan.rotated_dim]
    levels = unrotate(model, plan, grid.round_id) if plan.rotation == ROTATED else model
    counts = opened[plan.rotated_dim :] / max(1, plan.count_level_int)
    return Opened(values=levels / grid.scale, counts=counts)
