"""Types of values in a message: how each is written, and what is refused when it is read.

Every value has one encoding, and a reader takes no other: numbers in network byte order, always
the same NaN, sets in ascending order. So what was signed, hashed or compared as bytes was
compared as values too.

Adversary: whoever made the bytes. A length is believed only once the message is known to hold as
many bytes, so nothing is allocated that did not arrive; how deep and how often a reader goes is
bounded by the type. Formats are put together from these in the modules that speak them, see
`net/wire.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
_COUNT = struct.Struct(">I")


class MalformedBody(Exception):
    """Bytes that no value has; the text says what is wrong with them, and not what they are."""


class Reader:
    """Bytes of a body that are yet to be read."""

    def __init__(self, body: memoryview) -> None:
        self._body = body

    @property
    def n_left(self) -> int:
        """Return how many bytes are left."""
        return len(self._body)

    def take(self, n_bytes: int) -> bytes:
        """Return a copy of the next bytes; MalformedBody if there are not so many."""
        if n_bytes > len(self._body):
            raise MalformedBody("ends within a field")
        taken, self._body = bytes(self._body[:n_bytes]), self._body[n_bytes:]
        return taken

    def take_count(self, limit: int) -> int:
        """Return the next length or number of items; MalformedBody if it is above ``limit``."""
        found: int = _COUNT.unpack(self.take(_COUNT.size))[0]
        if found > limit:
            raise MalformedBody(f"states a length of {found}, above the limit of {limit}")
        return found


class Field(Protocol):
    """A type of value, with the sizes that its encodings can have."""

    @property
    def min_bytes(self) -> int:
        """Return the size of the shortest encoding."""
        ...

    @property
    def max_bytes(self) -> int:
        """Return the size of the longest encoding."""
        ...

    def write(self, value: Any) -> bytes:
        """Return the encoding; TypeError or ValueError for what is no value of this type."""
        ...

    def read(self, reader: Reader) -> Any:
        """Take one value; MalformedBody if the next bytes are the encoding of none."""
        ...


@dataclass(frozen=True, slots=True)
class _Number:
    """One machine type, by its letter in `struct`."""

    code: str
    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        # A NaN has 2^53 - 2 forms, and only one of them is written.
        number = math.nan if value != value else value
        try:
            return struct.pack(self.code, number)
        except struct.error as error:
            raise ValueError(str(error)) from None

    def read(self, reader: Reader) -> Any:
        taken = reader.take(self.min_bytes)
        (value,) = struct.unpack(self.code, taken)
        if self.write(value) != taken:
            raise MalformedBody("has a NaN of another form")
        return value


@dataclass(frozen=True, slots=True)
class _Flag:
    """True or False."""

    min_bytes: int = 1
    max_bytes: int = 1

    def write(self, value: Any) -> bytes:
        return b"\x01" if _instance(value, bool) else b"\x00"

    def read(self, reader: Reader) -> bool:
        taken = reader.take(1)
        if taken not in (b"\x00", b"\x01"):
            raise MalformedBody("has a flag that is neither 0 nor 1")
        return taken == b"\x01"


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Bytes of one length, which is not sent."""

    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        content = _instance(value, bytes)
        if len(content) != self.min_bytes:
            raise ValueError(f"the field takes {self.min_bytes} bytes, not {len(content)}")
        return content

    def read(self, reader: Reader) -> bytes:
        return reader.take(self.min_bytes)


@dataclass(frozen=True, slots=True)
class _Blob:
    """Bytes after their number."""

    limit: int
    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        content = _instance(value, bytes)
        if len(content) > self.limit:
            raise ValueError(f"the field takes {self.limit} bytes at most, not {len(content)}")
        return _COUNT.pack(len(content)) + content

    def read(self, reader: Reader) -> bytes:
        return reader.take(reader.take_count(self.limit))


@dataclass(frozen=True, slots=True)
class _Text:
    """A str as UTF-8, after the number of its bytes."""

    content: _Blob
    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        return self.content.write(_instance(value, str).encode())

    def read(self, reader: Reader) -> str:
        # Strict UTF-8 has one encoding per text.
        try:
            return self.content.read(reader).decode()
        except UnicodeDecodeError:
            raise MalformedBody("has a text that is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class _Optional:
    """A value or None."""

    item: Field
    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        return FLAG.write(value is not None) + (b"" if value is None else self.item.write(value))

    def read(self, reader: Reader) -> Any:
        return self.item.read(reader) if FLAG.read(reader) else None


@dataclass(frozen=True, slots=True)
class _Listing:
    """A tuple after the number of its items."""

    item: Field
    max_items: int
    is_ascending: bool
    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        items: Sequence[Any] = value
        if len(items) > self.max_items:
            raise ValueError(f"the field takes {self.max_items} items at most, not {len(items)}")
        if self.is_ascending and not _ascends(items):
            raise ValueError("the items of this field must ascend, none of them twice")
        return _COUNT.pack(len(items)) + b"".join(map(self.item.write, items))

    def read(self, reader: Reader) -> tuple[Any, ...]:
        n_items = reader.take_count(self.max_items)
        if n_items * self.item.min_bytes > reader.n_left:
            raise MalformedBody("has fewer items than it states")
        items = tuple(self.item.read(reader) for _ in range(n_items))
        if self.is_ascending and not _ascends(items):
            raise MalformedBody("has items that do not ascend")
        return items


@dataclass(frozen=True, slots=True)
class _Record:
    """A dict of always the same keys, which are not sent."""

    fields: Mapping[str, Field]
    min_bytes: int
    max_bytes: int

    def write(self, value: Any) -> bytes:
        values: Mapping[str, Any] = value
        if values.keys() != self.fields.keys():
            raise TypeError(f"give each of {', '.join(self.fields)} a value, and nothing else")
        return b"".join(field.write(values[name]) for name, field in self.fields.items())

    def read(self, reader: Reader) -> dict[str, Any]:
        return {name: field.read(reader) for name, field in self.fields.items()}


U8: Field = _Number(">B", 1, 1)
U32: Field = _Number(">I", 4, 4)
U64: Field = _Number(">Q", 8, 8)
F64: Field = _Number(">d", 8, 8)
FLAG: Field = _Flag()


def fixed(n_bytes: int) -> Field:
    """Return the type of `bytes` of one length."""
    return _Fixed(n_bytes, n_bytes)


def blob(max_bytes: int) -> Field:
    """Return the type of `bytes` up to a length."""
    return _blob(max_bytes)


def text(max_bytes: int) -> Field:
    """Return the type of `str` up to a length in bytes of UTF-8; see `wire.cut`."""
    content = _blob(max_bytes)
    return _Text(content, content.min_bytes, content.max_bytes)


def optional(item: Field) -> Field:
    """Return the type of ``item`` or None."""
    return _Optional(item, FLAG.min_bytes, FLAG.max_bytes + item.max_bytes)


def listing(item: Field, max_items: int) -> Field:
    """Return the type of sequences of ``item``; they are read as tuples."""
    return _listing(item, max_items, is_ascending=False)


def ascending(item: Field, max_items: int) -> Field:
    """Return the type of sets of numbers, bytes or texts, as strictly ascending sequences."""
    if not isinstance(item, (_Number, _Fixed, _Blob, _Text)):
        raise TypeError("only numbers, bytes and texts have an order")
    return _listing(item, max_items, is_ascending=True)


def record(**fields: Field) -> Field:
    """Return the type of mappings from these names to values of these types."""
    shortest = sum(field.min_bytes for field in fields.values())
    return _Record(fields, shortest, sum(field.max_bytes for field in fields.values()))


def _blob(limit: int) -> _Blob:
    return _Blob(limit, _COUNT.size, _COUNT.size + limit)


def _listing(item: Field, max_items: int, *, is_ascending: bool) -> Field:
    if item.min_bytes == 0:
        # Any number of them would fit into no bytes at all.
        raise ValueError("an item of a listing takes at least one byte")
    longest = _COUNT.size + max_items * item.max_bytes
    return _Listing(item, max_items, is_ascending, _COUNT.size, longest)


def _ascends(items: Sequence[Any]) -> bool:
    return all(one < other for one, other in pairwise(items))


def _instance(value: Any, wanted: type[T]) -> T:
    if not isinstance(value, wanted):
        raise TypeError(f"the field takes {wanted.__name__}, not {type(value).__name__}")
    return value
