"""The smallest noise multiplier that keeps a run within its privacy budget.

Epsilon falls as the noise multiplier grows, nearly as a power of it, so a secant search in
logarithms needs few evaluations; each is a numerical composition at q < 1. The result is
rounded up to a grid, so that parties whose floating point differs in the last
digits still compute the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mpcfl.dp.accountant import AccountantKind, Mechanism, Releases, composed_epsilon
from mpcfl.dp.gaussian_curve import curve_mu
from mpcfl.dp.privacy_loss import loss_epsilon, resolves

# Keeps room for the slack of the rounding lemma and for float rounding.
_BUDGET_MARGIN = 1e-9
# Steps of the result: the closed form is good to 1e-12 or so, a search to `_TOLERANCE`.
_FINE_GRID = 2.0**32
_GRID = 2.0**24
# The search stops when epsilon lies this close (relative) below its target.
_TOLERANCE = 2e-6
_MAX_STEPS = 80
_COARSENING = 16.0
_LARGEST_LOSS_TARGET = 500.0


@dataclass(frozen=True, slots=True)
class Target:
    """What to calibrate for: at most ``epsilon`` at ``delta`` after ``releases`` releases.

    Skellam noise (``mechanism="skellam"``) is held to Renyi bounds whatever the accountant.
    """

    epsilon: float
    delta: float
    releases: int
    sample_rate: float
    accountant: AccountantKind
    mechanism: str = Mechanism.DISCRETE_GAUSSIAN

    @property
    def exact(self) -> bool:
        """Tell whether figures better than Renyi bounds are valid and asked for."""
        return self.accountant is AccountantKind.PLD and self.mechanism != Mechanism.SKELLAM

    def spent(self, noise_multiplier: float) -> float:
        """Return epsilon after all releases with this noise multiplier."""
        release = Releases(noise_multiplier, self.sample_rate, self.releases, self.mechanism)
        return composed_epsilon([release], self.delta, self.accountant)


@lru_cache(maxsize=64)
def calibrate(target: Target) -> float:
    """Return the smallest noise multiplier that meets the target, rounded up."""
    goal = target.epsilon * (1.0 - _BUDGET_MARGIN)
    # Without sampling the closed form is the answer; with it, a start from above.
    start = math.sqrt(target.releases) / curve_mu(goal, target.delta)
    if target.exact and target.sample_rate == 1.0:
        return _round_up(start, _FINE_GRID)
    start = max(start * target.sample_rate, 0.3)
    resolved = resolves(target.delta, target.releases)
    if target.exact and resolved and goal < _LARGEST_LOSS_TARGET:
        start = _solve(lambda z: _loss(target, z, _COARSENING), goal, start)
        return _round_up(_solve(lambda z: _loss(target, z, 1.0), goal, start), _GRID)
    return _round_up(_solve(target.spent, goal, start), _GRID)


def _loss(target: Target, noise_multiplier: float, coarsening: float) -> float:
    release = (noise_multiplier, target.sample_rate, target.releases)
    return loss_epsilon((release,), target.delta, coarsening)


def _round_up(noise_multiplier: float, grid: float) -> float:
    return math.ceil(noise_multiplier * grid) / grid


def _solve(spent: Callable[[float], float], goal: float, start: float) -> float:
    """Find z with spent(z) <= goal, by at most `_TOLERANCE`; ``spent`` decreases in z."""
    aim = goal * (1.0 - _TOLERANCE / 2)
    low, high = 0.0, math.inf
    z, slope = start, -1.0
    previous: tuple[float, float] | None = None
    for _ in range(_MAX_STEPS):
        epsilon = spent(z)
        low, high = (z, high) if epsilon > goal else (low, z)
        if goal * (1.0 - _TOLERANCE) <= epsilon <= goal or high <= low * (1.0 + _TOLERANCE):
            break
        # An epsilon of zero or infinity says only on which side the answer lies.
        usable = 0.0 < epsilon < math.inf
        if usable and previous is not None and previous[0] != z:
            rise = math.log(epsilon / previous[1]) / math.log(z / previous[0])
            slope = min(max(rise, -20.0), -0.2)
        previous = (z, epsilon) if usable else None
        step = math.exp(math.log(aim / epsilon) / slope) if usable else 0.0
        z = _next_point(z * min(max(step, 0.25), 4.0) if usable else math.nan, low, high)
    return high


def _next_point(proposal: float, low: float, high: float) -> float:
    """Keep the proposal if it lies strictly inside the bracket, else halve the bracket."""
    if low < proposal < high:
        return proposal
    if math.isinf(high):
        return 2.0 * low
    return math.sqrt(low * high) if low > 0.0 else high / 2.0
