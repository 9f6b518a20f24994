"""What a noise plan is asked for, and what is refused whatever the ring.

Adversary and promise as in `noise_plan.py`. A request is refused here if no proof covers it:
a person in several parties under sampling, sampling at party level, no noise share that the
coalition doesn't know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from mpcfl.config import Placement, Unit
from mpcfl.dp.accountant import AccountantKind, Mechanism, check_release
from mpcfl.dp.calibrate import Target
from mpcfl.dp.noise_plan import ROTATED
from mpcfl.errors import ConfigError, PlanError

# Rings in which a private sum may be planned; a rotation serves low-bit rings only.
_LEAST_BITS = {"none": 16, ROTATED: 10}
MOST_BITS = {"none": 64, ROTATED: 20}
# Under local placement no secure sum bounds the integers: they have to fit an int64 with room.
_LOCAL_BITS = 62
_MOST_COUNTS = 2
# A value leaves the ring with a probability of up to 2^-40 in a run, and all see that it did: that
# is not in delta, so delta has to be at least a hundred times as much.
_LEAST_DELTA = 1e-10

_Choice = TypeVar("_Choice", bound=StrEnum)


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
    placement: Placement
    local_steps: int
    counts: int
    count_share: float

    @property
    def is_local(self) -> bool:
        """True if all the noise is added inside each party."""
        return self.placement is Placement.LOCAL

    @property
    def is_rotated(self) -> bool:
        """True if updates are rotated before they are rounded."""
        return self.rotation == ROTATED

    @property
    def releases_per_round(self) -> int:
        """Return how many releases one person faces in a round."""
        return self.local_steps * self.max_parties_per_person if self.is_local else 1

    @property
    def releases(self) -> int:
        """Return how many releases one person faces at most."""
        return (self.rounds + self.spare_attempts) * self.releases_per_round

    @property
    def honest(self) -> int:
        """Return m, the number of shares in a release that the planned coalition doesn't know."""
        return 1 if self.is_local else self.parties - self.colluding - self.max_dropout

    @property
    def summands(self) -> int:
        """Return how many parties' integers, with a share of noise each, are added in the ring."""
        return 1 if self.is_local else self.parties

    @property
    def ring_bits(self) -> int:
        """Return the width that the integers have to fit."""
        return _LOCAL_BITS if self.is_local else self.modulus_bits

    @property
    def persons(self) -> int:
        """Return by how many rows of norm D one person may move a single release."""
        return 1 if self.is_local else self.max_parties_per_person

    @property
    def rotated_dim(self) -> int:
        """Return the number of model coordinates on the grid."""
        return 1 << (self.dim - 1).bit_length() if self.is_rotated else self.dim

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
        return Target(
            self.epsilon,
            self.delta,
            self.releases,
            self.sample_rate,
            self.accountant,
            self.mechanism,
        )


def parse_choice(choices: type[_Choice], name: str, value: str) -> _Choice:
    """Return the member of a closed set that is called ``value``, or raise ConfigError."""
    try:
        return choices(value)
    except ValueError:
        known = " or ".join(repr(str(choice)) for choice in choices if choice != "none")
        raise ConfigError(f"{name} is {value!r}; it must be {known}") from None


def check_request(request: PlanRequest) -> None:
    """Refuse what no plan could meet whatever the ring.

    Raises:
        ConfigError: an argument is out of range.
        PlanError: the threat model leaves no noise, or asks for what isn't available.
    """
    if not 0.0 < request.epsilon < math.inf:
        raise ConfigError(f"epsilon is {request.epsilon}; it must be greater than 0 and finite")
    check_release(request.sample_rate, request.rounds, request.delta)
    if request.delta < _LEAST_DELTA:
        raise ConfigError(
            f"delta is {request.delta:g}; it must be at least {_LEAST_DELTA:g}, far above the "
            "chance of 2^-40 that a value does not fit the ring"
        )
    parse_choice(Mechanism, "mechanism", request.mechanism)
    _check_sizes(request)
    _check_ring(request)
    _check_unit(request)
    _check_placement(request)
    _check_threats(request)


def _check_sizes(request: PlanRequest) -> None:
    least_one = ("rounds", "parties", "dim", "colluding", "max_parties_per_person", "local_steps")
    for name in least_one:
        if getattr(request, name) < 1:
            raise ConfigError(f"{name} is {getattr(request, name)}; it must be at least 1")
    for name in ("max_dropout", "spare_attempts"):
        if getattr(request, name) < 0:
            raise ConfigError(f"{name} is {getattr(request, name)}; it must not be negative")
    for name in ("clip_norm", "noise_multiplier"):
        value = getattr(request, name)
        if value is not None and not 0.0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; it must be greater than 0 and finite")
    if not 0 <= request.counts <= _MOST_COUNTS:
        raise ConfigError(f"counts is {request.counts}; it must be 0, 1 or {_MOST_COUNTS}")
    if not 0.0 < request.count_share < 0.5:
        raise ConfigError(f"count_share is {request.count_share}; it must lie between 0 and 0.5")


def _check_ring(request: PlanRequest) -> None:
    if request.rotation not in _LEAST_BITS:
        raise ConfigError(f"rotation is {request.rotation!r}; it must be 'none' or 'hadamard'")
    least, most = _LEAST_BITS[request.rotation], MOST_BITS[request.rotation]
    if request.is_rotated and most < request.modulus_bits <= MOST_BITS["none"]:
        raise PlanError(
            f"rotation 'hadamard' is for rings of at most {most} bits, and modulus_bits is "
            f"{request.modulus_bits}; rounding costs next to nothing there: use rotation 'none'"
        )
    if not least <= request.modulus_bits <= most:
        hint = "" if request.is_rotated else "; rotation 'hadamard' works from 10 bits on"
        raise ConfigError(
            f"modulus_bits is {request.modulus_bits}; with privacy it must lie between "
            f"{least} and {most}{hint}"
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
    if request.persons > 1 and request.sample_rate < 1.0:
        raise PlanError(
            f"max_parties_per_person is {request.max_parties_per_person} with sample_rate "
            f"{request.sample_rate}; every party samples by itself, so that any number of one "
            f"person's records may meet in a sum, for which no bound is proved: set sample_rate "
            f"to 1, or max_parties_per_person to 1"
        )


def _check_placement(request: PlanRequest) -> None:
    if not request.is_local:
        if request.local_steps > 1:
            raise PlanError(
                f"local_steps is {request.local_steps}; several noised steps in one round need "
                f"placement 'local'"
            )
        return
    if request.unit is not Unit.RECORD:
        raise PlanError("placement 'local' hides records; use unit 'record'")
    if request.is_rotated or request.counts:
        raise PlanError(
            "placement 'local' adds its noise before the sum; use rotation 'none' and no counts"
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
