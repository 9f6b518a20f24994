"""Signed heads: what makes a ledger that was cut or written again come to light.

A chain that is cut at the end of a line still verifies, so somebody else has to remember how
long it was. Each ledger has an Ed25519 key (RFC 8032). With every reserve its party signs the
ledger's head (length and hash of the last entry), and each peer keeps the largest one that it
saw, on disk before the round's first byte leaves. A ledger that is opened again must hold, at
that place, the entry that was signed.

Assumes: at least one peer keeps its file of heads. The first head that a peer sees binds the
key; nothing before it does. Does not protect against: all parties that hold a memory of a
ledger losing it together, a file of heads that is put back to an older state, or entries
after the last head that was exchanged (every reserve is before one).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mpcfl.dp.chain import replace_file
from mpcfl.errors import LedgerError
from mpcfl.hazmat.bits import domain_tag

SCHEMA = 1
_HEX_BYTES = {"public_key": 32, "hash": 32, "signature": 64}
_REMEDY = "restore the ledger from a copy; what was spent stays spent"


@dataclass(frozen=True, slots=True)
class SignedHead:
    """How long a ledger was, and what its last entry was, in its party's own words.

    Attributes:
        identity: of the party and its data set.
        public_key: Ed25519, 64 hex digits.
        length: number of entries.
        hash: of the last entry, hex.
        signature: over all of the above, hex.
    """

    identity: str
    public_key: str
    length: int
    hash: str
    signature: str

    def __post_init__(self) -> None:
        """Refuse a head that its party did not sign.

        Raises:
            LedgerError: it is not what a party signs, or the signature does not match.
        """
        texts = (self.identity, self.public_key, self.hash, self.signature)
        if not all(isinstance(text, str) for text in texts) or type(self.length) is not int:
            raise LedgerError("this is not a signed head of a ledger")
        try:
            public_key, _, signature = (
                _from_hex(getattr(self, name), size) for name, size in _HEX_BYTES.items()
            )
            message = head_message(self.identity, self.public_key, self.length, self.hash)
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
        except (ValueError, InvalidSignature):
            raise LedgerError(
                f"the signature of the ledger head of {self.identity!r} does not match it"
            ) from None

    def to_json(self) -> str:
        """Return the head as one line of JSON."""
        return json.dumps(asdict(self))


def read_head(document: Any) -> SignedHead:
    """Return the head that a parsed JSON document holds.

    Raises:
        LedgerError: it is none, or its party did not sign it.
    """
    fields = SignedHead.__dataclass_fields__
    if not isinstance(document, dict) or set(document) != set(fields):
        raise LedgerError("this is not a signed head of a ledger")
    return SignedHead(**document)


def _from_hex(text: str, n_bytes: int) -> bytes:
    decoded = bytes.fromhex(text)
    # Upper case or spaces would be a second spelling of the same bytes.
    if decoded.hex() != text or len(decoded) != n_bytes:
        raise ValueError("not the hex digits that a party writes")
    return decoded


def head_message(identity: str, public_key: str, length: int, digest: str) -> bytes:
    """Return the bytes that a party signs; different heads never give the same."""
    return domain_tag("ledger-head", identity, public_key, length, digest)


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody remembers of a ledger.

    Attributes:
        witness: who, for errors: a party's name or a file's.
        head: the largest that it saw; its signature was checked.
    """

    witness: str
    head: SignedHead


@dataclass(frozen=True, slots=True)
class ChainState:
    """What a ledger says of itself when it is opened: its file, key and the hash of every entry."""

    path: Path
    public_key: str | None
    hashes: Sequence[str]

    def require(self, claims: Iterable[Claim]) -> None:
        """Refuse a ledger that doesn't go on from what others saw of it.

        Raises:
            LedgerError: names the file, who saw more, and the remedy.
        """
        for claim in claims:
            head = claim.head
            if head.public_key != self.public_key:
                found = "signs with another key than the one"
            elif head.length > len(self.hashes):
                found = f"has {len(self.hashes)} entries, not the {head.length} or more"
            elif head.length < 1 or self.hashes[head.length - 1] != head.hash:
                found = f"has another entry {head.length} than the one"
            else:
                continue
            raise LedgerError(
                f"{self.path}: this ledger {found} that {claim.witness} saw; {_REMEDY}"
            )


class SeenHeads:
    """The largest head of every party's ledger that this party saw, its own included."""

    def __init__(self, path: Path, heads: Mapping[str, SignedHead] | None = None) -> None:
        self.path = path
        self._heads = dict(heads or {})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            LedgerError: it is missing, or holds anything that its party did not write.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if set(document) != {"schema", "heads"} or document["schema"] != SCHEMA:
                raise LedgerError("this is not a file of ledger heads")
            heads = [read_head(head) for head in document["heads"]]
        except OSError as error:
            raise LedgerError(
                f"{path}: can't read the ledger heads that this party saw: {error.strerror}; "
                "restore the file from a copy"
            ) from None
        except (ValueError, TypeError, LedgerError) as error:
            reason = error if isinstance(error, LedgerError) else "this is not JSON of ledger heads"
            raise LedgerError(
                f"{path}: {reason}; the file was changed after it was written, restore it from a "
                "copy"
            ) from None
        return cls(path, {head.identity: head for head in heads})

    def of(self, identity: str) -> SignedHead | None:
        """Return the largest head of one ledger that was seen, if any."""
        return self._heads.get(identity)

    def all(self) -> tuple[SignedHead, ...]:
        """Return what is remembered, one head for every ledger."""
        return tuple(self._heads.values())

    def remember(self, heads: Iterable[SignedHead]) -> None:
        """Keep larger heads; they are on the disk when this returns.

        Raises:
            LedgerError: a ledger has another key than before, or became shorter or another one;
                nothing is kept then. Or the disk refused.
        """
        larger = dict(self._heads)
        for head in heads:
            known = larger.get(head.identity)
            if known is not None:
                _require_growth(known, head)
            larger[head.identity] = head
        if larger != self._heads:
            self._save(larger)

    def _save(self, heads: Mapping[str, SignedHead]) -> None:
        document = {"schema": SCHEMA, "heads": [asdict(head) for head in heads.values()]}
        try:
            replace_file(self.path, json.dumps(document, indent=1).encode() + b"\n")
        except OSError as error:
            raise LedgerError(f"{self.path}: can't write: {error.strerror}") from None
        self._heads = dict(heads)


def _require_growth(known: SignedHead, head: SignedHead) -> None:
    if head.public_key != known.public_key:
        found = "signs with another key than before"
    elif head.length < known.length:
        found = f"has {head.length} entries where there were {known.length}"
    elif head.length == known.length and head.hash != known.hash:
        found = f"has another entry {head.length} than before"
    else:
        return
    raise LedgerError(f"the ledger of {head.identity} {found}; its party must {_REMEDY}")


def heads_path(ledger: Path) -> Path:
    """Return where the party of a ledger keeps the heads that it saw: beside it."""
    return ledger.with_suffix(".heads.json")


def seen_in(folder: Path) -> list[SeenHeads]:
    """Return every file of heads in a folder.

    Raises:
        LedgerError: one of the files was changed after it was written.
    """
    return [SeenHeads.load(path) for path in sorted(folder.glob("*.heads.json"))]
