"""How far a run is, read from its folder while it goes on: for the terminal, the page and scripts.

Only what is public is read: the job, the rounds and `run.json`; nothing of `local/` or `ledger/`.
Files that are missing, torn or half-written are no error, because somebody is writing them.

Whether the run goes on is told by the lock of its folder, which is seen on the machine of the
party that writes it, and on no other.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from mpcfl.config import Job, Unit
from mpcfl.errors import ConfigError
from mpcfl.report.run_folder import RunFolder, RunLock
from mpcfl.report.run_record import RoundRecord, RunRecord, read_rounds
from mpcfl.secagg.registry import INSECURE_BACKENDS

SCHEMA = "mpcfl.live/1"
# Between two looks, before it is said that nobody holds a run, or that its job can't be read.
_LOOK_AGAIN_S = 0.2
_LOOKS = 5
_FAILED = "failed: "


class Phase(StrEnum):
    """What becomes of a run; the last four are ends, though a run may be resumed."""

    PREPARING = "preparing"
    RUNNING = "running"
    ENDED = "ended"
    STOPPED = "stopped early"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_over(self) -> bool:
        """True if nothing more comes by itself."""
        return self not in (Phase.PREPARING, Phase.RUNNING)

    @property
    def is_good(self) -> bool:
        """True unless somebody has to do something."""
        return self not in (Phase.FAILED, Phase.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class LiveState:
    """A run as one look found it; all of it is public to all parties.

    Attributes:
        folder: of the run.
        phase: what becomes of it.
        reason: why it stopped or failed; "" if there is nothing to say.
        unit: ``record``, ``party`` or ``none``.
        dim: coordinates of the model; None before the first round.
        rounds_planned: how many there are to be.
        epsilon_planned: the budget; None without one, or where it is not known yet.
        parties: names of all data parties of the job.
        rounds: those that are over.
        metrics: of the last model, where the run is over.
    """

    folder: str
    phase: Phase
    reason: str
    task: str
    backend: str
    unit: str
    delta: float
    dim: int | None
    rounds_planned: int
    epsilon_planned: float | None
    parties: tuple[str, ...]
    rounds: tuple[RoundRecord, ...]
    metrics: dict[str, float | None]

    @property
    def has_privacy(self) -> bool:
        """True if rounds spend a budget."""
        return self.unit != Unit.NONE

    @property
    def alive(self) -> tuple[str, ...]:
        """Return the names of the parties in the last round; before it, of all."""
        return self.rounds[-1].parties if self.rounds else self.parties

    @property
    def lost(self) -> tuple[str, ...]:
        """Return the names of the parties that the last round did without."""
        return tuple(name for name in self.parties if name not in self.alive)

    @property
    def epsilon(self) -> float | None:
        """Return what was spent so far; None without privacy, or without a guarantee."""
        if self.rounds:
            return self.rounds[-1].epsilon
        return 0.0 if self.has_privacy else None

    def last(self, figure: str) -> float | None:
        """Return the newest value of ``accuracy`` or ``loss``; not every round is measured."""
        if figure in self.metrics:
            return self.metrics[figure]
        measured = (getattr(one, figure) for one in reversed(self.rounds))
        return next((float(value) for value in measured if value is not None), None)

    def to_json(self) -> str:
        """Return the state as one JSON document."""
        document = {"schema": SCHEMA, **asdict(self)}
        document |= {"alive": self.alive, "lost": self.lost, "epsilon": self.epsilon}
        document |= {"accuracy": self.last("accuracy"), "loss": self.last("loss")}
        return json.dumps(document, indent=2, allow_nan=False) + "\n"


def read_state(path: Path) -> LiveState:
    """Look at a run once.

    Raises:
        ConfigError: there is no run in the folder, or its job can't be read.
    """
    folder = RunFolder(path)
    if not folder.job_json.is_file():
        raise ConfigError(
            f"{path} holds no run (there is no {folder.job_json.name}); name the folder that a run "
            "printed as its output"
        )
    job = _read_job(folder)
    # The lock is looked at first: what a run that let it go has written is there.
    is_held = _is_held(folder)
    record = _read_record(folder)
    if not is_held and not _is_complete(record):
        # A run that is about to begin has written its job and does not hold it yet.
        time.sleep(_LOOK_AGAIN_S)
        is_held, record = _is_held(folder), _read_record(folder)
    return _state(folder, job, record, is_held=is_held)


def _state(folder: RunFolder, job: Job, record: RunRecord | None, *, is_held: bool) -> LiveState:
    phase, reason = _phase(folder, record, is_held=is_held)
    is_done = phase in (Phase.ENDED, Phase.STOPPED)
    return LiveState(
        folder=str(folder.path),
        phase=phase,
        reason=reason,
        task=job.task,
        backend=job.aggregation.backend,
        unit=str(job.privacy.unit),
        delta=job.privacy.delta,
        dim=None if record is None else record.dim,
        rounds_planned=job.training.rounds,
        epsilon_planned=_planned(job, record),
        parties=job.parties.all_names(),
        rounds=_read_rounds(folder, record),
        metrics=dict(record.metrics) if record is not None and is_done else {},
    )


def _phase(folder: RunFolder, record: RunRecord | None, *, is_held: bool) -> tuple[Phase, str]:
    stopped = None if record is None else record.stopped_early
    if _is_complete(record):
        return (Phase.ENDED, "") if stopped is None else (Phase.STOPPED, stopped)
    if is_held:
        return (Phase.RUNNING if folder.checkpoint.is_dir() else Phase.PREPARING), ""
    if stopped is not None and stopped.startswith(_FAILED):
        return Phase.FAILED, stopped.removeprefix(_FAILED)
    return Phase.INTERRUPTED, "no process on this machine holds it"


def _is_complete(record: RunRecord | None) -> bool:
    return record is not None and bool(record.model_sha256)


def _planned(job: Job, record: RunRecord | None) -> float | None:
    if record is not None:
        return record.privacy.epsilon_planned
    # Where inputs are shown, the plan promises less than the job asks for.
    is_exposed = job.aggregation.backend in INSECURE_BACKENDS
    return None if job.privacy.unit is Unit.NONE or is_exposed else job.privacy.epsilon


def _is_held(folder: RunFolder) -> bool:
    try:
        RunLock(folder, probe=True).close()
    except ConfigError:
        return True
    return False


def _read_job(folder: RunFolder) -> Job:
    for _ in range(_LOOKS - 1):
        try:
            return folder.read_job()
        except ConfigError:
            # It may be half-written.
            time.sleep(_LOOK_AGAIN_S)
    return folder.read_job()


def _read_record(folder: RunFolder) -> RunRecord | None:
    try:
        return RunRecord.load(folder.run_json)
    except ConfigError:
        return None


def _read_rounds(folder: RunFolder, record: RunRecord | None) -> tuple[RoundRecord, ...]:
    """Return the rounds that are on the disk; those of a complete record are all."""
    if record is not None and _is_complete(record):
        return record.rounds
    try:
        # Files of rounds are only ever appended to, by whole lines, or replaced as a whole.
        return tuple(read_rounds(folder.rounds_jsonl, sys.maxsize))
    except ConfigError:
        return () if record is None else record.rounds
