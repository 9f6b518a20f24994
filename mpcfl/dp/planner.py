"""Checks a request for a noise plan and fits it into the ring Z_{2^b}.

The noise of one party is an integer sigma S = 2^j; the largest that fits is taken, because a
finer grid makes rounding and its inflation of the sensitivity vanish. What has to fit, except
with probability 2^-40 over the whole run, is the sum of all parties and every single value:
a backend refuses a value outside the ring, and a sum that wraps would be noise without use.
Discrete Gaussian noise is subgaussian with its own sigma (Canonne, Kamath, Steinke 2020,
Corollary 17), so P[|sum of n shares| >= a] <= 2 exp(-a^2 / (2 n S^2)).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

from mpcfl.config import Unit
from mpcfl.dp.accountant import ROUNDING_VARIANCE, AccountantKind, check_release
from mpcfl.dp.calibrate import Target, calibrate
from mpcfl.errors import ConfigError, PlanError

# Chance that any value of the run leaves the ring.
WRAP_PROBABILITY = 2.0**-40
# S = 2^j: below 8 the slack terms of the accounting are no longer negligible; above 2^28 the
# integer arithmetic of the sampler would leave 64 bits.
_LARGEST_EXPONENT = 28
_SMALLEST_EXPONENT = 3
# Every integer up to 2^53 is a float64; the quantizer gives up above 2^52.
_LARGEST_LEVEL = 2.0**52
_MIN_PRIVATE_BITS = 16
_MAX_BITS = 64


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan is asked for; the arguments of `plan.make_plan`, which explains them."""

    epsilon: float
    delta: float
    rounds: int
    parties: int
    dim: int
    clip_norm: float
    modulus_bits: int
    colluding: int
    max_dropout: int
    spare_attempts: int
    unit: Unit
    sample_rate: float
    records: int | None
    mechanism: str
    rotation: str
    noise_multiplier: float | None
    max_parties_per_person: int
    accountant: AccountantKind

    @property
    def releases(self) -> int:
        """Return how many sums may be opened at most."""
        return self.rounds + self.spare_attempts

    @property
    def honest(self) -> int:
        """Return m, the number of shares in the sum that the planned coalition doesn't know."""
        return self.parties - self.colluding - self.max_dropout

    @property
    def rows_per_party(self) -> float:
        """Return K: one update, or the records that one party samples (never more in practice)."""
        if self.unit is not Unit.RECORD or self.records is None:
            return 1.0
        expected = self.sample_rate * self.records
        return min(float(self.records), expected + 6 * math.sqrt(expected) + 6)

    @property
    def target(self) -> Target:
        """Return what the noise multiplier is calibrated for."""
        return Target(self.epsilon, self.delta, self.releases, self.sample_rate, self.accountant)


@dataclass(frozen=True, slots=True)
class Fit:
    """Noise, grid and bounds that fit the ring; fields as in `plan.NoisePlan`."""

    noise_multiplier: float
    local_sigma: int
    scale: float
    norm_bound_int: int
    saturation_int: int
    wrap_probability: float
    rounding_inflation: float
    overhead_vs_central: float


def parse_unit(unit: str) -> Unit:
    """Return the privacy unit of this name, or raise ConfigError."""
    try:
        return Unit(unit)
    except ValueError:
        raise ConfigError(f"unit is {unit!r}; it must be 'record' or 'party'") from None


def check_request(request: PlanRequest) -> None:
    """Refuse what no plan could meet whatever the ring.

    Raises:
        ConfigError: an argument is out of range.
        PlanError: the threat model leaves no noise, or asks for what isn't available.
    """
    if not 0.0 < request.epsilon < math.inf:
        raise ConfigError(f"epsilon is {request.epsilon}; it must be greater than 0 and finite")
    check_release(request.sample_rate, request.rounds, request.delta)
    _check_sizes(request)
    _check_unit(request)
    _check_threats(request)
    if request.mechanism != "discrete-gaussian" or request.rotation != "none":
        raise PlanError(
            f"mechanism {request.mechanism!r} with rotation {request.rotation!r} is not "
            f"available; use mechanism 'discrete-gaussian' and rotation 'none'"
        )


def _check_sizes(request: PlanRequest) -> None:
    for name in ("rounds", "parties", "dim", "colluding", "max_parties_per_person"):
        if getattr(request, name) < 1:
            raise ConfigError(f"{name} is {getattr(request, name)}; it must be at least 1")
    for name in ("max_dropout", "spare_attempts"):
        if getattr(request, name) < 0:
            raise ConfigError(f"{name} is {getattr(request, name)}; it must not be negative")
    for name in ("clip_norm", "noise_multiplier"):
        value = getattr(request, name)
        if value is not None and not 0.0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be greater than 0 and finite")
    if not _MIN_PRIVATE_BITS <= request.modulus_bits <= _MAX_BITS:
        raise ConfigError(
            f"modulus_bits is {request.modulus_bits}; with privacy it must lie between "
            f"{_MIN_PRIVATE_BITS} and {_MAX_BITS}"
        )


def _check_unit(request: PlanRequest) -> None:
    if request.unit is Unit.NONE:
        raise PlanError("unit 'none' has no noise plan; use make_fixed_point_plan")
    if request.unit is Unit.PARTY and request.sample_rate < 1.0:
        raise PlanError(
            f"sample_rate is {request.sample_rate} at party level; the participants are known, "
            f"so sampling parties amplifies nothing: set it to 1, or use unit 'record'"
        )
    if request.unit is Unit.RECORD and (request.records is None or request.records < 1):
        raise ConfigError("records is missing; at record level set the public total of records")
    if request.max_parties_per_person > 1 and request.sample_rate < 1.0:
        raise PlanError(
            f"max_parties_per_person is {request.max_parties_per_person} with sample_rate "
            f"{request.sample_rate}; every party samples by itself, so that any number of one "
            f"person's records may meet in a sum, for which no bound is proved: set sample_rate "
            f"to 1, or max_parties_per_person to 1"
        )


def _check_threats(request: PlanRequest) -> None:
    if request.honest < 1:
        raise PlanError(
            f"{request.parties} parties of which {request.colluding} collude and "
            f"{request.max_dropout} drop out leave no share of noise that the coalition doesn't "
            f"know; use at least {request.colluding + request.max_dropout + 1} parties"
        )
    if 2 * request.max_dropout >= request.parties:
        raise PlanError(
            f"max_dropout is {request.max_dropout} of {request.parties} parties; it must be below "
            f"half of them, so that two halves of the parties can't both open a sum"
        )


def find_fit(request: PlanRequest) -> Fit:
    """Calibrate the noise and fit it into the ring.

    Raises:
        PlanError: nothing fits; names the smallest ring and the nearest epsilon that do. Or the
            given noise multiplier doesn't last for one sum.
    """
    asked = request.noise_multiplier
    if asked is not None:
        _check_one_round(request, asked)
    multiplier = calibrate(request.target) if asked is None else asked
    fit = fit_ring(request, multiplier)
    if fit is None:
        raise PlanError(_infeasible(request, multiplier))
    return fit


def _check_one_round(request: PlanRequest, multiplier: float) -> None:
    """Refuse a given noise multiplier with which no sum at all could be opened."""
    one = replace(request.target, releases=1)
    cost = one.spent(multiplier)
    if cost > request.epsilon:
        # Rounded up to three decimals.
        enough = math.ceil(calibrate(one) * 1000) / 1000
        raise PlanError(
            f"with noise_multiplier {multiplier:g} one round costs epsilon {cost:.6g}, and the "
            f"budget is {request.epsilon:g}, so no round could run; set noise_multiplier to at "
            f"least {enough} for one round, leave it out to have it calibrated for "
            f"{request.releases}, or raise epsilon"
        )


def fit_ring(request: PlanRequest, multiplier: float) -> Fit | None:
    """Return the fit with the largest sigma, or None if there is none."""
    for exponent in range(_LARGEST_EXPONENT, _SMALLEST_EXPONENT - 1, -1):
        fit = _fit_sigma(request, multiplier, 1 << exponent)
        if fit is not None:
            return fit
    return None


def _fit_sigma(request: PlanRequest, multiplier: float, sigma: int) -> Fit | None:
    persons = request.max_parties_per_person
    unknown = math.sqrt(request.honest * sigma**2 - ROUNDING_VARIANCE)
    # Delta2 of one party's integer vector, and the scale whose rounding stays below it.
    bound = unknown / (multiplier * persons)
    scale = (bound - math.sqrt(request.dim) / 2) / request.clip_norm
    if scale <= 0.0 or bound >= _LARGEST_LEVEL:
        return None
    norm_bound_int = math.floor(bound * bound)
    clip_levels = scale * request.clip_norm
    if request.unit is Unit.RECORD:
        saturation_int = math.ceil(clip_levels * request.rows_per_party)
        largest = float(saturation_int)
    else:
        saturation_int = math.isqrt(norm_bound_int)
        largest = clip_levels + 0.5
    wrap = _wrap_probability(request, sigma, largest)
    if wrap > WRAP_PROBABILITY or norm_bound_int < 1:
        return None
    realised = unknown / (persons * math.sqrt(norm_bound_int))
    central = multiplier * persons * clip_levels
    return Fit(
        noise_multiplier=realised,
        local_sigma=sigma,
        scale=scale,
        norm_bound_int=norm_bound_int,
        saturation_int=saturation_int,
        wrap_probability=wrap,
        rounding_inflation=bound / clip_levels,
        overhead_vs_central=sigma * math.sqrt(request.parties) / central,
    )


def _wrap_probability(request: PlanRequest, sigma: int, largest: float) -> float:
    """Bound the chance that a sum or a single value leaves the ring, over the whole run."""
    n, values = request.parties, request.dim * request.releases
    room = 2.0 ** (request.modulus_bits - 1) - 1.0
    room_of_sum, room_of_one = room - n * largest, room - largest
    if room_of_sum <= 0.0:
        return 1.0
    sum_wraps = 2 * values * math.exp(-(room_of_sum**2) / (2 * n * sigma**2))
    one_wraps = 2 * n * values * math.exp(-(room_of_one**2) / (2 * sigma**2))
    # An underflow to zero would round the bound down.
    return min(1.0, max(sum_wraps + one_wraps, sys.float_info.min))


def _infeasible(request: PlanRequest, multiplier: float) -> str:
    """Say what doesn't fit, and the nearest requests that do."""
    remedies = []
    for bits in range(request.modulus_bits + 1, _MAX_BITS + 1):
        if fit_ring(replace(request, modulus_bits=bits), multiplier) is not None:
            remedies.append(f"set modulus_bits to at least {bits}")
            break
    nearest = _nearest_multiplier(request, multiplier)
    if nearest is not None and request.noise_multiplier is not None:
        remedies.append(f"set noise_multiplier to about {nearest:.3g}")
    elif nearest is not None:
        epsilon = _confirmed_epsilon(request, nearest)
        if epsilon is not None:
            remedies.append(f"set epsilon to {epsilon:.6g}")
    remedy = ", or ".join(remedies) or "use more parties, fewer coordinates or fewer rounds"
    return (
        f"no noise plan fits epsilon {request.epsilon:g} for {request.parties} parties and "
        f"{request.dim} coordinates into {request.modulus_bits} modulus bits; {remedy}"
    )


def _nearest_multiplier(request: PlanRequest, multiplier: float) -> float | None:
    for step in range(1, 300):
        for candidate in (multiplier * 1.03**-step, multiplier * 1.03**step):
            if candidate > 0.05 and fit_ring(request, candidate) is not None:
                return candidate
    return None


def _confirmed_epsilon(request: PlanRequest, multiplier: float) -> float | None:
    """Return an epsilon of three digits near this multiplier that was checked to fit."""
    epsilon = request.target.spent(multiplier)
    away = 1.02 if epsilon > request.epsilon else 1 / 1.02
    for _ in range(10):
        rounded = float(f"{epsilon:.3g}")
        tried = replace(request, epsilon=rounded)
        if rounded > 0.0 and fit_ring(tried, calibrate(tried.target)) is not None:
            return rounded
        epsilon *= away
    return None
