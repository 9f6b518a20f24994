import threading
from dataclasses import replace

import numpy as np
import pytest

import mpcfl.bench.measure as measure_module
from mpcfl.bench.integers import cell_levels, expected_sum
from mpcfl.bench.measure import measure
from mpcfl.bench.peers import PEERS
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
        error = self.error if self.calls >= self.wrong_from else 0
        if isinstance(error, float):
            return aggregated + error
        return aggregated + aggregated.dtype.type(error)

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


class WithAggregator(FakeSum):
    """The last rank adds; the others get the sum from it."""

    def protect(self, levels):
        if self.transport.rank == self.transport.n_ranks - 1:
            assert levels is None
            return np.empty(0, dtype=np.int64)
        return levels

    def open(self, aggregated):
        is_data = self.transport.rank < self.transport.n_ranks - 1
        return aggregated if is_data else np.empty(0, dtype=np.int64)

    def aggregate(self, protected):
        messages = self.transport.allgather(protected.tobytes())
        return sum(np.frombuffer(message, np.int64) for message in messages[:-1])


def test_an_aggregator_takes_part_without_data_and_is_measured(cell, parameters, monkeypatch):
    def factory(transport, settings):
        assert (settings.custody, settings.key_bits) == ("clients", 2048)
        return WithAggregator(transport, settings, 0, 1)

    monkeypatch.setattr(measure_module, "load_backend", lambda name: factory)
    clients = cell(parameters=parameters("paillier", key_bits=2048, custody="clients"))
    assert clients.n_ranks == 3
    measured = run_parties(3, lambda transport: measure(clients, transport))[0]
    assert len(measured.setup_s) == len(measured.values[0].total) == 3
    # Three values of ten 8-byte words, from each party to two others; nothing from the aggregator.
    assert measured.bytes_sent["aggregate"] == (480, 480, 0)
    assert measured.largest_error == 0


def test_an_aggregator_that_opens_something_is_wrong(cell, parameters, monkeypatch):
    monkeypatch.setattr(WithAggregator, "open", lambda self, aggregated: aggregated)
    monkeypatch.setattr(
        measure_module, "load_backend", lambda name: lambda t, s: WithAggregator(t, s, 0, 1)
    )
    clients = cell(parameters=parameters("paillier", key_bits=2048, custody="clients"))
    with pytest.raises(ProtocolError, match=r"at ranks \[2\]; nothing was timed"):
        run_parties(3, lambda transport: measure(clients, transport))


@pytest.fixture
def peer(monkeypatch):
    """A peer that may miss the sum by half for each party."""

    def use(error, wrong_from=1):
        entry = replace(
            PEERS["tenseal-ckks"],
            tolerance=0.5,
            opens=lambda transport, settings: FakeSum(transport, settings, error, wrong_from),
        )
        monkeypatch.setattr(measure_module, "PEERS", {"inexact": entry})

    return use


def test_what_an_inexact_peer_is_off_by_is_recorded(peer, cell):
    peer(error=-0.75)
    measured = run_parties(2, lambda transport: measure(cell("inexact"), transport))[0]
    assert measured.largest_error == 0.75


@pytest.mark.parametrize("error", [1.25, -1.25, float("nan"), float("inf")])
def test_an_inexact_peer_is_held_to_its_tolerance(peer, cell, error):
    peer(error)
    with pytest.raises(ProtocolError, match="nothing was timed"):
        run_parties(2, lambda transport: measure(cell("inexact"), transport))
    peer(error, wrong_from=4)
    with pytest.raises(ProtocolError, match="the cell is void"):
        run_parties(2, lambda transport: measure(cell("inexact"), transport))


def test_a_backend_that_is_off_by_one_where_float64_cannot_tell_is_wrong(backend, cell, parameters):
    backend(error=1)
    wide = cell(parameters=parameters(modulus_bits=64))
    with pytest.raises(ProtocolError, match="nothing was timed"):
        run_parties(2, lambda transport: measure(wide, transport))


def test_the_kernels_bytes_are_those_between_the_first_and_the_last_value(
    backend, cell, monkeypatch
):
    backend()
    readings = {}

    def read(interface):
        # Each rank is a thread here; its count grows by 1000 from one reading to the next.
        if not interface:
            return 0
        mine = threading.get_ident()
        readings[mine] = readings.get(mine, 0) + 1000
        return readings[mine]

    monkeypatch.setattr(measure_module, "transmitted_bytes", read)
    monkeypatch.setattr(
        measure_module, "transmitted_packets", lambda name: 7 * readings[threading.get_ident()]
    )
    hosted = cell(interface="mpcfl0", addresses=("a", "b"))
    measured = run_parties(2, lambda transport: measure(hosted, transport))[0]
    assert measured.interface_bytes == (1000, 1000)
    assert measured.interface_packets == (7000, 7000)
    assert set(readings.values()) == {2000}
    monkeypatch.setattr(measure_module, "transmitted_packets", lambda name: 0)
    in_memory = run_parties(2, lambda transport: measure(cell(), transport))[0]
    assert in_memory.interface_bytes == in_memory.interface_packets == ()


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
