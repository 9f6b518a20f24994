"""What the members of a roster sign before they derive a key for it: one view per epoch.

Adversary: the network, and members that were told different things. All signatures of a view
are checked at every member, over channels that only this roster has. A member signs one view in
an epoch, so that of two rosters for one epoch at most one has all its signatures, and a roster
without all of them opens nothing: its masks need every member.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mpcfl.errors import AuthenticationError
from mpcfl.hazmat.bits import domain_tag
from mpcfl.net.identity import SIGNATURE_BYTES, Identity, verify
from mpcfl.net.transport import Transport
from mpcfl.net.wire import Format, Kind, fixed

_SIGNATURE = Format(Kind.VIEW_SIGNATURE, signature=fixed(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class View:
    """Who takes part from an epoch on; public.

    Attributes:
        run_id: of the handshake that all of them made.
        epoch: how often somebody was lost since.
        members: original numbers of those who take part, ascending.
    """

    run_id: str
    epoch: int
    members: tuple[int, ...]

    @property
    def statement(self) -> bytes:
        """Return what a member signs; different views never give the same bytes."""
        return domain_tag("view", self.run_id, self.epoch, len(self.members), *self.members)

    @property
    def digest(self) -> str:
        """Return what names this view in records, hex."""
        return hashlib.sha256(self.statement).hexdigest()


def confirm_view(
    transport: Transport, view: View, identity: Identity, public_keys: Sequence[bytes]
) -> None:
    """Sign a view and check the signatures of all members, who call this together.

    Args:
        transport: joins them, in the order of ``view.members``.
        view: as this member sees it.
        identity: of this member.
        public_keys: of the members, in their order.

    Raises:
        AuthenticationError: a member did not sign this view.
        PartyLost: a member was lost meanwhile; the view then never counts.
    """
    own = _SIGNATURE.encode(signature=identity.sign(view.statement))
    for place, message in enumerate(transport.allgather(own)):
        signature = _SIGNATURE.decode(message)["signature"]
        try:
            verify(public_keys[place], view.statement, signature)
        except AuthenticationError:
            raise AuthenticationError(f"party {view.members[place]}", "view") from None
