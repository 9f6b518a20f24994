"""The noise plan: one immutable, public record that sizes the noise and fixes the integer grid.

Every party computes it from the public job and compares its fingerprint before the first
round. Adversary: a coalition of up to ``colluding`` parties that follow the protocol, see
every opened sum and know their own noise; up to ``max_dropout`` more parties may be missing.
Not covered: parties that leave out their noise beyond ``colluding``.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mpcfl.config import Placement, Unit
from mpcfl.dp.accountant import (
    AccountantKind,
    Releases,
    lemma_epsilon,
    noise_multiplier_of,
)
from mpcfl.dp.renyi import DiscreteSum
from mpcfl.errors import ConfigError

_SCHEMA = 1
# The other rotation is "none".
ROTATED = "hadamard"


class View(StrEnum):
    """Who looks at the opened sums, and so whose noise counts for nothing."""

    COALITION = "coalition"
    SINGLE = "single"
    OUTSIDER = "outsider"
    OWN_SHARE = "own-share"


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """How much noise each party adds, on which grid, and what that is worth. Public.

    Attributes:
        unit: whose presence is hidden: a record, a party, or nobody's.
        mechanism: the kind of noise.
        rotation: transform before rounding.
        accountant: theorems that turn noise into epsilon.
        epsilon_budget: what the run may spend.
        delta: of the whole run.
        rounds: planned sums.
        parties: n, contributors when nobody is missing.
        colluding: t, parties that pool what they know.
        max_dropout: parties that may be missing from a sum.
        spare_attempts: further sums that failed attempts may spend.
        dim: length of an update.
        clip_norm: C, L2 bound on a row in float space; infinity without privacy.
        modulus_bits: b of the ring.
        sample_rate: q, of secret Poisson sampling of records.
        records: public total of records of all parties, at record level.
        max_parties_per_person: in how many parties one person may have a record, one in each;
            1 under sampling.
        noise_multiplier: z for the planned coalition, of the equivalent continuous Gaussian.
        local_sigma: S, integer sigma of one party's share, grid units; 0 without privacy.
        scale: levels per unit of float space.
        norm_bound_int: exact bound on sum(q**2) of one row, grid units squared.
        saturation_int: M, bound on each coordinate of a party's sum, grid units.
        wrap_probability: upper bound for the whole run.
        rounding_inflation: sensitivity after rounding over that before; counts included.
        overhead_vs_central: noise of the opened sum over that of a trusted server.
        placement: where the noise is added: "distributed" in shares, one at each party, or
            "local", all of it inside each party, which then needs to trust nobody.
        local_steps: releases of each round; 1 unless the placement is local.
        counts: secret counts that travel as further coordinates behind the model's: how many
            rows met the clip norm (adaptive clipping), and the weight (private weighting).
        count_level_int: h, level of a count of one, grid units; inside ``norm_bound_int``.
    """

    unit: Unit
    mechanism: str
    rotation: str
    accountant: AccountantKind
    epsilon_budget: float
    delta: float
    rounds: int
    parties: int
    colluding: int
    max_dropout: int
    spare_attempts: int
    dim: int
    clip_norm: float
    modulus_bits: int
    sample_rate: float
    records: int | None
    max_parties_per_person: int
    noise_multiplier: float
    local_sigma: int
    scale: float
    norm_bound_int: int
    saturation_int: int
    wrap_probability: float
    rounding_inflation: float
    overhead_vs_central: float
    placement: Placement = Placement.DISTRIBUTED
    local_steps: int = 1
    counts: int = 0
    count_level_int: int = 0

    @property
    def is_local(self) -> bool:
        """True if each party's own noise is all that its records need."""
        return self.placement is Placement.LOCAL

    @property
    def rotated_dim(self) -> int:
        """Return the length of an update on the integer grid: padded if it is rotated."""
        return 1 << (self.dim - 1).bit_length() if self.rotation == ROTATED else self.dim

    @property
    def vector_dim(self) -> int:
        """Return the length of the integer vector that is noised and summed."""
        return self.rotated_dim + self.counts

    @property
    def model_bound_int(self) -> int:
        """Return the exact bound on sum(q**2) over a row's model coordinates, without counts."""
        return self.norm_bound_int - self.counts * self.count_level_int**2

    @property
    def l2_sensitivity(self) -> float:
        """Return the exact L2 sensitivity of one release, grid units."""
        # Under local placement a person's records in further parties are further releases.
        persons = 1 if self.is_local else self.max_parties_per_person
        return math.sqrt(self.norm_bound_int) * persons

    @property
    def releases_per_round(self) -> int:
        """Return how many releases a person faces in one round."""
        return self.local_steps * self.max_parties_per_person if self.is_local else 1

    @property
    def quorum(self) -> int:
        """Return the least number of contributors to a sum that may be opened."""
        return self.parties - self.max_dropout

    def multiplier(self, contributors: int | None = None, view: str = View.COALITION) -> float:
        """Return the noise multiplier z that a viewer of one release faces.

        Args:
            contributors: parties in the sum; by default the fewest that the plan allows.
            view: who looks; see `View`.

        Returns:
            z of the equivalent continuous Gaussian, rounded down; 0 if no noise is left.
        """
        noise = self._noise(contributors, view)
        return 0.0 if noise is None else noise_multiplier_of(noise, self.mechanism)

    def epsilon(
        self,
        rounds: int | None = None,
        contributors: int | None = None,
        view: str = View.COALITION,
    ) -> float:
        """Return epsilon at ``delta`` after a number of opened sums, rounded up.

        Args:
            rounds: opened sums; by default all that the plan allows, spare attempts included.
            contributors: parties in each sum; by default the fewest that the plan allows.
            view: "coalition" (the planned one), "single" (any one party), "outsider" (nobody's
                noise is known), "own-share" (the aggregation itself failed). Under local
                placement all four face one party's noise.
        """
        count = self.rounds + self.spare_attempts if rounds is None else rounds
        if count < 0:
            raise ConfigError(f"rounds is {rounds}; it must not be negative")
        noise = self._noise(contributors, view)
        if noise is None:
            return math.inf if count else 0.0
        multiplier = noise_multiplier_of(noise, self.mechanism)
        times = count * self.releases_per_round
        release = Releases(multiplier, self.sample_rate, times, self.mechanism)
        return lemma_epsilon(noise, release, self.delta, self.accountant)

    def rounds_within_budget(self, view: str = View.COALITION) -> int:
        """Return how many of the planned sums the budget pays for, by bisection.

        Args:
            view: as in `epsilon`.

        Returns:
            At most ``rounds``; less only if the noise multiplier was given rather than
            calibrated, or if the view knows more than the planned coalition.
        """
        if self.epsilon(self.rounds, view=view) <= self.epsilon_budget:
            return self.rounds
        # Epsilon rises with the rounds: ``paid`` fit the budget, ``unpaid`` don't.
        paid, unpaid = 0, self.rounds
        while unpaid - paid > 1:
            middle = (paid + unpaid) // 2
            if self.epsilon(middle, view=view) <= self.epsilon_budget:
                paid = middle
            else:
                unpaid = middle
        return paid

    def _noise(self, contributors: int | None, view: str) -> DiscreteSum | None:
        present = self.quorum if contributors is None else contributors
        unknown = {
            View.COALITION: present - self.colluding,
            View.SINGLE: present - 1,
            View.OUTSIDER: present,
            View.OWN_SHARE: min(present, 1),
        }[View(view)]
        if self.is_local:
            unknown = 1
        if unknown < 1 or self.local_sigma == 0:
            return None
        return DiscreteSum(self.l2_sensitivity, self.local_sigma, unknown, self.vector_dim)

    def denominator(self, contributors: int) -> float:
        """Return what a released sum is divided by: public, never a true count of records.

        At record level that is the expected number of sampled records: of all parties, or of
        one party (a public average) where every party adds its own noise at every local step.
        """
        if self.unit is not Unit.RECORD or self.records is None or self.local_sigma == 0:
            return float(contributors)
        expected = self.sample_rate * self.records
        return expected / self.parties if self.is_local else expected

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON; an infinite value becomes null."""
        fields = asdict(self)
        for name, value in fields.items():
            if isinstance(value, StrEnum):
                fields[name] = value.value
            elif isinstance(value, float) and math.isinf(value):
                fields[name] = None
        return {"schema": _SCHEMA, **fields}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the canonical JSON of all fields, in hex."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
