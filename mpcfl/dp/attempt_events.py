"""What one party did in which attempt, as a public file of JSON lines: written and read back.

One event a line, written whole and at once, so that a process which dies leaves at most one
unfinished line. Lines are not forced to the disk: the ledger, which is, says what was spent; this
file says who began and opened what. It holds spans, digests of opened sums, rosters and epochs,
never a value of a vector. It isn't chained or signed: it is evidence from parties that tell the
truth, not against those that don't.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mpcfl.errors import LedgerError

SCHEMA = 1
# Coordinates [start, stop) of the opened vector.
Span = tuple[int, int]
Spans = tuple[Span, ...]


class EventKind(StrEnum):
    """What can happen to an attempt, in the words of the file."""

    START = "start"
    VIEW = "view"
    CHARGE = "charge"
    BEGIN = "begin"
    OPEN = "open"
    SETTLE = "settle"
    FAIL = "fail"


class Failure(StrEnum):
    """Why an attempt ended without its sum; public, and nothing else is ever said about it."""

    PARTY_LOST = "party-lost"
    CHECK_FAILED = "check-failed"
    REFUSED = "refused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """One line.

    Attributes:
        kind: what happened.
        epoch: number of the view in which it happened; -1 before the first.
        round_id: -1 where the event is of no round.
        attempt: -1 where the event is of no attempt.
        roster: original numbers of who took part, ascending; of a view or a charge.
        spans: coordinates that it is about, `canonical_spans`.
        digest: of a view, or of the values of ``spans``; hex.
        source: who told the values; None where this party opened them itself.
        reason: why an attempt failed.
        party: whose file this is; said at every start of a process, else -1.
    """

    kind: EventKind
    epoch: int
    round_id: int = -1
    attempt: int = -1
    roster: tuple[int, ...] = ()
    spans: Spans = ()
    digest: str = ""
    source: int | None = None
    reason: str = ""
    party: int = -1

    def to_json(self) -> str:
        """Return the event as one line of JSON, without what it does not say."""
        blank = AttemptEvent(self.kind, self.epoch)
        fields = {
            name: value
            for name, value in asdict(self).items()
            if name in {"kind", "epoch"} or value != getattr(blank, name)
        }
        return json.dumps({"schema": SCHEMA, **fields}, separators=(",", ":"))


def canonical_spans(spans: Iterable[Span]) -> Spans:
    """Return the same coordinates as ascending spans with gaps between them.

    Raises:
        ValueError: a span is empty, reversed or below 0, or two of them overlap.
    """
    joined: list[Span] = []
    for start, stop in sorted((int(start), int(stop)) for start, stop in spans):
        if not 0 <= start < stop:
            raise ValueError(f"[{start}, {stop}) is no span of coordinates")
        if joined and start < joined[-1][1]:
            raise ValueError(f"two spans hold coordinate {start}")
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def overlap(left: Spans, right: Spans) -> Spans:
    """Return the coordinates that are in both, in the form of `canonical_spans`."""
    shared: list[Span] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, stop = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < stop:
            shared.append((start, stop))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return tuple(shared)


def union(left: Spans, right: Spans) -> Spans:
    """Return the coordinates that are in either, in the form of `canonical_spans`."""
    joined: list[Span] = []
    for start, stop in sorted((*left, *right)):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


class EventFile:
    """The file, open for appending; an unfinished line that it ended with is cut off."""

    __slots__ = ("_descriptor", "_path", "earlier")

    def __init__(self, path: Path) -> None:
        """Open or make the file; ``earlier`` is what it held.

        Raises:
            LedgerError: it can't be opened, or a finished line is not an event.
        """
        self._path = path
        self._descriptor = -1
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, flags, 0o644)
            content = path.read_bytes()
            self.earlier = _parse(content, path)
            os.ftruncate(self._descriptor, content.rfind(b"\n") + 1)
        except OSError as error:
            self.close()
            raise LedgerError(
                f"{path}: can't keep the transcript: {error.strerror}; nothing is sent without it"
            ) from None
        except LedgerError:
            self.close()
            raise

    def append(self, event: AttemptEvent) -> None:
        """Write one line; it outlives this process when this returns, though not a power cut.

        Raises:
            LedgerError: it could not be written whole; the file is closed.
        """
        line = event.to_json().encode() + b"\n"
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            self.close()
            raise LedgerError(
                f"{self._path}: can't write the transcript: {error.strerror}; nothing is sent "
                "without it"
            ) from None
        if written != len(line):
            self.close()
            raise LedgerError(f"{self._path}: the disk is full; free space and resume the run")

    def close(self) -> None:
        """Close the file; harmless if called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_log(path: Path) -> list[AttemptEvent]:
    """Return the events of a file, without a last line that its writer did not finish.

    Raises:
        LedgerError: it can't be read, or a finished line is not an event; names file and line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: can't read the transcript: {error.strerror}") from None
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> list[AttemptEvent]:
    events = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            events.append(_read_line(line))
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(
                f"{path}: line {number} is not an event of a transcript ({error}); the file was "
                "changed after it was written, restore it from a copy"
            ) from None
    return events


def _read_line(line: bytes) -> AttemptEvent:
    document = json.loads(line)
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise ValueError(f"it has not the form of schema {SCHEMA}")
    fields = {name: _plain(name, value) for name, value in document.items()}
    return AttemptEvent(**fields | {"kind": EventKind(document["kind"])})


def _plain(name: str, value: Any) -> Any:
    """Return a field as the event holds it; ValueError or TypeError if its type is another."""
    if name == "roster":
        return tuple(_number(party) for party in value)
    if name == "spans":
        return canonical_spans((_number(start), _number(stop)) for start, stop in value)
    if name in {"kind", "digest", "reason"}:
        if not isinstance(value, str):
            raise TypeError(f"{name} is not text")
        return value
    return _number(value)


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value
