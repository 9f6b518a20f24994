"""Claims of the `ring` and `crypten` sums from outside: own oracles, the public interface only."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from numpy.typing import NDArray
from scipy import stats

import mpcfl
from mpcfl.config import Job, load_job, parse_job
from mpcfl.errors import (
    ConfigError,
    MpcflError,
    PlanError,
    ProtocolError,
    TranscriptMismatch,
    WrapDetected,
)
from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.launch.cli import main
from mpcfl.net.memory import run_parties
from mpcfl.round import run_round, run_rounds
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.registry import load_backend

BITS = (8, 16, 20, 24, 32, 48, 64)
MASKED = ("ring", "crypten")
FALSE_POSITIVE_RATE = 1e-9
SPARSE = {"neighbors": "auto", "colluding": 1}
AHEAD = {"precompute": True}
# Vectors of the whole ring wrap around, which a check would refuse.
WRAPS = {"checked": False}
MODES: dict[str, dict[str, Any]] = {
    "all": {},
    "sparse": SPARSE,
    "ahead": AHEAD,
    "sparse-ahead": SPARSE | AHEAD,
}

# The plainest and the richest.
TWO_MODES = ("all", "sparse-ahead")

# --- own oracles and taps: nothing in this part uses the package under test ---


def draw(dim: int, bits: int, dtype: type = np.int64) -> NDArray[Any]:
    """Return values of the whole ring, both ends among them."""
    words = np.frombuffer(os.urandom(8 * dim), dtype=np.int64) >> np.int64(64 - bits)
    values = words.copy()
    values[:2] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1][:dim]
    return values.astype(dtype)


def exact_sum(vectors: Sequence[NDArray[Any]], bits: int) -> list[int]:
    """Add in Python's integers, centred mod 2^b."""
    half = 2 ** (bits - 1)
    columns = zip(*(vector.tolist() for vector in vectors), strict=True)
    return [(sum(column) + half) % (2 * half) - half for column in columns]


def falls_apart(honest: int, removed: int, k: int) -> tuple[int, int]:
    """Return the odds that a circle loses its hold, as an exact fraction.

    Each honest party keeps a tie with the next honest one unless k/2 or more removed ones stand
    between them; two such gaps make two pieces. Gaps are a uniformly drawn weak composition.
    """
    longest, slots = k // 2, honest - 1
    bad = 0
    for gaps in range(2, honest + 1):
        left = removed - gaps * longest
        if left < 0:
            break
        # At least two: inclusion and exclusion with (-1)^j (j - 1) for every j of them.
        sign = 1 if gaps % 2 == 0 else -1
        bad += sign * (gaps - 1) * math.comb(honest, gaps) * math.comb(left + slots, slots)
    return bad, math.comb(removed + slots, slots)


def is_safe(parties: int, removed: int, k: int) -> bool:
    bad, ways = falls_apart(parties - removed, removed, k)
    return bad << 40 <= ways


def least_safe(parties: int, removed: int) -> int:
    """Return the least even k that is safe for every number of removed parties up to this one."""
    for k in range(2, parties - 1, 2):
        if all(is_safe(parties, fewer, k) for fewer in range(1, removed + 1)):
            return k
    return parties - 1


class Tap:
    """Carries everything on and keeps what a rank sends into its sums."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.rank, self.n_ranks, self.meter = inner.rank, inner.n_ranks, inner.meter
        self.masked: list[NDArray[Any]] = []

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        return self._inner.exchange(outgoing, sources)

    def allgather(self, message: bytes) -> list[bytes]:
        return self._inner.allgather(message)

    def begin_scatter(self, blocks: Any, inbox: Any) -> Any:
        self.masked += [block.copy() for rank, block in enumerate(blocks) if rank != self.rank]
        return self._inner.begin_scatter(blocks, inbox)

    def begin_gather(self, own: Any, inbox: Any) -> Any:
        return self._inner.begin_gather(own, inbox)

    def begin_allreduce(self, words: Any) -> Any:
        self.masked.append(words.view(np.uint8).copy())
        return self._inner.begin_allreduce(words)

    def close(self) -> None:
        self._inner.close()


class CountedCipher:
    """Counts the bytes that a cipher encrypts."""

    def __init__(self, inner: Any, count: list[int]) -> None:
        self._inner, self._count = inner, count

    def update(self, data: Any) -> bytes:
        self._count.append(len(memoryview(data).cast("B")))
        return self._inner.update(data)

    def update_into(self, data: Any, out: Any) -> int:
        self._count.append(len(memoryview(data).cast("B")))
        return self._inner.update_into(data, out)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def encrypted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the lengths of all that AES encrypts from now on."""
    counted: list[int] = []
    original = Cipher.encryptor
    monkeypatch.setattr(Cipher, "encryptor", lambda self: CountedCipher(original(self), counted))
    return counted


def all_raise(
    n_ranks: int, party: Callable[[Any], object], deadline_s: float = 20
) -> list[Exception]:
    """Return what each rank raised; a rank that raises nothing, or hangs, fails the test."""

    def caught(transport: Any) -> Exception:
        try:
            got = party(transport)
        except (MpcflError, TypeError, ValueError) as error:
            return error
        raise AssertionError(f"rank {transport.rank} got {got}")

    return run_parties(n_ranks, caught, deadline_s=deadline_s)


# --- exact sums ---


@pytest.mark.parametrize("mode", TWO_MODES)
@pytest.mark.parametrize("backend", MASKED)
def test_every_ring_gives_the_exact_sum_in_the_dtype_that_came(backend: str, mode: str) -> None:
    kinds = [(bits, kind) for bits in BITS for kind in (np.int32, np.int64)]
    for bits, kind in kinds:
        if kind is np.int32 and bits > 32:
            continue
        rounds = [[draw(dim, bits, kind) for _ in range(5)] for dim in (131, 131)]
        chosen = {"dim": 131, "modulus_bits": bits} | WRAPS | MODES[mode]

        def party(transport, rounds=rounds, chosen=chosen):
            with mpcfl.open_secure_sum(comm=transport, backend=backend, **chosen) as secure:
                return [secure.sum(vectors[transport.rank]) for vectors in rounds]

        expected = [exact_sum(vectors, bits) for vectors in rounds]
        for totals in run_parties(5, party):
            assert [total.dtype for total in totals] == [kind, kind]
            assert [total.tolist() for total in totals] == expected, (bits, kind)


@pytest.mark.parametrize("dim", [0, 1, 3])
@pytest.mark.parametrize(
    ("n_parties", "mode"),
    # Where the only party colludes nobody is left: that is refused, below.
    [(1, "all"), (1, "ahead"), *itertools.product((2, 4), MODES)],
)
@pytest.mark.parametrize("backend", MASKED)
def test_one_party_and_the_shortest_vectors_work(
    backend: str, n_parties: int, mode: str, dim: int
) -> None:
    vectors = [draw(dim, 20, np.int32) for _ in range(n_parties)]

    def party(transport):
        chosen = {"modulus_bits": 20} | WRAPS | MODES[mode]
        return mpcfl.secure_sum(vectors[transport.rank], comm=transport, backend=backend, **chosen)

    for total in run_parties(n_parties, party):
        assert total.tolist() == exact_sum(vectors, 20)
        assert total.shape == (dim,)
        assert total.dtype == np.int32


@pytest.mark.parametrize("bits", BITS)
def test_64_parties_on_a_sparse_graph_open_the_exact_sum(bits: int) -> None:
    vectors = [draw(260, bits) for _ in range(64)]
    expected = exact_sum(vectors, bits)

    def party(transport):
        chosen = {"modulus_bits": bits, "neighbors": "auto", "colluding": 3} | WRAPS
        return mpcfl.secure_sum(vectors[transport.rank], comm=transport, backend="ring", **chosen)

    for total in run_parties(64, party):
        assert total.tolist() == expected


def test_a_long_vector_is_summed_exactly_with_odd_lengths_and_ring() -> None:
    vectors = [draw(1_048_573 + 2, 20, np.int32) for _ in range(3)]
    total = np.sum([vector.astype(np.int64) for vector in vectors], axis=0)
    expected = ((total + 2**19) % 2**20 - 2**19).astype(np.int32)

    def party(transport):
        own = vectors[transport.rank]
        chosen = {"modulus_bits": 20, "precompute": transport.rank != 1} | WRAPS
        with mpcfl.open_secure_sum(comm=transport, backend="ring", dim=own.size, **chosen) as one:
            one.prepare()
            return all(np.array_equal(one.sum(own), expected) for _ in range(2))

    assert run_parties(3, party) == [True] * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", MASKED)
def test_a_sum_belongs_to_the_caller_and_may_be_the_next_input(backend: str, mode: str) -> None:
    dim = 5000

    def party(transport):
        chosen = {"dim": dim} | MODES[mode]
        with mpcfl.open_secure_sum(comm=transport, backend=backend, **chosen) as secure:
            levels = np.ones(dim, np.int32)
            first = secure.sum(levels)
            second = secure.sum(first)
            secure.prepare()
            kept = second.copy()
            first += 100  # writable, and nobody else's
            third = secure.sum(kept[::-1])
            assert np.all(levels == 1)
            assert np.all(first == 103)
            return bool(np.all(second == 9) and np.all(third == 27))

    assert run_parties(3, party) == [True] * 3


# --- bytes and work ---


@pytest.mark.parametrize("extra", [{}, {"neighbors": 2, "colluding": 1}, AHEAD], ids=repr)
@pytest.mark.parametrize("bits", [8, 16, 20, 24, 32, 48, 64])
def test_bytes_are_within_one_percent_of_b_of_32(bits: int, extra: dict[str, Any]) -> None:
    dim, n_parties = 60_001, 4
    # A float32 vector that is scattered in slices to be added, and gathered again.
    plain_bytes = 2 * (n_parties - 1) / n_parties * 4 * dim

    def party(transport):
        chosen = {"dim": dim, "modulus_bits": bits} | WRAPS | extra
        with mpcfl.open_secure_sum(comm=transport, backend="ring", **chosen) as secure:
            before = secure.bytes_sent, secure.bytes_received
            secure.sum(draw(dim, bits))
            return secure.bytes_sent - before[0], secure.bytes_received - before[1]

    for sent, received in run_parties(n_parties, party):
        assert sent == pytest.approx(plain_bytes * bits / 32, rel=0.01)
        assert received == pytest.approx(plain_bytes * bits / 32, rel=0.01)


@pytest.mark.parametrize("backend", MASKED)
def test_mask_work_grows_with_the_neighbors_and_not_with_the_parties(
    backend: str, encrypted: list[int]
) -> None:
    dim = 3000

    def party(transport, extra):
        own = np.zeros(dim, np.int64)
        return mpcfl.secure_sum(own, comm=transport, backend=backend, modulus_bits=32, **extra)

    def bytes_per_party(n_parties: int, neighbors: object) -> float:
        # Of masks only, and not of what checks them.
        extra: dict[str, Any] = {"checked": False}
        if neighbors != "all":
            extra |= {"neighbors": neighbors, "colluding": 1}
        encrypted.clear()
        run_parties(n_parties, lambda transport: party(transport, extra))
        return sum(encrypted) / n_parties

    one = bytes_per_party(2, "all")
    assert one >= 4 * dim
    for n_parties, neighbors, peers in ((8, 4, 4), (24, 4, 4), (24, 8, 8), (24, "all", 23)):
        work = bytes_per_party(n_parties, neighbors)
        assert work == pytest.approx(peers * one, rel=0.02), (n_parties, neighbors)


@pytest.mark.parametrize("backend", MASKED)
def test_what_was_prepared_is_not_made_again_and_nothing_is_made_without(
    backend: str, encrypted: list[int]
) -> None:
    dim = 40_000

    def party(transport, ahead):
        with mpcfl.open_secure_sum(
            comm=transport, backend=backend, dim=dim, precompute=ahead
        ) as secure:
            secure.prepare()
            barrier.wait(20)
            made = sum(encrypted)
            barrier.wait(20)
            secure.sum(np.zeros(dim, np.int64))
            secure.prepare()
            return made

    made: dict[bool, list[int]] = {}
    for ahead in (True, False):
        encrypted.clear()
        barrier = threading.Barrier(2)
        before = run_parties(2, lambda transport, ahead=ahead: party(transport, ahead))
        made[ahead] = [max(before), sum(encrypted)]
    assert made[False][0] < 4 * dim  # of keys only
    assert made[True][0] >= 2 * 4 * dim
    # One sum, and with `precompute` the one that would have been next; never a third.
    assert made[True][1] == pytest.approx(2 * made[False][1], rel=0.05)


# --- secrecy of what is sent ---


@pytest.mark.stat
@pytest.mark.parametrize("mode", TWO_MODES)
@pytest.mark.parametrize(("backend", "bits"), [("ring", 8), ("ring", 20), ("crypten", 32)])
def test_what_a_rank_sends_is_uniform_and_fresh_whatever_it_puts_in(
    backend: str, bits: int, mode: str
) -> None:
    """All zeros go in, twice.

    Power: without a mask, or with one mask used twice, one byte value has all the mass. One that
    is 2.5 times too frequent among 60,000 bytes is missed with probability 1e-6 at most.
    """
    dim = 80_000

    def party(transport):
        tap = Tap(transport)
        chosen = {"dim": dim, "modulus_bits": bits} | MODES[mode]
        with mpcfl.open_secure_sum(comm=tap, backend=backend, **chosen) as secure:
            sent = []
            for _ in range(2):
                tap.masked.clear()
                assert not secure.sum(np.zeros(dim, np.int64)).any()
                sent.append(np.concatenate(tap.masked))
        return sent

    for first, second in run_parties(4, party):
        assert first.size >= dim * bits // 8 // 2
        for found in (first, second, first ^ second, first - second):
            counts = np.bincount(found, minlength=256)
            p_value = stats.chisquare(counts).pvalue
            # Sixteen comparisons in this test, each in both directions.
            assert FALSE_POSITIVE_RATE / 32 < p_value < 1 - FALSE_POSITIVE_RATE / 32


def test_no_two_parties_ever_send_the_same_masked_vector() -> None:
    def party(transport):
        tap = Tap(transport)
        with mpcfl.open_secure_sum(comm=tap, backend="ring", dim=64, modulus_bits=64) as secure:
            for _ in range(5):
                secure.sum(np.zeros(64, np.int64))
        return [block.tobytes() for block in tap.masked if block.size >= 32]

    sent = [block for _ in range(3) for blocks in run_parties(3, party) for block in blocks]
    assert len(sent) >= 45
    assert len(set(sent)) == len(sent)


class Misheard(Tap):
    """Hears one message of rank 0 otherwise than all other ranks do."""

    def __init__(self, inner: Any, which: int) -> None:
        super().__init__(inner)
        self._left = which

    def allgather(self, message: bytes) -> list[bytes]:
        answers = super().allgather(message)
        if self._left == 0:
            middle = len(answers[0]) // 2
            changed = bytes([answers[0][middle] ^ 1])
            answers[0] = answers[0][:middle] + changed + answers[0][middle + 1 :]
        self._left -= 1
        return answers


@pytest.mark.parametrize(
    ("backend", "mode"), [("ring", "all"), ("ring", "sparse"), ("crypten", "all")]
)
def test_a_message_that_one_rank_hears_otherwise_never_leads_to_a_sum(
    backend: str, mode: str
) -> None:
    """Keys that do not match would open noise in place of a sum."""

    def party(transport, which):
        tap = Misheard(transport, which) if transport.rank == 2 else Tap(transport)
        chosen = {"backend": backend, "dim": 3} | MODES[mode]
        with mpcfl.open_secure_sum(comm=tap, **chosen) as secure:
            steps.append(which)
            return secure.sum(np.ones(3, np.int64)).tolist()

    steps: list[int] = []
    for which in range(4 if mode == "all" else 7):
        all_raise(5, lambda transport, which=which: party(transport, which), deadline_s=0.3)
    assert len(steps) < 5, "all of these messages are part of the opening"


# --- bad input ---

TELLTALE = 1_234_567_890_123
BAD: dict[str, tuple[Any, type[Exception]]] = {
    "above": (np.array([1, 2**19, 3]), WrapDetected),
    "below": (np.array([1, -(2**19) - 1, 3], np.int32), WrapDetected),
    "far": (np.array([TELLTALE, 0, 0]), WrapDetected),
    "most": (np.array([2**63 - 1, -(2**63), 0]), WrapDetected),
    "float": (np.array([1.0, math.nan, TELLTALE]), TypeError),
    "uint32": (np.zeros(3, np.uint32), TypeError),
    "int16": (np.zeros(3, np.int16), TypeError),
    "object": (np.array([1, 2**70, None]), TypeError),
    "list": ([1, 2, TELLTALE], TypeError),
    "scalar": (np.int64(7), TypeError),
    "none": (None, TypeError),
    "masked": (np.ma.masked_array(np.zeros(3, np.int64), mask=[0, 1, 0]), TypeError),
    "longer": (np.zeros(4, np.int64), ValueError),
    "table": (np.zeros((3, 1), np.int64), ValueError),
    "empty": (np.zeros(0, np.int64), ValueError),
}


@pytest.mark.parametrize("mode", TWO_MODES)
@pytest.mark.parametrize("backend", MASKED)
def test_a_bad_vector_is_an_error_at_every_rank_and_the_session_goes_on(
    backend: str, mode: str
) -> None:
    def party(transport):
        rank = transport.rank
        chosen = {"dim": 3, "modulus_bits": 20} | MODES[mode]
        with mpcfl.open_secure_sum(comm=transport, backend=backend, **chosen) as secure:
            for name, (bad, error) in BAD.items():
                own = bad if rank == 1 else np.array([1, 2, 3])
                with pytest.raises(error if rank == 1 else ProtocolError) as caught:
                    secure.sum(own)
                assert str(TELLTALE) not in str(caught.value), name
                assert rank == 1 or "rank 1" in str(caught.value), name
            return [secure.sum(np.array([rank, -rank, 7])).tolist() for _ in range(2)]

    assert run_parties(4, party) == [[[6, -6, 28]] * 2] * 4


@pytest.mark.parametrize("backend", MASKED)
def test_several_ranks_may_be_wrong_at_once(backend: str) -> None:
    def party(transport):
        chosen = {"dim": 2, "modulus_bits": 8} | WRAPS
        with mpcfl.open_secure_sum(comm=transport, backend=backend, **chosen) as secure:
            own = np.full(2, 1000) if transport.rank else np.zeros(2)
            with pytest.raises((WrapDetected, TypeError)):
                secure.sum(own)
            return secure.sum(np.full(2, -40)).tolist()

    # Five times -40 leaves the ring of 8 bits; sums are centred in it.
    assert run_parties(5, party) == [[56, 56]] * 5


LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "every-third": lambda v: np.repeat(v, 3)[::3],
    "backwards": lambda v: v[::-1].copy()[::-1],
    "read-only": lambda v: np.frombuffer(v.tobytes(), dtype=v.dtype),
    "column": lambda v: np.asfortranarray(np.stack([v, v], axis=0))[0],
    "shifted": lambda v: np.frombuffer(b"\1" + v.tobytes(), dtype=np.uint8)[1:].view(v.dtype),
    "field": lambda v: _field_of(v),
}


def _field_of(values: NDArray[Any]) -> NDArray[Any]:
    table = np.zeros(values.size, dtype=[("skip", "u1"), ("value", values.dtype)])
    table["value"] = values
    return table["value"]


@pytest.mark.parametrize("mode", ["all", "ahead"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("backend", MASKED)
def test_memory_of_any_layout_is_summed_and_left_alone(
    backend: str, dtype: type, mode: str
) -> None:
    vectors = [draw(333, 24, dtype) for _ in LAYOUTS]
    given = [layout(v) for layout, v in zip(LAYOUTS.values(), vectors, strict=True)]

    def party(transport):
        chosen = {"modulus_bits": 24} | WRAPS | MODES[mode]
        return mpcfl.secure_sum(given[transport.rank], comm=transport, backend=backend, **chosen)

    for total in run_parties(len(LAYOUTS), party):
        assert total.tolist() == exact_sum(vectors, 24)
    for before, after in zip(vectors, given, strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("backend", MASKED)
@pytest.mark.parametrize(
    ("common", "other", "named"),
    [
        ({"dim": 3}, {"dim": 4}, ["dim", "3", "4"]),
        ({"modulus_bits": 20}, {"modulus_bits": 21}, ["modulus_bits", "20", "21"]),
        ({}, {"neighbors": 2, "colluding": 1}, ["neighbors", "all", "2"]),
        ({"neighbors": 2, "colluding": 1}, {"neighbors": 4}, ["neighbors", "4", "2"]),
        ({"neighbors": "auto", "colluding": 1}, {"colluding": 3}, ["neighbors", "4", "2"]),
        ({}, {"backend": "plain"}, ["backend", "plain"]),
    ],
)
def test_settings_that_differ_are_named_at_every_rank(
    backend: str, common: dict[str, Any], other: dict[str, Any], named: list[str]
) -> None:
    def party(transport):
        chosen = {"backend": backend, "dim": 3} | common
        chosen |= other if transport.rank == 3 else {}
        mpcfl.open_secure_sum(comm=transport, **chosen)

    for error in all_raise(9, party):
        assert isinstance(error, TranscriptMismatch)
        assert "rank 3" in str(error)
        for word in named:
            assert word in str(error)


@pytest.mark.parametrize("backend", MASKED)
def test_vectors_of_unequal_length_are_an_error_that_names_the_dimension(backend: str) -> None:
    def party(transport):
        own = np.zeros(9 + (transport.rank == 2), np.int32)
        return mpcfl.secure_sum(own, comm=transport, backend=backend)

    for error in all_raise(3, party):
        assert "dim=10" in str(error)
        assert "dim=9" in str(error)


@pytest.mark.parametrize("backend", MASKED)
def test_int32_at_one_rank_and_int64_at_another_give_one_sum(backend: str) -> None:
    kinds = [np.int32, np.int64, np.int32]
    vectors = [draw(77, 32, kind) for kind in kinds]

    def party(transport):
        return mpcfl.secure_sum(
            vectors[transport.rank], comm=transport, backend=backend, checked=False
        )

    totals = run_parties(3, party)
    assert [total.dtype for total in totals] == kinds
    assert [total.tolist() for total in totals] == [exact_sum(vectors, 32)] * 3


@pytest.mark.parametrize("backend", MASKED)
@pytest.mark.parametrize(
    ("neighbors", "error", "words"),
    [
        (2, PlanError, ["2", "not safe", "2^-40", "auto"]),
        (5, (PlanError, ConfigError), ["5", "even"]),
        (0, ConfigError, ["0", "all", "auto"]),
        (-4, ConfigError, ["-4", "all", "auto"]),
        ("most", ConfigError, ["most", "all", "auto"]),
        (4.0, ConfigError, ["4.0", "even"]),
    ],
)
def test_neighbors_that_can_not_be_are_refused_at_every_rank(
    backend: str, neighbors: object, error: Any, words: list[str]
) -> None:
    def party(transport):
        chosen = {"neighbors": neighbors, "colluding": 4}
        mpcfl.secure_sum(np.zeros(1, np.int64), comm=transport, backend=backend, **chosen)

    for caught in all_raise(12, party):
        assert isinstance(caught, error)
        for word in words:
            assert word in str(caught)


@pytest.mark.parametrize("neighbors", ["auto", 2])
def test_one_rank_alone_may_name_a_threat(neighbors: str | int) -> None:
    def party(transport):
        chosen = {"neighbors": neighbors, "colluding": 1}
        return mpcfl.secure_sum(np.arange(3), comm=transport, backend="ring", **chosen)

    assert [total.tolist() for total in run_parties(1, party)] == [[0, 1, 2]]


@pytest.mark.parametrize(("n_parties", "threat"), [(3, {"colluding": 3}), (3, {"colluding": 9})])
def test_a_threat_that_leaves_nobody_is_refused(n_parties: int, threat: dict[str, int]) -> None:
    def party(transport):
        chosen = {"backend": "ring", "neighbors": "auto"} | threat
        return mpcfl.secure_sum(np.zeros(1, np.int64), comm=transport, **chosen)

    for error in all_raise(n_parties, party):
        assert isinstance(error, ConfigError)
        assert "colluding" in str(error)


def test_no_thread_of_a_session_outlives_it() -> None:
    def party(transport):
        chosen = {"dim": 20_000, "precompute": True}
        with mpcfl.open_secure_sum(comm=transport, backend="ring", **chosen) as secure:
            secure.sum(np.zeros(20_000, np.int32))
        with mpcfl.open_secure_sum(comm=transport, backend="crypten", **chosen) as secure:
            secure.sum(np.zeros(20_000, np.int32))
            raise_at_all = np.zeros(3, np.int32)
            with pytest.raises(ValueError, match="shape"):
                secure.sum(raise_at_all)

    before = threading.active_count()
    run_parties(3, party)
    assert threading.active_count() == before


# --- jobs ---

LINE_TASK = '''
import torch
from torch import nn


class SlopeTask:
    """Five numbers and their doubles, for any number of parties."""

    def model(self):
        return nn.Linear(3, 2)

    def party_data(self, party, n_parties):
        inputs = torch.tensor([[1.0, 0.5, -2.0], [0.25, -1.0, 0.75], [2.0, 1.0, 0.0]]) - party / 8
        return inputs, 2 * inputs[:, :2] + 0.5

    def test_data(self):
        return self.party_data(0, 1)

    def loss(self, outputs, targets):
        return nn.functional.mse_loss(outputs, targets)
'''


@pytest.fixture
def task_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slope_task.py").write_text(LINE_TASK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "slope_task", raising=False)


def document(unit: str = "record", count: int = 4, **aggregation: Any) -> dict[str, Any]:
    privacy: dict[str, Any] = {"unit": unit}
    if unit != "none":
        privacy |= {"epsilon": 6.0}
    if unit == "record":
        privacy |= {"records": 3 * count, "sample_rate": 0.6}
    return {
        "task": "slope_task:SlopeTask",
        "parties": {"count": count},
        "privacy": privacy,
        "training": {"rounds": 3},
        "aggregation": {"backend": "ring", "key_bits": 2048} | aggregation,
    }


def job_of(*arguments: Any, **aggregation: Any) -> Job:
    return parse_job(document(*arguments, **aggregation), "test")


def keyed(count: int = 4) -> list[Any]:
    return [raw_keyed_bits(bytes([7 + rank]) * 32) for rank in range(count)]


WAYS: list[dict[str, Any]] = [
    {"backend": "ring"},
    {"backend": "ring", "neighbors": 2},
    {"backend": "ring", "precompute": False},
    {"backend": "crypten"},
    {"backend": "crypten", "neighbors": "auto", "precompute": False},
]


@pytest.mark.parametrize("unit", ["record", "party"])
def test_equal_bits_open_equal_integers_on_every_way_to_add(unit: str, task_module: None) -> None:
    expected = run_round(job_of(unit, backend="plain"), keyed())
    assert np.count_nonzero(expected.opened) > expected.opened.size // 2
    for way in WAYS:
        found = run_round(job_of(unit, **way), keyed())
        np.testing.assert_array_equal(found.opened, expected.opened, err_msg=repr(way))
        np.testing.assert_array_equal(found.parameters, expected.parameters)


@pytest.mark.parametrize("ahead", [True, False])
def test_equal_bits_open_equal_integers_in_every_round(ahead: bool, task_module: None) -> None:
    def opened(**way: Any) -> list[list[int]]:
        seen: list[list[int]] = []
        job = job_of("record", precompute=ahead, **way)
        run_rounds(job, keyed(), lambda _, total, __: seen.append(total.tolist()))
        return seen

    expected = opened(backend="ring")
    assert len(expected) == 3
    assert expected[0] != expected[1]
    assert opened(backend="crypten") == expected
    assert opened(backend="ring", neighbors="auto") == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"neighbors": 3, "count": 12}, ["neighbors", "3", "odd"]),
        ({"neighbors": 0}, ["neighbors", "0", "all", "auto"]),
        ({"neighbors": "some"}, ["neighbors", "some", "all", "auto"]),
        ({"neighbors": 2.0}, ["neighbors", "2.0"]),
        ({"neighbors": True}, ["neighbors"]),
        ({"neighbours": "auto"}, ["neighbours", "did you mean neighbors"]),
        ({"neighbors": "auto", "backend": "phe"}, ["neighbors", "phe", "ring"]),
        ({"neighbors": 2, "backend": "plain"}, ["neighbors", "plain", "ring"]),
        ({"precompute": "yes"}, ["precompute", "yes"]),
        ({"precompute": 1}, ["precompute"]),
        ({"modulus_bits": 7}, ["modulus_bits", "8"]),
        ({"modulus_bits": 65}, ["modulus_bits", "64"]),
    ],
)
def test_a_bad_key_of_the_job_is_named_with_its_file(
    change: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    changes = dict(change)
    count = changes.pop("count", 4)
    lines = ['task = "toy"', "[parties]", f"count = {count}", "[privacy]", 'unit = "none"']
    lines += ["[training]", "rounds = 1", "[aggregation]"]
    table = {"backend": "ring"} | changes
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path = tmp_path / "hospital.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    for word in ["hospital.toml", *words]:
        assert word in str(caught.value)


def test_jobs_make_masks_ahead_and_share_them_with_all_unless_told_otherwise() -> None:
    aggregation = job_of().aggregation
    assert aggregation.precompute is True
    assert aggregation.neighbors == "all"


# --- the plan ---


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put back the handlers that the command line sets at its edge."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.fixture
def plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `mpcfl plan` here: exit code, output, error."""
    path = tmp_path / "many.toml"
    path.write_text(
        'task = "toy"\n[parties]\ncount = 20\n[privacy]\nunit = "none"\n'
        '[training]\nrounds = 1\n[aggregation]\nbackend = "ring"\nneighbors = "auto"\n'
    )

    def run(parties: int, *changes: str) -> tuple[int, str, str]:
        options = [word for change in changes for word in ("--set", change)]
        words = ["mpcfl", "plan", str(path), "-n", str(parties), *options]
        monkeypatch.setattr(sys, "argv", [*words, "--json"])
        with signals_kept(), pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), shown.out, shown.err

    return run


@pytest.mark.parametrize(
    ("parties", "colluding", "missing"),
    [(20, 1, 0), (20, 5, 0), (20, 6, 0), (10, 7, 2), (64, 6, 3), (100, 33, 33), (300, 60, 0)],
)
def test_auto_is_the_least_safe_number_by_our_own_count(
    parties: int, colluding: int, missing: int, plan: Callable[..., tuple[int, str, str]]
) -> None:
    threat = f"parties.colluding={colluding}", f"parties.max_dropout={missing}"
    code, out, err = plan(parties, *threat)
    assert code == 0, err
    k = least_safe(parties, colluding + missing)
    assert json.loads(out)["mask_graph"]["neighbors"] == k
    if 2 < k < parties - 1:
        code, out, err = plan(parties, *threat, f"aggregation.neighbors={k - 2}")
        assert code != 0
        assert out == ""
        for word in (f"neighbors = {k - 2}", "not safe", f"take {k} or more"):
            assert word in err


@pytest.mark.parametrize(("parties", "below"), [(100, 68), (1000, 286), (10_000, 422)])
def test_graphs_of_many_parties_have_fewer_neighbors_than_published_ones(
    parties: int, below: int, plan: Callable[..., tuple[int, str, str]]
) -> None:
    third = int(0.33 * parties)
    code, out, err = plan(parties, f"parties.colluding={third}", f"parties.max_dropout={third}")
    assert code == 0, err
    k = json.loads(out)["mask_graph"]["neighbors"]
    assert k < below
    assert is_safe(parties, 2 * third, k)
    assert not is_safe(parties, 2 * third, k - 2)


@pytest.mark.parametrize("k", [19, 20, 1000])
def test_as_many_neighbors_as_others_mean_all(
    k: int, plan: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = plan(20, f"aggregation.neighbors={k}", "parties.colluding=15")
    assert code == 0, err
    assert json.loads(out)["mask_graph"]["neighbors"] == 19


def test_our_count_of_unsafe_circles_agrees_with_enumeration() -> None:
    """The oracle above, against every circle of nine with four removed."""
    n, removed, k = 9, 4, 4
    bad = 0
    # Places relative to one honest party at place 0.
    places = list(itertools.combinations(range(1, n), removed))
    for gone in places:
        left = [place for place in range(n) if place not in gone]
        reached, grown = {0}, True
        while grown:
            near = {
                other
                for other in left
                for place in reached
                if min((place - other) % n, (other - place) % n) <= k // 2
            }
            grown, reached = not near <= reached, reached | near
        bad += len(reached) < len(left)
    found, ways = falls_apart(n - removed, removed, k)
    assert (found, ways) == (bad, len(places))
    assert bad > 0


# --- the numbers of sums ---


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("backend", MASKED)
def test_a_new_attempt_throws_away_what_was_made_ahead_and_is_exact(
    backend: str, precompute: bool
) -> None:
    chosen = SumSettings(50, 20, run_id="ab" * 16, precompute=precompute)
    ids = [SumId(0), SumId(1), SumId(1, 1), SumId(1, 2), SumId(5), None]
    rounds = [[draw(50, 20) for _ in range(3)] for _ in ids]

    def party(transport):
        session = load_backend(backend)(transport, chosen)
        totals = []
        for number, vectors in zip(ids, rounds, strict=True):
            session.prepare()
            protected = session.protect(vectors[transport.rank], number)
            totals.append(session.open(session.aggregate(protected)).tolist())
        session.close()
        return totals

    assert run_parties(3, party) == [[exact_sum(vectors, 20) for vectors in rounds]] * 3


@pytest.mark.parametrize("backend", MASKED)
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_tensors_go_in_and_come_back_as_tensors(backend: str, kind: str) -> None:
    import torch

    def party(transport):
        table = torch.arange(12, dtype=getattr(torch, kind)).reshape(6, 2) - transport.rank
        before = table.clone()
        total = mpcfl.secure_sum(table[:, 1], comm=transport, backend=backend)
        assert torch.equal(table, before)
        assert isinstance(total, torch.Tensor)
        assert total.dtype == table.dtype
        return total.tolist()

    assert run_parties(3, party) == [[0, 6, 12, 18, 24, 30]] * 3


def test_tensors_that_hold_no_integers_are_refused_at_every_rank() -> None:
    import torch

    for bad in (torch.zeros(3), torch.zeros(3, dtype=torch.int16), torch.zeros(3, 1).long()):

        def party(transport, bad=bad):
            own = bad if transport.rank else torch.zeros(3, dtype=torch.int64)
            with mpcfl.open_secure_sum(comm=transport, backend="ring", dim=3) as secure:
                return secure.sum(own)

        here, there = all_raise(2, party)
        assert isinstance(here, ProtocolError)
        assert isinstance(there, (TypeError, ValueError))
