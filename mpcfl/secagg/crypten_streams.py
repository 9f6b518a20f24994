"""Random words for CrypTen from AES-256-CTR, in place of its Mersenne twisters.

CrypTen as shipped shares its values with two twisters, one in common with each ring neighbor.
A twister keeps 32 bits of its seed and is linear, and CrypTen's comparisons open words of it
in the clear (they mask bits that are known to be zero), so that any rank, or the network, can
work out its state. Here a rank has one stream with every peer: the zero that hides a share is
made of all of them, added for arithmetic and exclusive-ored for binary shares, and what
CrypTen draws for itself, multiplication triples above all, comes from the operating system.
Keys hang on the sum, so no two sums share a stream.

Assumes semi-honest ranks. Does not protect against whoever makes the triples: that is rank 0 with
CrypTen's default provider (see `shared_sum.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpcfl.hazmat.bits import KeystreamBits, SystemBits, derive_key, domain_tag, raw_keyed_bits
from mpcfl.net.channel import PairSecrets
from mpcfl.secagg.base import SumId

_PURPOSE = "crypten-computing"
_WORD_BITS = 64
_CPU = torch.device("cpu")


class WordStreams:
    """Some keystreams, read together in CrypTen's order; none gives zeros. Secret."""

    def __init__(self, streams: Sequence[KeystreamBits]) -> None:
        self._streams = tuple(streams)

    def ring_elements(self, size: Sequence[int]) -> torch.Tensor:
        """Return the sum of the streams' next words mod 2^64, int64, in the shape ``size``."""
        return self._combine(size, np.add, _WORD_BITS)

    def bit_strings(self, size: Sequence[int], bits: int) -> torch.Tensor:
        """Return the exclusive or of the streams' next words, cut to ``bits``, int64."""
        return self._combine(size, np.bitwise_xor, bits)

    def _combine(self, size: Sequence[int], fold: np.ufunc, bits: int) -> torch.Tensor:
        total: NDArray[np.uint64] = np.zeros(math.prod(size), dtype=np.uint64)
        words = np.empty_like(total)
        for stream in self._streams:
            stream.fill(words)
            fold(total, words, out=total)
        if bits < _WORD_BITS:
            total &= np.uint64((1 << bits) - 1)
        return torch.from_numpy(total.view(np.int64)).reshape(tuple(size))

    def __repr__(self) -> str:
        return "WordStreams(<redacted>)"


def computing_generators(
    rank: int, secrets: PairSecrets, run_id: str, sum_id: SumId
) -> dict[str, dict[Any, Any]]:
    """Return CrypTen's set of generators for what is computed with one shared sum.

    CrypTen hides a share with "prev" less "next" (or their exclusive or). "prev" holds the
    streams with all lower peers and "next" those with all higher ones, so that every stream
    comes once with each sign and they cancel over all ranks. "local" is this rank's own.
    "global" is public: CrypTen draws dropout masks with it, which all ranks know.

    Args:
        rank: this one.
        secrets: one per peer.
        run_id: public name of the run.
        sum_id: of the shared sum; generators of one sum are made once.
    """
    context = (_PURPOSE, sum_id.round_id, sum_id.attempt)
    streams = {peer: raw_keyed_bits(secrets.key(peer, *context)) for peer in secrets.peers}
    seed = derive_key(run_id.encode(), domain_tag("crypten-public-seed", *context[1:]))
    public = torch.Generator()
    # 63 bits, as torch takes a signed number.
    public.manual_seed(int.from_bytes(seed[:8], "big") >> 1)
    return {
        "prev": {_CPU: WordStreams([s for peer, s in streams.items() if peer < rank])},
        "next": {_CPU: WordStreams([s for peer, s in streams.items() if peer > rank])},
        "local": {_CPU: WordStreams([SystemBits()])},
        "global": {_CPU: public},
    }
