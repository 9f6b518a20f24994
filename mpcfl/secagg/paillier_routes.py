"""Which way ciphertexts travel where somebody owns the whole private key.

The rule behind both routes: nobody who owns the private key ever receives the ciphertext of
a single party. Everything goes over sealed channels, in chunks: while one is decrypted, the
next is encrypted, sent and multiplied. Custody `threshold`, where nobody owns the key, is in
`threshold_sum.py`.

Assumes semi-honest ranks: nothing proves that a product is complete or that an opened sum is
the true one. Lengths and times of messages show.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mpcfl.config import Custody
from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumId, SumSettings, centre
from mpcfl.secagg.custody import KEY_MAKER, assign_roles
from mpcfl.secagg.paillier_link import Chunk, CipherOps, Ciphertexts, Link

_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(eq=False, repr=False, slots=True)
class _Product:
    """What a rank holds of one sum that is not opened yet.

    Attributes:
        own: this rank's values, where they go into no ciphertext and the key's owner adds them
            to what it decrypts; else empty.
        opened: one per chunk that this rank decrypts, in order; ready or on its way.
    """

    own: Levels
    opened: deque[Future[Levels]] = field(default_factory=deque)


class HolderSum:
    """Custody `holder`; implements `SecureSum`.

    The ciphertexts of ranks 1, 2, ... are multiplied along a chain that ends at rank 0, which
    owns the key. With three or more ranks the chain starts at rank 1: the holder adds its own
    values to what it decrypts, so that none of its ciphertexts exists. With two ranks the
    chain starts and ends at the holder: it can subtract, as anybody can from a sum of two.
    """

    def __init__(
        self, transport: Transport, wires: SealedTransport, ops: CipherOps, settings: SumSettings
    ) -> None:
        self._link = Link(transport, wires, ops, settings)
        n_ranks = transport.n_ranks
        self._is_holder = transport.rank == KEY_MAKER
        roles = assign_roles(Custody.HOLDER, n_ranks)
        self._encrypts = transport.rank in roles.encrypting_ranks
        self._path = [0, 1, 0] if n_ranks == 2 else [*range(1, n_ranks), 0]

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Levels:
        """See `SecureSum.protect`; what leaves this rank is encrypted as it leaves."""
        return self._link.accept(levels, sum_id)

    def aggregate(self, protected: Levels) -> _Product:
        """See `SecureSum.aggregate`; the product of all ciphertexts goes to the holder only."""
        link = self._link
        product = _Product(_NOTHING if self._encrypts else protected)
        if link.n_ranks == 1:
            return product
        for chunk in link.chunks:
            passed = self._pass_on(chunk, protected)
            if self._is_holder:
                work = partial(self._decrypt, passed, chunk, product.own)
                product.opened.append(link.decrypt_beside(work, product.opened))
        return product

    def open(self, aggregated: _Product) -> Levels:
        """See `SecureSum.open`; chunk by chunk from the holder to all."""
        link = self._link
        if link.n_ranks == 1:
            return aggregated.own.copy()
        opened: Levels = np.empty(link.settings.dim, dtype=link.dtype)
        others = [rank for rank in range(link.n_ranks) if rank != KEY_MAKER]
        for chunk in link.chunks:
            part: Levels
            if self._is_holder:
                part = aggregated.opened.popleft().result()
                link.send(others, link.encode_opened(part))
            else:
                message = link.wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
                part = link.decode_opened(message, chunk)
            opened[chunk] = part
        link.ops.finish()
        return opened

    def prepare(self) -> None:
        """See `SecureSum.prepare`."""
        if self._encrypts:
            self._link.ops.prepare()

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._link.close()

    def _pass_on(self, chunk: Chunk, levels: Levels) -> Ciphertexts:
        """Take one chunk's product along the chain; return it at the holder, nothing elsewhere."""
        path, link = self._path, self._link
        own = link.ops.encrypt(levels[chunk]) if self._encrypts else []
        if path[0] == link.rank:
            link.send_ciphertexts(path[1], own)
        elif not self._is_holder:
            place = path.index(link.rank)
            product = link.receive_ciphertexts(path[place - 1], chunk)
            link.send_ciphertexts(path[place + 1], link.ops.multiply(product, own))
        return link.receive_ciphertexts(path[-2], chunk) if self._is_holder else []

    def _decrypt(self, product: Ciphertexts, chunk: Chunk, own: Levels) -> Levels:
        """At the holder: open one chunk; ``own`` is empty where the product has it inside."""
        link = self._link
        n_inputs = link.n_ranks - 1 if own.size else link.n_ranks
        total = link.ops.decrypt(product, chunk.stop - chunk.start, n_inputs)
        if own.size:
            # Sums mod 2^64 keep their low bits, so the carry out of int64 does no harm.
            total = centre(total + own[chunk], link.settings.modulus_bits)
        return total.astype(link.dtype, copy=False)


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
        self._link = Link(transport, wires, ops, settings, n_owners=len(data_ranks))
        self._data_ranks = tuple(data_ranks)
        self._aggregator = transport.n_ranks - 1
        self._is_aggregator = transport.rank == self._aggregator

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Levels:
        """See `SecureSum.protect`; nothing at the aggregator."""
        if not self._is_aggregator:
            return self._link.accept(levels, sum_id)
        if levels is not None:
            raise TypeError("the aggregator has no data; pass None")
        self._link.begin(sum_id)
        return _NOTHING

    def aggregate(self, protected: Levels) -> _Product:
        """See `SecureSum.aggregate`; the chunks of the product that this rank decrypts."""
        product = _Product(_NOTHING)
        for number, chunk in enumerate(self._link.chunks):
            if self._is_aggregator:
                self._multiply(number, chunk)
                continue
            link = self._link
            link.send_ciphertexts(self._aggregator, link.ops.encrypt(protected[chunk]))
            if self._owner(number) == link.rank:
                total = link.receive_ciphertexts(self._aggregator, chunk)
                work = partial(self._decrypt, total, chunk)
                product.opened.append(link.decrypt_beside(work, product.opened))
        return product

    def open(self, aggregated: _Product) -> Levels:
        """See `SecureSum.open`; in each turn every data party decrypts one chunk."""
        link = self._link
        opened: Levels = np.empty(0 if self._is_aggregator else link.settings.dim, link.dtype)
        for first in range(0, len(link.chunks), len(self._data_ranks)):
            if not self._is_aggregator:
                self._open_turn(first, aggregated.opened, opened)
            # The aggregator has nothing to do, and would else wait for all turns at once.
            link.keep_step()
        link.ops.finish()
        return opened

    def prepare(self) -> None:
        """See `SecureSum.prepare`; the aggregator encrypts nothing."""
        if not self._is_aggregator:
            self._link.ops.prepare()

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._link.close()

    def _owner(self, number: int) -> int:
        return self._data_ranks[number % len(self._data_ranks)]

    def _multiply(self, number: int, chunk: Chunk) -> None:
        """At the aggregator: take a chunk from each data party; its owner gets the product."""
        link = self._link
        product = link.receive_ciphertexts(self._data_ranks[0], chunk)
        for rank in self._data_ranks[1:]:
            product = link.ops.multiply(product, link.receive_ciphertexts(rank, chunk))
        link.send_ciphertexts(self._owner(number), product)

    def _decrypt(self, product: Ciphertexts, chunk: Chunk) -> Levels:
        n_inputs = len(self._data_ranks)
        total = self._link.ops.decrypt(product, chunk.stop - chunk.start, n_inputs)
        return total.astype(self._link.dtype, copy=False)

    def _open_turn(self, first: int, own: deque[Future[Levels]], opened: Levels) -> None:
        link = self._link
        turn = range(first, min(first + len(self._data_ranks), len(link.chunks)))
        numbers = {self._owner(number): number for number in turn}
        outgoing: dict[int, bytes] = {}
        if link.rank in numbers:
            part = own.popleft().result()
            opened[link.chunks[numbers[link.rank]]] = part
            others = [rank for rank in self._data_ranks if rank != link.rank]
            outgoing = dict.fromkeys(others, link.encode_opened(part))
        received = link.wires.exchange(outgoing, [r for r in numbers if r != link.rank])
        for rank, message in received.items():
            chunk = link.chunks[numbers[rank]]
            opened[chunk] = link.decode_opened(message, chunk)
