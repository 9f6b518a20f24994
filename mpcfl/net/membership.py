"""Who is left, when a party is lost: all who are agree on it before anything goes on.

MPI and deadlines only *suspect*: one party sees a death or a silence, another does not yet. So
whoever meets one raises an alarm, which reaches the others wherever they wait, and all of them
tell each other whom they miss, again and again, until everybody says the same (flooding). They
then leave the epoch together; messages of an earlier one are never looked at again. A party
that is still in it, because it heard less, is told where the others are. What follows, the
signatures of all on the new roster, is `view.confirm_view`'s: a party that is lost while they
sign is lost in the new epoch, and the same begins again there.

Silence is no death: a party may be silent because it waits for another one. Whoever is doubted
is asked, and is lost only if it doesn't answer within seconds.

Safety rests on three things. A roster only counts with the signatures of all in it, a member
signs one roster per epoch, and a quorum is more than half of all parties: so there are never two
rosters that both go on. Liveness rests on deadlines: who says nothing for one is left out, and
finds that out. And whoever knows that the run came to its end tells all others before it leaves,
so that nobody waits for one that is gone.

Assumes members that follow the protocol, over a network that may do anything: alarms are
sealed (`channel.py`). Does not protect against a member that names others as lost, which ends
in a smaller roster or in none. Source: the flooding consensus of Dwork, Lynch, Stockmeyer 1988
(J. ACM 35), for failures by stopping; checked exhaustively for three parties by the model in the
tests (`docs/recovery.md`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpcfl.errors import AuthenticationError, LeftOut, PartyLost, RunOver, were_lost
from mpcfl.net.alarm import Alarm
from mpcfl.net.channel import Channel
from mpcfl.net.port import Port

_POLL_S = 1e-3
# Whoever waits anywhere looks for alarms twenty times a second; a busy machine gets some room.
_ANSWER_S = 3.0
_HURRY_S = 10.0
# Who is alive at the end of a run says so at once; nothing is lost if it doesn't.
_PARTING_S = 2.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What stays as it is for one party, whoever is lost.

    Attributes:
        own: its number.
        names: of all parties, by number.
        deadline_s: how long a silent one is waited for.
    """

    own: int
    names: Sequence[str]
    deadline_s: float


class Membership:
    """One party's view of who takes part. Secret: it has the channels of the alarms.

    Args:
        port: carries alarms.
        channels: one per other member, by number; for alarms only.
        standing: of this party.
        members: numbers of all who take part at first, this one included.

    Attributes:
        epoch: how often somebody was lost.
        members: numbers of those who take part, ascending.
    """

    def __init__(
        self,
        port: Port,
        channels: Mapping[int, Channel],
        standing: Standing,
        members: Collection[int],
    ) -> None:
        self.epoch = 0
        self.members = tuple(sorted(members))
        self._port, self._channels, self._standing = port, dict(channels), standing
        self._waiting: dict[int, list[Alarm]] = {party: [] for party in channels}
        self._longest_s = standing.deadline_s
        # Whether all members have signed the present roster; until then it dismisses nobody.
        self._signed = True
        # Members that know the run to be over.
        self._parted: set[int] = set()

    def watch(self) -> None:
        """Look for alarms; whoever waits for another party calls this now and then.

        Raises:
            PartyLost: a member misses somebody, or has gone on; `ranks` are places in ``members``.
            RunOver: a member says that the run came to its end.
            LeftOut: the others have gone on without this party.
            AuthenticationError: an alarm was not made by its sender.
        """
        self.require_own_place()
        self._require_more()
        for party in self._others():
            for alarm in self._waiting[party]:
                missed = frozenset() if alarm.moved else alarm.parties | alarm.doubted
                raise self._lost(missed, missed or {party})

    def require_own_place(self) -> None:
        """Take in what has come; whoever writes for all calls this before.

        Raises:
            LeftOut: the others have gone on without this party.
            AuthenticationError: an alarm was not made by its sender.
        """
        for party in tuple(self._channels):
            self._collect(party)

    def hurry(self) -> None:
        """Wait for nobody longer than it takes to write a report."""
        self._longest_s = min(self._longest_s, _HURRY_S)

    def agree(
        self, doubted: Collection[int], awaited: Mapping[int, float] | None = None
    ) -> tuple[int, ...]:
        """Agree with all who are left on who that is, and enter the next epoch.

        Args:
            doubted: numbers of the members that were silent for a deadline; may be empty.
            awaited: seconds that this party has waited for others already, by number.

        Returns:
            The numbers of those who were lost; empty if all members answer, as when only
            messages were lost.

        Raises:
            RunOver: a member says that the run came to its end.
            LeftOut: the others have gone on without this party.
        """
        before, lost = frozenset(self.members), frozenset[int]()
        doubts, waited_s = frozenset(doubted), awaited or {}
        while True:
            asked = [party for party in self._others() if party not in lost]
            for party in asked:
                self._post(party, Alarm(self.epoch, lost, doubts))
            heard = self._hear(asked, doubts, waited_s)
            moved = next((alarm for alarm in heard.values() if alarm.moved), None)
            if moved is not None:
                # Nobody can be in a later epoch than the next one without having signed that.
                left = moved.parties if moved.epoch == self.epoch + 1 else frozenset()
                break
            told = [alarm.parties for alarm in heard.values()]
            known = lost.union(set(asked) - set(heard), *told)
            left = before - known
            if known == lost and all(parties == known for parties in told):
                break
            self._require_own(left)
            doubts = doubts.union(*(alarm.doubted for alarm in heard.values()))
            lost, waited_s = known, {}
        self._require_own(left)
        self._enter(left)
        return tuple(sorted(before - left))

    def _enter(self, left: Collection[int]) -> None:
        """Go on with those who are left; whoever asked once more meanwhile is told of it."""
        self.epoch, self.members, self._signed = self.epoch + 1, tuple(sorted(left)), False
        for party, alarms in self._waiting.items():
            unread = [alarm for alarm in alarms if alarm.epoch >= self.epoch + alarm.moved]
            is_behind = any(a.epoch == self.epoch - 1 and not a.moved for a in alarms)
            self._waiting[party] = unread
            if is_behind and party in self.members:
                self._post(party, self._moved())

    def _moved(self) -> Alarm:
        return Alarm(self.epoch, frozenset(self.members), moved=True)

    def settle(self) -> None:
        """Take note that all members have signed the roster, and tell those who are not in it.

        Who is not dead hears of it when it is back. Not before: a party that hears nobody would
        dismiss all others.
        """
        self._signed = True
        for party in self._channels.keys() - set(self.members):
            if not self._port.is_dead(party):
                self._post(party, self._moved())

    def await_end(self, witness: int) -> None:
        """Wait until some member says that the run came to its end.

        Args:
            witness: number of the member that is the first to know.

        Raises:
            PartyLost: the witness died, or was silent for a deadline; or see `watch`.
            LeftOut: the others have gone on without this party.
        """
        start = time.monotonic()
        while True:
            waited_s = time.monotonic() - start
            # Asked first: what a party said before it died still counts.
            is_gone = self._port.is_dead(witness) or waited_s > self._standing.deadline_s
            try:
                self.watch()
            except RunOver:
                return
            if is_gone:
                raise self._lost({witness}, {witness})
            time.sleep(_POLL_S)

    def part(self) -> None:
        """Tell all members that the run came to its end; wait a moment until they say the same."""
        for party in self._others():
            self._post(party, Alarm(self.epoch, over=True))
        start = time.monotonic()
        while time.monotonic() - start < _PARTING_S:
            there = [party for party in self._others() if not self._port.is_dead(party)]
            for party in there:
                self._collect(party)
            if self._parted.issuperset(there):
                return
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Forget the keys of the alarms."""
        self._channels.clear()

    def _others(self) -> list[int]:
        return [party for party in self.members if party != self._standing.own]

    def _require_own(self, left: Collection[int]) -> None:
        if self._standing.own not in left:
            own = self._standing.names[self._standing.own]
            raise LeftOut(
                f"the other parties lost touch with {own} and went on without it; it can take part "
                "again when the run is resumed"
            )

    def _require_more(self) -> None:
        if self._parted:
            names = ", ".join(self._names(self._parted))
            raise RunOver(f"{names} left: the run came to its end there")

    def _lost(self, places_of: Collection[int], named: Collection[int]) -> PartyLost:
        places = tuple(p for p, member in enumerate(self.members) if member in places_of)
        return PartyLost(were_lost(self._names(named)), places)

    def _names(self, parties: Iterable[int]) -> list[str]:
        return [self._standing.names[party] for party in sorted(parties)]

    def _hear(
        self, asked: Sequence[int], doubted: Collection[int], waited_s: Mapping[int, float]
    ) -> dict[int, Alarm]:
        """Return the next alarm of each party; those who die or stay silent are left out."""
        heard: dict[int, Alarm] = {}
        silent, doubts = list(asked), set(doubted)
        start = time.monotonic()
        while silent:
            elapsed_s = time.monotonic() - start
            # Asked first: what a party said before it died still counts.
            over = {
                party
                for party in silent
                if self._port.is_dead(party)
                or elapsed_s > self._patience_s(party in doubts, waited_s.get(party, 0.0))
            }
            for party in self._others():
                self._collect(party)
            doubts |= self._given_up()
            for party in tuple(silent):
                alarm = self._next_alarm(party)
                if alarm is not None:
                    heard[party] = alarm
                    doubts |= alarm.doubted
                if party in over or alarm is not None:
                    silent.remove(party)
            self._require_more()
            if any(alarm.moved for alarm in heard.values()):
                break
            time.sleep(_POLL_S)
        return heard

    def _given_up(self) -> frozenset[int]:
        """Return for whom some member, which is a step further, does not wait any longer."""
        alarms = itertools.chain.from_iterable(self._waiting[party] for party in self._others())
        words = (a.parties for a in alarms if a.epoch == self.epoch and not a.moved)
        return frozenset(itertools.chain.from_iterable(words))

    def _patience_s(self, doubted: bool, waited_s: float) -> float:
        shortest_s = min(self._longest_s, _ANSWER_S)
        return shortest_s if doubted else max(shortest_s, self._longest_s - waited_s)

    def _next_alarm(self, party: int) -> Alarm | None:
        """Take a party's next word on this epoch; what it says of later ones waits."""
        for place, alarm in enumerate(self._waiting[party]):
            if alarm.epoch > self.epoch if alarm.moved else alarm.epoch == self.epoch:
                return self._waiting[party].pop(place)
        return None

    def _collect(self, party: int) -> None:
        """Take in what has come from a party; answer it if it is behind."""
        while (sealed := self._port.take(party)) is not None:
            try:
                message = self._channels[party].open(sealed)
            except AuthenticationError:
                if party in self.members:
                    raise AuthenticationError(self._standing.names[party], "alarm") from None
                # Who was left out has no say, true or forged, and is not listened to any more.
                del self._channels[party]
                return
            alarm = Alarm.decode(message, self._standing.names[party])
            if alarm.moved:
                # Rosters only shrink: who is not in one is in none that follows.
                self._require_own(alarm.parties)
            if party not in self.members:
                if self._signed and not alarm.moved:
                    self._post(party, self._moved())
            elif alarm.over:
                self._parted.add(party)
            elif alarm.epoch >= self.epoch + alarm.moved:
                self._waiting[party].append(alarm)
            elif not alarm.moved:
                self._post(party, self._moved())

    def _post(self, party: int, alarm: Alarm) -> None:
        self._port.post(party, self._channels[party].seal(alarm.encode()))

    def __repr__(self) -> str:
        return f"Membership(epoch {self.epoch}, <redacted>)"
