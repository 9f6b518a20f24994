"""Pairwise secrets and authenticated encryption on top of a transport.

Every pair of ranks, or every pair of neighbors, agrees one secret by X25519 (RFC 7748) with
keys made for this session only. All keys come from it by HKDF-SHA-256 (RFC 5869), with the
run, both ranks and every public key of the session in the context, so that two ranks with
different views of the exchange share no key. Messages are sealed with AES-256-GCM (NIST SP
800-38D): one key per direction, the sequence number as nonce, so that a message that was
changed, cut, repeated, dropped or reordered does not open.

Assumes: the network may read, drop and change everything after the exchange of public keys.
Does not protect against: an active man in the middle *during* that exchange. Identities are
not authenticated here; that is out of scope until identity keys sign the exchange. Lengths
and times of messages show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mpcfl.errors import AuthenticationError, OutOfOrder, TranscriptMismatch
from mpcfl.hazmat.bits import BitSource, SystemBits, derive_key, domain_tag
from mpcfl.net.transport import Transport

# 256 bits of X25519 key, in 64-bit words.
_PRIVATE_KEY_WORDS = 4
_NONCE_BYTES = 12
# AES-GCM with a counter as nonce; the standard allows 2^32 calls under one key.
_MAX_MESSAGES = 1 << 32


class _Secret:
    """What secret objects refuse: to be shown, to be pickled, to be used as a condition."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret must not leave its process")

    def __bool__(self) -> NoReturn:
        raise TypeError("a secret is neither true nor false")


class _Direction(_Secret):
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


class Channel(_Secret):
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


class PairSecrets(_Secret):
    """One agreed secret per peer of one session; known to that pair only."""

    __slots__ = ("_channels_made", "_rank", "_secrets")

    def __init__(self, rank: int, secrets: Mapping[int, bytes]) -> None:
        self._rank = rank
        self._secrets = dict(secrets)
        self._channels_made: set[tuple[int, str]] = set()

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

    def forget(self) -> None:
        """Drop all secrets; keys that were derived before live on where they are used."""
        self._secrets.clear()

    def _derive(self, peer: int, tag: bytes) -> bytes:
        if peer not in self._secrets:
            raise OutOfOrder(f"no secret is shared with rank {peer}; open a new session")
        return derive_key(self._secrets[peer], tag)


class SealedTransport:
    """`Transport.exchange` through one channel per peer; for everything not already masked."""

    def __init__(self, transport: Transport, secrets: PairSecrets, purpose: str) -> None:
        self._transport = transport
        self._channels = {peer: secrets.channel(peer, purpose) for peer in secrets.peers}

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """Seal and send each message; return one opened message from each source.

        Raises:
            AuthenticationError: a message was changed, cut, repeated, dropped or reordered.
            OutOfOrder: the session was closed, or there is no channel to that rank.
        """
        sealed = {rank: self._channel(rank).seal(text) for rank, text in outgoing.items()}
        received = self._transport.exchange(sealed, sources)
        return {rank: self._channel(rank).open(text) for rank, text in received.items()}

    def close(self) -> None:
        """Forget all keys."""
        self._channels.clear()

    def _channel(self, rank: int) -> Channel:
        if rank not in self._channels:
            raise OutOfOrder(f"there is no channel to rank {rank}; open a new session")
        return self._channels[rank]


def agree_pair_secrets(
    transport: Transport,
    run_id: str,
    bits: BitSource | None = None,
    peers: Collection[int] | None = None,
) -> PairSecrets:
    """Agree one secret with every other rank, or with some; all ranks call it together.

    Public keys go to all ranks either way, since every secret covers all of them.

    Args:
        transport: carries the public keys, in the clear.
        run_id: public name of the run, equal at all ranks; bound into every secret.
        bits: source of this rank's ephemeral key; the operating system's unless a test injects one.
        peers: ranks to agree with, None for all others; a rank that names a peer is named by it.

    Returns:
        This rank's secrets, one per peer.

    Raises:
        ValueError: ``peers`` holds this rank, or one that there is not.
        AuthenticationError: a public key has the wrong length, is used twice, or lies in the
            small subgroup (its shared secret would be all zero).
        TranscriptMismatch: ranks saw different public keys, or name the run differently.
    """
    others = [rank for rank in range(transport.n_ranks) if rank != transport.rank]
    wanted = others if peers is None else sorted(set(peers))
    if not set(wanted) <= set(others):
        raise ValueError(f"rank {transport.rank} can't agree secrets with {wanted}, only {others}")
    source = SystemBits() if bits is None else bits
    private_key = X25519PrivateKey.from_private_bytes(source.words(_PRIVATE_KEY_WORDS).tobytes())
    own_key = private_key.public_key().public_bytes_raw()
    public_keys = transport.allgather(own_key)
    # A key that appears twice was reflected or copied: its holder knows no private key.
    if public_keys[transport.rank] != own_key or len(set(public_keys)) != transport.n_ranks:
        raise AuthenticationError
    transcript = hashlib.sha256(domain_tag("pair-transcript", *(k.hex() for k in public_keys)))
    secrets = {}
    for peer in wanted:
        pair = sorted((transport.rank, peer))
        tag = domain_tag(
            "pair-secret",
            run_id,
            *pair,
            *(public_keys[r].hex() for r in pair),
            transcript.hexdigest(),
        )
        secrets[peer] = derive_key(_shared_secret(private_key, public_keys[peer]), tag)
    # Ranks that saw different keys, or mean another run, would share no secret and notice nothing.
    confirmation = domain_tag("pair-confirmation", run_id, transcript.hexdigest())
    require_same(transport, hashlib.sha256(confirmation).digest(), "the exchange of public keys")
    return PairSecrets(transport.rank, secrets)


def require_same(transport: Transport, digest: bytes, what: str) -> None:
    """Have all ranks compare what they saw; all ranks call it together.

    Args:
        transport: joins the ranks.
        digest: of what this rank saw; public.
        what: what was seen, for the error.

    Raises:
        TranscriptMismatch: a rank saw something else than rank 0.
    """
    digests = transport.allgather(digest)
    for rank, other in enumerate(digests):
        if other != digests[0]:
            raise TranscriptMismatch(
                f"rank {rank} saw {what} otherwise than rank 0: not all ranks were told the same; "
                "the run stops, start it again"
            )


def _shared_secret(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    """Run X25519; the library refuses a wrong length and an all-zero result (RFC 7748, 6.1)."""
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise AuthenticationError from None
