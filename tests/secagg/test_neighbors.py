"""How many neighbors are enough: every small case counted, larger ones drawn at random."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.errors import PlanError
from mpcfl.hazmat.bits import SystemBits
from mpcfl.secagg import neighbors as module
from mpcfl.secagg.neighbors import (
    check_neighbors,
    disconnect_probability,
    failure_exponent,
    least_neighbors,
    most_removed,
    neighbors_on_circle,
    resolve_neighbors,
)

LIMIT = Fraction(1, 2**40)
ROOT = Path(__file__).parents[2]


def choices(n: int) -> list[int]:
    """Return every number of neighbors that a circle of n can have, and one beyond."""
    return sorted({*range(2, n + 2, 2), n - 1})


def is_connected(members: int, links: list[int]) -> bool:
    """Walk from one member along links; sets of parties are bits of an integer."""
    reached = members & -members
    todo = reached
    while todo:
        party = todo.bit_length() - 1
        todo &= ~(1 << party)
        new = links[party] & members & ~reached
        reached |= new
        todo |= new
    return reached == members


@pytest.mark.parametrize("n", range(1, 10))
def test_probability_is_that_of_all_removals_counted_one_by_one(n: int) -> None:
    for neighbors in choices(n):
        if neighbors < 1:
            continue
        links = [
            sum(1 << other for other in neighbors_on_circle(range(n), party, neighbors))
            for party in range(n)
        ]
        apart = Counter(
            n - members.bit_count() for members in range(2**n) if not is_connected(members, links)
        )
        for removed in range(n + 1):
            counted = Fraction(apart[removed], math.comb(n, removed))
            assert disconnect_probability(n, removed, neighbors) == counted


@pytest.mark.stat
@pytest.mark.parametrize(("removed", "neighbors"), [(15, 6), (40, 16), (50, 26)])
def test_random_circles_fall_apart_as_often_as_computed(removed: int, neighbors: int) -> None:
    """Two-sided z-test on survivors of random orders that are walked along their links.

    False-positive rate 1e-9. 150,000 orders reject 0.9 P and 1.1 P with power above 1 - 1e-6 for
    every P from 0.08 on: (6.11 sqrt(P (1 - P)) + 4.76 sqrt(1.1 P (1 - 1.1 P))) / sqrt(N) < P / 10.
    """
    n, draws, half = 60, 150_000, neighbors // 2
    expected = float(disconnect_probability(n, removed, neighbors))
    assert 0.08 < expected < 0.3
    # Whoever gets one of the smallest words is removed: a uniformly random set of positions.
    positions = np.argsort(SystemBits().words(draws * n).reshape(draws, n), axis=1)[:, removed:]
    bits = np.uint64(1) << positions.astype(np.uint64)
    members = np.bitwise_or.reduce(bits, axis=1)
    reached = bits[:, 0]
    while True:
        spread = reached.copy()
        for step in range(1, half + 1):
            left, right = np.uint64(step), np.uint64(n - step)
            spread |= (reached << left) | (reached >> right)
            spread |= (reached >> left) | (reached << right)
        spread &= members  # also drops what was shifted beyond bit n
        if np.array_equal(spread, reached):
            break
        reached = spread
    found = np.count_nonzero(reached != members)
    score = (found - draws * expected) / math.sqrt(draws * expected * (1 - expected))
    assert abs(score) < 6.11, (found, draws * expected)


@given(st.integers(4, 60), st.data())
def test_more_neighbors_never_fall_apart_more_often(n: int, data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, n))
    neighbors = 2 * data.draw(st.integers(1, n // 2))
    more = disconnect_probability(n, removed, neighbors + 2)
    assert 0 <= more <= disconnect_probability(n, removed, neighbors) <= 1


def test_more_removed_may_fall_apart_less_often() -> None:
    assert disconnect_probability(9, 6, 2) == Fraction(25, 28)
    assert disconnect_probability(9, 7, 2) == Fraction(6, 8)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 12, 13, 60, 101])
def test_least_neighbors_are_safe_for_every_smaller_coalition_and_no_fewer_are(n: int) -> None:
    worst = {
        neighbors: list(
            itertools.accumulate(
                (disconnect_probability(n, removed, neighbors) for removed in range(n)), max
            )
        )
        for neighbors in choices(n)
        if 1 <= neighbors < n
    }
    for removed in range(n):
        safe = [k for k, risks in worst.items() if risks[removed] <= LIMIT]
        assert least_neighbors(n, removed, 0) == min(safe)
        assert least_neighbors(n, 0, removed) == min(safe)
    for neighbors, risks in worst.items():
        assert most_removed(n, neighbors) == sum(risk <= LIMIT for risk in risks) - 1


def test_the_bound_that_ends_the_search_is_a_bound_and_grows() -> None:
    for n, half in itertools.product((9, 20, 31), (1, 2, 3, 4)):
        bounds = [module._first_term(n, removed, half) for removed in range(n)]
        for removed in range(n):
            assert bounds[removed] >= disconnect_probability(n, removed, 2 * half)
            if removed + 1 <= half * (n - removed) and removed + 1 < n:
                assert bounds[removed] <= bounds[removed + 1]


@pytest.mark.parametrize(
    ("n", "each", "least", "with_thresholds"),
    [(100, 33, 54, 68), (1000, 330, 90, 286), (10_000, 3300, 104, 422)],
)
def test_published_degrees_that_carry_thresholds_too_are_larger(
    n: int, each: int, least: int, with_thresholds: int
) -> None:
    """Bell et al. 2020 give the last figures for a third colluding and a third missing."""
    assert least_neighbors(n, each, each) == least < with_thresholds
    assert most_removed(n, least) >= 2 * each


def test_fewer_removed_than_neighbors_never_fall_apart() -> None:
    for n in (10, 100, 10_000):
        for neighbors in (2, 4, 8):
            assert failure_exponent(n, neighbors - 1, neighbors) is None
            assert most_removed(n, neighbors) >= neighbors - 1
    assert least_neighbors(10_000, 1, 0) == 2


def test_the_exponent_is_rounded_up() -> None:
    for n, removed, neighbors in itertools.product((40, 41), (6, 12, 20), (2, 4, 6, 12, 18, 20)):
        exponent = failure_exponent(n, removed, neighbors)
        risk = module._risk(n, removed, neighbors)
        assert (exponent is None) == (risk == 0)
        if exponent is not None:
            assert Fraction(2) ** (exponent - 1) < risk <= Fraction(2) ** exponent
    assert module._exponent(Fraction(1)) == 0
    assert module._exponent(LIMIT) == -40
    assert module._exponent(LIMIT * Fraction(2**50 + 1, 2**50)) == -39
    assert module._exponent(LIMIT * Fraction(2**50 - 1, 2**50)) == -40


def test_a_circle_closed_over_lost_parties_is_no_worse() -> None:
    for n, lost, colluding in itertools.product((8, 20, 30), (1, 3, 6), (1, 4)):
        for neighbors in (2, 4, 6):
            closed = disconnect_probability(n - lost, min(colluding, n - lost), neighbors)
            assert closed <= disconnect_probability(n, min(colluding + lost, n), neighbors) or (
                colluding + lost >= n - 1
            )


@pytest.mark.parametrize(
    ("neighbors", "words"),
    [
        (8, r"neighbors = 8 is not safe.* 10 of 60 .* 0 missing.*2\^-\d+,.*2\^-40.* take 12 or"),
        (2, r"neighbors = 2 is not safe"),
        (13, r"neighbors = 13 must be even .* take 12 or more"),
        (0, r"neighbors = 0 must be even and at least 2"),
        (-2, r"at least 2"),
    ],
)
def test_unsafe_neighbors_are_refused_with_the_least_that_are_safe(
    neighbors: int, words: str
) -> None:
    assert least_neighbors(60, 10, 0) == 12
    for refuse in (
        lambda: check_neighbors(neighbors, 60, 10, 0),
        lambda: resolve_neighbors(neighbors, 60, 10, 0),
    ):
        with pytest.raises(PlanError, match=words):
            refuse()


def test_the_probability_in_a_refusal_is_the_one_of_the_plan() -> None:
    exponent = failure_exponent(60, 10, 8)
    chance = disconnect_probability(60, 10, 8)
    assert Fraction(2) ** (exponent - 1) < chance <= Fraction(2) ** exponent
    with pytest.raises(PlanError, match=re.escape(f"up to 2^{exponent},")):
        check_neighbors(8, 60, 10, 0)


def test_choices_become_a_number_or_all() -> None:
    assert resolve_neighbors("all", 60, 10, 0) is None
    assert resolve_neighbors("auto", 60, 10, 0) == 12
    assert resolve_neighbors(12, 60, 10, 0) == 12
    assert resolve_neighbors(20, 60, 10, 0) == 20
    # n - 1 and more are a complete graph, odd or not.
    for many in (59, 60, 61, 1000):
        assert resolve_neighbors(many, 60, 10, 0) is None
    assert [resolve_neighbors("auto", n, 1, 0) for n in (1, 2, 3, 4)] == [None, None, None, 2]


@pytest.mark.parametrize(("colluding", "missing"), [(9, 0), (5, 4), (8, 0), (20, 0)])
def test_where_nothing_is_left_to_hide_smaller_coalitions_still_face_a_complete_graph(
    colluding: int, missing: int
) -> None:
    assert least_neighbors(10, colluding, missing) == 9
    assert resolve_neighbors("auto", 10, colluding, missing) is None
    with pytest.raises(PlanError, match="take 9 or more"):
        check_neighbors(8, 10, colluding, missing)


@pytest.mark.parametrize("counts", [(0, 1, 0), (5, -1, 0), (5, 1, -1)])
def test_counts_that_make_no_sense_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a plan"):
        least_neighbors(*counts)


@given(st.permutations(range(11)), st.sampled_from([2, 4, 6, 8, 10, 11]))
def test_neighbors_stand_next_to_each_other_and_name_each_other(
    order: list[int], neighbors: int
) -> None:
    named = [neighbors_on_circle(order, rank, neighbors) for rank in range(11)]
    for rank, others in enumerate(named):
        assert list(others) == sorted(set(others) - {rank})
        assert len(others) == min(neighbors, 10)
        assert all(rank in named[other] for other in others)
        distances = {(order.index(other) - order.index(rank)) % 11 for other in others}
        assert all(min(d, 11 - d) <= max(neighbors // 2, 1) for d in distances)


EDGES = [(0, 1), (1, 2), (2, 3)]


def masked_vectors(inputs: tuple[int, ...], edges: list[tuple[int, int]]) -> Counter:
    """Count what may be sent, over all masks in Z_4."""
    seen: Counter = Counter()
    for masks in itertools.product(range(4), repeat=len(edges)):
        sent = list(inputs)
        for mask, (adds, subtracts) in zip(masks, edges, strict=True):
            sent[adds] += mask
            sent[subtracts] -= mask
        seen[tuple(value % 4 for value in sent)] += 1
    return seen


@pytest.mark.parametrize("edges", [EDGES, [*EDGES, (0, 2)], [(0, 1), (0, 2), (0, 3)]])
def test_masks_on_a_connected_graph_hide_all_but_the_sum(edges: list[tuple[int, int]]) -> None:
    seen = masked_vectors((1, 2, 3, 0), edges)
    assert seen == masked_vectors((0, 0, 2, 0), edges)
    assert len(seen) == 4**3
    assert len(set(seen.values())) == 1
    # With a link less there are two parts, and their sums show.
    parted = [EDGES[0], EDGES[2]]
    assert masked_vectors((1, 2, 3, 0), parted) == masked_vectors((3, 0, 0, 3), parted)
    assert masked_vectors((1, 2, 3, 0), parted) != masked_vectors((0, 0, 2, 0), parted)


def test_every_test_that_the_proof_names_is_there() -> None:
    text = (ROOT / "docs" / "proofs.md").read_text().partition("## 6 Sparse graphs")[2]
    named = set(re.findall(r"`test_neighbors\.py::(\w+)`", text))
    assert len(named) >= 5
    assert named <= globals().keys()


@pytest.mark.parametrize("n", range(3, 11))
def test_the_stated_probability_covers_every_smaller_number_of_removed_parties(n: int) -> None:
    for k in choices(n):
        worst = Fraction(0)
        for removed in range(n + 1):
            worst = max(worst, disconnect_probability(n, removed, k))
            stated = failure_exponent(n, removed, k)
            if worst == 0:
                assert stated is None
            else:
                assert stated is not None
                # Above 2^-40 only one unsafe number is looked for, so it says "unsafe" at least.
                assert 2.0**stated >= worst or stated > -40
