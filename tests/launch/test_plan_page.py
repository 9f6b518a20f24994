"""The page and the document of `mpcfl plan`, for every kind of plan that there is."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import pytest
from rich.console import Console

from mpcfl.config import Job, parse_job
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.dp.plan import plan_for_job, ring_plan_for_job
from mpcfl.errors import PlanError
from mpcfl.launch.mask_graph import graph_of_job
from mpcfl.launch.plan_command import plan_document
from mpcfl.launch.plan_figures import detection_rate, missing_rows, noise_in_mean, paid_rounds
from mpcfl.launch.plan_page import print_page
from mpcfl.launch.plan_words import odds
from mpcfl.round import public_state, sum_settings
from mpcfl.secagg.neighbors import failure_exponent, least_neighbors, most_removed

RECORD = {"unit": "record", "records": 1000, "sample_rate": 0.1}
UNPROTECTED = {"none", "unhidden"}
KEYS = {"scale", "local_sigma", "noise_multiplier", "norm_bound_int", "fingerprint", "epsilons"}


def job(privacy: dict[str, Any], **tables: dict[str, Any]) -> Job:
    document = {
        "task": "digits",
        "parties": {"count": 10},
        "privacy": {"unit": "party", "epsilon": 8.0, **privacy},
        "training": {"rounds": 10},
        "aggregation": {"backend": "ring"},
    }
    return parse_job(document | tables, "job")


JOBS: dict[str, Job] = {
    "party": job({}, parties={"count": 10, "max_dropout": 3, "colluding": 2}),
    "record": job({**RECORD, "epsilon": 2.0}),
    "people": job({**RECORD, "sample_rate": 1.0, "max_parties_per_person": 3}),
    "local": job({**RECORD, "placement": "local"}, training={"rounds": 10, "local_steps": 3}),
    "adaptive": job({"clipping": "adaptive"}),
    "private-weights": job(
        {}, parties={"count": 10, "weighting": "private", "max_records": 500}
    ),
    "public-weights": job(
        {}, parties={"count": 2, "weighting": "public", "weights": (1.0, 2.0)}
    ),
    "low-bit": job({"rotation": "hadamard"}, aggregation={"backend": "ring", "modulus_bits": 12}),
    "skellam": job({"mechanism": "skellam", "accountant": "rdp"}),
    "auto": job(
        {},
        parties={"count": 100, "colluding": 20, "max_dropout": 10},
        aggregation={"backend": "ring", "neighbors": "auto"},
    ),
    "two": job(
        {},
        parties={"count": 10},
        aggregation={"backend": "crypten", "neighbors": "auto"},
    ),
    "wide": job(
        {},
        parties={"count": 60, "colluding": 2},
        aggregation={"backend": "ring", "neighbors": 20},
    ),
    "unhidden": parse_job(
        {
            "task": "toy", "parties": {"count": 30, "colluding": 3}, "privacy": {"unit": "none"},
            "training": {"rounds": 2}, "aggregation": {"backend": "ring", "neighbors": 20},
        },
        "job",
    ),
    "given-noise": job({"noise_multiplier": 1.0}),
    "none": parse_job(
        {
            "task": "toy", "parties": {"count": 3}, "privacy": {"unit": "none"},
            "training": {"rounds": 2}, "aggregation": {"backend": "plain"},
        },
        "job",
    ),
}  # fmt: skip


def plan(name: str) -> NoisePlan:
    return plan_for_job(JOBS[name], 650)


def page(name: str, columns: int = 100) -> str:
    console = Console(width=columns, file=io.StringIO(), force_terminal=True, no_color=True)
    print_page(console, JOBS[name], plan(name))
    text = console.file.getvalue()
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def sentences(name: str) -> str:
    """Return the page as one line, so that a sentence may be looked for."""
    return " ".join(page(name).split())


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("columns", [80, 120])
def test_every_plan_is_a_page_that_fits_the_window(name: str, columns: int) -> None:
    text = page(name, columns)
    assert max(len(line) for line in text.splitlines()) <= min(columns, 100)
    assert "fingerprint" in text
    assert plan(name).fingerprint() in text
    assert "  None" not in text
    assert not re.search(r"\b(nan|inf)\b", text)


@pytest.mark.parametrize("name", [name for name in JOBS if name not in UNPROTECTED])
def test_sentences_come_first_and_numbers_last(name: str) -> None:
    text = page(name)
    headings = [
        "Who is protected", "What the figure means", "Against whom", "If parties are missing",
        "The noise", "How it is counted", "What is not covered", "For experts", "Fingerprint",
    ]  # fmt: skip
    places = [text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)


def test_the_figure_is_explained_as_odds_and_as_a_test() -> None:
    text = sentences("record")
    assert "odds that a record was used change by at most a factor e^2 = 7.39" in text
    assert "except with probability 1e-05" in text
    # min(e^2 0.05 + delta, 1 - e^-2 (0.95 - delta)), rounded up.
    assert "wrong about 5 % of those who did not take part finds at most 37 %" in text
    assert "rules little out" in sentences("party")


def test_missing_parties_cost_what_the_accountant_says_and_are_refused_beyond_the_plan() -> None:
    party = plan("party")
    rows = missing_rows(party)
    assert [row.missing for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row.opened for row in rows] == [True] * 4 + [False] * 3
    assert [row.epsilon for row in rows] == sorted(row.epsilon for row in rows)
    assert rows[3].epsilon == party.epsilon()
    assert rows[4].epsilon == party.epsilon(contributors=6) > party.epsilon_budget
    text = page("party")
    assert re.search(r"3 +7 +8 +opened; the noise is sized for this", text)
    assert len(re.findall("refused: the sum is not opened", text)) == 3
    assert missing_rows(plan("local")) == missing_rows(plan("none")) == []


def test_few_parties_leave_no_guarantee_and_many_are_thinned_out() -> None:
    rows = missing_rows(plan("public-weights"))
    assert [row.missing for row in rows] == [0, 1]
    assert rows[1].to_dict()["epsilon"] is None
    assert "no guarantee" in page("public-weights")
    many = plan_for_job(job({}, parties={"count": 100, "max_dropout": 40}), 650)
    assert [row.missing for row in missing_rows(many)] == [0, 8, 16, 24, 32, 40, 41, 42, 43]


def test_the_noise_is_given_in_units_of_the_model() -> None:
    party = plan("party")
    # Ten shares, each of local_sigma levels, in the sum; the mean divides by ten.
    expected = party.local_sigma / party.scale / math.sqrt(10)
    assert noise_in_mean(party) == pytest.approx(expected, rel=1e-12)
    assert f"{expected:.4g}, in units of the model" in sentences("party")
    local = plan("local")
    # One share over q * records / parties = 10 expected records.
    assert noise_in_mean(local) == pytest.approx(local.local_sigma / local.scale / 10, rel=1e-12)
    assert noise_in_mean(plan("none")) == 0.0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("party", "A party as a whole"),
        ("record", "Every record: whether it was in the training data"),
        ("record", "Privacy loss distributions"),
        ("record", "on records sampled in secret (0.1)"),
        ("people", "up to 3 parties"),
        ("local", "adds all the noise itself, at every one of 3 local steps per round"),
        ("local", "Nothing changes: a party's noise is its own"),
        ("local", "all other parties together"),
        ("adaptive", "The clip norm follows the data"),
        ("private-weights", "up to the public 500. The number stays secret"),
        ("public-weights", "weights that stand in the job file and are public"),
        ("low-bit", "rotated at random and rounded at random"),
        ("skellam", "Renyi divergences at integer orders"),
        ("given-noise", "The budget pays for 5 of 10 rounds"),
        ("given-noise", "of 10: the budget"),
        ("none", "no privacy is asked for"),
        ("party", "Each party shares masks with all others (9). Only all of them together"),
        ("auto", "with 24 of 99 others: its neighbors on a circle in a random order"),
        ("auto", "With up to 20 colluding and 10 missing, the others stay tied together by"),
        ("auto", "Any 24 parties that are all the neighbors of one party can read its vector"),
        ("two", "With up to 1 colluding and 0 missing, the others stay tied together by their"),
        ("two", "One more colluding or missing than planned is one too many"),
        ("two", "Warning: 2 parties in the right places are enough for that, and the plan reckons"),
        ("two", "Any 2 parties that are all the neighbors of one party can read its vector"),
        ("unhidden", "nothing hides it then"),
    ],
)
def test_each_kind_of_plan_has_its_own_sentence(name: str, sentence: str) -> None:
    if name == "given-noise":
        sentence = sentence.replace("5 of", f"{paid_rounds(plan(name))} of")
    assert sentence in sentences(name)


def test_a_budget_that_ends_the_run_early_is_what_the_page_speaks_of() -> None:
    given = plan("given-noise")
    text = page("given-noise")
    spent = given.epsilon(paid_rounds(given))
    assert spent <= 8.0 < given.epsilon()
    assert f"e^{spent:.4g}" in text
    assert f"e^{given.epsilon():.4g}" not in text


@pytest.mark.parametrize("name", JOBS)
def test_the_document_is_json_and_keeps_its_keys(name: str) -> None:
    ring = ring_plan_for_job(JOBS[name], 650)
    document = plan_document(JOBS[name], plan(name), ring)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document.keys() >= KEYS
    assert document["vector_dim"] == ring.vector_dim
    assert (document["ring"] is not None) == (name == "local")
    assert set(document["epsilons"]) == (
        set() if name in UNPROTECTED else {"coalition", "single", "outsider", "own-share"}
    )


def test_masks_are_spoken_of_where_the_backend_has_some() -> None:
    for name, planned in JOBS.items():
        pairwise = planned.aggregation.backend in {"ring", "crypten"}
        assert ("Who shares masks with whom" in page(name)) is pairwise
        assert (graph_of_job(planned) is not None) is pairwise


def test_the_figures_of_the_graph_are_those_of_the_circle() -> None:
    graph = graph_of_job(JOBS["auto"])
    assert graph.neighbors == least_neighbors(100, 20, 10)
    assert graph.failure_exponent == failure_exponent(100, 30, graph.neighbors) <= -40
    assert graph.most_removed == most_removed(100, graph.neighbors) >= graph.planned == 30
    words = sentences("auto")
    assert f"except with probability 2^{graph.failure_exponent}, rounded up" in words
    assert f"Up to {graph.most_removed} colluding or missing" in words
    document = plan_document(JOBS["auto"], plan("auto"), plan("auto"))["mask_graph"]
    assert document == {
        "neighbors": graph.neighbors, "others": 99, "colluding": 20, "max_dropout": 10,
        "failure_exponent": graph.failure_exponent, "most_removed": graph.most_removed,
    }  # fmt: skip


def test_a_thin_margin_is_warned_of_and_a_wide_one_is_not() -> None:
    assert "Warning:" in sentences("two")
    assert "Warning:" not in sentences("wide")
    assert "Warning:" not in sentences("party")


def test_a_job_whose_neighbors_are_not_safe_is_refused_before_anything_is_sent() -> None:
    parties = {"count": 60, "colluding": 10}
    masks = {"backend": "ring", "neighbors": 8}
    unsafe = job({}, parties=parties, aggregation=masks)
    for refuse in (lambda: public_state(unsafe), lambda: graph_of_job(unsafe)):
        with pytest.raises(PlanError, match=r"neighbors = 8 is not safe.*take 12 or more"):
            refuse()


@pytest.mark.parametrize(
    ("choice", "neighbors"), [("all", None), ("auto", 12), (20, 20), (59, None), (80, None)]
)
def test_what_a_session_of_sums_is_told(choice: object, neighbors: int | None) -> None:
    masks = {"backend": "ring", "neighbors": choice, "precompute": neighbors is None}
    public = public_state(job({}, parties={"count": 60, "colluding": 10}, aggregation=masks))
    settings = sum_settings(public, "run")
    assert settings.neighbors == neighbors
    assert settings.precompute is (neighbors is None)


def test_a_detection_rate_is_a_bound_between_guessing_and_certainty() -> None:
    record = plan("record")
    assert detection_rate(record, 1e-9, 0.05) == pytest.approx(0.05 + record.delta, rel=1e-6)
    assert detection_rate(record, 1e6, 0.05) == 1.0
    assert detection_rate(record, 5.0, 0.5) == pytest.approx(1 - math.exp(-5) * 0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(0.0, "1.00"), (1.0, "2.72"), (4.0, "54.6"), (8.0, "2981"), (20.0, "above")],
)
def test_odds_are_rounded_up(epsilon: float, text: str) -> None:
    assert odds(epsilon).startswith(text)
