"""Pairwise masks: one AES-256-CTR stream per pair of ranks, sum and chunk.

One side of a pair adds the stream, the other subtracts it, so the masks cancel in the sum of
all vectors and in nothing less. Keys come from the pair's agreed secret by HKDF-SHA-256 with
the purpose, round, attempt and chunk in the context, and the version, run and public keys
beneath them (`net/channel.py`), so no stream ever repeats. Source: Bonawitz et al. 2017 (CCS),
section 4.1; AES as a pseudorandom function in counter mode, NIST SP 800-38A.

Words are those of a machine type of w bits; sums are taken mod 2^w, and what is left mod 2^b
is uniform in Z_2^b, as 2^b divides 2^w. A coalition that lacks the stream of one pair knows
nothing of the difference of these two inputs; `neighbors.py` says how many pairs are enough.

Masks can be made ahead (`MaskPreparation`), in a thread of its own: `cryptography` and numpy
release Python's lock. They hide one vector once, and are thrown away if another sum comes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from typing import Any

import numpy as np

from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import KeystreamBits, raw_keyed_bits
from mpcfl.net.channel import PairSecrets
from mpcfl.net.codec import Words
from mpcfl.net.reduction import Chunks
from mpcfl.secagg.base import Levels, SumId

# A piece of output and stream, 256 KiB each, stays in the second-level cache.
_PIECE_BYTES = 1 << 18
# uint8, uint16, uint32 or uint64.
WordType = np.dtype[np.unsignedinteger[Any]]
# A stream, and whether this side adds it.
_Stream = tuple[KeystreamBits, bool]


class PairMasks:
    """The masks that one rank shares with its peers, for every sum of a session. Secret.

    Args:
        rank: this one.
        secrets: one per peer.
        purpose: of the streams; different for every backend.
    """

    def __init__(self, rank: int, secrets: PairSecrets, purpose: str) -> None:
        self._rank = rank
        self._secrets = secrets
        self._purpose = purpose
        self._peers = secrets.peers
        self._process_id = os.getpid()

    @property
    def n_peers(self) -> int:
        """Number of streams that every chunk takes."""
        return len(self._peers)

    def write(self, sum_id: SumId, number: int, out: Words) -> None:
        """Write all masks of a chunk, added up, into ``out``."""
        self._combine(self._streams(sum_id, number), out, None)

    def add(self, sum_id: SumId, number: int, levels: Levels, out: Words) -> None:
        """Write ``levels`` of a chunk under all its masks into ``out``, mod 2^w."""
        self._combine(self._streams(sum_id, number), out, levels)

    def forget(self) -> None:
        """Drop all secrets."""
        self._secrets.forget()

    def check_process(self) -> None:
        """Refuse to go on in a child process, whose parent has the same masks.

        Raises:
            OutOfOrder: this is one.
        """
        if os.getpid() != self._process_id:
            raise OutOfOrder("this session was opened before a fork; open a new one")

    def _streams(self, sum_id: SumId, number: int) -> list[_Stream]:
        self.check_process()
        context = (sum_id.round_id, sum_id.attempt, number)
        return [
            (raw_keyed_bits(self._secrets.key(peer, self._purpose, *context)), self._rank < peer)
            for peer in self._peers
        ]

    def _combine(self, streams: list[_Stream], out: Words, levels: Levels | None) -> None:
        stream_words = np.empty(min(_PIECE_BYTES // out.itemsize, out.size), dtype=out.dtype)
        for piece in _pieces(out.size, out.itemsize):
            # The cast keeps the low bits, which are the residue mod 2^w.
            out[piece] = 0 if levels is None else levels[piece]
            target = out[piece]
            mask = stream_words[: target.size]
            for stream, adds in streams:
                stream.fill(mask)
                combine = np.add if adds else np.subtract
                combine(target, mask, out=target)


def _pieces(size: int, itemsize: int) -> Iterator[slice]:
    step = _PIECE_BYTES // itemsize
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


class _PreparedMasks:
    """The masks of one sum, added up per rank: one vector, used once. Secret."""

    def __init__(self, sum_id: SumId, words: Words, made: Future[None]) -> None:
        self.sum_id = sum_id
        self.words: Words | None = words
        self.made = made


class MaskPreparation:
    """Makes the masks of the next sum while the ranks do something else.

    Holds one vector of words at most. What was made for another sum than the one that comes
    (a new attempt, a resumed run) is thrown away.
    """

    def __init__(self, masks: PairMasks, chunks: Chunks, executor: Executor) -> None:
        self._masks = masks
        self._chunks = chunks
        self._executor = executor
        self._prepared: _PreparedMasks | None = None
        self._stop = threading.Event()

    def start(self, sum_id: SumId, dtype: WordType) -> None:
        """Begin to make the masks of a sum in the background."""
        self.drop()
        self._stop = threading.Event()
        words = np.empty(self._chunks.dim, dtype=dtype)
        made = self._executor.submit(self._make, sum_id, words, self._stop)
        self._prepared = _PreparedMasks(sum_id, words, made)

    def wait(self) -> None:
        """Return once the masks that were started are ready; if that failed, `take` says so.

        Raises:
            OutOfOrder: this is a child process, where nobody makes them.
        """
        self._masks.check_process()
        if self._prepared is not None:
            wait([self._prepared.made])

    def take(self, sum_id: SumId) -> Words | None:
        """Hand over the masks of a sum, once; None if there are none of this one.

        Raises:
            OutOfOrder: this is a child process, whose parent has the same masks.
        """
        self._masks.check_process()
        prepared = self._prepared
        if prepared is None or prepared.sum_id != sum_id:
            self.drop()
            return None
        self._prepared = None
        prepared.made.result()
        return prepared.words

    def drop(self) -> None:
        """Throw away what was made, and stop making it."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._stop.set()
            prepared.made.cancel()

    def _make(self, sum_id: SumId, words: Words, stop: threading.Event) -> None:
        for number in range(len(self._chunks)):
            if stop.is_set():
                return
            self._masks.write(sum_id, number, words[self._chunks.chunk(number)])


class MaskedSource:
    """Levels under their masks, chunk by chunk; a `Source` of `net/reduction.py`.

    A chunk is made once: a second one under the same mask would show a difference of inputs.
    """

    def __init__(
        self,
        levels: Levels,
        sum_id: SumId,
        masks: PairMasks,
        chunks: Chunks,
        prepared: Words | None = None,
    ) -> None:
        self._levels = levels
        self._sum_id = sum_id
        self._masks = masks
        self._chunks = chunks
        self._prepared = prepared
        self._next = 0

    def __call__(self, number: int, out: Words) -> None:
        """See `Source`.

        Raises:
            OutOfOrder: the chunk was made before.
        """
        if number != self._next:
            raise OutOfOrder("a masked chunk was asked for twice; use a new sum for every attempt")
        self._next += 1
        where, levels, prepared = self._chunks.chunk(number), self._levels, self._prepared
        if self._next == len(self._chunks):
            # Vectors are long, and whoever keeps this object need not keep them.
            self._levels, self._prepared = np.empty(0, levels.dtype), None
        if prepared is None:
            self._masks.add(self._sum_id, number, levels[where], out)
        else:
            _add(levels[where], prepared[where], out)

    def __repr__(self) -> str:
        return "MaskedSource(<redacted>)"


def _add(levels: Levels, mask: Words, out: Words) -> None:
    """Write levels plus mask, mod 2^w, into ``out``; in one pass over memory if types allow."""
    if levels.itemsize == mask.itemsize:
        np.add(levels.view(mask.dtype), mask, out=out)
        return
    for piece in _pieces(out.size, out.itemsize):
        out[piece] = levels[piece]
        np.add(out[piece], mask[piece], out=out[piece])
