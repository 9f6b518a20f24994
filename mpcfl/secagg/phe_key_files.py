"""Paillier keys in the files of phe's command line `pheutil`, read and written without phe.

The format is JSON in the manner of a web key (RFC 7517): ``kty`` is "DAJ", ``alg`` "PAI-GN1",
integers are big-endian bytes in base64 for URLs, and a private key holds its primes and its
public key. A field ``mpcfl`` of ours, which phe ignores, remembers that a key has a generator for
short exponents (`PublicKey.has_generator`); a key from phe has none and is used with full ones.

Assumes that a public key's file comes from its owner: nobody else can check that a modulus has
two large primes, or that they have the form that the generator needs. The format keeps private
keys unencrypted, behind mode 0600 alone.
"""

from __future__ import annotations

import base64
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.paillier import PrivateKey, PublicKey
from mpcfl.net.private_file import read_key_file, write_key_file
from mpcfl.secagg.custody import check_key_bits

_TYPE = "DAJ"
_ALGORITHM = "PAI-GN1"
_OURS = "mpcfl"
_SCHEMA = 1
# Python's decoder would skip all other characters.
_BASE64_URL = re.compile(r"[A-Za-z0-9_-]+=*")


def write_public_key(path: Path, public_key: PublicKey) -> None:
    """Write a new public key file that mpcfl and phe can read.

    Raises:
        KeyFileError: ``path`` exists already, or the disk refuses.
    """
    write_key_file(path, _encode(_public_document(public_key)), secret=False)


def write_private_key(path: Path, private_key: PrivateKey) -> None:
    """Write a new private key file that mpcfl and phe can read: mode 0600, not encrypted.

    Raises:
        KeyFileError: ``path`` exists already, or the disk refuses.
    """
    p, q = private_key.raw_primes()
    public_key = private_key.public_key
    document = {
        "kty": _TYPE,
        "key_ops": ["decrypt"],
        "p": _encode_integer(p),
        "q": _encode_integer(q),
        "pub": _public_document(public_key),
        "kid": f"Paillier private key of mpcfl, public part {public_key.fingerprint}",
    }
    write_key_file(path, _encode(document), secret=True)


def read_public_key(path: Path) -> PublicKey:
    """Read a public key file of mpcfl or phe.

    Raises:
        KeyFileError: it can't be read, is none, or its key has a size that is refused.
    """
    return _public_key(path, _document(path, secret=False))


def read_private_key(path: Path) -> PrivateKey:
    """Read a private key file of mpcfl or phe; the primes are checked against the public part.

    Raises:
        KeyFileError: others may read the file, it is damaged or none, or its primes are none, or
            not those of the public part, or not of the form that the part claims.
    """
    document = _document(path, secret=True)
    if "decrypt" not in _field(path, document, "key_ops", list):
        raise KeyFileError(f"{path}: key_ops does not name decrypt; use a private key's file")
    public_key = _public_key(path, _field(path, document, "pub", dict))
    p, q = _integer(path, document, "p"), _integer(path, document, "q")
    if p * q != public_key.modulus:
        raise KeyFileError(
            f"{path}: p times q is not the public key n; restore the file from a copy"
        )
    try:
        return PrivateKey(p, q, has_generator=public_key.has_generator)
    except (ConfigError, ValueError):
        # The cause's text is dropped, as it might tell something about the primes.
        raise KeyFileError(
            f"{path}: p and q are not the primes of such a key; restore the file from a copy"
        ) from None


def _public_document(public_key: PublicKey) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kty": _TYPE,
        "alg": _ALGORITHM,
        "key_ops": ["encrypt"],
        "n": _encode_integer(public_key.modulus),
        "kid": f"Paillier public key of mpcfl, {public_key.fingerprint}",
    }
    if public_key.has_generator:
        document[_OURS] = {"schema": _SCHEMA, "has_generator": True}
    return document


def _public_key(path: Path, document: dict[str, Any]) -> PublicKey:
    if document.get("kty") != _TYPE or document.get("alg") != _ALGORITHM:
        raise KeyFileError(
            f'{path}: not a public key of phe (kty "{_TYPE}", alg "{_ALGORITHM}"); '
            "name the file that pheutil or mpcfl wrote"
        )
    modulus = _integer(path, document, "n")
    try:
        check_key_bits(modulus.bit_length())
    except ConfigError as error:
        raise KeyFileError(f"{path}: {error}") from None
    if modulus % 2 == 0:
        raise KeyFileError(f"{path}: n is even, so no key; restore the file from a copy")
    return PublicKey(modulus, has_generator=_has_generator(path, document))


def _has_generator(path: Path, document: dict[str, Any]) -> bool:
    if _OURS not in document:
        return False
    ours = _field(path, document, _OURS, dict)
    if ours.get("schema") != _SCHEMA or type(ours.get("has_generator")) is not bool:
        raise KeyFileError(
            f"{path}: the field {_OURS} is not of schema {_SCHEMA}; use the version of mpcfl that "
            "wrote it, or remove the field to use the key as one of phe"
        )
    return bool(ours["has_generator"])


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document) + "\n").encode()


def _document(path: Path, *, secret: bool) -> dict[str, Any]:
    content = read_key_file(path, secret=secret)
    try:
        document = json.loads(content)
    # A text that is nested too deeply ends the parser with the latter.
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("kty") != _TYPE:
        raise KeyFileError(
            f'{path}: not a whole key file of phe (JSON with kty "{_TYPE}"); restore it from a copy'
        )
    return document


def _field(path: Path, document: dict[str, Any], name: str, kind: type) -> Any:
    """Return a field of the given type; ``document`` may hold secrets, so no value is shown."""
    value = document.get(name)
    if not isinstance(value, kind):
        raise KeyFileError(
            f"{path}: {name} is missing or not of the right type; restore the file from a copy"
        )
    return value


def _integer(path: Path, document: dict[str, Any], name: str) -> int:
    text = _field(path, document, name, str)
    value = 0
    if _BASE64_URL.fullmatch(text):
        with suppress(ValueError):
            content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            value = int.from_bytes(content, "big")
    if value == 0:
        raise KeyFileError(
            f"{path}: {name} is no positive integer in base64; restore the file from a copy"
        )
    return value


def _encode_integer(value: int) -> str:
    content = int(value).to_bytes((int(value).bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
