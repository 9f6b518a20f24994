"""Exact rank tests: known distributions, and the bounds that they promise."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from scipy import stats

from mpcfl.bench.mann_whitney import (
    Sample,
    holm,
    least_p,
    p_different,
    p_larger,
    ratio_interval,
    u_distribution,
)


def orders(n_a: int, n_b: int) -> list[Sample]:
    """Return all orders of n_a + n_b different values, equally likely if both sides are luck."""
    return [
        Sample(
            tuple(1.0 + i for i in chosen),
            tuple(1.0 + i for i in range(n_a + n_b) if i not in chosen),
        )
        for chosen in itertools.combinations(range(n_a + n_b), n_a)
    ]


def test_u_distribution_is_the_known_one() -> None:
    assert u_distribution(2, 2) == [1, 1, 2, 1, 1]
    assert u_distribution(1, 3) == [1, 1, 1, 1]
    counts = u_distribution(5, 5)
    assert sum(counts) == math.comb(10, 5)
    assert counts == counts[::-1]


@pytest.mark.parametrize(("n_a", "n_b"), [(3, 5), (5, 5), (6, 4)])
def test_p_values_are_those_of_scipy(n_a: int, n_b: int) -> None:
    for sample in orders(n_a, n_b)[::7]:
        for alternative, found in (
            ("less", p_larger([sample])),
            ("greater", p_larger([sample.swapped])),
            ("two-sided", p_different(sample)),
        ):
            theirs = stats.mannwhitneyu(
                sample.a, sample.b, alternative=alternative, method="exact"
            ).pvalue
            assert found == pytest.approx(theirs, rel=1e-12)


def test_p_values_of_luck_are_at_most_as_likely_as_they_say() -> None:
    found = sorted(p_larger([sample]) for sample in orders(4, 5))
    for place, p in enumerate(found, start=1):
        if place == len(found) or found[place] > p:
            assert place / len(found) == pytest.approx(p)


def test_two_cases_together_have_the_distribution_of_the_sum() -> None:
    singles = orders(2, 3)
    pairs = list(itertools.product(singles, singles))
    sums = [first.larger() + second.larger() for first, second in pairs]
    for (first, second), found in list(zip(pairs, sums, strict=True))[::9]:
        exact = Fraction(sum(other >= found for other in sums), len(sums))
        assert p_larger([first, second]) == pytest.approx(float(exact))


def test_a_slowdown_that_is_the_same_everywhere_shows_in_few_launches() -> None:
    slower = Sample((1.0, 1.1, 0.9), (2.0, 2.1, 1.9))
    assert p_larger([slower]) == pytest.approx(1 / 20)
    assert p_larger([slower] * 6) == pytest.approx(20.0**-6) == pytest.approx(least_p([(3, 3)] * 6))


def test_a_factor_is_part_of_the_hypothesis() -> None:
    sample = Sample((1.0, 1.01, 1.02, 1.03, 1.04), (1.2, 1.21, 1.22, 1.23, 1.24))
    assert p_larger([sample], 1.1) == pytest.approx(1 / 252)
    assert p_larger([sample], 1.3) == pytest.approx(1.0)


def test_equal_values_count_for_no_difference() -> None:
    same = Sample((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert (same.larger(), p_larger([same]), p_different(same)) == (0, 1.0, 1.0)


def test_long_distributions_stay_probabilities() -> None:
    many = Sample(tuple(map(float, range(1, 41))), tuple(i + 0.5 for i in range(1, 41)))
    assert 0.2 < p_larger([many]) < 0.5
    assert p_larger([many.swapped]) > 0.5
    assert p_larger([Sample((1.0,) * 40, (2.0,) * 40)]) == pytest.approx(1 / math.comb(80, 40))


def test_holm_is_the_known_one() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n_cases", [1, 8, 200])
@pytest.mark.parametrize("n_runs", [3, 5, 7])
def test_no_table_of_luck_calls_a_case_more_often_than_it_says(n_cases: int, n_runs: int) -> None:
    """Exact: a table calls some case if its least p-value is at most alpha over their number."""
    p_values = [p_different(sample) for sample in orders(n_runs, n_runs)]
    called = sum(p <= 0.05 / n_cases for p in p_values) / len(p_values)
    assert 1 - (1 - called) ** n_cases <= 0.05


def test_the_interval_covers_the_true_factor_as_often_as_it_says() -> None:
    """All 252 orders of ten ranks, equally likely if nothing changed: exactly 2 are called."""
    called = 0
    for sample in orders(5, 5):
        _, low, high = ratio_interval(sample, 0.01)
        called += low > 1 or high < 1
    assert called == 2


def test_the_interval_excludes_one_where_the_test_does() -> None:
    for sample in orders(4, 6):
        _, low, high = ratio_interval(sample, 0.05)
        assert (low > 1 or high < 1) == (p_different(sample) <= 0.05)
