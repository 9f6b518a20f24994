"""What a rank checks and loads before the first round; every fault is found here, at all ranks."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from mpcfl.config import Job, Unit
from mpcfl.dp.heads import SeenHeads
from mpcfl.dp.ledger import Budget, Ledger
from mpcfl.dp.plan import View
from mpcfl.errors import ConfigError, MpcflError
from mpcfl.learn.block_cache import TellProgress, ignore_progress
from mpcfl.learn.quiet import quiet_for
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Prepares, ReadsPartyData, Task
from mpcfl.parties.key_share import NO_KEY_FILES, KeyFiles, backend_of
from mpcfl.parties.party_file import PartyFile
from mpcfl.parties.rules import rank_names
from mpcfl.report.tracker_choice import TrackerChoice
from mpcfl.round import PartyData, PublicState, party_data, public_state
from mpcfl.secagg.base import BackendFactory
from mpcfl.secagg.registry import INSECURE_BACKENDS

T = TypeVar("T")


@dataclass(slots=True)
class Rank:
    """One rank that is ready to run.

    Attributes:
        number: of this party in the job.
        party: None at an aggregator, which has no data.
        ledger: None at an aggregator and where the job asks for no privacy.
        view: who the ledger charges for: the planned coalition, or, where a comparison backend
            shows every party's noised input, somebody who has only its own noise against him.
        seen: what this party remembers of all ledgers; None where it has no ledger.
        resumed: the run goes on in the folder of one that was stopped.
        first_round: the round to begin with.
        attempts: number of the next attempt, by round, equal at all parties; 0 where none is named.
        bytes_before: sent and received before the round that is under way.
        key: fingerprint of the key that this party has a share of, where it brought one.
        trackers: that whoever writes the folder feeds as well.
        own: this party's own file, where it has one.
        total_seen: the heads of parties' own ledgers that this party remembers from run to run;
            None where it keeps no such ledger.
    """

    number: int
    public: PublicState
    open_backend: BackendFactory
    party: PartyData | None
    ledger: Ledger | None = None
    view: View = View.COALITION
    seen: SeenHeads | None = None
    resumed: bool = False
    first_round: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    bytes_before: tuple[int, int] = (0, 0)
    key: str = ""
    trackers: tuple[TrackerChoice, ...] = ()
    own: PartyFile | None = None
    total_seen: SeenHeads | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all parties of the job, by number, an aggregator's last."""
        return rank_names(self.public.job)

    @property
    def keeps_ledger(self) -> bool:
        """True where there are records to protect, and a budget to protect them by."""
        return self.party is not None and self.budget is not None

    def next_attempt(self, round_id: int) -> int:
        """Return the number of the next attempt at a round."""
        return self.attempts.get(round_id, 0)

    def note_attempt(self, round_id: int, following: int) -> None:
        """Note that no attempt below ``following`` may be made at a round any more."""
        self.attempts[round_id] = max(self.next_attempt(round_id), following)

    @property
    def budget(self) -> Budget | None:
        """What the whole run may spend in this rank's view; None without privacy."""
        privacy, plan = self.public.job.privacy, self.public.plan
        if privacy.unit is Unit.NONE or privacy.epsilon is None:
            return None
        exposed = self.view is View.OWN_SHARE
        return Budget(plan.epsilon(view=self.view) if exposed else privacy.epsilon, privacy.delta)


def make_rank(
    job: Job,
    number: int,
    files: KeyFiles = NO_KEY_FILES,
    progress: TellProgress = ignore_progress,
    task: Task | None = None,
) -> Rank:
    """Load what this rank needs: the public state, and at a data party its key share and data.

    Args:
        job: the run.
        number: of this party.
        files: its key share.
        progress: is told of what takes long.
        task: in place of the one that the job names.

    Raises:
        MpcflError: something is missing or wrong; the text names it and the remedy.
    """
    task = load_task(job.task, job.task_options) if task is None else task
    if isinstance(task, Prepares):
        task.prepare(progress)
    public = public_state(job, task)
    open_backend, key = backend_of(job, number, files)
    if number >= job.parties.count:
        return Rank(number, public, open_backend, None, key=key)
    # What it prints would reach whoever started the run.
    with quiet_for(job.privacy.unit):
        records = public.task.party_data(number, job.parties.count)
    _check_records(job.task, records, public.task.test_data())
    exposed = job.aggregation.backend in INSECURE_BACKENDS
    view = View.OWN_SHARE if exposed else View.COALITION
    party = party_data(public, number, records)
    return Rank(number, public, open_backend, party, view=view, key=key)


def located_task(job: Job, data: Path | None) -> Task:
    """Load the job's task, and tell it where this party's data lie, if its party file does.

    Raises:
        ConfigError: it can't be loaded, or can't be told.
    """
    task = load_task(job.task, job.task_options)
    if data is None:
        return task
    if not isinstance(task, ReadsPartyData):
        raise ConfigError(
            f"the party file has `data`, and task {job.task!r} has no method locate(path) to take "
            "it; add one (docs/tasks.md), or leave `data` out"
        )
    task.locate(data)
    return task


def _check_records(
    task: str, records: tuple[Tensor, Tensor], public: tuple[Tensor, Tensor]
) -> None:
    """Refuse what could not be trained on, by shapes and types alone."""
    if len(records[0]) == 0:
        raise ConfigError(
            f"task {task!r} gives this party no records; use fewer parties or more data"
        )
    if len(records[0]) != len(records[1]):
        raise ConfigError(
            f"task {task!r} gives this party inputs and targets of different lengths; mend "
            "party_data()"
        )
    for name, own, known in zip(("inputs", "targets"), records, public, strict=True):
        if own.shape[1:] != known.shape[1:] or own.dtype != known.dtype:
            raise ConfigError(
                f"task {task!r} gives this party {name} of another shape or type than those of "
                "test_data(); mend party_data()"
            )


def attempt(make: Callable[[], T], debug: bool = False) -> tuple[T | None, MpcflError | None]:
    """Return what ``make`` returns, or its error in a form that all ranks may see."""
    try:
        return make(), None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a task is foreign code
        if debug:
            traceback.print_exc()
        if isinstance(error, MpcflError):
            return None, error
        # Its text may hold data of this party.
        name = type(error).__name__
        return None, ConfigError(f"the task or its data failed with {name}; --debug shows where")


def present(value: T | None) -> T:
    """Return what every rank has that heard of no objection."""
    if value is None:
        raise ConfigError("a rank that can't start must have said so")
    return value
