"""What is in the key files of a threshold key: JSON documents, checked before anything is used.

Every document says its kind and schema first; unknown, missing and ill-formed fields are refused.
Integers are lower-case hex without leading zeros, so that equal keys are equal text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mpcfl.config import Name
from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.bits import domain_tag
from mpcfl.hazmat.paillier import PublicKey
from mpcfl.hazmat.threshold_key import ThresholdKey
from mpcfl.secagg.custody import check_key_bits

SCHEMA: Final = 1
PUBLIC_KIND: Final = "mpcfl-threshold-key"
SHARE_KIND: Final = "mpcfl-key-share"
# What a file may make its reader spend: memory is 128 n r bytes (RFC 7914, section 2).
_MAX_SCRYPT_BYTES = 256 << 20
_MAX_SCRYPT_PASSES = 4


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A threshold key and whose its shares are; public.

    Attributes:
        key: the public part; share i is that of ``parties[i - 1]``.
        parties: names of the holders, in the order of their ranks.

    Raises:
        ConfigError: there is not one name for each share.
    """

    key: ThresholdKey
    parties: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.parties) != self.key.n_shares or len(set(self.parties)) != len(self.parties):
            raise ConfigError(
                f"{self.key.n_shares} key shares need as many names, each of its own; "
                f"{len(self.parties)} came"
            )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_Hex = Annotated[str, Field(pattern=r"^[1-9a-f][0-9a-f]*$")]
_Bytes = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]


class PublicPart(_Part):
    """A threshold key and the names of its holders, as text."""

    modulus: _Hex
    has_generator: bool
    threshold: int
    n_shares: int
    verification_base: _Hex
    verification_keys: tuple[_Hex, ...]
    parties: tuple[Name, ...]

    @classmethod
    def of(cls, named: NamedKey) -> Self:
        """Write a key down."""
        key = named.key
        return cls(
            modulus=f"{key.public_key.modulus:x}",
            has_generator=key.public_key.has_generator,
            threshold=key.threshold,
            n_shares=key.n_shares,
            verification_base=f"{int(key.verification_base):x}",
            verification_keys=tuple(f"{int(value):x}" for value in key.verification_keys),
            parties=named.parties,
        )

    def named_key(self) -> NamedKey:
        """Return the key.

        Raises:
            ConfigError: the numbers make no key, or one of a size that is refused.
        """
        public_key = PublicKey(int(self.modulus, 16), has_generator=self.has_generator)
        check_key_bits(public_key.key_bits)
        key = ThresholdKey(
            public_key=public_key,
            threshold=self.threshold,
            n_shares=self.n_shares,
            verification_base=int(self.verification_base, 16),
            verification_keys=tuple(int(value, 16) for value in self.verification_keys),
        )
        return NamedKey(key, self.parties)


class ScryptPart(_Part):
    """How the sealing key comes from the passphrase."""

    n: Annotated[int, Field(ge=2, le=1 << 40)]
    r: Annotated[int, Field(ge=1, le=1 << 20)]
    p: Annotated[int, Field(ge=1, le=_MAX_SCRYPT_PASSES)]
    salt: _Bytes


class _Envelope(BaseModel):
    """What every file of ours says first, whatever its schema."""

    model_config = ConfigDict(strict=True)
    kind: Annotated[str, Field(max_length=64)]
    schema_number: int = Field(alias="schema")


class PublicFile(_Part):
    """`public.json`: the public part, for everybody."""

    kind: Literal["mpcfl-threshold-key"]
    schema_number: Literal[1] = Field(alias="schema")
    public: PublicPart


class ShareFile(_Part):
    """One party's share, sealed, beside the public part that it belongs to."""

    kind: Literal["mpcfl-key-share"]
    schema_number: Literal[1] = Field(alias="schema")
    public: PublicPart
    party: Name
    index: Annotated[int, Field(ge=1)]
    scrypt: ScryptPart
    nonce: _Bytes
    sealed: _Bytes

    def associated_data(self) -> bytes:
        """Return what is authenticated with the share: all that the file says in the clear."""
        clear = self.model_dump(mode="json", exclude={"nonce", "sealed"})
        return domain_tag("key-share-file", json.dumps(clear, sort_keys=True))


_File = TypeVar("_File", PublicFile, ShareFile)


def parse(path: Path, content: bytes, kind: str, model: type[_File]) -> _File:
    """Read a document of the given kind.

    Raises:
        KeyFileError: it is none, of another kind or schema, or a field is missing or wrong.
    """
    try:
        envelope = _Envelope.model_validate_json(content)
    except ValidationError:
        raise damaged(path, "it is no whole JSON document of mpcfl") from None
    if envelope.kind != kind:
        raise KeyFileError(f"{path}: a file of kind {envelope.kind!r}, expected {kind!r}")
    if envelope.schema_number != SCHEMA:
        raise KeyFileError(
            f"{path}: written with schema {envelope.schema_number}, this version reads "
            f"{SCHEMA}; use the version of mpcfl that wrote it"
        )
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        # The place only: values might be long, or a share that somebody wrote by hand.
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise damaged(path, f"its field {place} is missing or wrong") from None


def check_share(path: Path, document: ShareFile) -> None:
    """Refuse a share's file whose fields can't be right together.

    Raises:
        KeyFileError: index and name disagree, or opening it would take too much memory.
    """
    parties, cost = document.public.parties, document.scrypt
    if document.index > len(parties) or parties[document.index - 1] != document.party:
        raise damaged(path, "its index is not its party's")
    if 128 * cost.n * cost.r > _MAX_SCRYPT_BYTES or cost.n & (cost.n - 1):
        raise damaged(path, "it asks for more memory than any file of mpcfl does")


def damaged(path: Path, found: str) -> KeyFileError:
    """Return the error for a file that is not as it was written."""
    return KeyFileError(f"{path}: the key file is damaged: {found}; restore it from a copy")


def encode(document: BaseModel) -> bytes:
    """Return a document's text."""
    content: dict[str, Any] = document.model_dump(mode="json", by_alias=True)
    return (json.dumps(content, indent=1) + "\n").encode()


def named_key_of(path: Path, document: PublicFile | ShareFile) -> NamedKey:
    """Return the key that a file speaks of.

    Raises:
        KeyFileError: its public part is no key.
    """
    try:
        return document.public.named_key()
    except ConfigError as error:
        raise damaged(path, f"its public part is no key ({error})") from None
