"""What a rank says first in a handshake: who it is, and what it goes by.

A hello holds this run's fresh key and nonce beside the identity, and digests of the context: job,
names and versions. The digests let ranks that don't match say in what they differ; what is signed
(`handshake.py`) is the transcript, which covers the context itself and every hello as it came.

Adversary: whoever made the bytes; until the transcript is signed, nothing in a hello is believed.
All of it is public.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpcfl.errors import AuthenticationError, TranscriptMismatch
from mpcfl.hazmat.bits import domain_tag
from mpcfl.net.identity import PUBLIC_KEY_BYTES
from mpcfl.net.wire import U8, U32, Format, Kind, fixed

HANDSHAKE_VERSION = 1
STAGE = "handshake"
NONCE_BYTES = 32
_DIGEST_BYTES = 32
HELLO = Format(
    Kind.HELLO,
    version=U8,
    rank=U32,
    job=fixed(_DIGEST_BYTES),
    names=fixed(_DIGEST_BYTES),
    versions=fixed(_DIGEST_BYTES),
    identity=fixed(PUBLIC_KEY_BYTES),
    ephemeral=fixed(PUBLIC_KEY_BYTES),
    nonce=fixed(NONCE_BYTES),
)
# What a fact is called, and what to do where two ranks differ in it.
_FACTS = {
    "version": ("version of the handshake", "install the same version of mpcfl everywhere"),
    "job": ("job", "give every party the same job file and the same --set options"),
    "names": ("list of parties", "give every party the same job file"),
    "versions": ("list of versions", "install the same versions of all packages everywhere"),
}
Hello = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HandshakeContext:
    """What a rank goes by; signed, so that no other rank can have gone by something else. Public.

    Attributes:
        job: digest of the job.
        names: of the parties, in order of rank.
        versions: of the packages that a run depends on.
    """

    job: str
    names: tuple[str, ...]
    versions: tuple[str, ...]

    def facts(self) -> dict[str, bytes]:
        """Return a digest for each fact."""
        facts = {"job": (self.job,), "names": self.names, "versions": self.versions}
        return {
            kind: hashlib.sha256(domain_tag(f"handshake-{kind}", *fact)).digest()
            for kind, fact in facts.items()
        }

    def name(self, rank: int) -> str:
        """Return what a rank is called in errors."""
        return self.names[rank] if rank < len(self.names) else f"rank {rank}"


def read_hellos(
    spoken: Sequence[bytes], own: bytes, own_rank: int, context: HandshakeContext
) -> list[Hello]:
    """Return what all ranks said of themselves, in order of rank.

    Args:
        spoken: by each rank.
        own: what this rank said.
        own_rank: its number.
        context: what it goes by.

    Raises:
        TranscriptMismatch: a rank goes by something else, or two show one identity.
        AuthenticationError: a rank speaks under another number, or repeats a key or a nonce.
        ProtocolError: a message is no hello.
    """
    if not hmac.compare_digest(spoken[own_rank], own):
        raise AuthenticationError(context.name(own_rank), STAGE)
    hellos = []
    expected = {"version": HANDSHAKE_VERSION, **context.facts()}
    for rank, message in enumerate(spoken):
        hello = HELLO.decode(message, f"{context.name(rank)} in the handshake")
        if hello["rank"] != rank:
            raise AuthenticationError(context.name(rank), STAGE)
        for kind, fact in expected.items():
            if hello[kind] != fact:
                what, remedy = _FACTS[kind]
                raise TranscriptMismatch(
                    f"{context.name(rank)} goes by another {what} than {context.name(own_rank)} "
                    f"in the handshake; {remedy}"
                )
        hellos.append(hello)
    _refuse_repetition(hellos, own_rank, context)
    return hellos


def _refuse_repetition(hellos: Sequence[Hello], own: int, context: HandshakeContext) -> None:
    """Refuse what appears twice: it was reflected or copied, and its sender knows no secret."""
    for later in range(len(hellos)):
        for earlier in range(later):
            if hellos[earlier]["identity"] == hellos[later]["identity"]:
                raise TranscriptMismatch(
                    f"{context.name(earlier)} and {context.name(later)} show the same identity in "
                    "the handshake; make one for each party: mpcfl identity new FILE"
                )
            if any(hellos[earlier][f] == hellos[later][f] for f in ("ephemeral", "nonce")):
                peer = earlier if later == own else later
                raise AuthenticationError(context.name(peer), STAGE)


def compare_pins(
    hellos: Sequence[Hello], pins: Mapping[int, bytes] | None, context: HandshakeContext
) -> None:
    """Refuse an identity that is not the pinned one.

    Raises:
        TranscriptMismatch: a rank shows one.
    """
    for rank, pin in (pins or {}).items():
        if rank < len(hellos) and not hmac.compare_digest(hellos[rank]["identity"], pin):
            raise TranscriptMismatch(
                f"{context.name(rank)} shows another identity in the handshake than the one that "
                "is pinned for it; compare its mpcfl identity show with [peers] in the party file"
            )


def transcript_of(spoken: Sequence[bytes], context: HandshakeContext) -> bytes:
    """Return the digest of all that was said and of what it was said about."""
    # Each list comes after its length, so that no two contexts encode alike.
    tag = domain_tag(
        "handshake-transcript",
        HANDSHAKE_VERSION,
        context.job,
        len(context.names),
        *context.names,
        len(context.versions),
        *context.versions,
        len(spoken),
        *(hello.hex() for hello in spoken),
    )
    return hashlib.sha256(tag).digest()
