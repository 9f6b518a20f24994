"""The lemmas of docs/proofs.md, checked with many digits where they could fail."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy import special

from mpcfl.dp.renyi import (
    DiscreteSum,
    curvature_bound,
    skellam_bound,
    skellam_curvature,
)

ROOT = Path(__file__).parents[2]


def eta(v: mpmath.mpf) -> mpmath.mpf:
    return 2 * mpmath.nsum(lambda n: mpmath.exp(-2 * mpmath.pi**2 * v * n**2), [1, 12])


def gaussian(x: mpmath.mpf, v: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(-(x**2) / (2 * v)) / mpmath.sqrt(2 * mpmath.pi * v)


def discrete_gaussian(sigma: int, reach: int) -> list[mpmath.mpf]:
    """Return the masses of -reach .. reach; what lies beyond is below the working precision."""
    weights = [mpmath.exp(-mpmath.mpf(x * x) / (2 * sigma**2)) for x in range(-reach, reach + 1)]
    total = mpmath.fsum(weights)
    return [weight / total for weight in weights]


@pytest.mark.parametrize("v", ["0.5", "1", "2", "4"])
def test_normalizer_of_a_discrete_gaussian_is_within_eta_of_one(v: str) -> None:
    with mpmath.workdps(60):
        variance = mpmath.mpf(v)
        bound = eta(variance)
        for y in (0, "0.25", "0.5", "0.9"):
            total = mpmath.fsum(gaussian(k - mpmath.mpf(y), variance) for k in range(-60, 61))
            assert abs(total - 1) <= bound * (1 + mpmath.mpf(10) ** -15)
        # Attained at the integers, so that no smaller bound would do.
        at_zero = mpmath.fsum(gaussian(mpmath.mpf(k), variance) for k in range(-60, 61))
        assert at_zero - 1 > bound * (1 - mpmath.mpf(10) ** -15)
        kappa = 5 * mpmath.exp(-2 * mpmath.pi**2 * variance)
        assert mpmath.log((1 + bound) / (1 - bound)) <= kappa


@pytest.mark.parametrize(("r_squared", "variance"), [("0.5", "0.75"), ("0.5", "3"), ("1", "2.5")])
def test_rounded_gaussian_is_within_kappa_of_the_discrete_one(
    r_squared: str, variance: str
) -> None:
    with mpmath.workdps(40):
        r2, v = mpmath.mpf(r_squared), mpmath.mpf(variance)
        normalizer = mpmath.fsum(gaussian(mpmath.mpf(k), v) for k in range(-60, 61))
        kappa = 5 * mpmath.exp(-2 * mpmath.pi**2 * r2)
        largest = mpmath.mpf(0)
        # The trapezoidal rule is exact to e^(-2 pi^2 (v - r^2) 16^2) and better here.
        step = mpmath.mpf(1) / 16
        grid = [i * step for i in range(-14 * 16, 14 * 16 + 1)]
        # The conditional normalizer has period one in y.
        centers = {
            i: mpmath.fsum(gaussian(k - i * step, r2) for k in range(-40, 41)) for i in range(16)
        }
        for w in range(3):
            mass = step * mpmath.fsum(
                gaussian(y, v - r2) * gaussian(w - y, r2) / centers[int(y / step) % 16]
                for y in grid
            )
            largest = max(largest, abs(mpmath.log(mass * normalizer / gaussian(mpmath.mpf(w), v))))
        assert mpmath.mpf(10) ** -20 < largest <= kappa


@pytest.mark.parametrize("sigma", [1, 2])
def test_sum_of_discrete_gaussians_is_within_half_tau(sigma: int) -> None:
    with mpmath.workdps(60):
        reach = 18 * sigma
        share = total = discrete_gaussian(sigma, reach)
        for n_shares in (2, 3, 4):
            total = np.convolve(np.array(total), np.array(share))
            center = len(total) // 2
            variance = n_shares * sigma**2
            weights = [mpmath.exp(-mpmath.mpf(z * z) / (2 * variance)) for z in range(-90, 91)]
            norm = mpmath.fsum(weights)
            # Half the reach: the convolution of what is cut off doesn't matter there.
            worst = max(
                abs(mpmath.log(total[center + z] * norm / weights[90 + z]))
                for z in range(-6 * sigma, 6 * sigma + 1)
            )
            tau = DiscreteSum(1.0, sigma, n_shares, 1).tau
            # The bound is a few times what it bounds: half of it would fail at two shares.
            assert worst <= tau / 2
            if n_shares == 2:
                assert worst > tau / 8


def test_skellam_curvature_is_rounded_up() -> None:
    with mpmath.workprec(400):
        for mu in (0.1, 0.3, 1.0, 2.5, 10.0, 36.0, 100.0, 1e3, 1e4, 2.0**30, 2.0**60):
            ratio = mpmath.besseli(0, mpmath.mpf(mu)) / mpmath.besseli(1, mpmath.mpf(mu))
            exact = 2 * mpmath.log(ratio)
            assert exact <= skellam_curvature(mu) <= exact * (1 + mpmath.mpf(2) ** -51)


@pytest.mark.parametrize("mu", [0.1, 1.0, 7.0, 50.0, 1e3, 1e4])
def test_skellam_curvature_is_largest_at_zero_and_decreases(mu: float) -> None:
    with mpmath.workprec(300):
        x = mpmath.mpf(mu)
        near = [mpmath.besseli(k, x, maxterms=10**6) for k in range(42)]
        masses = [near[1], *near]
        curvature = [
            mpmath.log(masses[k + 1] ** 2 / (masses[k] * masses[k + 2])) for k in range(41)
        ]
        assert all(a > b > 0 for a, b in itertools.pairwise(curvature))
        assert curvature[0] <= skellam_curvature(mu)


def test_the_barrier_of_the_curvature_proof_is_positive() -> None:
    with mpmath.workprec(300):
        for k, mu in itertools.product((0, 1, 2, 10, 100), ("0.01", "0.7", "5", "60", "2000")):
            x = mpmath.mpf(mu)
            low, high = (mpmath.besseli(order, x, maxterms=10**6) for order in (k, k + 1))
            r = high / low
            barrier = x / 2 * (1 - r**4) - (k + 1) * r - k * r**3
            assert barrier > 0
            if x < 0.1:
                leading = x**3 / (8 * (k + 1) ** 3 * (k + 2))
                assert barrier / leading == pytest.approx(1.0, abs=1e-3)


def test_the_barrier_of_the_curvature_proof_rises_at_its_zeros() -> None:
    # Whatever r is: at x = 2 r G / (1 - r^4) the barrier is zero, and rises by the stated amount.
    for k, r in itertools.product(
        (0, 1, 2, 10, 100), (Fraction(1, 9), Fraction(1, 2), Fraction(98, 99))
    ):
        u = r * r
        g = k * u + k + 1
        x = 2 * r * g / (1 - u * u)
        assert x / 2 * (1 - r**4) - (k + 1) * r - k * r**3 == 0
        slope = 1 - u - (2 * k + 1) * r / x
        rise = (1 - r**4) / 2 - slope * (2 * x * r**3 + 3 * k * u + k + 1)
        assert rise == (1 - u) ** 2 / 2 * 2 * u / ((1 + u) * g) > 0


def skellam_masses(variance: float, reach: int) -> np.ndarray:
    return special.ive(np.abs(np.arange(-reach, reach + 1)), variance)


def log_moment(top: np.ndarray, bottom: np.ndarray, alpha: float) -> float:
    """Return (alpha - 1) times the Renyi divergence, over the common support."""
    both = (top > 0) & (bottom > 0)
    return float(special.logsumexp(alpha * np.log(top[both]) + (1 - alpha) * np.log(bottom[both])))


def moved(masses: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    return np.pad(masses, (0, shift)), np.pad(masses, (shift, 0))


@pytest.mark.parametrize("variance", [0.5, 2.0, 36.0, 400.0])
@pytest.mark.parametrize("shift", [1, 3, 10])
def test_exact_renyi_divergence_of_skellam_is_below_both_bounds(
    variance: float, shift: int
) -> None:
    noise = DiscreteSum(float(shift), math.sqrt(variance), 1, 1)
    here, there = moved(skellam_masses(variance, 40 + math.ceil(25 * math.sqrt(variance))), shift)
    for alpha in (2, 3, 5, 16):
        # Beyond, the masses underflow: what is left of the sum is below the exact value.
        exact = log_moment(there, here, alpha) / (alpha - 1)
        order = np.array([float(alpha)])
        # The slack of float sums of thousands of terms.
        for bound in (curvature_bound, skellam_bound):
            assert exact <= bound(noise, order)[0] * (1 + 1e-9)


def test_both_directions_of_sampling_are_ordered_pointwise() -> None:
    for rate, alpha in itertools.product((0.001, 0.1, 0.5, 0.9, 0.999), (1.01, 1.5, 2, 3, 10, 64)):
        for exponent in np.linspace(-8, 8, 81):
            with mpmath.workprec(400):
                rho = mpmath.exp(exponent)
                power = mpmath.mpf(alpha)

                def gain(ratio: mpmath.mpf, q: float = rate, a: mpmath.mpf = power) -> mpmath.mpf:
                    mixed = 1 - mpmath.mpf(q) + q * ratio
                    return mixed**a - mixed ** (1 - a)

                assert gain(rho) + rho * gain(1 / rho) >= -(mpmath.mpf(10) ** -80)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.8])
@pytest.mark.parametrize("kind", ["discrete-gaussian", "sum", "skellam"])
def test_sampled_divergences_of_both_directions_are_below_the_formula(
    rate: float, kind: str
) -> None:
    support = np.arange(-90, 91.0)
    weights = np.exp(-(support**2) / (2 * 3.0**2))
    masses = {
        "discrete-gaussian": weights / weights.sum(),
        "sum": np.convolve(weights, weights) / weights.sum() ** 2,
        "skellam": skellam_masses(9.0, 90),
    }[kind]
    without, with_record = moved(masses, 4)
    mixed = (1 - rate) * without + rate * with_record
    for alpha in (2, 3, 8):
        terms = [
            math.log(math.comb(alpha, k)) + (alpha - k) * math.log(1 - rate) + k * math.log(rate)
            + (log_moment(with_record, without, k) if k > 1 else 0.0)
            for k in range(alpha + 1)
        ]  # fmt: skip
        formula = special.logsumexp(terms)
        assert log_moment(mixed, without, alpha) == pytest.approx(formula, rel=1e-9)
        assert log_moment(without, mixed, alpha) <= formula * (1 + 1e-9)


def test_every_test_that_the_proofs_name_is_there() -> None:
    text = (ROOT / "docs" / "proofs.md").read_text()
    named = set(re.findall(r"`(?:(?:tests/\w+/)?(test_\w+)\.py::)?(test_[a-z]\w+)`", text))
    # One is named without its file where its section or another test before it says which.
    assert len(named) >= 25
    sources = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    everywhere = "".join(sources.values())
    for file, name in named:
        assert f"def {name}(" in (sources[file] if file else everywhere), name
