"""Checks on seeds: do the real code paths ever draw one twice, or with a bit that is not random?

Two places are watched. *Session secrets*: a session is opened again and again up to its
first message, the public key of a secret made for it alone; a repeated public key is a
repeated secret. *Mask seeds*: one real session between two ranks masks zeros again and again;
the first 16 bytes of what leaves are a function of that sum's seed, so a repetition is a
repeated seed. Both reach the wire from `os.urandom` through the code of a run; nothing is
replaced but the network.

What this can see: among N seeds of s bits of entropy, N (N - 1) / 2^(s + 1) repetitions are
expected; for the default of 2^18 and s = 32 that is 8, and none come with a probability of
3e-4. It can't see an entropy of 60 bits; lengths are checked besides, which bounds it
from above only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpcfl.audit.observe import Observation, Subject
from mpcfl.audit.verdict import FALSE_POSITIVE_RATE, Finding
from mpcfl.errors import MpcflError
from mpcfl.net.meter import Meter
from mpcfl.net.transport import Block, Pending

DEFAULT_SEEDS = 1 << 18
MIN_SEED_BYTES = 16
# An X25519 public key is a number below 2^255 - 19, so its top bit is always zero (RFC 7748).
_PUBLIC_KEY_FIXED_BITS = frozenset({255})
# 16 bytes or more in every ring.
_MASKED_WORDS = 16
Seeds = NDArray[np.uint8]


class _FirstMessageSeen(Exception):
    """Ends the opening of a session once the key that it made is on the wire."""


class _Arrived:
    """Nothing is under way; implements `Pending`."""

    def poll(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return at once."""

    def arrived(self) -> frozenset[int]:
        """Return nobody: there is nothing to wait for."""
        return frozenset()


class _Wall:
    """A transport that takes the first message and ends the session there."""

    def __init__(self) -> None:
        self.rank, self.n_ranks, self.meter = 0, 2, Meter()
        self.first = b""

    def allgather(self, message: bytes) -> list[bytes]:
        """Keep the message and stop."""
        self.first = bytes(message)
        raise _FirstMessageSeen

    def exchange(
        self,
        outgoing: Mapping[int, bytes],
        sources: Sequence[int],  # noqa: ARG002 - the signature of `Transport.exchange`
    ) -> dict[int, bytes]:
        """Keep what was sent and stop."""
        self.first = b"".join(bytes(m) for m in outgoing.values())
        raise _FirstMessageSeen

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> Pending:
        """Keep what was sent and stop."""
        del inbox
        self.first = b"".join(block.tobytes() for block in blocks)
        raise _FirstMessageSeen

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> Pending:
        """Keep what was sent and stop."""
        return self.begin_scatter([own], inbox)

    def begin_allreduce(self, words: NDArray[Any]) -> Pending:
        """Keep what was sent and stop."""
        return self.begin_scatter([words.view(np.uint8)], {})

    def close(self) -> None:
        """See `Transport.close`."""


class _Mirror(_Wall):
    """A transport to a second rank that is not there: its key is given, the rest comes back."""

    def __init__(self, peer_key: bytes) -> None:
        super().__init__()
        self._answers = [peer_key]
        self.sent: list[bytes] = []

    def allgather(self, message: bytes) -> list[bytes]:
        """Return the peer's key the first time, later the own message twice."""
        self.sent.append(bytes(message))
        return [bytes(message), self._answers.pop() if self._answers else bytes(message)]

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """Return what was sent."""
        self.sent.extend(bytes(message) for message in outgoing.values())
        return {source: bytes(outgoing.get(source, b"")) for source in sources}

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> Pending:
        """Keep the vector; the second rank puts in zeros."""
        self.sent.append(b"".join(block.tobytes() for block in blocks))
        return self._fill(inbox)

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> Pending:
        """Keep this rank's part of the sum; the other part is zero."""
        self.sent.append(own.tobytes())
        return self._fill(inbox)

    def begin_allreduce(self, words: NDArray[Any]) -> Pending:
        """Keep the vector and leave it as it is."""
        self.sent.append(words.tobytes())
        return self._fill({})

    def _fill(self, inbox: Mapping[int, Block]) -> Pending:
        for block in inbox.values():
            block[:] = 0
        return _Arrived()


def check_seeds(subject: Subject, count: int) -> tuple[list[Finding], list[str]]:
    """Draw ``count`` session secrets and mask seeds and look for repetitions and fixed bits.

    Returns:
        Findings, and notes on what could not be drawn from this backend.
    """
    first = _first_message(subject)
    if len(first) < MIN_SEED_BYTES or first == _first_message(subject):
        return [], ["session secrets and mask seeds: no key is made where this backend opens"]
    public_keys = _collect(lambda: _first_message(subject), count)
    findings = [_seed_finding("session-secrets", public_keys, _PUBLIC_KEY_FIXED_BITS)]
    try:
        masked = _collect(_masked_zeros(subject, first), count)
    except (MpcflError, ValueError, TypeError, IndexError):
        return findings, ["mask seeds: this backend can't be driven by one rank alone"]
    if not masked.any():
        return findings, ["mask seeds: this backend sends no masked vector in a collective"]
    return [*findings, _seed_finding("mask-seeds", masked, frozenset())], []


def _first_message(subject: Subject) -> bytes:
    wall = _Wall()
    with suppress(_FirstMessageSeen):
        subject.factory(wall, subject.settings)
    return wall.first


def _masked_zeros(subject: Subject, peer_key: bytes) -> Callable[[], bytes]:
    """Return a function that masks zeros once more and returns the first bytes sent."""
    mirror = _Mirror(peer_key)
    session = subject.factory(mirror, replace(subject.settings, dim=_MASKED_WORDS))
    zeros = np.zeros(_MASKED_WORDS, dtype=np.int64)

    def mask() -> bytes:
        mirror.sent.clear()
        session.open(session.aggregate(session.protect(zeros)))
        return max(mirror.sent, key=len, default=b"")[:MIN_SEED_BYTES]

    return mask


def _collect(draw: Callable[[], bytes], count: int) -> Seeds:
    """Return ``count`` seeds, shape (count, bytes)."""
    first = draw()
    joined = b"".join([first, *(draw() for _ in range(count - 1))])
    return np.frombuffer(joined, dtype=np.uint8).reshape(count, len(first))


def _seed_finding(check: str, seeds: Seeds, fixed_bits: frozenset[int]) -> Finding:
    """Look for repetitions and for bits that are constant or biased."""
    count, n_bytes = seeds.shape
    repeated = count - len(np.unique(seeds.view(f"V{n_bytes}")))
    ones = np.unpackbits(seeds, axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    kept = [bit for bit in range(8 * n_bytes) if bit not in fixed_bits]
    # Hoeffding's inequality, shared among the bits; exact for every count.
    bound = math.sqrt(count / 2 * math.log(2 * len(kept) / FALSE_POSITIVE_RATE))
    biased = int(np.sum(np.abs(ones[kept] - count / 2) > bound))
    passed = repeated == 0 and biased == 0 and n_bytes >= MIN_SEED_BYTES
    detail = (
        f"{count:,} of them, {n_bytes} bytes seen of each (at least {MIN_SEED_BYTES} wanted): "
        f"{repeated} came twice and {biased} of {len(kept)} bits are biased; none may"
    )
    figures = {"seeds": count, "repeated": repeated, "biased_bits": biased, "bytes": n_bytes}
    return Finding(check, passed, detail, figures)


def check_key_lengths(observation: Observation) -> Finding:
    """Check that mask keys have 128 bits or more, and that no pair uses one twice."""
    shortest = min(len(derived.key) for derived in observation.keys)
    uses = [(d.rank, d.key) for d in observation.keys]
    repeated = len(uses) - len(set(uses))
    detail = (
        f"{len(uses)} mask keys were derived; the shortest has {8 * shortest} bits (at least "
        f"{8 * MIN_SEED_BYTES} wanted), {repeated} were derived twice (none may)"
    )
    passed = shortest >= MIN_SEED_BYTES and repeated == 0
    return Finding("mask-keys", passed, detail, {"bits": 8 * shortest, "repeated": repeated})


def check_generator_seed() -> Finding:
    """Check how much of its seed torch's generator keeps; `crypten-stock` masks with it."""
    streams = []
    for seed in (1, 1 + (1 << 32)):
        generator = torch.Generator()
        generator.manual_seed(seed)
        streams.append(torch.randint(2**62, (8,), generator=generator))
    same = bool(torch.equal(*streams))
    detail = (
        "torch's Mersenne twister, from which CrypTen as shipped draws its masks, gives "
        f"{'one stream' if same else 'two streams'} for seeds 2^32 apart; a seed of 128 bits or "
        "more is wanted"
    )
    return Finding("generator-seed", not same, detail, {"seed_bits": 32.0 if same else 64.0})
