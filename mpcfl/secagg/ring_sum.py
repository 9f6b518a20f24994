"""The `ring` backend: pairwise masks in Z_2^b, b from 8 to 64, and b bits per word on the wire.

Every rank adds a stream per peer to its integers (`masks.py`) and puts the result, mod 2^b,
into a reduction in chunks (`net/reduction.py`). Masking, sending and adding up overlap; beside
the input and the sum three chunks are held, and masks that were made ahead lie where the sum
will go, if its words are as wide. Since masks are uniform in Z_2^b and all arithmetic is mod
2^b, no carry leaves the ring: nobody learns more of the sum than its residue.

Assumes a semi-honest coalition. With masks between all pairs, all other parties together learn
one party's input (they do so from the sum alone); any fewer learn the sum of the honest
inputs and nothing else. With a sparse graph (`settings.neighbors`) that holds, except with
probability 2^-40, for as many colluders as the graph was planned for; a party's neighbors
together read its input. An active network can spoil the sum unseen here.

The stages: `protect` checks the input, `aggregate` masks, sends and adds up, so that these
overlap, and `open` hands the sum over.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcfl.errors import OutOfOrder
from mpcfl.net.channel import agree_pair_secrets
from mpcfl.net.codec import WordCodec, Words
from mpcfl.net.reduction import Chunks, Reduction
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    FIRST_SUM,
    Levels,
    SumId,
    SumSettings,
    check_levels,
    check_range,
    next_sum,
)
from mpcfl.secagg.graph import agree_neighbors
from mpcfl.secagg.masks import MaskedSource, MaskPreparation, PairMasks

_PURPOSE = "ring-mask"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class _Protected:
    """What leaves this rank masked, chunk by chunk; the input beneath it is secret."""

    source: MaskedSource
    total: Levels


class RingSum:
    """A session of sums under pairwise masks; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings, masks: PairMasks) -> None:
        self._transport = transport
        self._settings = settings
        self._codec = WordCodec(settings.modulus_bits)
        self._chunks = Chunks.of(settings.dim, transport.n_ranks, self._codec.dtype.itemsize)
        self._masks: PairMasks | None = masks
        self._last: SumId | None = None
        self._executor: ThreadPoolExecutor | None = None
        if settings.precompute or len(self._chunks) > 1:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._preparation: MaskPreparation | None = None
        if settings.precompute and self._executor is not None:
            self._preparation = MaskPreparation(masks, self._chunks, self._executor)
            self._preparation.start(FIRST_SUM, self._codec.dtype)

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> _Protected:
        """See `SecureSum.protect`; the masks are added while chunks are sent."""
        masks = self._masks_of_open_session()
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        self._last = next_sum(self._last, sum_id)
        prepared = None if self._preparation is None else self._preparation.take(self._last)
        source = MaskedSource(vector, self._last, masks, self._chunks, prepared)
        return _Protected(source, self._room_for_sum(vector.dtype, prepared))

    def _masks_of_open_session(self) -> PairMasks:
        if self._masks is None:
            raise OutOfOrder("this session was closed; open a new one")
        return self._masks

    def _room_for_sum(self, dtype: np.dtype[Any], prepared: Words | None) -> Levels:
        """Return where the sum goes: over its masks, which each chunk has used up by then."""
        if prepared is not None and prepared.dtype.itemsize == dtype.itemsize:
            return prepared.view(dtype)
        return np.empty(self._settings.dim, dtype=dtype)

    def aggregate(self, protected: _Protected) -> Levels:
        """See `SecureSum.aggregate`: mask, send and add up, chunk by chunk."""
        self._masks_of_open_session()
        reduction = Reduction(self._transport, self._codec, self._chunks, self._executor)
        reduction.run(protected.source, _CentredSum(protected.total, self._codec))
        return protected.total

    def open(self, aggregated: Levels) -> Levels:
        """See `SecureSum.open`; the masks have cancelled in the sum."""
        self._masks_of_open_session()
        if self._preparation is not None and self._last is not None:
            self._preparation.start(self._last.expected_next, self._codec.dtype)
        return aggregated

    def prepare(self) -> None:
        """See `SecureSum.prepare`."""
        if self._preparation is not None:
            self._preparation.wait()

    def close(self) -> None:
        """Forget all keys and masks; see `SecureSum.close`."""
        masks, self._masks = self._masks, None
        if self._preparation is not None:
            self._preparation.drop()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        if masks is not None:
            masks.forget()


class _CentredSum:
    """Takes the sum chunk by chunk and centres it mod 2^b; a `Sink` of `net/reduction.py`."""

    def __init__(self, total: Levels, codec: WordCodec) -> None:
        self._total = total
        self._codec = codec
        self._in_place = total.dtype.itemsize == codec.dtype.itemsize
        self._signed = np.dtype(f"i{codec.dtype.itemsize}")
        self._spare = self._signed.type(codec.dtype.itemsize * 8 - codec.bits)

    def landing(self, where: slice) -> Words:
        if self._in_place:
            return self._total[where].view(self._codec.dtype)
        return np.empty(where.stop - where.start, dtype=self._codec.dtype)

    def finish(self, where: slice, total: Words) -> None:
        signed = total.view(self._signed)
        if self._spare:
            np.left_shift(signed, self._spare, out=signed)
            np.right_shift(signed, self._spare, out=signed)
        if not self._in_place:
            self._total[where] = signed


def open_ring_sum(transport: Transport, settings: SumSettings) -> RingSum:
    """Agree a secret with every neighbor and open a session; see `BackendFactory`."""
    # The roster is the ranks of the transport, who were there before. A rank's place in the graph
    # comes from its number and from bytes that all commit to before any is shown; no public key
    # goes into it, so choosing a key later, with the graph in view, moves nobody.
    peers = agree_neighbors(transport, settings.run_id, settings.neighbors)
    secrets = agree_pair_secrets(transport, settings.run_id, peers=peers)
    return RingSum(transport, settings, PairMasks(transport.rank, secrets, _PURPOSE))
