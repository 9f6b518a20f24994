"""A roster counts with the signatures of all in it, on this epoch and these members only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from mpcfl.errors import AuthenticationError, MpcflError, PartyLost, ProtocolError
from mpcfl.net.identity import Identity
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.net.view import View, confirm_view

RUN = "5a" * 16
VIEW = View(RUN, 1, (0, 2, 3))
PEOPLE = [Identity.new() for _ in VIEW.members]
KEYS = [person.public_key for person in PEOPLE]
Saw = Callable[[int], View]


def confirmed(
    saw: Saw = lambda _: VIEW,
    people: Sequence[Identity] = PEOPLE,
    keys: Sequence[bytes] = KEYS,
) -> dict[int, MpcflError | None]:
    """Let every member confirm the view that it sees; return what each of them raised."""
    raised: dict[int, MpcflError | None] = {}

    def member(transport: MemoryTransport) -> None:
        place = transport.rank
        try:
            confirm_view(transport, saw(place), people[place], keys)
            raised[place] = None
        except MpcflError as error:
            raised[place] = error

    run_parties(len(VIEW.members), member, deadline_s=2.0)
    return raised


def test_all_who_see_one_view_confirm_it() -> None:
    assert confirmed() == {0: None, 1: None, 2: None}


@pytest.mark.parametrize(
    "other",
    [
        View(RUN, 2, VIEW.members),
        View(RUN, 0, VIEW.members),
        View(RUN, 1, (0, 2)),
        View(RUN, 1, (0, 2, 4)),
        View("a5" * 16, 1, VIEW.members),
    ],
    ids=["later epoch", "earlier epoch", "fewer members", "other member", "other run"],
)
def test_a_member_with_another_view_is_named_by_all_others_and_accepts_nobody(other: View) -> None:
    raised = confirmed(lambda place: other if place == 1 else VIEW)
    assert all(isinstance(error, AuthenticationError) for error in raised.values())
    for place in (0, 2):
        assert "from party 2 " in str(raised[place])
        assert "in stage view" in str(raised[place])


def test_a_signature_under_another_identity_is_refused() -> None:
    people = [PEOPLE[0], Identity.new(), PEOPLE[2]]
    raised = confirmed(people=people)
    assert all(isinstance(error, AuthenticationError) for error in raised.values())
    assert {error.peer for error in raised.values() if isinstance(error, AuthenticationError)} == {
        "party 2"
    }


def test_the_signature_of_another_member_is_not_enough() -> None:
    """Nobody can say for another that it has seen the view."""
    raised = confirmed(people=[PEOPLE[0], PEOPLE[0], PEOPLE[2]])
    assert all(isinstance(error, AuthenticationError) for error in raised.values())


def test_what_is_no_signature_is_refused() -> None:
    def member(transport: MemoryTransport) -> None:
        if transport.rank == 1:
            transport.allgather(b"yes")
            return
        with pytest.raises(ProtocolError):
            confirm_view(transport, VIEW, PEOPLE[transport.rank], KEYS)

    run_parties(3, member)


def test_a_view_that_one_member_does_not_sign_counts_for_nobody() -> None:
    def member(transport: MemoryTransport) -> None:
        if transport.rank != 1:
            with pytest.raises(PartyLost):
                confirm_view(transport, VIEW, PEOPLE[transport.rank], KEYS)

    run_parties(3, member, deadline_s=0.1)


def test_different_views_never_have_one_statement() -> None:
    views = [
        View(run_id, epoch, members)
        for run_id in (RUN, "a5" * 16)
        for epoch in (0, 1, 2, 12)
        for members in ((0,), (1,), (0, 1), (0, 12), (0, 1, 2), (1, 2))
    ]
    assert len({view.statement for view in views}) == len(views)
    assert len({view.digest for view in views}) == len(views)
