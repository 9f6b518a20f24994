"""The signed handshake: from identities to secrets that each pair of ranks shares.

Two messages from each rank to all. (1) A hello (`hello.py`): its identity, an X25519 key and a
nonce, both made for this run, and digests of what it goes by. (2) An Ed25519 signature over its
rank and the transcript, the SHA-256 digest of that context and of all hellos in order of rank. A
secret comes into use once every signature was verified against the pinned identities, so that
all ranks hold one transcript. It is derived by HKDF from X25519 and the transcript; run id,
channels and masks follow from it.

For two ranks this is the signed Diffie-Hellman exchange of ISO/IEC 9798-3 (proved by Canetti and
Krawczyk, EUROCRYPT 2001): as the identities are in what is signed, nobody's key can be taken for
another's. For more, everybody signs everybody's nonces, as in Katz and Yung (CRYPTO 2003).

Assumes: pins hold the right public keys; the network may read, drop and change everything. Forward
secret: the X25519 key is gone when the handshake ends, so that an identity that is stolen later
opens nothing. Does not protect against: a party that lies under its own identity, or anybody in
the middle where there are no pins: then identities prove nothing and only listeners are kept out.
Who takes part shows.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mpcfl.errors import (
    AuthenticationError,
    ConfigError,
    PartyLost,
    PartyNotReady,
    ProtocolError,
)
from mpcfl.hazmat.bits import BitSource, SystemBits, derive_key, domain_tag
from mpcfl.net.channel import raw_ephemeral_key, raw_shared_secret
from mpcfl.net.hello import (
    HANDSHAKE_VERSION,
    HELLO,
    NONCE_BYTES,
    STAGE,
    HandshakeContext,
    Hello,
    compare_pins,
    read_hellos,
    transcript_of,
)
from mpcfl.net.identity import SIGNATURE_BYTES, Identity, verify
from mpcfl.net.pair_secrets import PairSecrets, Secret
from mpcfl.net.transport import Transport
from mpcfl.net.wire import Format, Kind, fixed, optional

__all__ = ["Authenticated", "HandshakeContext", "authenticate"]

_RUN_ID_DIGITS = 32
# None says that the sender refuses what it heard, so that nobody waits for its signature.
_SIGNATURE = Format(Kind.SIGNATURE, signature=optional(fixed(SIGNATURE_BYTES)))


@dataclass(frozen=True, slots=True, eq=False)
class Authenticated:
    """What a handshake gives to one rank.

    Attributes:
        secrets: one per other rank. Secret.
        run_id: fresh public name of the run, 32 hex digits; equal at all ranks.
        transcript: 32 bytes, public, equal at all ranks.
        public_keys: identity of each rank.
    """

    secrets: PairSecrets
    run_id: str
    transcript: bytes
    public_keys: tuple[bytes, ...]


def authenticate(
    transport: Transport,
    identity: Identity,
    pins: Mapping[int, bytes] | None,
    context: HandshakeContext,
    bits: BitSource | None = None,
) -> Authenticated:
    """Agree secrets with all ranks under their identities; all ranks call it together.

    Args:
        transport: carries the messages, in the clear.
        identity: of this rank's party.
        pins: identity of every other rank; None takes whoever comes (throw-away identities).
        context: what this rank goes by.
        bits: source of this run's key and nonce; the operating system's unless a test injects one.

    Returns:
        This rank's secrets, and what the run is called.

    Raises:
        ConfigError: a rank has no pin, or one that can't be right; nothing was sent.
        TranscriptMismatch: a party shows another identity than its pin, or goes by something
            else than this rank.
        PartyNotReady: another rank refused the handshake.
        AuthenticationError: a signature does not hold, or a key was used twice or is weak.
        ProtocolError: a message is none of a handshake.
        PartyLost: a rank died or did not come before the deadline.
    """
    if pins is not None:
        _check_pins(transport, identity, pins, context)
    key = _EphemeralKey(SystemBits() if bits is None else bits)
    try:
        own = HELLO.encode(
            version=HANDSHAKE_VERSION,
            rank=transport.rank,
            identity=identity.public_key,
            ephemeral=key.public_key,
            nonce=key.nonce,
            **context.facts(),
        )
        spoken = transport.allgather(own)
        try:
            hellos = read_hellos(spoken, own, transport.rank, context)
            compare_pins(hellos, pins, context)
        except ProtocolError:
            _refuse(transport)
            raise
        transcript = transcript_of(spoken, context)
        _exchange_signatures(transport, identity, hellos, transcript, context)
        secrets = key.agree(transport.rank, hellos, transcript, context)
    finally:
        key.forget()
    run_id = hashlib.sha256(domain_tag("handshake-run", transcript.hex())).hexdigest()
    public_keys = tuple(hello["identity"] for hello in hellos)
    return Authenticated(secrets, run_id[:_RUN_ID_DIGITS], transcript, public_keys)


class _EphemeralKey(Secret):
    """This rank's X25519 key and nonce of one handshake."""

    __slots__ = ("_private_key", "nonce", "public_key")

    def __init__(self, bits: BitSource) -> None:
        self._private_key: X25519PrivateKey | None = raw_ephemeral_key(bits)
        self.public_key = self._private_key.public_key().public_bytes_raw()
        self.nonce = bits.words(NONCE_BYTES // 8).tobytes()

    def agree(
        self, own: int, hellos: Sequence[Hello], transcript: bytes, context: HandshakeContext
    ) -> PairSecrets:
        """Return one secret per other rank; all signatures have been verified."""
        secrets = {}
        for peer, hello in enumerate(hellos):
            if peer == own or self._private_key is None:
                continue
            tag = domain_tag("handshake-secret", *sorted((own, peer)), transcript.hex())
            try:
                shared = raw_shared_secret(self._private_key, hello["ephemeral"])
            except AuthenticationError:
                raise AuthenticationError(context.name(peer), STAGE) from None
            secrets[peer] = derive_key(shared, tag)
        return PairSecrets(own, secrets)

    def forget(self) -> None:
        """Let the private key go, also where an error's trace still holds this object."""
        self._private_key = None


def _check_pins(
    transport: Transport, identity: Identity, pins: Mapping[int, bytes], context: HandshakeContext
) -> None:
    """Refuse pins that can't be right before anything is sent."""
    for rank in range(transport.n_ranks):
        is_own = rank == transport.rank
        if rank not in pins:
            if not is_own:
                raise ConfigError(
                    f"no identity is pinned for {context.name(rank)}; ask it for its public key "
                    "(mpcfl identity show) and add it to [peers] in the party file"
                )
        elif hmac.compare_digest(pins[rank], identity.public_key) is not is_own:
            raise ConfigError(
                f"the identity that is pinned for {context.name(rank)} is "
                + ("not this party's own" if is_own else "this party's own")
                + "; compare both with mpcfl identity show, and mend the party file"
            )


def _exchange_signatures(
    transport: Transport,
    identity: Identity,
    hellos: Sequence[Hello],
    transcript: bytes,
    context: HandshakeContext,
) -> None:
    """Sign the transcript, and verify that every other rank signed the same."""
    own = identity.sign(_signed_words(transport.rank, transcript))
    answers = transport.allgather(_SIGNATURE.encode(signature=own))
    for rank, answer in enumerate(answers):
        if rank == transport.rank:
            continue
        name = context.name(rank)
        signature = _SIGNATURE.decode(answer, f"{name} in the handshake")["signature"]
        if signature is None:
            raise PartyNotReady(f"{name} refused the handshake; its own message says why", rank)
        try:
            verify(hellos[rank]["identity"], _signed_words(rank, transcript), signature)
        except AuthenticationError:
            raise AuthenticationError(name, STAGE) from None


def _signed_words(rank: int, transcript: bytes) -> bytes:
    return domain_tag("handshake-signature", rank, transcript.hex())


def _refuse(transport: Transport) -> None:
    """Tell all others, without waiting for what they say."""
    others = (rank for rank in range(transport.n_ranks) if rank != transport.rank)
    # Why this rank refuses is what is to be reported, not that another one is gone.
    with suppress(PartyLost):
        transport.exchange(dict.fromkeys(others, _SIGNATURE.encode(signature=None)), [])
