"""A party's link to those who take part: sealed, and over fewer parties after each loss.

Three ways to name a party. Its *number* is its place in the job; ledgers and names go by it. Its
*seat* is its MPI rank, for as long as this process lives; where a run is resumed without some
parties, seats are fewer than numbers. Its *place* is its rank in the present transport.

After a loss the survivors agree on who is left (`net/membership.py`), all sign that
(`net/view.py`), and only then derive keys for it. With fewer than the plan's quorum nothing more
is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpcfl.errors import ConfigError, LeftOut, PartyLost, QuorumLost
from mpcfl.net.authenticated import AuthenticatedTransport
from mpcfl.net.handshake import Authenticated
from mpcfl.net.identity import Identity
from mpcfl.net.membership import Membership, Standing
from mpcfl.net.port import Port
from mpcfl.net.transport import Transport
from mpcfl.net.view import View, confirm_view

_PURPOSE, _ALARMS = "job", "alarm"


class RawTransport(Transport, Protocol):
    """What carries the messages of an epoch: `MpiTransport`, or one in memory."""

    members: tuple[int, ...]
    names: tuple[str, ...]
    deadline_s: float
    watch: Callable[[], None]

    def successor(self, lost: Sequence[int]) -> RawTransport:
        """Return the transport of the next epoch, without the ranks ``lost``."""
        ...


@dataclass(frozen=True, slots=True)
class Carrier:
    """What carries a party's messages, and what stays as it is whoever is lost.

    Attributes:
        raw: joins all seats; not sealed.
        port: for alarms.
        numbers: of the parties, by seat.
        require_quorum: raises `QuorumLost` where these numbers are too few to go on.
    """

    raw: RawTransport
    port: Port
    numbers: tuple[int, ...]
    require_quorum: Callable[[tuple[int, ...]], None]


class Connection:
    """This party's link to the parties of the present view. Secret.

    Attributes:
        number: of this party.
        transport: sealed; joins those who take part, in the order of ``members``.
    """

    def __init__(self, carrier: Carrier, identity: Identity, agreed: Authenticated) -> None:
        self._carrier, self._identity, self._agreed = carrier, identity, agreed
        raw = self._raw = carrier.raw
        self.number = carrier.numbers[raw.rank]
        channels = {peer: agreed.secrets.channel(peer, _ALARMS) for peer in agreed.secrets.peers}
        standing = Standing(raw.rank, raw.names, raw.deadline_s)
        self._membership = Membership(carrier.port, channels, standing, range(raw.n_ranks))
        raw.watch = self._membership.watch
        self.transport = AuthenticatedTransport(raw, agreed.secrets, _PURPOSE, raw.names)

    @property
    def members(self) -> tuple[int, ...]:
        """Return the numbers of those who take part, ascending."""
        return tuple(self._carrier.numbers[seat] for seat in self._membership.members)

    @property
    def view(self) -> View:
        """Return who takes part since when, as all of them signed it."""
        return View(self._agreed.run_id, self._membership.epoch, self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of those who take part, in the order of ``members``."""
        return self._raw.names

    @property
    def has_silent(self) -> bool:
        """True if somebody was left out who may not be dead: MPI would wait for it at the end."""
        return bool(self._silent())

    @property
    def has_lost(self) -> bool:
        """True if anybody is gone by now, left out or not."""
        dead = any(self._carrier.port.is_dead(seat) for seat in range(len(self._carrier.numbers)))
        return dead or len(self._membership.members) < len(self._carrier.numbers)

    def require_own_place(self) -> None:
        """Refuse to go on if the others have gone on without this party.

        Raises:
            LeftOut: they have.
        """
        self._membership.require_own_place()

    def hurry(self) -> None:
        """Ask nobody for long any more: all work is done, and others may have left."""
        self._membership.hurry()

    def await_end(self, witness: int) -> None:
        """Wait until some party says that the run came to its end.

        Args:
            witness: number of the party that is the first to know.

        Raises:
            PartyLost: the witness was lost, or another party told of a loss.
        """
        self._membership.await_end(self._carrier.numbers.index(witness))

    def part(self) -> None:
        """Tell all that the run came to its end, so that nobody waits for this party any more."""
        self._membership.part()

    def recover(self, lost: PartyLost) -> None:
        """Go on with those who are left; all of them call it together, each for its own reason.

        Where all answer, and only time or messages were lost, nobody is left out.

        Args:
            lost: what told this party of the loss.

        Raises:
            QuorumLost: too few are left.
            LeftOut: the others have gone on without this party, or may do so.
            RunOver: the others have come to the end of the run.
            PartyLost: another party was lost meanwhile; call this again with it.
            AuthenticationError: a member did not sign the view.
        """
        doubted = [self._membership.members[place] for place in lost.ranks]
        awaited = {self._membership.members[place]: s for place, s in lost.awaited.items()}
        self._membership.agree(doubted, awaited)
        self._require_quorum()
        self._follow()
        public_keys = [self._agreed.public_keys[seat] for seat in self._membership.members]
        confirm_view(self.transport, self.view, self._identity, public_keys)
        self._membership.settle()

    def confirm(self) -> None:
        """Sign the first view; all parties call it together, once, before the first round."""
        confirm_view(self.transport, self.view, self._identity, self._agreed.public_keys)

    def close(self) -> None:
        """Forget all keys."""
        self._membership.close()
        self.transport.close()
        self._agreed.secrets.forget()

    def _silent(self) -> tuple[int, ...]:
        """Return the numbers of those who were left out and may not be dead."""
        seats = range(len(self._carrier.numbers))
        out = [seat for seat in seats if seat not in self._membership.members]
        silent = (seat for seat in out if not self._carrier.port.is_dead(seat))
        return tuple(self._carrier.numbers[seat] for seat in silent)

    def _require_quorum(self) -> None:
        """Refuse to go on with too few; quietly, where the others may be enough by themselves."""
        try:
            self._carrier.require_quorum(self.members)
        except QuorumLost as error:
            try:
                self._carrier.require_quorum(self._silent())
            except (QuorumLost, ConfigError):
                raise error from None
            raise LeftOut(str(error), error.ranks) from error

    def _follow(self) -> None:
        left, epoch = self._membership.members, self._membership.epoch
        places = [place for place, seat in enumerate(self._raw.members) if seat not in left]
        self.transport.close()
        self._raw = self._raw.successor(places)
        secrets = self._agreed.secrets.restrict(left, "view", epoch)
        self.transport = AuthenticatedTransport(self._raw, secrets, _PURPOSE, self._raw.names)
