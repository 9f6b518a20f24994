"""The sentences on who can learn an input follow the masks that a job has."""

from __future__ import annotations

from typing import Any

import pytest

from mpcfl.config import parse_job
from mpcfl.report.threat_model import backend_words, neighbors_of


def document(**aggregation: Any) -> dict[str, Any]:
    """Return a job of 60 parties as a run's report holds it."""
    job = {
        "task": "toy",
        "parties": {"count": 60, "colluding": 10},
        "privacy": {"unit": "none"},
        "training": {"rounds": 1},
        "aggregation": {"backend": "ring", **aggregation},
    }
    return parse_job(job, "job").model_dump(mode="json")


@pytest.mark.parametrize("backend", ["ring", "crypten"])
def test_only_all_others_together_where_all_share_masks(backend: str) -> None:
    words = backend_words(backend, None)
    assert "only all other parties together can learn an honest party's input" in words


@pytest.mark.parametrize("backend", ["ring", "crypten"])
def test_so_many_neighbors_as_there_are_where_some_share_masks(backend: str) -> None:
    words = backend_words(backend, None, 12)
    assert "only all other parties" not in words
    assert "shares masks with 12 others only" in words
    assert "Any 12 parties that are all the neighbors of one party can learn its input" in words


def test_what_crypten_does_with_a_sum_further_on_is_said_to_trust_rank_0() -> None:
    for neighbors in (None, 12):
        assert "trusts rank 0" in backend_words("crypten", None, neighbors)
        assert "trusts rank 0" not in backend_words("ring", None, neighbors)


@pytest.mark.parametrize(
    ("choice", "neighbors"), [("all", None), ("auto", 12), (20, 20), (59, None)]
)
def test_a_report_knows_how_many_neighbors_there_were(choice: object, neighbors: int) -> None:
    assert neighbors_of(document(neighbors=choice)) == neighbors


def test_a_job_from_before_there_were_neighbors_had_all() -> None:
    old = document()
    del old["aggregation"]["neighbors"]
    assert neighbors_of(old) is None
    assert neighbors_of({}) is None
    assert neighbors_of({"aggregation": {"backend": "gone"}}) is None
