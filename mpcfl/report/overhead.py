"""What protection costs: the seconds of a round, stage by stage, beside those of the training.

Plain federated averaging trains, applies the mean, evaluates and keeps a checkpoint as well. All
other stages are the price of protection; it has to send its updates too, though, so that not all
of "aggregate" is. Stages in which ranks meet ("agree", "aggregate", "open") hold the wait for the
slowest one, whatever it was busy with.

Medians over the rounds, so that a round in which something broke counts for no more than others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mpcfl.report.units import seconds_text

# What plain federated averaging does as well.
LEARNING = ("train", "apply", "evaluate", "checkpoint")
_TRAINING = "train"
# So many stages are named where one line is all there is.
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, as the median round has it.

    Attributes:
        stage: its name.
        seconds: median over the rounds; a round without the stage counts as 0.
        percent: of the median training time; None where nothing was trained.
        is_protection: plain federated averaging would not have it.
    """

    stage: str
    seconds: float
    percent: float | None
    is_protection: bool


def stage_costs(rounds: Sequence[Mapping[str, float]]) -> list[StageCost]:
    """Return the cost of every stage: those of learning, then those of protection.

    Args:
        rounds: seconds by stage, of each round; stages are returned in their order.
    """
    names = dict.fromkeys(stage for seconds in rounds for stage in seconds)
    medians = {name: median(seconds.get(name, 0.0) for seconds in rounds) for name in names}
    training = medians.get(_TRAINING, 0.0)
    costs = [
        StageCost(name, seconds, _percent(seconds, training), name not in LEARNING)
        for name, seconds in medians.items()
    ]
    return sorted(costs, key=lambda cost: cost.is_protection)


def protection(costs: Sequence[StageCost]) -> StageCost:
    """Return all stages of protection as one."""
    seconds = sum(cost.seconds for cost in costs if cost.is_protection)
    training = sum(cost.seconds for cost in costs if cost.stage == _TRAINING)
    return StageCost("protection", seconds, _percent(seconds, training), is_protection=True)


def overhead_line(rounds: Sequence[Mapping[str, float]]) -> str:
    """Return one line about the price of protection; "" where there is nothing to say."""
    costs = stage_costs(rounds)
    whole = protection(costs)
    if whole.percent is None:
        return ""
    parts = [cost for cost in costs if cost.is_protection and percent_text(cost.percent) != "0.0"]
    largest = sorted(parts, key=lambda cost: -cost.seconds)[:_MOST_NAMED]
    named = ", ".join(f"{cost.stage} {percent_text(cost.percent)}" for cost in largest)
    share = f"{percent_text(whole.percent)} % of the training time"
    words = f"protection took {seconds_text(whole.seconds)} a round, {share}"
    return f"{words} ({named})" if named else words


def percent_text(percent: float | None) -> str:
    """Return a share as text: with one digit after the point, where it is small enough for one."""
    if percent is None:
        return "-"
    return f"{percent:.1f}" if percent < 100 else f"{percent:.0f}"


def _percent(seconds: float, training: float) -> float | None:
    return 100 * seconds / training if training > 0 else None
