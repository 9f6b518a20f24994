"""Lower bounds on epsilon from guesses: against enumeration, known values and known mechanisms."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from mpcfl.audit.one_run import (
    Guesses,
    epsilon_lower_bound,
    gaussian_accuracy,
    gaussian_mu_lower_bound,
    guess_each,
    guess_extremes,
    independent_p_value,
    independent_power,
    largest_accuracy,
    p_value,
)
from mpcfl.dp.gaussian_curve import curve_epsilon, curve_mu
from mpcfl.hazmat.bits import SystemBits

FALSE_POSITIVE_RATE = 1e-9
DELTA = 1e-5


def uniform(count: int) -> np.ndarray:
    return (SystemBits().words(count) >> np.uint64(11)) * 2.0**-53


def gaussian_run(canaries: int, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a Gaussian release, and which canaries were in."""
    included = uniform(canaries) < 0.5
    return stats.norm.ppf(uniform(canaries)) + mu * included, included


def tail_of_independent(accuracy: Fraction, made: int) -> list[Fraction]:
    """P[W >= v] for v = 0 .. made, by listing every outcome."""
    tail = [Fraction(0)] * (made + 1)
    for outcome in itertools.product((0, 1), repeat=made):
        right = sum(outcome)
        chance = accuracy**right * (1 - accuracy) ** (made - right)
        for v in range(right + 1):
            tail[v] += chance
    return tail


@pytest.mark.parametrize("odds", [1, 3, 7])
def test_without_delta_randomized_response_meets_the_bound_exactly(odds: int) -> None:
    tail = tail_of_independent(Fraction(odds, odds + 1), 10)
    for v in range(1, 11):
        found = p_value(Guesses(10, 10, v), math.log(odds), 0.0)
        assert found == pytest.approx(float(tail[v]), rel=1e-9)


def test_the_bound_is_the_formula_of_the_theorem_term_by_term() -> None:
    accuracy, delta, m, r = Fraction(3, 4), Fraction(1, 1000), 20, 8
    mass = [math.comb(r, k) * accuracy**k * (1 - accuracy) ** (r - k) for k in range(r + 1)]
    for v in range(1, r + 1):
        terms = [sum(mass[v - i : v]) / i for i in range(1, v + 1)]
        expected = sum(mass[v:]) + 2 * m * delta * max(terms)
        found = p_value(Guesses(m, r, v), math.log(3), float(delta))
        assert found == pytest.approx(min(1.0, float(expected)), rel=1e-9)


@pytest.mark.parametrize("delta", [Fraction(1, 1000), Fraction(1, 100)])
def test_mechanisms_that_fail_with_probability_delta_stay_below_the_bound(delta: Fraction) -> None:
    m, accuracy = 10, Fraction(3, 4)
    all_at_once = [delta + (1 - delta) * t for t in tail_of_independent(accuracy, m)]
    each_alone = tail_of_independent(delta + (1 - delta) * accuracy, m)
    for v in range(1, m + 1):
        bound = p_value(Guesses(m, m, v), math.log(3), float(delta))
        assert max(all_at_once[v], each_alone[v]) <= bound * (1 + 1e-9)


def test_p_value_rises_with_epsilon_and_falls_with_what_is_right() -> None:
    by_epsilon = [p_value(Guesses(1000, 200, 150), e, DELTA) for e in np.linspace(0, 4, 80)]
    assert all(np.diff(by_epsilon) >= 0)
    assert by_epsilon[0] < 1e-3 < 0.99 < by_epsilon[-1]
    by_correct = [p_value(Guesses(1000, 200, v), 1.0, DELTA) for v in range(201)]
    assert all(np.diff(by_correct) <= 0)


def test_a_delta_too_large_for_the_canaries_gives_no_bound() -> None:
    assert p_value(Guesses(1000, 100, 100), 0.0, 1e-3) == 1.0
    assert epsilon_lower_bound([Guesses(1000, 100, 100)], 1e-3, 0.95) == 0.0


@pytest.mark.parametrize("made", [10, 100, 1000])
def test_if_every_guess_is_right_the_bound_is_known_in_closed_form(made: int) -> None:
    # accuracy^r = 0.05, and accuracy = 1 / (1 + e^-eps).
    accuracy = 0.05 ** (1 / made)
    exact = math.log(accuracy / (1 - accuracy))
    found = epsilon_lower_bound([Guesses(made, made, made)], 0.0, 0.95)
    assert exact - 1e-4 <= found <= exact


def test_coin_tosses_give_no_bound() -> None:
    assert epsilon_lower_bound([Guesses(1000, 1000, 500)], 0.0, 0.95) == 0.0
    assert gaussian_mu_lower_bound(Guesses(1000, 1000, 500), 0.05) == 0.0
    assert gaussian_mu_lower_bound(Guesses(1000, 1000, 0), 0.05) == 0.0


def test_trying_several_numbers_of_guesses_costs_a_part_of_the_error() -> None:
    outcome = Guesses(1000, 200, 170)
    alone = epsilon_lower_bound([outcome], DELTA, 0.95)
    assert epsilon_lower_bound([outcome] * 5, DELTA, 0.95) == pytest.approx(
        epsilon_lower_bound([outcome], DELTA, 0.99), abs=1e-3
    )
    assert epsilon_lower_bound([outcome] * 5, DELTA, 0.95) < alone


@pytest.mark.stat
@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_bounds_cover_the_known_epsilon_of_a_gaussian_release(epsilon: float) -> None:
    # Each bound may pass the truth in 5 % of all runs; more than `most` of 200 happens with 1e-9.
    runs, canaries, mu = 200, 500, curve_mu(epsilon, DELTA)
    most = int(stats.binom.isf(FALSE_POSITIVE_RATE, runs, 0.05))
    above_any, above_gaussian, bounds = 0, 0, []
    for _ in range(runs):
        scores, included = gaussian_run(canaries, mu)
        outcomes = [guess_extremes(scores, included, made) for made in (250, 60)]
        above_any += epsilon_lower_bound(outcomes, DELTA, 0.95) > epsilon
        bound = gaussian_mu_lower_bound(guess_each(scores, included, mu / 2), 0.05)
        above_gaussian += bound > mu
        bounds.append(bound)
    assert above_any <= most
    assert above_gaussian <= most
    # Not by being empty: the sharp bound sits below the truth by 1.6 of its deviations, 0.11.
    assert mu - 0.3 < np.median(bounds) < mu


@pytest.mark.stat
def test_independent_guesses_are_right_as_often_as_the_formula_says() -> None:
    canaries, mu = 100_000, 0.9
    scores, included = gaussian_run(canaries, mu)
    correct = guess_each(scores, included, mu / 2).correct
    law = stats.binom(canaries, gaussian_accuracy(mu))
    assert law.ppf(FALSE_POSITIVE_RATE / 2) <= correct <= law.isf(FALSE_POSITIVE_RATE / 2)


def test_points_of_a_promise_bound_the_accuracy_from_above_and_nearly_reach_it() -> None:
    mu = curve_mu(4.0, DELTA)
    points = [(curve_epsilon(mu, delta), delta) for delta in (0.1, 0.2, 0.3, 0.35, 0.4)]
    exact = gaussian_accuracy(mu)
    assert exact <= largest_accuracy(points) < exact + 0.01
    assert largest_accuracy([(0.0, 0.0)]) == 0.5
    assert largest_accuracy([(math.log(3), 0.0)]) == pytest.approx(0.75)


def test_four_thousand_canaries_see_noise_of_sigma_over_root_n_for_sure() -> None:
    mu = curve_mu(4.0, DELTA)
    for parties in (4, 10):
        real = gaussian_accuracy(mu * math.sqrt(parties))
        power = independent_power(4000, gaussian_accuracy(mu), real, FALSE_POSITIVE_RATE)
        assert power > 1 - 1e-6
    assert independent_power(4000, 0.7, 0.7, FALSE_POSITIVE_RATE) <= FALSE_POSITIVE_RATE


def test_p_value_of_independent_guesses_is_the_binomial_tail() -> None:
    tail = tail_of_independent(Fraction(3, 4), 8)
    for v in range(9):
        found = independent_p_value(Guesses(8, 8, v), 0.75)
        assert found == pytest.approx(float(tail[v]))


def test_extremes_are_guessed_and_the_rest_is_left_out() -> None:
    scores = np.array([5.0, -5.0, 0.1, -0.1, 4.0, -4.0])
    included = np.array([True, False, False, True, False, False])
    assert guess_extremes(scores, included, 4) == Guesses(6, 4, 3)
    assert guess_extremes(scores, included, 2) == Guesses(6, 2, 2)
    assert guess_each(scores, included, 0.0) == Guesses(6, 6, 3)


@pytest.mark.parametrize("counts", [(4, 5, 1), (4, 3, 4), (4, 4, -1)])
def test_impossible_counts_are_a_defect_of_the_caller(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="correct of"):
        Guesses(*counts)
