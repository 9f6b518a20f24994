from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import stats

from mpcfl.dp import poisson_sample, sample_discrete_gaussian
from mpcfl.dp import sampler as sampler_module
from mpcfl.dp.sampler import MAX_SIGMA, draw_discrete_gaussian
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import KeystreamBits, SystemBits

FALSE_POSITIVE_RATE = 1e-9
DRAWS = 1_000_000
MANY_DRAWS = 2_000_000
SIGMAS = [1, 2, 3, 8, 10, 1000, 1 << 20]


class ListedBits:
    """Gives the listed words, in order."""

    def __init__(self, words: list[int]) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        given, self.left = self.left[:count], self.left[count:]
        assert len(given) == count
        return np.array(given, dtype=np.uint64)


def moments(sigma: float) -> tuple[float, float]:
    """Return the variance of the discrete Gaussian, and the variance of its square."""
    if sigma > 50:
        # The discrete moments differ from the continuous ones by less than 1e-100.
        return sigma**2, 2 * sigma**4
    support = np.arange(-40 * math.ceil(sigma), 40 * math.ceil(sigma) + 1.0)
    mass = np.exp(-(support**2) / (2 * sigma**2))
    mass /= mass.sum()
    second = float(np.sum(mass * support**2))
    return second, float(np.sum(mass * support**4)) - second**2


def variance_is_rejected(draws: np.ndarray, sigma: float) -> bool:
    """Two-sided z-test of the second moment.

    Power: a sigma off by 1 % moves the mean square by 2 %, 20 standard errors at 2,000,000 draws
    (14 at 1,000,000), and the test rejects beyond 6.1: at least 1 - 1e-12.
    """
    second, spread = moments(sigma)
    squares = draws.astype(np.float64) ** 2
    z = (np.mean(squares) - second) / math.sqrt(spread / len(draws))
    return bool(abs(z) > stats.norm.isf(FALSE_POSITIVE_RATE / 2))


def pooled_chi_square(draws: np.ndarray, sigma: float) -> float:
    """Return the p-value of a chi-square test over bins with expected counts >= 10.

    Power: against a sigma off by 1 % its non-centrality is at least 385 at 2,000,000 draws, on at
    most 42 degrees of freedom, and the statistic is rejected beyond 122: at least 1 - 1e-20.
    """
    centers, starts = bins(sigma, len(draws))
    expected = np.diff(cumulative(starts, sigma)) * len(draws)
    counts = np.bincount(np.searchsorted(starts[1:-1], draws, side="right"), minlength=len(centers))
    assert expected.min() >= 10
    statistic = np.sum((counts - expected) ** 2 / expected)
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def bins(sigma: float, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 43 bins: first integers of each, and both ends of the line around them.

    Few bins, because an error of sigma is smooth; every integer has its own at sigma 1 to 3.
    """
    step = max(1, round(sigma / 5))
    reach = int(4 * sigma // step)
    while True:
        inner = np.arange(-reach, reach + 2) * step - step // 2
        starts = np.concatenate(([-np.inf], inner, [np.inf]))
        if np.diff(cumulative(starts, sigma)).min() * n_draws >= 10:
            return starts[:-1], starts
        reach -= 1


def cumulative(starts: np.ndarray, sigma: float) -> np.ndarray:
    """Return P[X < start] of the discrete Gaussian."""
    if sigma > 50:
        # The sum up to start - 1 is the integral up to start - 1/2 but for a share of
        # 1 / (24 sigma^2) or so: below 1e-4 standard errors at sigma >= 1000.
        return stats.norm.cdf((starts - 0.5) / sigma)
    reach = 40 * math.ceil(sigma)
    support = np.arange(-reach, reach + 1)
    mass = np.exp(-(support.astype(np.float64) ** 2) / (2 * sigma**2))
    total = np.concatenate(([0.0], np.cumsum(mass / mass.sum())))
    return total[np.clip(starts, -reach, reach + 1).astype(np.int64) + reach]


@pytest.mark.stat
@pytest.mark.parametrize("sigma", SIGMAS)
def test_draws_follow_the_discrete_gaussian_and_one_percent_off_is_rejected(sigma: int) -> None:
    draws = sample_discrete_gaussian(sigma=sigma, size=MANY_DRAWS)
    assert draws.dtype == np.int64
    assert pooled_chi_square(draws, sigma) > FALSE_POSITIVE_RATE
    assert pooled_chi_square(draws, sigma * 0.99) < FALSE_POSITIVE_RATE
    assert pooled_chi_square(draws, sigma * 1.01) < FALSE_POSITIVE_RATE


@pytest.mark.stat
@pytest.mark.parametrize("sigma", [*SIGMAS, MAX_SIGMA])
def test_variance_fits_and_one_percent_off_is_rejected(sigma: int) -> None:
    draws = sample_discrete_gaussian(sigma=sigma, size=MANY_DRAWS)
    assert not variance_is_rejected(draws, sigma)
    assert variance_is_rejected(draws, sigma * 0.99)
    assert variance_is_rejected(draws, sigma * 1.01)


@pytest.mark.stat
def test_mean_and_signs_are_balanced() -> None:
    draws = sample_discrete_gaussian(sigma=8, size=DRAWS)
    limit = stats.norm.isf(FALSE_POSITIVE_RATE / 2)
    assert abs(draws.mean()) < limit * 8 / math.sqrt(DRAWS)
    positive = np.count_nonzero(draws > 0)
    n_signed = np.count_nonzero(draws)
    assert abs(positive - n_signed / 2) < limit * math.sqrt(n_signed) / 2


@pytest.mark.stat
@pytest.mark.parametrize("sigma", [1, 3, 1000])
def test_the_law_is_the_same_when_the_exact_path_decides(
    sigma: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_decisions = []
    decide = sampler_module._exact_accept

    def counted(*arguments: object) -> bool:
        exact_decisions.append(1)
        return decide(*arguments)

    monkeypatch.setattr(sampler_module, "_exact_accept", counted)
    monkeypatch.setattr(sampler_module, "_FILTER_MARGIN", 0.2)
    draws = sample_discrete_gaussian(sigma=sigma, size=30_000)
    assert len(exact_decisions) > 1000
    assert pooled_chi_square(draws, sigma) > FALSE_POSITIVE_RATE


@pytest.mark.parametrize("sigma", [1, 7, 1000, MAX_SIGMA])
def test_the_exact_path_and_the_float_filter_agree_on_equal_bits(
    sigma: int, keyed_bits: Callable[[int], KeystreamBits], monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered = draw_discrete_gaussian(sigma, 2000, keyed_bits(5))
    # A decided comparison draws no further bits, so the streams stay in step.
    monkeypatch.setattr(sampler_module, "_FILTER_MARGIN", 2.0)
    np.testing.assert_array_equal(filtered, draw_discrete_gaussian(sigma, 2000, keyed_bits(5)))


def test_a_tie_in_k_is_decided_by_further_bits() -> None:
    law = sampler_module._block_law()
    thresholds = [int(t) for t in law.thresholds]
    assert thresholds == sorted(thresholds)
    for k, tie in enumerate(thresholds[:-1]):
        words = np.array([tie], dtype=np.uint64)
        assert law.draw(words, ListedBits([0])).tolist() == [k]
        assert law.draw(words, ListedBits([2**64 - 1])).tolist() == [k + 1]


def test_k_is_the_number_of_thresholds_below_a_word(
    keyed_bits: Callable[[int], KeystreamBits],
) -> None:
    law = sampler_module._block_law()
    near = [int(t) + step for t in law.thresholds[:-1] for step in (-1, 1)]
    words = np.concatenate((np.array(near, dtype=np.uint64), keyed_bits(3).words(200_000)))
    expected = np.sum(words[:, None] > law.thresholds[None, :], axis=1)
    np.testing.assert_array_equal(law.draw(words, ListedBits([])), expected)


def test_the_far_tail_of_k_is_not_cut_off() -> None:
    # A uniform number of 1 - 2^-192 lies beyond every k up to 15.
    far = ListedBits([2**64 - 1, 2**64 - 1, 0, 0])
    words = np.array([2**64 - 1], dtype=np.uint64)
    assert sampler_module._block_law().draw(words, far)[0] >= 15


def test_k_thresholds_are_the_distribution_function_rounded_down() -> None:
    with mpmath.workprec(300):
        total = mpmath.nsum(lambda i: mpmath.exp(-(i**2) / 2), [0, 60])
        for k, threshold in enumerate(sampler_module._block_law().thresholds[:-1]):
            below = mpmath.fsum(mpmath.exp(-mpmath.mpf(i * i) / 2) for i in range(k + 1))
            assert int(mpmath.floor(below / total * 2**64)) == int(threshold)


def test_fixed_point_exponential_is_within_one_unit() -> None:
    for numerator, denominator in [(0, 1), (1, 3), (27, 2), (7**20, 8**19)]:
        with mpmath.workprec(400):
            exact = mpmath.exp(-mpmath.mpf(numerator) / denominator) * 2**128
            near = sampler_module._exp_fixed(numerator, denominator, 128)
            assert abs(exact - near) < 1


@pytest.mark.parametrize(("word", "draws"), [(0, []), (1, [0]), (2**32 - 1, [2])])
def test_words_that_would_favour_some_j_are_refused(word: int, draws: list[int]) -> None:
    # 2^32 = 3 * 1431655765 + 1: one word is too many for sigma = 3, and it is word 0.
    bits = ListedBits([0, word << 32, 0])
    assert sampler_module._draw_block(3, 1, bits).tolist() == draws


def test_equal_injected_bits_give_equal_draws(
    keyed_bits: Callable[[int], KeystreamBits],
) -> None:
    first = draw_discrete_gaussian(1000, 70_000, keyed_bits(1))
    np.testing.assert_array_equal(first, draw_discrete_gaussian(1000, 70_000, keyed_bits(1)))
    assert not np.array_equal(first, draw_discrete_gaussian(1000, 70_000, keyed_bits(2)))


def test_draws_from_the_system_never_repeat() -> None:
    # Equal by chance with probability below 2^-1000.
    first, second = (sample_discrete_gaussian(sigma=1000, size=200) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_draws_noise_of_its_own() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, sample_discrete_gaussian(sigma=1000, size=200).tobytes())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        from_child = np.frombuffer(pipe.read(), dtype=np.int64)
    os.waitpid(child, 0)
    assert len(from_child) == 200
    assert not np.array_equal(from_child, sample_discrete_gaussian(sigma=1000, size=200))


@pytest.mark.parametrize("sigma", [0, -3, MAX_SIGMA + 1, 2.5, "8"])
def test_sigma_must_be_an_integer_in_range(sigma: object) -> None:
    with pytest.raises(ConfigError, match="sigma"):
        sample_discrete_gaussian(sigma=sigma, size=1)


def test_size_may_be_zero_but_not_negative() -> None:
    assert sample_discrete_gaussian(sigma=8, size=0).shape == (0,)
    with pytest.raises(ConfigError, match="size"):
        sample_discrete_gaussian(sigma=8, size=-1)


def test_the_public_sampler_takes_no_seed() -> None:
    with pytest.raises(TypeError):
        sample_discrete_gaussian(sigma=8, size=1, seed=1)


def test_poisson_sampling_at_rate_one_takes_everybody_and_no_bits() -> None:
    np.testing.assert_array_equal(poisson_sample(5, 1.0, ListedBits([])), np.arange(5))


def test_poisson_sampling_never_exceeds_the_accounted_rate() -> None:
    # 0.1 as a float is above one tenth; the threshold is its floor on the grid of 2^-64.
    threshold = int(Fraction(0.1) * 2**64)
    picked = poisson_sample(3, 0.1, ListedBits([threshold - 1, threshold, threshold + 1]))
    assert picked.tolist() == [0]
    assert Fraction(threshold, 2**64) <= Fraction(0.1)


@pytest.mark.stat
def test_poisson_sampling_has_its_rate() -> None:
    picked = poisson_sample(DRAWS, 0.2, SystemBits())
    deviation = (len(picked) - 0.2 * DRAWS) / math.sqrt(DRAWS * 0.2 * 0.8)
    assert abs(deviation) < stats.norm.isf(FALSE_POSITIVE_RATE / 2)
    assert np.all(np.diff(picked) > 0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_poisson_sampling_refuses_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        poisson_sample(3, rate, SystemBits())
