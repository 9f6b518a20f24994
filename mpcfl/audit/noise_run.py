"""`mpcfl audit noise`: collects real shares of noise and hands them to the checks of `noise.py`.

The protocol runs for some rounds on updates that are all zero, so that what a party puts into
the secure sum is its share of the noise, and the opened sum is noise alone. That is done twice
from the same public seed. Shares are also drawn in forked children of one process, and one is
used twice.
"""

from __future__ import annotations

import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpcfl.audit.noise import (
    IntArray,
    NoiseLaw,
    check_law,
    check_left_after_collusion,
    check_opened,
    check_size,
    check_unrelated,
)
from mpcfl.audit.session import Seen, watch_rounds
from mpcfl.audit.verdict import AuditReport, Finding
from mpcfl.config import Job, Placement, Unit
from mpcfl.dp.noise import NoiseShare, draw_noise_share
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.errors import ConfigError, OutOfOrder
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Records, Task
from mpcfl.round import public_state
from mpcfl.secagg.base import centre

DrawShare = Callable[[NoisePlan], NoiseShare]

_CHILDREN = 2
_CHILD_DEADLINE_S = 30.0
_CHUNK_BYTES = 1 << 16
# Enough for a batch; their gradients are zero anyway.
_RECORDS = 2


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """What `mpcfl audit noise` collects.

    Attributes:
        dim: least length of a vector; the model is padded to it.
        rounds: of each of the two sessions.
    """

    dim: int = 20_000
    rounds: int = 3


class ZeroModel(nn.Module):
    """The task's model and parameters that nothing uses, up to a given number."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        super().__init__()
        own = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.padding = nn.Parameter(torch.zeros(max(0, dim - own)))
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the task's outputs."""
        outputs: Tensor = self.model(inputs)
        return outputs


class ZeroTask:
    """A task with the model and the records of another, and nothing to learn: its loss is zero."""

    def __init__(self, task: Task, dim: int) -> None:
        self._task = task
        self._dim = dim

    def model(self) -> nn.Module:
        """Return the padded model."""
        return ZeroModel(self._task.model(), self._dim)

    def party_data(self, party: int, n_parties: int) -> Records:
        """Return public records: none of the party's own is needed."""
        del party, n_parties
        return self.test_data()

    def test_data(self) -> Records:
        """Return a few of the task's public records."""
        inputs, targets = self._task.test_data()
        return inputs[:_RECORDS], targets[:_RECORDS]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return zero, with a gradient of zero."""
        return 0.0 * self._task.loss(outputs, targets)


def audit_noise(
    job: Job, settings: NoiseSettings | None = None, draw: DrawShare = draw_noise_share
) -> AuditReport:
    """Collect shares of the job's noise and check them.

    Args:
        job: gives the plan, the parties and the backend.
        settings: how much is collected.
        draw: draws one share, in forked children and for the second use.

    Raises:
        ConfigError: the job has no distributed noise.
    """
    chosen = NoiseSettings() if settings is None else settings
    _check(job)
    task = ZeroTask(load_task(job.task, job.task_options), chosen.dim)
    publics = [public_state(job, task) for _ in range(job.n_ranks)]
    plan, dim = publics[0].plan, publics[0].parameters.size
    watched = set(range(job.parties.count))
    sessions = [watch_rounds(publics, chosen.rounds, watched)]
    publics = [public_state(job, task) for _ in range(job.n_ranks)]
    sessions.append(watch_rounds(publics, chosen.rounds, watched))
    return AuditReport(
        subject=f"noise of task {job.task} over backend {job.aggregation.backend}",
        findings=(
            *judge_sessions(sessions, plan, dim),
            _forked(plan, draw),
            check_single_use(plan, draw),
        ),
        settings={
            "parties": plan.parties,
            "colluding": plan.colluding,
            "max_dropout": plan.max_dropout,
            "local_sigma": plan.local_sigma,
            "mechanism": str(plan.mechanism),
            "dim": dim,
            "rounds": chosen.rounds,
            "sessions": len(sessions),
        },
        notes=("updates were all zero, so that shares and sums are noise alone.",),
    )


def _check(job: Job) -> None:
    if job.privacy.unit is Unit.NONE or job.privacy.placement is not Placement.DISTRIBUTED:
        raise ConfigError(
            f'the job has privacy.unit = "{job.privacy.unit}" and placement = '
            f'"{job.privacy.placement}"; this audit looks at noise in shares: set unit = "record" '
            'or "party" and placement = "distributed"'
        )


def judge_sessions(sessions: list[Seen], plan: NoisePlan, dim: int) -> tuple[Finding, ...]:
    """Check all that was seen of some sessions with zero updates.

    Args:
        sessions: with every party watched.
        plan: of all of them.
        dim: coordinates of the model; secret counts behind them are not zero.
    """
    parties = sorted(sessions[0].inputs)
    vectors = [row[:dim] for s in sessions for party in parties for row in s.inputs[party]]
    shares = {
        party: np.concatenate([s.inputs[party][:, :dim].ravel() for s in sessions])
        for party in parties
    }
    opened = np.concatenate([s.opened[:, :dim].ravel() for s in sessions])
    zeros = np.zeros_like(opened)
    total = centre(sum((shares[party] for party in parties), zeros), plan.modulus_bits)
    return (
        check_law(shares, NoiseLaw(plan.local_sigma, str(plan.mechanism))),
        check_size(shares, plan.local_sigma),
        check_left_after_collusion(shares, plan),
        check_unrelated(
            vectors,
            "shares-unrelated",
            f"shares of {len(parties)} parties in all rounds of {len(sessions)} sessions with one "
            "training seed",
        ),
        check_opened(opened, total, len(parties) * float(plan.local_sigma) ** 2),
    )


def _forked(plan: NoisePlan, draw: DrawShare) -> Finding:
    vectors = [_from_child(plan, draw) for _ in range(_CHILDREN)]
    vectors.append(draw(plan).take())
    if any(vector.shape != vectors[-1].shape for vector in vectors):
        return Finding(
            check="shares-unrelated-after-fork",
            passed=False,
            detail="a forked child did not hand over a share",
        )
    return check_unrelated(
        vectors, "shares-unrelated-after-fork", "shares of a process and its forked children"
    )


def _from_child(plan: NoisePlan, draw: DrawShare) -> IntArray:
    """Return the share that a forked child draws; shorter if it fails or is late."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Newer versions of Python warn: threads don't live on in a child. This one needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reader)
        _send_share(plan, draw, writer)
    os.close(writer)
    received = _read(reader)
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return np.frombuffer(received[: len(received) // 8 * 8], dtype=np.int64)


def _send_share(plan: NoisePlan, draw: DrawShare, writer: int) -> None:
    """Write a fresh share and end this process without the clean-up of its parent."""
    try:
        left = memoryview(draw(plan).take().astype(np.int64).tobytes())
        while left:
            left = left[os.write(writer, left) :]
    finally:
        os._exit(0)


def _read(reader: int) -> bytes:
    received = bytearray()
    end = time.monotonic() + _CHILD_DEADLINE_S
    while (left := end - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        chunk = os.read(reader, _CHUNK_BYTES)
        if not chunk:
            break
        received += chunk
    return bytes(received)


def check_single_use(plan: NoisePlan, draw: DrawShare) -> Finding:
    """Take one share twice: the second time must raise."""
    share = draw(plan)
    share.take()
    try:
        share.take()
    except OutOfOrder:
        refused = True
    else:
        refused = False
    return Finding(
        check="share-used-once",
        passed=refused,
        detail="a share that was used " + ("is refused" if refused else "CAN BE USED AGAIN"),
    )
