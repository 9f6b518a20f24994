"""Stage 2: bring every row to an L2 norm of at most the clip norm, in float64.

The guarantee does not rest on this file: floating point can't bound a norm exactly, so
`quantize.py` checks the integers it makes. A row is one party's update, or one record's
gradient; rows that are not finite become zero and are only counted, because a run that stops
on bad data tells others something about that data.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.pieces import is_long, pieces

# Keeps the float norm under the bound despite the rounding of sums and products (2^-53 each).
_CLIP_MARGIN = 1e-9
# Squared norms inside this range were summed without overflow, underflow or loss.
_SAFE_SQUARES = (1e-250, 1e250)


def clip_rows(rows: NDArray[np.float64], clip_norm: float) -> tuple[NDArray[np.float64], int]:
    """Clip each row to an L2 norm of at most ``clip_norm``.

    Args:
        rows: updates or gradients, shape (k, dim), float64. Secret. They are the stage's to use:
            long rows are clipped where they lie, shorter ones stay as they are.
        clip_norm: C, greater than zero; infinity clips nothing.

    Returns:
        Clipped rows, shape (k, dim), float64, norm at most ``clip_norm * (1 - 1e-9)``, and the
        number of rows that held NaN or infinity and are now zero. The number is as secret as
        the rows: log it locally only.
    """
    target = clip_norm * (1.0 - _CLIP_MARGIN)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
    ordinary = (squares > _SAFE_SQUARES[0]) & (squares < _SAFE_SQUARES[1])
    factors = np.ones(len(rows))
    norms = np.sqrt(squares, where=ordinary, out=np.zeros(len(rows)))
    np.divide(target, norms, where=ordinary & (norms > target), out=factors)
    clipped = np.multiply(rows, factors[:, None], out=rows if is_long(rows.shape[1]) else None)
    extreme = np.flatnonzero(~ordinary)
    return clipped, sum(not _clip_extreme_row(clipped[index], target) for index in extreme)


def _clip_extreme_row(row: NDArray[np.float64], target: float) -> bool:
    """Clip a row, where it lies, whose squares overflow or underflow; say whether it is finite."""
    largest = max(float(row.max(initial=0.0)), -float(row.min(initial=0.0)))
    if not math.isfinite(largest) or largest == 0.0:
        row[:] = 0.0
        return math.isfinite(largest)
    # The scaled row has a largest entry of 1, so its norm lies in [1, sqrt(dim)].
    with np.errstate(under="ignore"):
        units = (row[piece] / largest for piece in pieces(row.size))
        norm = math.sqrt(math.fsum(float(np.einsum("i,i->", unit, unit)) for unit in units))
        if largest > target / norm:
            row /= largest
            row *= target / norm
    return True
