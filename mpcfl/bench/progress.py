"""How long the rest of a grid will take, judged by the launches that are over.

An estimate for people: it assumes that a launch takes what launches of the same case took; that
with other vectors the time of its sums grows with the integers that are added up, and the rest
(processes, keys, the link) takes as long; and, of what has no likeness yet, that it takes what
the others took on average.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpcfl.bench.cells import Cell
from mpcfl.bench.record import Measurement


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch that is over.

    Attributes:
        seconds: wall clock, from before its processes were started until all had ended.
        sums_s: the part of it in which vectors were added up; 0 if it failed.
    """

    cell: Cell
    seconds: float
    sums_s: float

    @classmethod
    def of(cls, cell: Cell, seconds: float, measured: Measurement | None) -> Launch:
        """Return a launch with what its ranks measured."""
        if measured is None:
            return cls(cell, seconds, 0.0)
        timed = [value.seconds for value in (*measured.warmups, *measured.values)]
        sums_s = statistics.fmean(timed) * _n_sums(cell)
        return cls(cell, seconds, min(sums_s, seconds))


def seconds_left(over: Sequence[Launch], waiting: Iterable[Cell]) -> float | None:
    """Return the seconds that the waiting cells will take together; None before the first launch.

    Args:
        over: in any order.
        waiting: what has still to run.
    """
    if not over:
        return None
    return sum(launch_seconds(over, cell) for cell in waiting)


def launch_seconds(over: Sequence[Launch], cell: Cell) -> float:
    """Return what one more launch will take, by at least one that is over.

    The mean of its own case; else that of the backend's case nearest in amount, scaled; else the
    mean of all.
    """
    same = [launch.seconds for launch in over if launch.cell.parameters == cell.parameters]
    if same:
        return statistics.fmean(same)
    akin = [launch for launch in over if _kind(launch.cell) == _kind(cell)] or [
        launch for launch in over if launch.cell.parameters.backend == cell.parameters.backend
    ]
    if not akin:
        return statistics.fmean(launch.seconds for launch in over)
    amount = _amount(cell)
    nearest = min(akin, key=lambda launch: abs(math.log(_amount(launch.cell) / amount)))
    grown_s = nearest.sums_s * amount / _amount(nearest.cell)
    return nearest.seconds - nearest.sums_s + grown_s


def _kind(cell: Cell) -> tuple[str, str, float]:
    return cell.parameters.variant, cell.parameters.link, cell.parameters.round_trip_ms


def _amount(cell: Cell) -> int:
    """Return the integers that go into all sums of a launch."""
    return cell.parameters.dim * cell.parameters.parties * _n_sums(cell)


def _n_sums(cell: Cell) -> int:
    return 1 + cell.warmups + cell.values  # the first one is only checked


def duration_text(seconds: float) -> str:
    """Return a duration as people say it: "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
