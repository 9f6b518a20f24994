"""Every sum of a run is named by its round and its attempt, so no two of them share a mask."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.parties.setup import Rank
from mpcfl.report.run_folder import RunFolder
from mpcfl.secagg.base import SumId

sys.path.append(str(Path(__file__).parent))

from parties_in_threads import run_job

pytestmark = pytest.mark.usefixtures("no_page")


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


def names_of_sums(
    job: Job, folder: Path, first_round: int = 0, attempts: Mapping[int, int] | None = None
) -> list[list[SumId]]:
    """Run a job from a round on; return what each party called its sums."""

    def prepare(rank: Rank) -> None:
        rank.first_round, rank.attempts = first_round, dict(attempts or {})

    ran = run_job(job, RunFolder(folder / "run"), prepare=prepare)
    assert ran.errors == {}
    return [[sum_id for number, sum_id in ran.inputs if number == party] for party in range(2)]


def test_a_new_run_makes_first_attempts(job: Job, tmp_path: Path) -> None:
    assert names_of_sums(job, tmp_path) == [[SumId(k) for k in range(4)]] * 2


def test_a_resumed_run_names_the_attempt_at_the_round_that_broke_off(
    job: Job, tmp_path: Path
) -> None:
    expected = [SumId(1, 2), SumId(2, 1), SumId(3)]
    assert names_of_sums(job, tmp_path, 1, {0: 1, 1: 2, 2: 1}) == [expected] * 2
