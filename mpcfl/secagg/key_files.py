"""The files of a threshold key: one sealed share per party, and the public part by itself.

A share's file holds the public part in the clear and the share sealed with AES-256-GCM, under a
key that scrypt (RFC 7914) makes from the party's passphrase and a fresh salt. Everything in the
clear is authenticated together with the share, so nobody can attach it to another key.

Assumes: the passphrase can't be guessed; who steals a file may try guesses at the price of
128 MiB and some tenths of a second each. What is in the clear has been checked for its form, and
once the share is open, for its origin. Does not protect against: a reader of this process'
memory, which Python can't wipe; loss of the file or the passphrase, for which there is no remedy
but a new ceremony.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.bits import KEY_BYTES, SystemBits
from mpcfl.hazmat.threshold_key import KeyShare, ThresholdKey
from mpcfl.net.private_file import read_key_file, write_key_file
from mpcfl.secagg.key_documents import (
    PUBLIC_KIND,
    SCHEMA,
    SHARE_KIND,
    NamedKey,
    PublicFile,
    PublicPart,
    ScryptPart,
    ShareFile,
    check_share,
    encode,
    named_key_of,
    parse,
)

PUBLIC_NAME = "public.json"
SHARE_SUFFIX = ".share"
_SALT_BYTES = 16
# 96 bits (SP 800-38D, section 5.2.1.1); each key seals one message.
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class ScryptCost:
    """What one guess at a passphrase costs: 128 n r bytes of memory, p times over."""

    n: int
    r: int
    p: int


# The first choice of OWASP's Password Storage Cheat Sheet: 128 MiB.
_COST = ScryptCost(n=1 << 17, r=8, p=1)


def share_path(folder: Path, party: str) -> Path:
    """Return where a party's key share lies in a folder."""
    return folder / f"{party}{SHARE_SUFFIX}"


def write_public_file(path: Path, named: NamedKey) -> None:
    """Write the public part of a threshold key.

    Raises:
        KeyFileError: ``path`` exists already, or the disk refuses.
    """
    document = PublicFile(kind=PUBLIC_KIND, schema=SCHEMA, public=PublicPart.of(named))
    write_key_file(path, encode(document), secret=False)


def read_public_file(path: Path) -> NamedKey:
    """Read the public part of a threshold key.

    Raises:
        KeyFileError: the file can't be read, is damaged or of another kind or schema.
    """
    document = parse(path, read_key_file(path, secret=False), PUBLIC_KIND, PublicFile)
    return named_key_of(path, document)


def write_key_share(path: Path, share: KeyShare, parties: tuple[str, ...], passphrase: str) -> None:
    """Seal a party's share with its passphrase into a new file of mode 0600.

    Args:
        path: of the file.
        share: the party's.
        parties: names of all parties, in the order of their ranks.
        passphrase: the party's; its strength is checked where it is chosen (`ceremony.py`).

    Raises:
        KeyFileError: ``path`` exists already, or the disk refuses.
    """
    nonce = _random_bytes(_NONCE_BYTES)
    scrypt = ScryptPart(n=_COST.n, r=_COST.r, p=_COST.p, salt=_random_bytes(_SALT_BYTES).hex())
    document = ShareFile(
        kind=SHARE_KIND,
        schema=SCHEMA,
        public=PublicPart.of(NamedKey(share.key, parties)),
        party=parties[share.index - 1],
        index=share.index,
        scrypt=scrypt,
        nonce=nonce.hex(),
        sealed="00",
    )
    content = share.raw_value().to_bytes(_share_bytes(share.key), "big")
    cipher = AESGCM(_passphrase_key(passphrase, scrypt))
    sealed = cipher.encrypt(nonce, content, document.associated_data())
    write_key_file(path, encode(document.model_copy(update={"sealed": sealed.hex()})), secret=True)


def load_key_share(path: Path, passphrase: str, expected: ThresholdKey | None = None) -> KeyShare:
    """Open a party's own share.

    Args:
        path: of the file.
        passphrase: that it was sealed with.
        expected: the key of the session, where it is known already.

    Raises:
        KeyFileError: the file can't be read, others may read it, it is damaged, of another kind,
            schema or key; or the passphrase is wrong, which reads the same as a changed file.
    """
    document = _read_share_file(path)
    named = named_key_of(path, document)
    if expected is not None and named.key != expected:
        raise KeyFileError(
            f"{path}: a share of another key (public key {named.key.public_key.fingerprint[:16]}) "
            f"than the session's ({expected.public_key.fingerprint[:16]}); use the files of one "
            "ceremony at all parties"
        )
    value = _open_sealed(path, document, passphrase)
    try:
        share = KeyShare(named.key, document.index, value)
        share.check()
    except ConfigError as error:
        raise KeyFileError(f"{path}: {error}") from None
    return share


def _read_share_file(path: Path) -> ShareFile:
    document = parse(path, read_key_file(path, secret=True), SHARE_KIND, ShareFile)
    check_share(path, document)
    return document


def _open_sealed(path: Path, document: ShareFile, passphrase: str) -> int:
    cipher = AESGCM(_passphrase_key(passphrase, document.scrypt))
    nonce, sealed = bytes.fromhex(document.nonce), bytes.fromhex(document.sealed)
    try:
        content = cipher.decrypt(nonce, sealed, document.associated_data())
    # The latter for a nonce of a length that the cipher does not take.
    except (InvalidTag, ValueError):
        raise KeyFileError(
            f"{path}: the passphrase is wrong, or the file was changed; try again, or restore the "
            "file from a copy"
        ) from None
    return int.from_bytes(content, "big")


def _passphrase_key(passphrase: str, cost: ScryptPart) -> bytes:
    # The same characters may be typed as different code points on different machines.
    typed = unicodedata.normalize("NFKC", passphrase).encode("utf-8", "surrogatepass")
    salt = bytes.fromhex(cost.salt)
    return Scrypt(salt=salt, length=KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(typed)


def _random_bytes(count: int) -> bytes:
    return SystemBits().words(-(-count // 8)).tobytes()[:count]


def _share_bytes(key: ThresholdKey) -> int:
    """Return a length that holds every share of the key, so that none shows its own."""
    return (key.public_key.square.bit_length() + 7) // 8
