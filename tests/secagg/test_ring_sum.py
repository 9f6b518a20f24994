"""The `ring` backend by itself: every ring, every path through it, bad input, bytes and memory."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcfl.errors import OutOfOrder, WrapDetected
from mpcfl.hazmat.bits import KeystreamBits, SystemBits
from mpcfl.net import reduction
from mpcfl.net.memory import run_parties
from mpcfl.net.meter import Meter
from mpcfl.secagg import masks
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.ring_sum import open_ring_sum

RUN_ID = "00" * 16
ALL_BITS = range(8, 65)


@pytest.fixture
def small_pieces(monkeypatch):
    """Many chunks, made in a thread, of many pieces each."""
    monkeypatch.setattr(reduction, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(reduction, "_LEAST_SLICE_WORDS", 1)
    monkeypatch.setattr(masks, "_PIECE_BYTES", 24)


@pytest.fixture
def tree(monkeypatch):
    monkeypatch.setattr(reduction, "_TREE_RANKS", 1)
    monkeypatch.setattr(reduction, "_TREE_SLICE_BYTES", 1 << 30)


def draw(n_parties, dim, bits, dtype=np.int64):
    words = [SystemBits().words(dim + 1)[:dim].view(np.int64) for _ in range(n_parties)]
    return [(word >> np.int64(64 - bits)).astype(dtype) for word in words]


def centred_sum(vectors, bits):
    half = 1 << (bits - 1)
    total = sum(v.astype(object) for v in vectors)
    return [(int(x) + half) % (1 << bits) - half for x in total]


def sums_of(rounds, bits, *, ids=None, **options):
    """Return what every rank opens, by rank and sum."""
    chosen = SumSettings(len(rounds[0][0]), bits, run_id=RUN_ID, **options)

    def party(transport):
        session = open_ring_sum(transport, chosen)
        opened = []
        for number, vectors in enumerate(rounds):
            protected = session.protect(vectors[transport.rank], ids and ids[number])
            opened.append(session.open(session.aggregate(protected)))
        session.close()
        return opened

    return run_parties(len(rounds[0]), party)


def assert_sums(rounds, bits, **options):
    for rank, opened in enumerate(sums_of(rounds, bits, **options)):
        for vectors, total in zip(rounds, opened, strict=True):
            assert total.dtype == vectors[rank].dtype
            assert total.tolist() == centred_sum(vectors, bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_ring_is_exact_in_many_chunks(small_pieces, bits):
    for dtype in (np.int64, np.int32)[: 2 if bits <= 32 else 1]:
        assert_sums([draw(3, 117, bits, dtype) for _ in range(2)], bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_ring_is_exact_through_the_tree(tree, bits):
    for dtype in (np.int64, np.int32)[: 2 if bits <= 32 else 1]:
        assert_sums([draw(3, 41, bits, dtype)], bits)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_ring_wraps_at_both_ends(bits):
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    columns = [(low, low, low), (high, high, high), (low, high, 0), (high, 1, 0), (low, -1, 0)]
    assert_sums([[np.array(c, dtype=np.int64) for c in zip(*columns, strict=True)]], bits)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    bits=st.integers(8, 64),
    n_parties=st.integers(1, 5),
    dim=st.sampled_from([0, 1, 2, 7, 8, 9, 31, 200]),
    narrow=st.booleans(),
    options=st.fixed_dictionaries({"precompute": st.booleans()}),
    step=st.sampled_from([1, 2, -1]),
)
def test_any_vectors_sum_exactly(small_pieces, bits, n_parties, dim, narrow, options, step):
    dtype = np.int32 if narrow and bits <= 32 else np.int64
    rounds = [[v[::step] for v in draw(n_parties, abs(step) * dim, bits, dtype)] for _ in range(2)]
    assert_sums(rounds, bits, **options)


MANY = 64


@pytest.mark.parametrize("path", ["tree", "slices"])
@pytest.mark.parametrize("bits", [8, 16, 20, 24, 32, 48, 64])
def test_sixty_four_ranks_on_a_sparse_graph_equal_the_oracle(monkeypatch, bits, path):
    monkeypatch.setattr(reduction, "_TREE_RANKS", MANY if path == "tree" else MANY + 1)
    vectors = draw(MANY, 601, bits)
    expected = centred_sum(vectors, bits)
    opened = sums_of([vectors], bits, neighbors=12)
    assert opened[0][0].tolist() == expected
    assert all(np.array_equal(total, opened[0][0]) for (total,) in opened)


def test_mask_work_grows_with_neighbors_and_not_with_parties(monkeypatch):
    """Bytes of keystream per party: k vectors, or n - 1 with all pairs."""
    filled = {}
    fill = KeystreamBits.fill

    def counted(self, out):
        filled[threading.get_ident()] += out.nbytes
        fill(self, out)

    monkeypatch.setattr(masks.KeystreamBits, "fill", counted)
    dim = 1000

    def work(n_parties, neighbors):
        chosen = SumSettings(dim, 32, run_id=RUN_ID, neighbors=neighbors)

        def party(transport):
            # Keys and the graph are drawn before; here it is the masks.
            filled[threading.get_ident()] = 0
            session = open_ring_sum(transport, chosen)
            filled[threading.get_ident()] = 0
            session.aggregate(session.protect(np.zeros(dim, np.int32)))
            return filled[threading.get_ident()] / (4 * dim)

        return set(run_parties(n_parties, party))

    for neighbors in (2, 4, 6):
        assert [work(n, neighbors) for n in (8, 16, 32)] == [{neighbors}] * 3
    assert [work(n, None) for n in (2, 8, 16)] == [{1}, {7}, {15}]


@pytest.mark.parametrize(("bits", "per_word"), [(8, 1), (20, 2.5), (24, 3), (32, 4), (48, 6)])
def test_bytes_on_the_wire_are_those_of_b_bits(bits, per_word):
    n_parties, dim = 4, 100_001
    chosen = SumSettings(dim, bits, run_id=RUN_ID)

    def party(transport):
        session = open_ring_sum(transport, chosen)
        before = transport.meter.bytes_sent
        session.open(session.aggregate(session.protect(np.zeros(dim, np.int64))))
        return transport.meter.bytes_sent - before

    least = 2 * (n_parties - 1) / n_parties * dim * per_word
    for sent in run_parties(n_parties, party):
        assert 0.999 * least < sent < 1.001 * least


def alone(bits=20, dim=10, **options):
    """Open a session of one party."""
    return run_parties(
        1, lambda t: open_ring_sum(t, SumSettings(dim, bits, run_id=RUN_ID, **options))
    )[0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("bits", [8, 13, 16, 20, 31, 32, 33, 48, 63])
def test_both_ends_of_the_ring_are_in_it_and_what_lies_beyond_is_refused(bits, dtype):
    half = 1 << (bits - 1)
    if bits > 32 and dtype == np.int32:
        with pytest.raises(TypeError, match="needs int64"):
            alone(bits).protect(np.zeros(10, dtype))
        return
    # One word more than are looked at together.
    dim = 32_769
    session = alone(bits, dim)
    ends = np.zeros(dim, dtype)
    ends[[0, 20_000, -1]] = half - 1, -half, -half
    assert session.open(session.aggregate(session.protect(ends))).tolist() == ends.tolist()
    if bits == 8 * ends.itemsize:
        return
    for place in (0, 32_767, 32_768):
        for value in (half, -half - 1):
            bad = np.zeros(dim, dtype)
            bad[place] = value
            with pytest.raises(WrapDetected, match=f"{bits} bits") as refused:
                session.protect(bad)
            assert str(value) not in str(refused.value)


@pytest.mark.parametrize("mask", [False, [True] + [False] * 9])
def test_masked_arrays_are_refused(mask):
    with pytest.raises(TypeError, match="masked"):
        alone().protect(np.ma.masked_array(np.zeros(10, np.int64), mask))


@pytest.mark.parametrize("dim", [10, 400])
def test_protected_vector_is_summed_once(small_pieces, dim):
    """A second sum under the same masks would show the difference of two inputs."""

    def party(transport):
        session = open_ring_sum(transport, SumSettings(dim, 20, run_id=RUN_ID))
        protected = session.protect(np.zeros(dim, np.int64))
        session.aggregate(protected)
        session.aggregate(protected)

    with pytest.raises(OutOfOrder, match="asked for twice"):
        run_parties(2, party)


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("dim", [10, 400])
@pytest.mark.parametrize("stage", ["protect", "aggregate", "open"])
def test_closed_session_refuses_every_stage(small_pieces, stage, dim, precompute):
    session = alone(dim=dim, precompute=precompute)
    held = {"protect": np.zeros(dim, np.int64)}
    held["aggregate"] = session.protect(held["protect"])
    held["open"] = session.aggregate(session.protect(held["protect"]))
    session.close()
    with pytest.raises(OutOfOrder, match="closed"):
        getattr(session, stage)(held[stage])
    session.prepare()
    session.close()


def test_no_key_is_used_for_two_masks(small_pieces, monkeypatch):
    """Over sums, attempts and chunks, made ahead or not."""
    used = []
    key = masks.PairSecrets.key

    def noted(self, *use):
        used.append((self._rank, *use))
        return key(self, *use)

    monkeypatch.setattr(masks.PairSecrets, "key", noted)
    ids = [SumId(0), SumId(0, 1), SumId(1), SumId(2), SumId(2, 1), SumId(7)]
    rounds = [draw(2, 100, 20) for _ in ids]
    assert_sums(rounds, 20, ids=ids)
    assert len(used) == len(set(used)) == 2 * len(ids) * -(-100 // 16)
    assert {use[2] for use in used} == {"ring-mask"}
    assert {use[3:5] for use in used} == {(i.round_id, i.attempt) for i in ids}


def test_masks_made_ahead_are_thrown_away_on_a_new_attempt_and_sums_stay_right(small_pieces):
    ids = [SumId(0, 1), SumId(1), SumId(1, 1), SumId(2), SumId(5)]
    for dtype in (np.int32, np.int64):
        assert_sums([draw(3, 100, 20, dtype) for _ in ids], 20, ids=ids, precompute=True)


def test_masks_are_made_ahead_before_the_next_sum_and_not_within_it(monkeypatch):
    wrote, added = [], []
    monkeypatch.setattr(masks.PairMasks, "write", counting(wrote, masks.PairMasks.write))
    monkeypatch.setattr(masks.PairMasks, "add", counting(added, masks.PairMasks.add))

    def party(transport):
        session = open_ring_sum(transport, SumSettings(50, 32, run_id=RUN_ID, precompute=True))
        for _ in range(3):
            session.prepare()
            session.open(session.aggregate(session.protect(np.zeros(50, np.int32))))
        session.close()
        return threading.get_ident()

    parties = set(run_parties(2, party))
    assert not added
    assert 6 <= len(wrote) <= 8
    assert not parties & set(wrote), "masks are made in another thread"


def counting(threads, method):
    def counted(*given):
        threads.append(threading.get_ident())
        return method(*given)

    return counted


def test_ranks_may_differ_in_whether_they_prepare(small_pieces):
    vectors = draw(3, 100, 20)

    def party(transport):
        ahead = transport.rank == 1
        chosen = SumSettings(100, 20, run_id=RUN_ID, precompute=ahead)
        session = open_ring_sum(transport, chosen)
        return session.open(session.aggregate(session.protect(vectors[transport.rank]))).tolist()

    assert run_parties(3, party) == [centred_sum(vectors, 20)] * 3


def test_what_is_under_masks_shows_nothing_of_itself():
    session = alone(dim=3)
    protected = session.protect(np.array([411, 412, 413]))
    for text in (repr(protected), str(protected), repr(protected.source)):
        assert "41" not in text.replace(hex(id(protected)), "")


class _Done:
    def poll(self):
        return True

    def wait(self):
        """Nothing is under way."""


class Echo:
    """The transport of one rank whose peers are not there: they put in zeros."""

    def __init__(self, n_ranks):
        self.rank, self.n_ranks, self.meter = 0, n_ranks, Meter()
        keys = [X25519PrivateKey.generate() for _ in range(n_ranks - 1)]
        self.answers = [key.public_key().public_bytes_raw() for key in keys]

    def allgather(self, message):
        # Keys first; then they agree to whatever this rank says.
        answers, self.answers = self.answers, []
        return [message, *(answers or [message] * (self.n_ranks - 1))]

    def begin_scatter(self, _, inbox):
        for block in inbox.values():
            block[:] = 0
        return _Done()

    begin_gather = begin_scatter


@pytest.mark.parametrize("precompute", [False, True], ids=["at-once", "ahead"])
@pytest.mark.parametrize(
    ("bits", "dtype", "beyond_bytes"),
    [(32, np.int32, 1 << 19), (20, np.int32, 1 << 19), (64, np.int64, 1 << 19),
     # Chunks of half the width of the sum: two under way and one being made, with their inboxes.
     (32, np.int64, 20 << 20)],
)  # fmt: skip
def test_peak_memory_is_three_vectors(bits, dtype, beyond_bytes, precompute):
    """Of one rank of four: the input, the sum and, made ahead, the masks of the next one."""
    dim = 3_000_000
    tracemalloc.start()
    try:
        chosen = SumSettings(dim, bits, run_id=RUN_ID, precompute=precompute)
        session = open_ring_sum(Echo(4), chosen)
        levels = np.ones(dim, dtype)
        session.prepare()
        for _ in range(2):
            total = session.open(session.aggregate(session.protect(levels)))
            session.prepare()
            assert total.nbytes == levels.nbytes
            del total
        session.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * levels.nbytes + beyond_bytes
