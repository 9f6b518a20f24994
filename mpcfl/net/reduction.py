"""A sum of long vectors over all ranks: in chunks, packed, with chunks overlapping each other.

Each chunk is cut into one slice per rank. A rank sends every slice to the rank that adds it
up, and then sends the sum of its own slice to all: 2 (n-1)/n of a vector leaves and reaches
every rank, which is the least that any algorithm needs, and b bits travel per word. While one
chunk is under way the next one is made (in a thread of its own where the caller gives one)
and the one before is finished, so at most three chunks are held beside input and output.

Where slices get very short, many messages cost more than their bytes, and MPI's own tree
reduction takes over (`Transport.begin_allreduce`).

Protects nothing by itself: what goes in may be seen by everybody. Words are cut to b bits
before they leave, so that no carry above b bits does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.codec import WORDS_PER_GROUP, WordCodec, Words
from mpcfl.net.transport import Block, Pending, Transport

# 4 MiB: long enough for full bandwidth with a few ranks, short enough to overlap.
_CHUNK_BYTES = 1 << 22
# With many ranks, slices of this many words keep messages from getting too short.
_LEAST_SLICE_WORDS = 1 << 14
# Below this many bytes per slice, and from this many ranks on, the tree is faster.
_TREE_SLICE_BYTES = 256
_TREE_RANKS = 16
# Chunks that are made, under way or being finished at the same time.
_DEPTH = 3
_POLL_S = 5e-5


@dataclass(frozen=True, slots=True)
class Chunks:
    """How a vector is cut into chunks, and each chunk into one slice per rank. Public.

    Attributes:
        dim: length of the vector.
        n_ranks: number of slices.
        words: length of every chunk but the last.
    """

    dim: int
    n_ranks: int
    words: int

    @classmethod
    def of(cls, dim: int, n_ranks: int, itemsize: int) -> Chunks:
        """Cut a vector of words of ``itemsize`` bytes into chunks of about one length."""
        longest = max(_CHUNK_BYTES // itemsize, n_ranks * _LEAST_SLICE_WORDS)
        count = max(1, -(-dim // longest))
        group = n_ranks * WORDS_PER_GROUP
        return cls(dim, n_ranks, max(group, -(-dim // (count * group)) * group))

    def __len__(self) -> int:
        return -(-self.dim // self.words)

    def chunk(self, number: int) -> slice:
        """Return where a chunk lies in the vector."""
        return slice(number * self.words, min((number + 1) * self.words, self.dim))

    def slices(self, number: int) -> list[slice]:
        """Return where the slice of each rank lies in a chunk; later ones may be empty."""
        where = self.chunk(number)
        length = where.stop - where.start
        step = -(-length // (self.n_ranks * WORDS_PER_GROUP)) * WORDS_PER_GROUP
        return [
            slice(min(rank * step, length), min((rank + 1) * step, length))
            for rank in range(self.n_ranks)
        ]


class Source(Protocol):
    """Makes what this rank puts in, chunk by chunk, each once and in order."""

    def __call__(self, number: int, out: Words, /) -> None:
        """Write the words of chunk ``number`` into ``out``; bits above b don't matter."""
        ...


class Sink(Protocol):
    """Takes the sum, chunk by chunk and in order."""

    def landing(self, where: slice) -> Words:
        """Return a vector for the sum of a chunk, whose place in the whole is ``where``."""
        ...

    def finish(self, where: slice, total: Words) -> None:
        """Take the sum mod 2^b that now lies in what `landing` returned."""
        ...


class Reduction:
    """One sum under way at one rank; all ranks run the same one together.

    Args:
        transport: joins the ranks.
        codec: of the words.
        chunks: how they are cut; equal at all ranks.
        executor: makes chunks ahead in a thread; None makes them here.
    """

    def __init__(
        self,
        transport: Transport,
        codec: WordCodec,
        chunks: Chunks,
        executor: Executor | None = None,
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._chunks = chunks
        self._executor = executor
        depth = min(_DEPTH, max(1, len(chunks)))
        self._buffers = np.empty((depth, min(chunks.words, chunks.dim)), dtype=codec.dtype)
        self._made: Future[None] | None = None

    def run(self, source: Source, sink: Sink) -> None:
        """Add up all ranks' words; see `Source` and `Sink`.

        Raises:
            PartyLost: a rank died or did not come before the deadline.
        """
        if _uses_tree(self._chunks, self._codec):
            self._run_tree(source, sink)
            return
        count = len(self._chunks)
        scattered: _Scattered | None = None
        gathered: _Gathered | None = None
        self._start_making(source, 0)
        for number in range(count + 2):
            upcoming = None
            if number < count:
                upcoming = self._scatter(source, number, (scattered, gathered))
            done, gathered = gathered, None
            if scattered is not None:
                gathered = self._gather(scattered, sink)
            if done is not None:
                done.finish(sink)
            scattered = upcoming

    def _start_making(self, source: Source, number: int) -> None:
        if number < len(self._chunks) and self._executor is not None:
            self._made = self._executor.submit(source, number, self._buffer(number))

    def _scatter(
        self, source: Source, number: int, under_way: tuple[_UnderWay | None, ...]
    ) -> _Scattered:
        """Have a chunk made and start sending its slices to the ranks that add them up."""
        words = self._buffer(number)
        if self._made is None:
            source(number, words)
        else:
            _wait_for(self._made, under_way)
            self._made = None
        slices = self._chunks.slices(number)
        # The buffer after next may still be on its way; the next one is free.
        self._start_making(source, number + 1)
        blocks = [self._codec.pack(words[part]) for part in slices]
        own = slices[self._transport.rank]
        inbox = self._inbox(dict.fromkeys(self._others(), own))
        pending = self._transport.begin_scatter(blocks, inbox)
        return _Scattered(pending, number, words[own], inbox)

    def _gather(self, scattered: _Scattered, sink: Sink) -> _Gathered:
        """Add up this rank's slice of a chunk and start exchanging the sums."""
        scattered.pending.wait()
        total = scattered.own
        summand = np.empty_like(total)
        for block in scattered.inbox.values():
            if self._codec.is_identity:
                summand = block.view(self._codec.dtype)
            else:
                self._codec.unpack(block, summand)
            np.add(total, summand, out=total)
        where, slices = self._chunks.chunk(scattered.number), self._chunks.slices(scattered.number)
        landing = sink.landing(where)
        # The chunk's buffer is used again before these bytes have left, the landing is not.
        part = landing[slices[self._transport.rank]]
        self._codec.reduce(total, part)
        own = self._codec.pack(part)
        parts = {rank: slices[rank] for rank in self._others()}
        inbox = self._inbox(parts, landing if self._codec.is_identity else None)
        pending = self._transport.begin_gather(own, inbox)
        landings = {rank: landing[part] for rank, part in parts.items()}
        return _Gathered(pending, where, landing, inbox, landings, self._codec)

    def _run_tree(self, source: Source, sink: Sink) -> None:
        words, where = self._buffer(0), self._chunks.chunk(0)
        source(0, words)
        self._codec.reduce(words, words)
        self._transport.begin_allreduce(words).wait()
        landing = sink.landing(where)
        self._codec.reduce(words, landing)
        sink.finish(where, landing)

    def _buffer(self, number: int) -> Words:
        where = self._chunks.chunk(number)
        buffer: Words = self._buffers[number % len(self._buffers)]
        return buffer[: where.stop - where.start]

    def _inbox(self, parts: Mapping[int, slice], landing: Words | None = None) -> dict[int, Block]:
        """Return a buffer per rank, in ``landing`` itself where words arrive as they are."""
        if landing is not None:
            return {rank: landing[part].view(np.uint8) for rank, part in parts.items()}
        return {
            rank: np.empty(self._codec.packed_bytes(part.stop - part.start), dtype=np.uint8)
            for rank, part in parts.items()
        }

    def _others(self) -> list[int]:
        own, n_ranks = self._transport.rank, self._transport.n_ranks
        return [(own + step) % n_ranks for step in range(1, n_ranks)]


@dataclass(slots=True)
class _Scattered:
    """A chunk whose slices are on their way to the ranks that add them up."""

    pending: Pending
    number: int
    own: Words
    inbox: dict[int, Block]


@dataclass(slots=True)
class _Gathered:
    """A chunk whose sums are on their way to all ranks."""

    pending: Pending
    where: slice
    landing: Words
    inbox: dict[int, Block]
    landings: dict[int, Words]
    codec: WordCodec

    def finish(self, sink: Sink) -> None:
        """Wait for the sums and hand them on."""
        self.pending.wait()
        if not self.codec.is_identity:
            for rank, block in self.inbox.items():
                self.codec.unpack(block, self.landings[rank])
        sink.finish(self.where, self.landing)


_UnderWay = _Scattered | _Gathered


def _uses_tree(chunks: Chunks, codec: WordCodec) -> bool:
    """Tell whether MPI's own reduction wins: few bytes, many ranks. Equal at all ranks."""
    slice_bytes = chunks.dim * codec.bits // (8 * chunks.n_ranks)
    return chunks.n_ranks >= _TREE_RANKS and len(chunks) == 1 and slice_bytes < _TREE_SLICE_BYTES


def _wait_for(made: Future[None], under_way: tuple[_UnderWay | None, ...]) -> None:
    """Wait for a chunk in the making; MPI moves what is under way only while it is polled."""
    while not made.done():
        for one in under_way:
            if one is not None:
                one.pending.poll()
        time.sleep(_POLL_S)
    made.result()


class _InPlace:
    """A source and a sink in one vector."""

    def __init__(self, words: Words, chunks: Chunks) -> None:
        self._words = words
        self._chunks = chunks

    def __call__(self, number: int, out: Words) -> None:
        out[:] = self._words[self._chunks.chunk(number)]

    def landing(self, where: slice) -> Words:
        return self._words[where]

    def finish(self, where: slice, total: Words) -> None:
        """There is nothing left to do."""


def allreduce(transport: Transport, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the sum of all ranks' vectors mod 2^64, shape (dim,); all ranks call it together.

    The sum takes the place of ``values``. Nothing is masked here.
    """
    if transport.n_ranks > 1:
        codec = WordCodec(64)
        chunks = Chunks.of(values.size, transport.n_ranks, codec.dtype.itemsize)
        both = _InPlace(values, chunks)
        Reduction(transport, codec, chunks).run(both, both)
    return values
