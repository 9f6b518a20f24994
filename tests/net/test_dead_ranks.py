"""A wait that MPI never ends: it knows of a death, and leaves the request pending."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from mpcfl.errors import PartyLost
from mpcfl.net.meter import Meter
from mpcfl.net.mpi_requests import Deadline


class FakeOwner:
    """A transport whose MPI says that some ranks are dead."""

    deadline_s = 30.0
    meter = Meter()

    def __init__(self, dead: tuple[int, ...]) -> None:
        self.dead = dead
        self.kept: list[object] = []
        self.watched = 0

    def party_names(self, ranks: Iterable[int]) -> str:
        return ", ".join(f"party-{rank}" for rank in ranks)

    def failed_ranks(self) -> tuple[int, ...]:
        return self.dead

    def watch(self) -> None:
        self.watched += 1

    def abandon(self, in_use: object) -> None:
        self.kept.append(in_use)


def test_request_that_never_ends_fails_once_its_rank_is_known_to_be_dead() -> None:
    owner = FakeOwner(dead=(2, 5))
    start = time.monotonic()
    with (
        pytest.raises(PartyLost, match=r"^party-2 died during the run$") as caught,
        Deadline(owner, (1, 2, 3), "buffers") as deadline,
    ):
        deadline.wait(lambda: False, lambda: [1, 2])
    assert caught.value.ranks == (2,)
    assert owner.kept == ["buffers"]
    assert time.monotonic() - start < 5.0  # long before the deadline


def test_dead_rank_that_nobody_waits_for_does_not_matter() -> None:
    owner = FakeOwner(dead=(5,))
    owner.deadline_s = 0.3
    with (
        pytest.raises(PartyLost, match=r"party-1 did not answer within 0.3 s") as caught,
        Deadline(owner, (1, 2), None) as deadline,
    ):
        deadline.wait(lambda: False, lambda: [1])
    assert caught.value.ranks == (1,)


def test_what_came_before_its_sender_died_is_taken() -> None:
    polls = iter([False] * 200 + [True])
    owner = FakeOwner(dead=())

    def is_done() -> bool:
        done = next(polls)
        if done:
            owner.dead = (1,)
        return done

    with Deadline(owner, (1,), None) as deadline:
        deadline.wait(is_done, lambda: [1])
    assert owner.kept == []
