"""Experiment trackers: a run's public figures in the stores that other tools read.

A tracker gets what `run.json` has and nothing else: what was spent, the public metrics, the
seconds of each stage at the party that writes, bytes, and the job. Nothing else of a single party
goes there, not even names: of the parties a round only says how many there were.

`rounds.jsonl` is the truth. Whoever opens a tracker brings its store up to date with it, so that
runs that are resumed, and writers that take over from others, need nothing more. A tracker that
fails does not stop the run: it is told once, and left out from then on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from mpcfl.report.run_record import RoundRecord, RunRecord

# Who the parties are is the business of the run folder.
_LEFT_OUT = frozenset({"parties.names"})
BUDGET = "epsilon_planned"
FINAL = "final/"
# What every store takes in a name; of a task's own names the rest is replaced.
_NOT_IN_NAMES = re.compile(r"[^\w./ -]", re.ASCII)


class Outcome(StrEnum):
    """How a run ended for its trackers."""

    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Point:
    """One figure of one round; round 0 is before the first."""

    name: str
    value: float
    round: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a store knows of a run before its first round.

    Attributes:
        task: as the job names it.
        folder: of the run.
        parameters: the job, flat, without the names of the parties.
        budget: epsilon of the whole run; None without privacy.
    """

    task: str
    folder: Path
    parameters: Mapping[str, bool | float | str]
    budget: float | None

    def points(self) -> list[Point]:
        """Return what is written once."""
        return [] if self.budget is None else [Point(BUDGET, self.budget, 0)]


class Tracker(Protocol):
    """One store. Contract test: `tests/report/test_trackers.py`.

    Each method may raise anything: whoever calls it leaves the tracker out.
    """

    def known(self) -> Mapping[str, set[int]]:
        """Return the rounds that the store has, by name of the figure."""
        ...

    def start_over(self) -> None:
        """Give up what the store has of this run, and begin anew."""
        ...

    def write(self, points: Sequence[Point]) -> None:
        """Add figures; another process that opens the store has them when this returns."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended, and let the store go."""
        ...


def parameters_of(job: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return a job as flat parameters, without the names of its parties."""
    flat = _flat(job, "")
    return {_name(name): _plain(value) for name, value in flat if name not in _LEFT_OUT}


def _flat(table: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> bool | float | str:
    if value is None:
        return "none"
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)


def round_points(record: RoundRecord) -> list[Point]:
    """Return the figures of one round; what was not measured is left out."""
    figures: dict[str, float | None] = {
        "epsilon": record.epsilon,
        "accuracy": record.accuracy,
        "loss": record.loss,
        "parties": len(record.parties),
        "bytes/sent": record.bytes_sent,
        "bytes/received": record.bytes_received,
        "seconds/all": sum(record.seconds.values()),
        **{f"seconds/{stage}": seconds for stage, seconds in record.seconds.items()},
    }
    return _points(figures, record.round)


def final_points(record: RunRecord) -> list[Point]:
    """Return the figures of a run that is over, at its last round."""
    figures = {f"{FINAL}{name}": value for name, value in record.metrics.items()}
    figures[f"{FINAL}epsilon"] = record.privacy.epsilon
    return _points(figures, record.rounds[-1].round if record.rounds else 0)


def _points(figures: Mapping[str, float | None], round_number: int) -> list[Point]:
    return [
        Point(_name(name), float(value), round_number)
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    ]


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text)
