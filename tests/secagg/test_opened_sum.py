"""What is known of a sum in pieces, and how a model is made of pieces over different rosters."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpcfl.config import Job, parse_job
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.dp.plan import ring_plan_for_job
from mpcfl.secagg.opened_sum import OpenedSum, PartialSum, Piece, Span, comparable_levels, take

DIM = 10
EVERYBODY = (0, 1, 2, 3)
LEFT = (0, 2, 3)


def piece(start: int, stop: int, attempt: int = 0) -> Piece:
    return Piece((start, stop), attempt, np.arange(start, stop, dtype=np.int64) * 7 - 20)


WHOLE = piece(0, DIM).values


def pieces_of(*pieces: Piece) -> OpenedSum:
    opened = OpenedSum(DIM)
    opened.note_roster(0, EVERYBODY)
    opened.note_roster(1, LEFT)
    for one in pieces:
        opened.add(one)
    return opened


@given(st.lists(st.integers(1, DIM - 1), unique=True), st.randoms(use_true_random=False))
def test_pieces_in_any_order_make_the_whole(cuts: list[int], order: Any) -> None:
    edges = [0, *sorted(cuts), DIM]
    spans = list(itertools.pairwise(edges))
    order.shuffle(spans)
    opened = pieces_of()
    missing = set(range(DIM))
    for start, stop in spans:
        with pytest.raises(ValueError, match="not all of this sum"):
            opened.vector()
        opened.add(piece(start, stop))
        missing -= set(range(start, stop))
        assert {at for first, last in opened.missing for at in range(first, last)} == missing
        gaps = opened.missing
        assert all(one[1] < other[0] for one, other in itertools.pairwise(gaps))
    assert np.array_equal(opened.vector(), WHOLE)
    assert [one.span for one in opened.pieces] == sorted(spans)


def test_the_same_piece_again_changes_nothing() -> None:
    opened = pieces_of(piece(2, 5), piece(2, 5))
    assert len(opened.pieces) == 1
    assert opened.missing == ((0, 2), (5, 10))


@pytest.mark.parametrize("span", [(4, 6), (2, 4), (3, 4), (0, 10), (2, 6)])
def test_a_coordinate_is_never_known_twice(span: Span) -> None:
    opened = pieces_of(piece(2, 5))
    with pytest.raises(ValueError, match="opened twice"):
        opened.add(piece(*span, attempt=1))
    opened.add(piece(5, 6, attempt=1))
    opened.add(piece(1, 2, attempt=1))
    assert opened.missing == ((0, 1), (6, 10))


def test_an_empty_piece_is_none() -> None:
    assert pieces_of(Piece((3, 3), 0, np.empty(0, np.int64))).missing == ((0, DIM),)


def test_an_aggregator_knows_that_all_is_opened_but_not_what() -> None:
    opened = pieces_of(Piece((0, DIM), 0, None))
    assert opened.missing == ()
    with pytest.raises(ValueError, match="not all of this sum is known here"):
        opened.vector()


def test_a_whole_sum_is_the_vector_itself() -> None:
    opened = OpenedSum.whole(WHOLE, EVERYBODY)
    assert opened.vector() is WHOLE
    assert opened.rosters == {0: EVERYBODY}
    assert opened.factors(len) is None


def test_rosters_are_those_of_attempts_that_opened_something() -> None:
    opened = pieces_of(piece(0, 4, 1))
    assert opened.rosters == {1: LEFT}
    opened.add(piece(4, DIM, 0))
    assert opened.rosters == {0: EVERYBODY, 1: LEFT}
    assert opened.widest_roster == EVERYBODY


def test_factors_make_up_for_who_was_missing() -> None:
    opened = pieces_of(piece(0, 4), piece(4, DIM, 1))
    factors = opened.factors(len)
    assert factors is not None
    assert factors.tolist() == [1.0] * 4 + [4 / 3] * 6


def test_attempts_of_one_roster_need_no_factors() -> None:
    """As when messages were lost but nobody was, or a count of attempts went on."""
    opened = pieces_of(piece(0, 4), piece(4, DIM, 1))
    opened.note_roster(1, EVERYBODY)
    assert opened.factors(len) is None


class Parts:
    """A session of six coordinates that falls into three parts."""

    parts = (slice(0, 1), slice(1, 5), slice(5, 6))

    def __init__(self) -> None:
        self.given: list[Any] = []

    def protect(self, levels: Any, sum_id: Any = None) -> Any:
        self.given.append(levels)
        return levels

    def aggregate(self, protected: Any) -> Any:
        return protected

    def open(self, aggregated: Any) -> Any:
        return 4 * aggregated


SPANS = ((1, 3), (4, 7), (9, 10))


def test_a_partial_sum_is_made_of_the_coordinates_that_are_missing() -> None:
    inner: Any = Parts()
    session = PartialSum(inner, SPANS)
    levels = np.arange(DIM) * 10
    total = session.open(session.aggregate(session.protect(levels)))
    assert inner.given[0].tolist() == [10, 20, 40, 50, 60, 90]
    assert total.tolist() == [40, 80, 160, 200, 240, 360]
    assert session.protect(None) is None


def test_places_of_parts_are_those_of_the_whole_vector() -> None:
    session = PartialSum(Parts(), SPANS)  # type: ignore[arg-type]  # only what is used here
    assert [session.places(part) for part in Parts.parts] == [[(1, 2)], [(2, 3), (4, 7)], [(9, 10)]]
    opened = pieces_of(piece(0, 1), piece(3, 4), piece(7, 9))
    assert opened.missing == SPANS
    assert WHOLE is not None
    opened.add_all(take(WHOLE, SPANS), session, attempt=1)
    assert opened.missing == ()
    assert np.array_equal(opened.vector(), WHOLE)


@given(st.lists(st.integers(0, DIM), min_size=2, max_size=DIM, unique=True))
def test_places_of_any_spans_cover_each_coordinate_once(edges: list[int]) -> None:
    edges = sorted(edges)[: len(edges) // 2 * 2]
    spans = tuple(zip(edges[::2], edges[1::2], strict=True))
    session = PartialSum(Parts(), spans)  # type: ignore[arg-type]  # only what is used here
    wanted = [at for start, stop in spans for at in range(start, stop)]
    cuts = [slice(start, start + 2) for start in range(0, len(wanted), 2)]
    found = [at for cut in cuts for start, stop in session.places(cut) for at in range(start, stop)]
    assert found == wanted


def test_the_whole_vector_is_not_copied() -> None:
    levels = np.arange(DIM)
    assert take(levels, ((0, DIM),)) is levels


def job_of(parties: dict[str, Any] | None = None, **privacy: Any) -> Job:
    document = {
        "task": "toy",
        "parties": {"count": 4, "max_dropout": 1} | (parties or {}),
        "privacy": {"unit": "party", "epsilon": 8.0, "spare_attempts": 1} | privacy,
        "training": {"rounds": 1},
        "aggregation": {"backend": "ring"},
    }
    return parse_job(document, "inline")


def two_rosters(ring: NoisePlan) -> tuple[OpenedSum, NDArray[np.int64]]:
    """The first two coordinates over everybody, the others over those who were left."""
    levels = np.array([1000, -7, 3, 12345, -9, 1, 2, 3][: ring.vector_dim], dtype=np.int64)
    opened = OpenedSum(ring.vector_dim)
    opened.note_roster(0, EVERYBODY)
    opened.note_roster(1, LEFT)
    opened.add(Piece((0, 2), 0, levels[:2]))
    opened.add(Piece((2, ring.vector_dim), 1, levels[2:]))
    return opened, levels


@pytest.mark.parametrize(
    ("parties", "privacy", "weight_of_all", "weight_of_left"),
    [
        ({}, {}, 4.0, 3.0),
        ({}, {"clipping": "adaptive"}, 4.0, 3.0),
        ({"weighting": "public", "weights": [0.1, 0.4, 0.2, 0.3]}, {}, 1.0, 0.6),
        (
            {"weighting": "public", "weights": [0.1, 0.4, 0.2, 0.3]},
            {"clipping": "adaptive"},
            1.0,
            0.6,
        ),
        ({"weighting": "private", "max_records": 100}, {}, 4.0, 3.0),
    ],
    ids=["uniform", "counts", "public weights", "both", "private weights"],
)
def test_levels_are_as_if_the_widest_roster_had_made_them_all(
    parties: dict[str, Any], privacy: dict[str, Any], weight_of_all: float, weight_of_left: float
) -> None:
    """Up to the step of 2^-10 by weight; counts by number."""
    job = job_of(parties, **privacy)
    ring = ring_plan_for_job(job, 5)
    opened, levels = two_rosters(ring)
    comparable = comparable_levels(opened, ring, job.parties)
    wanted = levels.astype(np.float64)
    wanted[2 : ring.rotated_dim] *= weight_of_all / weight_of_left
    wanted[ring.rotated_dim :] *= 4 / 3
    assert np.abs(comparable - wanted).max() <= 2**-11 + np.abs(wanted).max() * 2**-52
    assert np.array_equal(comparable * 1024, np.rint(comparable * 1024))
    assert np.array_equal(comparable[:2], levels[:2])


def test_a_sum_over_one_roster_stays_whole_numbers() -> None:
    job = job_of()
    ring = ring_plan_for_job(job, 5)
    levels = np.arange(ring.vector_dim, dtype=np.int64)
    assert comparable_levels(OpenedSum.whole(levels, LEFT), ring, job.parties) is levels


@settings(max_examples=30)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5), st.integers(1, 4))
def test_sums_of_comparable_levels_are_exact_in_any_order(values: list[int], cut: int) -> None:
    """All parties rotate and add them up; every order must give the same bits."""
    job = job_of()
    ring = ring_plan_for_job(job, 5)
    opened = OpenedSum(5)
    opened.note_roster(0, EVERYBODY)
    opened.note_roster(1, LEFT)
    levels = np.array(values, dtype=np.int64)
    opened.add(Piece((0, cut), 0, levels[:cut]))
    opened.add(Piece((cut, 5), 1, levels[cut:]))
    comparable = comparable_levels(opened, ring, job.parties)
    forward, backward = 0.0, 0.0
    for value in comparable:
        forward += value
    for value in comparable[::-1]:
        backward += value
    assert forward == backward
