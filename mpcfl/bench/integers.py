"""The integers that every cell adds up, and their exact sum.

Public test vectors, equal on every run, on every machine and for every backend and peer: SHAKE-128
of a label that names the workload and the rank, repeated in longer vectors. They are no secrets
and protect none.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mpcfl.bench.record import Parameters
from mpcfl.secagg.base import IntVector, Levels

_LABEL = "mpcfl/bench/v2"
# Vectors repeat after this many integers, so that every rank can afford to make those of all.
# A prime: no chunk, slice or block begins at a multiple of it, so a misplaced one is seen.
_PERIOD = 65_521


def cell_levels(parameters: Parameters, rank: int) -> Levels:
    """Return a rank's integers, shape (dim,), in the cell's dtype; the same on every machine.

    They fill the ring as far as the sum of all parties surely does not wrap.
    """
    return _repeat(_one_period(parameters, rank), parameters)


def expected_sum(parameters: Parameters) -> Levels:
    """Return the exact sum of all ranks' integers, shape (dim,), in the cell's dtype."""
    periods = (_one_period(parameters, rank) for rank in range(parameters.parties))
    return _repeat(sum(periods, np.zeros(1, dtype=np.int64)), parameters)


def _one_period(parameters: Parameters, rank: int) -> IntVector:
    workload = f"{parameters.parties}/{parameters.dim}/{parameters.modulus_bits}"
    stream = hashlib.shake_128(f"{_LABEL}/{workload}/{rank}".encode())
    words = np.frombuffer(stream.digest(8 * min(parameters.dim, _PERIOD)), dtype="<i8")
    headroom_bits = (parameters.parties - 1).bit_length()
    return words.astype(np.int64) >> np.int64(64 - parameters.modulus_bits + headroom_bits)


def _repeat(period: IntVector, parameters: Parameters) -> Levels:
    # Narrowing is exact: the grid refuses int32 for more than 32 bits.
    levels: Levels = np.resize(period, parameters.dim).astype(parameters.dtype)
    return levels
