"""A tap on a session of secure sums: what every rank sends, and which mask keys it derives.

The auditor stands inside the process and sees more than any adversary: bytes on the wire,
messages before they are sealed, and the keys of all parties. The code under audit is the real
one; for as long as `watching` lasts, two methods of `net/channel.py` also note what they did.
Words that travel packed are noted unpacked (`decode.py`). Notes never leave the process; nothing
here is for a run with real data.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray

from mpcfl.audit.decode import bit_string, unpacked_bits
from mpcfl.net.channel import PairSecrets, SealedTransport
from mpcfl.net.codec import WordCodec
from mpcfl.net.transport import Block, Pending, Transport

# The methods are patched for the whole process, so one session is watched at a time.
_watching = threading.Lock()


class Stage(StrEnum):
    """Where in its session a rank was when it sent something."""

    OPENING = "opening"
    PROTECT = "protect"
    AGGREGATE = "aggregate"
    OPEN = "open"
    CLOSING = "closing"


class Via(StrEnum):
    """What carried a message."""

    MESSAGE = "message"
    SCATTER = "scatter"
    GATHER = "gather"
    REDUCTION = "reduction"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of one rank.

    Attributes:
        sender: rank that sent it.
        receivers: ranks that got these bytes, ascending; all others, for a collective.
        stage: where the sender was.
        number: of the sum within the session, from 0; -1 while the session opens or closes.
        payload: what was sent; words of a scatter, a gather or a reduction are unpacked.
        via: what carried it.
    """

    sender: int
    receivers: tuple[int, ...]
    stage: Stage
    number: int
    payload: bytes = field(repr=False)
    via: Via = Via.MESSAGE


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DerivedKey:
    """One mask key that a rank derived from a pair secret. Secret.

    Attributes:
        rank: that derived it.
        peer: that it shares it with.
        number: of the sum that the key is for.
        key: the bytes.
    """

    rank: int
    peer: int
    number: int
    key: bytes


class Recorder:
    """Collects what all ranks of one session did; each rank says where it is.

    Args:
        n_ranks: of the session.
        codec: unpacks what goes into reductions; None where words travel as they are.
    """

    def __init__(self, n_ranks: int, codec: WordCodec | None = None) -> None:
        self._codec = codec
        self.wire: list[Message] = []
        self.inner: list[Message] = []
        self.keys: list[DerivedKey] = []
        self._others = [tuple(r for r in range(n_ranks) if r != own) for own in range(n_ranks)]
        self._moments = [(Stage.OPENING, -1)] * n_ranks
        self._lock = threading.Lock()

    def enter(self, rank: int, stage: Stage, number: int) -> None:
        """Note that a rank is now in a stage of a sum."""
        self._moments[rank] = (stage, number)

    def note_collective(self, rank: int, payload: bytes, via: Via = Via.MESSAGE) -> None:
        """Note what a rank put into a collective: on some network, all others can see it."""
        stage, number = self._moments[rank]
        with self._lock:
            self.wire.append(Message(rank, self._others[rank], stage, number, payload, via))

    def note_blocks(self, rank: int, blocks: Sequence[Block], via: Via) -> None:
        """Note the words in some packed blocks as one message."""
        payload = b"".join(unpacked_bits(block, self._codec) for block in blocks)
        self.note_collective(rank, payload, via)

    def note_words(self, rank: int, words: NDArray[Any]) -> None:
        """Note words that go into a reduction of MPI: of their bits, those of the ring."""
        bits = 8 * words.itemsize if self._codec is None else self._codec.bits
        self.note_collective(rank, bit_string(words, bits), Via.REDUCTION)

    def note_exchange(self, rank: int, outgoing: Mapping[int, bytes], *, sealed: bool) -> None:
        """Note messages to single ranks; equal bytes to several ranks are one message."""
        stage, number = self._moments[rank]
        receivers: dict[bytes, list[int]] = {}
        for target, payload in outgoing.items():
            receivers.setdefault(bytes(payload), []).append(target)
        messages = [
            Message(rank, tuple(sorted(targets)), stage, number, payload)
            for payload, targets in receivers.items()
        ]
        with self._lock:
            (self.inner if sealed else self.wire).extend(messages)

    def note_key(self, rank: int, peer: int, key: bytes, context: Sequence[int | str]) -> None:
        """Note a derived key.

        Keys may be derived ahead, in another thread, so their context says for which sum they
        are: it begins with the round, and rounds count from 0 here as sums do. A key without
        such a context is taken for one of the sum that its rank is at.
        """
        first = context[0] if context else None
        number = first if isinstance(first, int) else self._moments[rank][1]
        with self._lock:
            self.keys.append(DerivedKey(rank, peer, number, key))


class TappedTransport:
    """A `Transport` that notes what its rank sends and passes everything on."""

    def __init__(self, transport: Transport, recorder: Recorder) -> None:
        self.rank = transport.rank
        self.n_ranks = transport.n_ranks
        self.meter = transport.meter
        self._transport = transport
        self._recorder = recorder

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`."""
        self._recorder.note_exchange(self.rank, outgoing, sealed=False)
        return self._transport.exchange(outgoing, sources)

    def allgather(self, message: bytes) -> list[bytes]:
        """See `Transport.allgather`."""
        self._recorder.note_collective(self.rank, bytes(message))
        return self._transport.allgather(message)

    def begin_scatter(self, blocks: Sequence[Block], inbox: Mapping[int, Block]) -> Pending:
        """See `Transport.begin_scatter`; noted is the whole vector, as if all could see it."""
        self._recorder.note_blocks(self.rank, blocks, Via.SCATTER)
        return self._transport.begin_scatter(blocks, inbox)

    def begin_gather(self, own: Block, inbox: Mapping[int, Block]) -> Pending:
        """See `Transport.begin_gather`; noted is a part of a sum."""
        self._recorder.note_blocks(self.rank, [own], Via.GATHER)
        return self._transport.begin_gather(own, inbox)

    def begin_allreduce(self, words: NDArray[Any]) -> Pending:
        """See `Transport.begin_allreduce`; noted is what the first hop of it sends."""
        self._recorder.note_words(self.rank, words)
        return self._transport.begin_allreduce(words)

    def close(self) -> None:
        """See `Transport.close`."""
        self._transport.close()


@contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """Note mask keys and messages before they are sealed, of all ranks in this process."""
    derive, exchange = PairSecrets.key, SealedTransport.exchange

    def noting_key(self: PairSecrets, peer: int, purpose: str, *context: int | str) -> bytes:
        key = derive(self, peer, purpose, *context)
        recorder.note_key(self._rank, peer, key, context)
        return key

    def noting_exchange(
        self: SealedTransport, outgoing: Mapping[int, bytes], sources: Sequence[int]
    ) -> dict[int, bytes]:
        recorder.note_exchange(self._transport.rank, outgoing, sealed=True)
        return exchange(self, outgoing, sources)

    with _watching:
        PairSecrets.key = noting_key  # type: ignore[method-assign]  # put back below
        SealedTransport.exchange = noting_exchange  # type: ignore[method-assign]  # as above
        try:
            yield
        finally:
            PairSecrets.key = derive  # type: ignore[method-assign]
            SealedTransport.exchange = exchange  # type: ignore[method-assign]
