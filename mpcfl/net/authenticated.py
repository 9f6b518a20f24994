"""A transport whose messages are sealed from party to party, over any other transport.

`exchange` and `allgather` go through one channel per peer (AES-256-GCM with sequence numbers, see
`channel.py`), under keys that the handshake gave (`handshake.py`): what was changed, cut,
repeated, dropped or reordered on the way does not open, and the error names the sender and the
stage. Scatters go through as they are: what they carry is masked, and a checked sum is what finds a
change of it. What is gathered afterwards are sums without masks, so gathers are sealed too, and a
reduction is taken apart into vectors that are still masked. Sessions of sums take their pair
secrets from here (`channel.agree_pair_secrets`), so that their masks are as authentic as the
handshake.

Assumes: the secrets are those of a handshake, or derived from them. Does not protect against: a
party that lies in its own messages; lengths and times of messages show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import AuthenticationError, OutOfOrder
from mpcfl.hazmat.bits import KEY_BYTES, SystemBits
from mpcfl.net.pair_secrets import PairSecrets
from mpcfl.net.sealed_blocks import AddedBlocks, BlockSeal, SealedBlocks, sealed_room
from mpcfl.net.transport import Block, Pending, Transport, check_reducible


class AuthenticatedTransport:
    """Implements `Transport`; secret. All ranks make theirs together, with the same purpose.

    After an error the channels may be out of step: nothing more comes through, and a new one
    takes secrets of its own (`PairSecrets.restrict`).

    Args:
        transport: what carries the sealed messages; nothing else is said on it meanwhile.
        secrets: shared with every other rank; they stay the caller's.
        purpose: sets the channels apart from others under the same secrets; used once.
        names: a name per rank, for errors; ranks are numbered where it is empty.
        owned: close ``transport`` too when this one is closed.

    Raises:
        ValueError: the secrets are not shared with all the other ranks of the transport.
        OutOfOrder: the purpose was used with these secrets before.
    """

    def __init__(
        self,
        transport: Transport,
        secrets: PairSecrets,
        purpose: str,
        names: Sequence[str] = (),
        *,
        owned: bool = False,
    ) -> None:
        ranks = range(transport.n_ranks)
        if secrets.peers != tuple(rank for rank in ranks if rank != transport.rank):
            raise ValueError(
                f"rank {transport.rank} of {len(ranks)} has secrets with {list(secrets.peers)}; it "
                "needs one with each other rank"
            )
        self.rank, self.n_ranks = transport.rank, transport.n_ranks
        self.meter = transport.meter
        self.names = tuple(names)
        self._transport = transport
        self._owned = owned
        self._sessions = secrets.restrict(ranks, "sessions", purpose)
        self._sessions_made = 0
        self._channels = {peer: secrets.channel(peer, purpose) for peer in secrets.peers}
        self._gathers = 0
        # By rank, once there was a gather.
        self._seals: list[BlockSeal] | None = None

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`; each message travels sealed, 16 bytes longer.

        Raises:
            AuthenticationError: a message was changed, cut, repeated, dropped or reordered.
            OutOfOrder: this transport was closed, or there is no channel to that rank.
            PartyLost: as `Transport.exchange`.
        """
        self._check_open((*outgoing, *sources))
        sealed = {peer: self._channels[peer].seal(text) for peer, text in outgoing.items()}
        received = self._transport.exchange(sealed, sources)
        return {peer: self._open(peer, text) for peer, text in received.items()}

    def allgather(self, message: bytes) -> list[bytes]:
        """See `Transport.allgather`; sealed for each of the others by itself."""
        # The next rank comes first, so that not all send to one at once.
        others = [(self.rank + step) % self.n_ranks for step in range(1, self.n_ranks)]
        received = self.exchange(dict.fromkeys(others, message), others)
        return [received.get(rank, message) for rank in range(self.n_ranks)]

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> Pending:
        """See `Transport.begin_scatter`; not sealed."""
        return self._transport.begin_scatter(blocks, inbox)

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> Pending:
        """See `Transport.begin_gather`; sealed, 16 bytes longer.

        The first one of all also exchanges keys: each rank has one for what it gathers.

        Raises:
            OutOfOrder: this transport was closed.
        """
        self._check_open(tuple(inbox))
        if self._seals is None:
            self._seals = self._agree_seals()
        seals, number, self._gathers = self._seals, self._gathers, self._gathers + 1
        room = {peer: sealed_room(block) for peer, block in inbox.items()}
        pending = self._transport.begin_gather(seals[self.rank].seal(number, own), room)

        def open_block(peer: int) -> None:
            try:
                seals[peer].open(number, room[peer], inbox[peer])
            except AuthenticationError:
                raise self._refusal(peer) from None

        return SealedBlocks(pending, tuple(inbox), open_block)

    def begin_allreduce(self, words: NDArray[Any]) -> Pending:
        """See `Transport.begin_allreduce`: everybody sends masked words, and adds up by itself.

        A reduction on the way would carry the sum, without masks, past whoever listens.
        """
        check_reducible(words)
        own = words.copy().view(np.uint8)
        inbox = {rank: np.empty_like(own) for rank in self._channels}
        return AddedBlocks(self._transport.begin_gather(own, inbox), words, inbox)

    def session_secrets(self, run_id: str) -> PairSecrets:
        """Derive this rank's secrets for one more session; see `channel.agree_pair_secrets`.

        All ranks call it together, without a message. The number of the session is in the
        secrets: even two sessions of one name share none, and repeat no nonce.

        Raises:
            OutOfOrder: this transport was closed.
        """
        self._check_open(())
        self._sessions_made += 1
        return self._sessions.restrict(range(self.n_ranks), run_id, self._sessions_made)

    def close(self) -> None:
        """Forget all keys; may be called twice, and after a failure."""
        self._channels.clear()
        self._seals = None
        self._sessions.forget()
        self._sessions_made = -1
        if self._owned:
            self._transport.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.n_ranks}, <redacted>)"

    def __reduce__(self) -> Any:
        raise TypeError("a transport with keys must not leave its process")

    def _agree_seals(self) -> list[BlockSeal]:
        keys = self.allgather(SystemBits().words(KEY_BYTES // 8).tobytes())
        return [BlockSeal(key) for key in keys]

    def _check_open(self, peers: Sequence[int]) -> None:
        if self._sessions_made < 0:
            raise OutOfOrder("this authenticated transport was closed; open a new one")
        for peer in peers:
            if peer not in self._channels:
                raise OutOfOrder(f"rank {self.rank} has no channel to rank {peer}")

    def _open(self, peer: int, sealed: bytes) -> bytes:
        try:
            return self._channels[peer].open(sealed)
        except AuthenticationError:
            raise self._refusal(peer) from None

    def _refusal(self, peer: int) -> AuthenticationError:
        name = self.names[peer] if peer < len(self.names) else f"rank {peer}"
        # Where the rank is; the meter knows.
        return AuthenticationError(name, getattr(self.meter, "current", ""))
