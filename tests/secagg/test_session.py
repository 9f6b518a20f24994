import threading
import time

import numpy as np
import pytest

import mpcfl
from mpcfl.config import parse_job
from mpcfl.errors import (
    BackendUnavailable,
    CheckFailed,
    ConfigError,
    MpcflError,
    OutOfOrder,
    PartyLost,
    PlanError,
    ProtocolError,
    TranscriptMismatch,
    WrapDetected,
)
from mpcfl.net.memory import run_parties
from mpcfl.secagg.base import SumId
from mpcfl.secagg.opening import backend_of
from mpcfl.secagg.options import _SUM_OPTIONS, compare
from mpcfl.secagg.registry import backend_names


def errors_of(n_ranks, party):
    """Return what each rank raised; a rank that hangs shows as PartyLost."""

    def caught(transport):
        try:
            party(transport)
        except (MpcflError, TypeError, ValueError) as error:
            return error
        return None

    return run_parties(n_ranks, caught, deadline_s=5)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("backend", ["plain", "crypten", "crypten-stock", "ring"])
def test_one_shot_sum_gives_the_same_dtype_back(backend, dtype):
    def party(transport):
        levels = np.array([transport.rank, -5, 2**31 - 1], dtype=dtype)
        return mpcfl.secure_sum(levels, comm=transport, backend=backend, checked=False)

    for total in run_parties(3, party):
        assert total.dtype == dtype
        assert total.tolist() == [3, -15, 2**31 - 3]


@pytest.mark.parametrize("backend", ["plain", "crypten", "crypten-stock", "ring"])
def test_a_sum_that_leaves_the_ring_is_an_error_at_every_rank_and_ends_the_session(backend):
    def party(transport):
        secure = mpcfl.open_secure_sum(comm=transport, backend=backend, dim=2, modulus_bits=8)
        highest = secure.sum(np.array([63, -64]))
        with pytest.raises(CheckFailed, match=r"left \[-2\^7, 2\^7\) and needs more modulus_bits"):
            secure.sum(np.array([64, 0]))
        with pytest.raises(OutOfOrder):
            secure.sum(np.array([0, 0]))
        secure.close()
        return highest.tolist()

    assert run_parties(2, party) == [[126, -128]] * 2


def test_a_session_is_checked_unless_told_otherwise():
    def party(transport):
        kinds = []
        for options in ({}, {"checked": True}, {"checked": False}):
            with mpcfl.open_secure_sum(comm=transport, backend="ring", dim=2, **options) as secure:
                kinds.append(type(secure._backend).__name__)
        return kinds

    assert run_parties(2, party) == [["CheckedSum", "CheckedSum", "RingSum"]] * 2


def test_a_failed_check_reaches_the_caller_at_every_rank_and_ends_the_session():
    def party(transport):
        secure = mpcfl.open_secure_sum(comm=transport, backend="ring", dim=9)
        backend = backend_of(secure._backend)
        original = backend.open

        def changed(aggregated):
            total = original(aggregated)
            total[4] ^= transport.rank == 1
            return total

        assert secure.sum(np.arange(9)).tolist() == [3 * k for k in range(9)]
        backend.open = changed
        with pytest.raises(CheckFailed, match="round 1, attempt 0"):
            secure.sum(np.arange(9))
        backend.open = original
        with pytest.raises(OutOfOrder):
            secure.sum(np.arange(9))
        secure.close()

    run_parties(3, party)


def test_default_backend_is_crypten_and_session_counts_bytes_and_seconds():
    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend="crypten", dim=100) as secure:
            at_start = secure.bytes_sent
            secure.sum(np.ones(100, np.int64))
            after_one = secure.bytes_sent
            secure.sum(np.ones(100, np.int64))
            return at_start, after_one, secure.bytes_sent, secure.bytes_received, secure.seconds

    for start, one, two, received, seconds in run_parties(2, party):
        assert 0 < start < one
        assert one - start == two - one >= 800
        assert received == two
        assert set(seconds) == {"protect", "agree", "aggregate", "open"}


@pytest.mark.parametrize("backend", ["ring", "plain"])
def test_waiting_for_a_late_rank_does_not_count_as_protecting(backend):
    late_s = 0.3

    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend=backend, dim=3) as secure:
            if transport.rank == 1:
                time.sleep(late_s)
            secure.sum(np.ones(3, np.int32))
            return secure.seconds

    waited = run_parties(2, party)[0]
    assert waited["agree"] > late_s / 2
    assert waited["protect"] < late_s / 2


@pytest.mark.parametrize("backend", ["ring", "crypten"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_read_only_and_non_contiguous_input_is_summed_and_not_changed(backend, dtype):
    def party(transport):
        grid = np.arange(12, dtype=dtype).reshape(6, 2)
        grid.flags.writeable = False
        total = mpcfl.secure_sum(grid[:, 1], comm=transport, backend=backend)
        assert np.array_equal(grid, np.arange(12).reshape(6, 2))
        total += 1  # the result is the caller's own
        return total - 1

    assert run_parties(2, party)[0].tolist() == [2, 6, 10, 14, 18, 22]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_vector_goes_to_the_backend_as_it_is(dtype):
    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend="ring", dim=4) as secure:
            seen, protect = [], secure._backend.protect
            secure._backend.protect = lambda *given: seen.append(given) or protect(*given)
            levels = np.arange(4, dtype=dtype)
            secure.sum(levels)
            secure.sum(levels)
            assert all(given[0] is levels for given in seen)
            return [given[1] for given in seen]

    assert run_parties(2, party) == [[SumId(0), SumId(1)]] * 2


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("backend", ["ring", "crypten"])
def test_one_rank_only_and_tiny_vectors_work(backend, dim, n_ranks):
    def party(transport):
        arguments = {"backend": backend, "modulus_bits": 20, "precompute": True}
        with mpcfl.open_secure_sum(comm=transport, dim=dim, **arguments) as secure:
            secure.prepare()
            return [secure.sum(np.full(dim, -3, np.int32)) for _ in range(2)]

    for totals in run_parties(n_ranks, party):
        for total in totals:
            assert total.dtype == np.int32
            assert total.tolist() == [-3 * n_ranks] * dim


def test_dtypes_may_differ_between_ranks():
    def party(transport):
        dtype = np.int32 if transport.rank else np.int64
        return mpcfl.secure_sum(np.array([-7], dtype), comm=transport, backend="plain")

    totals = run_parties(2, party)
    assert [total.dtype for total in totals] == [np.int64, np.int32]
    assert [total.tolist() for total in totals] == [[-14], [-14]]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ([1, 2], TypeError),
        (np.ma.masked_array(np.zeros(2, np.int64)), TypeError),
        (np.zeros(2), TypeError),
        (np.zeros(2, ">i8"), TypeError),
        (np.zeros(3, np.int64), ValueError),
        (np.zeros((1, 2), np.int64), ValueError),
        (np.array([0, 2**31]), WrapDetected),
    ],
    ids=repr,
)
@pytest.mark.parametrize("backend", ["plain", "crypten", "crypten-stock", "ring"])
def test_bad_vector_at_one_rank_is_an_error_at_every_rank_and_the_session_lives_on(
    backend, bad, error
):
    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend=backend, dim=2) as secure:
            own = bad if transport.rank == 1 else np.zeros(2, np.int64)
            kinds = {1: error}
            with pytest.raises(kinds.get(transport.rank, ProtocolError)):
                secure.sum(own)
            return secure.sum(np.array([1, -1]))

    assert [total.tolist() for total in run_parties(3, party)] == [[3, -3]] * 3


def test_a_vector_that_a_backend_which_talks_early_refuses_is_refused_at_every_rank(small_keys):
    """`phe` keeps the ranks in step while it protects, so nothing may be refused there."""

    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend="phe", dim=2, key_bits=2048) as secure:
            with pytest.raises(WrapDetected if transport.rank == 1 else ProtocolError):
                secure.sum(np.array([1, 2**31 if transport.rank == 1 else 1]))
            return secure.sum(np.array([1, -1]))

    assert [total.tolist() for total in run_parties(2, party)] == [[2, -2]] * 2


@pytest.mark.parametrize("failure", [MemoryError, RuntimeError, KeyError])
def test_whatever_fails_while_protecting_reaches_every_rank(failure):
    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend="ring", dim=2) as secure:
            protect = secure._backend.protect

            def fails(*_):
                raise failure

            if transport.rank == 1:
                secure._backend.protect = fails
            with pytest.raises(failure if transport.rank == 1 else ProtocolError):
                secure.sum(np.zeros(2, np.int64))
            secure._backend.protect = protect
            return secure.sum(np.array([1, -1]))

    assert [total.tolist() for total in run_parties(3, party)] == [[3, -3]] * 3


@pytest.mark.parametrize("backend", ["plain", "crypten", "ring"])
def test_int32_is_refused_above_32_bits(backend):
    def party(transport):
        levels = np.zeros(2, np.int32)
        mpcfl.secure_sum(levels, comm=transport, backend=backend, modulus_bits=33)

    with pytest.raises(TypeError, match="int64"):
        run_parties(2, party)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("dim", (4, 5)),
        ("modulus_bits", (32, 33)),
        ("key_bits", (2048, 3072)),
        ("checked", (True, False)),
    ],
)
def test_settings_that_differ_are_named_with_their_rank_at_every_rank(key, values):
    def party(transport):
        arguments = {"dim": 4, key: values[transport.rank == 2]}
        mpcfl.open_secure_sum(comm=transport, backend="plain", **arguments)

    for error in errors_of(3, party):
        assert isinstance(error, TranscriptMismatch)
        assert f"rank 2 wants {key}={values[1]}, rank 0 wants {key}={values[0]}" in str(error)


def test_backends_that_differ_are_refused_at_every_rank():
    def party(transport):
        backend = "plain" if transport.rank else "crypten"
        mpcfl.open_secure_sum(comm=transport, backend=backend, dim=3)

    assert [type(error) for error in errors_of(2, party)] == [TranscriptMismatch] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"dim": -1}, ConfigError, "dim"),
        ({"dim": 2.0}, TypeError, "integer"),
        ({"modulus_bits": 7}, ConfigError, "modulus_bits"),
        ({"modulus_bits": 65}, ConfigError, "modulus_bits"),
        ({"key_bits": 1024}, ConfigError, "key_bits"),
        ({"custody": "clients"}, ConfigError, "every rank brings data"),
        ({"custody": "nobody"}, ConfigError, "custody"),
        ({"checked": 1}, ConfigError, "checked = 1 is neither True nor False"),
        ({"checked": "yes"}, ConfigError, "checked = 'yes'"),
        ({"precompute": 1}, ConfigError, "precompute = 1"),
        ({"neighbors": "few"}, ConfigError, 'neither "all" nor "auto"'),
        ({"neighbors": 1}, ConfigError, "an even number from 2 on"),
        ({"neighbors": 2.0}, ConfigError, "an even number from 2 on"),
        ({"neighbors": True}, ConfigError, "an even number from 2 on"),
        ({"neighbors": "auto", "colluding": 1}, ConfigError, 'backend "plain" has no masks'),
        ({"neighbors": "auto", "backend": "ring"}, ConfigError, "needs colluding"),
        ({"neighbors": 2, "backend": "ring", "colluding": 0}, ConfigError, "at least 1 colludes"),
        ({"neighbors": "all", "colluding": 1}, ConfigError, "leave it out"),
        ({"max_dropout": 0}, ConfigError, "leave it out"),
        ({"deadline_s": 0}, ConfigError, "deadline_s = 0"),
        ({"deadline_s": "9"}, ConfigError, "deadline_s"),
        ({"deadline_s": True}, ConfigError, "deadline_s"),
        ({"deadline_s": float("nan")}, ConfigError, "deadline_s"),
        ({"deadline_s": float("inf")}, ConfigError, "deadline_s"),
        ({"key_bit": 2048}, ConfigError, "unknown option key_bit"),
        ({"backend": "plane"}, BackendUnavailable, "did you mean 'plain'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_option_at_one_rank_is_an_error_at_every_rank(arguments, error, text):
    def party(transport):
        extra = arguments if transport.rank == 0 else {}
        chosen = {"backend": "plain", "dim": 2} | extra
        mpcfl.open_secure_sum(comm=transport, **chosen)

    here, there = errors_of(2, party)
    assert type(here) is error
    assert text in str(here)
    assert isinstance(there, ProtocolError)
    assert "rank 0 refused" in str(there)


def test_neighbors_that_are_not_safe_are_refused_at_every_rank():
    def party(transport):
        extra = {"neighbors": 2, "colluding": 3} if transport.rank == 0 else {}
        mpcfl.open_secure_sum(comm=transport, backend="ring", dim=2, **extra)

    here, *there = errors_of(8, party)
    assert isinstance(here, PlanError)
    assert "is not safe" in str(here)
    assert all(isinstance(error, ProtocolError) for error in there)


def test_neighbors_that_differ_are_named_at_every_rank():
    def party(transport):
        extra = {} if transport.rank else {"neighbors": np.int64(4), "colluding": 3}
        mpcfl.open_secure_sum(comm=transport, backend="ring", dim=2, **extra)

    for error in errors_of(8, party):
        assert isinstance(error, TranscriptMismatch)
        assert "rank 1 wants neighbors=all, rank 0 wants neighbors=4" in str(error)


@pytest.mark.parametrize("backend", ["ring", "crypten"])
@pytest.mark.parametrize(("neighbors", "k"), [("auto", 2), (4, 4), (7, 7), (100, 7), ("all", 7)])
def test_each_rank_shares_masks_with_k_others_and_the_sum_is_the_same(backend, neighbors, k):
    # One colluder takes one of two neighbors on the circle at most, and the other one is left.
    threat = {} if neighbors == "all" else {"colluding": 1}

    def party(transport):
        arguments = {"backend": backend, "dim": 5, "neighbors": neighbors} | threat
        with mpcfl.open_secure_sum(comm=transport, **arguments) as secure:
            total = secure.sum(np.arange(5, dtype=np.int32) - transport.rank)
            return total.tolist(), backend_of(secure._backend)._masks.pairs.n_peers

    expected = [8 * value - 28 for value in range(5)]
    assert run_parties(8, party) == [(expected, k)] * 8


def test_a_session_takes_neighbors_where_a_job_does():
    for backend in backend_names():
        document = {
            "task": "toy",
            "parties": {"count": 3},
            "privacy": {"unit": "none"},
            "training": {"rounds": 1},
            "aggregation": {"backend": backend, "neighbors": "auto"},
        }

        def in_session(transport, backend=backend):
            options = {"neighbors": "auto", "colluding": 1, "key_bits": 2048}
            mpcfl.secure_sum(np.ones(1, np.int64), comm=transport, backend=backend, **options)

        def is_refused(call):
            try:
                call()
            except ConfigError as error:
                return "neighbors" in str(error)
            return False

        asked = is_refused(lambda: run_parties(3, in_session))
        assert is_refused(lambda: parse_job(document, "test")) == asked, backend  # noqa: B023


@pytest.mark.parametrize("backend", ["plain", "crypten-stock"])
def test_precompute_has_no_effect_where_there_is_nothing_to_make_ahead(backend):
    def party(transport):
        arguments = {"backend": backend, "precompute": True}
        with mpcfl.open_secure_sum(comm=transport, dim=2, **arguments) as secure:
            secure.prepare()
            return secure.sum(np.array([1, -1])).tolist()

    assert run_parties(2, party) == [[2, -2]] * 2


def test_options_that_say_off_are_accepted():
    def party(transport):
        options = {"checked": False, "precompute": False, "custody": "holder", "deadline_s": 9}
        options |= {"neighbors": "all"}
        return mpcfl.secure_sum(np.ones(1, np.int64), comm=transport, backend="plain", **options)

    assert run_parties(1, party)[0].tolist() == [1]


@pytest.mark.parametrize("comm", [None, 3, object()], ids=["none", "number", "object"])
def test_comm_that_is_neither_mpi_nor_transport_is_refused(comm):
    with pytest.raises(TypeError, match="comm"):
        mpcfl.open_secure_sum(comm=comm, backend="plain", dim=1)


def test_scalar_or_list_is_refused_by_the_one_shot_sum():
    for bad in ([1, 2], np.int64(3), np.zeros((1, 1), np.int64)):
        error = errors_of(2, lambda t, bad=bad: mpcfl.secure_sum(bad, comm=t))[0]
        assert isinstance(error, TypeError)


def test_closed_session_refuses_another_sum():
    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend="plain", dim=1) as secure:
            pass
        secure.close()
        with pytest.raises(OutOfOrder):
            secure.prepare()
        secure.sum(np.zeros(1, np.int64))

    with pytest.raises(OutOfOrder):
        run_parties(2, party)


def test_session_that_broke_off_refuses_another_sum():
    def party(transport):
        secure = mpcfl.open_secure_sum(comm=transport, backend="plain", dim=1)

        def lost(_):
            raise PartyLost("a party is gone")

        secure._backend.aggregate = lost
        with pytest.raises(PartyLost):
            secure.sum(np.zeros(1, np.int64))
        with pytest.raises(OutOfOrder):
            secure.sum(np.zeros(1, np.int64))

    run_parties(2, party)


@pytest.mark.parametrize("vector", [np.ones(1, np.int64), None], ids=["ready", "refused"])
def test_rank_that_waited_in_vain_never_pairs_its_next_sum_with_an_earlier_one(vector):
    gave_up = threading.Event()

    def party(transport):
        secure = mpcfl.open_secure_sum(comm=transport, backend="plain", dim=1)
        if transport.rank == 1:
            gave_up.wait(20)
            with pytest.raises((PartyLost, ProtocolError)):
                secure.sum(np.array([10]))
            return
        with pytest.raises(PartyLost):
            secure.sum(vector)
        gave_up.set()
        with pytest.raises(OutOfOrder):
            secure.sum(np.array([100]))

    run_parties(2, party, deadline_s=1)


def test_ranks_at_different_sums_are_told_so_and_the_session_ends():
    def party(transport):
        secure = mpcfl.open_secure_sum(comm=transport, backend="plain", dim=1)
        secure._number += transport.rank
        with pytest.raises(ProtocolError, match="is not at sum"):
            secure.sum(np.zeros(1, np.int64))
        with pytest.raises(OutOfOrder):
            secure.sum(np.zeros(1, np.int64))

    run_parties(2, party, deadline_s=5)


def test_dim_zero_works():
    def party(transport):
        return mpcfl.secure_sum(np.zeros(0, np.int32), comm=transport, backend="crypten")

    assert [(total.size, total.dtype) for total in run_parties(2, party)] == [(0, np.int32)] * 2


@pytest.mark.parametrize(
    ("other", "theirs", "ours"),
    [
        (("a=1\nb=2",), "a=1?b=2", "a=1"),
        (("a=1", "b=2", ""), "", "nothing more"),
        (("a=1", "b=2", "c=3"), "c=3", "nothing more"),
        (("a=1",), "nothing more", "b=2"),
        (("\x1b[2Ka=1", "b=2"), "?[2Ka=1", "a=1"),
        ((), "nothing more", "a=1"),
        (("a=1", "b=2", "nothing more"), "nothing more", "nothing more"),
    ],
)
def test_settings_that_differ_in_one_byte_are_never_taken_for_equal(
    other: tuple[str, ...], theirs: str, ours: str
) -> None:
    own, others = (_SUM_OPTIONS.encode(facts=facts) for facts in (("a=1", "b=2"), other))
    compare([own] * 3)
    with pytest.raises(TranscriptMismatch) as caught:
        compare([own, others])
    assert str(caught.value).startswith(f"rank 1 wants {theirs}, rank 0 wants {ours}; give all")


@pytest.mark.parametrize("said", [b"", b"backend=ring", 300_000 * b"a"])
def test_a_rank_that_states_no_settings_is_named(said: bytes) -> None:
    own = _SUM_OPTIONS.encode(facts=("a=1",))
    with pytest.raises(ProtocolError, match=r"^a sum-options message from rank 1 was expected"):
        compare([own, said])
