"""Epsilon in plain numbers: the public functions, one per kind of noise.

Each returns an upper bound on epsilon of ``rounds`` adaptive releases at ``delta``. Assumes that
up to ``colluding`` contributors pool what they know, and that the others added their noise.
Neighbouring relation: a contribution of norm at most ``l2_sensitivity`` is there, or zero.
"""

from __future__ import annotations

from mpcfl.dp.accountant import (
    AccountantKind,
    Mechanism,
    Releases,
    accountant_kind,
    check_release,
    composed_epsilon,
    lemma_epsilon,
    noise_multiplier_of,
)
from mpcfl.dp.renyi import (
    DiscreteSum,
    discrete_divergences,
    renyi_epsilon,
    skellam_divergences,
)
from mpcfl.errors import ConfigError


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
    """Return epsilon of a sum of integers that carries one discrete Gaussian share per party.

    Args:
        l2_sensitivity: exact bound on the integer vector, in grid units.
        local_sigma: S >= 1, of every party's share, in grid units.
        parties: number of contributors.
        colluding: how many of them pool what they know; their noise does not count.
        dim: number of coordinates.
        rounds: number of releases.
        delta: of all releases together.
        sample_rate: q of secret Poisson sampling of records, in (0, 1].
        accountant: ``"pld"`` for the smallest valid figure, ``"rdp"`` for the published bound
            with its tau term.

    Raises:
        ConfigError: an argument is out of range.

    Source: ``docs/proofs.md`` (rounding lemma); Kairouz, Liu, Steinke 2021, Theorem 1.
    """
    check_release(sample_rate, rounds, delta)
    if not local_sigma >= 1:
        raise ConfigError(f"local_sigma is {local_sigma}; it must be at least 1")
    noise = _noise(l2_sensitivity, local_sigma, (parties, colluding), dim)
    kind = accountant_kind(accountant)
    if rounds == 0:
        return 0.0
    published = renyi_epsilon(rounds * discrete_divergences(noise, sample_rate), delta)
    if kind is AccountantKind.RDP:
        return published
    # Infinite where the lemma does not hold: no variance is left, or its slack is too large.
    multiplier = noise_multiplier_of(noise, Mechanism.DISCRETE_GAUSSIAN)
    release = Releases(multiplier, sample_rate, rounds)
    return min(published, lemma_epsilon(noise, release, delta, kind))


def skellam_epsilon(
    *,
    l2_sensitivity: float,
    local_sigma: float,
    parties: int,
    colluding: int,
    dim: int,
    rounds: int,
    delta: float,
    sample_rate: float = 1.0,
    accountant: str = "rdp",
) -> float:
    """Return epsilon of a sum of integers that carries one Skellam share per party.

    Args:
        l2_sensitivity: exact bound on the integer vector, in grid units.
        local_sigma: S > 0, standard deviation of every party's share, in grid units.
        parties: number of contributors.
        colluding: how many of them pool what they know; their noise does not count.
        dim: number of coordinates.
        rounds: number of releases.
        delta: of all releases together.
        sample_rate: q of secret Poisson sampling of records, in (0, 1].
        accountant: ``"rdp"``; ``"pld"`` gives the same figure, since only Renyi divergences of
            integer order are bounded.

    Raises:
        ConfigError: an argument is out of range.

    Source: Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995); ``docs/proofs.md`` (curvature bound);
    at each order the smaller of the two.
    """
    check_release(sample_rate, rounds, delta)
    if not local_sigma > 0:
        raise ConfigError(f"local_sigma is {local_sigma}; it must be greater than 0")
    noise = _noise(l2_sensitivity, local_sigma, (parties, colluding), dim)
    accountant_kind(accountant)
    if rounds == 0:
        return 0.0
    return renyi_epsilon(rounds * skellam_divergences(noise, sample_rate), delta)


def _noise(
    l2_sensitivity: float, local_sigma: float, coalition: tuple[int, int], dim: int
) -> DiscreteSum:
    """Return the noise that a coalition, ``(parties, colluding)``, does not know."""
    parties, colluding = coalition
    if not l2_sensitivity > 0:
        raise ConfigError(f"l2_sensitivity is {l2_sensitivity}; it must be greater than 0")
    if dim < 1:
        raise ConfigError(f"dim is {dim}; it must be at least 1")
    if not 0 <= colluding < parties:
        raise ConfigError(f"colluding is {colluding}; it must be below parties = {parties}")
    return DiscreteSum(float(l2_sensitivity), float(local_sigma), parties - colluding, dim)
