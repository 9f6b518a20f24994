"""The `crypten` backend: CrypTen's additive shares in Z_2^64, made by us from all pairs.

CrypTen as shipped masks an input with two streams, which it shares with its two ring
neighbours, so two colluders remove the mask. Here every pair of ranks has a stream of its
own for every sum (`masks.py`, the same as in `ring_sum.py`): one side adds it, the other
subtracts it, so the masks cancel in the sum and in nothing less. What a rank holds is its CrypTen share of the *sum*, so aggregation needs no message, and the tensor can
be handed on to CrypTen. Source: Bonawitz et al. 2017 (CCS), section 4.1 (pairwise masks).

Assumes a semi-honest coalition: all other parties together learn one party's input (they do
so from the sum alone); any fewer learn the sum of the honest inputs and nothing else. An
active network can spoil the sum unseen here; only the key exchange is in its way.

Carries: inputs are v + 2^(b-1) in [0, 2^b) and add up in Z_2^64. Two's complement residues
mod 2^b would carry into bit b once per negative summand and so show how many there were.
The opened value here is the true sum plus the public constant n 2^(b-1), whatever the signs.
It shows the true sum, not only its residue mod 2^b: that is the quantity that carries the
noise, and the plan keeps it within b bits. At b = 64 the ring itself wraps and nothing
carries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mpcfl.errors import OutOfOrder
from mpcfl.net.channel import agree_pair_secrets
from mpcfl.net.reduction import Chunks
from mpcfl.net.transport import Transport
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.base import (
    IntVector,
    Levels,
    SumId,
    SumSettings,
    check_wide_levels,
    from_offset_binary,
    next_sum,
    to_offset_binary,
)
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator
from mpcfl.secagg.masks import MaskedSource, PairMasks

ArithmeticSharedTensor = crypten.mpc.primitives.ArithmeticSharedTensor
_PURPOSE = "crypten-mask"
_WORD_BYTES = 8


class CryptenSum:
    """A session of sums in CrypTen shares; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings, masks: PairMasks) -> None:
        self._settings = settings
        self._n_ranks = transport.n_ranks
        self._chunks = Chunks.of(settings.dim, transport.n_ranks, _WORD_BYTES)
        self._masks: PairMasks | None = masks
        self._communicator = TransportCommunicator(transport)
        self._generators = crypten_bridge.fresh_generators()
        self._last: SumId | None = None

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Any:
        """See `SecureSum.protect`.

        Returns:
            This rank's share of the sum, an `ArithmeticSharedTensor`, shape (dim,), uniform
            in Z_2^64 to anybody who lacks one of this rank's pair secrets.
        """
        if self._masks is None:
            raise OutOfOrder("this session was closed; open a new one")
        vector = check_wide_levels(levels, self._settings.dim)
        offset = to_offset_binary(vector, self._settings.modulus_bits).view(np.int64)
        self._last = next_sum(self._last, sum_id)
        source = MaskedSource(offset, self._last, self._masks, self._chunks)
        share = np.empty(self._settings.dim, dtype=np.uint64)
        for number in range(len(self._chunks)):
            source(number, share[self._chunks.chunk(number)])
        with crypten_bridge.speaking_through(self._communicator, self._generators):
            return ArithmeticSharedTensor.from_shares(
                torch.from_numpy(share.view(np.int64)), precision=0
            )

    def aggregate(self, protected: Any) -> Any:
        """See `SecureSum.aggregate`; the shares already belong to the sum."""
        return protected

    def open(self, aggregated: Any) -> IntVector:
        """See `SecureSum.open`; CrypTen reveals the sum, so the masks cancel here."""
        with crypten_bridge.speaking_through(self._communicator, self._generators):
            total = aggregated.reveal().numpy().view(np.uint64)
        return from_offset_binary(total, self._settings.modulus_bits, self._n_ranks)

    def prepare(self) -> None:
        """See `SecureSum.prepare`."""

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        masks, self._masks = self._masks, None
        if masks is not None:
            masks.forget()


def open_crypten_sum(transport: Transport, settings: SumSettings) -> CryptenSum:
    """Agree a secret with every neighbor and open a session; see `BackendFactory`."""
    secrets = agree_pair_secrets(transport, settings.run_id)
    return CryptenSum(transport, settings, PairMasks(transport.rank, secrets, _PURPOSE))
