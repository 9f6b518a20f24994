"""Masks that are made ahead: used once, for their own sum, and never noticed in the sum."""

import gc
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mpcfl
from mpcfl.errors import ProtocolError, WrapDetected
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.channel import PairSecrets, agree_pair_secrets
from mpcfl.net.memory import run_parties
from mpcfl.net.reduction import Chunks
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.masks import MaskedSource, MaskPreparation, PairMasks
from mpcfl.secagg.registry import load_backend

BACKENDS = ("crypten", "ring")
N_RANKS = 3
RUN_ID = "00" * 16


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def key_numbers(monkeypatch):
    """Return a list that grows by (round, attempt) with each mask key that any rank derives."""
    derived = []
    key = PairSecrets.key

    def watched(self, peer, purpose, *context):
        if purpose.endswith("-mask"):
            derived.append(context[:2])
        return key(self, peer, purpose, *context)

    monkeypatch.setattr(PairSecrets, "key", watched)
    return derived


@pytest.fixture
def short_chunks(monkeypatch):
    """Cut vectors into chunks of 8 words or so per rank, so that tests have many of them."""
    monkeypatch.setattr("mpcfl.net.reduction._CHUNK_BYTES", 64)
    monkeypatch.setattr("mpcfl.net.reduction._LEAST_SLICE_WORDS", 8)


def uniform(dim, bits, dtype):
    """Levels that are uniform over the ring."""
    return (SystemBits().words(dim).view(np.int64) >> np.int64(64 - bits)).astype(dtype)


def centred(vectors, bits):
    total = sum(vector.astype(object) for vector in vectors)
    half = 1 << (bits - 1)
    return [(int(value) + half) % (1 << bits) - half for value in total]


def mask_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("masks")]


@pytest.mark.parametrize("prepares", [False, True], ids=["at once", "prepared"])
@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(8, np.int32), (20, np.int32), (20, np.int64), (32, np.int32), (48, np.int64), (64, np.int64)],
)
@pytest.mark.usefixtures("short_chunks")
def test_sums_with_masks_made_ahead_equal_the_oracle(backend, bits, dtype, prepares):
    dim, n_sums = 101, 3
    levels = [[uniform(dim, bits, dtype) for _ in range(N_RANKS)] for _ in range(n_sums)]

    def party(transport):
        arguments = {"backend": backend, "modulus_bits": bits, "precompute": True}
        # Vectors of the whole ring wrap around.
        arguments["checked"] = False
        totals = []
        with mpcfl.open_secure_sum(comm=transport, dim=dim, **arguments) as secure:
            for vectors in levels:
                if prepares:
                    secure.prepare()
                totals.append(secure.sum(vectors[transport.rank]))
        return totals

    for totals in run_parties(N_RANKS, party):
        for vectors, total in zip(levels, totals, strict=True):
            assert total.dtype == dtype
            assert total.tolist() == centred(vectors, bits)


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.usefixtures("short_chunks")
def test_a_prepared_sum_derives_no_key_while_the_ranks_wait_for_it(
    backend, precompute, key_numbers, monkeypatch
):
    barrier = threading.Barrier(N_RANKS)
    write = PairMasks.write

    def slowly(self, sum_id, number, out):
        time.sleep(0.01)
        write(self, sum_id, number, out)

    monkeypatch.setattr(PairMasks, "write", slowly)

    def party(transport):
        arguments = {"backend": backend, "precompute": precompute, "checked": False}
        late = []
        with mpcfl.open_secure_sum(comm=transport, dim=70, **arguments) as secure:
            for number in range(3):
                secure.prepare()
                barrier.wait(10)
                before = key_numbers.count((number, 0))
                barrier.wait(10)
                secure.sum(np.ones(70, np.int32))
                barrier.wait(10)
                late.append(key_numbers.count((number, 0)) - before)
        return late

    late = run_parties(N_RANKS, party)[0]
    assert (late == [0, 0, 0]) == precompute
    # Each of the pair derives each key once, at whatever time.
    whole = Chunks.of(70, N_RANKS, 8 if backend == "crypten" else 4)
    assert key_numbers.count((1, 0)) == N_RANKS * (N_RANKS - 1) * len(whole)


def test_prepared_masks_are_handed_over_once():
    def party(transport):
        masks = PairMasks(transport.rank, agree_pair_secrets(transport, RUN_ID), "ring-mask")
        with ThreadPoolExecutor(1) as executor:
            preparation = MaskPreparation(masks, Chunks.of(9, 2, 4), executor)
            preparation.start(SumId(3), np.dtype(np.uint32))
            taken = [preparation.take(SumId(3)) for _ in range(2)]
            preparation.start(SumId(4), np.dtype(np.uint32))
            taken += [preparation.take(SumId(k)) for k in (5, 4)]
        return [words is None for words in taken]

    assert run_parties(2, party) == [[False, True, True, True]] * 2


def test_ranks_may_choose_for_themselves(backend):
    def party(transport):
        arguments = {"backend": backend, "precompute": transport.rank == 1}
        with mpcfl.open_secure_sum(comm=transport, dim=4, **arguments) as secure:
            secure.prepare()
            return [secure.sum(np.arange(4)).tolist() for _ in range(3)]

    assert run_parties(N_RANKS, party) == [[[0, 3, 6, 9]] * 3] * N_RANKS


@pytest.mark.usefixtures("short_chunks")
def test_a_new_attempt_throws_away_what_was_made_for_the_first(backend, monkeypatch):
    used = []
    original = MaskedSource.__init__

    def watched(self, levels, sum_id, masks, chunks, prepared=None):
        used.append((sum_id, prepared is not None))
        original(self, levels, sum_id, masks, chunks, prepared)

    monkeypatch.setattr(MaskedSource, "__init__", watched)
    settings = SumSettings(40, run_id=RUN_ID, precompute=True)

    def party(transport):
        session = load_backend(backend)(transport, settings)
        totals = []
        for sum_id in (SumId(0), SumId(1, 1), SumId(2)):
            session.prepare()
            protected = session.protect(np.full(40, transport.rank), sum_id)
            totals.append(session.open(session.aggregate(protected)).tolist())
        session.close()
        return totals

    assert run_parties(N_RANKS, party) == [[[3] * 40] * 3] * N_RANKS
    # What was prepared for round 1, attempt 0 served nobody, least of all attempt 1.
    expected = [(SumId(0), True), (SumId(1, 1), False), (SumId(2), True)]
    assert sorted(used) == sorted(expected * N_RANKS)


def test_two_attempts_at_one_round_have_nothing_in_common(backend):
    """Zeros under masks are the masks: 64 words of 64 bits are never alike by chance."""
    settings = SumSettings(64, 64, run_id=RUN_ID)

    def party(transport):
        session = load_backend(backend)(transport, settings)
        masks = []
        for attempt in range(2):
            words = np.empty(64, np.uint64)
            session._masks.pairs.write(SumId(5, attempt), 0, words)
            masks.append(words)
        session.close()
        return masks

    for first, second in run_parties(N_RANKS, party):
        assert not np.any(first == second)


@pytest.mark.usefixtures("short_chunks")
def test_a_refused_vector_spends_the_masks_and_the_next_sum_is_right(backend, key_numbers):
    def party(transport):
        arguments = {"backend": backend, "modulus_bits": 20, "precompute": True, "checked": False}
        with mpcfl.open_secure_sum(comm=transport, dim=50, **arguments) as secure:
            totals = []
            for number in range(5):
                secure.prepare()
                is_bad = number in {0, 2} and transport.rank == 1
                levels = np.full(50, 1 << 19 if is_bad else number, np.int32)
                if number in {0, 2}:
                    with pytest.raises(WrapDetected if is_bad else ProtocolError):
                        secure.sum(levels)
                    continue
                totals.append(secure.sum(levels).tolist())
        return totals

    expected = [[N_RANKS * number] * 50 for number in (1, 3, 4)]
    assert run_parties(N_RANKS, party) == [expected] * N_RANKS
    # One key per ordered pair and chunk: no sum went under masks that another one had used.
    chunks = len(Chunks.of(50, N_RANKS, 8 if backend == "crypten" else 4))
    assert key_numbers.count((1, 0)) == N_RANKS * (N_RANKS - 1) * chunks


def test_what_fails_in_the_background_reaches_every_rank_with_the_next_sum(backend, monkeypatch):
    write = PairMasks.write

    def fails(self, sum_id, number, out):
        if sum_id == SumId(1) and self._rank == 2:
            raise MemoryError
        write(self, sum_id, number, out)

    monkeypatch.setattr(PairMasks, "write", fails)

    def party(transport):
        arguments = {"backend": backend, "precompute": True}
        with mpcfl.open_secure_sum(comm=transport, dim=4, **arguments) as secure:
            totals = [secure.sum(np.arange(4))]
            secure.prepare()
            with pytest.raises(MemoryError if transport.rank == 2 else ProtocolError):
                secure.sum(np.arange(4))
            return [*totals, secure.sum(np.arange(4)), secure.sum(np.arange(4))]

    for totals in run_parties(N_RANKS, party, deadline_s=10):
        assert [total.tolist() for total in totals] == [[0, 3, 6, 9]] * 3


@pytest.mark.usefixtures("short_chunks")
def test_closing_while_masks_are_made_neither_waits_for_all_nor_leaves_a_thread(
    backend, monkeypatch
):
    write = PairMasks.write
    slow_s = 0.05

    def slowly(self, sum_id, number, out):
        time.sleep(slow_s)
        write(self, sum_id, number, out)

    monkeypatch.setattr(PairMasks, "write", slowly)
    dim = 4000

    def party(transport):
        secure = mpcfl.open_secure_sum(comm=transport, backend=backend, dim=dim, precompute=True)
        start = time.monotonic()
        secure.close()
        return time.monotonic() - start

    took_s = max(run_parties(2, party))
    # Of some hundred chunks, one or two are finished.
    assert len(Chunks.of(dim, 2, 4)) > 100
    assert took_s < 20 * slow_s
    assert mask_threads() == []


def test_no_more_than_one_vector_is_held_between_sums(backend):
    """The masks of one sum: 4 bytes per word for ring at 32 bits, 8 for CrypTen's shares."""
    dim = 1 << 18
    vector_bytes = dim * (8 if backend == "crypten" else 4)
    barrier = threading.Barrier(2)
    held = []

    def party(transport):
        levels = np.ones(dim, np.int32)
        arguments = {"backend": backend, "precompute": True}
        with mpcfl.open_secure_sum(comm=transport, dim=dim, **arguments) as secure:
            for _ in range(3):
                secure.sum(levels)
                secure.prepare()
                barrier.wait(10)
                if transport.rank == 0:
                    gc.collect()
                    held.append(tracemalloc.get_traced_memory()[0] - 2 * levels.nbytes)
                barrier.wait(10)

    # Modules, and the libraries of the backend, are loaded before anything is counted.
    run_parties(2, lambda comm: mpcfl.secure_sum(np.ones(1, int), comm=comm, backend=backend))
    tracemalloc.start()
    try:
        run_parties(2, party)
    finally:
        tracemalloc.stop()
    # Two ranks, one vector each, and a twentieth for everything else.
    assert all(1.9 * vector_bytes < count < 2.1 * vector_bytes for count in held), held
