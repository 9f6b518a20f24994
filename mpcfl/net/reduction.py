"""A sum of long vectors over all ranks: in chunks, packed, with chunks overlapping each other.

Each chunk is cut into one slice per rank. A rank sends every slice to the rank that adds it
up, and then sends the sum of its own slice to all: 2 (n-1)/n of a vector leaves and reaches
every rank, which is the least that any algorithm needs, and b bits travel per word. While one
chunk is under way the next one is made (in a thread of its own where the caller gives one)
and the one before is finished. Words are made, sent and received where the sum will lie; beside
that, what is packed, and what is received to be added up, takes some chunks of room.

Where slices get very short, many messages cost more than their bytes, and MPI's own tree
reduction takes over (`Transport.begin_allreduce`).

A sum that breaks off has added up some slices and received others. They are sums in the clear
for whoever opens them, so `Reduction.unfinished` tells which ones this rank has.

Protects nothing by itself: what goes in may be seen by everybody. Words are cut to b bits
before they leave, so that no carry above b bits does; the carries of the tree, in words of 32
or 64 bits, are a function of words that everybody may see.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.codec import WORDS_PER_GROUP, WordCodec, Words
from mpcfl.net.transport import Block, Pending, Transport

# 4 MiB: long enough for full bandwidth with a few ranks, short enough to overlap.
_CHUNK_BYTES = 1 << 22
# With many ranks, slices of this many words keep messages from getting too short.
_LEAST_SLICE_WORDS = 1 << 14
# Below this many bytes per slice, and from this many ranks on, the tree is faster: on one host
# far beyond, on a link of 1 Gbit/s and 1 ms hardly.
_TREE_SLICE_BYTES = 1 << 10
_TREE_RANKS = 8
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

    @property
    def parts(self) -> tuple[slice, ...]:
        """Return where each slice lies in the vector, chunk by chunk and in order of rank.

        Part ``number * n_ranks + rank`` is what ``rank`` adds up of chunk ``number``.
        """
        return tuple(
            slice(self.chunk(number).start + part.start, self.chunk(number).start + part.stop)
            for number in range(len(self))
            for part in self.slices(number)
        )


class Source(Protocol):
    """Makes what this rank puts in, chunk by chunk, each once and in order."""

    def __call__(self, number: int, out: Words, /) -> None:
        """Write the words of chunk ``number`` into ``out``; bits above b don't matter."""
        ...


class Sink(Protocol):
    """Takes the sum, chunk by chunk and in order."""

    def landing(self, where: slice) -> Words:
        """Return room for a chunk, whose place in the whole is ``where``.

        It first takes what this rank puts in, and then the sum. It is asked for once.
        """
        ...

    def finish(self, where: slice, total: Words) -> None:
        """Take the sum mod 2^b that now lies in what `landing` returned."""
        ...


class _Stage(Enum):
    """How far a chunk has come; while its words change, nothing can be read from them."""

    MADE = auto()
    SCATTERED = auto()
    GATHERED = auto()
    CHANGING = auto()


@dataclass(slots=True)
class _Chunk:
    """One chunk on its way from this rank's words to the sum.

    Attributes:
        number: its place among the chunks.
        where: its place in the whole.
        slices: one per rank, in the chunk.
        words: this rank's words, then the sum.
        made: its making, where that is left to another thread.
        inbox: by rank, what comes from there.
        pending: what is under way.
        stage: what was begun last.
    """

    number: int
    where: slice
    slices: list[slice]
    words: Words
    made: Future[None] | None = None
    inbox: dict[int, Block] = field(default_factory=dict)
    pending: Pending | None = None
    stage: _Stage = _Stage.MADE

    def wait(self) -> None:
        """Return once nothing of it is under way."""
        if self.pending is not None:
            self.pending.wait()

    def arrived(self) -> frozenset[int]:
        """Return the ranks whose block is here."""
        return frozenset() if self.pending is None else self.pending.arrived()


class Reduction:
    """One sum under way at one rank; all ranks run the same one together.

    Args:
        transport: joins the ranks.
        codec: of the words.
        chunks: how they are cut; equal at all ranks.
        executor: makes chunks ahead in a thread; None makes them here.

    Attributes:
        chunks: as above.
        n_finished: chunks whose sum the sink has taken, in order.
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
        self.chunks = chunks
        self.n_finished = 0
        self._executor = executor
        # The oldest first: one chunk is gathered, one scattered, one made.
        self._under_way: list[_Chunk] = []

    def run(self, source: Source, sink: Sink) -> None:
        """Add up all ranks' words; see `Source` and `Sink`.

        Raises:
            PartyLost: a rank died or did not come before the deadline.
        """
        if uses_tree(self.chunks, self._codec):
            self._run_tree(source, sink)
            return
        under_way = self._under_way
        upcoming = self._start_making(source, sink, 0)
        for number in range(len(self.chunks)):
            chunk, upcoming = upcoming, None
            if chunk is not None:
                self._make(source, chunk)
                upcoming = self._start_making(source, sink, number + 1)
                self._scatter(chunk)
                under_way.append(chunk)
            self._advance(under_way[-2:-1])
            self._finish(sink, leave=2)
        self._advance(under_way[-1:])
        self._finish(sink, leave=0)

    def unfinished(self) -> dict[int, Words]:
        """Return the sums that this rank can read of chunks that the sink has not taken.

        For after a failure; local, and nothing waits. They are slices that this rank added up
        or has all summands of, and those that came from other ranks. With the tree there are
        none: its sum is read by nobody before it is complete.

        Returns:
            By number of part (`Chunks.parts`), its words mod 2^b; copies.
        """
        own, n_ranks = self._transport.rank, self._transport.n_ranks
        known: dict[int, Words] = {}
        for chunk in self._under_way:
            first = chunk.number * n_ranks
            arrived = chunk.arrived()
            if chunk.stage is _Stage.GATHERED:
                known[first + own] = chunk.words[chunk.slices[own]].copy()
                for rank in arrived:
                    known[first + rank] = self._received(chunk, rank)
            elif chunk.stage is _Stage.SCATTERED and arrived.issuperset(chunk.inbox):
                total = chunk.words[chunk.slices[own]].copy()
                self._add_up(chunk.inbox, total)
                known[first + own] = total
        return known

    def _received(self, chunk: _Chunk, rank: int) -> Words:
        """Return a copy of the sum that came from a rank."""
        words = np.empty(_length(chunk.slices[rank]), dtype=chunk.words.dtype)
        self._codec.unpack(chunk.inbox[rank], words)
        return words

    def _start_making(self, source: Source, sink: Sink, number: int) -> _Chunk | None:
        if number >= len(self.chunks):
            return None
        where = self.chunks.chunk(number)
        chunk = _Chunk(number, where, self.chunks.slices(number), sink.landing(where))
        if self._executor is not None:
            chunk.made = self._executor.submit(source, number, chunk.words)
        return chunk

    def _make(self, source: Source, chunk: _Chunk) -> None:
        """Return once a chunk is made; MPI moves what is under way only while it is polled."""
        if chunk.made is None:
            source(chunk.number, chunk.words)
            return
        while not chunk.made.done():
            for one in self._under_way:
                if one.pending is not None:
                    one.pending.poll()
            time.sleep(_POLL_S)
        chunk.made.result()

    def _scatter(self, chunk: _Chunk) -> None:
        """Start sending a chunk's slices to the ranks that add them up."""
        blocks = [self._codec.pack(chunk.words[part]) for part in chunk.slices]
        length = _length(chunk.slices[self._transport.rank])
        chunk.inbox = {rank: self._block(length) for rank in self._others()}
        chunk.pending = self._transport.begin_scatter(blocks, chunk.inbox)
        chunk.stage = _Stage.SCATTERED

    def _advance(self, scattered: list[_Chunk]) -> None:
        """Add up this rank's slice of a scattered chunk and start exchanging the sums."""
        for chunk in scattered:
            chunk.wait()
            chunk.stage, chunk.pending = _Stage.CHANGING, None
            total = chunk.words[chunk.slices[self._transport.rank]]
            self._add_up(chunk.inbox, total)
            parts = {rank: chunk.words[chunk.slices[rank]] for rank in self._others()}
            chunk.inbox = {
                # The words that were there have left.
                rank: part.view(np.uint8) if self._codec.is_identity else self._block(part.size)
                for rank, part in parts.items()
            }
            chunk.stage = _Stage.GATHERED
            chunk.pending = self._transport.begin_gather(self._codec.pack(total), chunk.inbox)

    def _add_up(self, inbox: Mapping[int, Block], total: Words) -> None:
        """Add what came from the others to ``total``, mod 2^b."""
        summand = np.empty(0 if self._codec.is_identity else total.size, dtype=total.dtype)
        for block in inbox.values():
            if self._codec.is_identity:
                summand = block.view(total.dtype)
            else:
                self._codec.unpack(block, summand)
            np.add(total, summand, out=total)
        self._codec.reduce(total, total)

    def _finish(self, sink: Sink, leave: int) -> None:
        """Hand on the oldest chunks, whose sums are on their way, until few are left."""
        while len(self._under_way) > leave:
            chunk = self._under_way[0]
            chunk.wait()
            chunk.stage = _Stage.CHANGING
            if not self._codec.is_identity:
                for rank, block in chunk.inbox.items():
                    self._codec.unpack(block, chunk.words[chunk.slices[rank]])
            sink.finish(chunk.where, chunk.words)
            self.n_finished += 1
            self._under_way.pop(0)

    def _run_tree(self, source: Source, sink: Sink) -> None:
        where = self.chunks.chunk(0)
        words = sink.landing(where)
        source(0, words)
        self._codec.reduce(words, words)
        wide = words.astype(np.promote_types(words.dtype, np.uint32), copy=False)
        self._transport.begin_allreduce(wide).wait()
        words[:] = wide
        self._codec.reduce(words, words)
        sink.finish(where, words)
        self.n_finished = 1

    def _block(self, n_words: int) -> Block:
        return np.empty(self._codec.packed_bytes(n_words), dtype=np.uint8)

    def _others(self) -> list[int]:
        own, n_ranks = self._transport.rank, self._transport.n_ranks
        return [(own + step) % n_ranks for step in range(1, n_ranks)]


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def uses_tree(chunks: Chunks, codec: WordCodec) -> bool:
    """Tell whether MPI's own reduction wins: few bytes, many ranks. Equal at all ranks."""
    slice_bytes = chunks.dim * codec.bits // (8 * chunks.n_ranks)
    return chunks.n_ranks >= _TREE_RANKS and len(chunks) == 1 and slice_bytes < _TREE_SLICE_BYTES


class _InPlace:
    """A source and a sink in one vector."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def __call__(self, number: int, out: Words) -> None:
        """They are where they should be."""

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
        both = _InPlace(values)
        Reduction(transport, codec, chunks).run(both, both)
    return values
