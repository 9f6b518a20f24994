"""How far one party is: its round, what it knows of that round's sum, and its open session."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mpcfl.config import Custody
from mpcfl.dp.attempts import AttemptLog, opened_digest
from mpcfl.dp.ledger import Charge, Ledger, Token
from mpcfl.errors import MpcflError
from mpcfl.net.meter import Meter
from mpcfl.net.wire import Format, Kind, text
from mpcfl.parties.connection import Connection
from mpcfl.parties.folders import RunPlace
from mpcfl.parties.recorder import Recorder, RecorderStart
from mpcfl.parties.setup import Rank
from mpcfl.report.run_folder import RunFolder
from mpcfl.round import sum_settings
from mpcfl.secagg.base import BackendFactory, IntVector, SumId, SumSettings
from mpcfl.secagg.checked_sum import CheckedSum
from mpcfl.secagg.custody import resolve_threshold
from mpcfl.secagg.opened_sum import OpenedSum, PartialSum, Piece, Span
from mpcfl.secagg.opening import backend_of, open_sum
from mpcfl.secagg.salvage import UnopenedProduct, salvage_of

_KEY_HELD = Format(Kind.KEY_HELD, key=text(64))


@dataclass(frozen=True, slots=True)
class Reserved:
    """An attempt's charge, written ahead in this party's ledger."""

    ledger: Ledger
    charge: Charge
    token: Token


@dataclass(slots=True)
class Progress:
    """Where this party is between two rounds, or in one.

    Attributes:
        round_id: the round that it needs next.
        opened: what it knows of that round's sum.
        previous: the whole sum of the round before; whoever was interrupted may need it.
        reserved: the charge of the attempt that is under way or was last.
        blind: True once a sum broke off of which this party can't tell what it knows.
        product: the sum that lies encrypted here since it broke off, if there is one.
        false_alarms: how often all were still there after an alarm.
        caught_up: others were through with this round, its totals included, before this party.
        lost: names of those who were lost in this round.
        meter: of this round.
    """

    round_id: int
    opened: OpenedSum
    previous: OpenedSum | None = None
    reserved: Reserved | None = None
    blind: bool = False
    product: UnopenedProduct | None = None
    false_alarms: int = 0
    caught_up: bool = False
    lost: tuple[str, ...] = ()
    meter: Meter = field(default_factory=Meter)

    def step_to(self, round_id: int) -> None:
        """Go, at an aggregator, to the round where the data parties are: back, or forward."""
        self.round_id, self.opened, self.previous = round_id, OpenedSum(self.opened.dim), None

    def advance(self, parent: Meter) -> None:
        """Go on to the next round; nothing of this one is kept but its sum."""
        self.round_id += 1
        self.previous, self.opened = self.opened, OpenedSum(self.opened.dim)
        self.reserved, self.blind, self.product, self.lost = None, False, None, ()
        self.false_alarms, self.caught_up = 0, False
        self.meter = Meter(parent=parent)


@dataclass(slots=True)
class Run:
    """One rank's part of a run that has begun.

    Attributes:
        rank: what it loaded.
        connection: to those who take part.
        place: where the run's results go on this host.
        attempts: guards and notes this party's attempts.
        progress: how far it is.
        make_recorder: makes what writes the folder.
        recorder: writes the run's folder; at one of the parties that share it.
        session: the open session of sums, and the coordinates that it is for.
        dealt: this party's share of a key that was dealt for this run; secret. None without one.
    """

    rank: Rank
    connection: Connection
    place: RunPlace
    attempts: AttemptLog
    progress: Progress
    make_recorder: Callable[[RecorderStart], Recorder]
    recorder: Recorder | None = None
    session: PartialSum | None = None
    dealt: Any = None
    _session_epoch: int = -1

    @property
    def folder(self) -> RunFolder:
        """Return the folder of the run's results on this host."""
        return self.place.folder

    @property
    def speaks(self) -> bool:
        """True at the one party that tells people how far the run is."""
        return self.connection.number == min(self.data_members)

    @property
    def data_members(self) -> tuple[int, ...]:
        """Return the numbers of the data parties that take part."""
        count = self.rank.public.job.parties.count
        return tuple(number for number in self.connection.members if number < count)

    def session_for(self, spans: tuple[Span, ...]) -> PartialSum:
        """Return the session for some coordinates, opened over the present members if need be.

        All of them call it together, with the same coordinates.

        Raises:
            PartyLost: a member was lost meanwhile; nothing of a vector was sent.
        """
        epoch = self.connection.view.epoch
        if self.session is not None and (self._session_epoch, self.session.spans) == (epoch, spans):
            return self.session
        self.close_session()
        job = self.rank.public.job
        settings = replace(
            sum_settings(self.rank.public, f"{self.connection.view.run_id}-{epoch}"),
            dim=sum(stop - start for start, stop in spans),
        )
        if settings.custody is Custody.THRESHOLD:
            # Of the key, whose shares were dealt to all; not of those who are left.
            threshold = resolve_threshold(job.aggregation.threshold, job.parties.count)
            settings = replace(settings, threshold=threshold)
        secure = open_sum(self._factory(settings), self.connection.transport, settings)
        self.session, self._session_epoch = PartialSum(secure, spans), epoch
        self.dealt = getattr(backend_of(secure), "held_share", lambda: None)()
        return self.session

    def _factory(self, settings: SumSettings) -> BackendFactory:
        """Return what opens the backend: with the key shares that were dealt before, if all have.

        A loss while a session opened may have left some of them without.
        """
        open_backend: Any = self.rank.open_backend
        if settings.custody is not Custody.THRESHOLD or self.rank.key:
            return self.rank.open_backend
        own = "" if self.dealt is None else self.dealt.share.key.fingerprint
        stated = self.connection.transport.allgather(_KEY_HELD.encode(key=own))
        keys = {_KEY_HELD.decode(message)["key"] for message in stated}
        if keys != {own} or not own:
            return self.rank.open_backend
        with_shares: BackendFactory = partial(open_backend, held=self.dealt)
        return with_shares

    def take(self, session: PartialSum, part: slice, values: IntVector, attempt: int) -> None:
        """Take what was opened of an attempt: values of a part of the session's vectors."""
        progress, at = self.progress, 0
        for start, stop in session.places(part):
            piece, at = values[at : at + stop - start], at + stop - start
            progress.opened.add(Piece((start, stop), attempt, piece))
            digest = opened_digest(piece)
            self.attempts.open(progress.round_id, attempt, [(start, stop)], digest)

    def require_piece(self, piece: Piece) -> None:
        """Hold a piece that another party told against this party's own tags, where it has them.

        Raises:
            CheckFailed: it is not what the parties put in.
        """
        session = self.session
        if session is None or not isinstance(session.secure, CheckedSum) or piece.values is None:
            return
        if session.secure.current != SumId(self.progress.round_id, piece.attempt):
            return
        for number, part in enumerate(session.secure.parts):
            if session.places(part) == [piece.span]:
                session.secure.require_part(number, piece.values)

    def salvage(self, attempt: int) -> None:
        """Keep what this party knows of a sum that broke off."""
        if self.session is None:
            return
        secure = self.session.secure
        found = salvage_of(secure)
        self.progress.blind = found is None
        if found is None or self.rank.party is None:
            return
        self.progress.product = found.product
        for number, values in found.known.items():
            self.take(self.session, found.parts[number], values, attempt)

    def close_session(self) -> None:
        """Close the session, if one is open; what it knows must have been salvaged."""
        session, self.session = self.session, None
        if session is not None:
            # After a loss a thread of it may end with an error that was told already.
            with suppress(MpcflError):
                session.secure.close()

    def appoint_recorder(self) -> None:
        """Let the lowest data party write its folder, if nobody who takes part does so yet."""
        writers = [number for number in self.data_members if number in self.place.sharers]
        if self.recorder is None and writers and self.connection.number == writers[0]:
            previous = self.progress.previous
            everybody = tuple(range(self.rank.public.job.parties.count))
            start = RecorderStart(
                next_round=self.progress.round_id,
                last_parties=everybody if previous is None else previous.widest_roster,
                require_own_place=self.connection.require_own_place,
                has_lost=len(self.data_members) < len(everybody),
                is_alone=self.place.is_shared_by_all,
                speaks=self.speaks,
                is_keeper=self.connection.number == self.place.sharers[0],
            )
            self.recorder = self.make_recorder(start)
