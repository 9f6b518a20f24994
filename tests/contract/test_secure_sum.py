"""The law of `SecureSum`, for every registered backend: equals `plain`, bit for bit."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpcfl.config import Custody
from mpcfl.errors import CheckFailed, OutOfOrder, WrapDetected
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net.memory import run_parties
from mpcfl.secagg import custody
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.custody import assign_roles
from mpcfl.secagg.opening import open_sum
from mpcfl.secagg.registry import backend_names, load_backend

RUN_ID = "00" * 16


@dataclass(frozen=True)
class Case:
    """One way to run a backend."""

    backend: str
    custody: Custody = Custody.HOLDER
    precompute: bool = False
    checked: bool = False

    def open(self, transport, dim, bits):
        return open_sum(load_backend(self.backend), transport, self.settings(dim, bits))

    def settings(self, dim, bits):
        return SumSettings(
            dim, bits, key_bits=512, custody=self.custody, run_id=RUN_ID,
            precompute=self.precompute, checked=self.checked,
        )  # fmt: skip


# One entry per way to run a backend; a backend that is not here may not be registered.
CASES = {
    "plain": Case("plain"),
    "ring": Case("ring"),
    "ring-ahead": Case("ring", precompute=True),
    "crypten": Case("crypten"),
    "crypten-ahead": Case("crypten", precompute=True),
    "crypten-stock": Case("crypten-stock"),
    "phe-holder": Case("phe"),
    "phe-clients": Case("phe", Custody.CLIENTS),
    "paillier-holder": Case("paillier"),
    "paillier-holder-ahead": Case("paillier", precompute=True),
    "paillier-clients": Case("paillier", Custody.CLIENTS),
    "paillier-clients-ahead": Case("paillier", Custody.CLIENTS, precompute=True),
    "paillier-threshold": Case("paillier", Custody.THRESHOLD),
    "paillier-threshold-ahead": Case("paillier", Custody.THRESHOLD, precompute=True),
    # What a check adds is the same for all; these differ in parts, roles and memory.
    "ring-checked": Case("ring", precompute=True, checked=True),
    "crypten-stock-checked": Case("crypten-stock", checked=True),
    "paillier-clients-checked": Case("paillier", Custody.CLIENTS, checked=True),
}
# Those whose sums are told apart by a number that goes into keys.
MASKED = [case for case in CASES.values() if case.backend in ("ring", "crypten")]
MODULUS_BITS = (8, 16, 20, 32, 48, 64)

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


def leaves_the_ring(vectors, bits):
    total = sum(np.asarray(v, dtype=object) for v in vectors)
    return total.tolist() != ring_sum(vectors, bits).tolist()


def sums_of(case, rounds, bits, sum_ids=None):
    """Run one session over several sums; return the opened vectors by sum and data party."""
    n_data, dim = len(rounds[0]), len(rounds[0][0])
    n_ranks = n_data + (case.custody is Custody.CLIENTS)
    data_ranks = assign_roles(case.custody, n_ranks).data_ranks
    sum_ids = [None] * len(rounds) if sum_ids is None else sum_ids

    def party(transport):
        session = case.open(transport, dim, bits)
        opened = []
        for vectors, sum_id in zip(rounds, sum_ids, strict=True):
            levels = vectors[transport.rank] if transport.rank in data_ranks else None
            before = None if levels is None else levels.copy()
            protected = session.protect(levels, sum_id)
            opened.append(session.open(session.aggregate(protected)))
            session.prepare()
            if levels is not None:
                assert np.array_equal(levels, before), "the input was changed"
        session.close()
        return opened

    results = run_parties(n_ranks, party)
    if case.custody is Custody.CLIENTS:
        assert all(vector.shape == (0,) for vector in results[-1])
    return [[results[rank][k] for rank in data_ranks] for k in range(len(rounds))]


def assert_law(case, rounds, bits, sum_ids=None):
    if case.checked and any(leaves_the_ring(vectors, bits) for vectors in rounds):
        with pytest.raises(CheckFailed, match="left"):
            sums_of(case, rounds, bits, sum_ids)
        return
    for vectors, opened in zip(rounds, sums_of(case, rounds, bits, sum_ids), strict=True):
        expected = ring_sum(vectors, bits)
        for own, vector in zip(vectors, opened, strict=True):
            assert vector.dtype == own.dtype
            assert vector.tolist() == expected.tolist()


def draw(case, n_parties, dim, bits):
    # The top b bits of a uniform word, as a signed number, are uniform over the whole ring. Of a
    # checked sum, up to eight of them stay in it.
    spare = 3 if case.checked else 0
    words = [SystemBits().words(dim).view(np.int64) for _ in range(n_parties)]
    return [word >> np.int64(64 - bits + spare) for word in words]


def test_every_registered_backend_is_in_this_suite():
    assert {case.backend for case in CASES.values()} == set(backend_names())


@pytest.mark.parametrize("n_parties", [1, 2, 3, 5])
def test_sum_equals_the_ring_sum_for_any_number_of_parties(case, n_parties):
    assert_law(case, [draw(case, n_parties, 9, 32)], 32)


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
    rounds = [draw(case, 3, 5, 32) for _ in range(3)]
    assert_law(case, rounds, 32)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_tiny_vectors_work(case, dim):
    assert_law(case, [draw(case, 3, dim, 32)], 32)


def test_vector_longer_than_a_chunk_works(case, monkeypatch):
    monkeypatch.setattr("mpcfl.secagg.phe_sum.CHUNK_VALUES", 4)
    monkeypatch.setattr("mpcfl.secagg.paillier_ops.chunk_ciphertexts", lambda key_bits: 1)
    monkeypatch.setattr("mpcfl.net.reduction._CHUNK_BYTES", 64)
    monkeypatch.setattr("mpcfl.net.reduction._LEAST_SLICE_WORDS", 1)
    monkeypatch.setattr("mpcfl.secagg.masks._PIECE_BYTES", 24)
    assert_law(case, [draw(case, 3, 101, 32), draw(case, 3, 101, 32)], 32)


@pytest.mark.parametrize("bits", [8, 20, 32])
def test_int32_comes_back_as_int32_and_is_exact_at_both_ends(case, bits):
    half = 1 << (bits - 1)
    ends = np.array([-half, half - 1, 0, -1], dtype=np.int32)
    vectors = [ends, ends[::-1].copy(), *(v.astype(np.int32) for v in draw(case, 2, 4, bits))]
    assert_law(case, [vectors], bits)


def test_int32_that_could_not_hold_the_sum_is_refused(case):
    with pytest.raises(TypeError, match="needs int64"):
        sums_of(case, [[np.zeros(2, np.int32)] * 2], 33)


def test_dtypes_may_differ_between_parties(case):
    one, two, three = draw(case, 3, 9, 20)
    assert_law(case, [[one.astype(np.int32), two, three.astype(np.int32)]], 20)


LAYOUTS = {
    "every-second": lambda v: np.repeat(v, 2)[::2],
    "backwards": lambda v: v[::-1].copy()[::-1],
    "read-only": lambda v: np.frombuffer(v.tobytes(), dtype=v.dtype),
    "column": lambda v: np.stack([v, v], axis=1)[:, 0],
}


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_memory_of_any_layout_is_summed_and_not_changed(case, layout, dtype):
    assert_law(case, [[layout(v.astype(dtype)) for v in draw(case, 2, 11, 20)]], 20)


@pytest.mark.parametrize("bad", [np.zeros(3, np.int64), np.zeros((2, 1), np.int64)])
def test_wrong_shape_is_refused(case, bad):
    def party(transport):
        session = case.open(transport, 2, 32)
        if transport.rank == 0:
            session.protect(bad)

    with pytest.raises(ValueError, match="shape"):
        run_parties(2, party)


@pytest.mark.parametrize("dtype", ["f8", "f4", "u8", "u4", "i2", "?", "O", ">i8"])
def test_wrong_dtype_is_refused(case, dtype):
    def party(transport):
        session = case.open(transport, 2, 32)
        if transport.rank == 0:
            session.protect(np.zeros(2, dtype))

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


@pytest.mark.parametrize("name", ["ring", "crypten", "crypten-stock", "phe", "paillier"])
@pytest.mark.parametrize("checked", [False, True])
def test_closed_session_refuses_the_next_sum(name, checked):
    chosen = SumSettings(2, 32, key_bits=512, run_id=RUN_ID, checked=checked)

    def party(transport):
        session = open_sum(load_backend(name), transport, chosen)
        session.close()
        session.close()
        session.open(session.aggregate(session.protect(np.zeros(2, np.int64))))

    with pytest.raises(OutOfOrder):
        run_parties(3, party)


def test_sums_may_have_numbers_that_leave_gaps(case):
    ids = [SumId(0), SumId(0, 1), SumId(7), SumId(8, 2), None]
    assert_law(case, [draw(case, 3, 5, 32) for _ in ids], 32, ids)


@pytest.mark.parametrize(
    "case", MASKED, ids=lambda case: f"{case.backend}-{case.precompute}-{case.checked}"
)
@pytest.mark.parametrize("wanted", [SumId(2), SumId(2, 0), SumId(1, 9), SumId(0)])
def test_number_of_a_sum_never_repeats_or_goes_back(case, wanted):
    with pytest.raises(OutOfOrder, match="masks of its own"):
        sums_of(case, [draw(case, 2, 3, 32)] * 2, 32, [SumId(2), wanted])


@pytest.mark.parametrize(
    "case", MASKED, ids=lambda case: f"{case.backend}-{case.precompute}-{case.checked}"
)
def test_refused_vector_leaves_the_session_as_it_was(case):
    """Nothing of a sum is used up by a vector that is refused at every rank."""

    def party(transport):
        session = case.open(transport, 2, 20)
        for bad in (np.full(2, 1 << 19), np.zeros(3, np.int64), np.zeros(2)):
            with pytest.raises((WrapDetected, ValueError, TypeError)):
                session.protect(bad)
        return session.open(session.aggregate(session.protect(np.full(2, 5)))).tolist()

    assert run_parties(3, party) == [[15, 15]] * 3
