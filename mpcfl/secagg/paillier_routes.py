"""Which way ciphertexts travel, for each custody; the only place that sends any.

The rule behind both routes: nobody who owns the private key ever receives the ciphertext of
a single party. Everything goes over sealed channels, in chunks that take about the same time
for every size of key, and all ranks keep step chunk by chunk, so that a rank that has little
to do never waits longer than one chunk takes.

Carries: inputs are v + 2^(b-1), added as plain integers far below n. What is decrypted is
the true sum plus the public constant n_inputs 2^(b-1), whatever the signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    IntVector,
    Levels,
    SumId,
    SumSettings,
    check_wide_levels,
    from_offset_binary,
    to_offset_binary,
)
from mpcfl.secagg.custody import KEY_MAKER
from mpcfl.secagg.phe_codec import CiphertextCodec, decode_opened, encode_opened

# Values in the largest chunk, for keys of up to 2048 bits: 512 encryptions take 4 s. The cost
# of one grows with about the cube of the key (0.27 s at 8192 bits), so longer keys get
# shorter chunks, see `chunk_values`; a deadline of 120 s is far away for all of them.
CHUNK_VALUES = 512
_CHUNK_KEY_BITS = 2048

Chunk = slice
Ciphertexts = list[int]


class CipherOps(Protocol):
    """What a route needs of the cryptosystem; see `phe_sum.PheOps`."""

    codec: CiphertextCodec

    def encrypt(self, values: NDArray[np.uint64]) -> Ciphertexts:
        """Return one fresh ciphertext per value."""
        ...

    def multiply(self, left: Ciphertexts, right: Ciphertexts) -> Ciphertexts:
        """Return ciphertexts of the coordinate-wise sums."""
        ...

    def decrypt(self, ciphertexts: Ciphertexts) -> NDArray[np.uint64]:
        """Return the plaintexts mod 2^64; only where the private key is."""
        ...

    def forget(self) -> None:
        """Drop the private key."""
        ...


def chunk_values(key_bits: int) -> int:
    """Return the longest chunk for a key; equal at all ranks, because ``key_bits`` is.

    Args:
        key_bits: size of the Paillier modulus.
    """
    return max(1, CHUNK_VALUES * _CHUNK_KEY_BITS**3 // max(key_bits, _CHUNK_KEY_BITS) ** 3)


class _Link:
    """One rank's sealed messages, its pace, its chunks and the dtype of its levels."""

    def __init__(
        self, transport: Transport, wires: SealedTransport, ops: CipherOps, settings: SumSettings
    ) -> None:
        self.rank, self.n_ranks = transport.rank, transport.n_ranks
        self.settings = settings
        self.ops = ops
        self.wires = wires
        self.dtype: np.dtype[Any] = np.dtype(np.int64)
        self._transport = transport

    def chunks(self, n_owners: int) -> list[Chunk]:
        """Cut (dim,) into chunks, at least one per owner where there are enough values."""
        dim = self.settings.dim
        size = min(chunk_values(self.settings.key_bits), max(1, -(-dim // n_owners)))
        return [slice(start, min(start + size, dim)) for start in range(0, dim, size)]

    def encode(self, levels: Levels | None) -> NDArray[np.uint64]:
        """Return the values in offset binary; they stay at this rank."""
        vector = check_wide_levels(levels, self.settings)
        if levels is not None:
            self.dtype = levels.dtype
        return to_offset_binary(vector, self.settings.modulus_bits)

    def keep_step(self) -> None:
        """Return once every rank has come here; says nothing but that."""
        self._transport.allgather(b"")

    def send(self, targets: Sequence[int], message: bytes) -> None:
        """Seal one message for each target."""
        self.wires.exchange(dict.fromkeys(targets, message), [])

    def send_ciphertexts(self, target: int, ciphertexts: Ciphertexts) -> None:
        """Seal a chunk of ciphertexts for one target."""
        self.send([target], self.ops.codec.encode(ciphertexts))

    def receive_ciphertexts(self, source: int, chunk: Chunk) -> Ciphertexts:
        """Wait for one chunk of ciphertexts."""
        message = self.wires.exchange({}, [source])[source]
        return self.ops.codec.decode(message, chunk.stop - chunk.start)


@dataclass(eq=False, repr=False, slots=True)
class _Held:
    """What a rank holds of one sum under custody `holder`.

    Attributes:
        own: this rank's values, kept in the clear and never sent, where the holder needs no
            ciphertext of its own; else empty.
        ciphertexts: own ciphertexts, then the product; one list per chunk, empty where none is.
    """

    own: NDArray[np.uint64]
    ciphertexts: list[Ciphertexts]


class HolderSum:
    """Custody `holder`; implements `SecureSum`.

    The product grows along the chain 1 -> 2 -> ... -> n-1 -> 0; the holder (rank 0) decrypts it,
    adds its own input in the clear and sends the sum to all. With two parties the chain is
    0 -> 1 -> 0: the holder encrypts its input and rank 1 multiplies its own in. Then the
    holder learns rank 1's input from the sum, as either of two parties does from any sum.
    """

    def __init__(
        self, transport: Transport, wires: SealedTransport, ops: CipherOps, settings: SumSettings
    ) -> None:
        self._link = _Link(transport, wires, ops, settings)
        self._chunks = self._link.chunks(n_owners=1)
        n_ranks = transport.n_ranks
        self._is_holder = transport.rank == KEY_MAKER
        # With n >= 3 the holder's own input needs no ciphertext: it never leaves the holder.
        self._encrypts = n_ranks > 1 and (not self._is_holder or n_ranks == 2)
        self._path = [0, 1, 0] if n_ranks == 2 else [*range(1, n_ranks), 0]

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> _Held:
        """See `SecureSum.protect`; a holder among three or more keeps its values to itself."""
        del sum_id  # channels number their messages by themselves
        values = self._link.encode(levels)
        protected = []
        for chunk in self._chunks:
            protected.append(self._link.ops.encrypt(values[chunk]) if self._encrypts else [])
            self._link.keep_step()
        return _Held(values[:0] if self._encrypts else values, protected)

    def aggregate(self, protected: _Held) -> _Held:
        """See `SecureSum.aggregate`; the product of all ciphertexts, at the holder only."""
        if self._link.n_ranks == 1:
            return protected
        pairs = zip(self._chunks, protected.ciphertexts, strict=True)
        return _Held(protected.own, [self._pass_on(chunk, own) for chunk, own in pairs])

    def open(self, aggregated: _Held) -> Levels:
        """See `SecureSum.open`; chunk by chunk from the holder to all."""
        opened = np.empty(self._link.settings.dim, dtype=np.int64)
        others = [rank for rank in range(self._link.n_ranks) if rank != KEY_MAKER]
        for chunk, product in zip(self._chunks, aggregated.ciphertexts, strict=True):
            if self._is_holder:
                opened[chunk] = self._decrypt(product, aggregated.own[chunk])
                self._link.send(others, encode_opened(opened[chunk]))
            else:
                message = self._link.wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
                opened[chunk] = decode_opened(message, chunk.stop - chunk.start)
        return opened.astype(self._link.dtype, copy=False)

    def prepare(self) -> None:
        """There is nothing to prepare: phe draws each randomizer as it encrypts."""

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._link.wires.close()
        self._link.ops.forget()

    def _pass_on(self, chunk: Chunk, own: Ciphertexts) -> Ciphertexts:
        """Take one chunk's product along the chain; return it at the holder, nothing elsewhere."""
        path, link = self._path, self._link
        if path[0] == link.rank:
            link.send_ciphertexts(path[1], own)
        elif not self._is_holder:
            place = path.index(link.rank)
            product = link.receive_ciphertexts(path[place - 1], chunk)
            link.send_ciphertexts(path[place + 1], link.ops.multiply(product, own))
        return link.receive_ciphertexts(path[-2], chunk) if self._is_holder else []

    def _decrypt(self, product: Ciphertexts, own: NDArray[np.uint64]) -> IntVector:
        """At the holder: open one chunk; ``own`` is empty where the product has it inside."""
        link = self._link
        total = link.ops.decrypt(product) if product else np.zeros(own.shape, dtype=np.uint64)
        if own.size:
            total = total + own
        return from_offset_binary(total, link.settings.modulus_bits, link.n_ranks)


class ClientsSum:
    """Custody `clients`; implements `SecureSum`.

    Data parties send their ciphertexts straight to the aggregator (the last rank), which has
    no key and no data. It multiplies them and returns each chunk of the product to the one
    data party that decrypts it; the data parties exchange what they decrypted. The
    aggregator never learns the sum: its `open` returns an empty vector.
    """

    def __init__(
        self,
        transport: Transport,
        wires: SealedTransport,
        ops: CipherOps,
        settings: SumSettings,
        data_ranks: Sequence[int],
    ) -> None:
        self._link = _Link(transport, wires, ops, settings)
        self._data_ranks = tuple(data_ranks)
        self._aggregator = transport.n_ranks - 1
        self._is_aggregator = transport.rank == self._aggregator
        self._chunks = self._link.chunks(n_owners=len(self._data_ranks))

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> list[Ciphertexts]:
        """See `SecureSum.protect`; one list of ciphertexts per chunk, none at the aggregator."""
        del sum_id  # as above
        if self._is_aggregator and levels is not None:
            raise TypeError("the aggregator has no data; pass None")
        values = None if self._is_aggregator else self._link.encode(levels)
        protected = []
        for chunk in self._chunks:
            protected.append([] if values is None else self._link.ops.encrypt(values[chunk]))
            self._link.keep_step()
        return protected

    def aggregate(self, protected: list[Ciphertexts]) -> list[Ciphertexts]:
        """See `SecureSum.aggregate`; the chunks of the product that this rank decrypts."""
        move = self._multiply if self._is_aggregator else self._hand_in
        return [move(number, own) for number, own in enumerate(protected)]

    def open(self, aggregated: list[Ciphertexts]) -> Levels:
        """See `SecureSum.open`; in each turn every data party decrypts one chunk."""
        opened = np.empty(0 if self._is_aggregator else self._link.settings.dim, dtype=np.int64)
        for first in range(0, len(self._chunks), len(self._data_ranks)):
            if not self._is_aggregator:
                self._open_turn(first, aggregated, opened)
            self._link.keep_step()
        return opened.astype(self._link.dtype, copy=False)

    def prepare(self) -> None:
        """There is nothing to prepare: phe draws each randomizer as it encrypts."""

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._link.wires.close()
        self._link.ops.forget()

    def _owner(self, number: int) -> int:
        return self._data_ranks[number % len(self._data_ranks)]

    def _multiply(self, number: int, _: Ciphertexts) -> Ciphertexts:
        """At the aggregator: take a chunk from each data party; its owner gets the product."""
        link, chunk = self._link, self._chunks[number]
        product = link.receive_ciphertexts(self._data_ranks[0], chunk)
        for rank in self._data_ranks[1:]:
            product = link.ops.multiply(product, link.receive_ciphertexts(rank, chunk))
        link.send_ciphertexts(self._owner(number), product)
        return []

    def _hand_in(self, number: int, own: Ciphertexts) -> Ciphertexts:
        """At a data party: send one chunk; return its product where this rank decrypts it."""
        self._link.send_ciphertexts(self._aggregator, own)
        if self._owner(number) != self._link.rank:
            return []
        return self._link.receive_ciphertexts(self._aggregator, self._chunks[number])

    def _open_turn(self, first: int, aggregated: list[Ciphertexts], opened: IntVector) -> None:
        link, bits = self._link, self._link.settings.modulus_bits
        turn = range(first, min(first + len(self._data_ranks), len(self._chunks)))
        numbers = {self._owner(number): number for number in turn}
        outgoing: dict[int, bytes] = {}
        if link.rank in numbers:
            own = numbers[link.rank]
            total = link.ops.decrypt(aggregated[own])
            part = from_offset_binary(total, bits, len(self._data_ranks))
            opened[self._chunks[own]] = part
            others = [rank for rank in self._data_ranks if rank != link.rank]
            outgoing = dict.fromkeys(others, encode_opened(part))
        received = link.wires.exchange(outgoing, [r for r in numbers if r != link.rank])
        for rank, message in received.items():
            chunk = self._chunks[numbers[rank]]
            opened[chunk] = decode_opened(message, chunk.stop - chunk.start)
