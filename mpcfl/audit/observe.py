"""Run a backend in this process over tapped transports and keep what there was to see.

Probes, not data: levels uniform over the ring, for which the opened sum mod 2^b tells nothing
about any one input, and flat vectors, which show every fault of a mask laid over them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.audit.decode import bit_string, string_bytes
from mpcfl.audit.tap import DerivedKey, Message, Recorder, Stage, TappedTransport, watching
from mpcfl.config import PAILLIER_BACKENDS
from mpcfl.net.codec import WORDS_PER_GROUP, WordCodec
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg.base import BackendFactory, IntVector, SecureSum, SumSettings
from mpcfl.secagg.custody import assign_roles

Words = NDArray[np.uint64]
# Reads from a session the pads that its next sum will use, without using them up.
PadReader = Callable[[SecureSum, int], list[Words]]
# Called at every rank before its session closes, with what was recorded until then.
Inspector = Callable[[SecureSum, int, Recorder], Any]
# What one rank sent in one sum, joined per sender and receivers.
Streams = dict[tuple[int, tuple[int, ...]], bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """Everything that one session of sums showed to the auditor, who sees all ranks.

    Attributes:
        settings: of the session.
        inputs: per sum and data party, the levels that went in.
        totals: per sum, the opened sum.
        wire: messages as they left the ranks.
        inner: messages before they were sealed, where the backend seals any.
        keys: mask keys that the ranks derived. Secret.
        pads: per (sum, rank), pads that a `PadReader` took from the session. Secret.
        inspected: per rank, what the `Inspector` returned.
        codec: how words were packed on the wire; None where they were not.
    """

    settings: SumSettings
    inputs: tuple[tuple[IntVector, ...], ...] = field(repr=False)
    totals: tuple[IntVector, ...] = field(repr=False)
    wire: tuple[Message, ...] = field(repr=False)
    inner: tuple[Message, ...] = field(repr=False)
    keys: tuple[DerivedKey, ...] = field(repr=False)
    pads: dict[tuple[int, int], list[Words]] = field(repr=False)
    inspected: dict[int, Any] = field(repr=False)
    codec: WordCodec | None = None
    _streams: dict[tuple[int, bool], Streams] = field(default_factory=dict, repr=False)

    @property
    def n_parties(self) -> int:
        """Number of ranks that brought levels."""
        return len(self.inputs[0])

    def streams(self, number: int, *, inner: bool = False) -> Streams:
        """Return what each rank sent in one sum, joined per sender and receivers.

        Messages that hold nothing but a piece of the opened sum are left out: all data parties
        may know it. So are repetitions of one message.
        """
        if (number, inner) not in self._streams:
            self._streams[number, inner] = self._join(number, inner=inner)
        return self._streams[number, inner]

    def _join(self, number: int, *, inner: bool) -> Streams:
        sums = self._sums(number)
        pieces: dict[tuple[int, tuple[int, ...]], dict[bytes, None]] = {}
        for message in self.inner if inner else self.wire:
            payload = message.payload
            if message.number == number and payload and not self._is_of(payload, sums):
                key = (message.sender, message.receivers)
                pieces.setdefault(key, {})[payload] = None
        return {key: self._without_filling(b"".join(parts)) for key, parts in pieces.items()}

    def _sums(self, number: int) -> tuple[bytes, ...]:
        """Return the opened sum in the forms in which backends open it.

        That is centred mod 2^b; as it is and with the public offset of each summand, both mod
        2^64; mod 2^b; and, where the words of masked vectors are packed, as a string of bits.
        """
        settings = self.settings
        total: Words = np.stack(self.inputs[number]).view(np.uint64).sum(axis=0)
        offset = self.n_parties * (1 << (settings.modulus_bits - 1)) % (1 << 64)
        residues = WordCodec(settings.modulus_bits)
        words = total.astype(residues.dtype)
        residues.reduce(words, words)
        forms = [self.totals[number].astype("<i8"), total, total + np.uint64(offset), words]
        whole = [form.tobytes() for form in forms]
        if self.codec is not None:
            filling = bytes(WORDS_PER_GROUP * self.codec.bits // 8)
            whole.append(bit_string(total.astype(self.codec.dtype), self.codec.bits) + filling)
        return tuple(whole)

    def _is_of(self, payload: bytes, sums: Sequence[bytes]) -> bool:
        """Tell whether a message is a piece of the sum, as it is or packed in planes."""
        if any(payload in one for one in sums):
            return True
        codec = WordCodec(self.settings.modulus_bits)
        n_groups, rest = divmod(len(payload), codec.bits)
        if codec.is_identity or rest:
            return False
        words = np.empty(n_groups * WORDS_PER_GROUP, dtype=codec.dtype)
        codec.unpack(np.frombuffer(payload, dtype=np.uint8), words)
        # Up to seven words are there to fill up the last group.
        ends = range(len(words) - WORDS_PER_GROUP + 1, len(words) + 1)
        return any(
            words[:end].tobytes() in one and not words[end:].any() for end in ends for one in sums
        )

    def _without_filling(self, stream: bytes) -> bytes:
        """Cut off the zeros that filled up the last group of packed words."""
        if self.codec is None:
            return stream
        end = string_bytes(self.settings.dim, self.codec.bits)
        return stream if any(stream[end:]) else stream[:end]


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend under audit.

    Attributes:
        name: for the report.
        factory: opens its sessions.
        settings: of every session.
        read_pads: how to read a session's pads, where they don't come from pair secrets.
        inspect: looks at each rank's session before it closes.
        codec: how it packs words on the wire, where it does.
    """

    name: str
    factory: BackendFactory
    settings: SumSettings
    read_pads: PadReader | None = None
    inspect: Inspector | None = None
    codec: WordCodec | None = None

    def n_ranks(self, n_parties: int) -> int:
        """Return the number of ranks: the data parties and an aggregator, if custody has one."""
        roles = assign_roles(self.settings.custody, n_parties + 1)
        has_aggregator = self.name in PAILLIER_BACKENDS and roles.aggregator is not None
        return n_parties + 1 if has_aggregator else n_parties


def uniform_levels(dim: int, modulus_bits: int) -> IntVector:
    """Return levels uniform over the ring, shape (dim,), int64; they are probes, no secrets."""
    words = np.frombuffer(os.urandom(8 * dim), dtype=np.int64)
    levels: IntVector = words >> np.int64(64 - modulus_bits)
    return levels


def flat_levels(dim: int, n_parties: int) -> tuple[IntVector, ...]:
    """Return one constant vector per party: 1, 2, 3, ...; none of them is the sum of them."""
    return tuple(np.full(dim, rank + 1, dtype=np.int64) for rank in range(n_parties))


def observe(subject: Subject, sums: Sequence[tuple[IntVector, ...]]) -> Observation:
    """Run one session over several sums, all ranks in this process, and return what it showed.

    Args:
        subject: the backend.
        sums: per sum, one vector per data party, shape (dim,), int64.

    Raises:
        MpcflError: as the backend does.
    """
    n_parties = len(sums[0])
    n_ranks = subject.n_ranks(n_parties)
    recorder = Recorder(n_ranks, subject.codec)
    pads: dict[tuple[int, int], list[Words]] = {}
    inspected: dict[int, Any] = {}

    def party(transport: MemoryTransport) -> list[IntVector]:
        rank = transport.rank
        session = subject.factory(TappedTransport(transport, recorder), subject.settings)
        opened = []
        for number, vectors in enumerate(sums):
            if subject.read_pads is not None:
                pads[number, rank] = subject.read_pads(session, subject.settings.dim)
            recorder.enter(rank, Stage.PROTECT, number)
            held = session.protect(vectors[rank].copy() if rank < n_parties else None)
            recorder.enter(rank, Stage.AGGREGATE, number)
            held = session.aggregate(held)
            recorder.enter(rank, Stage.OPEN, number)
            opened.append(session.open(held))
        if subject.inspect is not None:
            inspected[rank] = subject.inspect(session, rank, recorder)
        recorder.enter(rank, Stage.CLOSING, -1)
        session.close()
        return opened

    with watching(recorder):
        results = run_parties(n_ranks, party)
    return Observation(
        settings=subject.settings,
        inputs=tuple(sums),
        totals=tuple(results[0]),
        wire=tuple(recorder.wire),
        inner=tuple(recorder.inner),
        keys=tuple(recorder.keys),
        pads=pads,
        inspected=inspected,
        codec=subject.codec,
    )
