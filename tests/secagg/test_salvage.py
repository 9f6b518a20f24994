"""What is left of a sum that broke off: a rank dies after its k-th message, for every k.

The other ranks go on until what they need can't come any more. Which parts each one can then
read follows from the messages that were sent, which a network of these tests counts; a rank
has to name exactly these parts, and their sums have to be the true ones.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from mpcfl.config import Custody, Unit
from mpcfl.errors import ConfigError, MpcflError, PartyLost, ProtocolError, TranscriptMismatch
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net import reduction
from mpcfl.net.memory import MemoryNetwork, MemoryTransport
from mpcfl.secagg import paillier_ops, phe_sum, threshold_sum
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.key_holding import held_share_of
from mpcfl.secagg.paillier_sum import open_paillier_sum
from mpcfl.secagg.registry import load_backend
from mpcfl.secagg.salvage import Salvage, parts_of, salvage_of

RUN_ID = "5a" * 16
KEY_BITS = 512
NOBODY = -1


class Died(BaseException):
    """What ends a rank in these tests; no part of the library catches it."""


class MortalNetwork(MemoryNetwork):
    """Kills one rank before its message ``n_left`` + 1, once `arm` was called; counts messages.

    A rank that has ended sends nothing, and who waits for it hears of that at once.
    """

    def __init__(self, n_ranks, victim=NOBODY, n_left=0):
        super().__init__(n_ranks, deadline_s=20)
        self.victim, self.n_left = victim, n_left
        self.armed = False
        self.ended = [threading.Event() for _ in range(n_ranks)]
        self.sent = Counter()
        self.sent_by_victim = 0

    def put(self, source, target, kind, message):
        if self.armed and source == self.victim:
            if self.sent_by_victim >= self.n_left:
                raise Died
            self.sent_by_victim += 1
        if self.armed and (message or kind.name != "MESSAGE"):
            # Where ranks only keep step they send nothing.
            self.sent[source, target, kind.name] += 1
        super().put(source, target, kind, message)

    def get(self, source, target, kind):
        end = time.monotonic() + self.deadline_s
        while time.monotonic() < end:
            over = self.ended[source].is_set()
            if self.has(source, target, kind):
                return super().get(source, target, kind)
            if over:
                raise PartyLost(f"rank {source} is gone", (source,))
            time.sleep(2e-4)
        raise PartyLost(f"rank {source} is silent", (source,))


@dataclass
class Wreck:
    """What the ranks have after a sum; by rank, none for the one that died."""

    network: MortalNetwork
    sessions: dict = field(default_factory=dict)
    salvaged: dict = field(default_factory=dict)
    opened: dict = field(default_factory=dict)
    inputs: list = field(default_factory=list)

    @property
    def total(self):
        """The true sum of all inputs, also of the rank that died."""
        bits = next(iter(self.sessions.values()))[1].modulus_bits
        half = 1 << (bits - 1)
        columns = zip(*[v.tolist() for v in self.inputs if v is not None], strict=True)
        return np.array([(sum(column) + half) % (2 * half) - half for column in columns])

    def assert_values(self):
        for salvage in self.salvaged.values():
            for number, values in salvage.known.items():
                assert values.dtype == np.int64
                np.testing.assert_array_equal(values, self.total[salvage.parts[number]])

    def known(self, rank):
        """The numbers of the parts that a rank names, less those without coordinates."""
        salvage = self.salvaged[rank]
        return {n for n in salvage.known if salvage.parts[n].start < salvage.parts[n].stop}

    def close(self):
        for session, _ in self.sessions.values():
            session.close()


def together(network, party):
    """Run a party at every rank until it ends, has died, or lost another one; return who did."""
    errors, faults = {}, []

    def run(rank):
        try:
            party(MemoryTransport(network, rank))
        except (Died, PartyLost) as error:
            errors[rank] = error
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
            faults.append(error)
        finally:
            network.ended[rank].set()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(network.n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    if faults:
        raise faults[0]
    return errors


def salvaged_twice(session):
    """What a session knows; to ask must change nothing."""
    first, again = session.salvage(), session.salvage()
    if first is not None:
        assert list(first.known) == list(again.known) == sorted(first.known)
        for number, values in first.known.items():
            np.testing.assert_array_equal(again.known[number], values)
    return first


def wreck(backend, settings, n_ranks, victim, n_left, *, armed_from="aggregate", dtype=np.int64):
    """Open a session and run one sum, in which a rank dies after some messages."""
    network = MortalNetwork(n_ranks, victim, n_left)
    ready = threading.Barrier(n_ranks)
    left = Wreck(network)
    spare = np.int64(64 - settings.modulus_bits)
    clients = settings.custody is Custody.CLIENTS and backend in {"paillier", "phe"}
    for rank in range(n_ranks):
        drawn = SystemBits().words(settings.dim + 1)[: settings.dim].view(np.int64) >> spare
        left.inputs.append(None if clients and rank == n_ranks - 1 else drawn.astype(dtype))

    def meet():
        if ready.wait(20) == 0:
            network.armed = True
        ready.wait(20)

    def party(transport):
        session = load_backend(backend)(transport, settings)
        left.sessions[transport.rank] = session, settings
        protected = session.protect(left.inputs[transport.rank])
        if armed_from == "aggregate":
            meet()
        aggregated = session.aggregate(protected)
        if armed_from == "open":
            meet()
        left.opened[transport.rank] = session.open(aggregated)

    left.errors = together(network, party)
    for rank, (session, _) in left.sessions.items():
        if rank != victim or rank not in left.errors:
            left.salvaged[rank] = salvaged_twice(session)
    return left


def until_it_survives(run, limit=200):
    """Run with one message more each time, until the rank that should die sends all it has to."""
    for n_left in range(limit):
        left = run(n_left)
        left.assert_values()
        yield left
        left.close()
        if not left.errors:
            return
    pytest.fail("the rank never came through")


def assert_whole(left):
    """Nobody died: every rank that opens the sum knows all of it."""
    for rank, salvage in left.salvaged.items():
        if left.opened[rank].size:
            assert sorted(salvage.known) == list(range(len(salvage.parts)))
            np.testing.assert_array_equal(left.opened[rank], left.total)


@pytest.fixture
def small_pieces(monkeypatch):
    """Several chunks of a short vector."""
    monkeypatch.setattr(reduction, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(reduction, "_LEAST_SLICE_WORDS", 1)


@pytest.fixture
def small_ciphertexts(small_keys, monkeypatch):
    monkeypatch.setattr(paillier_ops, "chunk_ciphertexts", lambda key_bits: 1)
    monkeypatch.setattr(phe_sum, "CHUNK_VALUES", 6)


def readable_slices(left, rank):
    """Which slices a rank can read: those it has all summands of, and those that were sent to it.

    A slice that came from elsewhere is in a buffer of its own only once the rank exchanges sums.
    """
    n_ranks, sent = left.network.n_ranks, left.network.sent
    parts = left.salvaged[rank].parts
    others = [other for other in range(n_ranks) if other != rank]
    found = set()
    for number, part in enumerate(parts):
        chunk, adds_up = divmod(number, n_ranks)
        if part.start == part.stop:
            continue
        if adds_up == rank:
            scattered = all(sent[rank, other, "SCATTER"] > chunk for other in others)
            came = all(sent[other, rank, "SCATTER"] > chunk for other in others)
        else:
            scattered = all(sent[rank, other, "GATHER"] > chunk for other in others)
            came = sent[adds_up, rank, "GATHER"] > chunk
        if scattered and came:
            found.add(number)
    return found


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize(
    ("backend", "bits", "dtype", "precompute"),
    [
        ("ring", 20, np.int64, False),
        ("ring", 20, np.int32, False),
        ("ring", 32, np.int32, True),
        ("ring", 64, np.int64, True),
        ("crypten", 24, np.int32, False),
        ("crypten", 48, np.int64, True),
        ("plain", 32, np.int32, False),
    ],
)
def test_slices_that_can_be_read_are_known_wherever_a_rank_dies(
    small_pieces, backend, bits, dtype, precompute, victim
):
    settings = SumSettings(53, bits, run_id=RUN_ID, precompute=precompute)
    partial = 0
    for left in until_it_survives(
        lambda n_left: wreck(backend, settings, 3, victim, n_left, dtype=dtype)
    ):
        together_known = set()
        for rank in left.salvaged:
            assert left.known(rank) == readable_slices(left, rank)
            together_known |= left.known(rank)
        everything = sum(part.start < part.stop for part in left.salvaged[1].parts)
        partial += 0 < len(together_known) < everything
        assert len(left.salvaged[1].parts) >= 6
    assert_whole(left)
    # Not all or nothing: there were crash points that left some of the parts.
    assert partial > 3


@pytest.mark.parametrize("victim", [0, 1])
def test_through_the_tree_a_sum_is_known_whole_or_not_at_all(monkeypatch, victim):
    monkeypatch.setattr(reduction, "_TREE_RANKS", 1)
    monkeypatch.setattr(reduction, "_TREE_SLICE_BYTES", 1 << 30)
    settings = SumSettings(60, 20, run_id=RUN_ID)
    seen = set()
    for left in until_it_survives(lambda n_left: wreck("ring", settings, 3, victim, n_left)):
        for rank in left.salvaged:
            known = left.known(rank)
            assert bool(known) == (rank in left.opened)
            assert len(known) in {0, 3}
            seen.add(len(known))
    assert seen == {0, 3}
    assert_whole(left)


@pytest.mark.parametrize("backend", ["plain", "ring", "crypten", "paillier", "phe"])
@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_parts_are_equal_at_all_ranks_and_cover_the_vector_in_order(
    small_pieces, small_ciphertexts, backend, n_ranks
):
    for dim in (0, 1, 53):
        settings = SumSettings(dim, 20, KEY_BITS, run_id=RUN_ID)
        left = wreck(backend, settings, n_ranks, NOBODY, 0)
        assert not left.errors
        parts = left.sessions[0][0].parts
        assert len(parts) >= (dim > 0)
        covered = [place for part in parts for place in range(part.start, part.stop)]
        assert covered == list(range(dim))
        for session, _ in left.sessions.values():
            assert session.parts == session.salvage().parts == parts == parts_of(session, dim)
        left.assert_values()
        assert_whole(left)
        left.close()


@pytest.mark.parametrize("backend", ["ring", "paillier"])
def test_nothing_is_known_before_a_sum_and_nothing_of_the_last_one_after_the_next_began(
    small_pieces, small_ciphertexts, backend
):
    settings = SumSettings(53, 20, KEY_BITS, run_id=RUN_ID)
    left = wreck(backend, settings, 2, NOBODY, 0)
    session, _ = left.sessions[0]
    assert left.known(0)
    session.protect(left.inputs[0])
    left.salvaged[0] = session.salvage()
    assert not left.known(0)
    left.close()
    fresh = wreck(backend, replace(settings, dim=0), 1, NOBODY, 0)
    assert not fresh.known(0)
    fresh.close()


def test_next_sum_forgets_what_a_broken_one_left(small_ciphertexts):
    """Chunks that the holder was still opening, and a product that nobody opened."""
    holder = wreck("paillier", SumSettings(80, 20, KEY_BITS, run_id=RUN_ID), 3, 1, 3)
    assert holder.known(0) == {0, 1, 2}
    shared = wreck("paillier", threshold_settings(), 3, 1, 0, armed_from="open")
    assert shared.salvaged[0].product is not None
    for left in (holder, shared):
        session, _ = left.sessions[0]
        session.protect(left.inputs[0])
        left.salvaged[0] = session.salvage()
        assert not left.known(0)
        assert left.salvaged[0].product is None
        left.close()


def test_of_a_sum_that_crypten_got_unopened_nothing_is_known(small_pieces):
    def party(transport):
        session = load_backend("crypten")(transport, SumSettings(53, 20, run_id=RUN_ID))
        own = np.arange(53)
        session.open(session.aggregate(session.protect(own)))
        assert len(session.salvage().known) == len(session.parts)
        session.share_sum(own, Unit.NONE).close()
        known = session.salvage().known.values()
        assert not any(values.size for values in known)
        session.close()

    assert not together(MortalNetwork(2), party)


@pytest.mark.parametrize("backend", ["plain", "ring", "crypten", "paillier"])
def test_what_was_salvaged_does_not_change_with_the_opened_vector(
    small_pieces, small_ciphertexts, backend
):
    settings = SumSettings(53, 32, KEY_BITS, run_id=RUN_ID)
    left = wreck(backend, settings, 2, NOBODY, 0)
    for opened in left.opened.values():
        opened[:] = 7
    left.assert_values()
    for session, _ in left.sessions.values():
        session.protect(left.inputs[0])
    left.assert_values()
    left.close()


def test_stock_crypten_can_not_tell_what_it_opened():
    left = wreck("crypten-stock", SumSettings(9, 32, run_id=RUN_ID), 2, NOBODY, 0)
    session, _ = left.sessions[0]
    assert parts_of(session, 9) == (slice(0, 9),)
    assert salvage_of(session) is None
    left.close()


def test_backend_without_parts_has_one_and_can_not_tell():
    """As one of another package may be."""
    assert parts_of(object(), 5) == (slice(0, 5),)
    assert parts_of(object(), 0) == ()
    assert salvage_of(object()) is None
    assert held_share_of(object()) is None


def test_salvage_shows_no_values_in_its_text():
    assert "12345" not in repr(Salvage((slice(0, 1),), {0: np.array([12345])}))


@pytest.mark.parametrize("backend", ["paillier", "phe"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_chunks_that_the_holder_opened_or_told_are_known(small_ciphertexts, backend, victim):
    """Ciphertexts go from rank 1 over rank 2 to the holder, which is rank 0."""
    settings = SumSettings(80 if backend == "paillier" else 20, 20, KEY_BITS, run_id=RUN_ID)
    partial = set()
    for left in until_it_survives(lambda n_left: wreck(backend, settings, 3, victim, n_left)):
        sent, n_chunks = left.network.sent, len(left.salvaged[2 - victim // 2].parts)
        assert n_chunks > 2
        for rank in left.salvaged:
            came = sent[2 if rank == 0 else 0, rank, "MESSAGE"]
            assert left.known(rank) == set(range(came))
            partial |= {rank} if 0 < came < n_chunks else set()
    assert_whole(left)
    assert partial == {0: {1, 2}, 1: {0}, 2: {0}}[victim]


def test_closing_after_a_failure_waits_for_no_chunk_and_salvage_skips_those_not_begun(
    small_ciphertexts,
):
    settings = SumSettings(80, 20, KEY_BITS, run_id=RUN_ID)
    left = wreck("paillier", settings, 3, 1, 3)
    session, _ = left.sessions[0]
    gate = threading.Event()
    session._link._beside.submit(gate.wait, 20)
    session._link.decrypt_beside(3, lambda: pytest.fail("decrypted after close"))
    closing = threading.Thread(target=session.close)
    closing.start()
    # What waits is called off before the one that runs is waited for.
    while not session._link.opened.under_way[-1].cancelled():
        time.sleep(1e-3)
    gate.set()
    closing.join(10)
    assert not closing.is_alive()
    left.salvaged[0] = session.salvage()
    assert left.known(0) == {0, 1, 2}
    left.close()


@pytest.mark.parametrize("victim", [1, 3])
@pytest.mark.parametrize("backend", ["paillier", "phe"])
def test_chunks_that_a_data_party_opened_or_was_told_are_known(small_ciphertexts, backend, victim):
    """Custody clients: rank 3 multiplies, and of each turn each of the others opens a chunk."""
    dim = 120 if backend == "paillier" else 36
    settings = SumSettings(dim, 20, KEY_BITS, Custody.CLIENTS, run_id=RUN_ID)
    partial = 0
    for left in until_it_survives(lambda n_left: wreck(backend, settings, 4, victim, n_left)):
        sent, n_chunks = left.network.sent, len(left.salvaged[0].parts)
        assert n_chunks == 6
        for rank in left.salvaged:
            if rank == 3:
                assert left.known(rank) == set()
                continue
            mine = set(range(rank, n_chunks, 3)[: sent[3, rank, "MESSAGE"]])
            others = [other for other in range(3) if other != rank]
            # All chunks of a turn come together.
            turns = min(
                *(sent[other, rank, "MESSAGE"] for other in others),
                *(sent[rank, other, "MESSAGE"] for other in others),
            )
            told = {3 * turn + other for turn in range(turns) for other in others}
            assert left.known(rank) == mine | told
            partial += bool(told) and len(told | mine) < n_chunks
    assert_whole(left)
    assert victim == 3 or partial > 0


def threshold_settings(dim=120, threshold=2):
    return SumSettings(dim, 20, KEY_BITS, Custody.THRESHOLD, run_id=RUN_ID, threshold=threshold)


@pytest.fixture
def decrypted(monkeypatch):
    """Count partial decryptions by key share and chunk."""
    made, right = Counter(), threshold_sum.partially_decrypt

    def counted(share, ciphertexts, context):
        made[share.index, context] += 1
        return right(share, ciphertexts, context)

    monkeypatch.setattr(threshold_sum, "partially_decrypt", counted)
    return made


def readable_chunks(left, rank):
    """Which chunks a rank of three reads, two of which decrypt; see `Opening.deciders`."""
    sent, n_chunks = left.network.sent, len(left.salvaged[rank].parts)
    following, before = (rank + 1) % 3, (rank - 1) % 3
    found = set()
    for turn in range(n_chunks // 3):
        if sent[following, rank, "MESSAGE"] < 2 * turn + 1:
            break
        found.add(3 * turn + rank)
        told = sent[following, rank, "MESSAGE"] >= 2 * turn + 2
        if not (told and sent[before, rank, "MESSAGE"] >= turn + 1):
            break
        found |= {3 * turn + following, 3 * turn + before}
    return found


def survivors_of(left):
    return sorted(rank for rank in left.sessions if rank in left.salvaged)


def open_rest(left, ranks, victim=NOBODY, n_left=0):
    """Have some ranks go on with the product that they hold; return what each one opens."""
    network = MortalNetwork(len(ranks), ranks.index(victim) if victim in ranks else NOBODY, n_left)
    network.armed = True
    opened = {}

    def party(transport):
        rank = ranks[transport.rank]
        opened[rank] = left.salvaged[rank].product.open_over(transport)

    errors = together(network, party)
    for number, rank in enumerate(ranks):
        if rank != victim or number not in errors:
            left.salvaged[rank] = left.sessions[rank][0].salvage()
        else:
            del left.salvaged[rank]
    left.assert_values()
    return opened, errors


@pytest.mark.parametrize("victim", [0, 1])
def test_quorum_goes_on_with_the_product_wherever_a_rank_dies(small_ciphertexts, decrypted, victim):
    partial = 0
    for left in until_it_survives(
        lambda n_left: wreck("paillier", threshold_settings(), 3, victim, n_left, armed_from="open")
    ):
        ranks = survivors_of(left)
        before = {rank: left.known(rank) for rank in ranks}
        assert before == {rank: readable_chunks(left, rank) for rank in ranks}
        assert len({left.salvaged[rank].product.digest for rank in ranks}) == 1
        partial += any(0 < len(known) < 6 for known in before.values())
        if left.errors:
            opened, errors = open_rest(left, ranks)
            assert not errors
            for rank in ranks:
                np.testing.assert_array_equal(opened[rank], left.total)
                assert left.known(rank) == set(range(6))
    assert partial > 3
    assert_whole(left)
    # Also where ranks went on: nobody decrypted anything twice.
    assert set(decrypted.values()) == {1}


@pytest.mark.parametrize("second_left", [2, 3, 5])
def test_second_loss_leaves_what_was_known_before_and_what_came_since(
    small_ciphertexts, decrypted, second_left
):
    # Of four ranks rank 0 dies after its first messages of the opening; then rank 1 does.
    left = wreck("paillier", threshold_settings(100), 4, 0, 1, armed_from="open")
    assert left.errors
    before = {rank: left.known(rank) for rank in (1, 2, 3)}
    _, errors = open_rest(left, [1, 2, 3], victim=1, n_left=4 + second_left)
    assert errors
    for rank in (2, 3):
        assert left.known(rank) >= before[rank]
    opened, errors = open_rest(left, [2, 3])
    assert not errors
    for rank in (2, 3):
        np.testing.assert_array_equal(opened[rank], left.total)
    assert set(decrypted.values()) == {1}
    left.close()


@pytest.mark.parametrize("victim", [0, 2])
def test_product_is_there_once_all_ciphertexts_are(small_ciphertexts, victim):
    seen = set()
    settings = threshold_settings(40)
    for left in until_it_survives(lambda n_left: wreck("paillier", settings, 3, victim, n_left)):
        n_chunks = len(left.sessions[1][0].parts)
        for rank in survivors_of(left):
            # A commitment and ciphertexts per chunk; then all compare.
            others = [other for other in range(3) if other != rank]
            came = min(left.network.sent[other, rank, "MESSAGE"] for other in others)
            product = left.salvaged[rank].product
            assert (product is not None) == (came >= 2 * n_chunks)
            seen.add((product is not None, rank in left.opened))
    assert seen == {(False, False), (True, False), (True, True)}


def test_product_that_ranks_do_not_agree_on_is_not_offered(small_ciphertexts, monkeypatch):
    def different(transport, own, what):
        raise TranscriptMismatch(f"rank 1 has another view of {what} than rank 0")

    network, sessions = MortalNetwork(3), {}

    def party(transport):
        sessions[transport.rank] = open_paillier_sum(transport, threshold_settings())
        protected = sessions[transport.rank].protect(np.arange(120))
        monkeypatch.setattr(threshold_sum, "require_same", different)
        with pytest.raises(TranscriptMismatch):
            sessions[transport.rank].aggregate(protected)
        assert sessions[transport.rank].salvage().product is None
        sessions[transport.rank].close()

    assert not together(network, party)


def test_product_of_an_earlier_sum_leaves_no_trace_in_what_is_known_of_the_last(
    small_ciphertexts,
):
    network, left = MortalNetwork(3), {}

    def party(transport):
        session = open_paillier_sum(transport, threshold_settings())
        earlier = session.aggregate(session.protect(np.full(120, transport.rank)))
        session.aggregate(session.protect(np.full(120, 7)))
        assert session.open_over(transport, earlier).tolist() == [3] * 120
        left[transport.rank] = session.salvage()
        session.close()

    assert not together(network, party)
    assert [salvage.known for salvage in left.values()] == [{}] * 3


@pytest.mark.parametrize("threshold", [2, None])
def test_ranks_that_are_left_sum_again_with_the_key_shares_that_were_dealt(
    small_ciphertexts, threshold
):
    settings = threshold_settings(threshold=threshold)
    left = wreck("paillier", settings, 4 if threshold == 2 else 3, 0, 2)
    ranks = survivors_of(left)[-2:]
    held = {rank: held_share_of(left.sessions[rank][0]) for rank in ranks}
    left.close()
    assert all(held_share_of(session) is None for session, _ in left.sessions.values())
    opened = {}

    def again(transport):
        rank = ranks[transport.rank]
        session = open_paillier_sum(transport, settings, held=held[rank])
        protected = session.protect(left.inputs[rank], SumId(0, 1))
        opened[rank] = session.open(session.aggregate(protected))
        assert session.held_share() is held[rank]
        session.close()

    assert not together(MortalNetwork(2), again)
    expected = Wreck(left.network, {0: (None, settings)}, inputs=[left.inputs[r] for r in ranks])
    for rank in ranks:
        np.testing.assert_array_equal(opened[rank], expected.total)


def test_rank_that_is_left_alone_with_its_share_opens_no_session(small_ciphertexts):
    left = wreck("paillier", threshold_settings(), 3, 0, 2)
    held = held_share_of(left.sessions[1][0])
    left.close()
    refused = []

    def alone(transport):
        with pytest.raises(ConfigError, match="1 ranks are here, 2 key shares decrypt"):
            open_paillier_sum(transport, threshold_settings(), held=held)
        refused.append(transport.rank)

    together(MortalNetwork(1), alone)
    assert refused == [0]


def test_chunk_that_does_not_decrypt_is_not_known(small_ciphertexts, monkeypatch):
    """The holder refuses what can't be a sum, and goes on to say so."""
    right = paillier_ops.PackedOps.decrypt
    seen = []

    def second_is_bad(self, ciphertexts, n_values, n_inputs):
        seen.append(n_values)
        if len(seen) == 2:
            raise ProtocolError("a decrypted sum is larger than the inputs can add up to")
        return right(self, ciphertexts, n_values, n_inputs)

    monkeypatch.setattr(paillier_ops.PackedOps, "decrypt", second_is_bad)
    network, left = MortalNetwork(3), {}

    def party(transport):
        settings = SumSettings(80, 20, KEY_BITS, run_id=RUN_ID)
        session = open_paillier_sum(transport, settings)
        with pytest.raises(MpcflError) as caught:
            session.open(session.aggregate(session.protect(np.arange(80) * transport.rank)))
        network.ended[transport.rank].set()
        left[transport.rank] = session.salvage(), type(caught.value)
        session.close()

    together(network, party)
    n_chunks = len(left[0][0].parts)
    assert left[0][1] is ProtocolError
    assert sorted(left[0][0].known) == [0, *range(2, n_chunks)]
    assert [sorted(left[rank][0].known) for rank in (1, 2)] == [[0], [0]]
    for number, values in left[0][0].known.items():
        np.testing.assert_array_equal(values, 3 * np.arange(80)[left[0][0].parts[number]])
