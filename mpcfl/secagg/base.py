"""The contract of a secure sum: what every backend takes, returns and refuses.

All backends get the same signed integers and return the same sum, centred mod 2^b, bit for
bit; `plain_sum.py` is the oracle. Contract test: `tests/contract/test_secure_sum.py`; a
backend that is not in it is not registered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.config import Custody
from mpcfl.errors import OutOfOrder, WrapDetected
from mpcfl.net.transport import Transport
from mpcfl.secagg.salvage import Salvage

IntVector = NDArray[np.int64]
# What a sum takes: int32 or int64.
Levels = NDArray[np.signedinteger[Any]]
MIN_MODULUS_BITS = 8
MAX_MODULUS_BITS = 64
_INT32_BITS = 32
# 256 KiB of int64, a part of the second-level cache.
_PIECE_WORDS = 1 << 15


@dataclass(frozen=True, slots=True)
class SumSettings:
    """What a session of sums needs to know; public, equal at all ranks.

    Attributes:
        dim: length of every vector.
        modulus_bits: b; values and sums are centred in [-2^(b-1), 2^(b-1)).
        key_bits: size of a Paillier modulus, where the backend has one.
        custody: who holds the Paillier private key, where the backend has one.
        run_id: 16 random bytes in hex, bound into every derived key.
        neighbors: k, the ranks that each rank shares masks with, where the backend has masks;
            None means all others. Checked against the plan by `neighbors.resolve_neighbors`.
        precompute: make masks or randomizers for the next sum in the background, where the
            backend has any.
        threshold: t, the key shares that decrypt under custody `threshold`; None means more than
            half of them.
        checked: find a sum that was changed on its way; see `opening.open_sum`, which heeds it.
    """

    dim: int
    modulus_bits: int = 32
    key_bits: int = 3072
    custody: Custody = Custody.HOLDER
    run_id: str = ""
    neighbors: int | None = None
    precompute: bool = False
    threshold: int | None = None
    checked: bool = False


@dataclass(frozen=True, slots=True, order=True)
class SumId:
    """Which sum of a session: equal at all ranks, larger for each sum, never repeated.

    Attributes:
        round_id: the round, or the number of the sum where there are no rounds.
        attempt: at that round.
    """

    round_id: int
    attempt: int = 0

    @property
    def expected_next(self) -> SumId:
        """Return the sum that follows if this one comes through."""
        return SumId(self.round_id + 1)


FIRST_SUM = SumId(0)


def next_sum(last: SumId | None, wanted: SumId | None) -> SumId:
    """Return the sum to be made: the one that is wanted, or by default the one after the last.

    Raises:
        OutOfOrder: it is not later than the last one, whose masks and keys it would repeat.
    """
    if wanted is None:
        return FIRST_SUM if last is None else last.expected_next
    if last is not None and wanted <= last:
        raise OutOfOrder(
            f"round {wanted.round_id}, attempt {wanted.attempt} does not come after round "
            f"{last.round_id}, attempt {last.attempt}; every sum needs masks of its own"
        )
    return wanted


class Stages(Protocol):
    """The three stages of one attempt at a sum, at one rank.

    They are called in order, by all ranks together, once per attempt. A rank without data (an
    aggregator) passes ``None`` to `protect`; only backends whose custody has such a rank take
    it. What stages hand on is opaque.
    """

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Any:
        """Stage 5: turn this rank's integers into what may leave it. Nothing of them is sent yet.

        Args:
            levels: shape (dim,), int32 (rings of up to 32 bits) or int64; not changed, and to
                be left alone by the caller until `open` has returned.
            sum_id: names the sum in every key; by default the one after the last.

        Raises:
            WrapDetected: a value lies outside [-2^(b-1), 2^(b-1)); it is refused, not wrapped.
            OutOfOrder: the session was closed, or ``sum_id`` is not later than the last one.
        """
        ...

    def aggregate(self, protected: Any) -> Any:
        """Stage 6: turn all ranks' protected vectors into one protected sum."""
        ...

    def open(self, aggregated: Any) -> Levels:
        """Stage 7: return the sum of all inputs, centred mod 2^b, shape (dim,).

        It has the dtype of this rank's levels, int32 or int64. Every data party learns it. An
        aggregator does not: it gets an empty vector, shape (0,), int64.
        """
        ...


class SecureSum(Stages, Protocol):
    """One session of sums at one rank: keys are agreed once, any number of sums follow."""

    @property
    def parts(self) -> tuple[slice, ...]:
        """Return how an opened vector falls into parts that may become known one by one.

        In order, covering (dim,) once, equal at all ranks; some may be empty. At least one where
        dim is not 0.
        """
        ...

    def salvage(self) -> Salvage | None:
        """Return what this rank knows of the last sum, after an error of a stage or after `open`.

        Local: nothing is sent. Call it before `prepare`, the next `protect` or `close`, and before
        a vector that `open` returned is changed. A part is in it if and only if its sum can be
        read from what this rank holds.

        Returns:
            None where the backend can't tell; the sum must not be tried again then.
        """
        ...

    def prepare(self) -> None:
        """Return once all that the next sum needs ahead is ready; at once where that is nothing.

        Local: nothing is sent. Without ``settings.precompute`` there is nothing to wait for. To be
        called once the last sum is settled, as what is known of it may be forgotten then.
        """
        ...

    def close(self) -> None:
        """Forget all keys; the session can't be used afterwards."""
        ...


class BackendFactory(Protocol):
    """Opens a session at one rank; all ranks call it together. What a backend registers."""

    def __call__(self, transport: Transport, settings: SumSettings) -> SecureSum:
        """Agree keys over ``transport`` and return this rank's session."""
        ...


def check_levels(levels: Levels | None, settings: SumSettings) -> Levels:
    """Return ``levels`` as a contiguous vector, shape (dim,); refuse anything else.

    Raises:
        TypeError: there is no vector, or it holds neither int32 nor int64, or int32 that can't
            hold the sum, or some of its values are masked out.
        ValueError: its shape is not (dim,).
    """
    if levels is None:
        raise TypeError("this backend has no rank without data; every rank brings a vector")
    if isinstance(levels, np.ma.MaskedArray):
        raise TypeError("levels have masked values; fill them in, as they would be summed too")
    if levels.dtype not in (np.int32, np.int64):
        raise TypeError(f"levels must hold int32 or int64, not {levels.dtype}")
    if levels.dtype == np.int32 and settings.modulus_bits > _INT32_BITS:
        raise TypeError(f"modulus_bits = {settings.modulus_bits} needs int64, not int32")
    if levels.shape != (settings.dim,):
        raise ValueError(f"levels have shape {levels.shape}, the session takes ({settings.dim},)")
    return np.ascontiguousarray(levels)


def check_wide_levels(levels: Levels | None, settings: SumSettings) -> IntVector:
    """Return what `check_levels` returns as int64, which may be ``levels`` itself."""
    return check_levels(levels, settings).astype(np.int64, copy=False)


def to_offset_binary(levels: IntVector, modulus_bits: int) -> NDArray[np.uint64]:
    """Map signed values to ``v + 2^(b-1)``, so that sums of residues carry no sign.

    Adding plain residues mod 2^b would show how many summands were negative; offset values
    add up to the true sum plus a public constant.

    Args:
        levels: shape (dim,), int64.
        modulus_bits: b, 8 to 64.

    Returns:
        Values in [0, 2^b), shape (dim,), uint64.

    Raises:
        WrapDetected: a value lies outside [-2^(b-1), 2^(b-1)).
    """
    check_range(levels, modulus_bits)
    return levels.view(np.uint64) + np.uint64(1 << (modulus_bits - 1))


def from_offset_binary(total: NDArray[np.uint64], modulus_bits: int, n_inputs: int) -> IntVector:
    """Undo `to_offset_binary` for a sum of ``n_inputs`` vectors taken mod 2^64."""
    offset = np.uint64(n_inputs * (1 << (modulus_bits - 1)) % (1 << 64))
    return centre((total - offset).view(np.int64), modulus_bits)


def centre(total: IntVector, modulus_bits: int) -> IntVector:
    """Reduce int64 values to [-2^(b-1), 2^(b-1)) mod 2^b."""
    spare = np.int64(64 - modulus_bits)
    return (total << spare) >> spare


def check_range(levels: Levels, modulus_bits: int) -> None:
    """Refuse values outside [-2^(b-1), 2^(b-1)).

    Raises:
        WrapDetected: there is one.
    """
    if modulus_bits >= levels.dtype.itemsize * 8:
        return
    half = 1 << (modulus_bits - 1)
    # Both ends of a piece are found while it is in the cache.
    for start in range(0, levels.size, _PIECE_WORDS):
        piece = levels[start : start + _PIECE_WORDS]
        if int(piece.min()) < -half or int(piece.max()) >= half:
            raise WrapDetected(
                f"a value lies outside the ring of {modulus_bits} bits, [-2^{modulus_bits - 1}, "
                f"2^{modulus_bits - 1}); use more modulus bits or smaller values"
            )
