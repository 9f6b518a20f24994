"""Fits noise and integer grid into the ring Z_{2^b}.

The noise of one party is an integer sigma S = 2^j; the largest that fits is taken, because a
finer grid makes rounding and its inflation of the sensitivity vanish. For a noise multiplier z
the integer sensitivity is D, with D z the effective sigma of the honest shares together. Of D^2
each secret count takes h^2, h = floor(count_share D); the rest is the model's, so that the
joint bound D_model^2 + counts h^2 = D^2 holds in integers. What a row of c = s C levels grows to by
rounding fixes the scale s:

- nearest rounding: D_model = c + sqrt(d)/2;
- conditional rounding with beta = exp(-1/2) (Kairouz, Liu, Steinke 2021, arXiv 2102.06387,
  Theorem 1): D_model^2 = c^2 + d'/4 + c + sqrt(d')/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpcfl.config import Unit
from mpcfl.dp.accountant import Mechanism, noise_multiplier_of
from mpcfl.dp.renyi import DiscreteSum
from mpcfl.dp.request import PlanRequest
from mpcfl.dp.wrap_bound import WRAP_PROBABILITY, Levels, saturation, wrap_probability

# S = 2^j. Discrete Gaussian: below 8 the slack terms of the accounting are no longer negligible;
# a sum of Skellam variables is one exactly, at any size. Above 2^28 the integer arithmetic of the
# sampler would leave 64 bits.
_LARGEST_EXPONENT = 28
_SMALLEST_EXPONENT = {Mechanism.DISCRETE_GAUSSIAN: 3, Mechanism.SKELLAM: 0}
# A sigma below 8 is taken only where rounding at most doubles the sensitivity: a grid that coarse
# may leave a row next to nothing of its bound, and such a plan would be of no use.
_FINE_SIGMA = 8
_COARSE_INFLATION = 2.0
# Every integer up to 2^53 is a float64; the quantizer gives up above 2^52.
_LARGEST_LEVEL = 2.0**52


@dataclass(frozen=True, slots=True)
class Fit:
    """Noise, grid and bounds that fit the ring; fields as in `noise_plan.NoisePlan`."""

    noise_multiplier: float
    local_sigma: int
    scale: float
    norm_bound_int: int
    saturation_int: int
    wrap_probability: float
    rounding_inflation: float
    overhead_vs_central: float
    count_level_int: int


def sigmas(request: PlanRequest) -> list[int]:
    """Return the integer sigmas that the mechanism allows, largest first."""
    least = _SMALLEST_EXPONENT[Mechanism(request.mechanism)]
    return [1 << exponent for exponent in range(_LARGEST_EXPONENT, least - 1, -1)]


def fit_ring(request: PlanRequest, multiplier: float) -> Fit | None:
    """Return the fit with the largest sigma, or None if there is none."""
    fits = (fit_sigma(request, multiplier, sigma) for sigma in sigmas(request))
    return next((fit for fit in fits if fit is not None), None)


def fit_sigma(request: PlanRequest, multiplier: float, sigma: int) -> Fit | None:
    """Return the fit with this sigma, or None if the ring is too small or the grid too coarse."""
    bound = sensitivity(request, multiplier, sigma)
    if bound >= _LARGEST_LEVEL:
        return None
    clip_levels, count_level = row_levels(request, bound)
    if not is_usable(sigma, bound, clip_levels):
        return None
    norm_bound_int = math.floor(bound * bound)
    saturation_int = math.isqrt(norm_bound_int)
    if request.unit is Unit.RECORD:
        saturation_int = saturation(request, clip_levels, count_level)
    wrap = wrap_probability(request, Levels(sigma, clip_levels, count_level, saturation_int))
    if wrap > WRAP_PROBABILITY:
        return None
    central = multiplier * request.persons * clip_levels
    return Fit(
        noise_multiplier=sensitivity(request, math.sqrt(norm_bound_int), sigma),
        local_sigma=sigma,
        scale=clip_levels / request.clip_norm,
        norm_bound_int=norm_bound_int,
        saturation_int=saturation_int,
        wrap_probability=wrap,
        rounding_inflation=bound / clip_levels,
        overhead_vs_central=sigma * math.sqrt(request.parties) / central,
        count_level_int=count_level,
    )


def sensitivity(request: PlanRequest, multiplier: float, sigma: int) -> float:
    """Return D: what one row may move a release by, in levels, for this noise multiplier.

    The formula is its own inverse: of D it gives the noise multiplier.
    """
    noise = DiscreteSum(1.0, sigma, request.honest, request.rotated_dim + request.counts)
    return noise_multiplier_of(noise, request.mechanism) / (multiplier * request.persons)


def is_usable(sigma: int, bound: float, clip_levels: float) -> bool:
    """Tell whether rounding leaves enough of the sensitivity to the signal."""
    if sigma < _FINE_SIGMA:
        return bound <= _COARSE_INFLATION * clip_levels
    return clip_levels > 0.0


def row_levels(request: PlanRequest, bound: float) -> tuple[float, int]:
    """Divide the sensitivity D between a row's model coordinates and its counts.

    Returns:
        c = s C, the norm of a row in levels before it is rounded, at most 0 if nothing is left
        to it; and h, the level of a count of one.
    """
    count_level = math.floor(request.count_share * bound) if request.counts else 0
    if bound < 1.0 or (request.counts and count_level < 1):
        return 0.0, count_level
    left = bound * bound - request.counts * count_level**2
    grown = math.sqrt(request.rotated_dim) / 2
    if not request.is_rotated:
        return math.sqrt(left) - grown, count_level
    # c^2 + c = left - d'/4 - sqrt(d')/2.
    rest = left - grown * grown - grown
    return (math.sqrt(rest + 0.25) - 0.5 if rest > 0.0 else 0.0), count_level
