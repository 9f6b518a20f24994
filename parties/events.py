"""What a run tells while it goes on, as frozen events; rank 0 tells it for all.

An event is one line: JSON for the launcher's live table, plain text for people. Metrics are
public and bytes are all ranks' together; the seconds are those of the rank that tells them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from mpcfl.errors import were_lost
from mpcfl.report.units import bytes_text


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins, or goes on after a round; figures are the plan's, but for ``spent``."""

    kind: ClassVar[str] = "started"
    task: str
    backend: str
    unit: str
    parties: tuple[str, ...]
    rounds: int
    dim: int
    epsilon: float | None
    exposed: bool
    delta: float
    folder: str
    resumed_after: int | None = None
    spent: float | None = None

    def line(self) -> str:
        """Return the event as text."""
        promise = "no privacy"
        if self.epsilon is not None:
            promise = f"epsilon {self.epsilon:.4g} at delta {self.delta:g} per {self.unit}"
        if self.epsilon is not None and self.exposed:
            promise += ", INSECURE: each party's noised input is visible, its own noise protects it"
        return (
            f"{self.task}: {len(self.parties)} parties ({', '.join(self.parties)}), "
            f"{self.rounds} rounds, {self.dim} coordinates, backend {self.backend}, "
            f"{promise}{self._resumed()}"
        )

    def _resumed(self) -> str:
        if self.resumed_after is None:
            return ""
        spent = "" if self.spent is None else f" with epsilon {self.spent:.4f} spent"
        return f"; resumed after round {self.resumed_after}{spent}"


@dataclass(frozen=True, slots=True)
class Preparing:
    """Something takes long before the run can begin: what, and how much of it is there."""

    kind: ClassVar[str] = "preparing"
    what: str
    done: int
    total: int

    def line(self) -> str:
        """Return the event as text."""
        return f"preparing {self.what}: {self.done} of {self.total} (kept for the next run)"


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round's sum was opened and applied."""

    kind: ClassVar[str] = "round"
    round: int
    rounds: int
    parties: int
    epsilon: float | None
    epsilon_planned: float | None
    metrics: dict[str, float | None]
    seconds: dict[str, float]
    bytes_sent: int

    def line(self) -> str:
        """Return the event as text."""
        parts = [f"round {self.round:>{len(str(self.rounds))}}/{self.rounds}"]
        if self.epsilon is not None:
            parts.append(f"epsilon {self.epsilon:.4f} of {self.epsilon_planned:g}")
        parts += [f"{name} {figure(value)}" for name, value in self.metrics.items()]
        if self.seconds:
            parts.append(f"{sum(self.seconds.values()):.2f} s")
        parts.append(f"{bytes_text(self.bytes_sent)} sent")
        return "  ".join(parts)


@dataclass(frozen=True, slots=True)
class Lost:
    """Parties died or fell silent, and the others go on."""

    kind: ClassVar[str] = "lost"
    round: int
    lost: tuple[str, ...]
    left: tuple[str, ...]

    def line(self) -> str:
        """Return the event as text."""
        return (
            f"{were_lost(self.lost)} in round {self.round}; {len(self.left)} parties go on: "
            f"{', '.join(self.left)}"
        )


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run ends before its last planned round, on purpose."""

    kind: ClassVar[str] = "stopped"
    reason: str

    def line(self) -> str:
        """Return the event as text."""
        return f"stopped early: {self.reason}"


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over and its folder is complete; or it was before anything was asked of it."""

    kind: ClassVar[str] = "ended"
    rounds: int
    epsilon: float | None
    epsilon_planned: float | None
    delta: float
    metrics: dict[str, float | None]
    folder: str
    before: bool = False

    def line(self) -> str:
        """Return the event as text."""
        if self.before:
            return (
                f"nothing left to do: all {self.rounds} rounds were done before, and nothing was "
                f"spent now; see {self.folder}/report.html"
            )
        parts = [f"done: {self.rounds} rounds"]
        if self.epsilon is not None:
            parts.append(
                f"epsilon {self.epsilon:.4f} of {self.epsilon_planned:g} at delta {self.delta:g}"
            )
        parts += [f"test {name} {figure(value)}" for name, value in self.metrics.items()]
        return ", ".join(parts) + f"; see {self.folder}/report.html"


@dataclass(frozen=True, slots=True)
class Untracked:
    """A tracker failed and is left out; the run goes on."""

    kind: ClassVar[str] = "untracked"
    tracker: str
    reason: str

    def line(self) -> str:
        """Return the event as text."""
        return (
            f"tracker {self.tracker} is left out from here on ({self.reason}); run.json has all "
            "rounds, and so will the tracker once the run is resumed with it"
        )


@dataclass(frozen=True, slots=True)
class Failed:
    """The run can't go on; or, ``alone``, one party of it can't, and the others may.

    Attributes:
        message: one sentence.
        alone: only the party that tells it stops.
    """

    kind: ClassVar[str] = "failed"
    message: str
    details: str = ""
    alone: bool = False

    def line(self) -> str:
        """Return the event as text."""
        return f"mpcfl: error: {self.message}"


def figure(value: float | None) -> str:
    """Return a metric as text; None is one that is not finite."""
    return "not finite" if value is None else f"{value:.4f}"


Event = Preparing | Started | RoundDone | Lost | Stopped | Untracked | Ended | Failed
_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (Preparing, Started, RoundDone, Lost, Stopped, Untracked, Ended, Failed)
}


def to_json(event: Event) -> str:
    """Return the event as one line of JSON."""
    return json.dumps({"event": event.kind, **asdict(event)}, allow_nan=False)


def from_json(line: str) -> Event | None:
    """Return the event that a line holds, or None if it holds none."""
    if not line.startswith('{"event": '):
        return None
    document: dict[str, Any] = json.loads(line)
    return _KINDS[document.pop("event")](**document)
