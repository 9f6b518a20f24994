"""The public map between one round's floats and its integers.

The plan fixes noise, integer bound and ring for the whole run. What may move from round to round
is the clip norm (adaptive clipping): the grid then scales with it, so that a row at the clip norm
has as many levels as ever, and nothing that privacy rests on changes. All of it is public.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Grid:
    """One round's grid; equal at all parties.

    Attributes:
        plan: of the vector that is released.
        round_id: which round; the public rotation depends on it.
        clip_norm: C of this round, float space; infinity without privacy.
    """

    plan: NoisePlan
    round_id: int
    clip_norm: float

    @property
    def scale(self) -> float:
        """Return the levels per unit of float space in this round."""
        if self.clip_norm == self.plan.clip_norm:
            return self.plan.scale
        return self.plan.scale * self.plan.clip_norm / self.clip_norm


def round_grid(plan: NoisePlan, round_id: int, clip_norm: float | None = None) -> Grid:
    """Return the grid of a round.

    Args:
        plan: of the vector that is released.
        round_id: which round.
        clip_norm: of this round; by default the one of the plan. A plan that clips nothing
            (infinity) has only one grid, whatever is given.

    Raises:
        ConfigError: the clip norm is not positive and finite.
    """
    if clip_norm is None or math.isinf(plan.clip_norm):
        return Grid(plan, round_id, plan.clip_norm)
    if not 0.0 < clip_norm < math.inf:
        raise ConfigError(f"clip_norm is {clip_norm}; it must be greater than 0 and finite")
    return Grid(plan, round_id, float(clip_norm))
