"""A run that goes on, in words: the same in a terminal, on the page and in plain lines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from statistics import median

from mpcfl.errors import were_lost
from mpcfl.report.live_state import LiveState, Phase
from mpcfl.report.overhead import LEARNING
from mpcfl.report.run_record import RoundRecord
from mpcfl.report.units import bytes_text, epsilon_text, seconds_text

# Rounds by whose median length the time that is left is estimated.
_RECENT = 10
_MINUTE_S, _HOUR_S = 60.0, 3600.0


def title(state: LiveState) -> str:
    """Return what runs, in one line."""
    parties = f"{len(state.parties)} parties ({', '.join(state.parties)})"
    promise = "no privacy"
    if state.has_privacy:
        budget = "not known yet" if state.epsilon_planned is None else f"{state.epsilon_planned:g}"
        promise = f"epsilon {budget} at delta {state.delta:g} per {state.unit}"
    return (
        f"{state.task}: {parties}, {state.rounds_planned} rounds, backend {state.backend}, "
        f"{promise}"
    )


def progress(state: LiveState) -> str:
    """Return how many rounds are over."""
    return f"{rounds_done(state)} of {state.rounds_planned}"


def rounds_done(state: LiveState) -> int:
    """Return the number of the last round."""
    return state.rounds[-1].round if state.rounds else 0


def epsilon(state: LiveState) -> str:
    """Return what was spent of the budget."""
    if not state.has_privacy:
        return "no privacy"
    if state.epsilon_planned is None:
        return f"{epsilon_text(state.epsilon)} spent"
    return f"{epsilon_text(state.epsilon)} of {epsilon_text(state.epsilon_planned)}"


def alive(state: LiveState) -> str:
    """Return how many parties take part."""
    return f"{len(state.alive)} of {len(state.parties)}"


def number(value: float | None) -> str:
    """Return a metric, or a dash where it was not measured."""
    return "-" if value is None else f"{value:.4f}"


def bytes_sent(state: LiveState) -> str:
    """Return the payload of all parties and rounds so far."""
    return bytes_text(sum(one.bytes_sent for one in state.rounds))


def time_left(state: LiveState) -> str:
    """Return an estimate while rounds are going on; "" elsewhere."""
    if state.phase is not Phase.RUNNING or not state.rounds:
        return ""
    recent = [sum(one.seconds.values()) for one in state.rounds[-_RECENT:]]
    left = median(recent) * (state.rounds_planned - rounds_done(state))
    return f"about {duration(left)} left" if left > 0 else ""


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < _MINUTE_S:
        return f"{max(1, round(seconds))} s"
    if seconds < _HOUR_S:
        return f"{round(seconds / _MINUTE_S)} min"
    return f"{seconds / _HOUR_S:.1f} h"


def shares(one: RoundRecord) -> tuple[float, float]:
    """Return a round's seconds of learning, and of protection."""
    learning = sum(seconds for stage, seconds in one.seconds.items() if stage in LEARNING)
    return learning, sum(one.seconds.values()) - learning


def round_line(state: LiveState, one: RoundRecord) -> str:
    """Return one round as a line."""
    width = len(str(state.rounds_planned))
    parts = [f"round {one.round:>{width}}/{state.rounds_planned}"]
    if one.epsilon is not None:
        budget = "" if state.epsilon_planned is None else f" of {state.epsilon_planned:g}"
        parts.append(f"epsilon {one.epsilon:.4f}{budget}")
    for name in ("loss", "accuracy"):
        value: float | None = getattr(one, name)
        if value is not None:
            parts.append(f"{name} {value:.4f}")
    parts.append(seconds_text(sum(one.seconds.values())))
    parts.append(f"{bytes_text(one.bytes_sent)} sent")
    if len(one.parties) < len(state.parties):
        parts.append(f"{len(one.parties)} of {len(state.parties)} parties")
    return "  ".join(parts)


def lost_line(names: Sequence[str], left: Sequence[str]) -> str:
    """Return who was lost, and who the last round had."""
    return f"{were_lost(names)}; {len(left)} parties went on: {', '.join(left)}"


def end_line(state: LiveState) -> str:
    """Return how a run ended, and what can be done; "" while it goes on."""
    after = f"after round {progress(state)}"
    resume = f"mpcfl run --resume {shlex.quote(state.folder)}"
    see = f"see {state.folder}/report.html"
    lines = {
        Phase.ENDED: f"ended: {rounds_done(state)} rounds, {_result(state)}; {see}",
        Phase.STOPPED: f"stopped early {after}, {_result(state)}: {state.reason}; {see}",
        Phase.FAILED: f"the run failed {after}: {state.reason}; continue it with: {resume}",
        Phase.INTERRUPTED: (
            f"the run was interrupted {after}: {state.reason}; watch it where it runs, or "
            f"continue it with: {resume}"
        ),
    }
    return lines.get(state.phase, "")


def _result(state: LiveState) -> str:
    metrics = "".join(f", test {name} {number(value)}" for name, value in state.metrics.items())
    return (f"epsilon {epsilon(state)}" if state.has_privacy else "no privacy") + metrics
