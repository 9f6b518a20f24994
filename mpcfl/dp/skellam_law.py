"""Exact values of the Skellam law p(x) = exp(-v) I_x(v), in fixed-point integers.

They come from the trapezoidal rule on the circle (Trefethen, Weideman 2014), whose error Poisson
summation gives in full: with t_j = 2 pi j / N, the mean of exp(v cos t_j - v) cos(x t_j) over
j = 0 .. N - 1 is the sum of p(x + a N) over all integers a. N is chosen so that Bernstein's
inequality makes all of these but p(x) negligible. Every value has as many bits as it is asked for.
"""

from __future__ import annotations

import math
from functools import lru_cache

from mpmath.ctx_mp import MPContext

from mpcfl.dp.inversion import EXACT_ARITHMETIC, Inversion

_GUARD_BITS = 64
# First accuracy of a ratio beyond its own bits; a mass that is drawn is hardly ever below 2^-256.
_RATIO_BITS = 320


@lru_cache(maxsize=1 << 14)
def ratio_fixed(variance: int, points: tuple[int, int], n_bits: int) -> int:
    """Return 2^n_bits p(x) / p(y) for 0 <= y <= x, less than 1 off."""
    accuracy = n_bits + _RATIO_BITS
    while True:
        masses = masses_of(variance, accuracy)
        if masses.reach >= points[0]:
            above, below = (masses.at(point) for point in points)
            # p(x) <= p(y), so that both errors together are below one unit once p(y) is resolved.
            if below >= 1 << (_GUARD_BITS + n_bits):
                return ((above << n_bits) + below // 2) // below
        accuracy *= 2


class Masses:
    """Values of p(x) 2^accuracy, less than 1 off (see the module for the formula)."""

    __slots__ = ("_fraction_bits", "_mp", "_nodes", "_weights", "accuracy", "reach")

    def __init__(self, variance: int, accuracy: int) -> None:
        self.accuracy = accuracy
        # Bernstein: P[|X| >= y] <= 2 exp(-y^2 / (2 (v + y/3))), here below 2^-(accuracy + 4).
        exponent = (accuracy + 5) * math.log(2)
        deviation = exponent / 3 + math.sqrt(exponent**2 / 9 + 2 * exponent * variance)
        # Masses of 0 to `reach` are good: all aliases lie beyond it. N = 2 reach + 1 is odd.
        self.reach = math.ceil(deviation * (1 + 2.0**-40))
        self._nodes = 2 * self.reach + 1
        # Guards the sum of some hundred terms, and a cosine recurrence of up to 2^12 steps.
        self._fraction_bits = accuracy + _GUARD_BITS
        self._mp = MPContext()
        self._mp.prec = self._fraction_bits + 32
        with EXACT_ARITHMETIC:
            self._weights = self._circle_weights(variance)

    def _circle_weights(self, variance: int) -> list[int]:
        """Return exp(v cos t_j - v) for j = 1, 2, ... until all others together are negligible."""
        mp, weights = self._mp, []
        smallest = -(self.accuracy + 4) * math.log(2) - math.log(self._nodes)
        for j in range(1, self.reach + 1):
            exponent = -2 * variance * mp.sinpi(mp.mpf(j) / self._nodes) ** 2
            if exponent < smallest:
                break
            weights.append(self._fixed(mp.exp(exponent)))
        return weights

    def _fixed(self, value: object) -> int:
        return int(self._mp.floor(self._mp.ldexp(value, self._fraction_bits)))

    def _cosine(self, multiple: int) -> int:
        """Return cos(2 pi multiple / N); its argument is reduced exactly."""
        return self._fixed(self._mp.cospi(self._mp.mpf(2 * (multiple % self._nodes)) / self._nodes))

    def at(self, x: int) -> int:
        """Return 2^accuracy p(x) for 0 <= x <= reach."""
        return self.along(x, 0, 1)[0]

    def along(self, start: int, step: int, count: int) -> list[int]:
        """Return the masses of start, start + step, ..., none beyond `reach`."""
        if start + step * (count - 1) > self.reach:
            raise ValueError("a mass beyond the reach of this accuracy was asked for")
        scale = self._fraction_bits
        totals = [1 << scale] * count
        for j, weight in enumerate(self._weights, 1):
            with EXACT_ARITHMETIC:
                now = self._cosine(j * start)
                turn = 2 * self._cosine(j * step) if count > 1 else 0
                last = self._cosine(j * (start - step)) if count > 1 else 0
            for index in range(count):
                totals[index] += 2 * ((weight * now) >> scale)
                # cos(a + b) = 2 cos(a) cos(b) - cos(a - b)
                now, last = ((turn * now) >> scale) - last, now
        return [(total // self._nodes) >> (scale - self.accuracy) for total in totals]


@lru_cache(maxsize=16)
def masses_of(variance: int, accuracy: int) -> Masses:
    """Return the masses of one law with so many bits after the point."""
    return Masses(variance, accuracy)


@lru_cache(maxsize=64)
def _block_masses(variance: int, accuracy: int) -> list[int]:
    """Return the masses of 0, B, 2 B, ... until all beyond are below 2^-accuracy together."""
    masses, width = masses_of(variance, accuracy), math.isqrt(variance)
    return masses.along(0, width, masses.reach // width + 1)


def block_law(variance: int) -> Inversion:
    """Return the law of k: weight p(k B)."""
    # All weights together are at least p(0) > 1 / (4 sqrt(v)).
    extra = variance.bit_length() // 2 + _GUARD_BITS

    def cumulative(k: int, n_bits: int) -> int:
        masses = _block_masses(variance, n_bits + extra)
        total = sum(masses)
        return ((sum(masses[: k + 1]) << n_bits) + total // 2) // total

    return Inversion(cumulative)
