"""Joining a peer's session: sealed channels, and one key that the data parties share.

Rank 0 makes the key. Data parties get the private part, the aggregator the public one, over
channels sealed as those of our backends. Assumes that rank 0 and the data parties follow the
protocol; whoever holds the private part decrypts everything under the key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpcfl.config import Custody
from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.custody import KEY_MAKER, Roles, assign_roles
from mpcfl.secagg.key_dealing import open_wires


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Joined:
    """What a rank has once it has joined.

    Attributes:
        roles: who has data, and who adds.
        wires: sealed channels to all others.
        private: the private key in the library's own encoding, None at the aggregator; secret.
        public: what the aggregator needs, in the library's own encoding; None elsewhere.
    """

    roles: Roles
    wires: SealedTransport
    private: bytes | None
    public: bytes | None


def join(
    transport: Transport,
    settings: SumSettings,
    purpose: str,
    make: Callable[[], tuple[bytes, bytes]],
) -> Joined:
    """Agree channels and hand out a key; all ranks call it together.

    Args:
        transport: joins the ranks; the last is the aggregator.
        settings: of the session.
        purpose: names the channels.
        make: returns the private and the public part of a new key; called at rank 0.

    Raises:
        ConfigError: there is no rank left for data.
    """
    roles = assign_roles(Custody.CLIENTS, transport.n_ranks)
    wires = open_wires(transport, settings, purpose)
    if transport.rank == KEY_MAKER:
        private, public = make()
        outgoing = dict.fromkeys(set(roles.key_ranks) - {KEY_MAKER}, private)
        outgoing[transport.n_ranks - 1] = public
        wires.exchange(outgoing, [])
        return Joined(roles, wires, private, None)
    message = wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
    if transport.rank == roles.aggregator:
        return Joined(roles, wires, None, message)
    return Joined(roles, wires, message, None)
