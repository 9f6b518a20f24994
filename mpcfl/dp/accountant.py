"""From noise to epsilon: every figure that mpcfl reports comes through `composed_epsilon`.

Noise enters as a *noise multiplier* z of an equivalent continuous Gaussian, by mechanism; m shares
of standard deviation S, sensitivity D (all proofs: ``docs/proofs.md``):

- discrete Gaussian: z = sqrt(m S^2 - 4) / D. By the rounding lemma discrete noise of variance V
  is, up to 3e-34 per coordinate, a post-processing of continuous noise of variance V - 4, so every
  theorem on the Gaussian applies. Using V itself is unsound.
- Skellam: z = 1 / (D sqrt(L)) with L = 2 log(I_0(m S^2) / I_1(m S^2)). Its Renyi divergences are at
  most those of this Gaussian at *integer* orders, and nothing else is known.

Neighbouring relation: a party's contribution is replaced by zero (party level), or one record
is added or removed (record level). Several valid bounds are computed and the smallest is
reported, always for the whole composition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from mpcfl.dp.gaussian_curve import curve_epsilon
from mpcfl.dp.privacy_loss import loss_epsilon
from mpcfl.dp.renyi import (
    ORDERS,
    DiscreteSum,
    at_integer_orders,
    gaussian_divergences,
    renyi_epsilon,
    skellam_curvature,
)
from mpcfl.errors import ConfigError

# r^2 of the rounding lemma, in squared grid units, and its max-divergence per coordinate.
ROUNDING_VARIANCE = 4.0
_ROUNDING_DIVERGENCE = 5 * math.exp(-2 * math.pi**2 * ROUNDING_VARIANCE)
# A privacy loss distribution for a figure above this is large, slow and of no use to anybody.
_LOSS_EPSILON_LIMIT = 1000.0
# Counts as no noise: epsilon would be above 1e199, and squares come close to underflow.
_NO_NOISE = 1e-100
# Pays for the few float roundings of a noise multiplier.
_ROUND_DOWN = 1.0 - 2.0**-50


class AccountantKind(StrEnum):
    """Which theorems may be used."""

    PLD = "pld"
    RDP = "rdp"


class Mechanism(StrEnum):
    """The kinds of noise; the values of a job's ``mechanism``."""

    DISCRETE_GAUSSIAN = "discrete-gaussian"
    SKELLAM = "skellam"


class Releases(NamedTuple):
    """A number of equal releases: noise multiplier z, Poisson sample rate q, how often, of what.

    A continuous Gaussian counts as "discrete-gaussian": the same theorems hold for both.
    """

    noise_multiplier: float
    sample_rate: float
    times: int
    mechanism: str = Mechanism.DISCRETE_GAUSSIAN


def composed_epsilon(
    releases: Iterable[Releases], delta: float, accountant: AccountantKind
) -> float:
    """Return epsilon of an adaptive composition, rounded up.

    Releases without sampling collapse into one Gaussian (mu^2 = sum 1/z^2), so they cost the
    same however many they are.

    Args:
        releases: in any order, of any mix of mechanisms; a noise multiplier of zero gives
            infinity.
        delta: of the whole composition, in (0, 1).
        accountant: ``PLD`` for the smallest valid figure, ``RDP`` for Renyi bounds. With one
            Skellam release among them only Renyi bounds at integer orders are valid.

    Raises:
        ConfigError: a mechanism is unknown.
    """
    present = [release for release in releases if release.times > 0]
    mechanisms = {release.mechanism for release in present}
    gaussian = not any(_theory(mechanism).integer_orders_only for mechanism in mechanisms)
    if any(not release.noise_multiplier > _NO_NOISE for release in present):
        return math.inf
    mu_squared = math.fsum(r.times / r.noise_multiplier**2 for r in present if r.sample_rate == 1)
    sampled = sorted(release[:3] for release in present if release.sample_rate < 1)
    exact = gaussian and accountant is AccountantKind.PLD
    if exact and not sampled:
        return curve_epsilon(math.sqrt(mu_squared), delta)
    divergences = ORDERS * (mu_squared / 2)
    for z, rate, times in sampled:
        divergences = divergences + times * gaussian_divergences(z, rate)
    if not gaussian:
        divergences = at_integer_orders(divergences)
    epsilon = renyi_epsilon(divergences, delta)
    if exact and epsilon < _LOSS_EPSILON_LIMIT:
        whole = [(1 / math.sqrt(mu_squared), 1.0, 1)] if mu_squared else []
        epsilon = min(epsilon, loss_epsilon((*whole, *sampled), delta))
    return epsilon


def noise_multiplier_of(noise: DiscreteSum, mechanism: str) -> float:
    """Return the noise multiplier z that accounts for this noise, rounded down.

    Args:
        noise: what one release carries.
        mechanism: of its shares.

    Raises:
        ConfigError: the mechanism is unknown.
    """
    return _theory(mechanism).multiplier(noise) * _ROUND_DOWN


def lemma_multiplier(noise: DiscreteSum) -> float:
    """Return z of the continuous Gaussian behind a sum of discrete Gaussian shares."""
    return math.sqrt(max(0.0, noise.variance - ROUNDING_VARIANCE)) / noise.l2_sensitivity


def curvature_multiplier(noise: DiscreteSum) -> float:
    """Return z of the Gaussian whose Renyi divergences bound a sum of Skellam shares."""
    return 1 / (noise.l2_sensitivity * math.sqrt(skellam_curvature(noise.variance)))


def lemma_epsilon(
    noise: DiscreteSum, release: Releases, delta: float, accountant: AccountantKind
) -> float:
    """Return epsilon of releases of one kind, with the slack of their mechanism included.

    Args:
        noise: the noise of each release.
        release: the same noise as a noise multiplier (`noise_multiplier_of`), its mechanism, and
            how often.
        delta: of all releases together.
        accountant: for the equivalent Gaussian.
    """
    slack = release.times * _theory(release.mechanism).slack(noise)
    # Max-divergence s on both sides costs 2 s in epsilon and a factor e^s in delta.
    smaller_delta = delta * math.exp(-slack)
    if smaller_delta == 0.0:
        return math.inf
    return composed_epsilon([release], smaller_delta, accountant) + 2 * slack


class _Theory(NamedTuple):
    """What is proved about the sum of shares of one mechanism.

    Attributes:
        multiplier: z of the equivalent Gaussian.
        slack: max-divergence of one release from what that Gaussian accounts for.
        integer_orders_only: only Renyi divergences at integer orders are bounded.
    """

    multiplier: Callable[[DiscreteSum], float]
    slack: Callable[[DiscreteSum], float]
    integer_orders_only: bool


def _rounding_slack(noise: DiscreteSum) -> float:
    return noise.dim * (_ROUNDING_DIVERGENCE + noise.tau / 2)


_THEORIES: dict[str, _Theory] = {
    Mechanism.DISCRETE_GAUSSIAN: _Theory(lemma_multiplier, _rounding_slack, False),
    Mechanism.SKELLAM: _Theory(curvature_multiplier, lambda _: 0.0, True),
}


def _theory(mechanism: str) -> _Theory:
    try:
        return _THEORIES[mechanism]
    except KeyError:
        known = " or ".join(repr(str(name)) for name in _THEORIES)
        raise ConfigError(f"mechanism is {mechanism!r}; it must be {known}") from None


def accountant_kind(name: str) -> AccountantKind:
    """Return the accountant of this name, or raise ConfigError."""
    try:
        return AccountantKind(name)
    except ValueError:
        raise ConfigError(f"accountant is {name!r}; it must be 'pld' or 'rdp'") from None


def check_release(sample_rate: float, rounds: int, delta: float) -> None:
    """Refuse a sample rate, a number of releases or a delta that is out of range."""
    if not 0.0 < sample_rate <= 1.0:
        raise ConfigError(f"sample_rate is {sample_rate}; it must lie in (0, 1]")
    if rounds < 0:
        raise ConfigError(f"rounds is {rounds}; it must not be negative")
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"delta is {delta}; it must lie between 0 and 1")
