"""Fixed-width encodings of Paillier keys and ciphertexts, refused unless exact.

Integers are unsigned and big-endian. A ciphertext takes twice the bytes of the modulus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpcfl.errors import ProtocolError
from mpcfl.net.codec import WordCodec
from mpcfl.secagg.base import IntVector, Levels, centre


@dataclass(frozen=True, slots=True)
class CiphertextCodec:
    """Ciphertexts under one public modulus n: integers in (0, n^2)."""

    modulus: int

    @property
    def width_bytes(self) -> int:
        """Bytes of one ciphertext."""
        return 2 * ((self.modulus.bit_length() + 7) // 8)

    def encode(self, ciphertexts: Sequence[int]) -> bytes:
        """Return the ciphertexts, one after the other."""
        width = self.width_bytes
        return b"".join(ciphertext.to_bytes(width, "big") for ciphertext in ciphertexts)

    def decode(self, message: bytes, count: int) -> list[int]:
        """Return ``count`` ciphertexts.

        Raises:
            ProtocolError: the length is not exact, or an integer is no ciphertext.
        """
        width = self.width_bytes
        if len(message) != count * width:
            raise ProtocolError(
                f"{len(message)} bytes of ciphertext came, {count * width} were expected"
            )
        pieces = (message[i : i + width] for i in range(0, len(message), width))
        ciphertexts = [int.from_bytes(piece, "big") for piece in pieces]
        if not all(0 < ciphertext < self.modulus**2 for ciphertext in ciphertexts):
            raise ProtocolError("a ciphertext lies outside (0, n^2); it is from another key")
        return ciphertexts


def encode_public_key(modulus: int, key_bits: int) -> bytes:
    """Return the modulus in key_bits / 8 bytes."""
    return modulus.to_bytes(key_bits // 8, "big")


def decode_public_key(message: bytes, key_bits: int) -> int:
    """Return the modulus.

    Raises:
        ProtocolError: the length or the number of bits is not that of the settings.
    """
    modulus = int.from_bytes(message, "big")
    if len(message) != key_bits // 8 or modulus.bit_length() != key_bits or modulus % 2 == 0:
        raise ProtocolError(f"the public key that came is not an odd number of {key_bits} bits")
    return modulus


def raw_encode_primes(p: int, q: int, key_bits: int) -> bytes:
    """Return both primes in key_bits / 16 bytes each. Secret: for sealed channels only."""
    return b"".join(prime.to_bytes(key_bits // 16, "big") for prime in (p, q))


def raw_decode_primes(message: bytes, key_bits: int) -> tuple[int, int]:
    """Return both primes.

    Raises:
        ProtocolError: the length is not exact.
    """
    width = key_bits // 16
    if len(message) != 2 * width:
        raise ProtocolError("the private key that came has the wrong length")
    return int.from_bytes(message[:width], "big"), int.from_bytes(message[width:], "big")


def encode_opened(values: Levels, modulus_bits: int) -> bytes:
    """Return opened sums, centred mod 2^b, packed to b bits each."""
    codec = WordCodec(modulus_bits)
    words = np.ascontiguousarray(values).astype(codec.dtype)
    codec.reduce(words, words)
    return codec.pack(words).tobytes()


def decode_opened(message: bytes, count: int, modulus_bits: int) -> IntVector:
    """Return ``count`` opened sums, centred mod 2^b, shape (count,), int64.

    Raises:
        ProtocolError: the length is not exact.
    """
    codec = WordCodec(modulus_bits)
    if len(message) != codec.packed_bytes(count):
        raise ProtocolError(
            f"{len(message)} bytes of sum came, {codec.packed_bytes(count)} were expected"
        )
    words = np.empty(count, dtype=codec.dtype)
    codec.unpack(np.frombuffer(message, dtype=np.uint8), words)
    return centre(words.astype(np.int64), modulus_bits)
