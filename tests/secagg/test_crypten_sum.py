import numpy as np
import pytest

from mpcfl.errors import OutOfOrder
from mpcfl.net.memory import run_parties
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.crypten_sum import open_crypten_sum

DIM = 1000


def vector(rank, dtype=np.int64, dim=DIM):
    return ((np.arange(dim) * (rank + 3)) % 2001 - 1000).astype(dtype)


def total_of(n_ranks, **options):
    return sum(vector(rank, **options) for rank in range(n_ranks))


def sum_once(session, levels, sum_id=None):
    return session.open(session.aggregate(session.protect(levels, sum_id)))


def sums(n_ranks, count=1, dtype=np.int64, **settings):
    def party(transport):
        session = open_crypten_sum(transport, SumSettings(DIM, run_id="88" * 16, **settings))
        opened = []
        for _ in range(count):
            session.prepare()
            opened.append(sum_once(session, vector(transport.rank, dtype)))
        session.close()
        return opened

    return run_parties(n_ranks, party)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("precompute", [False, True])
def test_dtype_that_came_in_comes_out_prepared_or_not(dtype, precompute):
    for opened in sums(3, count=3, dtype=dtype, precompute=precompute):
        for one in opened:
            assert one.dtype == dtype
            assert np.array_equal(one, total_of(3))


@pytest.mark.parametrize(("neighbors", "n_streams"), [(2, 2), (4, 4), (6, 6), (None, 6)])
def test_sparse_graph_gives_the_same_sum_from_fewer_masks(neighbors, n_streams):
    def party(transport):
        settings = SumSettings(DIM, run_id="88" * 16, neighbors=neighbors)
        session = open_crypten_sum(transport, settings)
        return session._masks.pairs.n_peers, sum_once(session, vector(transport.rank))

    for n_peers, opened in run_parties(7, party):
        assert n_peers == n_streams
        assert np.array_equal(opened, total_of(7))


@pytest.mark.parametrize("dim", [0, 1, 100_000])
@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_any_length_in_any_number_of_chunks(monkeypatch, dim, n_ranks):
    monkeypatch.setattr("mpcfl.net.reduction._CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr("mpcfl.net.reduction._LEAST_SLICE_WORDS", 8)

    def party(transport):
        session = open_crypten_sum(transport, SumSettings(dim, run_id="88" * 16))
        levels = vector(transport.rank, dim=dim)
        levels.setflags(write=False)
        return len(session._masks.chunks), sum_once(session, levels)

    for n_chunks, opened in run_parties(n_ranks, party):
        assert n_chunks > 100 if dim > 1 else n_chunks == dim
        assert np.array_equal(opened, total_of(n_ranks, dim=dim))


def test_masks_that_were_prepared_for_another_sum_are_not_used():
    def party(transport):
        settings = SumSettings(DIM, run_id="88" * 16, precompute=transport.rank == 0)
        session = open_crypten_sum(transport, settings)
        own = vector(transport.rank)
        # One rank alone prepares, for the next sum; the ranks then agree on a later one.
        opened = [sum_once(session, own, SumId(r, a)) for r, a in [(0, 2), (1, 0), (1, 1), (7, 0)]]
        with pytest.raises(OutOfOrder):
            session.protect(own, SumId(7, 0))
        session.close()
        return opened

    for opened in run_parties(2, party):
        assert all(np.array_equal(one, total_of(2)) for one in opened)


def test_share_is_a_share_of_the_sum_and_tells_nothing_alone():
    def party(transport):
        session = open_crypten_sum(transport, SumSettings(DIM, 32, run_id="88" * 16))
        return session.protect(vector(transport.rank)).share.numpy().view(np.uint64)

    shares = np.array(run_parties(3, party))
    offset = np.uint64(3 << 31)
    assert np.array_equal((shares.sum(axis=0) - offset).view(np.int64), total_of(3))
    # The mean of 1,000 uniform words; 1e-9: 6.1 standard deviations of 1 / sqrt(12,000).
    for share in shares:
        assert abs(np.mean(share / 2.0**64) - 0.5) < 6.1 / np.sqrt(12 * DIM)


def test_values_that_would_not_fit_are_refused():
    def party(transport):
        session = open_crypten_sum(transport, SumSettings(DIM, 33, run_id="88" * 16))
        with pytest.raises(TypeError, match="needs int64"):
            session.protect(vector(transport.rank, np.int32))
        session.close()
        with pytest.raises(OutOfOrder, match="closed"):
            session.protect(vector(transport.rank))

    run_parties(2, party)
