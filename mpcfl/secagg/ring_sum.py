"""The `ring` backend: pairwise masks in Z_2^b, b from 8 to 64, and b bits per word on the wire.

Every rank adds a stream per peer to its integers (`masks.py`) and puts the result, mod 2^b,
into a reduction in chunks (`net/reduction.py`). Masking, sending and adding up overlap; beside
the input and the sum a few chunks are held, and masks that were made ahead lie where the sum
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

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcfl.net.channel import agree_pair_secrets
from mpcfl.net.codec import WordCodec, Words
from mpcfl.net.reduction import Reduction
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumId, SumSettings, check_levels, check_range
from mpcfl.secagg.centred_sum import CentredSum, LastSum, salvage_last
from mpcfl.secagg.graph import agree_neighbors
from mpcfl.secagg.mask_session import MaskSession
from mpcfl.secagg.masks import MaskedSource, PairMasks
from mpcfl.secagg.salvage import Salvage

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
        self._masks = MaskSession(transport, settings, masks, self._codec.dtype)
        self._last: LastSum | None = None

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: of every chunk, the slices that the ranks add up."""
        return self._masks.chunks.parts

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> _Protected:
        """See `SecureSum.protect`; the masks are added while chunks are sent."""
        self._masks.check_open()
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        self._last = None
        source, prepared = self._masks.begin(vector, sum_id)
        return _Protected(source, self._room_for_sum(vector.dtype, prepared))

    def _room_for_sum(self, dtype: np.dtype[Any], prepared: Words | None) -> Levels:
        """Return where the sum goes: over its masks, which each chunk has used up by then."""
        if prepared is not None and prepared.dtype.itemsize == dtype.itemsize:
            return prepared.view(dtype)
        return np.empty(self._settings.dim, dtype=dtype)

    def aggregate(self, protected: _Protected) -> Levels:
        """See `SecureSum.aggregate`: mask, send and add up, chunk by chunk."""
        masks = self._masks
        sink = CentredSum(protected.total, self._codec.dtype, self._codec.bits)
        with masks.exchange():
            reduction = Reduction(self._transport, self._codec, masks.chunks, masks.executor)
            self._last = LastSum(reduction, sink)
            self._last.run(protected.source)
        return protected.total

    def open(self, aggregated: Levels) -> Levels:
        """See `SecureSum.open`; the masks have cancelled in the sum."""
        self._masks.check_open()
        self._masks.prepare_next()
        return aggregated

    def salvage(self) -> Salvage:
        """See `SecureSum.salvage`: slices that were added up here, and slices that came."""
        return salvage_last(self._last, self._masks.chunks)

    def prepare(self) -> None:
        """See `SecureSum.prepare`; lets go of the sum before, which is as long as the masks."""
        self._last = None
        self._masks.prepare()

    def close(self) -> None:
        """Forget all keys and masks; see `SecureSum.close`."""
        self._last = None
        self._masks.close()


def open_ring_sum(transport: Transport, settings: SumSettings) -> RingSum:
    """Agree a secret with every neighbor and open a session; see `BackendFactory`."""
    # The roster is the ranks of the transport, who were there before. A rank's place in the graph
    # comes from its number and from bytes that all commit to before any is shown; no public key
    # goes into it, so choosing a key later, with the graph in view, moves nobody.
    peers = agree_neighbors(transport, settings.run_id, settings.neighbors)
    secrets = agree_pair_secrets(transport, settings.run_id, peers=peers)
    return RingSum(transport, settings, PairMasks(transport.rank, secrets, _PURPOSE))
