"""The `crypten` backend: CrypTen's additive shares in Z_2^64, made by us from all pairs.

CrypTen as shipped masks an input with two streams, which it shares with its two ring
neighbors, so two colluders remove the mask. Here every pair of ranks (or of neighbors in a
sparse graph) has a stream of its own for every sum (`masks.py`, the same as in `ring_sum.py`):
one side adds it, the other subtracts it, so the masks cancel in the sum and in nothing less.
What a rank holds is its CrypTen share of the *sum*, so aggregation needs no message, and the
tensor can be handed on to CrypTen unopened (`share_sum`, `shared_sum.py`). Source: Bonawitz
et al. 2017 (CCS), section 4.1 (pairwise masks).

Assumes a semi-honest coalition. With masks between all pairs, all other parties together learn
one party's input (they do so from the sum alone); any fewer learn the sum of the honest
inputs and nothing else. With a sparse graph (`settings.neighbors`) that holds, except with
probability 2^-40, for as many colluders as the graph was planned for; a party's neighbors
together read its input. An active network can spoil the sum unseen here; only the key
exchange is in its way.

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

from mpcfl.net.channel import PairSecrets, agree_pair_secrets
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumId, SumSettings, check_levels, check_range
from mpcfl.secagg.centred_sum import CentredSum, LastSum, salvage_last
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator, WordsSource
from mpcfl.secagg.crypten_streams import computing_generators
from mpcfl.secagg.graph import agree_neighbors
from mpcfl.secagg.mask_session import MaskSession
from mpcfl.secagg.masks import PairMasks
from mpcfl.secagg.salvage import Salvage
from mpcfl.secagg.shared_sum import (
    Release,
    SharedSum,
    agree_release,
    check_precision,
    check_release,
)

ArithmeticSharedTensor = crypten.mpc.primitives.ArithmeticSharedTensor
_PURPOSE = "crypten-mask"
_WORD_BITS = 64


class CryptenSum:
    """A session of sums in CrypTen shares; implements `SecureSum`."""

    def __init__(self, transport: Transport, settings: SumSettings, secrets: PairSecrets) -> None:
        self._transport = transport
        self._settings = settings
        self._secrets = secrets
        pairs = PairMasks(transport.rank, secrets, _PURPOSE)
        self._masks = MaskSession(transport, settings, pairs, np.dtype(np.uint64))
        self._communicator = TransportCommunicator(transport)
        self._dtype: np.dtype[Any] = np.dtype(np.int64)
        self._last: LastSum | None = None

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: of every chunk, the slices that the ranks add up."""
        return self._masks.chunks.parts

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Any:
        """See `SecureSum.protect`.

        Returns:
            This rank's share of the sum, an `ArithmeticSharedTensor`, shape (dim,), uniform
            in Z_2^64 to anybody who lacks one of this rank's pair secrets.

        Raises:
            TypeError: int32 levels in a ring of more than 32 bits, whose sums don't fit.
        """
        share = self._make_share(self._checked(levels), sum_id)
        return ArithmeticSharedTensor.from_shares(
            torch.from_numpy(share.view(np.int64)), precision=0
        )

    def aggregate(self, protected: Any) -> Any:
        """See `SecureSum.aggregate`; the shares already belong to the sum."""
        return protected

    def open(self, aggregated: Any) -> Levels:
        """See `SecureSum.open`: what CrypTen's `reveal` does, without its copies."""
        opened = np.empty(self._settings.dim, dtype=self._dtype)
        bits = self._settings.modulus_bits
        sink = CentredSum(opened, np.dtype(np.uint64), bits, int(self._offset_of_sum(bits)))
        source = WordsSource(aggregated.share.numpy().view(np.uint64), self._masks.chunks)
        with self._masks.exchange():
            self._last = LastSum(self._communicator.reduction(self._masks.chunks), sink)
            self._last.run(source)
        self._masks.prepare_next()
        return opened

    def share_sum(
        self,
        levels: Levels | None,
        release: Release,
        *,
        precision: int = 0,
        sum_id: SumId | None = None,
    ) -> SharedSum:
        """Return the sum of all ranks' vectors unopened, for CrypTen to compute with.

        All ranks call it together, instead of the three stages. Each one reserves its charge;
        then all tell each other, and only if all could does anything go on. See `SharedSum`.

        Args:
            levels: as in `protect`, with this party's share of the noise already added.
            release: what the opening is charged to; or `Unit.NONE`, which says that there is no
                privacy to keep.
            precision: bits after the binary point of CrypTen's fixed-point encoding: 0 makes
                a tensor of integers, CrypTen's default (16) one of fractions.
            sum_id: as in `protect`.

        Raises:
            ConfigError: the sum does not fit CrypTen's comparisons at this precision, or the
                plan of ``release`` is for another sum.
            LedgerError: the budget does not allow it, or the ledger refused.
            ProtocolError: another rank refused; the reserve stays spent.
            TranscriptMismatch: ranks don't charge alike.
        """
        bits, rank = self._settings.modulus_bits, self._transport.rank

        def check() -> tuple[Levels, SumId, int]:
            self._masks.check_open()
            check_precision(self._transport.n_ranks, bits, precision)
            check_release(release, self._settings, self._transport.n_ranks)
            return self._checked(levels), self._masks.expected(sum_id), precision

        vector, chosen, charge = agree_release(self._transport, release, check)
        share = self._make_share(vector, chosen)
        if rank == 0:
            share -= self._offset_of_sum(bits)
        generators = computing_generators(rank, self._secrets, self._settings.run_id, chosen)
        self._masks.prepare_next()
        tensor = torch.from_numpy((share << np.uint64(precision)).view(np.int64))
        encoded = ArithmeticSharedTensor.from_shares(tensor, precision=precision)
        return SharedSum(encoded, self._communicator, generators, charge)

    def salvage(self) -> Salvage:
        """See `SecureSum.salvage`; of a sum that was handed on unopened nothing is known."""
        return salvage_last(self._last, self._masks.chunks)

    def prepare(self) -> None:
        """See `SecureSum.prepare`; lets go of the sum before, which is as long as the masks."""
        self._last = None
        self._masks.prepare()

    def close(self) -> None:
        """Forget all keys and masks; see `SecureSum.close`. Shared sums can't go on either."""
        self._last = None
        self._communicator.close()
        self._masks.close()

    def _checked(self, levels: Levels | None) -> Levels:
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        return vector

    def _make_share(self, levels: Levels, sum_id: SumId | None) -> NDArray[np.uint64]:
        """Return levels plus 2^(b-1) under all masks, shape (dim,); each sum has its own masks.

        The share lies where the masks were, if they were made ahead.
        """
        self._last = None
        chunks = self._masks.chunks
        source, prepared = self._masks.begin(levels, sum_id)
        self._dtype = levels.dtype
        share = np.empty(self._settings.dim, dtype=np.uint64) if prepared is None else prepared
        masked = np.empty(chunks.words, dtype=np.uint64)
        offset = np.uint64(1 << (self._settings.modulus_bits - 1))
        for number in range(len(chunks)):
            where = chunks.chunk(number)
            chunk = masked[: where.stop - where.start]
            source(number, chunk)
            np.add(chunk, offset, out=share[where])
        return share

    def _offset_of_sum(self, modulus_bits: int) -> np.uint64:
        return np.uint64((self._transport.n_ranks << (modulus_bits - 1)) % (1 << _WORD_BITS))


def open_crypten_sum(transport: Transport, settings: SumSettings) -> CryptenSum:
    """Agree a secret with every neighbor and open a session; see `BackendFactory`."""
    peers = agree_neighbors(transport, settings.run_id, settings.neighbors)
    secrets = agree_pair_secrets(transport, settings.run_id, peers=peers)
    return CryptenSum(transport, settings, secrets)
