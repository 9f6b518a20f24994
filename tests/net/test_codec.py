"""Words on the wire: what is packed comes back, in b bits each, whatever b and the length."""

from __future__ import annotations

import numpy as np
import pytest

from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.codec import WordCodec

ALL_BITS = range(8, 65)
LENGTHS = (0, 1, 7, 8, 9, 64, 1003)


def words_for(codec: WordCodec, length: int) -> np.ndarray:
    """Words with all bits of their machine type at random, also those above b."""
    stream = SystemBits().words(length + 1).view(np.uint8)
    return stream[: length * codec.dtype.itemsize].view(codec.dtype)


def planes(words: list[int], bits: int) -> bytes:
    """The layout as the module states it, word by word."""
    words = words + [0] * (-len(words) % 8)
    out, shift = b"", 0
    for width in (64, 32, 16, 8, 4, 2, 1):
        if not bits & width:
            continue
        parts = [word >> shift & ((1 << width) - 1) for word in words]
        if width >= 8:
            out += b"".join(part.to_bytes(width // 8, "little") for part in parts)
        else:
            count, per_byte = len(parts) * width // 8, 8 // width
            out += bytes(
                sum(parts[i + count * row] << (row * width) for row in range(per_byte))
                for i in range(count)
            )
        shift += width
    return out


@pytest.mark.parametrize("bits", ALL_BITS)
def test_words_come_back_without_the_bits_above_b(bits: int) -> None:
    codec = WordCodec(bits)
    for length in LENGTHS:
        words = words_for(codec, length)
        before = words.copy()
        packed = codec.pack(words).copy()
        back = np.full(length + 1, 77, dtype=codec.dtype)
        codec.unpack(packed, back[:length])
        assert np.array_equal(words, before)
        assert back[:length].tolist() == [int(word) % (1 << bits) for word in words]
        assert back[length] == 77, "only the words asked for are written"


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_word_takes_b_bits(bits: int) -> None:
    codec = WordCodec(bits)
    for length in LENGTHS:
        size = len(codec.pack(words_for(codec, length)))
        assert size == codec.packed_bytes(length)
        assert bits * length <= 8 * size < bits * (length + 8) or length == size == 0


@pytest.mark.parametrize("bits", ALL_BITS)
def test_layout_is_the_one_that_is_documented(bits: int) -> None:
    codec = WordCodec(bits)
    words = words_for(codec, 19)
    expected = planes([int(word) for word in words], bits)
    if codec.is_identity:
        expected = expected[: 19 * bits // 8]
    assert codec.pack(words).tobytes() == expected


@pytest.mark.parametrize(
    ("bits", "words", "packed"),
    [
        (12, [0xABC, 0x123, 4, 5, 6, 7, 8, 0xFFF], "bc2304050607" + "08ff" + "0a01" + "00f0"),
        (9, [0x1FF, 0x101, 0x0FF, 0, 0, 0, 0, 0x180], "ff01ff0000000080" + "83"),
        (20, [0xABCDE] + [0] * 7, "debc" + "00" * 14 + "0a000000"),
    ],
)
def test_layout_by_hand(bits: int, words: list[int], packed: str) -> None:
    codec = WordCodec(bits)
    assert codec.pack(np.array(words, dtype=codec.dtype)).tobytes().hex() == packed


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_nothing_is_copied_where_b_fills_its_machine_word(bits: int) -> None:
    codec = WordCodec(bits)
    words = words_for(codec, 9)
    assert codec.is_identity
    assert np.shares_memory(codec.pack(words), words)


@pytest.mark.parametrize("bits", [9, 20, 31, 33, 63])
def test_packed_bytes_may_lie_anywhere_in_memory(bits: int) -> None:
    codec = WordCodec(bits)
    words = words_for(codec, 24)
    packed = codec.pack(words)
    shifted = np.empty(len(packed) + 1, dtype=np.uint8)[1:]
    shifted[:] = packed
    straight, odd = (np.empty(24, dtype=codec.dtype) for _ in range(2))
    codec.unpack(packed, straight)
    codec.unpack(shifted, odd)
    assert np.array_equal(straight, odd)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_reduction_keeps_the_residue(bits: int) -> None:
    codec = WordCodec(bits)
    words = words_for(codec, 11)
    expected = [int(word) % (1 << bits) for word in words]
    codec.reduce(words, words)
    assert words.tolist() == expected
