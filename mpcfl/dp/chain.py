"""A file of JSON lines in which each line carries the hash of everything before it.

A line that was written stays as it is: changing, removing or reordering lines breaks the chain.
Cutting whole lines off the end does not; only somebody else who remembers the head can tell.
Lines are durable (fsync) before `append` returns. A crash can leave one unfinished line at the
end; it is recognised by its missing newline.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcfl.errors import LedgerError
from mpcfl.hazmat.bits import domain_tag

SCHEMA = 1
_GENESIS = "0" * 64
_FIELDS = {"schema", "sequence", "kind", "body", "previous", "hash"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: its place in the chain, what happened, and the facts."""

    sequence: int
    kind: str
    body: dict[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Torn:
    """An unfinished last line: where it starts, and its bytes."""

    offset: int
    content: bytes


def _entry_hash(sequence: int, kind: str, body: dict[str, Any], previous: str) -> str:
    text = json.dumps(
        [SCHEMA, sequence, kind, body, previous],
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(domain_tag("privacy-ledger") + text.encode()).hexdigest()


def read_chain(content: bytes, path: Path) -> tuple[list[Entry], Torn | None]:
    """Check a whole chain.

    Returns:
        All entries, and the unfinished last line if there is one.

    Raises:
        LedgerError: a finished line is not what its writer wrote; names file, line and reason.
    """
    *lines, rest = content.split(b"\n")
    entries: list[Entry] = []
    for line in lines:
        previous = entries[-1].hash if entries else _GENESIS
        try:
            entries.append(_read_line(line, len(entries), previous))
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(
                f"{path}: line {len(entries) + 1}: {error}; the ledger was changed after it was "
                f"written, restore it from a copy"
            ) from None
    torn = Torn(len(content) - len(rest), rest) if rest else None
    return entries, torn


def _read_line(line: bytes, sequence: int, previous: str) -> Entry:
    try:
        record = json.loads(line)
    except ValueError:
        raise ValueError("this is not JSON") from None
    if not isinstance(record, dict) or set(record) != _FIELDS:
        raise ValueError("this is not a ledger entry")
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema is {record['schema']!r}, this version reads {SCHEMA}")
    if record["sequence"] != sequence:
        raise ValueError(f"this is entry {record['sequence']!r} where entry {sequence} belongs")
    if record["previous"] != previous:
        raise ValueError("this entry does not continue the one before it")
    entry = Entry(sequence, record["kind"], record["body"], previous, record["hash"])
    if entry.hash != _entry_hash(sequence, entry.kind, entry.body, previous):
        raise ValueError("the hash does not match the content")
    return entry


class ChainFile:
    """A chain open for appending, locked for this process alone."""

    __slots__ = ("_descriptor", "_process_id", "entries", "path", "torn")

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open, or with ``create`` make, the file with mode 0600, lock it, and check it."""
        self.path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        except OSError as error:
            raise LedgerError(f"{path}: can't open the ledger: {error.strerror}") from None
        self._process_id = os.getpid()
        try:
            self._lock()
            os.fchmod(self._descriptor, 0o600)
            self.entries, self.torn = read_chain(path.read_bytes(), path)
        except BaseException:  # closed whatever went wrong, then passed on
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LedgerError(
                f"{self.path}: the ledger is in use by another process; wait until it ends"
            ) from None

    @property
    def head(self) -> tuple[int, str]:
        """Return the number of entries and the hash of the last one."""
        return len(self.entries), self.entries[-1].hash if self.entries else _GENESIS

    def drop_torn(self) -> None:
        """Cut the unfinished last line off, so that the next entry starts on its own line."""
        if self.torn is not None:
            os.ftruncate(self._descriptor, self.torn.offset)
            os.fsync(self._descriptor)
            self.torn = None

    def append(self, kind: str, body: dict[str, Any]) -> Entry:
        """Write one entry; it is on the disk when this returns.

        Raises:
            LedgerError: the entry could not be written whole; the file is closed.
        """
        if self._descriptor < 0 or os.getpid() != self._process_id:
            raise LedgerError(f"{self.path}: the ledger is closed in this process; open it again")
        sequence, previous = self.head
        entry = Entry(sequence, kind, body, previous, _entry_hash(sequence, kind, body, previous))
        record = {
            "schema": SCHEMA,
            "sequence": sequence,
            "kind": kind,
            "body": body,
            "previous": previous,
            "hash": entry.hash,
        }
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._write(line)
        self.entries.append(entry)
        return entry

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            os.fsync(self._descriptor)
            if self.head[0] == 0:
                sync_folder(self.path.parent)
        except OSError as error:
            self.close()
            raise LedgerError(f"{self.path}: can't write: {error.strerror}") from None
        if written != len(line):
            self.close()
            raise LedgerError(f"{self.path}: the disk is full; free space and resume the run")

    def close(self) -> None:
        """Release the lock; harmless if called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sync_folder(folder: Path) -> None:
    """Make a new file's name durable, not only its content."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content for its owner's eyes; a crash leaves the old one or the new one.

    Raises:
        OSError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
