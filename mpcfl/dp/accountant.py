"""From noise to epsilon: every figure that mpcfl reports comes through `composed_epsilon`.

Noise enters as a *noise multiplier* of an equivalent continuous Gaussian. For a sum of m
integer shares of parameter S it is sqrt(m S^2 - 4) / sensitivity: by the rounding lemma
(`docs/privacy.md`) discrete noise of variance V is, up to 3e-34 per coordinate, a
post-processing of continuous noise of variance V - 4. Using V itself is unsound.

Neighbouring relation: a party's contribution is replaced by zero (party level), or one record
is added or removed (record level). Several valid bounds are computed and the smallest is
reported, always for the whole composition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from mpcfl.dp.gaussian_curve import curve_epsilon
from mpcfl.dp.privacy_loss import loss_epsilon
from mpcfl.dp.renyi import (
    ORDERS,
    DiscreteSum,
    discrete_divergences,
    gaussian_divergences,
    renyi_epsilon,
)
from mpcfl.errors import ConfigError

# r^2 of the rounding lemma, in squared grid units, and its max-divergence per coordinate.
ROUNDING_VARIANCE = 4.0
_ROUNDING_DIVERGENCE = 5 * math.exp(-2 * math.pi**2 * ROUNDING_VARIANCE)
# Below this variance of the sum only the published Renyi bound is used.
_LEMMA_VARIANCE = 64.0
# A privacy loss distribution for a figure above this is large, slow and of no use to anybody.
_LOSS_EPSILON_LIMIT = 1000.0
# Counts as no noise: epsilon would be above 1e199, and squares come close to underflow.
_NO_NOISE = 1e-100


class AccountantKind(StrEnum):
    """Which theorems may be used."""

    PLD = "pld"
    RDP = "rdp"


class Releases(NamedTuple):
    """A number of equal releases: noise multiplier z, Poisson sample rate q, how often."""

    noise_multiplier: float
    sample_rate: float
    times: int


def composed_epsilon(
    releases: Iterable[Releases], delta: float, accountant: AccountantKind
) -> float:
    """Return epsilon of an adaptive composition, rounded up.

    Releases without sampling collapse into one Gaussian (mu^2 = sum 1/z^2), so they cost the
    same however many they are.

    Args:
        releases: in any order; a noise multiplier of zero gives infinity.
        delta: of the whole composition, in (0, 1).
        accountant: ``PLD`` for the smallest valid figure, ``RDP`` for published Renyi bounds.
    """
    present = [release for release in releases if release.times > 0]
    if any(not release.noise_multiplier > _NO_NOISE for release in present):
        return math.inf
    mu_squared = math.fsum(r.times / r.noise_multiplier**2 for r in present if r.sample_rate == 1)
    sampled = sorted(release for release in present if release.sample_rate < 1)
    exact = accountant is AccountantKind.PLD
    if exact and not sampled:
        return curve_epsilon(math.sqrt(mu_squared), delta)
    divergences = ORDERS * (mu_squared / 2)
    for z, rate, times in sampled:
        divergences = divergences + times * gaussian_divergences(z, rate)
    epsilon = renyi_epsilon(divergences, delta)
    if exact and epsilon < _LOSS_EPSILON_LIMIT:
        whole = [Releases(1 / math.sqrt(mu_squared), 1.0, 1)] if mu_squared else []
        epsilon = min(epsilon, loss_epsilon((*whole, *sampled), delta))
    return epsilon


def gaussian_epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float,
    rounds: int,
    delta: float,
    accountant: str = "pld",
) -> float:
    """Return epsilon of the continuous Gaussian mechanism, rounded up.

    Args:
        noise_multiplier: z, standard deviation over L2 sensitivity.
        sample_rate: q of Poisson sampling, in (0, 1].
        rounds: number of releases.
        delta: of all releases together.
        accountant: ``"pld"``, or ``"rdp"`` at the default orders of dp-accounting.

    Raises:
        ConfigError: an argument is out of range.
    """
    if not noise_multiplier >= 0.0:
        raise ConfigError(f"noise_multiplier is {noise_multiplier}; it must not be negative")
    check_release(sample_rate, rounds, delta)
    release = Releases(float(noise_multiplier), float(sample_rate), rounds)
    return composed_epsilon([release], delta, accountant_kind(accountant))


def discrete_gaussian_epsilon(
    *,
    l2_sensitivity: float,
    local_sigma: float,
    parties: int,
    colluding: int,
    dim: int,
    rounds: int,
    delta: float,
    sample_rate: float = 1.0,
    accountant: str = "pld",
) -> float:
    """Return epsilon of a sum of integers that carries one discrete noise share per party.

    Args:
        l2_sensitivity: exact bound on the integer vector, in grid units.
        local_sigma: S >= 1, of every party's share, in grid units.
        parties: number of contributors.
        colluding: how many of them pool what they know; their noise does not count.
        dim: number of coordinates.
        rounds: number of releases.
        delta: of all releases together.
        sample_rate: q of secret Poisson sampling of records, in (0, 1].
        accountant: ``"pld"``, or ``"rdp"`` for the published bound with its tau term.

    Raises:
        ConfigError: an argument is out of range.

    Source: ``docs/privacy.md`` (rounding lemma); Kairouz, Liu, Steinke 2021, Theorem 1.
    """
    check_release(sample_rate, rounds, delta)
    if local_sigma < 1 or not l2_sensitivity > 0 or dim < 1:
        raise ConfigError("local_sigma and dim must be at least 1 and l2_sensitivity positive")
    if not 0 <= colluding < parties:
        raise ConfigError(f"colluding is {colluding}; it must be below parties = {parties}")
    noise = DiscreteSum(float(l2_sensitivity), local_sigma, parties - colluding, dim)
    if rounds == 0:
        return 0.0
    epsilon = renyi_epsilon(rounds * discrete_divergences(noise, sample_rate), delta)
    if accountant_kind(accountant) is AccountantKind.RDP or noise.variance < _LEMMA_VARIANCE:
        return epsilon
    release = Releases(lemma_multiplier(noise), sample_rate, rounds)
    return min(epsilon, lemma_epsilon(noise, release, delta, AccountantKind.PLD))


def lemma_multiplier(noise: DiscreteSum) -> float:
    """Return the noise multiplier of the continuous Gaussian behind this noise."""
    return math.sqrt(max(0.0, noise.variance - ROUNDING_VARIANCE)) / noise.l2_sensitivity


def lemma_epsilon(
    noise: DiscreteSum, release: Releases, delta: float, accountant: AccountantKind
) -> float:
    """Return epsilon by the rounding lemma, its slack and that of tau included.

    Args:
        noise: the noise of each release.
        release: the same noise as a continuous Gaussian (`lemma_multiplier`), and how often.
        delta: of all releases together.
        accountant: for the continuous Gaussian.
    """
    slack = release.times * noise.dim * (_ROUNDING_DIVERGENCE + noise.tau / 2)
    # Max-divergence s on both sides costs 2 s in epsilon and a factor e^s in delta.
    smaller_delta = delta * math.exp(-slack)
    if smaller_delta == 0.0:
        return math.inf
    return composed_epsilon([release], smaller_delta, accountant) + 2 * slack


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
