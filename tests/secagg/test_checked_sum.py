"""A checked sum that was changed in any way is an error at every rank, never a sum."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mpcfl.config import Custody
from mpcfl.errors import AuthenticationError, CheckFailed, MpcflError, OutOfOrder, ProtocolError
from mpcfl.hazmat.linear_tag import LONG_PRIME, SHORT_PRIME, tag_prime
from mpcfl.net.authenticated import AuthenticatedTransport
from mpcfl.net.channel import SealedTransport, agree_pair_secrets
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.net.wire import Kind
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.checked_sum import CheckedProduct, CheckedSum
from mpcfl.secagg.custody import assign_roles
from mpcfl.secagg.opening import backend_of, open_sum
from mpcfl.secagg.registry import load_backend
from mpcfl.secagg.sum_tags import SumTags

RUN_ID = "cd" * 16
DIM = 40


@dataclass(frozen=True)
class Way:
    """One way to run a backend."""

    backend: str
    custody: Custody = Custody.HOLDER

    def settings(self, **options: Any) -> SumSettings:
        chosen = {"dim": DIM, "key_bits": 512, "custody": self.custody, "run_id": RUN_ID}
        return SumSettings(**{**chosen, "checked": True, **options})


WAYS = {
    "plain": Way("plain"),
    "ring": Way("ring"),
    "crypten": Way("crypten"),
    "crypten-stock": Way("crypten-stock"),
    "phe-holder": Way("phe"),
    "phe-clients": Way("phe", Custody.CLIENTS),
    "paillier-holder": Way("paillier"),
    "paillier-clients": Way("paillier", Custody.CLIENTS),
    "paillier-threshold": Way("paillier", Custody.THRESHOLD),
}
pytestmark = pytest.mark.usefixtures("small_keys")


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr("mpcfl.secagg.phe_sum.CHUNK_VALUES", 8)
    monkeypatch.setattr("mpcfl.secagg.paillier_ops.chunk_ciphertexts", lambda key_bits: 1)
    monkeypatch.setattr("mpcfl.net.reduction._CHUNK_BYTES", 64)
    monkeypatch.setattr("mpcfl.net.reduction._LEAST_SLICE_WORDS", 1)


def levels_of(rank: int, number: int) -> np.ndarray[Any, Any]:
    return (np.arange(DIM) * (7 + rank) + 1000 * number + rank) % 5003 - 2500


class Spoiled:
    """A backend's session on a network that does something to what goes in or comes out."""

    def __init__(self, inner: Any, transport: MemoryTransport, attack: Any, is_data: bool) -> None:
        self.inner, self.parts = inner, inner.parts
        self._transport, self._attack, self._is_data = transport, attack, is_data
        self._numbers = iter(range(10))
        self._put_in: list[Any] = []
        self._opened: list[Any] = []
        self._number = -1

    def protect(self, levels, sum_id=None):
        self._number = next(self._numbers)
        if self._is_data:
            self._put_in.append(levels)
            levels = self._attack.put_in(self._transport.rank, self._number, self._put_in)
        return self.inner.protect(levels, sum_id)

    def aggregate(self, protected):
        return self.inner.aggregate(protected)

    def open(self, aggregated):
        total = self.inner.open(aggregated)
        if not self._is_data:
            return total
        self._opened.append(total.copy())
        return self._attack.take_out(self._transport.rank, self._number, self._opened, self.parts)

    def prepare(self):
        self.inner.prepare()

    def close(self):
        self.inner.close()


class Attack:
    """Does nothing."""

    def put_in(self, rank, number, given):
        return given[-1]

    def take_out(self, rank, number, opened, parts):
        return opened[-1]


class FlipOneCoordinate(Attack):
    def __init__(self, place: int, bit: int) -> None:
        self.place, self.bit = place, bit

    def take_out(self, rank, number, opened, parts):
        opened[-1][self.place] ^= number << self.bit
        return opened[-1]


class DropOneVector(Attack):
    def put_in(self, rank, number, given):
        return given[-1] * 0 if (rank, number) == (1, 1) else given[-1]


class AddOneTwice(Attack):
    def put_in(self, rank, number, given):
        return given[-1] * 2 if (rank, number) == (1, 1) else given[-1]


class ReplayAVector(Attack):
    def put_in(self, rank, number, given):
        return given[0] if rank == 1 else given[-1]


class ReplayTheSum(Attack):
    def take_out(self, rank, number, opened, parts):
        return opened[0]


class ReplayOnePart(Attack):
    def take_out(self, rank, number, opened, parts):
        part = parts[len(parts) // 2]
        opened[-1][part] = opened[0][part]
        return opened[-1]


class TellThemApart(Attack):
    """Rank 1 alone hears another sum, in a part that rank 0 checks."""

    def take_out(self, rank, number, opened, parts):
        if (rank, number) == (1, 1):
            opened[-1][0] += 1
        return opened[-1]


class SwapTwoCoordinates(Attack):
    def take_out(self, rank, number, opened, parts):
        if number == 1:
            opened[-1][[3, 4]] = opened[-1][[4, 3]]
        return opened[-1]


class MoveByTheRing(Attack):
    """What is 2^32 too large looks right mod 2^32."""

    def take_out(self, rank, number, opened, parts):
        total = opened[-1].astype(np.int64)
        total[7] += number << 32
        return total


class TellThemApartByTheRing(Attack):
    """As above, with a value that is equal mod 2^32."""

    def take_out(self, rank, number, opened, parts):
        total = opened[-1].astype(np.int64)
        if (rank, number) == (1, 1):
            total[0] += 1 << 32
        return total


class WrongLength(Attack):
    def take_out(self, rank, number, opened, parts):
        return opened[-1][: DIM - number]


ATTACKS = {
    "flip-first": FlipOneCoordinate(0, 0),
    "flip-last": FlipOneCoordinate(DIM - 1, 20),
    "drop": DropOneVector(),
    "twice": AddOneTwice(),
    "replay-vector": ReplayAVector(),
    "replay-sum": ReplayTheSum(),
    "replay-part": ReplayOnePart(),
    "equivocate": TellThemApart(),
    "swap": SwapTwoCoordinates(),
    "ring": MoveByTheRing(),
    "equivocate-ring": TellThemApartByTheRing(),
    "length": WrongLength(),
}


def outcomes(way: Way, attack: Attack, **options: Any) -> list[Any]:
    """Return, for each rank, what the second of two sums came to."""
    n_ranks = 3 + (way.custody is Custody.CLIENTS)
    data_ranks = assign_roles(way.custody, n_ranks).data_ranks
    settings = way.settings(**options)

    def party(transport):
        is_data = transport.rank in data_ranks
        inner = load_backend(way.backend)(transport, settings)
        spoiled = Spoiled(inner, transport, attack, is_data)
        session = CheckedSum(spoiled, transport, settings, data_ranks)
        found: Any = None
        for number in range(2):
            own = levels_of(transport.rank, number) if is_data else None
            try:
                found = session.open(session.aggregate(session.protect(own, SumId(number))))
            except MpcflError as error:
                found = error
                with pytest.raises(OutOfOrder):
                    session.protect(own, SumId(number + 1))
        session.close()
        return found

    return run_parties(n_ranks, party, deadline_s=20)


@pytest.mark.usefixtures("short_parts")
def test_an_honest_sum_passes(way):
    expected = sum(levels_of(rank, 1) for rank in range(3)).tolist()
    for total in outcomes(way, Attack())[:3]:
        assert total.tolist() == expected


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_changed_sum_is_an_error_at_every_rank(way, attack):
    for error in outcomes(way, ATTACKS[attack]):
        assert isinstance(error, CheckFailed), error
        assert "round 1, attempt 0: the sum failed its check in stage open" in str(error)


@pytest.mark.parametrize("bits", [8, 16, 20, 48, 63, 64])
@pytest.mark.parametrize("bit", ["lowest", "highest"])
def test_one_flipped_bit_is_found_in_every_ring(bits, bit):
    """Also the highest one, whose flip is a difference of half the ring."""

    class Flip(Attack):
        def take_out(self, rank, number, opened, parts):
            top = np.int64(-1) << np.int64(bits - 1)
            opened[-1][9] ^= number * (1 if bit == "lowest" else top)
            return opened[-1]

    small = Way("plain")
    levels = {"dim": DIM, "modulus_bits": bits}

    def party(transport):
        settings = small.settings(**levels)
        inner = Spoiled(load_backend("plain")(transport, settings), transport, Flip(), True)
        session = CheckedSum(inner, transport, settings, range(3))
        own = np.arange(DIM) % 40 - 20
        assert session.open(session.aggregate(session.protect(own))).tolist() == (own * 3).tolist()
        with pytest.raises(CheckFailed):
            session.open(session.aggregate(session.protect(own)))

    run_parties(3, party)


@pytest.mark.parametrize("n_parties", [1, 2, 5])
@pytest.mark.parametrize("dim", [0, 1, 3, 5000])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_any_number_of_parties_any_length_and_both_types_pass(n_parties, dim, dtype):
    """Over channels of a handshake no key is exchanged for it."""

    def party(transport):
        secrets = agree_pair_secrets(transport, RUN_ID)
        sealed = AuthenticatedTransport(transport, secrets, "test")
        session = open_sum(load_backend("ring"), sealed, Way("ring").settings(dim=dim))
        totals = []
        for sum_id in (SumId(0), SumId(0, 3), SumId(4, 1)):
            own = np.full(dim, transport.rank - 2, dtype)
            totals.append(session.open(session.aggregate(session.protect(own, sum_id))))
        session.close()
        return totals

    total = sum(range(n_parties)) - 2 * n_parties
    for totals in run_parties(n_parties, party):
        for found in totals:
            assert found.dtype == dtype
            assert found.tolist() == [total] * dim


def test_a_failed_check_names_who_noticed_and_the_range():
    errors = outcomes(Way("plain"), FlipOneCoordinate(0, 0))
    assert len({str(error) for error in errors}) == 1
    assert "rank 0 found that it is not the sum" in str(errors[0])
    assert "left [-2^31, 2^31)" in str(errors[0])
    errors = outcomes(Way("plain"), TellThemApart())
    assert {"rank 1 was told another one than rank 0" in str(error) for error in errors} == {True}


# --- what travels ---


class Tap:
    """A sealed transport that notes all that goes through it in the clear."""

    seen: list[tuple[int, int, bytes]]

    def __init__(self, monkeypatch) -> None:
        self.seen = []
        exchange = SealedTransport.exchange

        def watched(wires, outgoing, sources):
            rank = wires._transport.rank
            self.seen += [(rank, target, bytes(text)) for target, text in outgoing.items()]
            return exchange(wires, outgoing, sources)

        monkeypatch.setattr(SealedTransport, "exchange", watched)


@pytest.mark.parametrize("bits", [32, 64])
def test_tags_leave_masked_so_that_only_their_sum_can_be_read(bits, monkeypatch):
    tags: dict[int, bytes] = {}
    masked = SumTags.masked

    def noted(self, levels, sum_id, rank):
        tags[rank] = masked(self, levels, sum_id, rank)
        bare = SumTags(self._group_key, _NoPeers(), way.settings(modulus_bits=bits), self._parts)
        clear[rank] = masked(bare, levels, sum_id, rank)
        return tags[rank]

    clear: dict[int, bytes] = {}
    way = Way("plain")
    monkeypatch.setattr(SumTags, "masked", noted)

    def party(transport):
        session = open_sum(load_backend("plain"), transport, way.settings(modulus_bits=bits))
        session.open(session.aggregate(session.protect(np.arange(DIM))))
        session.close()

    run_parties(3, party)
    width = -(-tag_prime(bits).bit_length() // 8)
    prime = SHORT_PRIME if bits == 32 else LONG_PRIME
    first = {rank: int.from_bytes(text[:width], "big") for rank, text in tags.items()}
    bare = {rank: int.from_bytes(text[:width], "big") for rank, text in clear.items()}
    # All put in the same vector: equal tags, under masks that differ and cancel in the sum of all.
    assert len(set(bare.values())) == 1
    assert all(first[rank] != bare[rank] for rank in range(3))
    assert sum(first.values()) % prime == sum(bare.values()) % prime
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (first[one] + first[other] - bare[one] - bare[other]) % prime != 0


class _NoPeers:
    peers = ()


def test_every_sum_has_masks_and_coefficients_of_its_own(monkeypatch):
    """Of one vector in three sums, neither tags nor masks are ever alike."""
    tags, masks = Counter(), Counter()
    masked = SumTags.masked

    def noted(self, levels, sum_id, rank):
        text = masked(self, levels, sum_id, rank)
        bare = SumTags(self._group_key, _NoPeers(), Way("plain").settings(), self._parts)
        clear = masked(bare, levels, sum_id, rank)
        tags[clear[:8]] += 1
        difference = int.from_bytes(text[:8], "big") - int.from_bytes(clear[:8], "big")
        masks[difference % SHORT_PRIME] += 1
        return text

    monkeypatch.setattr(SumTags, "masked", noted)

    def party(transport):
        session = open_sum(load_backend("plain"), transport, Way("plain").settings())
        for sum_id in (SumId(0), SumId(0, 1), SumId(1)):
            session.open(session.aggregate(session.protect(np.arange(DIM), sum_id)))
        session.close()

    run_parties(2, party)
    # Two parties put in the same each time; one adds the mask, the other takes it off.
    assert sorted(tags.values()) == [2, 2, 2]
    assert sorted(masks.values()) == [1] * 6


def test_an_aggregator_gets_verdicts_and_neither_keys_nor_tags(monkeypatch):
    way = Way("paillier", Custody.CLIENTS)
    tap = Tap(monkeypatch)

    def party(transport):
        session = open_sum(load_backend("paillier"), transport, way.settings())
        tap.seen.clear() if transport.rank == 0 else None
        own = None if transport.rank == 3 else np.arange(DIM)
        session.open(session.aggregate(session.protect(own)))
        return session

    sessions = run_parties(4, party)
    kinds = {text[5] for _, target, text in tap.seen if target == 3 and text[:4] == b"mpfl"}
    assert kinds == {Kind.VERDICT}
    assert sessions[3]._tags is None


@pytest.mark.parametrize("kind", ["TAGS", "NONCE", "VERDICT"])
def test_a_message_of_the_check_that_was_changed_does_not_open(kind):
    """On the wire all of them are sealed; a changed one names its sender."""
    order = {"TAGS": 1, "NONCE": 2, "VERDICT": 3}[kind]

    class Changed(MemoryTransport):
        def exchange(self, outgoing, sources):
            received = super().exchange(outgoing, sources)
            if self.rank == 1 and received:
                self.count = getattr(self, "count", 0) + 1
                if self.count == self.when:
                    text = bytearray(received[0])
                    text[-1] ^= 1
                    received[0] = bytes(text)
            return received

    def party(transport):
        changed = Changed(transport._network, transport.rank)
        changed.when = -1
        session = open_sum(load_backend("plain"), changed, Way("plain").settings())
        changed.count, changed.when = 0, order
        try:
            session.open(session.aggregate(session.protect(np.arange(DIM))))
        except AuthenticationError as error:
            return str(error)
        except MpcflError:
            return "stopped"
        return "summed"

    found = run_parties(2, party, deadline_s=1)
    assert "a message from rank 0 failed authentication" in found[1]


def test_ranks_at_different_sums_are_told_so():
    def party(transport):
        session = open_sum(load_backend("plain"), transport, Way("plain").settings())
        with pytest.raises(ProtocolError, match=r"at round (7|8), attempt 0"):
            session.aggregate(session.protect(np.arange(DIM), SumId(7 + transport.rank)))

    run_parties(2, party)


# --- what is refused, and what is left ---


@pytest.mark.parametrize("bad", [np.zeros(3, np.int64), np.zeros(DIM), np.full(DIM, 1 << 31)])
def test_a_wrong_vector_is_refused_before_anything_is_sent_and_the_session_goes_on(bad):
    def party(transport):
        session = open_sum(load_backend("plain"), transport, Way("plain").settings())
        sent = transport.meter.bytes_sent
        with pytest.raises((ValueError, TypeError, MpcflError)):
            session.protect(bad)
        assert transport.meter.bytes_sent == sent
        return session.open(session.aggregate(session.protect(np.ones(DIM, np.int32)))).tolist()

    assert run_parties(3, party) == [[3] * DIM] * 3


def test_a_number_never_repeats_whatever_the_backend():
    def party(transport):
        session = open_sum(load_backend("plain"), transport, Way("plain").settings())
        session.open(session.aggregate(session.protect(np.ones(DIM, np.int64), SumId(3))))
        for again in (SumId(3), SumId(2, 9)):
            with pytest.raises(OutOfOrder, match="does not come after"):
                session.protect(np.ones(DIM, np.int64), again)

    run_parties(2, party)


def test_a_child_process_makes_no_tags(monkeypatch):
    def party(transport):
        session = open_sum(load_backend("plain"), transport, Way("plain").settings())
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(OutOfOrder, match="fork"):
                session.protect(np.ones(DIM, np.int64))

    run_parties(1, party)


def test_a_closed_session_has_forgotten_its_keys():
    def party(transport):
        session = open_sum(load_backend("plain"), transport, Way("plain").settings())
        session.close()
        session.close()
        assert session._tags._group_key == b""
        with pytest.raises(OutOfOrder):
            session.protect(np.ones(DIM, np.int64))

    run_parties(2, party)


def test_a_session_whose_check_can_not_be_opened_is_closed(monkeypatch):
    closed = []

    def party(transport):
        def open_backend(transport, settings):
            session = load_backend("plain")(transport, settings)
            session.close = lambda: closed.append(transport.rank)
            return session

        monkeypatch.setattr("mpcfl.secagg.opening.CheckedSum", _refuses)
        with pytest.raises(ProtocolError):
            open_sum(open_backend, transport, Way("plain").settings())

    run_parties(2, party)
    assert sorted(closed) == [0, 1]


def _refuses(*_: Any) -> None:
    raise ProtocolError("no")


def test_without_a_check_the_backend_is_what_comes():
    def party(transport):
        settings = Way("ring").settings(checked=False)
        session = open_sum(load_backend("ring"), transport, settings)
        assert backend_of(session) is session
        checked = open_sum(load_backend("ring"), transport, Way("ring").settings())
        assert type(backend_of(checked)) is type(session)
        assert checked.parts == session.parts
        assert "redacted" in repr(checked)

    run_parties(2, party)


def test_a_custody_that_the_backend_does_not_know_changes_nothing():
    way = Way("ring", Custody.CLIENTS)

    def party(transport):
        session = open_sum(load_backend("ring"), transport, way.settings())
        return session.open(session.aggregate(session.protect(np.ones(DIM, np.int64)))).tolist()

    assert run_parties(2, party) == [[2] * DIM] * 2


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("backend", ["plain", "ring"])
def test_what_is_left_of_a_sum_is_what_passes(backend):
    """One part was changed after it was opened: it is dropped, and the others stand."""

    class ChangeOne(Attack):
        def take_out(self, rank, number, opened, parts):
            return opened[-1]

    def party(transport):
        session = open_sum(load_backend(backend), transport, Way(backend).settings())
        assert not any(values.size for values in session.salvage().known.values())
        own = levels_of(transport.rank, 0)
        total = session.open(session.aggregate(session.protect(own)))
        expected = total.copy()
        whole = session.salvage()
        assert sorted(whole.known) == list(range(len(session.parts)))
        for number, values in whole.known.items():
            assert values.tolist() == expected[session.parts[number]].tolist()
            session.require_part(number, values)
        filled = [k for k, part in enumerate(session.parts) if part.stop > part.start]
        total[session.parts[filled[1]]] += 1
        left = session.salvage()
        assert sorted(set(whole.known) - set(left.known)) == [filled[1]]
        with pytest.raises(CheckFailed, match="handed over"):
            session.require_part(filled[0], whole.known[filled[0]] + 1)
        with pytest.raises(CheckFailed, match="handed over"):
            session.require_part(filled[0], whole.known[filled[0]][:-1])
        # A sum that has begun, and no more, has nothing of the one before.
        session.protect(own)
        assert not any(values.size for values in session.salvage().known.values())

    run_parties(3, party)


class _Changed:
    """A product that opens to what it is told."""

    digest = ""

    def __init__(self, total):
        self._total = total

    def open_over(self, transport):
        return self._total


def test_a_product_is_checked_once_it_is_open():
    """Custody `threshold`: who is left opens the same product, and the check goes on with them."""
    way = Way("paillier", Custody.THRESHOLD)

    def party(transport):
        session = open_sum(load_backend("paillier"), transport, way.settings())
        session.aggregate(session.protect(levels_of(transport.rank, 0)))
        product = session.salvage().product
        assert len(product.digest) == 64
        total = product.open_over(transport)
        # Rank 2 opens another one: all hear of it.
        wrong = CheckedProduct(_Changed(total + (transport.rank == 2)), session)
        with pytest.raises(CheckFailed):
            wrong.open_over(transport)
        return total.tolist()

    expected = sum(levels_of(rank, 0) for rank in range(3)).tolist()
    assert run_parties(3, party) == [expected] * 3
