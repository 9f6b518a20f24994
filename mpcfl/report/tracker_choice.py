"""Trackers by name: which were asked for, where their stores are, what they need installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mpcfl.errors import ConfigError
from mpcfl.report.tracker import RunFacts, Tracker


@dataclass(frozen=True, slots=True)
class TrackerChoice:
    """A tracker that was asked for.

    Attributes:
        name: of the tracker.
        place: a folder for its store; None for one inside the run folder.
    """

    name: str
    place: Path | None = None

    def open(self, facts: RunFacts) -> Tracker:
        """Open the store; what it needs is loaded here.

        Raises:
            Exception: whatever its library raises.
        """
        return _KINDS[self.name].open(self, facts)

    def store_folder(self, facts: RunFacts) -> Path:
        """Return the folder of the store, which runs share if it has a place of its own."""
        return self.place or facts.folder / _KINDS[self.name].folder


@dataclass(frozen=True, slots=True)
class _Kind:
    """A tracker that we know: its folder, what has to be installed, and what opens it."""

    folder: str
    modules: tuple[str, ...]
    extra: str
    open: Callable[[TrackerChoice, RunFacts], Tracker]


def _open_tensorboard(choice: TrackerChoice, facts: RunFacts) -> Tracker:
    # Only a writer that was asked for it loads it.
    from mpcfl.report.tensorboard_tracker import TensorBoardTracker

    return TensorBoardTracker(choice, facts)


def _open_mlflow(choice: TrackerChoice, facts: RunFacts) -> Tracker:
    # Only a writer that was asked for it loads it: it takes seconds.
    from mpcfl.report.mlflow_tracker import MlflowTracker

    return MlflowTracker(choice, facts)


_KINDS = {
    "tensorboard": _Kind("tensorboard", ("tensorboard",), "tensorboard", _open_tensorboard),
    "mlflow": _Kind("mlruns", ("mlflow", "sqlalchemy", "alembic"), "mlflow", _open_mlflow),
}


def read_choices(texts: Iterable[str]) -> tuple[TrackerChoice, ...]:
    """Return the trackers that were asked for, as `NAME` or `NAME=PLACE`; loads none of them.

    Raises:
        ConfigError: one is not known, not installed, named twice, or its place is no folder.
    """
    choices = tuple(_read_choice(text) for text in texts)
    for choice in choices:
        if sum(choice.name == other.name for other in choices) > 1:
            raise ConfigError(f"tracker {choice.name!r} is named twice; leave one --track out")
        _require_installed(choice.name)
    return choices


def _read_choice(text: str) -> TrackerChoice:
    name, has_place, place = text.partition("=")
    if name not in _KINDS:
        raise ConfigError(f"no tracker is named {name!r}; there are: {', '.join(sorted(_KINDS))}")
    if has_place and (not place or "://" in place):
        raise ConfigError(
            f"--track {text}: a tracker writes to a folder, and this names none; give a path, or "
            f"only --track {name} for a folder inside the run's"
        )
    if has_place and Path(place).exists() and not Path(place).is_dir():
        raise ConfigError(f"--track {text}: {place} is not a folder; name one, or a new path")
    return TrackerChoice(name, Path(place).absolute() if has_place else None)


def _require_installed(name: str) -> None:
    kind = _KINDS[name]
    missing = [module for module in kind.modules if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"tracker {name!r} needs packages that are not installed ({', '.join(missing)}); run: "
            f"pip install 'mpcfl[{kind.extra}]'"
        )
