"""The law of `SecureSum`, for every registered backend: equals `plain`, bit for bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcfl.config import Custody
from mpcfl.errors import OutOfOrder, WrapDetected
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.memory import run_parties
from mpcfl.secagg import custody
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.custody import assign_roles
from mpcfl.secagg.registry import backend_names, load_backend

# One entry per way to run a backend; a backend that is not here may not be registered.
CASES = {
    "plain": ("plain", Custody.HOLDER),
    "crypten": ("crypten", Custody.HOLDER),
    "crypten-stock": ("crypten-stock", Custody.HOLDER),
    "phe-holder": ("phe", Custody.HOLDER),
    "phe-clients": ("phe", Custody.CLIENTS),
}
MODULUS_BITS = (8, 16, 20, 32, 48, 64)
RUN_ID = "00" * 16

pytestmark = pytest.mark.usefixtures("small_keys")


@pytest.fixture
def small_keys(monkeypatch):
    monkeypatch.setattr(custody, "MIN_KEY_BITS", 512)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def ring_sum(vectors, bits):
    total = sum(np.asarray(v, dtype=object) for v in vectors)
    half = 1 << (bits - 1)
    return np.array([(int(x) + half) % (1 << bits) - half for x in total], dtype=np.int64)


def sums_of(case, rounds, bits):
    """Run one session over several sums; return the opened vectors by sum and data party."""
    backend, how = case
    n_data, dim = len(rounds[0]), len(rounds[0][0])
    n_ranks = n_data + (how is Custody.CLIENTS)
    data_ranks = assign_roles(how, n_ranks).data_ranks
    chosen = SumSettings(dim, bits, key_bits=512, custody=how, run_id=RUN_ID)

    def party(transport):
        session = load_backend(backend)(transport, chosen)
        opened = []
        for vectors in rounds:
            levels = vectors[transport.rank].copy() if transport.rank in data_ranks else None
            protected = session.protect(levels)
            opened.append(session.open(session.aggregate(protected)))
            if levels is not None:
                assert np.array_equal(levels, vectors[transport.rank]), "the input was changed"
        session.close()
        return opened

    results = run_parties(n_ranks, party)
    if how is Custody.CLIENTS:
        assert all(vector.shape == (0,) for vector in results[-1])
    return [[results[rank][k] for rank in data_ranks] for k in range(len(rounds))]


def assert_law(case, rounds, bits):
    for vectors, opened in zip(rounds, sums_of(case, rounds, bits), strict=True):
        expected = ring_sum(vectors, bits)
        for vector in opened:
            assert vector.dtype == np.int64
            assert vector.tolist() == expected.tolist()


def draw(n_parties, dim, bits):
    # The top b bits of a uniform word, as a signed number, are uniform over the whole ring.
    words = [SystemBits().words(dim).view(np.int64) for _ in range(n_parties)]
    return [word >> np.int64(64 - bits) for word in words]


def test_every_registered_backend_is_in_this_suite():
    assert {backend for backend, _ in CASES.values()} == set(backend_names())


@pytest.mark.parametrize("n_parties", [1, 2, 3, 5])
def test_sum_equals_the_ring_sum_for_any_number_of_parties(case, n_parties):
    assert_law(case, [draw(n_parties, 9, 32)], 32)


@pytest.mark.parametrize("bits", MODULUS_BITS)
def test_sum_is_exact_at_both_ends_and_at_the_wrap_boundary(case, bits):
    half = 1 << (bits - 1)
    low, high = -half, half - 1
    columns = [(low, low, low), (high, high, high), (low, high, 0), (high, 1, 0), (0, 0, 0)]
    vectors = [np.array(column, dtype=np.int64) for column in zip(*columns, strict=True)]
    assert_law(case, [vectors], bits)


@pytest.mark.parametrize("bits", [16, 20, 32, 48])
@pytest.mark.parametrize("side", [-1, 1])
def test_value_outside_the_range_is_refused_not_wrapped(case, bits, side):
    half = 1 << (bits - 1)
    bad = np.array([0, -half - 1 if side < 0 else half], dtype=np.int64)
    with pytest.raises(WrapDetected):
        sums_of(case, [[bad] * 3], bits)


def test_k_sums_on_one_session_equal_k_sessions(case):
    rounds = [draw(3, 5, 32) for _ in range(3)]
    assert_law(case, rounds, 32)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_tiny_vectors_work(case, dim):
    assert_law(case, [draw(3, dim, 32)], 32)


def test_vector_longer_than_a_chunk_works(case, monkeypatch):
    monkeypatch.setattr("mpcfl.secagg.phe_routes.CHUNK_VALUES", 4)
    monkeypatch.setattr("mpcfl.secagg.crypten_sum._CHUNK_WORDS", 4, raising=False)
    assert_law(case, [draw(3, 23, 32)], 32)


@pytest.mark.parametrize("bad", [np.zeros(3, np.int64), np.zeros((2, 1), np.int64)])
def test_wrong_shape_is_refused(case, bad):
    backend, how = case
    chosen = SumSettings(2, 32, key_bits=512, custody=how, run_id=RUN_ID)

    def party(transport):
        session = load_backend(backend)(transport, chosen)
        if transport.rank == 0:
            session.protect(bad)

    with pytest.raises(ValueError, match="shape"):
        run_parties(2, party)


def test_wrong_dtype_is_refused(case):
    backend, how = case
    chosen = SumSettings(2, 32, key_bits=512, custody=how, run_id=RUN_ID)

    def party(transport):
        session = load_backend(backend)(transport, chosen)
        if transport.rank == 0:
            session.protect(np.zeros(2, np.float64))

    with pytest.raises(TypeError, match="int64"):
        run_parties(2, party)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_vectors_sum_exactly(case, data):
    bits = data.draw(st.sampled_from(MODULUS_BITS))
    n_parties = data.draw(st.integers(1, 4))
    half = 1 << (bits - 1)
    row = st.lists(st.integers(-half, half - 1), min_size=3, max_size=3)
    vectors = [np.array(data.draw(row), dtype=np.int64) for _ in range(n_parties)]
    assert_law(case, [vectors], bits)


@pytest.mark.parametrize("name", ["crypten", "crypten-stock", "phe"])
def test_closed_session_refuses_the_next_sum(name):
    chosen = SumSettings(2, 32, key_bits=512, run_id=RUN_ID)

    def party(transport):
        session = load_backend(name)(transport, chosen)
        session.close()
        session.close()
        session.open(session.aggregate(session.protect(np.zeros(2, np.int64))))

    with pytest.raises(OutOfOrder):
        run_parties(3, party)
