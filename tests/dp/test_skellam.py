from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from scipy import special, stats

from mpcfl.dp import sample_skellam
from mpcfl.dp import skellam as skellam_module
from mpcfl.dp.skellam import MAX_VARIANCE, draw_skellam
from mpcfl.dp.skellam_law import Masses, block_law, masses_of, ratio_fixed
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import KeystreamBits

FALSE_POSITIVE_RATE = 1e-9
DRAWS = 2_000_000
VARIANCES = [1, 2, 10, 1000, 1 << 20]


class ListedBits:
    """Gives the listed words, in order."""

    def __init__(self, words: list[int]) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        given, self.left = self.left[:count], self.left[count:]
        assert len(given) == count
        return np.array(given, dtype=np.uint64)


def variance_is_rejected(draws: np.ndarray, variance: float) -> bool:
    """Two-sided z-test of the second moment; Var[X^2] = 2 v^2 + v.

    Power: a standard deviation off by 1 % moves the mean square by 2 %, at least 16 standard errors
    at 2,000,000 draws, and the test rejects beyond 6.1: at least 1 - 1e-20.
    """
    spread = 2 * variance**2 + variance
    z = (np.mean(draws.astype(np.float64) ** 2) - variance) / math.sqrt(spread / len(draws))
    return bool(abs(z) > stats.norm.isf(FALSE_POSITIVE_RATE / 2))


def pooled_chi_square(draws: np.ndarray, variance: float) -> float:
    """Return the p-value of a chi-square test over bins with expected counts >= 10.

    Power: against a standard deviation off by 1 % its non-centrality is at least 310 at 2,000,000
    draws, on at most 44 degrees of freedom, and it is rejected beyond 126: at least 1 - 1e-20.
    """
    starts, expected = bins(variance, len(draws))
    counts = np.bincount(np.searchsorted(starts[1:], draws, side="right"), minlength=len(starts))
    assert expected.min() >= 10
    statistic = np.sum((counts - expected) ** 2 / expected)
    return float(stats.chi2.sf(statistic, len(expected) - 1))


def bins(variance: float, n_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most 46 bins, by their first integers, and the counts expected in them."""
    sigma = math.sqrt(variance)
    step = max(1, round(sigma / 5))
    reach = math.ceil(12 * sigma) + 40
    support = np.arange(-reach, reach + 1)
    mass = special.ive(np.abs(support), variance)
    assert mass.sum() == pytest.approx(1.0, rel=1e-10)
    bin_of = np.round(support / step).astype(np.int64)
    last = bin_of[-1]
    while True:
        numbers, first = np.unique(np.clip(bin_of, -last, last), return_index=True)
        expected = np.add.reduceat(mass, first) * n_draws
        if len(numbers) <= 45 and expected.min() >= 10:
            return support[first], expected
        last -= 1


@pytest.mark.stat
@pytest.mark.parametrize("variance", VARIANCES)
def test_draws_follow_the_skellam_law_and_one_percent_off_is_rejected(variance: int) -> None:
    draws = sample_skellam(variance=variance, size=DRAWS)
    assert draws.dtype == np.int64
    assert pooled_chi_square(draws, variance) > FALSE_POSITIVE_RATE
    assert pooled_chi_square(draws, variance * 0.99**2) < FALSE_POSITIVE_RATE
    assert pooled_chi_square(draws, variance * 1.01**2) < FALSE_POSITIVE_RATE


@pytest.mark.stat
@pytest.mark.parametrize("variance", [*VARIANCES, 1 << 40, MAX_VARIANCE])
def test_variance_fits_and_one_percent_off_is_rejected(variance: int) -> None:
    draws = sample_skellam(variance=variance, size=DRAWS)
    assert not variance_is_rejected(draws, variance)
    assert variance_is_rejected(draws, variance * 0.99**2)
    assert variance_is_rejected(draws, variance * 1.01**2)


def test_the_test_tells_skellam_from_the_discrete_gaussian_of_the_same_variance() -> None:
    # The fourth moments are 3 v^2 + v and nearly 3 v^2.
    starts, expected = bins(2, DRAWS)
    support = np.arange(starts[0], 1 - starts[0])
    gaussian = np.exp(-(support**2) / 4.0)
    other = np.add.reduceat(gaussian / gaussian.sum(), starts - starts[0]) * DRAWS
    assert np.sum((other - expected) ** 2 / expected) > 10_000


@pytest.mark.stat
def test_mean_and_signs_are_balanced() -> None:
    draws = sample_skellam(variance=10, size=DRAWS)
    limit = stats.norm.isf(FALSE_POSITIVE_RATE / 2)
    assert abs(draws.mean()) < limit * math.sqrt(10 / DRAWS)
    n_signed = np.count_nonzero(draws)
    assert abs(np.count_nonzero(draws > 0) - n_signed / 2) < limit * math.sqrt(n_signed) / 2


@pytest.mark.stat
def test_a_sum_of_shares_is_skellam_with_the_sum_of_variances() -> None:
    total = sum(sample_skellam(variance=4, size=DRAWS) for _ in range(3))
    assert pooled_chi_square(np.asarray(total), 12) > FALSE_POSITIVE_RATE


@pytest.mark.stat
@pytest.mark.parametrize("variance", [5, 1000])
def test_the_law_is_the_same_when_the_exact_path_decides(
    variance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact_decisions = []
    decide = skellam_module._exact_accept

    def counted(*arguments: object) -> bool:
        exact_decisions.append(1)
        return decide(*arguments)

    skellam_module._grid_table.cache_clear()
    monkeypatch.setattr(skellam_module, "_exact_accept", counted)
    monkeypatch.setattr(skellam_module, "_FLOAT_MARGIN", 0.2)
    draws = sample_skellam(variance=variance, size=30_000)
    skellam_module._grid_table.cache_clear()
    assert len(exact_decisions) > 1000
    assert pooled_chi_square(draws, variance) > FALSE_POSITIVE_RATE


@pytest.mark.parametrize("variance", [1, 7, 1 << 20, MAX_VARIANCE])
def test_the_exact_path_and_the_float_filter_agree_on_equal_bits(
    variance: int, keyed_bits: Callable[[int], KeystreamBits], monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered = draw_skellam(variance, 250, keyed_bits(5))
    skellam_module._grid_table.cache_clear()
    # A decided comparison draws no further bits, so the streams stay in step.
    monkeypatch.setattr(skellam_module, "_FLOAT_MARGIN", 2.0)
    exact = draw_skellam(variance, 250, keyed_bits(5))
    skellam_module._grid_table.cache_clear()
    np.testing.assert_array_equal(filtered, exact)


@pytest.mark.parametrize("variance", [1 << 14, 1 << 20, 3 << 31, MAX_VARIANCE])
def test_tabulated_probabilities_are_within_their_margin(
    variance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = skellam_module._grid_table(variance)
    assert 2.0**-40 <= table.margin < 2.0**-29
    asked = []
    monkeypatch.setattr(
        skellam_module, "_exact_accept", lambda *arguments: asked.append(1) or False
    )
    spacing = 1 << table.spacing_bits
    for k in range(table.n_blocks):
        # The worst place between grid points is the last one; also the end of the block.
        for j in {spacing - 1, table.width // 3 | (spacing - 1), table.width - 1}:
            exact = ratio_fixed(variance, (k * table.width + j, k * table.width), 64)
            # Words beyond twice the margin on both sides are decided, and rightly.
            gap = int((2 * table.margin + 2.0**-50) * 2**64)
            words = np.array([max(exact - gap, 0), exact + gap], dtype=np.uint64)
            pair = (np.array([k, k]), np.array([j, j]))
            bits = ListedBits([])
            assert skellam_module._accept(table, pair, words, bits).tolist() == [True, False]
    assert not asked


def test_a_block_beyond_the_table_is_decided_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    table = skellam_module._grid_table(1000)
    asked: list[tuple[int, int]] = []

    def note(_table: object, k: int, j: int, _uniform: object) -> bool:
        asked.append((k, j))
        return True

    monkeypatch.setattr(skellam_module, "_exact_accept", note)
    far = table.n_blocks + 3
    candidates = (np.array([far, 0]), np.array([5, 0]))
    words = np.array([1 << 63, 1 << 63], dtype=np.uint64)
    accepted = skellam_module._accept(table, candidates, words, ListedBits([]))
    assert asked == [(far, 5)]
    assert accepted.tolist() == [True, True]


def test_the_far_tail_is_not_cut_off() -> None:
    law = block_law(10)
    # A uniform number of 1 - 2^-192 lies beyond every k of the table.
    far = ListedBits([2**64 - 1, 2**64 - 1, 0, 0])
    words = np.array([2**64 - 1], dtype=np.uint64)
    assert law.draw(words, far)[0] >= len(law.thresholds)


@pytest.mark.parametrize("variance", [1, 10, 1000])
def test_block_thresholds_are_the_distribution_function_rounded_down(variance: int) -> None:
    width = math.isqrt(variance)
    with mpmath.workprec(300):
        weights = [mpmath.besseli(k * width, variance) for k in range(120)]
        total = mpmath.fsum(weights)
        for k, threshold in enumerate(block_law(variance).thresholds[:-1]):
            below = mpmath.fsum(weights[: k + 1])
            assert int(mpmath.floor(below / total * 2**64)) == int(threshold)


@pytest.mark.parametrize("variance", [1, 2, 10, 1000, 1 << 14])
@pytest.mark.parametrize("accuracy", [128, 320])
def test_masses_are_bessel_functions_to_the_last_bit(variance: int, accuracy: int) -> None:
    masses = Masses(variance, accuracy)
    with mpmath.workprec(accuracy + 200):
        for x in {0, 1, 5, 4 * math.isqrt(variance), 9 * math.isqrt(variance)}:
            exact = mpmath.besseli(x, variance, maxterms=10**6) * mpmath.exp(-variance)
            assert abs(exact * mpmath.mpf(2) ** accuracy - masses.at(x)) < 1.001


@pytest.mark.parametrize("variance", [1, 1000, 1 << 14])
def test_masses_along_a_line_are_those_at_its_points_and_add_up_to_one(variance: int) -> None:
    masses = masses_of(variance, 200)
    every = masses.along(0, 1, masses.reach + 1)
    for x in (0, 1, 17, masses.reach):
        assert abs(every[x] - masses.at(x)) <= 1
    assert abs(2 * sum(every) - every[0] - 2**200) <= 3 * len(every)


def test_a_mass_beyond_the_reach_is_refused() -> None:
    masses = masses_of(10, 128)
    with pytest.raises(ValueError, match="reach"):
        masses.at(masses.reach + 1)


@pytest.mark.parametrize("x", [200, 400])
def test_a_ratio_of_tiny_masses_gets_the_bits_it_needs(x: int) -> None:
    # p(200) at v = 2 is below 2^-1400, and 400 beyond the reach of the first accuracy.
    with mpmath.workprec(300):
        exact = mpmath.besseli(x + 1, 2) / mpmath.besseli(x, 2) * mpmath.mpf(2) ** 128
        assert abs(exact - ratio_fixed(2, (x + 1, x), 128)) < 1


@pytest.mark.parametrize(("word", "draws"), [(0, []), (1, [0]), (2**32 - 1, [2])])
def test_words_that_would_favour_some_j_are_refused(word: int, draws: list[int]) -> None:
    # 2^32 = 3 * 1431655765 + 1: one word is too many for a width of 3, and it is word 0.
    table = skellam_module._grid_table(10)
    bits = ListedBits([0, word << 32, 0])
    assert skellam_module._draw_block(table, 1, bits).tolist() == draws


def test_equal_injected_bits_give_equal_draws(keyed_bits: Callable[[int], KeystreamBits]) -> None:
    first = draw_skellam(1000, 40_000, keyed_bits(1))
    np.testing.assert_array_equal(first, draw_skellam(1000, 40_000, keyed_bits(1)))
    assert not np.array_equal(first, draw_skellam(1000, 40_000, keyed_bits(2)))


def test_draws_from_the_system_never_repeat() -> None:
    # Equal by chance with probability below 2^-1000.
    first, second = (sample_skellam(variance=1000, size=250) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("variance", [0, -3, MAX_VARIANCE + 1, 2.5, "8"])
def test_variance_must_be_an_integer_in_range(variance: object) -> None:
    with pytest.raises(ConfigError, match="variance"):
        sample_skellam(variance=variance, size=1)


def test_size_may_be_zero_but_not_negative() -> None:
    assert sample_skellam(variance=8, size=0).shape == (0,)
    with pytest.raises(ConfigError, match="size"):
        sample_skellam(variance=8, size=-1)


def test_the_public_sampler_takes_no_seed() -> None:
    with pytest.raises(TypeError):
        sample_skellam(variance=8, size=1, seed=1)
