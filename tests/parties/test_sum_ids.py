"""Every sum of a run is named by its round and its attempt, so no two of them share a mask."""

from __future__ import annotations

from typing import Any

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.parties.data_party import Hooks, run_data_party
from mpcfl.parties.setup import make_rank
from mpcfl.round import sum_settings
from mpcfl.secagg.base import SumId


class NotedSum:
    """A session that notes under which name each sum is protected."""

    def __init__(self, secure: Any) -> None:
        self._secure = secure
        self.names: list[SumId | None] = []

    def protect(self, levels: Any, sum_id: SumId | None = None) -> Any:
        self.names.append(sum_id)
        return self._secure.protect(levels, sum_id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._secure, name)


@pytest.fixture(params=["ring", "crypten"])
def job(request: pytest.FixtureRequest) -> Job:
    document = {
        "task": "toy",
        "parties": {"count": 2},
        "privacy": {"unit": "none"},
        "training": {"rounds": 4},
        "aggregation": {"backend": request.param},
    }
    return parse_job(document, "inline")


def names_of_sums(job: Job, first_round: int, attempts: dict[int, int]) -> list[list[SumId]]:
    ranks = [make_rank(job, number) for number in range(2)]

    def party(transport: MemoryTransport) -> list[SumId]:
        rank = ranks[transport.rank]
        rank.first_round, rank.attempts = first_round, attempts
        secure: Any = NotedSum(rank.open_backend(transport, sum_settings(rank.public, "00" * 16)))
        run_data_party(rank, secure, transport, Hooks())
        secure.close()
        return secure.names

    return run_parties(2, party)


def test_a_new_run_makes_first_attempts(job: Job) -> None:
    assert names_of_sums(job, 0, {}) == [[SumId(k) for k in range(4)]] * 2


def test_a_resumed_run_names_the_attempt_at_the_round_that_broke_off(job: Job) -> None:
    expected = [SumId(1, 2), SumId(2, 1), SumId(3)]
    assert names_of_sums(job, 1, {0: 1, 1: 2, 2: 1}) == [expected] * 2
