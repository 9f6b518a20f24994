"""One round, from a party's data to the new model, in eight stages. Read this first.

`protected_sum` is what a party with data does up to the opened sum, `new_model` what every
rank does with it. `parties/` runs both in one process per party under MPI; `run_round` runs
all parties in this process and is the executable specification and the oracle of the tests.

Adversary: up to `colluding` data parties that follow the protocol and share all they see. No
party's update leaves it but noised and protected; only the sum is opened. Privacy: `mpcfl/dp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mpcfl.config import Job, Placement, Unit
from mpcfl.dp.clip import clip_rows
from mpcfl.dp.counts import CountState, count_rows, opened_mean, party_weight, weigh_rows
from mpcfl.dp.grid import round_grid
from mpcfl.dp.noise import add_noise, draw_noise_share
from mpcfl.dp.noise_ahead import ShareAhead
from mpcfl.dp.plan import NoisePlan, plan_for_job, ring_plan_for_job
from mpcfl.dp.quantize import dequantize_sum, quantize_rows, sum_levels
from mpcfl.dp.sampler import BitSource, poisson_sample
from mpcfl.learn.apply import ServerState, apply_mean, initial_state
from mpcfl.learn.local_check import check_local_layers, check_local_training
from mpcfl.learn.local_dp import LocalTrainer
from mpcfl.learn.model import check_model, flat_parameters, initial_model, load_flat_parameters
from mpcfl.learn.own_training import check_own_training
from mpcfl.learn.quiet import quiet_for
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Task
from mpcfl.learn.train import (
    check_local_update,
    check_record_gradients,
    local_update,
    local_update_or_nan,
    record_gradients,
)
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.net.meter import Meter
from mpcfl.secagg.base import IntVector, Stages, SumId, SumSettings
from mpcfl.secagg.neighbors import resolve_neighbors
from mpcfl.secagg.opened_sum import OpenedSum, comparable_levels
from mpcfl.secagg.opening import open_sum
from mpcfl.secagg.registry import load_backend

RealVector = NDArray[np.float64]


@dataclass(slots=True)
class PublicState:
    """What every rank holds alike: the job, its task and plan, and the model as it stands.

    Attributes:
        plan: the noise and what it is worth.
        ring: the grid of the summed vector; the plan itself, unless the noise is added locally.
        parameters: the model's trained parameters, shape (dim,), float64.
        server: the state of the server's optimizer.
        counted: the clip norm of the next round, and what opened counts have told of weights.
        neighbors: k, the parties that each party shares masks with; None means all others.
    """

    job: Job
    task: Task
    model: nn.Module
    plan: NoisePlan
    ring: NoisePlan
    parameters: RealVector
    server: ServerState
    counted: CountState
    neighbors: int | None = None


@dataclass(slots=True)
class PartyData:
    """What one party alone holds: its records, and the source of its secret bits.

    Attributes:
        records: inputs and targets; never leave the party.
        bits: injected by tests and `run_round` only; None means the operating system.
        weight: how much the party's update counts, in [0, 1]; may be secret.
        trainer: adds the noise inside the party, where the placement is local.
        not_finite: records or updates that were not finite, or failed, so far; never sent.
    """

    records: tuple[Tensor, Tensor] = field(repr=False)
    bits: BitSource | None = None
    weight: float = field(default=1.0, repr=False)
    trainer: LocalTrainer | None = None
    not_finite: int = field(default=0, repr=False)

    @property
    def left_out(self) -> int:
        """Return all records and updates that were left out, in local training too; never sent."""
        return self.not_finite + (0 if self.trainer is None else self.trainer.not_finite)


def public_state(job: Job, task: Task | None = None) -> PublicState:
    """Load the task, build its initial model and compute the plan, alike at every rank.

    Args:
        job: the run.
        task: in place of the one that the job names.

    Raises:
        ConfigError: the task can't be loaded, or its model can't be trained under this job.
        PlanError: no noise plan meets the job, or its number of neighbors is not safe.
    """
    parties = job.parties
    neighbors = resolve_neighbors(
        job.aggregation.neighbors, parties.count, parties.colluding, parties.max_dropout
    )
    task = load_task(job.task, job.task_options) if task is None else task
    check_own_training(task, job)
    model = initial_model(task, job.training.seed)
    if job.privacy.placement is Placement.LOCAL:
        check_local_layers(model)
    check_model(model, job.privacy.unit)
    parameters = flat_parameters(model)
    plan = plan_for_job(job, parameters.size)
    # On public records, and alike at every rank: a fault shows here, not on private ones.
    if job.privacy.placement is Placement.LOCAL:
        check_local_training(model, task, job.training, plan)
    elif job.privacy.unit is Unit.RECORD:
        check_record_gradients(model, task, job.training)
    else:
        check_local_update(model, task, job.training)
    ring = ring_plan_for_job(job, parameters.size)
    return PublicState(
        job=job,
        task=task,
        model=model,
        plan=plan,
        ring=ring,
        parameters=parameters,
        server=initial_state(parameters.size, job.server),
        counted=CountState(ring.clip_norm),
        neighbors=neighbors,
    )


def party_data(
    public: PublicState, rank: int, records: tuple[Tensor, Tensor], bits: BitSource | None = None
) -> PartyData:
    """Return what data party ``rank`` holds, ready to train."""
    job = public.job
    party = PartyData(records, bits, party_weight(job.parties, rank, len(records[0])))
    if job.privacy.placement is Placement.LOCAL:
        party.trainer = LocalTrainer(records, public.task, job.training, public.plan, bits)
    return party


def protected_sum(
    public: PublicState, party: PartyData, secure: Stages, sum_id: SumId, meter: Meter
) -> IntVector:
    """Take part in one attempt of one round with this party's data: stages 1 to 7.

    With ``aggregation.precompute`` a long noise share is drawn while the party trains; the time
    of the stage "noise" is then what was left to do.

    Args:
        public: what every rank holds alike.
        party: what this one alone holds.
        secure: this party's session of secure sums.
        sum_id: the round and the attempt; bound into every key, and never used before.
        meter: takes the time.

    Returns:
        The opened sum of all parties' noised levels, shape (vector_dim,), int64, or int32 where
        the vector is long and all levels fit; known to all parties.
    """
    grid = round_grid(public.ring, sum_id.round_id, public.counted.clip_norm)

    def quantized() -> Iterator[NDArray[np.int64]]:
        blocks = _train(public, party, sum_id.round_id)
        while True:
            with meter.stage("train"), quiet_for(public.job.privacy.unit):  # 1. Train.
                rows = next(blocks, None)
            if rows is None:
                return
            with meter.stage("clip"):  # 2. Clip each row.
                counts = count_rows(rows, grid.clip_norm, public.job, party.weight)
                clipped, not_finite = clip_rows(rows, grid.clip_norm)
                party.not_finite += not_finite
            with meter.stage("quantize"):  # 3. Quantize each row.
                yield quantize_rows(weigh_rows(clipped, party.weight), grid, counts, party.bits)
            # One row may be as long as all else together, and is let go before the next.
            del rows, clipped

    ahead = public.job.aggregation.precompute
    with ShareAhead(draw_noise_share, grid.plan, party.bits, ahead=ahead) as share:
        levels = sum_levels(quantized(), grid.plan)
        with meter.stage("noise"):  # 4. Add this party's share of the noise.
            noised = add_noise(levels, share.take())
            del levels
    with meter.stage("protect"):  # 5. Nothing has left the party so far.
        protected = secure.protect(noised, sum_id)
        del noised
    with meter.stage("aggregate"):  # 6. All parties' vectors become one.
        aggregated = secure.aggregate(protected)
    with meter.stage("open"):  # 7. The sum, and only the sum, is opened.
        return secure.open(aggregated)


def new_model(public: PublicState, opened: OpenedSum, round_id: int, meter: Meter) -> None:
    """Take the server's step with the opened sum, alike at every rank: stage 8.

    Args:
        public: changed in place.
        opened: what `protected_sum` returned for ``round_id``, and over whom.
        round_id: which round.
        meter: takes the time.
    """
    job, grid = public.job, round_grid(public.ring, round_id, public.counted.clip_norm)
    with meter.stage("apply"):  # 8. Apply the mean.
        roster = opened.widest_roster
        expected_rows = public.ring.denominator(len(roster))
        levels = comparable_levels(opened, public.ring, job.parties)
        mean, public.counted = opened_mean(
            dequantize_sum(levels, grid), expected_rows, job, roster, public.counted
        )
        public.parameters, public.server = apply_mean(
            public.parameters, mean, public.server, job.server
        )
        load_flat_parameters(public.model, public.parameters)


def _train(public: PublicState, party: PartyData, round_id: int) -> Iterator[NDArray[np.float64]]:
    """Yield rows to be clipped: one per sampled record, or one for the whole party."""
    job, model, task = public.job, public.model, public.task
    if party.trainer is not None:
        yield party.trainer.update(model, round_id)
        return
    if job.privacy.unit is not Unit.RECORD:
        train = local_update if job.privacy.unit is Unit.NONE else local_update_or_nan
        yield train(model, party.records, task, job.training, round_id)
        return
    sample = poisson_sample(len(party.records[0]), job.privacy.sample_rate, party.bits)
    yield from record_gradients(model, party.records, task, sample, job.training)


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What `run_round` returns: all of it public.

    Attributes:
        opened: the opened sum, shape (vector_dim,), int64.
        parameters: the new model's parameters, shape (dim,), float64.
        bytes_sent: per rank, an aggregator last.
    """

    opened: IntVector
    parameters: RealVector
    bytes_sent: tuple[int, ...]


# Called by party 0 after every round with its number, the opened sum and the new public state.
RoundSeen = Callable[[int, IntVector, PublicState], None]


def run_round(job: Job, bits: Sequence[BitSource] = (), round_id: int = 0) -> RoundResult:
    """Run one round of a fresh model with all parties in this process, one thread each.

    Args:
        job: the run; its backend protects the sum.
        bits: one source per data party for sampling and noise, for tests; empty means the
            operating system. With equal bits every backend opens the same integers.
        round_id: which round.

    Raises:
        MpcflError: as under MPI; the first party's failure ends all.
    """
    opened: list[IntVector] = []
    public, bytes_sent = _run_in_process(
        job, bits, range(round_id, round_id + 1), lambda _, total, __: opened.append(total)
    )
    return RoundResult(opened[0], public.parameters, bytes_sent)


def run_rounds(
    job: Job, bits: Sequence[BitSource] = (), after_round: RoundSeen = lambda *_: None
) -> PublicState:
    """Run a whole job with all parties in this process: as many rounds as its budget pays for.

    Nothing is written: no ledger, no checkpoint, no report. `mpcfl run` is for real data.

    Args:
        job: the run; its backend protects the sums.
        bits: as for `run_round`.
        after_round: sees what every party sees of a round: all of it public.

    Returns:
        The public state after the last round.

    Raises:
        MpcflError: as under MPI; the first party's failure ends all.
    """
    return _run_in_process(job, bits, None, after_round)[0]


def _run_in_process(
    job: Job, bits: Sequence[BitSource], round_ids: range | None, after_round: RoundSeen
) -> tuple[PublicState, tuple[int, ...]]:
    """Run rounds, all within the budget by default; also return the bytes that each rank sent."""
    open_backend = load_backend(job.aggregation.backend)
    n_parties = job.parties.count
    # Made one after the other: initial weights come from torch's one generator.
    publics = [public_state(job) for _ in range(job.n_ranks)]
    if round_ids is None:
        round_ids = range(publics[0].plan.rounds_within_budget())

    def rank_program(transport: MemoryTransport) -> int:
        rank, public = transport.rank, publics[transport.rank]
        secure = open_sum(open_backend, transport, sum_settings(public, run_id="run-round"))
        party = None
        if rank < n_parties:
            records = public.task.party_data(rank, n_parties)
            party = party_data(public, rank, records, bits[rank] if bits else None)
        for round_id in round_ids:
            if party is None:
                secure.open(secure.aggregate(secure.protect(None)))
                continue
            opened = protected_sum(public, party, secure, SumId(round_id), transport.meter)
            whole = OpenedSum.whole(opened, range(n_parties))
            new_model(public, whole, round_id, transport.meter)
            if rank == 0:
                after_round(round_id, opened, public)
        secure.close()
        return transport.meter.bytes_sent

    bytes_sent = run_parties(job.n_ranks, rank_program, job.aggregation.deadline_s)
    return publics[0], tuple(bytes_sent)


def sum_settings(public: PublicState, run_id: str) -> SumSettings:
    """Return what a session of secure sums needs to know about this job."""
    aggregation = public.job.aggregation
    return SumSettings(
        dim=public.ring.vector_dim,
        modulus_bits=aggregation.modulus_bits,
        key_bits=aggregation.key_bits,
        custody=aggregation.custody,
        run_id=run_id,
        neighbors=public.neighbors,
        precompute=aggregation.precompute,
        threshold=aggregation.threshold,
        checked=aggregation.checked,
    )
