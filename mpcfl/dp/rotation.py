"""The randomised Hadamard rotation: spreads an update evenly over its coordinates.

With random signs D and the Walsh-Hadamard matrix H of order d' (a power of two; the update is
padded with zeros), x -> H D x / sqrt(d') keeps norms and sums, and makes every coordinate about
||x|| / sqrt(d') in size, so that a ring of few bits holds the sum. The signs are **public** and
equal at all parties; they come from a hash of the plan and the round. They hide nothing and
privacy does not rest on them.

Source: Suresh, Yu, Kumar, McMahan 2017 (arXiv 1611.00429); Kairouz, Liu, Steinke 2021 (arXiv
2102.06387), section 4.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.hazmat.bits import derive_key, domain_tag, raw_keyed_bits

RealMatrix = NDArray[np.float64]
RealVector = NDArray[np.float64]

# One pass multiplies by a Hadamard matrix of this order: three passes do a million coordinates,
# and each block stays in the cache.
_LARGEST_ORDER = 128


@lru_cache(maxsize=4)
def round_signs(plan: NoisePlan, round_id: int) -> RealVector:
    """Return the public signs of one round, shape (plan.rotated_dim,), +1.0 or -1.0, read-only."""
    tag = domain_tag("rotation-signs", round_id)
    source = raw_keyed_bits(derive_key(bytes.fromhex(plan.fingerprint()), tag))
    dim = plan.rotated_dim
    words = source.words(math.ceil(dim / 64)).astype("<u8", copy=False)
    bits = np.unpackbits(words.view(np.uint8), count=dim, bitorder="little")
    signs: RealVector = 1.0 - 2.0 * bits.astype(np.float64)
    signs.setflags(write=False)
    return signs


def rotate_rows(rows: RealMatrix, plan: NoisePlan, round_id: int) -> RealMatrix:
    """Return H D x / sqrt(d') of every row: shape (k, dim) to (k, plan.rotated_dim), float64."""
    dim = plan.rotated_dim
    padded = np.zeros((len(rows), dim))
    np.multiply(rows, round_signs(plan, round_id)[: plan.dim], out=padded[:, : plan.dim])
    rotated = walsh_hadamard(padded)
    rotated /= math.sqrt(dim)
    return rotated


def unrotate(levels: NDArray[np.int64] | RealVector, plan: NoisePlan, round_id: int) -> RealVector:
    """Undo the rotation of an opened sum.

    Args:
        levels: model part of the sum, shape (plan.rotated_dim,), int64; or float64, multiples of
            a power of two, where coordinates of different contributors were scaled. Public.
        plan: as it was rotated under.
        round_id: as it was rotated in.

    Returns:
        D H y / sqrt(d'), without the padding, shape (plan.dim,), float64, in levels. The same
        bits on every machine: partial sums are integers below 2^53, exact in any order.
    """
    transformed = walsh_hadamard(levels.astype(np.float64)[None, :])[0, : plan.dim]
    transformed *= round_signs(plan, round_id)[: plan.dim]
    transformed /= math.sqrt(plan.rotated_dim)
    return transformed


def walsh_hadamard(rows: RealMatrix) -> RealMatrix:
    """Return H x of every row, unnormalised, by the fast transform.

    Args:
        rows: shape (k, 2^e), float64, contiguous; used as working space.

    Returns:
        Shape (k, 2^e), float64; H is symmetric, H H = 2^e, in the natural (Sylvester) order.
    """
    n_rows, dim = rows.shape
    spare = np.empty_like(rows)
    # H of order a*b is the Kronecker product of H_a and H_b: one factor per pass, last first.
    inner = 1
    while inner < dim:
        order = min(_LARGEST_ORDER, dim // inner)
        if inner == 1:
            shape = (n_rows * dim // order, order)
            np.matmul(rows.reshape(shape), _sylvester(order), out=spare.reshape(shape))
        else:
            block = (n_rows * dim // (order * inner), order, inner)
            np.matmul(_sylvester(order), rows.reshape(block), out=spare.reshape(block))
        rows, spare = spare, rows
        inner *= order
    return rows


@lru_cache(maxsize=16)
def _sylvester(order: int) -> RealMatrix:
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.setflags(write=False)
    return matrix
