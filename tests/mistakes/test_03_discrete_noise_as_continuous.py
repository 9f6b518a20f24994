"""Mistake 3: discrete Gaussian noise is accounted as continuous noise of the same variance.

Who made it: anybody who hands sigma / sensitivity of integer noise to a PLD accountant; shown
by exact computation. What goes wrong: on the integers the exact delta exceeds that of the
continuous Gaussian, by 17 % and more at small sigma; the figure is no bound. The proof in
`docs/privacy.md` takes 4 off the variance. What would have to break here: that 4 goes missing,
in the figures or in the plan's noise multiplier.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mpcfl.dp import discrete_gaussian_epsilon
from mpcfl.dp.gaussian_curve import curve_epsilon

VECTORS = Path(__file__).parents[1] / "vectors" / "dp_known_answers.json"


def exact_delta(sigma: float, shift: int, epsilon: float) -> float:
    """The hockey-stick divergence of one discrete Gaussian and itself, moved by an integer."""
    reach = math.ceil(14 * sigma) + shift
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    p = np.pad(weights / weights.sum(), (0, shift))
    q = np.pad(weights / weights.sum(), (shift, 0))
    return float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0)))


def reported(sigma: int, shift: int, delta: float) -> float:
    return discrete_gaussian_epsilon(
        l2_sensitivity=shift, local_sigma=sigma, parties=1, colluding=0, dim=1, rounds=1,
        delta=delta,
    )  # fmt: skip


DELTAS = (0.1, 0.01, 1e-3, 1e-4, 1e-5)


def is_sound(epsilon_of) -> bool:
    return all(
        exact_delta(sigma, shift, epsilon_of(sigma, shift, delta)) <= delta * (1 + 1e-9)
        for sigma in (1, 2, 3, 8, 10)
        for shift in (1, 2, 3, 5, 8, 13)
        for delta in DELTAS
    )


def test_the_exact_divergence_stays_below_what_is_reported():
    assert is_sound(reported)


def test_the_check_fires_on_continuous_noise_of_the_same_variance():
    assert not is_sound(lambda sigma, shift, delta: curve_epsilon(shift / sigma, delta))


def test_the_excess_passes_seventeen_percent():
    excess = max(
        exact_delta(1.0, shift, curve_epsilon(float(shift), delta)) / delta
        for shift in (1, 2, 3)
        for delta in np.geomspace(1e-6, 0.3, 60)
    )
    assert excess > 1.17


def test_a_plan_takes_the_four_off(plan_of):
    # One honest share of two, on a grid so coarse that the 4 shows.
    plan = plan_of(parties=2, modulus_bits=16)
    honest = plan.local_sigma**2
    expected = math.sqrt(honest - 4) / plan.l2_sensitivity
    assert plan.multiplier(2) == pytest.approx(expected, rel=1e-12)
    assert plan.multiplier(2) < math.sqrt(honest) / plan.l2_sensitivity
    assert plan.epsilon() > curve_epsilon(
        math.sqrt(plan.rounds) * plan.l2_sensitivity / plan.local_sigma, plan.delta
    )


KNOWN = [row for row in json.loads(VECTORS.read_text())["discrete"] if row["tau"] < 1e-10]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"sigma-{row['S']}")
def test_the_known_unsound_figures_are_not_ours(row):
    ours = discrete_gaussian_epsilon(
        l2_sensitivity=row["Delta2"], local_sigma=row["S"], parties=row["n"], colluding=row["t"],
        dim=row["d"], rounds=row["T"], delta=row["delta"], sample_rate=row["q"],
    )  # fmt: skip
    unsound = row["pld_same_sigma_UNSOUND"]
    # Known to four digits; for large sigmas both figures agree to these.
    assert ours >= unsound - 2e-3
    if row["S"] <= 16:
        assert ours > unsound + 4e-3
