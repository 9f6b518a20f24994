"""What a rank checks and loads before the first round; every fault is found here, at all ranks."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from mpcfl.config import Job, Unit
from mpcfl.dp.ledger import Budget, Ledger
from mpcfl.errors import ConfigError
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
    ledger: Ledger | None


def make_rank(job: Job, rank: int, folder: Path) -> Rank:
    """Load what this rank needs: the public state, and at a data party its data and ledger.

    Raises:
        MpcflError: something is missing or wrong; the text names it and the remedy.
    """
    public = public_state(job)
    open_backend = load_backend(job.aggregation.backend)
    if rank >= job.parties.count:
        return Rank(public, open_backend, None, None)
    records = public.task.party_data(rank, job.parties.count)
    if len(records[0]) == 0:
        raise ConfigError(
            f"task {job.task!r} gives this party no records; use fewer parties or more data"
        )
    return Rank(public, open_backend, PartyData(records), _open_ledger(job, rank, folder))


def _open_ledger(job: Job, rank: int, folder: Path) -> Ledger | None:
    if job.privacy.unit is Unit.NONE or job.privacy.epsilon is None:
        return None
    path = folder / "ledger" / f"party-{rank}.jsonl"
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path.parent}: can't make the ledger folder: {errno.errorcode[error.errno or 0]}; "
            "choose another --out"
        ) from None
    return Ledger.open(
        path,
        identity=f"{job.task}/{job.parties.all_names()[rank]}",
        budget=Budget(job.privacy.epsilon, job.privacy.delta),
        accountant=job.privacy.accountant,
    )
