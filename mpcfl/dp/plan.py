"""Makes noise plans: from a privacy budget and a ring to the noise and the integer grid.

Every party makes the plan by itself from the public job and compares its fingerprint with the
others before the first round. `planner.py` does the fitting; `noise_plan.py` is the result.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from mpcfl.config import Clipping, Job, Placement, Unit, Weighting
from mpcfl.dp.accountant import AccountantKind, accountant_kind
from mpcfl.dp.noise_plan import NoisePlan, View
from mpcfl.dp.planner import find_fit
from mpcfl.dp.request import PlanRequest, check_request, parse_choice
from mpcfl.errors import ConfigError, PlanError

__all__ = [
    "NoisePlan",
    "View",
    "make_fixed_point_plan",
    "make_plan",
    "plan_for_job",
    "ring_plan_for_job",
]

# Without privacy, updates up to this magnitude must fit the grid.
_FIXED_POINT_RANGE = 128


def make_plan(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    parties: int,
    dim: int,
    clip_norm: float,
    modulus_bits: int,
    colluding: int = 1,
    max_dropout: int = 0,
    spare_attempts: int = 0,
    unit: str = "party",
    sample_rate: float = 1.0,
    records: int | None = None,
    mechanism: str = "discrete-gaussian",
    rotation: str = "none",
    noise_multiplier: float | None = None,
    max_parties_per_person: int = 1,
    accountant: str = "pld",
    placement: str = "distributed",
    local_steps: int = 1,
    counts: int = 0,
    count_share: float = 0.1,
) -> NoisePlan:
    """Size the noise for a privacy budget and fit it into the ring.

    Args:
        epsilon: budget of the whole run, for the planned coalition.
        delta: of the whole run.
        rounds: sums to open.
        parties: n, data parties.
        dim: length of an update.
        clip_norm: L2 bound on an update, or on one record's gradient.
        modulus_bits: b, 16 to 64; 10 to 20 with a rotation.
        colluding: t >= 1, parties that pool what they know, noise shares included.
        max_dropout: parties that may be missing, less than half.
        spare_attempts: further sums paid for in advance, for attempts that fail.
        unit: "party" or "record".
        sample_rate: q, secret Poisson sampling of records; 1 at party level.
        records: public total of records, at record level.
        mechanism: "discrete-gaussian" or "skellam".
        rotation: "none", or "hadamard": a public random rotation and random rounding, for rings
            of few bits.
        noise_multiplier: used as it is instead of calibrating; the budget then only stops a run,
            and must last for one sum at least.
        max_parties_per_person: multiplies the sensitivity; above 1 only without sampling. Under
            local placement it multiplies the releases instead, with or without sampling.
        accountant: "pld" or "rdp".
        placement: "distributed": every party adds a share of the noise to the sum. "local", at
            record level: every party adds all the noise that its records need, at every local
            step, and trusts nobody.
        local_steps: noised steps of each round, under local placement.
        counts: secret counts that travel with the update, 0 to 2.
        count_share: level of a count of one, as a fraction of the sensitivity; below 0.5.

    Returns:
        The plan; ``plan.epsilon() <= epsilon`` unless ``noise_multiplier`` was given.

    Raises:
        ConfigError: an argument is out of range.
        PlanError: infeasible, or not covered by a proof; the message names the nearest request
            that is feasible.
    """
    request = PlanRequest(
        epsilon=float(epsilon),
        delta=float(delta),
        rounds=rounds,
        parties=parties,
        dim=dim,
        clip_norm=float(clip_norm),
        modulus_bits=modulus_bits,
        colluding=colluding,
        max_dropout=max_dropout,
        spare_attempts=spare_attempts,
        unit=parse_choice(Unit, "unit", unit),
        sample_rate=float(sample_rate),
        records=records,
        mechanism=mechanism,
        rotation=rotation,
        noise_multiplier=noise_multiplier,
        max_parties_per_person=max_parties_per_person,
        accountant=accountant_kind(accountant),
        placement=parse_choice(Placement, "placement", placement),
        local_steps=local_steps,
        counts=counts,
        count_share=float(count_share),
    )
    check_request(request)
    asked = {**asdict(request), **asdict(find_fit(request))}
    del asked["count_share"]
    plan = NoisePlan(epsilon_budget=asked.pop("epsilon"), **asked)
    if noise_multiplier is None and plan.epsilon() > epsilon:
        raise PlanError(
            f"the plan would spend epsilon {plan.epsilon():.6g} of {epsilon:.6g}; this is "
            f"a defect, please report the request"
        )
    return plan


def make_fixed_point_plan(*, parties: int, dim: int, rounds: int, modulus_bits: int) -> NoisePlan:
    """Return the grid of a run without privacy: no clipping and no noise.

    The scale is the largest power of two at which the sum of all parties' values of magnitude
    128 stays inside the ring.

    Raises:
        PlanError: the ring is too small for so many parties.
    """
    for name, value in (("parties", parties), ("dim", dim), ("rounds", rounds)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    # The largest e with parties * 128 * 2^e < 2^(b-1).
    exponent = modulus_bits - 1 - (parties * _FIXED_POINT_RANGE).bit_length()
    saturation = math.floor(_FIXED_POINT_RANGE * 2.0**exponent)
    if saturation < 1:
        raise PlanError(
            f"{parties} parties don't fit into {modulus_bits} modulus bits; use more bits"
        )
    return NoisePlan(
        unit=Unit.NONE,
        mechanism="none",
        rotation="none",
        accountant=AccountantKind.PLD,
        epsilon_budget=math.inf,
        delta=1.0,
        rounds=rounds,
        parties=parties,
        colluding=0,
        max_dropout=0,
        spare_attempts=0,
        dim=dim,
        clip_norm=math.inf,
        modulus_bits=modulus_bits,
        sample_rate=1.0,
        records=None,
        max_parties_per_person=1,
        noise_multiplier=0.0,
        local_sigma=0,
        scale=2.0**exponent,
        norm_bound_int=dim * saturation**2,
        saturation_int=saturation,
        wrap_probability=0.0,
        rounding_inflation=1.0,
        overhead_vs_central=0.0,
    )


def plan_for_job(job: Job, dim: int) -> NoisePlan:
    """Return the noise plan of a job for a model of ``dim`` parameters."""
    privacy, parties, bits = job.privacy, job.parties, job.aggregation.modulus_bits
    if privacy.unit is Unit.NONE or privacy.epsilon is None:
        return make_fixed_point_plan(
            parties=parties.count, dim=dim, rounds=job.training.rounds, modulus_bits=bits
        )
    is_local = privacy.placement is Placement.LOCAL
    # In this order, the one of `counts.count_rows`: met the clip norm, weight.
    counted = (
        privacy.clipping is Clipping.ADAPTIVE,
        parties.weighting is Weighting.PRIVATE,
    )
    return make_plan(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        rounds=job.training.rounds,
        parties=parties.count,
        dim=dim,
        clip_norm=privacy.clip_norm,
        modulus_bits=bits,
        colluding=parties.colluding,
        max_dropout=parties.max_dropout,
        spare_attempts=privacy.spare_attempts,
        unit=privacy.unit,
        sample_rate=privacy.sample_rate,
        records=privacy.records,
        mechanism=privacy.mechanism,
        rotation=privacy.rotation,
        noise_multiplier=privacy.noise_multiplier,
        max_parties_per_person=privacy.max_parties_per_person,
        accountant=privacy.accountant,
        placement=privacy.placement,
        local_steps=job.training.local_steps if is_local else 1,
        counts=sum(counted),
        count_share=privacy.count_share,
    )


def ring_plan_for_job(job: Job, dim: int) -> NoisePlan:
    """Return the plan of the vector that is summed: its grid and its ring.

    That is the noise plan itself, except under local placement. There the updates carry all
    their noise already and travel as fixed-point numbers; one that doesn't fit is clamped, which
    can't undo the privacy of what is private already, while stopping on data would tell something.
    """
    if job.privacy.placement is Placement.DISTRIBUTED:
        return plan_for_job(job, dim)
    grid = make_fixed_point_plan(
        parties=job.parties.count,
        dim=dim,
        rounds=job.training.rounds,
        modulus_bits=job.aggregation.modulus_bits,
    )
    return replace(grid, unit=job.privacy.unit, placement=Placement.LOCAL)
