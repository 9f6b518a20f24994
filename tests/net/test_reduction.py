"""The chunked reduction: how a vector is cut, in which order chunks go, and what leaves a rank."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.errors import PartyLost
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net import memory, reduction
from mpcfl.net.codec import WordCodec
from mpcfl.net.memory import MemoryNetwork, MemoryTransport, run_parties
from mpcfl.net.reduction import Chunks, Reduction, allreduce


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(reduction, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(reduction, "_LEAST_SLICE_WORDS", 1)


@pytest.fixture
def tree(monkeypatch):
    monkeypatch.setattr(reduction, "_TREE_RANKS", 1)
    monkeypatch.setattr(reduction, "_TREE_SLICE_BYTES", 1 << 30)


class Vector:
    """A source and a sink that note what they were asked."""

    def __init__(self, words, chunks):
        self.words, self.chunks = words, chunks
        self.total = np.zeros_like(words)
        self.made, self.landed, self.finished, self.threads = [], [], [], set()

    def __call__(self, number, out):
        self.made.append(number)
        self.threads.add(threading.get_ident())
        out[:] = self.words[self.chunks.chunk(number)]

    def landing(self, where):
        self.landed.append(where)
        return self.total[where]

    def finish(self, where, total):
        assert np.shares_memory(total, self.total[where])
        self.finished.append(where)


def random_words(codec, dim):
    return SystemBits().words(dim + 1)[:dim].astype(codec.dtype)


def run_reduction(vectors, bits, *, threaded, kind=MemoryTransport):
    """Reduce one vector per rank; return the `Vector` and the transport of every rank."""
    codec, n_ranks = WordCodec(bits), len(vectors)
    chunks = Chunks.of(len(vectors[0]), n_ranks, codec.dtype.itemsize)

    def party(transport):
        transport.__class__ = kind
        both = Vector(vectors[transport.rank], chunks)
        both.party = threading.get_ident()
        with ThreadPoolExecutor(1) if threaded else nullcontext() as executor:
            Reduction(transport, codec, chunks, executor).run(both, both)
        return both, transport

    return run_parties(n_ranks, party)


def residues(vectors, bits):
    return [sum(map(int, column)) % (1 << bits) for column in zip(*vectors, strict=True)]


@given(
    dim=st.integers(0, 5000),
    n_ranks=st.integers(1, 70),
    itemsize=st.sampled_from([1, 2, 4, 8]),
)
def test_chunks_and_slices_cover_the_vector_once_and_in_order(dim, n_ranks, itemsize):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "_CHUNK_BYTES", 512)
        patch.setattr(reduction, "_LEAST_SLICE_WORDS", 8)
        chunks = Chunks.of(dim, n_ranks, itemsize)
    covered = []
    for number in range(len(chunks)):
        where = chunks.chunk(number)
        slices = chunks.slices(number)
        assert len(slices) == n_ranks
        assert where.stop > where.start
        for part in slices:
            covered += range(where.start + part.start, where.start + part.stop)
            # Only the last words of a vector may leave a group of eight unfinished.
            assert part.start % 8 == 0 or part.start == part.stop
            assert part.stop % 8 == 0 or where.start + part.stop == dim
        lengths = [part.stop - part.start for part in slices]
        assert lengths == sorted(lengths, reverse=True)
    assert covered == list(range(dim))


def test_chunks_of_a_long_vector_are_of_one_length_and_not_too_long():
    chunks = Chunks.of(10_000_000, 4, 4)
    lengths = [c.stop - c.start for c in map(chunks.chunk, range(len(chunks)))]
    assert len(set(lengths[:-1])) == 1
    assert 0 <= lengths[0] - lengths[-1] < 4 * 8 * len(chunks)
    assert 4 * max(lengths) <= 1.01 * (1 << 22)


@pytest.mark.parametrize("threaded", [False, True], ids=["here", "in-a-thread"])
@pytest.mark.parametrize("dim", [0, 1, 2, 63, 500])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_sum_is_exact_and_chunks_go_in_order(small_chunks, n_ranks, dim, threaded):
    for bits in (8, 13, 20, 32, 48, 64):
        codec = WordCodec(bits)
        vectors = [random_words(codec, dim) for _ in range(n_ranks)]
        for both, _ in run_reduction(vectors, bits, threaded=threaded):
            assert both.total.tolist() == residues(vectors, bits)
            assert both.made == list(range(len(both.chunks)))
            wanted = [both.chunks.chunk(number) for number in both.made]
            assert both.finished == both.landed == wanted


@pytest.mark.parametrize("threaded", [False, True], ids=["here", "in-a-thread"])
def test_chunks_are_made_in_the_thread_that_is_given(small_chunks, threaded):
    vectors = [random_words(WordCodec(32), 300) for _ in range(2)]
    for both, _ in run_reduction(vectors, 32, threaded=threaded):
        assert len(both.threads) == 1
        assert (both.party in both.threads) != threaded


@pytest.mark.parametrize("bits", range(8, 65))
def test_tree_gives_the_same_sum(tree, bits):
    codec = WordCodec(bits)
    for dim in (1, 37):
        vectors = [random_words(codec, dim) for _ in range(3)]
        for both, _ in run_reduction(vectors, bits, threaded=False):
            assert both.total.tolist() == residues(vectors, bits)


class Watched(MemoryTransport):
    """Keeps all words that leave in the clear, and counts the reductions left to MPI."""

    def begin_scatter(self, blocks, inbox):
        self.__dict__.setdefault("blocks", []).extend(block.tobytes() for block in blocks)
        return super().begin_scatter(blocks, inbox)

    def begin_gather(self, own, inbox):
        self.__dict__.setdefault("gathered", []).append(own.tobytes())
        return super().begin_gather(own, inbox)

    def begin_allreduce(self, words):
        self.__dict__.setdefault("reduced", []).append(words.copy())
        return super().begin_allreduce(words)


@pytest.mark.parametrize("bits", [9, 12, 20, 33])
def test_no_bit_above_b_leaves(tree, bits):
    """Carries beyond the ring would show how many summands were negative."""
    codec = WordCodec(bits)
    vectors = [random_words(codec, 40) for _ in range(3)]
    assert max(int(v.max()) for v in vectors) >> bits
    for _, transport in run_reduction(vectors, bits, threaded=False, kind=Watched):
        assert all(int(words.max()) < 1 << bits for words in transport.reduced)


@pytest.mark.parametrize("fewer", [1, 0])
def test_tree_is_taken_for_few_bytes_and_many_ranks_only(monkeypatch, fewer):
    monkeypatch.setattr(reduction, "_TREE_RANKS", 4)
    n_ranks, limit = 4 - fewer, reduction._TREE_SLICE_BYTES
    for slice_bytes, taken in ((limit - 1, not fewer), (limit, False)):
        vectors = [random_words(WordCodec(8), n_ranks * slice_bytes) for _ in range(n_ranks)]
        results = run_reduction(vectors, 8, threaded=False, kind=Watched)
        assert {hasattr(transport, "reduced") for _, transport in results} == {taken}


@pytest.mark.parametrize("bits", [8, 20, 32, 64])
def test_bytes_that_leave_are_the_least_possible(small_chunks, bits):
    n_ranks, dim = 4, 4 * 8 * 50
    vectors = [random_words(WordCodec(bits), dim) for _ in range(n_ranks)]
    for _, transport in run_reduction(vectors, bits, threaded=False):
        least = 2 * (n_ranks - 1) * dim * bits // (8 * n_ranks)
        assert transport.meter.bytes_sent == transport.meter.bytes_received == least


def test_allreduce_puts_the_sum_in_place(small_chunks):
    vectors = [SystemBits().words(77) for _ in range(3)]

    def party(transport):
        own = vectors[transport.rank].copy()
        total = allreduce(transport, own)
        assert total is own
        return total.tolist()

    assert run_parties(3, party) == [residues(vectors, 64)] * 3


@pytest.mark.parametrize("threaded", [False, True], ids=["here", "in-a-thread"])
def test_source_that_fails_is_an_error_at_its_rank_and_a_hang_nowhere(small_chunks, threaded):
    class Fails(Vector):
        def __call__(self, number, out):
            if number == 3:
                raise RuntimeError("no more words")
            super().__call__(number, out)

    codec = WordCodec(32)
    chunks = Chunks.of(300, 3, 4)
    assert len(chunks) > 6

    def party(transport):
        kind = Fails if transport.rank == 1 else Vector
        both = kind(np.zeros(300, np.uint32), chunks)
        with ThreadPoolExecutor(1) if threaded else nullcontext() as executor:
            Reduction(transport, codec, chunks, executor).run(both, both)

    with pytest.raises(RuntimeError, match="no more words"):
        run_parties(3, party)


class CountsPolls(MemoryTransport):
    polls = 0

    def _begin(self, *arguments):
        pending = super()._begin(*arguments)
        poll = pending.poll

        def counted():
            type(self).polls += 1
            return poll()

        pending.poll = counted
        return pending


def test_what_is_under_way_is_polled_while_a_chunk_is_made(small_chunks):
    """MPI moves large messages only within its calls."""

    class Slow(Vector):
        def __call__(self, number, out):
            time.sleep(0.002)
            super().__call__(number, out)

    codec, chunks = WordCodec(32), Chunks.of(200, 2, 4)
    CountsPolls.polls = 0

    def party(transport):
        transport.__class__ = CountsPolls
        both = Slow(np.zeros(200, np.uint32), chunks)
        with ThreadPoolExecutor(1) as executor:
            Reduction(transport, codec, chunks, executor).run(both, both)

    run_parties(2, party)
    assert CountsPolls.polls > 2 * len(chunks)


@given(dim=st.integers(0, 3000), n_ranks=st.integers(1, 9))
def test_part_is_what_a_rank_adds_up_of_a_chunk(dim, n_ranks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "_CHUNK_BYTES", 512)
        patch.setattr(reduction, "_LEAST_SLICE_WORDS", 8)
        chunks = Chunks.of(dim, n_ranks, 4)
    assert len(chunks.parts) == len(chunks) * n_ranks
    places = np.arange(dim)
    for number, part in enumerate(chunks.parts):
        chunk, rank = divmod(number, n_ranks)
        expected = places[chunks.chunk(chunk)][chunks.slices(chunk)[rank]]
        assert places[part].tolist() == expected.tolist()


class Interrupted(Exception):
    """What ends a reduction in the midst of a step."""


class InterruptedCodec(WordCodec):
    def reduce(self, words, out):
        out[::2] += 1
        raise Interrupted


class InterruptedSink(Vector):
    def finish(self, where, total):
        total[::2] += 1
        raise Interrupted


@pytest.mark.parametrize(
    ("codec", "kind"), [(InterruptedCodec(64), Vector), (WordCodec(64), InterruptedSink)]
)
def test_words_that_were_being_changed_are_not_taken_for_a_sum(codec, kind):
    chunks = Chunks.of(24, 1, 8)
    both = kind(random_words(codec, 24), chunks)
    alone = Reduction(MemoryTransport(MemoryNetwork(1), 0), codec, chunks)
    with pytest.raises(Interrupted):
        alone.run(both, both)
    assert alone.n_finished == 0
    assert alone.unfinished() == {}


@pytest.mark.parametrize("bits", [20, 32])
def test_sums_that_could_not_be_exchanged_are_known_where_they_were_added_up_only(bits):
    class NoGather(MemoryTransport):
        def begin_gather(self, own, inbox):
            raise PartyLost("no sum can leave")

    codec, chunks = WordCodec(bits), Chunks.of(90, 3, 4)
    vectors = [random_words(codec, 90) for _ in range(3)]

    def party(transport):
        transport.__class__ = NoGather
        both = Vector(vectors[transport.rank], chunks)
        broken = Reduction(transport, codec, chunks)
        with pytest.raises(PartyLost):
            broken.run(both, both)
        return broken.unfinished()

    for rank, known in enumerate(run_parties(3, party)):
        assert list(known) == [rank]
        assert known[rank].tolist() == residues(vectors, bits)[chunks.parts[rank]]


@pytest.mark.parametrize("bits", [20, 32])
def test_slice_that_has_come_from_all_is_known_though_nobody_waited_for_it(bits):
    """A rank may have to give up while the rest of a slice is already there."""
    everybody = threading.Barrier(3)

    class GivesUp(MemoryTransport):
        def begin_scatter(self, blocks, inbox):
            pending = super().begin_scatter(blocks, inbox)

            def wait():
                everybody.wait(10)
                raise PartyLost("somebody else is gone")

            pending.wait = wait
            return pending

    codec, chunks = WordCodec(bits), Chunks.of(90, 3, 4)
    vectors = [random_words(codec, 90) for _ in range(3)]

    def party(transport):
        transport.__class__ = GivesUp
        both = Vector(vectors[transport.rank], chunks)
        broken = Reduction(transport, codec, chunks)
        with pytest.raises(PartyLost):
            broken.run(both, both)
        return broken.unfinished()

    for rank, known in enumerate(run_parties(3, party)):
        assert list(known) == [rank]
        assert known[rank].tolist() == residues(vectors, bits)[chunks.parts[rank]]


def test_block_is_not_taken_for_that_of_an_earlier_exchange():
    network = MemoryNetwork(2, deadline_s=0.1)
    sender, receiver = MemoryTransport(network, 0), MemoryTransport(network, 1)
    first, second = np.zeros(4, np.uint8), np.zeros(4, np.uint8)
    before = receiver.begin_gather(first, {0: first})
    after = receiver.begin_gather(first.copy(), {0: second})
    assert before.arrived() == after.arrived() == frozenset()
    sender.begin_gather(np.full(4, 1, np.uint8), {1: np.empty(4, np.uint8)})
    # The later one is asked first, and what lies there is not its own.
    assert after.arrived() == frozenset()
    assert before.arrived() == {0}
    sender.begin_gather(np.full(4, 2, np.uint8), {1: np.empty(4, np.uint8)})
    assert after.arrived() == before.arrived() == {0}
    assert (first.tolist(), second.tolist()) == ([1] * 4, [2] * 4)
    assert receiver.meter.bytes_received == 8


def test_block_of_another_length_has_not_arrived():
    network = MemoryNetwork(2, deadline_s=0.1)
    pending = MemoryTransport(network, 1).begin_gather(
        np.zeros(3, np.uint8), {0: np.zeros(3, np.uint8)}
    )
    MemoryTransport(network, 0).begin_gather(np.zeros(2, np.uint8), {})
    network.put(0, 1, memory.Lane(memory._Kind.GATHER), b"12")
    assert pending.arrived() == frozenset()


# Rank 2 gives its block to rank 0 alone and dies; nobody else has anything of it.
ARRIVALS = """
import os, signal, sys, time
import numpy as np
from mpi4py import MPI
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport

transport = MpiTransport(MPI.COMM_WORLD, 20.0)
rank = transport.rank
for size in (100, 1_000_000):
    transport.allgather(b"")
    done = transport.begin_gather(
        np.full(size, rank + 1, np.uint8),
        {other: np.zeros(size, np.uint8) for other in range(4) if other != rank},
    )
    done.wait()
    assert done.arrived() == set(range(4)) - {rank}
if rank == 2:
    block = np.full(size, 3, np.uint8)
    transport.begin_scatter([block] + [block[:0]] * 3, {})
    time.sleep(1)
    MPI.COMM_WORLD.Improbe()
    os.kill(os.getpid(), signal.SIGKILL)
inbox = {other: np.zeros(size, np.uint8) for other in range(4) if other != rank}
pending = transport.begin_scatter([np.full(size, rank + 1, np.uint8)] * 4, inbox)
try:
    pending.wait()
except PartyLost:
    pass
arrived = pending.arrived()
assert arrived == ({0, 1, 2, 3} if rank == 0 else {0, 1, 3}) - {rank}, (rank, arrived)
for other in arrived:
    assert (inbox[other] == other + 1).all()
sys.stdout.write(f"rank {rank} is done\\n")
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.open_mpi
def test_blocks_that_came_over_mpi_before_a_rank_died_are_known(mpirun, tmp_path):
    script = tmp_path / "arrivals.py"
    script.write_text(ARRIVALS)
    done = mpirun(4, script, timeout_s=60)
    for rank in (0, 1, 3):
        assert f"rank {rank} is done" in done.stdout, done.stderr
