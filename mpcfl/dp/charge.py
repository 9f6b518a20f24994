"""What one attempt costs, as data: the lines of a ledger, and the budget they are held against.

Under sampling an attempt is charged as the planned worst case; without, the realised noise is
known when the sum is opened and can replace it, if it is Gaussian. A backend that shows the
parties' noised inputs is charged in the view "own-share": a party's own noise is then all that
protects it. Where the noise is added inside each party, every local step is a release.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpcfl.config import Unit
from mpcfl.dp.accountant import Mechanism
from mpcfl.dp.noise_plan import NoisePlan, View
from mpcfl.errors import LedgerError


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on this data set in total."""

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Charge:
    """The releases of one attempt, as they are accounted.

    Attributes:
        round_id: aggregation of the run.
        attempt: its retry, from 0.
        unit: whose presence is hidden.
        noise_multiplier: z of the equivalent continuous Gaussian, in the view that is charged.
        sample_rate: q of secret Poisson sampling; 1 without.
        contributors: parties in the sum.
        purpose: what is released, for example ``"update"``.
        plan_fingerprint: of the noise plan.
        times: how many equal releases the attempt makes.
        mechanism: the kind of noise; a `Mechanism`.
    """

    round_id: int
    attempt: int
    unit: Unit
    noise_multiplier: float
    sample_rate: float
    contributors: int
    purpose: str
    plan_fingerprint: str
    times: int = 1
    mechanism: str = Mechanism.DISCRETE_GAUSSIAN.value

    def __post_init__(self) -> None:
        """Refuse a charge that could not be composed."""
        if not 0.0 < self.noise_multiplier < math.inf or not 0.0 < self.sample_rate <= 1.0:
            raise LedgerError(
                "a charge needs a noise multiplier above 0 and a sample rate in (0, 1]"
            )
        if type(self.times) is not int or self.times < 1:
            raise LedgerError("a charge is of a whole number of releases, at least one")
        if self.mechanism not in set(Mechanism):
            raise LedgerError(f"a charge can't be of the mechanism {self.mechanism!r}")


def planned_charge(
    plan: NoisePlan, round_id: int, attempt: int = 0, view: str = View.COALITION
) -> Charge:
    """Return what to reserve for an attempt: the planned worst case.

    Args:
        plan: gives the noise.
        round_id: aggregation of the run.
        attempt: its retry, from 0.
        view: "coalition" behind a secure aggregation; "own-share" if others see this party's
            noised input itself.
    """
    return _charge(plan, (round_id, attempt), plan.quorum, view)


def realised_charge(
    plan: NoisePlan, reserved: Charge, contributors: int, view: str = View.COALITION
) -> Charge:
    """Return what to commit when ``contributors`` parties were in the opened sum.

    ``view`` must be the one of the reserve. Noise that every party adds for itself is the same
    whoever takes part.
    """
    if plan.is_local:
        return reserved
    return _charge(plan, (reserved.round_id, reserved.attempt), contributors, view)


def _charge(plan: NoisePlan, attempt_id: tuple[int, int], contributors: int, view: str) -> Charge:
    return Charge(
        round_id=attempt_id[0],
        attempt=attempt_id[1],
        unit=plan.unit,
        noise_multiplier=plan.multiplier(contributors, view),
        sample_rate=plan.sample_rate,
        contributors=contributors,
        purpose="update",
        plan_fingerprint=plan.fingerprint(),
        times=plan.releases_per_round,
        mechanism=str(plan.mechanism),
    )
