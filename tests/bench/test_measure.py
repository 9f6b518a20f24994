import numpy as np
import pytest

import mpcfl.bench.measure as measure_module
from mpcfl.bench.measure import cell_levels, expected_sum, measure
from mpcfl.errors import ProtocolError
from mpcfl.net.memory import run_parties


class FakeSum:
    """A sum in the clear, wrong by ``error`` from the call ``wrong_from`` on."""

    def __init__(self, transport, settings, error, wrong_from):
        self.transport, self.settings = transport, settings
        self.error, self.wrong_from, self.calls = error, wrong_from, 0
        transport.allgather(b"key")

    def protect(self, levels):
        self.calls += 1
        return levels

    def aggregate(self, protected):
        messages = self.transport.allgather(protected.tobytes())
        return sum(np.frombuffer(message, protected.dtype) for message in messages)

    def open(self, aggregated):
        return aggregated + aggregated.dtype.type(
            self.error if self.calls >= self.wrong_from else 0
        )

    def close(self):
        pass


@pytest.fixture
def backend(monkeypatch):
    def use(error=0, wrong_from=1, wrong_rank=0):
        def factory(transport, settings):
            assert len(settings.run_id) == 32
            off = error if transport.rank == wrong_rank else 0
            return FakeSum(transport, settings, off, wrong_from)

        monkeypatch.setattr(measure_module, "load_backend", lambda name: factory)

    return use


def test_all_ranks_get_the_same_measurement(backend, cell):
    backend()
    results = run_parties(2, lambda transport: measure(cell(warmups=2), transport))
    assert results[0] == results[1]
    assert len(results[0].values) == 3
    assert len(results[0].warmups) == 2
    assert results[0].values[0].seconds > 0
    assert min(results[0].peak_rss_bytes) > 1 << 20


def test_bytes_are_booked_by_stage_without_barriers_checks_and_warmups(backend, cell):
    backend()
    measured = run_parties(2, lambda transport: measure(cell(), transport))[0]
    # Three values of ten 8-byte words to the one other rank; the fake key has 3 bytes.
    assert measured.bytes_sent == {
        "setup": (3, 3),
        "protect": (0, 0),
        "aggregate": (240, 240),
        "open": (0, 0),
    }
    assert measured.bytes_received == measured.bytes_sent
    assert measured.messages["aggregate"] == (3, 3)


def test_a_wrong_sum_stops_all_ranks_before_anything_is_timed(backend, cell):
    backend(error=1, wrong_rank=1)
    with pytest.raises(ProtocolError, match=r"at ranks \[1\]; nothing was timed"):
        run_parties(2, lambda transport: measure(cell(), transport))


def test_a_sum_that_turns_wrong_later_voids_the_cell(backend, cell):
    backend(error=1, wrong_from=4)
    with pytest.raises(ProtocolError, match="the cell is void"):
        run_parties(2, lambda transport: measure(cell(), transport))


def test_the_session_gets_the_neighbors_and_the_vectors_their_dtype(cell, parameters, monkeypatch):
    seen = []

    def factory(transport, settings):
        session = FakeSum(transport, settings, 0, 1)
        protect = session.protect
        session.protect = lambda v: (seen.append((settings.neighbors, v.dtype)), protect(v))[1]
        return session

    monkeypatch.setattr(measure_module, "load_backend", lambda name: factory)
    p = parameters("ring", parties=3, dtype="int32", neighbors=2, colluding=1)
    run_parties(3, lambda transport: measure(cell(parameters=p), transport))
    assert set(seen) == {(2, np.dtype(np.int32))}


@pytest.mark.parametrize("dim", [65_521, 65_522, 200_000])
def test_long_vectors_repeat_and_their_sum_is_still_exact(parameters, dim):
    p = parameters(parties=3, dim=dim, dtype="int32")
    vectors = [cell_levels(p, rank) for rank in range(3)]
    assert all((v.dtype, v.shape) == (np.dtype(np.int32), (dim,)) for v in vectors)
    assert (sum(v.astype(np.int64) for v in vectors) == expected_sum(p)).all()
    assert (vectors[0][65_521:] == vectors[0][: dim - 65_521]).all()


@pytest.mark.parametrize(("bits", "parties"), [(8, 128), (32, 2), (32, 5), (64, 3)])
def test_integers_fill_the_ring_and_their_sum_does_not_wrap(parameters, bits, parties):
    p = parameters(parties=parties, dim=4096, modulus_bits=bits)
    vectors = [cell_levels(p, rank) for rank in range(parties)]
    exact = sum(v.astype(object) for v in vectors)
    assert max(abs(int(x)) for x in exact) <= 1 << (bits - 1)
    assert exact.min() >= -(1 << (bits - 1))
    assert exact.max() < 1 << (bits - 1)
    assert (exact == expected_sum(p)).all()
    # The top bit that the sum leaves free is used: 4096 uniform values miss it with 2^-4096.
    headroom = (parties - 1).bit_length()
    assert max(int(v.max()) for v in vectors) >= (1 << (bits - 1 - headroom)) // 2


def test_integers_are_equal_for_all_backends_and_differ_by_rank(parameters):
    assert (cell_levels(parameters("plain"), 0) == cell_levels(parameters("phe"), 0)).all()
    assert (cell_levels(parameters(), 0) != cell_levels(parameters(), 1)).any()


def test_a_sum_in_another_dtype_is_a_wrong_one(backend, cell, monkeypatch):
    backend()
    monkeypatch.setattr(FakeSum, "open", lambda self, aggregated: aggregated.astype(np.int32))
    with pytest.raises(ProtocolError, match=r"at ranks \[0, 1\]; nothing was timed"):
        run_parties(2, lambda transport: measure(cell(), transport))
