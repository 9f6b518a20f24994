"""Who a party is: an Ed25519 key pair (RFC 8032) that outlives its runs.

The private key lies in a file that only its owner may read (PKCS #8 in PEM, not encrypted); the
public one goes to the other parties, who pin it in their party files (`parties/party_file.py`).
An identity signs handshakes (`handshake.py`) and views of the roster, never data. What is signed
begins with a domain tag, so that no signature passes for one of another use.

Assumes: public keys were compared over a channel that the network's owner can't change (in
person, by phone). Does not protect against: whoever can read the file, and who can then take the
party's place in later runs. Runs that are over stay closed to them: no key of a run comes from it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from mpcfl.errors import AuthenticationError, KeyFileError
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.pair_secrets import Secret
from mpcfl.net.private_file import read_key_file, write_key_file

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
# 256 bits of Ed25519 key, in 64-bit words.
_KEY_WORDS = 4
_PUBLIC_KEY = re.compile(r"ed25519:([0-9a-f]{64})", re.ASCII)


class Identity(Secret):
    """The key pair of one party. Secret.

    Attributes:
        public_key: 32 bytes; for everybody.
    """

    __slots__ = ("_private_key", "public_key")

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw()

    @classmethod
    def new(cls) -> Self:
        """Make a fresh identity."""
        seed = SystemBits().words(_KEY_WORDS).tobytes()
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an identity that `save` wrote.

        Raises:
            KeyFileError: it can't be read, others than its owner could read it, or it holds
                something else.
        """
        content = read_key_file(path, secret=True)
        try:
            key: PrivateKeyTypes | None = serialization.load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(
                f"{path}: this is no identity; restore it from a copy, or make one and give its "
                f"public key to the other parties: mpcfl identity new {path}"
            )
        return cls(key)

    def save(self, path: Path) -> None:
        """Write a new file that only its owner may read (mode 0600); whole, or not at all.

        Raises:
            KeyFileError: the file exists already, or the disk refuses.
        """
        content = self._private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_key_file(path, content, secret=True)

    def sign(self, message: bytes) -> bytes:
        """Return this identity's signature, 64 bytes, of what begins with a domain tag."""
        return self._private_key.sign(message)


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Return if the owner of ``public_key`` signed ``message``.

    Raises:
        AuthenticationError: it did not; the caller knows whom to name.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise AuthenticationError from None


def public_key_text(public_key: bytes) -> str:
    """Return a public key as people pass it on: ``ed25519:`` and 64 hex digits."""
    return f"ed25519:{public_key.hex()}"


def read_public_key(text: str) -> bytes:
    """Return the 32 bytes that `public_key_text` showed.

    Raises:
        ValueError: it is not such a text; there is one spelling only.
    """
    found = _PUBLIC_KEY.fullmatch(text)
    if found is None:
        raise ValueError(
            "a public key is written ed25519: and 64 hex digits in lower case, as "
            "mpcfl identity show prints it"
        )
    return bytes.fromhex(found[1])
