"""The sentences on who can learn an input follow the masks, or the custody, that a job has."""

from __future__ import annotations

from typing import Any

import pytest

from mpcfl.config import parse_job
from mpcfl.report.threat_model import (
    backend_words,
    broken_words,
    has_custody,
    neighbors_of,
    threshold_of,
)

CUSTODIES = ("holder", "clients", "threshold")


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


@pytest.mark.parametrize(
    ("custody", "who"),
    [
        ("holder", "This breaks if the holder colludes with a party on the chain"),
        ("clients", "The aggregator is assumed not to collude with any data party"),
        ("threshold", "that pool their shares can decrypt every honest party's input"),
    ],
)
def test_each_custody_says_which_coalition_breaks_it(custody: str, who: str) -> None:
    words = backend_words("paillier", custody)
    assert who in words
    assert not any(
        who in backend_words("paillier", other) for other in CUSTODIES if other != custody
    )


def test_short_exponents_are_an_assumption_of_paillier_and_not_of_phe() -> None:
    for custody in CUSTODIES[:2]:
        both = [backend_words(backend, custody) for backend in ("paillier", "phe")]
        assert all("decisional composite residuosity" in words for words in both)
        assert ["exponents of half the modulus' length" in words for words in both] == [True, False]


def test_how_many_key_shares_decrypt_and_who_is_trusted_to_have_dealt_them() -> None:
    words = backend_words("paillier", "threshold", threshold=(3, 5))
    assert "any 3 of the 5 shares decrypt together" in words
    assert "Up to 2 parties together learn nothing but the opened sum" in words
    assert "any 3 parties that pool their shares" in words
    assert "trusted to have forgotten the key" in words
    assert "in a run without key files, rank 0" in words
    assert "A single party learns nothing" in backend_words(
        "paillier", "threshold", threshold=(2, 5)
    )
    assert "{" not in backend_words("paillier", "threshold")


@pytest.mark.parametrize(("chosen", "expected"), [({}, 31), ({"threshold": 12}, 12)])
def test_a_report_knows_how_many_key_shares_decrypted(
    chosen: dict[str, Any], expected: int
) -> None:
    job = document(backend="paillier", custody="threshold", **chosen)
    assert threshold_of(job) == (expected, 60)


@pytest.mark.parametrize("job", [{}, {"aggregation": {"backend": "gone"}}])
def test_a_job_without_a_shared_key_has_no_threshold(job: dict[str, Any]) -> None:
    assert threshold_of(job) is None
    assert threshold_of(document(backend="paillier", custody="clients")) is None


def test_what_is_left_where_custody_breaks_is_a_partys_own_noise() -> None:
    assert "epsilon 9.2501 over this run" in broken_words("record", 9.25001)
    assert "gives no guarantee" in broken_words("record", None)
    assert "its bare input" in broken_words("none", None)
    assert [has_custody(name) for name in ("phe", "paillier", "ring")] == [True, True, False]
