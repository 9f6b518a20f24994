"""Slots in plaintexts: exact sums at both ends of the range, no carry, and what is refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpcfl.errors import ConfigError, ProtocolError, WrapDetected
from mpcfl.hazmat.bits import SystemBits
from mpcfl.hazmat.packing import SlotLayout, pack, unpack

WIDTHS = (8, 9, 16, 20, 31, 32, 33, 48, 63, 64)
INPUTS = (1, 2, 3, 8, 1000)
KEY_BITS = (512, 2048, 3072)


def values_of(modulus_bits: int, count: int) -> NDArray[np.int64]:
    """Uniform values of the whole range, both of its ends among them."""
    values = SystemBits().words(count).view(np.int64) >> (64 - modulus_bits)
    ends = [-(1 << (modulus_bits - 1)), (1 << (modulus_bits - 1)) - 1]
    values[: min(2, count)] = ends[: min(2, count)]
    return values


def centred(total: int, modulus_bits: int) -> int:
    half = 1 << (modulus_bits - 1)
    return (total + half) % (1 << modulus_bits) - half


def slots_of(plaintexts: list[int], layout: SlotLayout) -> list[int]:
    """All slots by plain integer arithmetic, the definition of the layout."""
    mask = (1 << layout.slot_bits) - 1
    return [
        plaintext >> (slot * layout.slot_bits) & mask
        for plaintext in plaintexts
        for slot in range(layout.slots)
    ]


@pytest.mark.parametrize("key_bits", KEY_BITS)
@pytest.mark.parametrize("n_inputs", INPUTS)
@pytest.mark.parametrize("modulus_bits", WIDTHS)
def test_sums_at_both_ends_of_the_range_never_carry(
    modulus_bits: int, n_inputs: int, key_bits: int
) -> None:
    """All parties bring the lowest or the highest value, so that a carry would hit a neighbor."""
    layout = SlotLayout(modulus_bits, n_inputs, key_bits - 1)
    lowest, highest = -(1 << (modulus_bits - 1)), (1 << (modulus_bits - 1)) - 1
    values = np.array([lowest, highest] * (layout.slots + 1), dtype=np.int64)
    summed = [n_inputs * plaintext for plaintext in pack(values, layout)]
    full = n_inputs * ((1 << modulus_bits) - 1)
    assert slots_of(summed, layout)[: values.size] == [0, full] * (layout.slots + 1)
    expected = [centred(n_inputs * int(value), modulus_bits) for value in values]
    assert unpack(summed, layout, values.size, n_inputs).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_unpacked_sums_are_the_centred_sums(data: st.DataObject) -> None:
    modulus_bits = data.draw(st.sampled_from(WIDTHS))
    n_inputs = data.draw(st.sampled_from((1, 2, 3, 8)))
    plaintext_bits = data.draw(st.sampled_from(KEY_BITS)) - 1
    layout = SlotLayout(modulus_bits, n_inputs, plaintext_bits, data.draw(st.integers(0, 3)))
    size = data.draw(st.integers(0, 2 * layout.slots + 1))
    half = 1 << (modulus_bits - 1)
    value = st.one_of(st.integers(-half, half - 1), st.sampled_from((-half, -1, 0, half - 1)))
    pattern = st.lists(value, min_size=1, max_size=7)
    patterns = data.draw(st.lists(pattern, min_size=1, max_size=n_inputs))
    vectors = [np.resize(np.array(values, dtype=np.int64), size) for values in patterns]
    packed = [pack(vector, layout) for vector in vectors]
    sums = [sum(plaintexts) for plaintexts in zip(*packed, strict=True)]
    columns = zip(*(vector.tolist() for vector in vectors), strict=True)
    expected = [centred(sum(column), modulus_bits) for column in columns]
    assert unpack(sums, layout, size, len(vectors)).tolist() == expected


@pytest.mark.parametrize("modulus_bits", WIDTHS)
def test_values_lie_where_the_layout_says(modulus_bits: int) -> None:
    layout = SlotLayout(modulus_bits, 5, 1023)
    values = values_of(modulus_bits, 2 * layout.slots - 1)
    plaintexts = pack(values, layout)
    offset = 1 << (modulus_bits - 1)
    # The slot behind the last value is zero, not the offset.
    assert slots_of(plaintexts, layout) == [int(value) + offset for value in values] + [0]
    assert all(plaintext < 1 << 1023 for plaintext in plaintexts)


def test_int32_packs_as_int64() -> None:
    layout = SlotLayout(32, 3, 2047)
    values = values_of(32, 1000)
    assert pack(values.astype(np.int32), layout) == pack(values, layout)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_long_vectors_are_packed_in_pieces_that_fit_together(dtype: Any) -> None:
    layout = SlotLayout(17, 2, 511)
    values = values_of(17, 300_001).astype(dtype)
    plaintexts = pack(values, layout)
    assert len(plaintexts) == layout.n_plaintexts(values.size)
    assert np.array_equal(unpack(plaintexts, layout, values.size, 1), values)


def test_geometry_of_the_reference_setting() -> None:
    """16 bits, 8 parties: 20-bit slots, 102 in a plaintext of a 2048-bit key."""
    layout = SlotLayout(16, 8, 2047)
    assert (layout.slot_bits, layout.slots, layout.n_plaintexts(1_000_000)) == (20, 102, 9804)
    assert SlotLayout(64, 1000, 2047).slot_bits == 75
    assert SlotLayout(16, 8, 2047).n_plaintexts(0) == 0
    assert SlotLayout(16, 1, 2047, guard_bits=0).slot_bits == 16


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ((7, 2, 2047), "modulus_bits"),
        ((65, 2, 2047), "modulus_bits"),
        ((16, 0, 2047), "n_inputs"),
        ((16, 1 << 33, 2047), "n_inputs"),
        ((16, 2, 2047, -1), "guard_bits"),
        ((64, 1000, 74), "key_bits"),
        ((16, 2, 0), "key_bits"),
    ],
)
def test_layouts_that_can_not_work_are_refused(arguments: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        SlotLayout(*arguments)


@pytest.mark.parametrize("modulus_bits", [8, 31, 33, 63])
@pytest.mark.parametrize("wrong", ["below", "above"])
def test_a_value_out_of_range_is_refused_not_wrapped(modulus_bits: int, wrong: str) -> None:
    half = 1 << (modulus_bits - 1)
    values = np.zeros(200_000, dtype=np.int64)
    values[-1] = -half - 1 if wrong == "below" else half
    with pytest.raises(WrapDetected, match=f"{modulus_bits} bits"):
        pack(values, SlotLayout(modulus_bits, 2, 2047))


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(3, dtype=np.int16)])
def test_other_types_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match="int32 or int64"):
        pack(values, SlotLayout(16, 2, 2047))


def test_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="vector"):
        pack(np.zeros((2, 3), dtype=np.int64), SlotLayout(16, 2, 2047))


@pytest.mark.parametrize("modulus_bits", WIDTHS)
def test_one_too_many_in_any_slot_is_found(modulus_bits: int) -> None:
    """The highest honest sum passes; one more does not, though no guard bit is set."""
    layout = SlotLayout(modulus_bits, 5, 1023)
    values = np.full(layout.slots, (1 << (modulus_bits - 1)) - 1, dtype=np.int64)
    (packed,) = pack(values, layout)
    unpack([3 * packed], layout, values.size, 3)
    for slot in range(layout.slots):
        with pytest.raises(ProtocolError, match="larger than the sum"):
            unpack([3 * packed + (1 << slot * layout.slot_bits)], layout, values.size, 3)


@pytest.mark.parametrize("modulus_bits", WIDTHS)
def test_guard_bits_are_found(modulus_bits: int) -> None:
    layout = SlotLayout(modulus_bits, 4, 1023, guard_bits=2)
    (packed,) = pack(np.zeros(layout.slots, dtype=np.int64), layout)
    for guard in (1, 2):
        with pytest.raises(ProtocolError, match="larger than the sum"):
            unpack([packed + (1 << layout.slot_bits - guard)], layout, layout.slots, 4)


@pytest.mark.parametrize("modulus_bits", [16, 64])
def test_bits_above_the_last_slot_are_found(modulus_bits: int) -> None:
    layout = SlotLayout(modulus_bits, 4, 2047)
    (packed,) = pack(np.zeros(layout.slots, dtype=np.int64), layout)
    for bit in (layout.used_bits, 2047, 5000):
        with pytest.raises(ProtocolError, match="no integer of"):
            unpack([packed + (1 << bit)], layout, layout.slots, 4)
    with pytest.raises(ProtocolError, match="no integer of"):
        unpack([-1], layout, layout.slots, 4)


@pytest.mark.parametrize("modulus_bits", [16, 64])
def test_unused_slots_must_be_zero(modulus_bits: int) -> None:
    layout = SlotLayout(modulus_bits, 4, 2047)
    size = layout.slots + 3
    first, last = pack(np.zeros(size, dtype=np.int64), layout)
    assert np.array_equal(unpack([first, last], layout, size, 1), np.zeros(size))
    for slot in (3, layout.slots - 1):
        with pytest.raises(ProtocolError, match="behind the last value"):
            unpack([first, last + (1 << slot * layout.slot_bits)], layout, size, 1)


def test_another_length_or_number_of_inputs_is_refused() -> None:
    layout = SlotLayout(16, 4, 2047)
    packed = pack(np.zeros(layout.slots, dtype=np.int64), layout)
    with pytest.raises(ProtocolError, match="same layout"):
        unpack(packed, layout, layout.slots + 1, 4)
    with pytest.raises(ProtocolError, match="number of parties"):
        unpack(packed, layout, layout.slots, 5)
    with pytest.raises(ProtocolError, match="number of parties"):
        unpack(packed, layout, layout.slots, 0)


def test_integers_of_gmpy2_unpack_alike() -> None:
    gmpy2 = pytest.importorskip("gmpy2")
    layout = SlotLayout(20, 3, 2047)
    values = values_of(20, 500)
    plaintexts = [gmpy2.mpz(plaintext) for plaintext in pack(values, layout)]
    assert np.array_equal(unpack(plaintexts, layout, values.size, 1), values)


def test_memory_beside_input_and_output_is_bounded() -> None:
    """Two million values take 16 MB as int64; the work on the way stays below 6 MB."""
    layout = SlotLayout(16, 8, 2047)
    values = values_of(16, 2_000_000)
    tracemalloc.start()
    try:
        plaintexts = pack(values, layout)
        kept, peak = tracemalloc.get_traced_memory()
        assert peak - kept < 6 << 20
        tracemalloc.reset_peak()
        sums = unpack(plaintexts, layout, values.size, 1)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - kept - sums.nbytes < 6 << 20
    finally:
        tracemalloc.stop()
