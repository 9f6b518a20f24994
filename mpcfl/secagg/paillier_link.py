"""What the routes of ciphertexts have in common: sealed messages, chunks, and decrypting beside.

A sum goes through in chunks, so that memory is bounded by the chunk and not by the vector, and
a chunk is decrypted in a thread while the next one is encrypted, sent and multiplied. (Where
the arithmetic holds the interpreter's lock, as phe's does, the two take turns instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from mpcfl.errors import ProtocolError
from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    IntVector,
    Levels,
    SumId,
    SumSettings,
    check_levels,
    check_range,
    next_sum,
)
from mpcfl.secagg.paillier_codec import decode_opened, encode_opened
from mpcfl.secagg.salvage import OpenedParts

Chunk = slice
Ciphertexts = list[int]
# Products that wait to be decrypted; the ranks that make them wait when there are more.
_MAX_WAITING = 16


class CipherOps(Protocol):
    """What a route needs of the cryptosystem; see `paillier_ops.py` and `phe_sum.py`."""

    @property
    def slots(self) -> int:
        """Return how many values a ciphertext holds."""
        ...

    @property
    def chunk_values(self) -> int:
        """Return how many values a chunk holds at most; equal at all ranks."""
        ...

    def encrypt(self, levels: Levels) -> Ciphertexts:
        """Return fresh ciphertexts of some values, which lie in the range of the ring."""
        ...

    def multiply(self, left: Ciphertexts, right: Ciphertexts) -> Ciphertexts:
        """Return ciphertexts of the coordinate-wise sums."""
        ...

    def decrypt(self, ciphertexts: Ciphertexts, n_values: int, n_inputs: int) -> IntVector:
        """Return sums of ``n_inputs`` values, centred mod 2^b, shape (n_values,), int64.

        Raises:
            OutOfOrder: this rank has no private key, or has forgotten it.
            ProtocolError: what comes out can't be such a sum.
        """
        ...

    def write(self, ciphertexts: Ciphertexts) -> bytes:
        """Return ciphertexts as they travel."""
        ...

    def read(self, message: bytes, n_values: int) -> Ciphertexts:
        """Return the ciphertexts of ``n_values`` values.

        Raises:
            ProtocolError: the length is not exact, or something is no ciphertext of this key.
        """
        ...

    def begin(self, sum_id: SumId) -> None:
        """Take note that a sum begins; what was made ahead does not outlive a failed attempt."""
        ...

    def finish(self) -> None:
        """Take note that a sum came through; start to make what the next one needs ahead."""
        ...

    def prepare(self) -> None:
        """Return once what the next sum needs ahead is there."""
        ...

    def forget(self) -> None:
        """Drop all keys, and what was made ahead."""
        ...


class Link:
    """One rank's sealed messages, its pace, its chunks and the dtype of its levels.

    Args:
        transport: joins the ranks.
        wires: the same, sealed.
        ops: the cryptosystem.
        settings: of the session.
        n_owners: ranks that decrypt; each gets a chunk where there are enough values.

    Attributes:
        chunks: how vectors are cut; the parts of an opened one.
        opened: what this rank knows of the last sum in the clear.
    """

    def __init__(
        self,
        transport: Transport,
        wires: SealedTransport,
        ops: CipherOps,
        settings: SumSettings,
        n_owners: int = 1,
    ) -> None:
        self.rank, self.n_ranks = transport.rank, transport.n_ranks
        self.settings = settings
        self.ops = ops
        self.wires = wires
        self.transport = transport
        self.dtype: np.dtype[Any] = np.dtype(np.int64)
        self.sum_id: SumId | None = None
        self.chunks = _cut(settings.dim, ops, n_owners)
        self.opened = OpenedParts(tuple(self.chunks))
        self._beside: ThreadPoolExecutor | None = None

    def accept(self, levels: Levels | None, sum_id: SumId | None) -> Levels:
        """Begin a sum with this rank's vector, which is returned as it is; nothing is sent.

        Raises:
            TypeError, ValueError, WrapDetected, OutOfOrder: see `SecureSum.protect`.
        """
        vector = check_levels(levels, self.settings)
        check_range(vector, self.settings.modulus_bits)
        self.dtype = vector.dtype
        self.begin(sum_id)
        return vector

    def begin(self, sum_id: SumId | None) -> None:
        """Begin a sum at a rank with or without a vector.

        Raises:
            OutOfOrder: this sum is not later than the last one.
        """
        self.sum_id = next_sum(self.sum_id, sum_id)
        self.opened.begin()
        self.ops.begin(self.sum_id)

    def keep_step(self) -> None:
        """Return once every rank has come here; says nothing but that."""
        self.transport.allgather(b"")

    def send(self, targets: Sequence[int], message: bytes) -> None:
        """Seal one message for each target."""
        self.wires.exchange(dict.fromkeys(targets, message), [])

    def send_ciphertexts(self, target: int, ciphertexts: Ciphertexts) -> None:
        """Seal a chunk of ciphertexts for one target."""
        self.send([target], self.ops.write(ciphertexts))

    def receive_ciphertexts(self, source: int, chunk: Chunk) -> Ciphertexts:
        """Wait for one chunk of ciphertexts.

        Raises:
            ProtocolError: they are none; the message names their author.
        """
        return self.read(source, self.wires.exchange({}, [source])[source], chunk)

    def read(self, source: int, message: bytes, chunk: Chunk) -> Ciphertexts:
        """Return the ciphertexts in a message; refuse others with their author's number."""
        try:
            return self.ops.read(message, chunk.stop - chunk.start)
        except ProtocolError as error:
            raise ProtocolError(f"rank {source} sent what can't be summed: {error}") from error

    def encode_opened(self, values: Levels) -> bytes:
        """Return opened sums at b bits each."""
        return encode_opened(values, self.settings.modulus_bits)

    def decode_opened(self, message: bytes, chunk: Chunk) -> IntVector:
        """Return one chunk of opened sums."""
        return decode_opened(message, chunk.stop - chunk.start, self.settings.modulus_bits)

    def decrypt_beside(self, number: int, work: Callable[[], Levels]) -> None:
        """Start to decrypt one chunk in a thread; first wait where too many do so already.

        Args:
            number: of the chunk, which `OpenedParts.take` returns once it is open.
            work: decrypts.
        """
        waiting = self.opened.under_way
        if len(waiting) >= _MAX_WAITING:
            waiting[-_MAX_WAITING].result()
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, thread_name_prefix="decrypt")
        self.opened.expect(number, self._beside.submit(work))

    def close(self) -> None:
        """Forget all keys."""
        if self._beside is not None:
            self._beside.shutdown(wait=True, cancel_futures=True)
            self._beside = None
        self.wires.close()
        self.ops.forget()


def _cut(dim: int, ops: CipherOps, n_owners: int) -> list[Chunk]:
    """Cut (dim,) into chunks of full ciphertexts, one per owner where there are enough values."""
    share = -(-dim // n_owners)
    size = min(ops.chunk_values, max(1, -(-share // ops.slots)) * ops.slots)
    return [slice(start, min(start + size, dim)) for start in range(0, dim, size)]
