"""Custody `threshold`: everybody has a share of the key, t of them decrypt, nobody can alone.

All ranks show each other their ciphertexts, so that every holder of a share forms the product
itself and decrypts nothing else: first a commitment, then the ciphertexts, chunk by chunk, and
before anything is decrypted all compare what they saw. Then t ranks make partial decryptions
of a chunk, in turn; one of them checks their proofs, combines and tells the others. A wrong
partial is refused with its author's number. If ranks are lost, any t that hold the product go
on with it (`ThresholdSum.open_over`): nothing is decrypted under two products.

Assumes fewer than t colluding ranks that follow the protocol (semi-honest), and an honest dealer.
Does not protect against a rank that shows, as its own, powers of ciphertexts that it saw before:
nothing proves that it knows what is inside, and it could open them so. Nor against one that
tells a wrong sum after combining, or stops: the run ends then. Costs (n - 1) ciphertexts sent
per rank and chunk where the other custodies send one; that is the price of trusting nobody
with the product. Source: Damgard, Jurik 2001 (PKC), section 4; Fouque, Poupard, Stern 2000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from mpcfl.errors import OutOfOrder, ProtocolError, TranscriptMismatch, WrongPartial
from mpcfl.hazmat.bits import domain_tag
from mpcfl.hazmat.threshold import (
    CheckedPartial,
    check_partials,
    combine,
    decode_partial,
    encode_partial,
    partially_decrypt,
)
from mpcfl.net.channel import SealedTransport, require_same
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import IntVector, Levels, SumId, SumSettings
from mpcfl.secagg.key_dealing import open_wires
from mpcfl.secagg.key_holding import HeldShare, compare_shares
from mpcfl.secagg.paillier_link import Chunk, Ciphertexts, Link
from mpcfl.secagg.paillier_ops import PackedOps
from mpcfl.secagg.salvage import OpenedParts, Salvage
from mpcfl.secagg.threshold_product import HeldProduct, Opening, Product, blame, require_enough


class ThresholdSum:
    """Custody `threshold`; implements `SecureSum`."""

    def __init__(
        self,
        transport: Transport,
        wires: SealedTransport,
        ops: PackedOps,
        settings: SumSettings,
        held: HeldShare,
    ) -> None:
        self._link = Link(transport, wires, ops, settings)
        self._ops = ops
        self._held: HeldShare | None = held
        # Of the last sum: whoever is left may ask for the same ones again.
        self._product: Product | None = None
        self._opened = ""
        self._partials: dict[tuple[SumId, int, bytes], bytes] = {}
        self._indices = compare_shares(transport, wires, held.share, settings)
        require_enough(transport.n_ranks, held.share.key)

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: chunks, each of which one rank combines."""
        return self._link.opened.parts

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Levels:
        """See `SecureSum.protect`; what leaves this rank is encrypted as it leaves."""
        accepted = self._link.accept(levels, sum_id)
        self._partials.clear()
        self._product = None
        return accepted

    def aggregate(self, protected: Levels) -> Product:
        """See `SecureSum.aggregate`; every rank gets the product of all ciphertexts.

        Raises:
            TranscriptMismatch: a rank showed other ciphertexts than it had committed to, or not
                the same ones to all.
        """
        link = self._link
        sum_id = link.sum_id if link.sum_id is not None else SumId(0)
        name = (link.settings.run_id, sum_id.round_id, sum_id.attempt)
        transcript = hashlib.sha256(domain_tag("threshold-sum", *name))
        products = []
        for number, chunk in enumerate(link.chunks):
            own = link.ops.write(link.ops.encrypt(protected[chunk]))
            tag = domain_tag("ciphertexts", sum_id.round_id, sum_id.attempt, number)
            shown = self._show(own, tag, transcript)
            products.append(link.ops.write(self._multiply(shown, chunk)))
        product = Product(
            sum_id, tuple(link.chunks), tuple(products), link.n_ranks, transcript.hexdigest()
        )
        # From here on this rank can help to open it, after those who do have compared.
        self._product = product
        self._compare(link.transport, product)
        return product

    def open(self, aggregated: Product) -> Levels:
        """See `SecureSum.open`; in each turn every rank combines one chunk.

        Raises:
            OutOfOrder: it was opened before; or in part, and another sum was begun since.
        """
        self._require_open()
        if aggregated.digest == self._opened:
            raise OutOfOrder("this sum was opened before; open each one once")
        opening = Opening(self._link.transport, self._link.wires, self._indices)
        opened = self._open(opening, aggregated)
        self._opened = aggregated.digest
        self._link.ops.finish()
        return opened

    def open_over(self, transport: Transport, product: Product) -> Levels:
        """Open a product over another transport: with the ranks that are left, t at least.

        For callers whose communicator lost ranks after `aggregate`, or while `open` went on: some
        may have the sum already, and help the others to it. A partial decryption that this rank
        made before is sent again, not made again.

        Raises:
            ConfigError: fewer than t ranks are left.
            OutOfOrder: it was opened, at least in part, and another sum was begun since.
        """
        held = self._require_open()
        wires = open_wires(transport, self._link.settings, "paillier-opening")
        indices = compare_shares(transport, wires, held.share, self._link.settings)
        require_enough(transport.n_ranks, held.share.key)
        self._compare(transport, product)
        try:
            return self._open(Opening(transport, wires, indices), product)
        finally:
            wires.close()

    def salvage(self) -> Salvage:
        """See `SecureSum.salvage`: chunks that this rank combined or was told, and the product."""
        product = self._product
        held = None if product is None else HeldProduct(product, self.open_over)
        return Salvage(self.parts, self._link.opened.known(), held)

    def held_share(self) -> HeldShare | None:
        """Return this rank's key share, for a new session over the ranks that are left.

        Secret. It decrypts as before: what was spent stays spent. None once this one is closed.
        """
        return self._held

    def prepare(self) -> None:
        """See `SecureSum.prepare`."""
        self._link.ops.prepare()

    def close(self) -> None:
        """Forget all keys; see `SecureSum.close`."""
        self._link.close()
        self._partials.clear()
        self._held = self._product = None

    def _require_open(self) -> HeldShare:
        if self._held is None:
            raise OutOfOrder("this session was closed and its key share put away; open a new one")
        return self._held

    def _compare(self, transport: Transport, product: Product) -> None:
        """Go on only if all ranks of a transport hold the same product.

        Raises:
            TranscriptMismatch: they don't; this one is never opened.
        """
        try:
            require_same(transport, bytes.fromhex(product.digest), "the ciphertexts of this sum")
        except TranscriptMismatch:
            self._product = None
            raise

    def _show(self, own: bytes, tag: bytes, transcript: hashlib._Hash) -> list[bytes]:
        """Commit to a chunk of ciphertexts, then exchange them; return all ranks' in order."""
        link = self._link
        commitment = _commit(tag, link.rank, own)
        committed = self._exchange(commitment)
        shown = self._exchange(own)
        for rank in range(link.n_ranks):
            if _commit(tag, rank, shown[rank]) != committed[rank]:
                raise TranscriptMismatch(
                    f"rank {rank} showed other ciphertexts than it had committed to; the run stops"
                )
            transcript.update(committed[rank])
        return [shown[rank] for rank in range(link.n_ranks)]

    def _exchange(self, own: bytes) -> Mapping[int, bytes]:
        link = self._link
        others = [rank for rank in range(link.n_ranks) if rank != link.rank]
        return {**link.wires.exchange(dict.fromkeys(others, own), others), link.rank: own}

    def _multiply(self, shown: Sequence[bytes], chunk: Chunk) -> Ciphertexts:
        link = self._link
        product = link.read(0, shown[0], chunk)
        for rank in range(1, link.n_ranks):
            product = link.ops.multiply(product, link.read(rank, shown[rank], chunk))
        return product

    def _open(self, opening: Opening, product: Product) -> Levels:
        link = self._link
        opened: Levels = np.empty(link.settings.dim, dtype=link.dtype)
        # Of an earlier sum's product nothing may pass for a part of the last sum.
        parts = link.opened if product == self._product else OpenedParts(product.chunks)
        parts.land(opened)
        n_live = opening.transport.n_ranks
        for first in range(0, len(product.chunks), n_live):
            turn = range(first, min(first + n_live, len(product.chunks)))
            own = self._decrypt_turn(opening, product, turn)
            if own is not None:
                parts.put(*own)
            for number, part in self._tell(opening, product, turn, own).items():
                parts.put(number, part)
        return opened

    def _decrypt_turn(
        self, opening: Opening, product: Product, turn: range
    ) -> tuple[int, IntVector] | None:
        """Make this rank's partials of a turn; return the chunk that it combines, opened."""
        rank, key = opening.transport.rank, self._require_open().share.key
        outgoing: dict[int, bytes] = {}
        for number in turn:
            deciders = opening.deciders(number, key.threshold)
            if rank in deciders:
                outgoing[deciders[0]] = self._partial(product, number)
        own = outgoing.pop(rank, None)
        combined = next((n for n in turn if opening.deciders(n, 1)[0] == rank), None)
        sources = [] if combined is None else opening.deciders(combined, key.threshold)[1:]
        received = opening.wires.exchange(outgoing, sources)
        if combined is None or own is None:
            return None
        partials = self._check(opening, product, combined, {**received, rank: own})
        chunk = product.chunks[combined]
        plaintexts = combine(key, partials)
        return combined, self._ops.unpack(plaintexts, chunk.stop - chunk.start, product.n_inputs)

    def _partial(self, product: Product, number: int) -> bytes:
        held, context = self._require_open(), self._context(product, number)
        digest = hashlib.sha256(context + product.ciphertexts[number])
        name = product.sum_id, number, digest.digest()
        if name not in self._partials:
            ciphertexts = self._ciphertexts(product, number)
            held.log.spend(self._link.settings.run_id, *name[:2], digest.hexdigest())
            partial = partially_decrypt(held.share, ciphertexts, context)
            self._partials[name] = encode_partial(held.share.key, partial)
        return self._partials[name]

    def _check(
        self, opening: Opening, product: Product, number: int, messages: Mapping[int, bytes]
    ) -> list[CheckedPartial]:
        """Refuse partials that are not what their authors' shares give.

        Raises:
            WrongPartial: names the rank and its key share.
        """
        key, ciphertexts = self._require_open().share.key, self._ciphertexts(product, number)
        partials = []
        for source, message in messages.items():
            index = opening.indices[source]
            try:
                partial = decode_partial(key, message, len(ciphertexts))
            except ProtocolError as error:
                raise blame(source, index) from error
            if partial.index != index:
                raise blame(source, index)
            partials.append(partial)
        try:
            return check_partials(key, ciphertexts, partials, self._context(product, number))
        except WrongPartial as error:
            raise blame(opening.indices.index(error.index), error.index) from error

    def _ciphertexts(self, product: Product, number: int) -> Ciphertexts:
        chunk = product.chunks[number]
        return self._ops.read(product.ciphertexts[number], chunk.stop - chunk.start)

    def _context(self, product: Product, number: int) -> bytes:
        sum_id, run_id = product.sum_id, self._link.settings.run_id
        return domain_tag(
            "partial", run_id, sum_id.round_id, sum_id.attempt, number, product.digest
        )

    def _tell(
        self,
        opening: Opening,
        product: Product,
        turn: range,
        own: tuple[int, IntVector] | None,
    ) -> dict[int, IntVector]:
        """Exchange what the ranks opened in this turn; return the others' chunks by number."""
        link, rank = self._link, opening.transport.rank
        combiners = {opening.deciders(number, 1)[0]: number for number in turn}
        message = None if own is None else link.encode_opened(own[1])
        others = [other for other in range(opening.transport.n_ranks) if other != rank]
        outgoing = {} if message is None else dict.fromkeys(others, message)
        received = opening.wires.exchange(outgoing, [r for r in combiners if r != rank])
        numbers = {combiners[source]: text for source, text in received.items()}
        return {
            number: link.decode_opened(text, product.chunks[number])
            for number, text in numbers.items()
        }


def _commit(tag: bytes, rank: int, ciphertexts: bytes) -> bytes:
    return hashlib.sha256(tag + domain_tag("commitment", rank) + ciphertexts).digest()
