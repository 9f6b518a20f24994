"""What a job must not ask for; the launcher checks it first, and then every rank."""

from __future__ import annotations

from mpcfl.config import Job, Unit
from mpcfl.errors import ConfigError
from mpcfl.secagg.custody import check_custody
from mpcfl.secagg.registry import INSECURE_BACKENDS, require_backend


def check_job(job: Job, insecure: bool) -> None:
    """Refuse what a job must not ask for, before anything is started.

    Raises:
        ConfigError: the backend shows inputs although the job asks for privacy, or the custody
            of the key doesn't suit the threat model.
        BackendUnavailable: the backend is unknown.
    """
    backend, private = job.aggregation.backend, job.privacy.unit is not Unit.NONE
    require_backend(backend)
    if private and backend in INSECURE_BACKENDS and not insecure:
        raise ConfigError(
            f"backend {backend!r} lets others see a party's update; use ring, crypten or paillier, "
            'set privacy.unit = "none", or add --insecure for a comparison'
        )
    check_custody(job)


def check_ranks(job: Job, n_ranks: int) -> None:
    """Refuse a number of MPI processes that doesn't fit the job."""
    if n_ranks == job.n_ranks:
        return
    extra = " and one aggregator" if job.needs_aggregator else ""
    raise ConfigError(
        f"the job has {job.parties.count} data parties{extra}, but MPI started {n_ranks} "
        f"processes; start {job.n_ranks}, or set the number of data parties with -n"
    )


def rank_names(job: Job) -> tuple[str, ...]:
    """Return a name for every rank, the aggregator last."""
    aggregator = ("aggregator",) if job.needs_aggregator else ()
    return (*job.parties.all_names(), *aggregator)
