"""Many small integers in one Paillier plaintext: slots wide enough for the sum of all parties.

Value i of a vector goes to plaintext ``i // slots``, bits ``[s w, (s + 1) w)`` with
``s = i % slots`` and ``w = b + ceil(log2 n) + guard``. Values travel in offset binary,
``v + 2^(b-1)`` in ``[0, 2^b)``: a sum of n of them is at most ``n (2^b - 1)``, which is below
``2^(b + ceil(log2 n))``, and never carries into the next slot, so adding plaintexts adds all
slots at once. Slots behind the last value are zero, in every plaintext and so in every sum.

The work is done by columns: slot s of many plaintexts is one row, shifted and OR-ed into rows of
64-bit words. It goes over pieces of bounded size, beside which only input and output take memory.

Assumes that all parties pack honestly. `unpack` refuses sums that honest packing can't give, which
finds faults, layouts that differ and wrong keys. It can't find a party that packs values out of
range on purpose and keeps every slot of the sum within its limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import ConfigError, ProtocolError, WrapDetected

# Values of one piece: 1 MiB as words of 64 bits.
_PIECE_VALUES = 1 << 17
_WORD_BITS = 64
_WORD_BYTES = 8
_MIN_MODULUS_BITS = 8
# With these limits a slot has at most 64 + 32 + 16 bits, less than two words.
_MAX_MODULUS_BITS = 64
_MAX_INPUTS = 1 << 32
_MAX_GUARD_BITS = 16

_Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Where each value lies in the plaintexts; public, equal at all parties.

    Attributes:
        modulus_bits: b, 8 to 64; values are centred in [-2^(b-1), 2^(b-1)).
        n_inputs: the most vectors that are ever added up.
        plaintext_bits: every integer of so many bits is a plaintext: the key's bits less one.
        guard_bits: spare bits on top of each slot, always zero in an honest sum.

    Raises:
        ConfigError: a number is out of range, or no plaintext holds even one slot.
    """

    modulus_bits: int
    n_inputs: int
    plaintext_bits: int
    guard_bits: int = 1

    def __post_init__(self) -> None:
        _check_between("modulus_bits", self.modulus_bits, _MIN_MODULUS_BITS, _MAX_MODULUS_BITS)
        _check_between("n_inputs", self.n_inputs, 1, _MAX_INPUTS)
        _check_between("guard_bits", self.guard_bits, 0, _MAX_GUARD_BITS)
        if self.slots < 1:
            raise ConfigError(
                f"a slot for the sum of {self.n_inputs} values of {self.modulus_bits} bits takes "
                f"{self.slot_bits} bits, a plaintext has {self.plaintext_bits}; use a larger "
                "key_bits, or a smaller modulus_bits or fewer parties"
            )

    @property
    def slot_bits(self) -> int:
        """Width w of a slot: b + ceil(log2 n) + guard."""
        return self.modulus_bits + (self.n_inputs - 1).bit_length() + self.guard_bits

    @property
    def slots(self) -> int:
        """Values in one plaintext."""
        return self.plaintext_bits // self.slot_bits

    @property
    def used_bits(self) -> int:
        """Bits of a plaintext that belong to a slot; all above are zero."""
        return self.slots * self.slot_bits

    @property
    def words(self) -> int:
        """Whole 64-bit words that hold the used bits."""
        return -(-self.used_bits // _WORD_BITS)

    def n_plaintexts(self, n_values: int) -> int:
        """Return how many plaintexts ``n_values`` values take."""
        return -(-n_values // self.slots)


def _check_between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value} is not from {low} to {high}; choose one that is")


def pack(values: NDArray[np.signedinteger[Any]], layout: SlotLayout) -> list[int]:
    """Put a vector into plaintexts.

    Args:
        values: shape (n,), int32 or int64, centred in [-2^(b-1), 2^(b-1)); not changed.
        layout: the slots.

    Returns:
        ``layout.n_plaintexts(n)`` integers, each below 2^plaintext_bits. As secret as the values.

    Raises:
        WrapDetected: a value is out of range; it is refused, not wrapped.
        TypeError: ``values`` holds neither int32 nor int64.
        ValueError: it is no vector.
    """
    if values.dtype not in (np.int32, np.int64):
        raise TypeError(f"packed values must be int32 or int64, not {values.dtype}")
    if values.ndim != 1:
        raise ValueError(f"packed values must be a vector, not of shape {values.shape}")
    plaintexts: list[int] = []
    for start, stop in _pieces(values.size, layout):
        columns = _columns(values[start:stop], layout)
        content = memoryview(_merge(columns, layout).tobytes())
        width = layout.words * _WORD_BYTES
        plaintexts += [
            int.from_bytes(content[at : at + width], "little")
            for at in range(0, len(content), width)
        ]
    return plaintexts


def unpack(
    plaintexts: Sequence[int], layout: SlotLayout, n_values: int, n_inputs_summed: int
) -> NDArray[np.int64]:
    """Return the sums that lie in sums of plaintexts.

    Args:
        plaintexts: sums of ``n_inputs_summed`` plaintexts each, in the order of `pack`.
        layout: the slots that the summands were packed by.
        n_values: length of the vector.
        n_inputs_summed: how many vectors were added, 1 to ``layout.n_inputs``.

    Returns:
        The sums of the values, reduced to [-2^(b-1), 2^(b-1)) mod 2^b; shape (n_values,), int64.

    Raises:
        ProtocolError: another number of plaintexts than the vector takes, or a slot, or the bits
            outside the slots, hold what no honest sum has. Nothing is returned then.
    """
    if not 1 <= n_inputs_summed <= layout.n_inputs:
        raise ProtocolError(
            f"{n_inputs_summed} inputs were summed, the slots are made for 1 to "
            f"{layout.n_inputs}; all parties must use the same number of parties"
        )
    if len(plaintexts) != layout.n_plaintexts(n_values):
        raise ProtocolError(
            f"{len(plaintexts)} plaintexts came, {n_values} values take "
            f"{layout.n_plaintexts(n_values)}; all parties must use the same layout"
        )
    sums = np.empty(n_values, dtype=np.int64)
    for start, stop in _pieces(n_values, layout):
        first = start // layout.slots
        words = _to_words(plaintexts[first : first + layout.n_plaintexts(stop - start)], layout)
        columns = _split(words, layout, n_inputs_summed)
        _check_unused(columns, stop - start)
        _centre(columns, layout.modulus_bits, n_inputs_summed)
        _write_rows(columns.view(np.int64), sums[start:stop])
    return sums


def _pieces(n_values: int, layout: SlotLayout) -> Iterator[tuple[int, int]]:
    """Cut a vector into pieces that fill whole plaintexts."""
    step = max(1, _PIECE_VALUES // layout.slots) * layout.slots
    for start in range(0, n_values, step):
        yield start, min(start + step, n_values)


def _columns(values: NDArray[np.signedinteger[Any]], layout: SlotLayout) -> _Words:
    """Return the slots' content, shape (slots, plaintexts), in offset binary."""
    _check_range(values, layout.modulus_bits)
    n_whole, n_rest = divmod(values.size, layout.slots)
    columns = np.zeros((layout.slots, n_whole + (n_rest > 0)), dtype=np.uint64)
    signed = columns.view(np.int64)
    signed[:, :n_whole] = values[: n_whole * layout.slots].reshape(n_whole, layout.slots).T
    signed[:n_rest, n_whole:] = values[n_whole * layout.slots :, None]
    offset = np.uint64(1 << (layout.modulus_bits - 1))
    columns[:, :n_whole] += offset
    # Slots behind the last value stay zero.
    columns[:n_rest, n_whole:] += offset
    return columns


def _check_range(values: NDArray[np.signedinteger[Any]], modulus_bits: int) -> None:
    half = 1 << (modulus_bits - 1)
    if int(values.min()) < -half or int(values.max()) >= half:
        raise WrapDetected(
            f"a value lies outside the ring of {modulus_bits} bits, [-2^{modulus_bits - 1}, "
            f"2^{modulus_bits - 1}); use more modulus bits or smaller values"
        )


def _merge(columns: _Words, layout: SlotLayout) -> NDArray[np.uint64]:
    """Return the plaintexts as little-endian words, shape (plaintexts, words)."""
    rows = np.zeros((layout.words, columns.shape[1]), dtype="<u8")
    shifted = np.empty(columns.shape[1], dtype=np.uint64)
    for slot, column in enumerate(columns):
        word, offset = divmod(slot * layout.slot_bits, _WORD_BITS)
        np.left_shift(column, np.uint64(offset), out=shifted)
        rows[word] |= shifted
        # What was put in has b bits; the slot may go on, but only with zeros.
        if offset + layout.modulus_bits > _WORD_BITS:
            np.right_shift(column, np.uint64(_WORD_BITS - offset), out=shifted)
            rows[word + 1] |= shifted
    return np.ascontiguousarray(rows.T)


def _to_words(plaintexts: Sequence[int], layout: SlotLayout) -> _Words:
    """Return the words of the plaintexts, shape (words + 2, plaintexts), the last two zero."""
    used_bits = layout.used_bits
    if any(value < 0 or value.bit_length() > used_bits for value in plaintexts):
        raise ProtocolError(
            f"a decrypted sum is no integer of {used_bits} bits: it overflowed, or was made with "
            "another layout or key; all parties must use the same settings"
        )
    width = layout.words * _WORD_BYTES
    content = b"".join([int(value).to_bytes(width, "little") for value in plaintexts])
    rows = np.zeros((layout.words + 2, len(plaintexts)), dtype=np.uint64)
    rows[: layout.words] = np.frombuffer(content, dtype="<u8").reshape(-1, layout.words).T
    return rows


def _split(rows: _Words, layout: SlotLayout, n_inputs_summed: int) -> _Words:
    """Return the low 64 bits of each slot, shape (slots, plaintexts), none above its limit."""
    columns = np.empty((layout.slots, rows.shape[1]), dtype=np.uint64)
    limit = n_inputs_summed * ((1 << layout.modulus_bits) - 1)
    for slot in range(layout.slots):
        start = slot * layout.slot_bits
        low_bits = min(layout.slot_bits, _WORD_BITS)
        _take_bits(rows, start, low_bits, columns[slot])
        if layout.slot_bits > _WORD_BITS:
            high = np.empty(rows.shape[1], dtype=np.uint64)
            _take_bits(rows, start + _WORD_BITS, layout.slot_bits - _WORD_BITS, high)
            _check_wide(high, columns[slot], limit)
    if layout.slot_bits <= _WORD_BITS and int(columns.max()) > limit:
        raise _overflow()
    return columns


def _take_bits(rows: _Words, start: int, count: int, out: _Words) -> None:
    """Write bits [start, start + count) of each plaintext to ``out``; count is 1 to 64."""
    word, offset = divmod(start, _WORD_BITS)
    np.right_shift(rows[word], np.uint64(offset), out=out)
    if offset + count > _WORD_BITS:
        out |= rows[word + 1] << np.uint64(_WORD_BITS - offset)
    if count < _WORD_BITS:
        out &= np.uint64((1 << count) - 1)


def _check_wide(high: _Words, low: _Words, limit: int) -> None:
    """Refuse slots of more than one word that are above ``limit``."""
    limit_high, limit_low = (np.uint64(part) for part in divmod(limit, 1 << _WORD_BITS))
    if bool(np.any((high > limit_high) | ((high == limit_high) & (low > limit_low)))):
        raise _overflow()


def _overflow() -> ProtocolError:
    return ProtocolError(
        "a slot of a decrypted sum is larger than the sum of all inputs can be: a party packed "
        "with another layout, or values out of range; all parties must use the same settings"
    )


def _check_unused(columns: _Words, n_values: int) -> None:
    """Refuse anything but zero in the slots behind the last value."""
    n_unused = columns.size - n_values
    if n_unused and bool(columns[-n_unused:, -1].any()):
        raise ProtocolError(
            "a slot behind the last value of a decrypted sum is not zero; all parties must use "
            "vectors of the same length"
        )


def _centre(columns: _Words, modulus_bits: int, n_inputs_summed: int) -> None:
    """Take the offsets out of the sums, in place, and reduce them mod 2^b as signed integers."""
    offsets = n_inputs_summed << (modulus_bits - 1)
    columns -= np.uint64(offsets % (1 << _WORD_BITS))
    spare = np.int64(_WORD_BITS - modulus_bits)
    signed = columns.view(np.int64)
    signed <<= spare
    signed >>= spare


def _write_rows(columns: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Write the values in the order of the vector."""
    slots = columns.shape[0]
    n_whole, n_rest = divmod(out.size, slots)
    out[: n_whole * slots].reshape(n_whole, slots)[:] = columns[:, :n_whole].T
    out[n_whole * slots :] = columns[:n_rest, -1]
