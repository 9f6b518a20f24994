"""Messages in bytes: everything that one rank tells another, but for packed vectors.

A message is a header (magic, version, kind, length of the body) and a body, the fields of its
`Format` one after the other. Each module declares the formats that it speaks; the numbers of
the kinds are here. A message has exactly the length that it states, and a value exactly one
encoding: whatever is accepted encodes to the very bytes that came.

Adversary: whoever made the bytes. The worst that they can do is to have the message refused, as
a `ProtocolError` that names the kind of message and never what was in it. See `net/fields.py`
for what is bounded.

Does not protect against: well-formed lies, and changes that lead from one message to another;
`net/channel.py` notices these. Lengths show.
"""

from __future__ import annotations

import struct
from enum import IntEnum, unique
from typing import Any

from mpcfl.errors import ProtocolError
from mpcfl.net.fields import (
    F64,
    FLAG,
    U8,
    U32,
    U64,
    Field,
    MalformedBody,
    Reader,
    ascending,
    blob,
    fixed,
    listing,
    optional,
    record,
    text,
)

__all__ = [
    "F64",
    "FLAG",
    "U8",
    "U32",
    "U64",
    "Field",
    "Format",
    "Kind",
    "ascending",
    "blob",
    "cut",
    "fixed",
    "listing",
    "optional",
    "printable",
    "record",
    "text",
]

WIRE_VERSION = 1
_MAGIC = b"mpfl"
# Magic, version, kind, number of bytes in the body.
_HEADER = struct.Struct(">4sBBI")
_MAX_BODY_BYTES = (1 << 32) - 1
_CUT_MARK = "..."


@unique
class Kind(IntEnum):
    """What a message is, by its number on the wire; a number is never given to another kind."""

    HELLO = 1
    SIGNATURE = 2
    STATEMENT = 3
    RUN_NONCE = 4
    GO_ON = 5
    READY = 6
    HOST = 7
    FOLDER = 8
    FINISHED = 9
    LEDGER = 10
    LEDGER_MEMORY = 11
    TOTALS = 12
    ALARM = 14
    VIEW_SIGNATURE = 15
    HOLDINGS = 16
    SUM_OPTIONS = 17
    GRAPH_COMMITMENT = 18
    GRAPH_NONCE = 19
    SHARED_SUM = 20
    TAG_KEY = 21
    TAGS = 22
    NONCE = 23
    VERDICT = 24
    KEY_HELD = 25
    HELD_VALUES = 26
    PLACED = 27
    CHECKPOINT = 28
    CHECKPOINT_PART = 29
    WRITTEN = 30
    TOTAL_MEMORY = 31
    TOTAL_HEAD = 32

    @property
    def words(self) -> str:
        """Return the name as errors give it."""
        return self.name.lower().replace("_", "-")


class Format:
    """One kind of message: the names and types of what is in it."""

    def __init__(self, kind: Kind, /, **fields: Field) -> None:
        self.kind = kind
        self.body = record(**fields)
        if self.body.max_bytes > _MAX_BODY_BYTES:
            raise ValueError(f"a {kind.words} message might exceed {_MAX_BODY_BYTES} bytes")

    @property
    def max_bytes(self) -> int:
        """Return the length of the longest message."""
        return _HEADER.size + self.body.max_bytes

    def encode(self, /, **values: Any) -> bytes:
        """Return the message that holds these values, one for each field.

        Raises:
            TypeError, ValueError: a field does not take its value, or there is no such field.
        """
        body = self.body.write(values)
        return _HEADER.pack(_MAGIC, WIRE_VERSION, self.kind, len(body)) + body

    def decode(self, message: bytes, sender: str = "") -> dict[str, Any]:
        """Return the values in a message, by name of the field.

        Args:
            message: as it came; it may be anything.
            sender: who is said to have sent it, for the error.

        Raises:
            ProtocolError: it is not exactly what `encode` makes of some values.
        """
        try:
            reader = Reader(self._body_of(message))
            values: dict[str, Any] = self.body.read(reader)
            if reader.n_left:
                raise MalformedBody("goes on after its last field")
        except MalformedBody as error:
            origin = f" from {sender}" if sender else ""
            raise ProtocolError(
                f"a {self.kind.words} message{origin} was expected, and what came {error}; it was "
                "changed on its way, or not all parties run the same version of mpcfl: install "
                "one version everywhere and start again"
            ) from None
        return values

    def _body_of(self, message: bytes) -> memoryview:
        if len(message) < _HEADER.size:
            raise MalformedBody(f"has {len(message)} bytes, fewer than a header")
        magic, version, kind, n_stated = _HEADER.unpack_from(message)
        n_bytes = len(message) - _HEADER.size
        if magic != _MAGIC:
            raise MalformedBody("is no message of mpcfl")
        if version != WIRE_VERSION:
            raise MalformedBody(f"is of version {version} of the wire format, not {WIRE_VERSION}")
        if kind != self.kind:
            raise MalformedBody(f"is a message of another kind, {_kind_words(kind)}")
        if n_bytes != n_stated:
            raise MalformedBody(f"has {n_bytes} bytes of body and states {n_stated}")
        if n_bytes > self.body.max_bytes:
            raise MalformedBody(f"has {n_bytes} bytes of body, above the limit of its kind")
        return memoryview(message)[_HEADER.size :]


def cut(words: str, max_bytes: int) -> str:
    """Return a text, or its beginning and dots, that fits into a `text` field of ``max_bytes``.

    What UTF-8 can't write, as in the name of a file that is not text, becomes question marks.
    """
    encoded = words.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    # A character that the cut has split is left out.
    kept = encoded[: max(0, max_bytes - len(_CUT_MARK))].decode(errors="ignore")
    return (kept + _CUT_MARK)[:max_bytes]


def printable(words: str) -> str:
    """Return a text that came from a peer as it may be shown, in a terminal or in a log.

    Line ends, escape sequences and marks that turn the direction of writing become question
    marks: with these, a peer could write lines that seem to be our own.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _kind_words(number: int) -> str:
    return Kind(number).words if number in set(Kind) else f"number {number}"
