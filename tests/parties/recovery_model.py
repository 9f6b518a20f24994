"""A model of recovery, small enough to visit every state of it.

Three parties sum a vector of two parts in each of two rounds. Any party may die anywhere, one may
be silent though it lives, and every party takes its steps in any order. Protocol and invariants are
those of `docs/recovery.md`; the words are those of `mpcfl/net/membership.py` and
`mpcfl/dp/attempts.py`.

Atomic here: wait for the messages of a step, act, send (Lipton 1975: receiving moves right past
what others do, sending moves left). A party that dies between two of its sends is one that sent
both and whose second message was lost: who suspects a dead party may do so although its message
is there. For the same reason a death is decided when somebody notices it: until then the party
took no further step. Opening a part is local, so it is put off to the next step that another
party can tell from it: then any subset of what could be opened was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any, NamedTuple

PARTIES = (0, 1, 2)
EVERYBODY = 0b111
PARTS = (0, 1)
WHOLE = 0b11
UNKNOWN = -1
NOTHING = (UNKNOWN, UNKNOWN)
# Numbers, or tuples of them; what they mean depends on the kind of message.
Content = tuple[Any, ...]


class Phase(IntEnum):
    """What a party waits for, in the order of an epoch; or how it ended."""

    SIGN = 0
    HOLD = 1
    HAND = 2
    READY = 3
    SUM = 4
    FINISH = 5
    FLOOD = 6
    DONE = 7
    STOPPED = 8


class Message(NamedTuple):
    """One message; ``kind`` is the phase whose wait it ends, MOVED that of FLOOD."""

    kind: str
    epoch: int
    step: int
    sender: int
    content: Content


class Party(NamedTuple):
    """One party: what it waits for, what it knows, what is on its disk, what lies in its mailbox.

    Sets of parties, of parts and of attempts are bit masks. ``known`` names, for each part of the
    round, the attempt that opened it, which stands for its value.
    """

    phase: Phase = Phase.READY
    epoch: int = 0
    roster: int = EVERYBODY
    round_id: int = 0
    attempt: int = 0
    wanted: int = WHOLE
    known: tuple[int, int] = NOTHING
    model: tuple[tuple[int, int], ...] = ()
    next_attempts: tuple[int, ...] = (0, 0)
    ledger: tuple[tuple[int, int], ...] = ()
    signed: tuple[tuple[int, int], ...] = ()
    lost: int = 0
    silent: int = 0
    step: int = 0
    mailbox: frozenset[Message] = frozenset()


class Begun(NamedTuple):
    """What is known to the observer of an attempt that somebody began."""

    round_id: int
    attempt: int
    roster: int
    wanted: int
    who: int


class State(NamedTuple):
    """All parties, and what only the observer sees.

    A slow party is doubted in one epoch only: a silence that comes again in every epoch would be
    one of as many steps as one likes, each like the first.
    """

    parties: tuple[Party, ...]
    dead: int = 0
    slow: int = 0
    slow_in: int = UNKNOWN
    begun: frozenset[Begun] = frozenset()
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far to look, and what to break.

    Attributes:
        rounds: of the run.
        crashes: how many parties may die.
        slow: how many may be silent though they live, 0 or 1.
        spare_attempts: budget beyond one attempt per round.
        max_dropout: losses that the plan allows.
        broken: names of rules that the parties leave out.
    """

    rounds: int = 2
    crashes: int = 2
    slow: int = 1
    spare_attempts: int = 2
    max_dropout: int = 1
    broken: frozenset[str] = frozenset()

    @property
    def quorum(self) -> int:
        return len(PARTIES) - self.max_dropout

    @property
    def budget(self) -> int:
        return self.rounds + self.spare_attempts


class Violation(Exception):
    """A property does not hold; the text names it."""


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def _size(mask: int) -> int:
    return mask.bit_count()


def _members(mask: int) -> list[int]:
    return [party for party in PARTIES if mask >> party & 1]


def _ended(party: Party) -> bool:
    return party.phase >= Phase.DONE


class Model:
    """The protocol as steps from state to state."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._broken = bounds.broken

    def first(self) -> State:
        """Return the state after the handshake: everybody has signed the view of epoch 0."""
        nexts = (0,) * self.bounds.rounds
        party = Party(signed=((0, EVERYBODY),), next_attempts=nexts)
        state = State((party,) * len(PARTIES))
        for own in PARTIES:
            state = self._start(state, own)
        return state

    def steps(self, state: State) -> list[tuple[str, State]]:
        """Return all that can happen next."""
        found = [
            step for own in PARTIES if self._acts(state, own) for step in self._own(state, own)
        ]
        faults = [
            step for own in PARTIES if self._acts(state, own) for step in self._faults(state, own)
        ]
        if not found:
            # Every deadline is longer than any delay: one only expires if nothing else happens.
            found = list(
                chain(*(self._timeouts(state, own) for own in PARTIES if self._acts(state, own)))
            )
        return found + faults

    @staticmethod
    def _acts(state: State, own: int) -> bool:
        return not state.dead >> own & 1 and not _ended(state.parties[own])

    def _own(self, state: State, own: int) -> Iterator[tuple[str, State]]:
        """Yield what a party can do of its own accord."""
        party = state.parties[own]
        if party.phase is Phase.FLOOD:
            yield from self._flood_step(state, own)
        else:
            waiting = self._waits_for(state, own)
            if not waiting:
                yield f"{own} {party.phase.name}", self._go_on(state, own)
            if any(m.kind == "ALARM" and m.epoch == party.epoch for m in party.mailbox):
                yield from self._enter_flood(state, own, "hears an alarm")
        gone = state.dead | sum(1 << q for q in PARTIES if _ended(state.parties[q]))
        if party.phase is Phase.FLOOD or party.epoch == state.slow_in:
            gone |= state.slow
        yield from self._suspect(state, own, gone)

    def _faults(self, state: State, own: int) -> Iterator[tuple[str, State]]:
        """Yield what a party can do once another one has died, or is silent, from now on."""
        fresh = EVERYBODY & ~(state.dead | state.slow)
        for other in _members(fresh & ~(1 << own)):
            if _ended(state.parties[other]):
                continue
            if _size(state.dead) < self.bounds.crashes:
                after = _without_mail(state._replace(dead=state.dead | 1 << other), other)
                yield from self._suspect(after, own, 1 << other, f"{other} dies, ")
            if _size(state.slow) < self.bounds.slow:
                after = state._replace(slow=1 << other, slow_in=state.parties[own].epoch)
                yield from self._suspect(after, own, 1 << other, f"{other} is silent, ")

    def _timeouts(self, state: State, own: int) -> Iterator[tuple[str, State]]:
        late = self._waits_for(state, own)
        # A party that is slow may have been left behind, and finds that out by its deadline.
        after = state if state.slow >> own & 1 else state._replace(timed_out=True)
        yield from self._suspect(after, own, late, "timeout, ")

    def _suspect(
        self, state: State, own: int, whom: int, cause: str = ""
    ) -> Iterator[tuple[str, State]]:
        """Yield that a party gives up waiting for another one."""
        party = state.parties[own]
        for other in _members(whom & party.roster & ~(1 << own)):
            if party.phase is not Phase.FLOOD:
                yield from self._enter_flood(state, own, f"{cause}{own} misses {other}")
            elif not (party.lost | party.silent) >> other & 1:
                silent = party._replace(silent=party.silent | 1 << other)
                yield f"{cause}{own} gives {other} up", _with(state, own, silent)

    # Waiting.

    def _waits_for(self, state: State, own: int) -> int:
        """Return of whom a message is missing."""
        party = state.parties[own]
        if party.phase is Phase.FLOOD:
            there = _senders(party, "ALARM", party.step) | _senders(party, "MOVED")
            return party.roster & ~(there | party.lost | party.silent | 1 << own)
        if party.phase is Phase.HAND:
            return self._givers(party, own) & ~_senders(party, "GIVE")
        return party.roster & ~(_senders(party, party.phase.name) | 1 << own)

    def _givers(self, party: Party, own: int) -> int:
        """Return who has to tell this party what it lacks."""
        statements = _contents(party, "HOLD")
        givers = 0
        for part, holder in _plan(statements).items():
            if not _holds(statements[own], part):
                givers |= 1 << holder
        return givers

    # Rounds.

    def _go_on(self, state: State, own: int) -> State:
        """Return the state after a party has what it waited for."""
        match state.parties[own].phase:
            case Phase.SIGN:
                return self._signed(state, own)
            case Phase.HOLD:
                return self._told(state, own)
            case Phase.HAND:
                return self._take(state, own)
            case Phase.READY:
                return self._begin(state, own)
            case Phase.SUM:
                return self._open(state, own, WHOLE, settle=True)
            case _:
                return self._done(state, own)

    def _start(self, state: State, own: int) -> State:
        """Charge the next attempt, and say so; or say that all rounds are over."""
        party = state.parties[own]
        if party.round_id == self.bounds.rounds:
            party = party._replace(phase=Phase.FINISH)
            return self._send(_with(state, own, party), own, "FINISH", ())
        wanted = sum(1 << part for part in PARTS if party.known[part] == UNKNOWN)
        if "retries what is held" in self._broken:
            wanted = WHOLE
        attempt = party.next_attempts[party.round_id]
        pays = len(party.ledger) < self.bounds.budget
        if pays and not ("retries free of charge" in self._broken and attempt):
            charge = (party.round_id, attempt)
            _require(charge not in party.ledger, "an attempt is charged twice")
            party = party._replace(ledger=(*party.ledger, charge))
        nexts = list(party.next_attempts)
        nexts[party.round_id] = attempt + 1
        party = party._replace(
            phase=Phase.READY, attempt=attempt, wanted=wanted, next_attempts=tuple(nexts)
        )
        if "opens late" in self._broken and attempt:
            known = tuple(0 if value == UNKNOWN else value for value in party.known)
            party = party._replace(known=(known[0], known[1]))
        facts = (party.round_id, attempt, wanted, int(pays))
        state = self._send(_with(state, own, party), own, "READY", facts)
        return self._begin(state, own) if "begins alone" in self._broken else state

    def _begin(self, state: State, own: int) -> State:
        party = state.parties[own]
        facts = (party.round_id, party.attempt, party.wanted)
        told = _contents(party, "READY")
        paid = facts[:2] in party.ledger or len(party.ledger) < self.bounds.budget
        if not paid or not all(content[3] for content in told.values()):
            return self._stop(state, own)
        agreed = all(content[:3] == facts for content in told.values())
        _require(agreed, "the members of a view are ready for different attempts")
        state = self._record_begin(state, own)
        party = state.parties[own]._replace(phase=Phase.SUM)
        return self._send(_with(state, own, party), own, "SUM", facts)

    def _record_begin(self, state: State, own: int) -> State:
        """Check the invariants of an attempt just before its first byte."""
        party = state.parties[own]
        attempt = (party.round_id, party.attempt)
        _require(_size(party.roster) >= self.bounds.quorum, "an attempt has no quorum")
        for member in _members(party.roster):
            other = state.parties[member]
            _require(attempt in other.ledger, "an attempt begins that a member has not charged")
            view = (party.epoch, party.roster)
            _require(view in other.signed, "an attempt begins in a view that a member did not sign")
            # Who was given up may still try: it had paid, and a member that went on can't know.
            if not state.dead >> member & 1 and other.roster >> own & 1:
                held = _holding(other, party.round_id)
                free = all(not party.wanted >> part & 1 or held[part] == UNKNOWN for part in PARTS)
                # A member that has begun may know what the attempt itself opened.
                same = all(
                    held[part] in (UNKNOWN, party.attempt)
                    for part in PARTS
                    if party.wanted >> part & 1
                )
                _require(free or same, "an attempt begins for a part that a member holds")
        others = [begun for begun in state.begun if begun[:2] == attempt]
        who = 1 << own
        for begun in others:
            _require(not begun.who >> own & 1, "an attempt begins twice")
            _require(begun.roster == party.roster, "an attempt has two rosters")
            _require(begun.wanted == party.wanted, "an attempt is for different parts")
            who |= begun.who
        entry = Begun(*attempt, party.roster, party.wanted, who)
        return state._replace(begun=state.begun.difference(others) | {entry})

    def _open(self, state: State, own: int, parts: int, *, settle: bool) -> State:
        """Open parts of the attempt; with all of them, settle the round and go on."""
        party = state.parties[own]
        known = list(party.known)
        for part in PARTS:
            if party.wanted & parts & 1 << part:
                _require(known[part] == UNKNOWN, "a part is opened twice")
                known[part] = party.attempt
        if parts & party.wanted:
            for member in _members(party.roster):
                charged = (party.round_id, party.attempt) in state.parties[member].ledger
                _require(charged, "a sum is opened that a contributor has not charged")
        state = _with(state, own, party._replace(known=(known[0], known[1])))
        return self._settle(state, own) if settle else state

    def _settle(self, state: State, own: int) -> State:
        party = state.parties[own]
        party = party._replace(
            model=(*party.model, party.known), round_id=party.round_id + 1, known=NOTHING
        )
        return self._start(_with(state, own, party), own)

    def _done(self, state: State, own: int) -> State:
        state = _with(state, own, state.parties[own]._replace(phase=Phase.DONE))
        models = {p.model for p in state.parties if p.phase is Phase.DONE}
        _require(len(models) == 1, "two parties finish with different models")
        return _tidy(state, own)

    def _stop(self, state: State, own: int) -> State:
        """Stop with a reason; what is lost is only lost if a quorum had not finished."""
        party = state.parties[own]
        finished = _size(_senders_ever(party, "FINISH") | 1 << own) >= self.bounds.quorum
        finished = finished or "finishes alone" in self._broken
        if party.round_id == self.bounds.rounds and finished:
            return self._done(state, own)
        return _tidy(_with(state, own, party._replace(phase=Phase.STOPPED)), own)

    # Recovery.

    def _enter_flood(self, state: State, own: int, why: str) -> Iterator[tuple[str, State]]:
        """Yield that a party leaves its wait; of what it could have opened by then, it has some."""
        party = state.parties[own]
        able = party.phase is Phase.SUM and not self._waits_for(state, own)
        for parts in range(WHOLE + 1) if able else (0,):
            if parts & ~party.wanted:
                continue
            after = self._open(state, own, parts, settle=False)
            flood = after.parties[own]._replace(phase=Phase.FLOOD, lost=0, silent=0, step=0)
            yield f"{own} {why}, has opened {parts}", self._alarm(_with(after, own, flood), own)

    def _alarm(self, state: State, own: int) -> State:
        party = state.parties[own]
        to = party.roster & ~party.lost
        return self._send(state, own, "ALARM", (party.lost,), step=party.step, to=to)

    def _flood_step(self, state: State, own: int) -> Iterator[tuple[str, State]]:
        party = state.parties[own]
        moved = [
            m
            for m in party.mailbox
            if m.kind == "MOVED" and not (party.lost | party.silent) >> m.sender & 1
        ]
        for message in sorted(moved):
            yield f"{own} is told of epoch {message.epoch}", self._follow(state, own, message)
        if moved or self._waits_for(state, own):
            return
        told = [
            m.content[0]
            for m in party.mailbox
            if m.kind == "ALARM"
            and (m.epoch, m.step) == (party.epoch, party.step)
            and not (party.lost | party.silent) >> m.sender & 1
        ]
        lost = party.lost | party.silent
        for others in told:
            lost |= others
        if lost >> own & 1:
            yield f"{own} is given up", self._stop(state, own)
        elif lost == party.lost and all(others == lost for others in told):
            yield f"{own} agrees on {lost}", self._enter(state, own, party.roster & ~lost)
        else:
            after = party._replace(lost=lost, silent=0, step=party.step + 1)
            yield f"{own} asks again", self._alarm(_with(state, own, after), own)

    def _follow(self, state: State, own: int, message: Message) -> State:
        roster = message.content[0]
        if not roster >> own & 1:
            return self._stop(state, own)
        _require(message.epoch == state.parties[own].epoch + 1, "a party is two epochs behind")
        return self._enter(state, own, roster)

    def _enter(self, state: State, own: int, roster: int) -> State:
        """Enter the next epoch and sign its view, or stop."""
        party = state.parties[own]
        if _size(roster) < self.bounds.quorum:
            return self._stop(state, own)
        epoch = party.epoch + 1
        if "signs twice" in self._broken and party.signed[-1][0] > 0:
            epoch = party.signed[-1][0]
        _require(all(e != epoch for e, _ in party.signed), "a party signs two views of one epoch")
        behind = [m for m in party.mailbox if m.kind == "ALARM" and m.epoch == party.epoch]
        unread = {m.sender for m in behind if m.step > party.step or not roster >> m.sender & 1}
        if "answers nothing it had before it went" in self._broken:
            unread = set()
        after = party._replace(
            phase=Phase.SIGN,
            epoch=epoch,
            roster=roster,
            signed=(*party.signed, (epoch, roster)),
            lost=0,
            silent=0,
            step=0,
            wanted=0,
            mailbox=frozenset(
                m
                for m in party.mailbox
                if (m.epoch >= epoch and m.kind != "MOVED") or m.kind == "FINISH"
            ),
        )
        state = _with(state, own, after)
        for sender in sorted(unread):
            state = self._answer(state, own, sender, party.epoch)
        return self._send(state, own, "SIGN", (roster,))

    def _answer(self, state: State, own: int, to: int, epoch: int) -> State:
        """Tell a party that is behind where this one has gone."""
        if "tells nobody where it went" in self._broken:
            return state
        message = Message("MOVED", epoch + 1, 0, own, (state.parties[own].roster,))
        other = state.parties[to]
        if state.dead >> to & 1 or _ended(other) or other.epoch > epoch:
            return state
        return _with(state, to, other._replace(mailbox=other.mailbox | {message}))

    def _signed(self, state: State, own: int) -> State:
        """All have signed: say what this party holds."""
        party = state.parties[own]
        if any(content != (party.roster,) for content in _contents(party, "SIGN").values()):
            return self._stop(state, own)
        before = party.model[-1] if party.model else NOTHING
        if "forgets the round before" in self._broken:
            before = NOTHING
        facts = (party.round_id, *party.known, *before, *party.next_attempts)
        party = party._replace(phase=Phase.HOLD)
        return self._send(_with(state, own, party), own, "HOLD", facts, mine=True)

    def _told(self, state: State, own: int) -> State:
        """All have said what they hold: hand on what others lack, wait for what is lacking here."""
        party = state.parties[own]
        statements = _contents(party, "HOLD")
        nexts = tuple(
            max(s[5 + r] for s in statements.values()) for r in range(len(party.next_attempts))
        )
        if "counts its own attempts" in self._broken:
            nexts = party.next_attempts
        state = _with(state, own, party._replace(phase=Phase.HAND, next_attempts=nexts))
        plan = _plan(statements)
        mine = {
            part: _value(statements[own], part) for part, holder in plan.items() if holder == own
        }
        for other in _members(party.roster & ~(1 << own)):
            gift = tuple(
                (*part, value)
                for part, value in sorted(mine.items())
                if not _holds(statements[other], part)
            )
            if gift:
                state = self._send(state, own, "GIVE", gift, to=1 << other)
        return state if self._givers(state.parties[own], own) else self._take(state, own)

    def _take(self, state: State, own: int) -> State:
        """Take what was handed on, and go on with what nobody holds."""
        party = state.parties[own]
        known = list(party.known)
        for gift in _contents(party, "GIVE").values():
            for item in gift:
                round_id, part, value = item
                _require(round_id == party.round_id, "a party is given a part of another round")
                _require(known[part] in (UNKNOWN, value), "two members hold different values")
                known[part] = value
        party = party._replace(known=(known[0], known[1]))
        self._check_values(party, own)
        mailbox = frozenset(m for m in party.mailbox if m.kind not in {"SIGN", "HOLD", "GIVE"})
        state = _with(state, own, party._replace(mailbox=mailbox))
        return self._start(state, own) if UNKNOWN in known else self._settle(state, own)

    def _check_values(self, party: Party, own: int) -> None:
        """Two members of a view never hold different values of a part."""
        statements = _contents(party, "HOLD")
        first = min(s[0] for s in statements.values())
        for part in PARTS:
            values = {_value(s, (first, part)) for s in statements.values()} - {UNKNOWN}
            _require(len(values) <= 1, "two members hold different values")

    def _send(
        self,
        state: State,
        own: int,
        kind: str,
        content: Content,
        *,
        step: int = 0,
        to: int = EVERYBODY,
        mine: bool = False,
    ) -> State:
        """Put a message into the mailboxes of the roster, and into one's own where that helps."""
        party = state.parties[own]
        message = Message(kind, party.epoch, step, own, content)
        for other in _members(to & party.roster):
            target = state.parties[other]
            if (other == own and not mine) or state.dead >> other & 1 or _ended(target):
                continue
            if target.epoch > party.epoch and kind != "FINISH":
                if kind == "ALARM":
                    state = self._answer(state, other, own, party.epoch)
            elif target.epoch < party.epoch or target.roster >> own & 1:
                state = _with(state, other, target._replace(mailbox=target.mailbox | {message}))
        return state


# A statement: round, two parts of it, two parts of the round before, the next attempts.


def _plan(statements: dict[int, Content]) -> dict[tuple[int, int], int]:
    """Return the lowest holder of each part of the earliest round that a member needs."""
    first = min(statement[0] for statement in statements.values())
    plan = {}
    for part in PARTS:
        holders = [p for p, s in sorted(statements.items()) if _holds(s, (first, part))]
        if holders:
            plan[first, part] = holders[0]
    return plan


def _value(statement: Content, part: tuple[int, int]) -> int:
    round_id, number = part
    value = UNKNOWN
    if round_id == statement[0]:
        value = statement[1 + number]
    elif round_id == statement[0] - 1:
        value = statement[3 + number]
    return value


def _holds(statement: Content, part: tuple[int, int]) -> bool:
    return _value(statement, part) != UNKNOWN


def _holding(party: Party, round_id: int) -> tuple[int, int]:
    """Return which attempts opened what this party holds of a round."""
    if round_id == party.round_id:
        return party.known
    return party.model[round_id] if round_id < len(party.model) else NOTHING


def _contents(party: Party, kind: str) -> dict[int, Content]:
    """Return what the members of the view said, by sender."""
    return {m.sender: m.content for m in party.mailbox if m.kind == kind and _is_current(party, m)}


def _is_current(party: Party, message: Message) -> bool:
    """Tell whether a message is for what the party does now; attempts bear their numbers."""
    if message.epoch != party.epoch or not party.roster >> message.sender & 1:
        return False
    if message.kind in {"READY", "SUM"}:
        return message.content[:2] == (party.round_id, party.attempt)
    return True


def _senders(party: Party, kind: str, step: int = 0) -> int:
    senders = 0
    for message in party.mailbox:
        named = message.kind == kind and message.step == step
        if named and (kind == "MOVED" or _is_current(party, message)):
            senders |= 1 << message.sender
    return senders


def _senders_ever(party: Party, kind: str) -> int:
    senders = 0
    for message in party.mailbox:
        if message.kind == kind:
            senders |= 1 << message.sender
    return senders


def _with(state: State, own: int, party: Party) -> State:
    parties = (*state.parties[:own], party, *state.parties[own + 1 :])
    return state._replace(parties=parties)


def _without_mail(state: State, own: int) -> State:
    return _with(state, own, state.parties[own]._replace(mailbox=frozenset()))


def _tidy(state: State, own: int) -> State:
    """Forget what an ended party will not look at again."""
    return _without_mail(state, own)


def _progress(party: Party, rounds: int) -> tuple[int, ...]:
    """Return what grows with every step of a party, so that no run is endless."""
    if _ended(party):
        return (1,)
    place = int(party.phase)
    if party.phase in {Phase.READY, Phase.SUM}:
        place += 2 * party.round_id
    elif party.phase is Phase.FINISH:
        place += 2 * rounds
    elif party.phase is Phase.FLOOD:
        place = 2 * rounds + Phase.FLOOD + party.step
    return (0, party.epoch, place, _size(party.silent))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search saw.

    Attributes:
        states: that can be reached.
        ends: states in which every party has ended or died.
        finished: how many ends have a party that finished.
        retried: how many ends have an attempt for one part only.
    """

    states: int
    ends: int
    finished: int
    retried: int


def explore(bounds: Bounds) -> Outcome:
    """Visit every state.

    Raises:
        Violation: some property does not hold; the text ends with the steps that lead there.
    """
    model = Model(bounds)
    start = model.first()
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    waiting = [start]
    ends = finished = retried = 0
    while waiting:
        state = waiting.pop()
        try:
            steps = model.steps(state)
            for _, after in steps:
                _check_progress(state, after, bounds)
            if not steps:
                _check_end(state, bounds)
        except Violation as violation:
            raise Violation(f"{violation}\n{_story(state, came_from)}") from None
        if not steps:
            ends += 1
            finished += any(party.phase is Phase.DONE for party in state.parties)
            retried += any(_size(begun.wanted) == 1 for begun in state.begun)
        for label, after in steps:
            if after not in came_from:
                came_from[after] = (state, label)
                waiting.append(after)
    return Outcome(len(came_from), ends, finished, retried)


def _check_progress(before: State, after: State, bounds: Bounds) -> None:
    """Exactly one party took a step, and it is further than it was: no run is endless."""
    moved = []
    for old, new in zip(before.parties, after.parties, strict=True):
        # Who only got mail, or nothing, took no step.
        if old[:-1] != new[:-1]:
            moved.append((_progress(old, bounds.rounds), _progress(new, bounds.rounds)))
    _require(len(moved) == 1 and moved[0][0] < moved[0][1], "a step leads nowhere")
    failures = _size(after.dead | after.slow)
    spurious = after.timed_out and failures <= bounds.max_dropout
    _require(not spurious, "somebody waits for a message that nobody will send")


def _check_end(state: State, bounds: Bounds) -> None:
    """Nobody waits for ever; few failures don't end a run; nobody pays for what did not fail."""
    failed = state.dead | state.slow
    for own in PARTIES:
        party = state.parties[own]
        _require(_ended(party) or bool(state.dead >> own & 1), "a party waits for ever")
        planned = _size(failed) <= min(bounds.max_dropout, bounds.spare_attempts)
        if planned and not failed >> own & 1:
            _require(party.phase is Phase.DONE, "a run stops though a quorum is there")
        if not failed:
            _require(len(party.ledger) == bounds.rounds, "a ledger pays though nothing failed")


def _story(state: State, came_from: dict[State, tuple[State, str] | None]) -> str:
    """Return the steps that lead to a state."""
    labels = []
    step = came_from[state]
    while step is not None:
        state, label = step
        labels.append(label)
        step = came_from[state]
    return "\n".join(reversed(labels))
