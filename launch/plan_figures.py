"""The figures that `mpcfl plan` shows, taken from a noise plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mpcfl.config import Unit
from mpcfl.dp.noise_plan import NoisePlan, View

# How many planned rows the table of missing parties has at most, and how many beyond the plan.
_PLANNED_ROWS = 6
_ROWS_BEYOND = 3


@dataclass(frozen=True, slots=True)
class MissingRow:
    """What a run costs if so many parties are missing from every sum.

    Attributes:
        missing: parties that are not there.
        contributors: parties that are.
        epsilon: for the planned coalition at the end of the run; infinite if none is left.
        opened: False if a sum of so few is refused.
    """

    missing: int
    contributors: int
    epsilon: float
    opened: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; an infinite epsilon is null."""
        return {
            "missing": self.missing,
            "contributors": self.contributors,
            "epsilon": self.epsilon if math.isfinite(self.epsilon) else None,
            "opened": self.opened,
        }


def paid_rounds(plan: NoisePlan) -> int | None:
    """Return after how many rounds the budget ends the run; None if it pays for all of them."""
    if plan.unit is Unit.NONE:
        return None
    affordable = plan.rounds_within_budget()
    return affordable if affordable < plan.rounds else None


def view_epsilons(plan: NoisePlan, rounds: int | None = None) -> dict[str, float]:
    """Return epsilon after so many rounds (by default all) by view; empty without privacy."""
    if plan.unit is Unit.NONE:
        return {}
    return {view.value: plan.epsilon(rounds, view=view) for view in View}


def missing_rows(plan: NoisePlan, rounds: int | None = None) -> list[MissingRow]:
    """Return what missing parties cost: within the plan, and what is refused beyond it."""
    if plan.unit is Unit.NONE or plan.is_local:
        return []
    steps = _PLANNED_ROWS - 1
    planned = {round(step * plan.max_dropout / steps) for step in range(_PLANNED_ROWS)}
    beyond = range(plan.max_dropout + 1, min(plan.max_dropout + _ROWS_BEYOND, plan.parties - 1) + 1)
    return [
        MissingRow(
            missing=missing,
            contributors=plan.parties - missing,
            epsilon=plan.epsilon(rounds, plan.parties - missing),
            opened=missing <= plan.max_dropout,
        )
        for missing in (*sorted(planned), *beyond)
    ]


def noise_in_mean(plan: NoisePlan) -> float:
    """Return the standard deviation of the noise in one coordinate of what is released.

    Returns:
        In units of the model: of the opened mean of all parties; under local placement of one
        party's gradient at one local step. Before any weights are divided out.
    """
    if plan.local_sigma == 0:
        return 0.0
    shares = 1 if plan.is_local else plan.parties
    return plan.local_sigma * math.sqrt(shares) / (plan.scale * plan.denominator(plan.parties))


def detection_rate(plan: NoisePlan, epsilon: float, false_alarms: float) -> float:
    """Bound how often an attacker is right about somebody who did take part.

    Args:
        plan: gives delta.
        epsilon: of the attacker's view.
        false_alarms: how often the attacker may be wrong about somebody who did not.

    Source: Kairouz, Oh, Viswanath 2015 (arXiv 1311.0776), Theorem 2.1: both error rates.
    """
    if epsilon > 700.0:
        return 1.0
    by_alarms = math.exp(epsilon) * false_alarms + plan.delta
    by_misses = 1.0 - math.exp(-epsilon) * (1.0 - false_alarms - plan.delta)
    return min(1.0, by_alarms, by_misses)
