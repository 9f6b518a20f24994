"""The secrets that two ranks share, and what is made of them: keys and sealed channels.

All keys come from a pair's secret by HKDF-SHA-256 (RFC 5869), with a domain tag for each use.
Messages are sealed with AES-256-GCM (NIST SP 800-38D): one key per direction, the sequence number
as nonce, so that a message that was changed, cut, repeated, dropped or reordered does not open.

Assumes: nobody but the pair knows its secret; `channel.py` and `handshake.py` say how it is
agreed. Does not protect against: a reader of this process' memory, as Python can't wipe it;
lengths and times of messages show.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpcfl.errors import AuthenticationError, OutOfOrder
from mpcfl.hazmat.bits import derive_key, domain_tag

_NONCE_BYTES = 12
# AES-GCM with a counter as nonce; the standard allows 2^32 calls under one key.
_MAX_MESSAGES = 1 << 32


class Secret:
    """What all secrets refuse: to be shown, copied, pickled or used as a condition."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret must not leave its process")

    def __bool__(self) -> NoReturn:
        raise TypeError("a secret is neither true nor false")


class _Direction(Secret):
    """One AEAD key and the number of messages that it has handled."""

    __slots__ = ("_aead", "_sequence")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._sequence = 0

    def seal(self, message: bytes) -> bytes:
        if self._sequence >= _MAX_MESSAGES:
            raise OutOfOrder("a channel has sealed 2^32 messages; open a new session")
        sealed = self._aead.encrypt(self._nonce(), message, None)
        self._sequence += 1
        return sealed

    def open(self, sealed: bytes) -> bytes:
        try:
            message = self._aead.decrypt(self._nonce(), sealed, None)
        except InvalidTag:
            raise AuthenticationError from None
        self._sequence += 1
        return message

    def _nonce(self) -> bytes:
        return self._sequence.to_bytes(_NONCE_BYTES, "big")


class Channel(Secret):
    """A two-way channel to one peer; each direction has its own key and sequence numbers."""

    __slots__ = ("_incoming", "_outgoing")

    def __init__(self, outgoing_key: bytes, incoming_key: bytes) -> None:
        self._outgoing = _Direction(outgoing_key)
        self._incoming = _Direction(incoming_key)

    def seal(self, message: bytes) -> bytes:
        """Return ``message`` encrypted and authenticated, 16 bytes longer, as the next in order."""
        return self._outgoing.seal(message)

    def open(self, sealed: bytes) -> bytes:
        """Return the peer's next message.

        Raises:
            AuthenticationError: this is not, byte for byte, the next message that the peer sealed.
        """
        return self._incoming.open(sealed)


class PairSecrets(Secret):
    """One agreed secret per peer of one session; known to that pair only."""

    __slots__ = ("_channels_made", "_rank", "_restrictions_made", "_secrets")

    def __init__(self, rank: int, secrets: Mapping[int, bytes]) -> None:
        self._rank = rank
        self._secrets = dict(secrets)
        self._channels_made: set[tuple[int, str]] = set()
        self._restrictions_made: set[bytes] = set()

    @property
    def peers(self) -> tuple[int, ...]:
        """Ranks of the peers, ascending."""
        return tuple(sorted(self._secrets))

    def key(self, peer: int, purpose: str, *context: int | str) -> bytes:
        """Derive the 32-byte key that this rank and ``peer`` share for one use.

        Args:
            peer: the other rank; both sides get the same key.
            purpose: what the key is for; with ``context`` unique to one use.
            context: counter, round and the like.

        Raises:
            OutOfOrder: the secrets were forgotten, or there is no such peer.
        """
        return self._derive(peer, domain_tag("pair-key", purpose, *context))

    def channel(self, peer: int, purpose: str) -> Channel:
        """Make the channel to ``peer`` for one purpose, once: a second one would repeat nonces.

        Raises:
            OutOfOrder: the channel was made before, or the secrets were forgotten.
        """
        if (peer, purpose) in self._channels_made:
            raise OutOfOrder(f"the channel {purpose!r} to rank {peer} was made before; keep it")
        self._channels_made.add((peer, purpose))
        outgoing, incoming = (
            self._derive(peer, domain_tag("channel", purpose, sender, receiver))
            for sender, receiver in ((self._rank, peer), (peer, self._rank))
        )
        return Channel(outgoing, incoming)

    def restrict(self, members: Sequence[int], *context: int | str) -> PairSecrets:
        """Derive the secrets that only ``members`` share, numbered by their place among them.

        Ranks that don't agree on the members and on the context share nothing. Once for each:
        a second copy would make channels whose nonces repeat.

        Args:
            members: ranks, ascending, this one among them.
            context: what the secrets are for, an epoch or the like.

        Raises:
            ValueError: ``members`` are not ascending, or this rank is not one of them.
            OutOfOrder: these secrets were made before or forgotten, or a member shares none.
        """
        if list(members) != sorted(set(members)) or self._rank not in members:
            raise ValueError(f"{list(members)} are not ascending ranks with rank {self._rank}")
        # The number of members keeps them apart from the context.
        tag = domain_tag("restricted", len(members), *members, *context)
        if tag in self._restrictions_made:
            raise OutOfOrder("secrets for these members were made before; keep them")
        secrets = {
            place: self._derive(member, tag)
            for place, member in enumerate(members)
            if member != self._rank
        }
        self._restrictions_made.add(tag)
        return PairSecrets(list(members).index(self._rank), secrets)

    def keep(self, peers: Collection[int]) -> None:
        """Drop all secrets but those that are shared with ``peers``."""
        for peer in self._secrets.keys() - set(peers):
            del self._secrets[peer]

    def forget(self) -> None:
        """Drop all secrets; keys that were derived before live on where they are used."""
        self._secrets.clear()

    def _derive(self, peer: int, tag: bytes) -> bytes:
        if peer not in self._secrets:
            raise OutOfOrder(f"no secret is shared with rank {peer}; open a new session")
        return derive_key(self._secrets[peer], tag)
