"""Vectors of words of b bits as one string of bits, as if nothing had been packed.

A backend may pack its words in planes (`net/codec.py`), where the bits of one word lie far
apart. The checks of this audit look at words, so what was packed is unpacked first and laid out
again word by word, least significant bit first, b bits each. Not a bit of a word is lost.
"""

from __future__ import annotations

import numpy as np

from mpcfl.net.codec import WORDS_PER_GROUP, WordCodec, Words
from mpcfl.net.transport import Block

_BYTE_BITS = 8


def bit_string(words: Words, bits: int) -> bytes:
    """Return the low ``bits`` of each word, one word after the other, the last byte padded.

    Args:
        words: shape (n,), of an unsigned machine type.
        bits: 1 to the width of that type.
    """
    width = words.dtype.itemsize * _BYTE_BITS
    little = np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<")))
    if bits == width:
        return little.tobytes()
    flat = np.unpackbits(little.view(np.uint8), bitorder="little").reshape(-1, width)
    return np.packbits(flat[:, :bits], bitorder="little").tobytes()


def unpacked_bits(block: Block, codec: WordCodec | None) -> bytes:
    """Return a block of packed words as `bit_string` does; as it is where nothing is packed.

    The words that fill up the last group of eight are there too.
    """
    if codec is None or codec.is_identity:
        return block.tobytes()
    words = np.zeros(len(block) // codec.bits * WORDS_PER_GROUP, dtype=codec.dtype)
    codec.unpack(block, words)
    return bit_string(words, codec.bits)


def string_bytes(n_words: int, bits: int) -> int:
    """Return the length of a `bit_string`."""
    return -(-n_words * bits // _BYTE_BITS)
