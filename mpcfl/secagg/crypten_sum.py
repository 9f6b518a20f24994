"""The `crypten` backend: CrypTen's additive shares in Z_2^64, made by us from all pairs.

CrypTen as shipped masks an input with two streams, which it shares with its two ring
neighbours, so two colluders remove the mask. Here every pair of ranks has a stream of its
own for every sum (AES-256-CTR, keyed by HKDF from the pair's X25519 secret): one side adds
it, the other subtracts it, so the masks cancel in the sum and in nothing less. What a rank
holds is its CrypTen share of the *sum*, so aggregation needs no message, and the tensor can
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
from numpy.typing import NDArray

from mpcfl.hazmat.bits import KeystreamBits, raw_keyed_bits
from mpcfl.net.channel import PairSecrets, agree_pair_secrets
from mpcfl.net.transport import Transport
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.base import (
    IntVector,
    SumSettings,
    check_levels,
    from_offset_binary,
    to_offset_binary,
)
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator

ArithmeticSharedTensor = crypten.mpc.primitives.ArithmeticSharedTensor
_PURPOSE = "crypten-mask"
# Vector and mask pieces of 128 KiB each stay in the second-level cache.
_CHUNK_WORDS = 1 << 14


class CryptenSum:
    """A session of sums in CrypTen shares; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings, secrets: PairSecrets) -> None:
        self._settings = settings
        self._rank = transport.rank
        self._n_ranks = transport.n_ranks
        self._secrets = secrets
        self._communicator = TransportCommunicator(transport)
        self._generators = crypten_bridge.fresh_generators()
        self._peers = secrets.peers
        self._sums = 0

    def protect(self, levels: IntVector | None) -> Any:
        """See `SecureSum.protect`.

        Returns:
            This rank's share of the sum, an `ArithmeticSharedTensor`, shape (dim,), uniform
            in Z_2^64 to anybody who lacks one of this rank's pair secrets.
        """
        vector = check_levels(levels, self._settings.dim)
        share = to_offset_binary(vector, self._settings.modulus_bits)
        add_pair_masks(share, self._streams())
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

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._secrets.forget()

    def _streams(self) -> list[tuple[KeystreamBits, bool]]:
        """Return this sum's stream per peer, and whether this side adds it; used once."""
        self._sums += 1
        return [
            (raw_keyed_bits(self._secrets.key(peer, _PURPOSE, self._sums)), self._rank < peer)
            for peer in self._peers
        ]


def add_pair_masks(share: NDArray[np.uint64], streams: list[tuple[KeystreamBits, bool]]) -> None:
    """Add (True) or subtract (False) each stream to ``share`` in place, mod 2^64, shape (dim,)."""
    mask = np.empty(min(_CHUNK_WORDS, share.size), dtype=np.uint64)
    for start in range(0, share.size, _CHUNK_WORDS):
        piece = share[start : start + _CHUNK_WORDS]
        for stream, adds in streams:
            stream.fill(mask[: piece.size])
            combine = np.add if adds else np.subtract
            combine(piece, mask[: piece.size], out=piece)


def open_crypten_sum(transport: Transport, settings: SumSettings) -> CryptenSum:
    """Agree a secret with every peer and open a session; see `BackendFactory`."""
    return CryptenSum(transport, settings, agree_pair_secrets(transport, settings.run_id))
