from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from mpcfl.dp import discrete_gaussian_epsilon, gaussian_epsilon, skellam_epsilon
from mpcfl.dp.accountant import (
    AccountantKind,
    Mechanism,
    Releases,
    composed_epsilon,
    lemma_epsilon,
    noise_multiplier_of,
)
from mpcfl.dp.gaussian_curve import curve_delta, curve_epsilon, curve_mu
from mpcfl.dp.privacy_loss import loss_epsilon
from mpcfl.dp.renyi import (
    IS_INTEGER_ORDER,
    ORDERS,
    DiscreteSum,
    at_integer_orders,
    curvature_bound,
    discrete_bound,
    renyi_epsilon,
    skellam_bound,
    skellam_divergences,
)
from mpcfl.errors import ConfigError

# As stated in the vectors: they are rounded to four digits, on a coarser or finer grid.
TOLERANCE = 0.002
PRV_TOLERANCE = 0.01


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


def unknown_noise(row: dict[str, Any]) -> DiscreteSum:
    return DiscreteSum(row["Delta2"], row["S"], row["n"] - row["t"], row["d"])


def skellam(row: dict[str, Any], accountant: str) -> float:
    return skellam_epsilon(
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


def test_continuous_figures_agree_with_those_of_other_packages(known: dict[str, Any]) -> None:
    for row in known["continuous"]:
        pld, rdp = continuous(row, "pld"), continuous(row, "rdp")
        # Two bounds with an estimate between them; opacus reports the upper one.
        assert pld == pytest.approx(row["ms_prv_est"], abs=TOLERANCE), row
        assert row["ms_prv_lo"] <= pld <= row["ms_prv_up"], row
        assert pld == pytest.approx(row["opacus_prv"], abs=PRV_TOLERANCE + TOLERANCE), row
        # dp-accounting leaves out fractional orders whose series fails to converge, opacus does
        # not: its optimum is lower or equal, and equal where no sampling makes a series.
        assert rdp >= row["opacus_rdp"] - TOLERANCE, row
        if row["q"] == 1.0:
            assert rdp == pytest.approx(row["opacus_rdp"], abs=TOLERANCE), row


def test_discrete_figures_match_the_known_answers(known: dict[str, Any]) -> None:
    for row in known["discrete"]:
        published = row["dpa_zcdp_rdp"] or row["ddg_rdp_int"]
        assert discrete(row, "rdp") == pytest.approx(published, abs=TOLERANCE), row
        exact = row["pld_sigma2_minus_4"]
        assert discrete(row, "pld") == pytest.approx(exact, abs=TOLERANCE), row
        noise = unknown_noise(row)
        multiplier = math.sqrt(noise.variance) / noise.l2_sensitivity
        assert multiplier == pytest.approx(row["z"], abs=1e-4)


def test_renyi_figures_at_integer_orders_match_the_known_answers(known: dict[str, Any]) -> None:
    columns = {
        "ddg_rdp_int": discrete_bound,
        "skellam_pub_rdp": skellam_bound,
        "skellam_L_rdp": curvature_bound,
    }
    for row, (name, bound) in itertools.product(known["discrete"], columns.items()):
        if row["q"] == 1:
            divergences = at_integer_orders(bound(unknown_noise(row), ORDERS))
            figure = renyi_epsilon(row["T"] * divergences, row["delta"])
            assert figure == pytest.approx(row[name], abs=TOLERANCE), (row, name)


def test_skellam_figures_match_the_known_answers(known: dict[str, Any]) -> None:
    for row in known["discrete"]:
        better = min(row["skellam_pub_rdp"], row["skellam_L_rdp"])
        for accountant in ("rdp", "pld"):
            assert skellam(row, accountant) == pytest.approx(better, abs=TOLERANCE), row


def test_the_unsound_figures_are_what_the_full_variance_would_give(known: dict[str, Any]) -> None:
    for row in known["discrete"]:
        noise = unknown_noise(row)
        unsound = gaussian_epsilon(
            noise_multiplier=math.sqrt(noise.variance) / noise.l2_sensitivity,
            sample_rate=row["q"],
            rounds=row["T"],
            delta=row["delta"],
        )
        assert unsound == pytest.approx(row["pld_same_sigma_UNSOUND"], abs=TOLERANCE), row
        assert unsound < discrete(row, "pld")


def test_renyi_conversion_matches_the_reference_implementation() -> None:
    from dp_accounting.rdp import compute_epsilon
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    np.testing.assert_allclose(ORDERS, DEFAULT_RDP_ORDERS, rtol=1e-15)
    for rho in (1e-12, 1e-3, 0.5, 40.0):
        expected, _ = compute_epsilon(ORDERS, ORDERS * rho, 1e-5)
        assert renyi_epsilon(ORDERS * rho, 1e-5) == pytest.approx(expected, rel=1e-12)


def test_cdp_conversion_is_close_to_the_published_figures(known: dict[str, Any]) -> None:
    # Compared: epsilon of rho-zCDP, that is of divergences alpha rho, by the same conversion
    # formula. Theirs is the minimum over all real orders, ours over the list `ORDERS`: never
    # below (they are rounded to six digits), and within 1.5 %.
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


def skellam_masses(sigma: float, shift: int, n_shares: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the mass functions of a sum of Skellam shares, and of it moved by ``shift``."""
    variance = n_shares * sigma**2
    reach = math.ceil(13 * math.sqrt(variance)) + 40
    total = special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    return np.pad(total, (0, shift)), np.pad(total, (shift, 0))


def hockey_stick_epsilon(p: np.ndarray, q: np.ndarray, delta: float) -> float:
    """Return the exact smallest epsilon, rounded down, by bisection on the divergence."""
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        divergence = np.sum(np.maximum(p - math.exp(middle) * q, 0.0))
        low, high = (middle, high) if divergence > delta * (1 + 1e-9) else (low, middle)
    return low


LOSS_CELLS = 4000


def composed_divergence_epsilon(p: np.ndarray, q: np.ndarray, delta: float, rounds: int) -> float:
    """Return a lower bound on epsilon of ``rounds`` independent releases.

    Every privacy loss log(p/q) is rounded down to a grid, which can only lower the divergence,
    and so does leaving out what lies beyond the supports.
    """
    if rounds == 1:
        return hockey_stick_epsilon(p, q, delta)
    both = (p > 1e-30) & (q > 1e-30)
    losses = np.log(p[both] / q[both])
    cell = max(float(np.ptp(losses)) / LOSS_CELLS, 1e-9)
    cells = np.floor(losses / cell).astype(np.int64)
    lowest = int(cells.min())
    one = np.bincount(cells - lowest, weights=p[both])
    total = one
    for _ in range(rounds - 1):
        total = np.convolve(total, one)
    losses = (np.arange(len(total)) + rounds * lowest) * cell
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        gain = np.where(losses > middle, -np.expm1(np.minimum(middle - losses, 0.0)), 0.0)
        low, high = (middle, high) if np.dot(total, gain) > delta * (1 + 1e-9) else (low, middle)
    return low


# (S, shares, shift): variances of the sum from 1 to 768, on both sides of 4.
NOISES = [
    (1, 1, 1), (1, 4, 2), (1, 6, 3), (2, 1, 2), (2, 3, 5), (4, 4, 9), (8, 1, 1), (8, 1, 8),
    (8, 1, 30), (10, 1, 10), (16, 3, 50),
]  # fmt: skip
ROUNDS = [1, 4]
DIMS = [1, 10**6]


def least_epsilon(
    masses: tuple[np.ndarray, np.ndarray], delta: float, rounds: int, rate: float
) -> float:
    """Return the larger figure of both directions: a record is added, or removed."""
    without, with_record = masses
    mixed = (1 - rate) * without + rate * with_record
    return max(
        composed_divergence_epsilon(mixed, without, delta, rounds),
        composed_divergence_epsilon(without, mixed, delta, rounds),
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1])
def test_exact_divergence_in_one_dimension_never_exceeds_what_is_reported(
    noise: tuple[int, int, int], delta: float, rate: float
) -> None:
    sigma, shares, shift = noise
    for rounds in ROUNDS:
        gaussian = least_epsilon(tail_sums(sigma, shift, shares), delta, rounds, rate)
        other = least_epsilon(skellam_masses(sigma, shift, shares), delta, rounds, rate)
        # Sampled privacy loss distributions take a while: the hard cases, and one dimension.
        accountants = ["pld", "rdp"] if rate == 1.0 or delta == 1e-4 else ["rdp"]
        for accountant, dim in itertools.product(accountants, DIMS if rate == 1.0 else [1]):
            arguments: dict[str, Any] = {
                "l2_sensitivity": shift, "local_sigma": sigma, "parties": shares, "colluding": 0,
                "dim": dim, "rounds": rounds, "delta": delta, "sample_rate": rate,
                "accountant": accountant,
            }  # fmt: skip
            assert gaussian <= discrete_gaussian_epsilon(**arguments)
            assert other <= skellam_epsilon(**arguments)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("delta", [1e-2, 1e-4, 1e-6])
def test_the_noise_multiplier_of_a_mechanism_never_promises_too_much(
    noise: tuple[int, int, int], delta: float
) -> None:
    sigma, shares, shift = noise
    laws = {Mechanism.DISCRETE_GAUSSIAN: tail_sums, Mechanism.SKELLAM: skellam_masses}
    total = DiscreteSum(shift, sigma, shares, 1)
    for (mechanism, law), rate in itertools.product(laws.items(), (1.0, 0.1)):
        release = Releases(noise_multiplier_of(total, mechanism), rate, 1, mechanism)
        exact = least_epsilon(law(sigma, shift, shares), delta, 1, rate)
        assert exact <= lemma_epsilon(total, release, delta, AccountantKind.PLD)


def published_epsilon(noise: DiscreteSum, rounds: int, delta: float, rate: float) -> float:
    """Return the figure of the published analyses, written down again from their formulas.

    Without sampling Kairouz, Liu, Steinke 2021, Theorem 1, at all orders; with it at integer
    orders with the general amplification of Zhu and Wang 2019, Theorem 5.
    """
    tau = 10 * sum(
        math.exp(-2 * math.pi**2 * noise.local_sigma**2 * k / (k + 1))
        for k in range(1, noise.n_shares)
    )
    d2, sigma = noise.l2_sensitivity, math.sqrt(noise.n_shares) * noise.local_sigma
    squared = (d2 / sigma) ** 2 + 2 * tau * noise.dim
    rho = min(math.sqrt(squared), d2 / sigma + tau * math.sqrt(noise.dim)) ** 2 / 2
    if rate == 1.0:
        return renyi_epsilon(rounds * rho * ORDERS, delta)
    sampled = np.full(len(ORDERS), math.inf)
    for index in np.flatnonzero(IS_INTEGER_ORDER):
        alpha = int(ORDERS[index])
        terms = [(alpha - 1) * math.log1p(-rate) + math.log1p(rate * (alpha - 1))]
        for k in range(2, alpha + 1):
            choose = math.lgamma(alpha + 1) - math.lgamma(k + 1) - math.lgamma(alpha - k + 1)
            weight = (alpha - k) * math.log1p(-rate) + k * math.log(rate)
            three = 0.0 if k == 2 else math.log(3)
            terms.append(three + choose + weight + (k - 1) * k * rho)
        sampled[index] = special.logsumexp(terms) / (alpha - 1)
    return renyi_epsilon(rounds * sampled, delta)


@pytest.mark.parametrize("local_sigma", [1, 2, 8, 64])
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_figures_never_exceed_the_published_ones(local_sigma: int, rate: float) -> None:
    for shares, multiplier, delta in itertools.product((1, 5), (0.5, 2.0, 8.0), (1e-3, 1e-6)):
        shift = max(1, round(math.sqrt(shares) * local_sigma / multiplier))
        noise = DiscreteSum(shift, local_sigma, shares, 1000)
        for rounds in (1, 50):
            published = published_epsilon(noise, rounds, delta, rate)
            for accountant in ("rdp", "pld") if rate == 1.0 else ("rdp",):
                figure = discrete_gaussian_epsilon(
                    l2_sensitivity=shift, local_sigma=local_sigma, parties=shares, colluding=0,
                    dim=1000, rounds=rounds, delta=delta, sample_rate=rate, accountant=accountant,
                )  # fmt: skip
                # Equal up to the rounding of sums in another order.
                assert figure <= published * (1 + 1e-12)


def test_the_lemma_is_used_down_to_a_variance_of_four() -> None:
    arguments: dict[str, Any] = {
        "l2_sensitivity": 3, "colluding": 0, "dim": 64, "rounds": 1, "delta": 1e-5,
    }  # fmt: skip
    for local_sigma, parties in ((1, 3), (2, 1), (2, 4), (3, 4), (7, 1)):
        pld, rdp = (
            discrete_gaussian_epsilon(
                **arguments, local_sigma=local_sigma, parties=parties, accountant=accountant
            )
            for accountant in ("pld", "rdp")
        )
        # Nothing is left to the lemma up to a variance of four; from 36 on it is the better here.
        assert pld < rdp if parties * local_sigma**2 >= 36 else pld == rdp


def test_one_skellam_release_leaves_only_renyi_bounds_at_integer_orders() -> None:
    gaussian = [Releases(2.0, 0.1, 10), Releases(5.0, 1.0, 2)]
    one = Releases(1000.0, 1.0, 1, Mechanism.SKELLAM)
    for accountant in AccountantKind:
        mixed = composed_epsilon([*gaussian, one], 1e-5, accountant)
        assert mixed == composed_epsilon([one, *gaussian[::-1]], 1e-5, AccountantKind.RDP)
        assert mixed > composed_epsilon(gaussian, 1e-5, AccountantKind.RDP)
    # By hand: no sampling, orders 2, 3, ... only.
    release = Releases(2.0, 1.0, 3, Mechanism.SKELLAM)
    expected = renyi_epsilon(at_integer_orders(ORDERS * 3 / (2 * 2.0**2)), 1e-5)
    assert composed_epsilon([release], 1e-5, AccountantKind.PLD) == pytest.approx(expected)


def test_sampled_skellam_follows_the_formula_at_integer_orders() -> None:
    noise = DiscreteSum(3.0, 5.0, 2, 10)
    z = noise_multiplier_of(noise, Mechanism.SKELLAM)
    composed = composed_epsilon([Releases(z, 0.2, 7, Mechanism.SKELLAM)], 1e-5, AccountantKind.RDP)
    by_hand = np.full(len(ORDERS), math.inf)
    for index in np.flatnonzero(IS_INTEGER_ORDER):
        alpha = int(ORDERS[index])
        terms = [
            math.lgamma(alpha + 1) - math.lgamma(k + 1) - math.lgamma(alpha - k + 1)
            + (alpha - k) * math.log(0.8) + k * math.log(0.2) + k * (k - 1) / (2 * z * z)
            for k in range(alpha + 1)
        ]  # fmt: skip
        by_hand[index] = special.logsumexp(terms) / (alpha - 1)
    assert composed == pytest.approx(renyi_epsilon(7 * by_hand, 1e-5), rel=1e-9)


def test_skellam_takes_the_better_bound_at_every_order() -> None:
    # The published bound wins at high orders, the curvature bound at low ones, or in many
    # dimensions, where the L1 norm costs.
    assert np.all(
        np.isinf(skellam_divergences(DiscreteSum(10, 2.0, 9, 256), 1.0)[~IS_INTEGER_ORDER])
    )
    for noise in (DiscreteSum(10, 2.0, 9, 256), DiscreteSum(1, 1.0, 1, 1)):
        better = skellam_divergences(noise, 1.0)[IS_INTEGER_ORDER]
        orders = ORDERS[IS_INTEGER_ORDER]
        np.testing.assert_array_equal(
            better, np.minimum(skellam_bound(noise, orders), curvature_bound(noise, orders))
        )


def test_noise_multipliers_are_rounded_down() -> None:
    import mpmath

    for local_sigma, shares, shift in itertools.product((3, 64, 2**20), (1, 9), (1, 7, 10**6)):
        noise = DiscreteSum(shift, local_sigma, shares, 5)
        with mpmath.workprec(400):
            variance = mpmath.mpf(shares * local_sigma**2)
            curvature = 2 * mpmath.log(mpmath.besseli(0, variance) / mpmath.besseli(1, variance))
            exact = {
                Mechanism.DISCRETE_GAUSSIAN: mpmath.sqrt(variance - 4) / shift,
                Mechanism.SKELLAM: 1 / (shift * mpmath.sqrt(curvature)),
            }
            for mechanism, value in exact.items():
                ours = noise_multiplier_of(noise, mechanism)
                assert value * (1 - mpmath.mpf(2) ** -48) < ours <= value


def test_no_variance_is_left_below_four() -> None:
    noise = DiscreteSum(1.0, 1.0, 4, 1)
    assert noise_multiplier_of(noise, Mechanism.DISCRETE_GAUSSIAN) == 0.0
    assert noise_multiplier_of(noise, Mechanism.SKELLAM) > 0.0


def test_an_unknown_mechanism_is_refused() -> None:
    with pytest.raises(ConfigError, match="laplace"):
        noise_multiplier_of(DiscreteSum(1.0, 1.0, 4, 1), "laplace")
    with pytest.raises(ConfigError, match="laplace"):
        composed_epsilon([Releases(1.0, 1.0, 1, "laplace")], 1e-5, AccountantKind.RDP)


def test_using_the_full_variance_would_be_unsound() -> None:
    # The mistake that the subtraction of 4 prevents: exact delta above the Gaussian curve.
    p, q = tail_sums(1, 1)
    exact_delta = np.sum(np.maximum(p - math.e * q, 0.0))
    assert exact_delta > curve_delta(1.0, 1.0) * 1.05


def test_exact_variances_match_the_known_answers(known: dict[str, Any]) -> None:
    for square, variance in known["ibm"]["variance"].items():
        masses, _ = tail_sums(math.sqrt(float(square)), 0)
        support = np.arange(len(masses)) - len(masses) // 2
        assert np.sum(masses * support**2.0) == pytest.approx(variance, rel=1e-11)


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


@pytest.mark.parametrize("figure", [discrete_gaussian_epsilon, skellam_epsilon])
@pytest.mark.parametrize(
    "change",
    [
        {"local_sigma": 0.0},
        {"local_sigma": math.nan},
        {"l2_sensitivity": 0},
        {"dim": 0},
        {"colluding": 3},
        {"accountant": "gdp"},
    ],
)
def test_discrete_arguments_out_of_range_are_refused(change: dict[str, Any], figure: Any) -> None:
    good = {
        "l2_sensitivity": 1, "local_sigma": 8, "parties": 3, "colluding": 1, "dim": 1,
        "rounds": 0, "delta": 1e-5,
    }  # fmt: skip
    assert figure(**good) == 0.0
    with pytest.raises(ConfigError, match=next(iter(change))):
        figure(**{**good, **change})


def test_discrete_gaussian_shares_need_a_sigma_of_one_and_skellam_shares_do_not() -> None:
    good: dict[str, Any] = {
        "l2_sensitivity": 1, "local_sigma": 0.5, "parties": 3, "colluding": 1, "dim": 1,
        "rounds": 1, "delta": 1e-5,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="local_sigma"):
        discrete_gaussian_epsilon(**good)
    exact = least_epsilon(skellam_masses(0.5, 1, 2), 1e-5, 1, 1.0)
    assert exact <= skellam_epsilon(**good) < math.inf


@pytest.mark.parametrize(
    ("multiplier", "rate", "rounds", "delta", "unsafe"),
    # The last column is what dp-accounting reports; its true delta there is above the one asked
    # for (up to 1.8 times), by an exponentially tilted transform of the same distribution.
    [(5.0, 0.1, 100_000, 1e-12, 64.135), (1.0, 0.01, 100_000, 1e-11, 36.102)],
)
def test_float_errors_of_many_releases_are_paid_for(
    multiplier: float, rate: float, rounds: int, delta: float, unsafe: float
) -> None:
    reported = gaussian_epsilon(
        noise_multiplier=multiplier, sample_rate=rate, rounds=rounds, delta=delta
    )
    assert unsafe * 1.001 < reported < unsafe * 1.2
