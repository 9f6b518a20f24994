"""What the guesses of one audited run say about epsilon: two lower bounds and their sources.

The experiment: m canaries are each in the data with probability 1/2, independently. Who sees all
that the run opened guesses for r of them whether they are in, and is right W times. If the run
keeps its promise, W is rarely large.

* **Any run.** Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), Theorem 5.2: against an (epsilon,
  delta)-DP run with X ~ Binomial(r, e^eps / (1 + e^eps)),
  P[W >= v] <= P[X >= v] + 2 m delta max_{i=1..v} P[v - i <= X < v] / i.
  Nothing else is assumed: guesses may depend on each other, r is fixed in advance, or several r
  share the error (union bound). The price is a bound far below the truth: it must allow for runs
  that rarely, but then at once, give all canaries away.

* **Independent canaries.** Where every canary has a coordinate of its own, the noise of the
  coordinates is independent, and a guess looks at its own coordinate only, guesses are
  independent trials. One guess is right with probability at most (1 + TV)/2, where TV is the
  total variation between the run with and without the record; for a Gaussian release that is
  Phi(mu/2), mu = 1/z (Dong, Roth, Su 2022). So W is at most Binomial(m, (1 + TV)/2), and sharp.

A rejection refutes the promise, up to the stated error. No outcome proves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom

# Epsilon is found by bisection to this width; far below what chance makes of it.
_WIDTH = 1e-4
_MAX_EPSILON = 64.0


@dataclass(frozen=True, slots=True)
class Guesses:
    """The outcome of the experiment.

    Attributes:
        canaries: m, each in the data with probability 1/2.
        made: r, guesses that were made; about the other canaries the auditor abstained.
        correct: W.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries:
            raise ValueError(f"{self.correct} correct of {self.made} of {self.canaries} guesses")


def guess_extremes(scores: NDArray[np.float64], included: NDArray[np.bool_], made: int) -> Guesses:
    """Guess the highest scores as in and as many of the lowest as out; abstain on the rest.

    Args:
        scores: one per canary, shape (m,); more means rather in.
        included: which canaries were in, shape (m,), bool.
        made: number of guesses, even, at most m; must not depend on the scores.
    """
    half = made // 2
    order = np.argsort(scores, kind="stable")
    lowest, highest = order[:half], order[len(order) - half :]
    correct = np.count_nonzero(included[highest]) + np.count_nonzero(~included[lowest])
    return Guesses(len(scores), 2 * half, int(correct))


def guess_each(
    scores: NDArray[np.float64], included: NDArray[np.bool_], threshold: float
) -> Guesses:
    """Guess every canary by its own score: in, if it is above a threshold fixed in advance."""
    correct = np.count_nonzero((scores > threshold) == included)
    return Guesses(len(scores), len(scores), int(correct))


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Bound the chance of as many correct guesses against an (epsilon, delta)-DP run.

    Returns:
        The bound of Theorem 5.2, at most 1. It is 1 where 2 m delta exceeds 1: up to there it
        rises with epsilon (each term is a mean of two rising tails), which bisection needs.
    """
    factor = 2 * guesses.canaries * delta
    if factor > 1.0 or guesses.correct == 0:
        return 1.0
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    correct, made = guesses.correct, guesses.made
    tail = float(binom.sf(correct - 1, made, accuracy))
    steps = np.arange(1, correct + 1)
    below = np.cumsum(binom.pmf(correct - steps, made, accuracy))
    return min(1.0, tail + factor * float(np.max(below / steps)))


def epsilon_lower_bound(outcomes: Iterable[Guesses], delta: float, confidence: float) -> float:
    """Return an epsilon below which no (epsilon, delta)-DP run lies, at this confidence.

    Args:
        outcomes: of one run, for several numbers of guesses that were fixed in advance; each gets
            an equal part of the error (union bound), so the best one may be taken.
        delta: of the promise.
        confidence: as 0.95.

    Returns:
        The bound, rounded down.
    """
    tried = list(outcomes)
    level = (1.0 - confidence) / len(tried)
    return max(
        _largest_refuted(lambda epsilon, o=outcome: p_value(o, epsilon, delta) < level)  # type: ignore[misc]  # binds the loop variable
        for outcome in tried
    )


def _largest_refuted(refuted: Callable[[float], bool]) -> float:
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _MAX_EPSILON and refuted(high):
        low, high = high, 2 * high
    while high - low > _WIDTH:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def gaussian_accuracy(mu: float) -> float:
    """Return the best chance to guess one canary of a Gaussian release right, Phi(mu/2)."""
    return float(ndtr(mu / 2))


def largest_accuracy(points: Iterable[tuple[float, float]]) -> float:
    """Bound the chance to guess one canary right, given points (epsilon, delta) of a promise.

    Each bounds the total variation: TV <= delta + (1 - delta) tanh(epsilon / 2), by the best test
    against an (epsilon, delta)-DP release (Kairouz, Oh, Viswanath 2015, arXiv 1311.0776).
    """
    variation = min(delta + (1 - delta) * math.tanh(epsilon / 2) for epsilon, delta in points)
    return (1 + variation) / 2


def independent_p_value(guesses: Guesses, accuracy: float) -> float:
    """Return the chance of as many correct independent guesses at this accuracy each."""
    return float(binom.sf(guesses.correct - 1, guesses.made, accuracy))


def independent_power(n_guesses: int, accuracy: float, real_accuracy: float, level: float) -> float:
    """Return the chance that a test at ``level`` of ``accuracy`` sees the real, higher one."""
    least = int(binom.isf(level, n_guesses, accuracy)) + 1
    return float(binom.sf(least - 1, n_guesses, real_accuracy))


def gaussian_mu_lower_bound(guesses: Guesses, level: float) -> float:
    """Return a bound below mu of a Gaussian release, from independent guesses.

    Args:
        guesses: of `guess_each`.
        level: chance that the bound is above mu.

    Returns:
        2 Phi^-1 of the exact lower confidence bound (Clopper, Pearson 1934) of the accuracy.
    """
    if guesses.correct == 0:
        return 0.0
    wrong = guesses.made - guesses.correct
    accuracy = float(beta.ppf(level, guesses.correct, wrong + 1))
    return max(0.0, 2 * float(ndtri(accuracy)))
