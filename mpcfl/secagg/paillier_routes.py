"""Which way ciphertexts travel where somebody owns the whole private key.

The rule behind both routes: nobody who owns the private key ever receives the ciphertext of
a single party. Everything goes over sealed channels, in chunks: while one is decrypted, the
next is encrypted, sent and multiplied. Custody `threshold`, where nobody owns the key, is in
`threshold_sum.py`.

Assumes semi-honest ranks: nothing proves that a product is complete or that an opened sum is
the true one. Lengths and times of messages show.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from mpcfl.config import Custody
from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumId, SumSettings, centre
from mpcfl.secagg.custody import KEY_MAKER, assign_roles
from mpcfl.secagg.paillier_link import Chunk, CipherOps, Ciphertexts, Link
from mpcfl.secagg.salvage import Salvage

_NOTHING = np.empty(0, dtype=np.int64)


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

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: chunks, which the holder opens one by one."""
        return self._link.opened.parts

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Levels:
        """See `SecureSum.protect`; what leaves this rank is encrypted as it leaves."""
        return self._link.accept(levels, sum_id)

    def aggregate(self, protected: Levels) -> Levels:
        """See `SecureSum.aggregate`; the product of all ciphertexts goes to the holder only.

        The holder begins to open it at once.

        Returns:
            This rank's values where it is alone, else nothing.
        """
        link = self._link
        if link.n_ranks == 1:
            return protected
        own = _NOTHING if self._encrypts else protected
        for number, chunk in enumerate(link.chunks):
            passed = self._pass_on(chunk, protected)
            if self._is_holder:
                link.decrypt_beside(number, partial(self._decrypt, passed, chunk, own))
        return _NOTHING

    def open(self, aggregated: Levels) -> Levels:
        """See `SecureSum.open`; chunk by chunk from the holder to all."""
        link = self._link
        opened: Levels = np.empty(link.settings.dim, dtype=link.dtype)
        link.opened.land(opened)
        others = [rank for rank in range(link.n_ranks) if rank != KEY_MAKER]
        for number, chunk in enumerate(link.chunks):
            if link.n_ranks == 1:
                link.opened.put(number, aggregated[chunk])
            elif self._is_holder:
                link.send(others, link.encode_opened(link.opened.take(number)))
            else:
                message = link.wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
                link.opened.put(number, link.decode_opened(message, chunk))
        link.ops.finish()
        return opened

    def salvage(self) -> Salvage:
        """See `SecureSum.salvage`: what the holder opened or still opens, what others received."""
        return Salvage(self.parts, self._link.opened.known())

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

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: chunks, each of which one data party opens."""
        return self._link.opened.parts

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Levels:
        """See `SecureSum.protect`; nothing at the aggregator."""
        if not self._is_aggregator:
            return self._link.accept(levels, sum_id)
        if levels is not None:
            raise TypeError("the aggregator has no data; pass None")
        self._link.begin(sum_id)
        return _NOTHING

    def aggregate(self, protected: Levels) -> Levels:
        """See `SecureSum.aggregate`; this rank begins to open its chunks of the product.

        Returns:
            Nothing.
        """
        for number, chunk in enumerate(self._link.chunks):
            if self._is_aggregator:
                self._multiply(number, chunk)
                continue
            link = self._link
            link.send_ciphertexts(self._aggregator, link.ops.encrypt(protected[chunk]))
            if self._owner(number) == link.rank:
                total = link.receive_ciphertexts(self._aggregator, chunk)
                work = partial(self._decrypt, total, chunk)
                link.decrypt_beside(number, work)
        return _NOTHING

    def open(self, aggregated: Levels) -> Levels:
        """See `SecureSum.open`; in each turn every data party decrypts one chunk."""
        del aggregated  # it is being opened since `aggregate`
        link = self._link
        opened: Levels = np.empty(0 if self._is_aggregator else link.settings.dim, link.dtype)
        link.opened.land(opened)
        for first in range(0, len(link.chunks), len(self._data_ranks)):
            if not self._is_aggregator:
                self._open_turn(first)
            # The aggregator has nothing to do, and would else wait for all turns at once.
            link.keep_step()
        link.ops.finish()
        return opened

    def salvage(self) -> Salvage:
        """See `SecureSum.salvage`: chunks that this rank opens or received; no aggregator's."""
        return Salvage(self.parts, self._link.opened.known())

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

    def _open_turn(self, first: int) -> None:
        link = self._link
        turn = range(first, min(first + len(self._data_ranks), len(link.chunks)))
        numbers = {self._owner(number): number for number in turn}
        outgoing: dict[int, bytes] = {}
        if link.rank in numbers:
            part = link.opened.take(numbers[link.rank])
            others = [rank for rank in self._data_ranks if rank != link.rank]
            outgoing = dict.fromkeys(others, link.encode_opened(part))
        received = link.wires.exchange(outgoing, [r for r in numbers if r != link.rank])
        for rank, message in received.items():
            number = numbers[rank]
            link.opened.put(number, link.decode_opened(message, link.chunks[number]))
