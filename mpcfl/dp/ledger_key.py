"""The Ed25519 key (RFC 8032) by which a party vouches for the head of its ledger.

The private key lies beside the ledger, readable by its owner only; the public one is in the
ledger. Whoever can read the file can sign heads in the party's name, which harms nobody's
privacy: peers would at most remember a ledger as longer than it is, and refuse it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from mpcfl.dp.chain import replace_file
from mpcfl.dp.heads import SignedHead, head_message
from mpcfl.errors import LedgerError
from mpcfl.hazmat.bits import SystemBits

# 256 bits of Ed25519 key, in 64-bit words.
_KEY_WORDS = 4


class LedgerKey:
    """The signing key of one ledger, in a file that only its owner may read."""

    __slots__ = ("_private_key", "public_key")

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw().hex()

    @classmethod
    def make(cls, path: Path) -> Self:
        """Make a fresh key; it is on the disk when this returns.

        Raises:
            LedgerError: the disk refuses.
        """
        seed = SystemBits().words(_KEY_WORDS).tobytes()
        private_key = Ed25519PrivateKey.from_private_bytes(seed)
        content = private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            replace_file(path, content)
        except OSError as error:
            raise LedgerError(f"{path}: can't write the ledger's key: {error.strerror}") from None
        return cls(private_key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key.

        Raises:
            LedgerError: there is none, or the file holds something else.
        """
        try:
            private_key: PrivateKeyTypes | None = serialization.load_pem_private_key(
                path.read_bytes(), password=None
            )
        except OSError as error:
            raise LedgerError(
                f"{path}: can't read the ledger's key: {error.strerror}; restore it from a copy"
            ) from None
        except (ValueError, TypeError):
            private_key = None
        if not isinstance(private_key, Ed25519PrivateKey):
            raise LedgerError(f"{path}: this is not a ledger's key; restore it from a copy")
        return cls(private_key)

    def sign(self, identity: str, head: tuple[int, str]) -> SignedHead:
        """Return the head of this key's ledger, signed."""
        length, digest = head
        message = head_message(identity, self.public_key, length, digest)
        signature = self._private_key.sign(message).hex()
        return SignedHead(identity, self.public_key, length, digest, signature)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key must not leave its process")


def key_path(ledger: Path) -> Path:
    """Return where the key of a ledger lies: beside it."""
    return ledger.with_suffix(".key")
