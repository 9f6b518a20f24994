import threading

import numpy as np
import pytest

import mpcfl
from mpcfl.errors import (
    BackendUnavailable,
    ConfigError,
    MpcflError,
    OutOfOrder,
    PartyLost,
    ProtocolError,
    TranscriptMismatch,
    WrapDetected,
)
from mpcfl.net.memory import run_parties


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
@pytest.mark.parametrize("backend", ["plain", "crypten", "crypten-stock"])
def test_one_shot_sum_gives_the_same_dtype_back(backend, dtype):
    def party(transport):
        levels = np.array([transport.rank, -5, 2**31 - 1], dtype=dtype)
        return mpcfl.secure_sum(levels, comm=transport, backend=backend)

    for total in run_parties(3, party):
        assert total.dtype == dtype
        assert total.tolist() == [3, -15, 2**31 - 3]


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
        assert set(seconds) == {"protect", "aggregate", "open"}


def test_read_only_and_non_contiguous_input_is_summed_and_not_changed():
    def party(transport):
        grid = np.arange(12, dtype=np.int64).reshape(6, 2)
        grid.flags.writeable = False
        return mpcfl.secure_sum(grid[:, 1], comm=transport, backend="crypten")

    assert run_parties(2, party)[0].tolist() == [2, 6, 10, 14, 18, 22]


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
def test_bad_vector_at_one_rank_is_an_error_at_every_rank_and_the_session_lives_on(bad, error):
    def party(transport):
        with mpcfl.open_secure_sum(comm=transport, backend="crypten", dim=2) as secure:
            own = bad if transport.rank == 1 else np.zeros(2, np.int64)
            kinds = {1: error}
            with pytest.raises(kinds.get(transport.rank, ProtocolError)):
                secure.sum(own)
            return secure.sum(np.array([1, -1]))

    assert [total.tolist() for total in run_parties(3, party)] == [[3, -3]] * 3


def test_int32_is_refused_above_32_bits():
    def party(transport):
        levels = np.zeros(2, np.int32)
        mpcfl.secure_sum(levels, comm=transport, backend="plain", modulus_bits=33)

    with pytest.raises(TypeError, match="int64"):
        run_parties(2, party)


@pytest.mark.parametrize(
    ("key", "values"), [("dim", (4, 5)), ("modulus_bits", (32, 33)), ("key_bits", (2048, 3072))]
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
        ({"checked": True}, ConfigError, "checked is not available"),
        ({"precompute": True}, ConfigError, "precompute is not available"),
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


def test_options_that_say_off_are_accepted():
    def party(transport):
        options = {"checked": False, "precompute": False, "custody": "holder", "deadline_s": 9}
        return mpcfl.secure_sum(np.ones(1, np.int64), comm=transport, backend="plain", **options)

    assert run_parties(1, party)[0].tolist() == [1]


@pytest.mark.parametrize("comm", [None, 3, object()], ids=repr)
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
