"""One opening per attempt, as a check that runs beside every party.

An attempt has one roster, one noise, one set of masks and at most one opening. This guard holds
one party to that: what it begins was charged before, over the roster of the view in which it is;
no coordinate that it knows is asked for again; no coordinate becomes known from two attempts; and
once a retry is charged, nothing of the attempt before it may be opened any more, since the others
were told what this party holds. Everything that passes is written down (`attempt_events.py`), so
that `mpcfl.audit.transcript` can hold the parties' files against each other.

A refusal is `OutOfOrder`: a bug or an attack. It writes nothing, and the caller must not send.
Assumes that the caller asks before it acts; does not see bytes, noise or masks itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.attempt_events import (
    AttemptEvent,
    EventFile,
    EventKind,
    Failure,
    Span,
    Spans,
    canonical_spans,
    overlap,
    read_log,
    union,
)
from mpcfl.dp.pieces import pieces
from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import domain_tag

__all__ = [
    "AttemptEvent",
    "AttemptLog",
    "EventKind",
    "Failure",
    "attempt_digest",
    "opened_digest",
    "read_log",
]


def opened_digest(values: NDArray[np.signedinteger]) -> str:
    """Return the SHA-256, hex, of opened values; int32 and int64 give the same."""
    digest = hashlib.sha256(domain_tag("opened-sum"))
    for piece in pieces(values.size):
        digest.update(np.ascontiguousarray(values[piece], dtype="<i8").tobytes())
    return digest.hexdigest()


def attempt_digest(round_id: int, attempt: int, view: str, spans: Iterable[Span]) -> str:
    """Return the SHA-256, hex, of what an attempt is for; parties compare it before they begin.

    Args:
        round_id: the round.
        attempt: its number.
        view: digest of the view that all its members signed.
        spans: the coordinates that are asked for.
    """
    asked = ",".join(f"{start}-{stop}" for start, stop in spans)
    return hashlib.sha256(domain_tag("attempt", round_id, attempt, view, asked)).hexdigest()


@dataclass(slots=True)
class _Attempt:
    """What this party knows of one of its attempts, in this process."""

    epoch: int
    spans: Spans
    begun: bool = False
    over: bool = False
    known: Spans = ()


class AttemptLog:
    """One party's guard and file; one process at a time. Close it when the run is over."""

    def __init__(self, path: Path | None, party: int) -> None:
        """Begin, or go on with the file of an earlier process of this run.

        Args:
            path: the file, made where there is none; None checks without writing.
            party: this party's original number.

        Raises:
            LedgerError: the file can't be opened, or holds what no party wrote.
        """
        self._party = party
        self._file = None if path is None else EventFile(path)
        self._epoch, self._roster = -1, tuple[int, ...]()
        self._attempts: dict[tuple[int, int], _Attempt] = {}
        # Numbers are never used again, not even by a process that resumes the run.
        self._next_attempts: dict[int, int] = {}
        self._settled: set[int] = set()
        # By round, attempt and spans: the digest of what is there.
        self._digests: dict[tuple[int, int, Spans], str] = {}
        for event in [] if self._file is None else self._file.earlier:
            if event.kind is EventKind.CHARGE:
                self._count(event.round_id, event.attempt)
        self._write(AttemptEvent(EventKind.START, -1, party=party))

    def next_attempt(self, round_id: int) -> int:
        """Return one more than the largest attempt of a round that this file ever named."""
        return self._next_attempts.get(round_id, 0)

    def known(self, round_id: int) -> Spans:
        """Return the coordinates of a round that are known here."""
        spans: Spans = ()
        for (of, _), attempt in self._attempts.items():
            spans = union(spans, attempt.known) if of == round_id else spans
        return spans

    def view(self, epoch: int, roster: Sequence[int], digest: str) -> None:
        """Enter a view that all its members signed.

        Args:
            epoch: its number; larger than that of any view before.
            roster: original numbers, ascending.
            digest: of what was signed, hex.

        Raises:
            OutOfOrder: a view of this epoch or a later one was entered, this party is not in
                it, or somebody is in it who was not in the one before.
        """
        members = tuple(int(party) for party in roster)
        _require(epoch > self._epoch, f"epoch {epoch} comes after epoch {self._epoch}")
        _require(members == tuple(sorted(set(members))), "a roster is not in ascending order")
        _require(self._party in members, f"epoch {epoch} is of a roster without this party")
        known = not self._roster or set(members) <= set(self._roster)
        _require(known, f"epoch {epoch} has a member that the epoch before it had not")
        self._write(AttemptEvent(EventKind.VIEW, epoch, roster=members, digest=digest))
        self._epoch, self._roster = epoch, members

    def charge(
        self, round_id: int, attempt: int, roster: Sequence[int], spans: Iterable[Span]
    ) -> None:
        """Note that an attempt is charged: its reserve is on the disk of this party's ledger.

        Args:
            round_id: the round.
            attempt: larger than that of any attempt at this round before.
            roster: who will contribute: the members of the current view, all of them.
            spans: the coordinates that it is for: all of them at the first attempt, and then
                those that no member of the view holds.

        Raises:
            OutOfOrder: one of these does not hold, the round is settled, a later one was
                charged, or the attempt before it has not ended.
        """
        asked = canonical_spans(spans)
        self._check_charge(round_id, attempt, tuple(roster))
        _require(asked != (), f"{_name(round_id, attempt)} is for no coordinate")
        held = overlap(asked, self.known(round_id))
        _require(not held, f"{_name(round_id, attempt)} asks for coordinates that are known")
        first = self._first(round_id)
        inside = first is None or overlap(asked, first.spans) == asked
        _require(inside, f"{_name(round_id, attempt)} asks for more than the first attempt did")
        self._write(
            AttemptEvent(EventKind.CHARGE, self._epoch, round_id, attempt, self._roster, asked)
        )
        self._count(round_id, attempt)
        self._forget_before(round_id)
        self._attempts[round_id, attempt] = _Attempt(self._epoch, asked)

    def _check_charge(self, round_id: int, attempt: int, roster: tuple[int, ...]) -> None:
        name = _name(round_id, attempt)
        _require(self._epoch >= 0, f"{name} is charged before any view was entered")
        _require(roster == self._roster, f"{name} is charged over another roster than the view's")
        _require(round_id not in self._settled, f"{name} is charged, but its round is settled")
        fresh = attempt >= self._next_attempts.get(round_id, 0)
        _require(fresh, f"{name} is charged, but that number was used before")
        for (other, number), state in self._attempts.items():
            _require(other <= round_id, f"{name} is charged after a later round")
            done = state.over if other == round_id else other in self._settled
            _require(done, f"{name} is charged while {_name(other, number)} goes on")

    def begin(self, round_id: int, attempt: int) -> None:
        """Ask, just before the first byte of an attempt's data leaves this party.

        Raises:
            OutOfOrder: it is not charged in the current view, was begun before, has ended, or
                asks for what became known since; nothing may be sent then.
        """
        state, name = self._charged(round_id, attempt), _name(round_id, attempt)
        _require(state.epoch == self._epoch, f"{name} was charged in another view than this one")
        _require(not state.begun, f"{name} was begun before; an attempt has one opening")
        _require(not state.over, f"{name} has ended; start a new attempt")
        held = overlap(state.spans, self.known(round_id))
        _require(not held, f"{name} would open coordinates that are known")
        self._write(AttemptEvent(EventKind.BEGIN, self._epoch, round_id, attempt))
        state.begun = True

    def open(
        self,
        round_id: int,
        attempt: int,
        spans: Iterable[Span],
        digest: str,
        source: int | None = None,
    ) -> None:
        """Note that coordinates of an attempt became known here; the same twice is noted once.

        Args:
            round_id: the round.
            attempt: that opened them, here or at the peer.
            spans: the coordinates.
            digest: `opened_digest` of their values, in ascending order.
            source: the peer that told them; None where they were opened here.

        Raises:
            OutOfOrder: this party did not begin that attempt, they are not of it, they are
                known from another one or with another digest, or a later attempt is charged.
        """
        found, name = canonical_spans(spans), _name(round_id, attempt)
        state = self._charged(round_id, attempt)
        _require(state.begun, f"{name} was opened, but never begun by this party")
        _require(overlap(found, state.spans) == found, f"{name} is not for these coordinates")
        _require(source is None or source in self._roster, f"{name} is told by a stranger")
        key = (round_id, attempt, found)
        told = self._digests.get(key)
        _require(told in (None, digest), f"{name} has two different values for one coordinate")
        if told is not None:
            return
        latest = self._next_attempts[round_id] == attempt + 1 and round_id not in self._settled
        _require(latest, f"{name} is opened, but a later attempt is charged or the round settled")
        self._check_unknown(round_id, attempt, found)
        event = AttemptEvent(
            EventKind.OPEN, self._epoch, round_id, attempt, (), found, digest, source
        )
        self._write(event)
        self._digests[key] = digest
        state.known = union(state.known, found)

    def _check_unknown(self, round_id: int, attempt: int, found: Spans) -> None:
        name = _name(round_id, attempt)
        for (other, number), state in self._attempts.items():
            twice = other == round_id and number != attempt and overlap(found, state.known)
            _require(not twice, f"{name} opens coordinates that attempt {number} has opened")

    def settle(self, round_id: int) -> None:
        """Note that every coordinate of a round is known; nothing may be begun for it any more.

        Raises:
            OutOfOrder: some coordinate is not known, or the round was settled before.
        """
        first = self._first(round_id)
        _require(round_id not in self._settled, f"round {round_id} is settled twice")
        whole = first is not None and self.known(round_id) == first.spans
        _require(whole, f"round {round_id} is settled, but not all of it is known")
        self._write(AttemptEvent(EventKind.SETTLE, self._epoch, round_id))
        self._settled.add(round_id)

    def fail(self, round_id: int, attempt: int, reason: Failure) -> None:
        """Note that an attempt has ended here before its sum was whole; it stays charged.

        Raises:
            OutOfOrder: it was not charged, or has ended before.
        """
        state, why = self._charged(round_id, attempt), Failure(reason).value
        _require(not state.over, f"{_name(round_id, attempt)} has ended before")
        self._write(AttemptEvent(EventKind.FAIL, self._epoch, round_id, attempt, reason=why))
        state.over = True

    def close(self) -> None:
        """Close the file; harmless if called twice."""
        if self._file is not None:
            self._file.close()

    def _charged(self, round_id: int, attempt: int) -> _Attempt:
        state = self._attempts.get((round_id, attempt))
        if state is None:
            raise _refusal(f"{_name(round_id, attempt)} was never charged by this party")
        return state

    def _first(self, round_id: int) -> _Attempt | None:
        """Return the first attempt of a round in this process, which is for all of it."""
        numbers = [attempt for of, attempt in self._attempts if of == round_id]
        return self._attempts[round_id, min(numbers)] if numbers else None

    def _count(self, round_id: int, attempt: int) -> None:
        known = self._next_attempts.get(round_id, 0)
        self._next_attempts[round_id] = max(known, attempt + 1)

    def _forget_before(self, round_id: int) -> None:
        """Drop what no rule asks for any more once a later round is charged."""
        first = round_id - 1
        self._attempts = {key: kept for key, kept in self._attempts.items() if key[0] >= first}
        self._digests = {key: kept for key, kept in self._digests.items() if key[0] >= first}

    def _write(self, event: AttemptEvent) -> None:
        if self._file is not None:
            self._file.append(event)


def _name(round_id: int, attempt: int) -> str:
    return f"round {round_id}, attempt {attempt}"


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise _refusal(found)


def _refusal(found: str) -> OutOfOrder:
    return OutOfOrder(
        f"{found}; one roster, one charge and one opening per attempt: this party stops and sends "
        "nothing more"
    )
