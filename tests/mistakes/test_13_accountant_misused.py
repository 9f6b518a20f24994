"""Mistake 13: a sound accountant is called wrongly, or an unsound one is called at all.

Who made it: opacus#384 and #400 (the central-limit GDP formula under Poisson sampling: 2.07
where 4.39 is true), opacus#535 (`get_epsilon` removed its own history), caamas#36 (epsilon
+= z / rounds), google/differential-privacy#378 (the Renyi accountant forgets the factor 2 of
replace-one: 4.73 where 10.0 is true). What would have to break here: a figure below the known
answers, a question that changes the answer, or a call with another relation than add-or-remove.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcfl.dp import Budget, Ledger, gaussian_epsilon, planned_charge
from mpcfl.dp.privacy_loss import loss_epsilon
from mpcfl.dp.renyi import gaussian_divergences

VECTORS = Path(__file__).parents[1] / "vectors" / "dp_known_answers.json"
# Rows that an independent accountant brackets from below, without the slow ones.
KNOWN: list[dict[str, Any]] = [
    row
    for row in json.loads(VECTORS.read_text())["continuous"]
    if row.get("ms_prv_lo") and row["steps"] <= 500
]
# The vectors are rounded to four digits.
TOLERANCE = 0.002


def ours(row: dict[str, Any]) -> float:
    return gaussian_epsilon(
        noise_multiplier=row["noise_multiplier"],
        sample_rate=row["q"],
        rounds=row["steps"],
        delta=row["delta"],
    )


def central_limit(row: dict[str, Any], true_epsilon) -> float:
    """The mistake: mu = q sqrt(T (exp(1/z^2) - 1)), an approximation and no bound."""
    mu = row["q"] * math.sqrt(row["steps"] * math.expm1(1 / row["noise_multiplier"] ** 2))
    return true_epsilon(1 / mu, delta=row["delta"])


def linear(row: dict[str, Any]) -> float:
    """The mistake: every round adds z / rounds to epsilon."""
    return row["steps"] * (row["noise_multiplier"] / row["steps"])


def is_sound(figure) -> bool:
    """The lower end of an independent accountant is below every sound figure."""
    return all(figure(row) >= row["ms_prv_lo"] - TOLERANCE for row in KNOWN)


def test_no_figure_is_below_the_true_one(true_epsilon):
    assert len(KNOWN) > 5
    assert is_sound(ours)
    assert not is_sound(lambda row: central_limit(row, true_epsilon))
    assert not is_sound(linear)


def test_the_known_case_of_the_central_limit(true_epsilon):
    row = {"noise_multiplier": 0.5, "q": 0.001, "steps": 5000, "delta": 1e-5}
    assert central_limit(row, true_epsilon) == pytest.approx(2.07, abs=0.01)
    assert ours(row) == pytest.approx(4.3878, abs=TOLERANCE)


def test_asking_changes_no_answer(plan_of, tmp_path):
    plan = plan_of()

    def spent(name: str, asks: int) -> list[float]:
        figures = []
        path, budget = tmp_path / name, Budget(plan.epsilon_budget, plan.delta)
        with Ledger.open(path, identity="test", budget=budget) as ledger:
            for round_id in range(3):
                ledger.reserve(planned_charge(plan, round_id))
                before = path.read_bytes()
                figures += [[ledger.epsilon() for _ in range(asks)][-1]]
                assert path.read_bytes() == before
        return figures

    assert spent("often", 5) == spent("once", 1)
    assert spent("again", 1) == pytest.approx([plan.epsilon(rounds=r) for r in (1, 2, 3)], rel=1e-9)


@pytest.fixture
def asked_of_dp_accounting(monkeypatch):
    """Return all that is asked of dp-accounting, while a figure under sampling is computed."""
    from dp_accounting.pld import privacy_loss_distribution as pld
    from dp_accounting.rdp import RdpAccountant

    asked: list[dict[str, Any]] = []
    right_pld, right_rdp = pld.from_gaussian_mechanism, RdpAccountant.__init__

    def watched_pld(*arguments, **named):
        asked.append({"pld": True, "arguments": arguments, **named})
        return right_pld(*arguments, **named)

    def watched_rdp(self, *arguments, **named):
        asked.append({"rdp": True, "arguments": arguments[1:], **named})
        right_rdp(self, *arguments, **named)

    monkeypatch.setattr(pld, "from_gaussian_mechanism", watched_pld)
    monkeypatch.setattr(RdpAccountant, "__init__", watched_rdp)
    return asked


def test_only_normalised_multipliers_under_add_or_remove_are_asked_for(asked_of_dp_accounting):
    from dp_accounting.privacy_accountant import NeighboringRelation

    # Odd numbers, so that no cache of another test answers.
    z, rate = 1.2345, 0.0678
    gaussian_epsilon(noise_multiplier=z, sample_rate=rate, rounds=7, delta=1e-5)
    kinds = {key for call in asked_of_dp_accounting for key in ("pld", "rdp") if call.get(key)}
    assert kinds == {"pld", "rdp"}
    for call in asked_of_dp_accounting:
        assert not call["arguments"]
        relation = call.get("neighboring_relation", NeighboringRelation.ADD_OR_REMOVE_ONE)
        assert relation is NeighboringRelation.ADD_OR_REMOVE_ONE
        assert call.get("sensitivity", 1) == 1
        if "pld" in call:
            assert call["standard_deviation"] == z
            assert call["sampling_prob"] == rate


def test_why_replace_one_is_never_asked_for(true_epsilon):
    from dp_accounting import GaussianDpEvent
    from dp_accounting.privacy_accountant import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    accountant.compose(GaussianDpEvent(1.0))
    assert accountant.get_epsilon(1e-5) == pytest.approx(4.7285, abs=TOLERANCE)
    # Replacing is twice the sensitivity.
    assert true_epsilon(0.5) == pytest.approx(9.9973, abs=TOLERANCE)


def test_sensitivity_and_noise_count_by_their_ratio_only(plan_of):
    # A plan on another clip norm, grid or dimension: the same multiplier, the same figure.
    figures = [
        plan_of(**change).epsilon(rounds=3)
        for change in ({}, {"clip_norm": 17.0}, {"dim": 5000}, {"modulus_bits": 40})
    ]
    assert figures == pytest.approx([figures[0]] * 4, rel=1e-6)


def test_the_two_theories_agree_on_one_full_release():
    exact = loss_epsilon(((2.0, 1.0, 1),), 1e-5)
    closed = ours({"noise_multiplier": 2.0, "q": 1.0, "steps": 1, "delta": 1e-5})
    assert exact == pytest.approx(closed, rel=1e-3)
    np.testing.assert_allclose(gaussian_divergences(2.0, 1.0)[:3], [1.1 / 8, 1.2 / 8, 1.3 / 8])
