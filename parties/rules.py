"""What a job must not ask for; the launcher checks it first, and then every rank."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mpcfl.config import PAILLIER_BACKENDS, Custody, Job, Unit
from mpcfl.errors import ConfigError, QuorumLost, were_lost
from mpcfl.secagg.custody import check_custody, check_holder
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
    parties = job.parties
    # With privacy the plan refuses it.
    if not private and 2 * parties.max_dropout >= parties.count:
        raise ConfigError(
            f"parties.max_dropout = {parties.max_dropout} of {parties.count} parties: two halves "
            "that lose touch with each other would both go on; plan for fewer than half"
        )


def check_losses(job: Job, n_absent: int, fatal_mpi: str | None) -> None:
    """Refuse to promise that a run survives losses where the first one ends all processes.

    Args:
        job: the run.
        n_absent: parties that a resumed run goes on without.
        fatal_mpi: the name of an MPI that has no fault tolerance; None for one that has.

    Raises:
        ConfigError: more parties may be lost, and none can be.
    """
    if fatal_mpi is not None and job.parties.max_dropout > n_absent:
        raise ConfigError(
            f"parties.max_dropout = {job.parties.max_dropout} asks to go on without a party that "
            f"dies, and {fatal_mpi} as it was started ends all parties with it; start the run with "
            "Open MPI 5 by mpirun --with-ft ulfm, or set parties.max_dropout = 0"
        )


def seats(job: Job, n_ranks: int, absent: Sequence[str] = ()) -> tuple[int, ...]:
    """Return the number of the party in each of the MPI ranks.

    Args:
        job: the run.
        n_ranks: processes that MPI started.
        absent: names of data parties that a resumed run goes on without.

    Raises:
        ConfigError: a name is not one of the job, too many are absent, or the number of
            processes doesn't fit.
    """
    names = rank_names(job)
    for name in absent:
        if name not in job.parties.all_names():
            raise ConfigError(
                f"--without {name}: the job has no such party; it has "
                f"{', '.join(job.parties.all_names())}"
            )
    numbers = tuple(number for number, name in enumerate(names) if name not in absent)
    require_quorum(job, numbers)
    if n_ranks != len(numbers):
        extra = " and one aggregator" if job.needs_aggregator else ""
        missing = f" without {', '.join(absent)}" if absent else ""
        raise ConfigError(
            f"the job{missing} has {len(numbers) - bool(extra)} data parties{extra}, but MPI "
            f"started {n_ranks} processes; start {len(numbers)}, or set the number of data "
            "parties with -n"
        )
    return numbers


def require_quorum(job: Job, numbers: Collection[int]) -> None:
    """Refuse to go on with parties that are too few, or can't do without the others.

    Args:
        job: the run.
        numbers: of the parties that are left, the aggregator's included.

    Raises:
        QuorumLost: names those who are missing.
    """
    parties, aggregation = job.parties, job.aggregation
    names = rank_names(job)
    missing = [name for number, name in enumerate(names) if number not in numbers]
    left = [number for number in numbers if number < parties.count]
    who = were_lost(missing)
    if job.needs_aggregator and parties.count not in numbers:
        raise QuorumLost(f"{who}, and nothing is summed without the aggregator")
    if len(left) < parties.count - parties.max_dropout:
        raise QuorumLost(
            f"{who}: {len(left)} of {parties.count} parties are left, and the noise that was "
            f"planned is enough for {parties.count - parties.max_dropout} or more "
            f"(parties.max_dropout = {parties.max_dropout})"
        )
    holder = aggregation.backend in PAILLIER_BACKENDS and aggregation.custody is Custody.HOLDER
    if missing and holder:
        check_holder(len(left), parties.colluding, private=job.privacy.unit is not Unit.NONE)


def rank_names(job: Job) -> tuple[str, ...]:
    """Return a name for every rank, the aggregator last."""
    aggregator = ("aggregator",) if job.needs_aggregator else ()
    return (*job.parties.all_names(), *aggregator)
