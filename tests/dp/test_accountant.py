from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from mpcfl.dp import discrete_gaussian_epsilon, gaussian_epsilon
from mpcfl.dp.accountant import AccountantKind, Releases, composed_epsilon
from mpcfl.dp.gaussian_curve import curve_delta, curve_epsilon, curve_mu
from mpcfl.dp.privacy_loss import loss_epsilon
from mpcfl.dp.renyi import ORDERS, DiscreteSum, renyi_epsilon
from mpcfl.errors import ConfigError

# The vectors are rounded to four digits and computed at a coarser or finer grid.
TOLERANCE = 0.002


def continuous(row: dict[str, Any], accountant: str) -> float:
    return gaussian_epsilon(
        noise_multiplier=row["noise_multiplier"],
        sample_rate=row["q"],
        rounds=row["steps"],
        delta=row["delta"],
        accountant=accountant,
    )


def discrete(row: dict[str, Any], accountant: str) -> float:
    return discrete_gaussian_epsilon(
        l2_sensitivity=row["Delta2"],
        local_sigma=row["S"],
        parties=row["n"],
        colluding=row["t"],
        dim=row["d"],
        rounds=row["T"],
        delta=row["delta"],
        sample_rate=row["q"],
        accountant=accountant,
    )


def test_continuous_figures_match_the_known_answers(known: dict[str, Any]) -> None:
    for row in known["continuous"]:
        assert continuous(row, "pld") == pytest.approx(row["dpa_pld"], abs=TOLERANCE), row
        assert continuous(row, "rdp") == pytest.approx(row["dpa_rdp"], abs=TOLERANCE), row


def test_discrete_figures_match_the_known_answers(known: dict[str, Any]) -> None:
    for row in known["discrete"]:
        published = row["dpa_zcdp_rdp"] or row["ddg_rdp_int"]
        # Below a variance of 64 only the published bound is used.
        small = (row["n"] - row["t"]) * row["S"] ** 2 < 64
        best = published if small else row["pld_sigma2_minus_4"]
        assert discrete(row, "rdp") == pytest.approx(published, abs=TOLERANCE), row
        assert discrete(row, "pld") == pytest.approx(best, abs=TOLERANCE), row
        assert discrete(row, "pld") <= row["ddg_rdp_int"] + 1e-4


def test_renyi_conversion_matches_the_reference_implementation() -> None:
    from dp_accounting.rdp import compute_epsilon
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    np.testing.assert_allclose(ORDERS, DEFAULT_RDP_ORDERS, rtol=1e-15)
    for rho in (1e-12, 1e-3, 0.5, 40.0):
        expected, _ = compute_epsilon(ORDERS, ORDERS * rho, 1e-5)
        assert renyi_epsilon(ORDERS * rho, 1e-5) == pytest.approx(expected, rel=1e-12)


def test_cdp_conversion_is_close_to_the_published_figures(known: dict[str, Any]) -> None:
    # Those optimize over all orders, ours over a list: never below, and within 1.5 %.
    for row in known["ibm"]["cdp_eps"]:
        ours = renyi_epsilon(ORDERS * row["rho"], row["delta"])
        assert row["eps"] - 1e-6 <= ours <= row["eps"] * 1.015, row


def test_closed_form_agrees_with_the_numerical_composition() -> None:
    for z, rounds in [(1.0, 1), (4.0, 100)]:
        exact = curve_epsilon(math.sqrt(rounds) / z, 1e-5)
        numerical = loss_epsilon(((z, 1.0, rounds),), 1e-5)
        assert exact <= numerical + 1e-9
        assert numerical == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("mu", [1e-4, 0.01, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10])
def test_closed_form_errs_on_the_safe_side_by_a_hair(mu: float, delta: float) -> None:
    import mpmath

    epsilon = curve_epsilon(mu, delta)
    assert curve_delta(epsilon, mu) <= delta
    with mpmath.workprec(200):
        x = mpmath.mpf(epsilon)
        true = mpmath.ncdf(mu / mpmath.mpf(2) - x / mu) - mpmath.exp(x) * mpmath.ncdf(
            -mu / mpmath.mpf(2) - x / mu
        )
        assert true <= delta
        # At epsilon = 0 delta is simply not reached.
        if epsilon > 0.0:
            assert true >= delta * (1 - 1e-6)


def test_inverse_of_the_curve_is_rounded_down() -> None:
    for epsilon in (1e-3, 1.0, 8.0, 100.0):
        mu = curve_mu(epsilon, 1e-5)
        assert curve_delta(epsilon, mu) <= 1e-5 < curve_delta(epsilon, mu * (1 + 1e-9))


def test_no_noise_is_no_privacy_and_no_release_costs_nothing() -> None:
    def figure(noise_multiplier: float, rounds: int) -> float:
        return gaussian_epsilon(
            noise_multiplier=noise_multiplier, sample_rate=0.5, rounds=rounds, delta=1e-5
        )

    assert figure(0.0, 1) == math.inf
    assert figure(1.0, 0) == 0.0
    assert curve_delta(1.0, math.inf) == 1.0
    assert curve_epsilon(math.inf, 0.1) == math.inf


def test_unequal_releases_compose_by_squares() -> None:
    mixed = composed_epsilon(
        [Releases(3.0, 1.0, 1), Releases(4.0, 1.0, 1)], 1e-5, AccountantKind.PLD
    )
    # 1/9 + 1/16 = 25/144
    assert mixed == pytest.approx(curve_epsilon(5 / 12, 1e-5), rel=1e-12)


def test_sampled_and_full_releases_compose_in_any_order() -> None:
    parts = [Releases(2.0, 0.1, 10), Releases(5.0, 1.0, 2), Releases(1.0, 0.01, 5)]
    together = composed_epsilon(parts, 1e-5, AccountantKind.PLD)
    assert together == composed_epsilon(parts[::-1], 1e-5, AccountantKind.PLD)
    for part in parts:
        assert composed_epsilon([part], 1e-5, AccountantKind.PLD) < together


def test_epsilon_grows_with_every_release() -> None:
    figures = [
        gaussian_epsilon(noise_multiplier=1.5, sample_rate=0.1, rounds=r, delta=1e-5)
        for r in range(8)
    ]
    assert figures == sorted(figures)
    assert figures[0] == 0.0


def test_huge_figures_come_without_a_huge_distribution() -> None:
    assert gaussian_epsilon(noise_multiplier=0.05, sample_rate=0.5, rounds=99, delta=1e-5) > 1000


def tail_sums(sigma: float, shift: int, n_shares: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the mass functions of a sum of discrete Gaussians, and of it moved by ``shift``."""
    reach = math.ceil(13 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    share = weights / weights.sum()
    total = share
    for _ in range(n_shares - 1):
        total = np.convolve(total, share)
    return np.pad(total, (0, shift)), np.pad(total, (shift, 0))


def hockey_stick_epsilon(p: np.ndarray, q: np.ndarray, delta: float) -> float:
    """Return the exact smallest epsilon, rounded down, by bisection on the divergence."""
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        divergence = np.sum(np.maximum(p - math.exp(middle) * q, 0.0))
        low, high = (middle, high) if divergence > delta * (1 + 1e-9) else (low, middle)
    return low


@pytest.mark.parametrize(
    ("sigma", "shares", "shift"),
    [(8, 1, 1), (8, 1, 8), (8, 1, 30), (10, 1, 10), (4, 4, 9), (2, 3, 5), (1, 4, 2), (16, 3, 50)],
)
@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_exact_divergence_in_one_dimension_never_exceeds_what_is_reported(
    sigma: int, shares: int, shift: int, delta: float, accountant: str
) -> None:
    reported = discrete_gaussian_epsilon(
        l2_sensitivity=shift,
        local_sigma=sigma,
        parties=shares,
        colluding=0,
        dim=1,
        rounds=1,
        delta=delta,
        accountant=accountant,
    )
    assert hockey_stick_epsilon(*tail_sums(sigma, shift, shares), delta) <= reported


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_exact_sampled_divergence_never_exceeds_what_is_reported(
    rate: float, accountant: str
) -> None:
    without, with_record = tail_sums(8, 9)
    mixed = (1 - rate) * without + rate * with_record
    reported = discrete_gaussian_epsilon(
        l2_sensitivity=9,
        local_sigma=8,
        parties=1,
        colluding=0,
        dim=1,
        rounds=1,
        delta=1e-4,
        sample_rate=rate,
        accountant=accountant,
    )
    assert hockey_stick_epsilon(mixed, without, 1e-4) <= reported
    assert hockey_stick_epsilon(without, mixed, 1e-4) <= reported


def test_using_the_full_variance_would_be_unsound() -> None:
    # The mistake that the subtraction of 4 prevents: exact delta above the Gaussian curve.
    p, q = tail_sums(1, 1)
    exact_delta = np.sum(np.maximum(p - math.e * q, 0.0))
    assert exact_delta > curve_delta(1.0, 1.0) * 1.05


def test_exact_deltas_match_the_known_answers(known: dict[str, Any]) -> None:
    for row in known["ibm"]["dg_delta"]:
        p, q = tail_sums(math.sqrt(row["sigma2"]), row["sens"])
        exact = float(np.sum(np.maximum(p - math.exp(row["eps"]) * q, 0.0)))
        assert exact == pytest.approx(row["delta"], rel=1e-8)


def test_tau_matches_the_known_answers_and_matters_at_small_sigma(known: dict[str, Any]) -> None:
    for row in known["discrete"]:
        noise = DiscreteSum(row["Delta2"], row["S"], row["n"] - row["t"], row["d"])
        assert noise.tau == pytest.approx(row["tau"], rel=0.01, abs=1e-200)
    arguments: dict[str, Any] = {
        "l2_sensitivity": 10, "parties": 80, "colluding": 0, "rounds": 1, "delta": 1e-5,
        "local_sigma": 1,
    }  # fmt: skip
    assert discrete_gaussian_epsilon(**arguments, dim=10**6) > discrete_gaussian_epsilon(
        **arguments, dim=1
    )


def test_the_lemma_slack_is_invisible_at_the_sizes_in_use() -> None:
    z = math.sqrt(9 * 64**2 - 4) / 100
    figure = discrete_gaussian_epsilon(
        l2_sensitivity=100, local_sigma=64, parties=10, colluding=1, dim=1 << 20, rounds=10,
        delta=1e-5,
    )  # fmt: skip
    assert figure == pytest.approx(curve_epsilon(math.sqrt(10) / z, 1e-5), rel=1e-12)


def test_the_gaussian_curve_is_the_textbook_formula() -> None:
    mu, epsilon = 1.3, 0.7
    expected = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * special.ndtr(
        -mu / 2 - epsilon / mu
    )
    assert curve_delta(epsilon, mu) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"accountant": "gdp"},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"delta": 0.0},
        {"delta": 1.0},
        {"rounds": -1},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, Any]) -> None:
    good = {"noise_multiplier": 1.0, "sample_rate": 1.0, "rounds": 1, "delta": 1e-5}
    with pytest.raises(ConfigError, match=next(iter(change))):
        gaussian_epsilon(**{**good, **change})


@pytest.mark.parametrize(
    "change", [{"local_sigma": 0.5}, {"l2_sensitivity": 0}, {"dim": 0}, {"colluding": 3}]
)
def test_discrete_arguments_out_of_range_are_refused(change: dict[str, Any]) -> None:
    good = {
        "l2_sensitivity": 1, "local_sigma": 8, "parties": 3, "colluding": 1, "dim": 1,
        "rounds": 0, "delta": 1e-5,
    }  # fmt: skip
    assert discrete_gaussian_epsilon(**good) == 0.0
    with pytest.raises(ConfigError, match=next(iter(change))):
        discrete_gaussian_epsilon(**{**good, **change})
