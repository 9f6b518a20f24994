"""Random bits and derived keys: the only place where mpcfl makes either.

Every secret bit comes from AES-256 in counter mode, keyed by the operating system
(`SystemBits`) or by a key that two parties agreed (`raw_keyed_bits`). Every derived
key carries a domain tag that names its purpose and version, so that no two uses share
a stream (RFC 5869 for HKDF; NIST SP 800-38A for the counter mode).

Assumes: `os.urandom` is a cryptographic generator. Does not protect against: a reader
of this process' memory; Python can't wipe it.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
TAG_VERSION = "mpcfl/v1"
# The keystream is read in pieces that stay in the second-level cache.
_CHUNK_BYTES = 1 << 18
# A view, as a slice of bytes would be a copy.
_ZEROS = memoryview(bytes(_CHUNK_BYTES))


class BitSource(Protocol):
    """A source of uniform bits; a test may inject its own, the public API takes none."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return ``count`` fresh uniform 64-bit words, shape (count,), uint64."""
        ...


class KeystreamBits:
    """The AES-256-CTR keystream of one key, read once from start to end.

    The key is never shown, compared or pickled. An object that crosses a fork would
    repeat its stream in both processes, so reading it in a child process is refused.
    """

    __slots__ = ("_encryptor", "_process_id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"an AES-256 key has {KEY_BYTES} bytes, not {len(key)}")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process_id = os.getpid()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words of the stream, shape (count,), uint64."""
        out = np.empty(count, dtype=np.uint64)
        self.fill(out)
        return out

    def fill(self, out: NDArray[Any]) -> None:
        """Write the next ``out.nbytes`` bytes of the stream into ``out`` (contiguous)."""
        if os.getpid() != self._process_id:
            raise RuntimeError("this bit source was made before a fork; make a new one")
        view = out.data.cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            piece = view[start : start + _CHUNK_BYTES]
            self._encryptor.update_into(_ZEROS[: len(piece)], piece)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __reduce__(self) -> Any:
        raise TypeError("a bit source must not leave its process")


class SystemBits(KeystreamBits):
    """Bits for secrets: a fresh 256-bit key from the operating system for every object."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(os.urandom(KEY_BYTES))


def raw_keyed_bits(key: bytes) -> KeystreamBits:
    """Return the stream of a given key: for masks under an agreed key, and for tests.

    Unsafe alone: two objects with one key give the same bits.
    """
    return KeystreamBits(key)


def domain_tag(purpose: str, *context: int | str) -> bytes:
    """Encode what a key or a hash is for; different arguments never encode alike.

    Args:
        purpose: the use, for example ``"crypten-mask"``.
        context: round, attempt, ranks and the like, in a fixed order per purpose.
    """
    parts = (TAG_VERSION, purpose, *(f"{type(c).__name__}:{c}" for c in context))
    encoded = (part.encode() for part in parts)
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def derive_key(secret: bytes, tag: bytes) -> bytes:
    """Derive a 32-byte key from an agreed secret for the use named by ``tag`` (HKDF-SHA-256)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=tag).derive(secret)
