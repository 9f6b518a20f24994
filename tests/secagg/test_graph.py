"""The circle that all ranks draw together: who may bend it, and who is caught."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mpcfl.errors import MpcflError, PartyLost, ProtocolError, TranscriptMismatch
from mpcfl.hazmat.bits import domain_tag
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.net.wire import Format, Kind, fixed
from mpcfl.secagg import graph
from mpcfl.secagg.graph import agree_neighbors, draw_order

N = 9
COMMITMENT = Format(Kind.GRAPH_COMMITMENT, commitment=fixed(32))
NONCE = Format(Kind.GRAPH_NONCE, nonce=fixed(32))


class FixedBits:
    """The same words for the same rank, for a test."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def words(self, count: int) -> np.ndarray:
        return np.arange(1, count + 1, dtype=np.uint64) + np.uint64(100 * self.rank)


def agree(neighbors: int | None, n: int = N, bits: Callable[[int], object] = lambda _: None):
    return run_parties(n, lambda t: agree_neighbors(t, "run", neighbors, bits(t.rank)))


def errors_of(party: Callable[[MemoryTransport], object], n: int = N) -> dict[int, MpcflError]:
    """Return what each rank raised; ranks that only waited in vain are left out."""
    raised: dict[int, MpcflError] = {}

    def noted(transport: MemoryTransport) -> None:
        try:
            party(transport)
        except PartyLost:
            raise
        except MpcflError as error:
            raised[transport.rank] = error

    run_parties(n, noted)
    return raised


@pytest.mark.parametrize("neighbors", [2, 4, 6])
def test_all_ranks_agree_who_shares_masks_with_whom(neighbors: int) -> None:
    named = agree(neighbors)
    for rank, others in enumerate(named):
        assert list(others) == sorted(set(others) - {rank})
        assert len(others) == neighbors
        assert all(rank in named[other] for other in others)


@pytest.mark.parametrize("neighbors", [None, N - 1, N, 100])
def test_a_complete_graph_needs_no_message(neighbors: int | None) -> None:
    def party(transport: MemoryTransport) -> int:
        others = agree_neighbors(transport, "run", neighbors)
        assert others == tuple(rank for rank in range(N) if rank != transport.rank)
        return transport.meter.bytes_sent

    assert run_parties(N, party) == [0] * N


def test_one_rank_and_two_need_no_graph() -> None:
    assert agree(2, n=1) == [()]
    assert agree(2, n=2) == [(1,), (0,)]


@pytest.mark.parametrize("neighbors", [0, 1, 3, -2])
def test_a_number_that_no_circle_has_is_refused(neighbors: int) -> None:
    with pytest.raises(ValueError, match="even number from 2 on"):
        agree(neighbors)


def test_each_call_draws_a_new_circle() -> None:
    assert len({tuple(agree(4)) for _ in range(4)}) > 1


def test_every_rank_and_the_run_decide_the_circle() -> None:
    def seed(run_id: str, changed: int | None) -> bytes:
        def party(transport: MemoryTransport) -> bytes:
            rank = transport.rank
            return graph._agree_seed(
                transport, run_id, FixedBits(rank + 50 if rank == changed else rank)
            )

        seeds = run_parties(4, party)
        assert len(set(seeds)) == 1
        return seeds[0]

    seeds = {seed("run", changed) for changed in (None, 0, 1, 2, 3)} | {seed("other", None)}
    assert len(seeds) == 6
    assert seed("run", None) in seeds


def test_nothing_is_revealed_before_all_have_committed() -> None:
    log: list[tuple[int, bytes]] = []

    class Tap(MemoryTransport):
        def allgather(self, message: bytes) -> list[bytes]:
            log.append((self.rank, message))
            return super().allgather(message)

    def party(transport: MemoryTransport) -> None:
        transport.__class__ = Tap
        agree_neighbors(transport, "run", 4, FixedBits(transport.rank))

    run_parties(N, party)
    nonces = {rank: nonce_message(FixedBits(rank).words(4).tobytes()) for rank in range(N)}
    sent = {rank: [m for r, m in log if r == rank] for rank in range(N)}
    for rank in range(N):
        tag = domain_tag("graph-commitment", "run", rank)
        digest = hashlib.sha256(tag + FixedBits(rank).words(4).tobytes()).digest()
        assert sent[rank][0] == COMMITMENT.encode(commitment=digest)
        assert sent[rank][1] == nonces[rank]
        assert [len(message) for message in sent[rank]] == [42, 42, 32]
    first_reveal = min(log.index((rank, nonces[rank])) for rank in range(N))
    assert all(log.index((rank, sent[rank][0])) < first_reveal for rank in range(N))


def promise(run_id: str, rank: int, nonce: bytes) -> bytes:
    return COMMITMENT.encode(commitment=graph._commitment(run_id, rank, nonce))


def nonce_message(nonce: bytes) -> bytes:
    return NONCE.encode(nonce=nonce)


class Rewritten(MemoryTransport):
    """Shows this rank other messages than were sent."""

    rewrite: Callable[[int, list[bytes]], list[bytes]]

    def allgather(self, message: bytes) -> list[bytes]:
        self.calls = getattr(self, "calls", -1) + 1
        return self.rewrite(self.calls, super().allgather(message))


def run_rewritten(
    rewrite: Callable[[int, list[bytes]], list[bytes]], victims: range = range(N)
) -> dict[int, MpcflError]:
    def party(transport: MemoryTransport) -> None:
        if transport.rank in victims:
            transport.__class__ = Rewritten
            transport.rewrite = rewrite
        agree_neighbors(transport, "run", 4)

    return errors_of(party)


def replace(messages: list[bytes], rank: int, message: bytes) -> list[bytes]:
    return [*messages[:rank], message, *messages[rank + 1 :]]


def test_who_reveals_something_else_is_named_by_all() -> None:
    changed = nonce_message(bytes(32))
    errors = run_rewritten(lambda call, m: replace(m, 5, changed) if call == 1 else m)
    assert len(errors) == N
    assert all(type(error) is ProtocolError for error in errors.values())
    assert all(str(error).startswith("rank 5 revealed other bytes") for error in errors.values())


@pytest.mark.parametrize("said", [b"", b"short", bytes(32), nonce_message(bytes(32)) + b"x"])
@pytest.mark.parametrize(("call", "kind"), [(0, "graph-commitment"), (1, "graph-nonce")])
def test_who_says_something_else_is_named_by_all(said: bytes, call: int, kind: str) -> None:
    errors = run_rewritten(lambda at, m: replace(m, 5, said) if at == call else m)
    assert len(errors) == N
    assert all(type(error) is ProtocolError for error in errors.values())
    expected = f"a {kind} message from rank 5 was expected"
    assert all(str(error).startswith(expected) for error in errors.values())


@pytest.mark.parametrize("nonce", [b"", b"short", bytes(40)], ids=len)
def test_a_kept_promise_of_the_wrong_length_is_refused(nonce: bytes) -> None:
    kept = Format(Kind.GRAPH_NONCE, nonce=fixed(len(nonce))).encode(nonce=nonce)
    said = (promise("run", 5, nonce), kept)
    errors = run_rewritten(lambda call, m: replace(m, 5, (*said, m[5])[call]))
    assert len(errors) == N
    assert all("rank 5" in str(error) for error in errors.values())


def test_nobody_can_take_over_the_commitment_of_another() -> None:
    """A copied nonce would leave nothing of its owner's share in a sum of both."""
    errors = run_rewritten(lambda call, m: replace(m, 5, m[2]) if call < 2 else m)
    assert len(errors) == N
    assert all("rank 5" in str(error) for error in errors.values())


def test_nobody_can_bring_a_commitment_from_another_run() -> None:
    nonce = bytes(range(32))
    said = (promise("yesterday", 5, nonce), nonce_message(nonce))
    errors = run_rewritten(lambda call, m: replace(m, 5, (*said, m[5])[call]))
    assert len(errors) == N
    assert all("rank 5" in str(error) for error in errors.values())


def test_who_tells_two_ranks_different_bytes_stops_all() -> None:
    nonce = bytes(range(32))
    said = (promise("run", 5, nonce), nonce_message(nonce))
    errors = run_rewritten(lambda call, m: replace(m, 5, (*said, m[5])[call]), victims=range(3, 4))
    assert len(errors) == N
    assert all(type(error) is TranscriptMismatch for error in errors.values())
    assert all("rank 3 saw the bytes for the graph" in str(error) for error in errors.values())


@pytest.mark.stat
def test_all_orders_are_equally_likely() -> None:
    """Chi-square over the 24 orders of four ranks, of fresh seeds.

    False-positive rate 1e-9. The power against a shuffle that swaps each place with any other (a
    common mistake) is computed below, from its exact law.
    """
    draws = 20_000
    orders = list(itertools.permutations(range(4)))
    critical = stats.chi2.isf(1e-9, len(orders) - 1)
    mistaken: Counter[tuple[int, ...]] = Counter()
    for swaps in itertools.product(range(4), repeat=4):
        order = [0, 1, 2, 3]
        for place, other in enumerate(swaps):
            order[place], order[other] = order[other], order[place]
        mistaken[tuple(order)] += 1
    shift = draws * sum((mistaken[o] / 256 - 1 / 24) ** 2 * 24 for o in orders)
    assert stats.ncx2.cdf(critical, len(orders) - 1, shift) < 1e-6
    seeds = graph.SystemBits().words(4 * draws).reshape(draws, 4)
    seen = Counter(draw_order(seed.tobytes(), 4) for seed in seeds)
    found = sum((seen[o] - draws / 24) ** 2 / (draws / 24) for o in orders)
    assert sum(seen.values()) == draws
    assert found < critical, found


def test_an_order_with_equal_words_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter([[7, 7, 1], [9, 3, 5]])

    class Stream:
        def words(self, count: int) -> np.ndarray:
            return np.array(next(words), dtype=np.uint64)

    monkeypatch.setattr(graph, "raw_keyed_bits", lambda seed: Stream())
    assert draw_order(bytes(32), 3) == (1, 2, 0)


def test_an_order_holds_every_rank_once_and_repeats_for_its_seed_only() -> None:
    first, again, other = (draw_order(bytes([seed]) * 32, 500) for seed in (1, 1, 2))
    assert sorted(first) == list(range(500))
    assert first == again != other
