"""What a rank checks and loads before the first round; every fault is found here, at all ranks."""

from __future__ import annotations

from dataclasses import dataclass

from mpcfl.config import Job, Unit
from mpcfl.dp.ledger import Budget, Ledger
from mpcfl.errors import ConfigError
from mpcfl.report.run_folder import RunFolder
from mpcfl.round import PartyData, PublicState, public_state
from mpcfl.secagg.base import BackendFactory
from mpcfl.secagg.registry import load_backend


@dataclass(slots=True)
class Rank:
    """One rank that is ready to run.

    Attributes:
        party: None at an aggregator, which has no data.
        ledger: None at an aggregator and where the job asks for no privacy.
    """

    public: PublicState
    open_backend: BackendFactory
    party: PartyData | None
    ledger: Ledger | None = None


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
    if len(records[0]) == 0:
        raise ConfigError(
            f"task {job.task!r} gives this party no records; use fewer parties or more data"
        )
    return Rank(public, open_backend, PartyData(records))


def open_ledger(job: Job, rank: int, folder: RunFolder) -> Ledger | None:
    """Open this rank's privacy ledger; None at an aggregator and without privacy.

    Raises:
        ConfigError: the folder can't be written.
        LedgerError: there is a ledger, and it is damaged or not this party's.
    """
    if rank >= job.parties.count or job.privacy.epsilon is None or job.privacy.unit is Unit.NONE:
        return None
    try:
        path = folder.ledger_jsonl(rank)
    except OSError as error:
        raise ConfigError(
            f"{folder.path}: can't make the ledger folder: {error.strerror}; choose another --out"
        ) from None
    return Ledger.open(
        path,
        identity=f"{job.task}/{job.parties.all_names()[rank]}",
        budget=Budget(job.privacy.epsilon, job.privacy.delta),
        accountant=job.privacy.accountant,
    )
