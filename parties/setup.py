"""What a rank checks and loads before the first round; every fault is found here, at all ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mpcfl.config import Job, Unit
from mpcfl.dp.ledger import Budget, Ledger
from mpcfl.dp.plan import View
from mpcfl.errors import ConfigError
from mpcfl.report.run_folder import RunFolder
from mpcfl.round import PartyData, PublicState, public_state
from mpcfl.secagg.base import BackendFactory
from mpcfl.secagg.registry import INSECURE_BACKENDS, load_backend


@dataclass(slots=True)
class Rank:
    """One rank that is ready to run.

    Attributes:
        party: None at an aggregator, which has no data.
        ledger: None at an aggregator and where the job asks for no privacy.
        view: who the ledger charges for: the planned coalition, or, where a comparison backend
            shows every party's noised input, somebody who has only its own noise against him.
    """

    public: PublicState
    open_backend: BackendFactory
    party: PartyData | None
    ledger: Ledger | None = None
    view: View = View.COALITION

    @property
    def budget(self) -> Budget | None:
        """What the whole run may spend in this rank's view; None without privacy."""
        privacy, plan = self.public.job.privacy, self.public.plan
        if privacy.unit is Unit.NONE or privacy.epsilon is None:
            return None
        exposed = self.view is View.OWN_SHARE
        return Budget(plan.epsilon(view=self.view) if exposed else privacy.epsilon, privacy.delta)


def make_rank(job: Job, rank: int) -> Rank:
    """Load what this rank needs: the public state, and at a data party its data.

    Raises:
        MpcflError: something is missing or wrong; the text names it and the remedy.
    """
    public = public_state(job)
    open_backend = load_backend(job.aggregation.backend)
    if rank >= job.parties.count:
        return Rank(public, open_backend, None)
    records = public.task.party_data(rank, job.parties.count)
    _check_records(job.task, records, public.task.test_data())
    exposed = job.aggregation.backend in INSECURE_BACKENDS
    view = View.OWN_SHARE if exposed else View.COALITION
    return Rank(public, open_backend, PartyData(records), view=view)


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


def open_ledger(rank: Rank, number: int, folder: RunFolder) -> Ledger | None:
    """Open the privacy ledger of rank ``number``; None at an aggregator and without privacy.

    Raises:
        ConfigError: the folder can't be written.
        LedgerError: there is a ledger, and it is damaged or not this party's.
    """
    job, budget = rank.public.job, rank.budget
    if rank.party is None or budget is None:
        return None
    try:
        path = folder.ledger_jsonl(number)
    except OSError as error:
        raise ConfigError(
            f"{folder.path}: can't make the ledger folder: {error.strerror}; choose another --out"
        ) from None
    return Ledger.open(
        path,
        identity=f"{job.task}/{job.parties.all_names()[number]}",
        budget=budget,
        accountant=job.privacy.accountant,
    )
