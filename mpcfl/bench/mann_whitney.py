"""Exact tests of whether one set of times is larger than another; nothing is assumed of the times.

Mann and Whitney's U counts the pairs in which the second value is the larger one; if both sets are
luck alone, all orders of the values are equally likely, which gives its distribution without any
approximation (Hollander, Wolfe, Chicken 2014, sections 4.1 to 4.3). Pairs that are equal count for
no difference, which can only make a p-value larger. The sum of U over independent cases tests
these cases together (van Elteren 1960, with equal weights). Holm's steps (1979) keep the chance
of any false alarm among many tests within one bound, whichever of them are no luck.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sample:
    """The times of two sides, seconds, one per launch; both have some."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    def larger(self, factor: float = 1.0) -> int:
        """Return U: in how many pairs b is more than ``factor`` times as large as a."""
        return sum(y > factor * x for x, y in itertools.product(self.a, self.b))

    @property
    def swapped(self) -> Sample:
        """The same with b in the place of a."""
        return Sample(self.b, self.a)


def u_distribution(n_a: int, n_b: int) -> list[int]:
    """Return in how many of the orders of n_a + n_b values U is 0, 1, ..., n_a n_b.

    The counts are the coefficients of the Gaussian binomial [n_a + n_b choose n_a]:
    the product over i of (1 - q^(n_b + i)) / (1 - q^i).
    """
    size = n_a * n_b + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n_a + 1):
        for u in range(size - 1, n_b + i - 1, -1):
            counts[u] -= counts[u - n_b - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return counts


def p_larger(samples: Sequence[Sample], factor: float = 1.0) -> float:
    """Return how likely so large a sum of U is, if b is ``factor`` times a in all samples, or less.

    Args:
        samples: of independent cases; a small value says that in one of them b is larger.
        factor: of the hypothesis.

    Returns:
        The exact probability but for the rounding of additions of positive numbers.
    """
    chances: NDArray[np.float64] = np.ones(1)
    for sample in samples:
        chances = np.convolve(chances, _probabilities(len(sample.a), len(sample.b)))
    found = sum(sample.larger(factor) for sample in samples)
    return min(1.0, float(chances[found:].sum()))


def p_different(sample: Sample) -> float:
    """Return the two-sided p-value of a single case: that b is as large as a."""
    return min(1.0, 2 * min(p_larger([sample]), p_larger([sample.swapped])))


def least_p(sizes: Iterable[tuple[int, int]]) -> float:
    """Return the least that `p_larger` can be with so many launches on both sides of each case."""
    smallest = 1.0
    for n_a, n_b in sizes:
        smallest *= float(_probabilities(n_a, n_b)[-1])
    return smallest


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values, in the given order.

    Calling those of at most alpha keeps the chance of any false call within alpha.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for done, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def ratio_interval(sample: Sample, miss: float) -> tuple[float, float, float]:
    """Return Hodges and Lehmann's ratio of b over a, and its interval, rounded outwards.

    Args:
        sample: all times positive.
        miss: most probability with which the interval may miss the true factor.

    Returns:
        Ratio, lower and upper end; 0 and infinity where there are too few launches for one.
    """
    ratios = sorted(y / x for x, y in itertools.product(sample.a, sample.b))
    # The interval leaves out the `cut` smallest and largest ratios; it misses the true factor
    # with probability 2 P(U < cut), so cut is the largest one that keeps that in bounds.
    counts = u_distribution(len(sample.a), len(sample.b))
    allowed = miss / 2 * sum(counts)
    tail, cut = counts[0], 0
    while tail <= allowed:
        cut += 1
        tail += counts[cut]
    ratio = statistics.median(ratios)
    return (ratio, ratios[cut - 1], ratios[-cut]) if cut else (ratio, 0.0, float("inf"))


@cache
def _probabilities(n_a: int, n_b: int) -> NDArray[np.float64]:
    counts = u_distribution(n_a, n_b)
    total = sum(counts)
    # Python divides its long integers exactly rounded; converting them first would overflow.
    return np.array([count / total for count in counts])
