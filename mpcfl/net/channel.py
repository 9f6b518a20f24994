"""Agreeing secrets pair by pair, and a transport that seals what it carries.

Every pair of ranks, or every pair of neighbors, agrees one secret by X25519 (RFC 7748) with
keys made for this session only. The run, both ranks and every public key of the session are in
the context of its derivation, so that two ranks with different views of the exchange share no
key. `pair_secrets.py` makes keys and channels of it.

Assumes: the network may read, drop and change everything after the exchange of public keys.
`agree_pair_secrets` by itself does not protect against an active man in the middle *during*
that exchange. Over an `AuthenticatedTransport` it exchanges nothing: every secret comes from a
handshake that identities signed (`handshake.py`). Lengths and times of messages show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from mpcfl.errors import AuthenticationError, OutOfOrder, TranscriptMismatch
from mpcfl.hazmat.bits import BitSource, SystemBits, derive_key, domain_tag
from mpcfl.net.pair_secrets import Channel, PairSecrets
from mpcfl.net.transport import Transport

__all__ = [
    "Channel",
    "PairSecrets",
    "SealedTransport",
    "SharesSecrets",
    "agree_pair_secrets",
    "raw_ephemeral_key",
    "raw_shared_secret",
    "require_same",
]

# 256 bits of X25519 key, in 64-bit words.
_PRIVATE_KEY_WORDS = 4


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
        return {rank: self._open(rank, text) for rank, text in received.items()}

    def close(self) -> None:
        """Forget all keys."""
        self._channels.clear()

    def _open(self, rank: int, sealed: bytes) -> bytes:
        try:
            return self._channel(rank).open(sealed)
        except AuthenticationError:
            stage = getattr(self._transport.meter, "current", "")
            raise AuthenticationError(f"rank {rank}", stage) from None

    def _channel(self, rank: int) -> Channel:
        if rank not in self._channels:
            raise OutOfOrder(f"there is no channel to rank {rank}; open a new session")
        return self._channels[rank]


@runtime_checkable
class SharesSecrets(Protocol):
    """A transport whose ranks share secrets already; see `AuthenticatedTransport`."""

    def session_secrets(self, run_id: str) -> PairSecrets:
        """Derive this rank's secrets for one more session, one per other rank, without a message.

        All ranks call it together; no two calls give the same secrets.
        """
        ...


def agree_pair_secrets(
    transport: Transport,
    run_id: str,
    bits: BitSource | None = None,
    peers: Collection[int] | None = None,
) -> PairSecrets:
    """Agree one secret with every other rank, or with some; all ranks call it together.

    Public keys go to all ranks either way, since every secret covers all of them. Where the
    transport's ranks share secrets from a handshake, these are the source, and nothing is sent.

    Args:
        transport: carries the public keys, in the clear, or has secrets of its own.
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
    if isinstance(transport, SharesSecrets):
        session = transport.session_secrets(run_id)
        session.keep(wanted)
        return session
    source = SystemBits() if bits is None else bits
    private_key = raw_ephemeral_key(source)
    own_key = private_key.public_key().public_bytes_raw()
    public_keys = transport.allgather(own_key)
    # A key that appears twice was reflected or copied: its holder knows no private key.
    if public_keys[transport.rank] != own_key or len(set(public_keys)) != transport.n_ranks:
        raise AuthenticationError
    # Also those that this rank agrees nothing with: all of them are in the transcript.
    if any(len(public_key) != len(own_key) for public_key in public_keys):
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
        secrets[peer] = derive_key(raw_shared_secret(private_key, public_keys[peer]), tag)
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


def raw_ephemeral_key(bits: BitSource) -> X25519PrivateKey:
    """Make a private key for one agreement; whoever makes it lets go of it right after."""
    return X25519PrivateKey.from_private_bytes(bits.words(_PRIVATE_KEY_WORDS).tobytes())


def raw_shared_secret(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    """Run X25519; unsafe alone: the result is no key before HKDF, and nobody is authenticated.

    Raises:
        AuthenticationError: the public key has the wrong length, or lies in the small subgroup:
            its shared secret would be all zero (RFC 7748, 6.1).
    """
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise AuthenticationError from None
