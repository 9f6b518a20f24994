"""What feeds the trackers of a run, whatever becomes of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from mpcfl.report.run_record import RoundRecord, RunRecord
from mpcfl.report.tracker import (
    FINAL,
    Outcome,
    Point,
    RunFacts,
    Tracker,
    final_points,
    round_points,
)
from mpcfl.report.tracker_choice import TrackerChoice

# A run of many quick rounds must not spend its time on its trackers.
_WRITE_EVERY_S = 1.0


def bring_up_to_date(tracker: Tracker, points: Sequence[Point]) -> None:
    """Write what a store lacks; begin anew if it has rounds that no longer are.

    Whoever takes over may have to play a round again that its predecessor had written. Final
    figures stand where the run ended once, and it may have gone on from there.
    """
    rounds = {(point.name, point.round) for point in points}
    held = {
        (name, number)
        for name, numbers in tracker.known().items()
        if not name.startswith(FINAL)
        for number in numbers
    }
    if held - rounds:
        tracker.start_over()
    _write_missing(tracker, points)


def _write_missing(tracker: Tracker, points: Sequence[Point]) -> None:
    known = tracker.known()
    tracker.write([point for point in points if point.round not in known.get(point.name, ())])


@dataclass(slots=True)
class Tracking:
    """Feeds all trackers of a run.

    Attributes:
        facts: of the run.
        complain: is told, once each, which tracker was left out, and why.
    """

    facts: RunFacts
    complain: Callable[[str, str], None]
    _trackers: dict[str, Tracker] = field(default_factory=dict)
    _pending: list[Point] = field(default_factory=list)
    _written_at: float = -math.inf

    def open(self, choices: Iterable[TrackerChoice], rounds: Iterable[RoundRecord]) -> None:
        """Open the stores and write what they lack of the rounds so far."""
        points = self.facts.points() + [p for record in rounds for p in round_points(record)]
        for choice in choices:
            self._guard(choice.name, partial(self._open, choice, points))

    def _open(self, choice: TrackerChoice, points: Sequence[Point]) -> None:
        tracker = choice.open(self.facts)
        self._trackers[choice.name] = tracker
        bring_up_to_date(tracker, points)

    def add(self, record: RoundRecord) -> None:
        """Take a round that is over; it is in the stores a second later at most, or at the end."""
        self._pending += round_points(record)
        if time.monotonic() - self._written_at > _WRITE_EVERY_S:
            self._write()

    def finish(self, record: RunRecord) -> None:
        """Write what the run came to; nothing may follow."""
        self._write()
        points = final_points(record)
        self._each(lambda tracker: _write_missing(tracker, points))
        self._close(Outcome.FINISHED)

    def fail(self) -> None:
        """Write what there is of a run that can't go on; nothing may follow."""
        self._write()
        self._close(Outcome.FAILED)

    def _write(self) -> None:
        points, self._pending = self._pending, []
        self._each(lambda tracker: tracker.write(points))
        self._written_at = time.monotonic()

    def _close(self, outcome: Outcome) -> None:
        self._each(lambda tracker: tracker.close(outcome))
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in tuple(self._trackers.items()):
            self._guard(name, partial(act, tracker))

    def _guard(self, name: str, act: Callable[[], None]) -> None:
        """Leave a tracker out if it fails: the run's own record has all that it would have."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - foreign code, which must not stop a run
            tracker = self._trackers.pop(name, None)
            self.complain(name, _reason(error))
            if tracker is not None:
                with suppress(Exception):
                    tracker.close(Outcome.FAILED)


def _reason(error: Exception) -> str:
    """Return the first line of what a library says, short enough to be read."""
    words = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
