"""Bounds the chance that an integer leaves the ring Z_{2^b}, over a whole run.

What has to stay inside [-2^(b-1), 2^(b-1)) is the sum of all n parties and every single value,
which a backend refuses if it doesn't fit. Wrapping costs accuracy, never privacy, so the bound
is over the noise, the rounding and, for the sum only, the public signs of the rotation, for rows
that don't depend on them. A single value's bound holds for every row: a backend that refuses it
is seen by all, and so may not depend on the data.

*Noise.* A discrete Gaussian is subgaussian with its own sigma (Canonne, Kamath, Steinke 2020,
arXiv 2004.00010, Corollary 17); n shares add up to E exp(l N) <= exp(l^2 n S^2 / 2). A Skellam
sum of variance v = n S^2 has E exp(l N) = exp(v (cosh l - 1)), which is not subgaussian.

*No rotation.* The signal is at most n L for certain, with L = s C + 1/2 per row (or the
saturation M), and P[|N| >= a] <= 2 E exp(l N) exp(-l a) for every l >= 0 (Chernoff).

*Rotation.* Let x_i be party i's row in levels, ||x_i|| <= c, and w_i = H D x_i / sqrt(d') with
random signs D. Coordinate j of w_i is a Rademacher sum, so E exp(l w_ij) <= exp(l^2 c^2 / (2 d'))
(Hoeffding), hence E exp(l |w_ij|) <= 2 exp(l^2 c^2 / (2 d')), and by Hoelder's inequality, the
signs being the same for all,

    E exp(l sum_i |w_ij|) <= prod_i E[exp(l n |w_ij|)]^(1/n) <= 2 exp(l^2 (n c)^2 / (2 d')).

*Conditional rounding.* |q_ij| is an unbiased rounding of |w_ij| to one of its two neighbours, so
unconditionally E exp(l |q_ij|) <= exp(l |w_ij| + l^2/8) (Hoeffding's lemma, range 1). A row is
accepted if sum_j q_ij^2 is small enough. Given the other coordinates that event decreases in
|q_ij|, so by Chebyshev's association inequality accepting does not raise E exp(l |q_ij|); the last
resort, rounding towards zero, doesn't either. Rows are rounded independently, hence

    E exp(l sum_i |q_ij|) <= 2 exp(l^2 V / 2),   V = (n c)^2 / d' + n / 4,

and, N being symmetric and independent, |sum_i q_ij + N| >= a has at most the probability
2 P[sum_i |q_ij| + N >= a] <= 4 exp(-l a + l^2 V / 2) E exp(l N). QED

At record level a party's sum is saturated at M, so that n M bounds the signal whatever was
sampled; M itself is the same bound for K rows, with no noise and a union over all of them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from mpcfl.config import Unit
from mpcfl.dp.accountant import Mechanism
from mpcfl.dp.request import PlanRequest

# Chance that any value of the run leaves the ring.
WRAP_PROBABILITY = 2.0**-40
# More than enough for Newton's method, which comes from above on a convex function.
_NEWTON_STEPS = 40
# Keeps cosh finite; a tail that needs a larger exponent is below the smallest float anyway.
_LARGEST_TILT = 350.0


@dataclass(frozen=True, slots=True)
class Levels:
    """Sizes on the grid: S of a share, c = s C of a row before rounding, h of a count."""

    sigma: int
    clip_levels: float
    count_level: int
    saturation_int: int


@dataclass(frozen=True, slots=True)
class _Spread:
    """What a value strays by at random: a subgaussian part and a Skellam part, as variances."""

    subgaussian: float
    skellam: float

    def tail(self, room: float) -> float:
        """Bound P[N >= room] by Chernoff's inequality; 1 if there is no room."""
        if room <= 0.0:
            return 1.0
        if self.skellam == 0.0:
            return math.exp(-(room**2) / (2 * self.subgaussian))
        tilt = self._tilt(room)
        exponent = tilt * room - tilt**2 * self.subgaussian / 2
        # cosh(l) - 1, without the loss of digits at a small l.
        return math.exp(-(exponent - self.skellam * 2 * math.sinh(tilt / 2) ** 2))

    def _tilt(self, room: float) -> float:
        """Return the l that minimises the bound; every l >= 0 is valid."""
        tilt = min(math.asinh(room / self.skellam), _LARGEST_TILT)
        for _ in range(_NEWTON_STEPS):
            excess = self.subgaussian * tilt + self.skellam * math.sinh(tilt) - room
            slope = self.subgaussian + self.skellam * math.cosh(tilt)
            tilt = max(0.0, tilt - excess / slope)
        return tilt


def saturation(request: PlanRequest, clip_levels: float, count_level: int) -> int:
    """Return M at record level: what a coordinate of a party's sum practically never passes."""
    rows = request.rows_per_party
    model = rows * clip_levels
    if request.is_rotated:
        values = 2 * request.rotated_dim * request.summands * request.releases * math.ceil(rows)
        deviations = math.sqrt(2 * math.log(2 * values / WRAP_PROBABILITY))
        flat = clip_levels / math.sqrt(request.rotated_dim)
        model = min(model, deviations * (rows * flat + math.sqrt(rows) / 2))
    return math.ceil(max(model, rows * count_level))


def wrap_probability(request: PlanRequest, levels: Levels) -> float:
    """Bound the chance that a sum or a single value leaves the ring, over the whole run.

    Returns:
        At most 1, rounded up to a grid of 16 bits, so that parties agree on it.
    """
    n, releases = request.summands, request.releases
    in_sum, in_one = _sum_wraps(request, levels), _value_wraps(request, levels)
    model = request.rotated_dim * (in_sum + n * in_one)
    counted = [_certain(request, levels, (k, k * levels.count_level)) for k in (n, 1)]
    total = releases * (model + request.counts * (counted[0] + n * counted[1]))
    # An underflow to zero would round the bound down.
    return _round_up(min(1.0, max(total, sys.float_info.min)))


def _sum_wraps(request: PlanRequest, levels: Levels) -> float:
    """Bound P[one model coordinate of the sum of all parties leaves the ring]."""
    parties = request.summands
    certain = _certain(request, levels, (parties, parties * _largest(request, levels)))
    if request.unit is Unit.RECORD or not request.is_rotated:
        return certain
    proxy = (parties * levels.clip_levels) ** 2 / request.rotated_dim + parties / 4
    room = 2.0 ** (request.ring_bits - 1) - 1.0
    return min(certain, 4 * _spread(request, levels.sigma, parties, proxy).tail(room))


def _value_wraps(request: PlanRequest, levels: Levels) -> float:
    """Bound P[one model coordinate of one party leaves the ring], whatever its row is.

    A backend refuses such a value, which everybody sees. The bound must hold for every row, also
    for one that happens to be aligned with the signs: these are public.
    """
    return _certain(request, levels, (1, _largest(request, levels)))


def _largest(request: PlanRequest, levels: Levels) -> float:
    """Return what no coordinate of a party's row or sum of rows can pass."""
    if request.unit is Unit.RECORD:
        return float(levels.saturation_int)
    # Nearest rounding moves a coordinate by 1/2 at most, random rounding by less than 1.
    return levels.clip_levels + (1.0 if request.is_rotated else 0.5)


def _certain(request: PlanRequest, levels: Levels, signal: tuple[int, float]) -> float:
    """Bound P[so many shares of noise leave the room that a signal of this size leaves]."""
    parties, largest = signal
    room = 2.0 ** (request.ring_bits - 1) - 1.0 - largest
    return 2 * _spread(request, levels.sigma, parties, 0.0).tail(room)


def _spread(request: PlanRequest, sigma: int, parties: int, proxy: float) -> _Spread:
    noise = float(parties * sigma**2)
    if request.mechanism == Mechanism.SKELLAM:
        return _Spread(proxy, noise)
    return _Spread(proxy + noise, 0.0)


def _round_up(probability: float) -> float:
    mantissa, exponent = math.frexp(probability)
    return math.ldexp(math.ceil(mantissa * 2.0**16) / 2.0**16, exponent)
