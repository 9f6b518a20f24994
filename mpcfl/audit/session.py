"""Runs the real stages of `round.py` with all parties in this process, and watches some inputs.

An auditor is a party: it may look at what it hands to the secure sum itself. `WatchedSum` does
that, around the real session and outside of it, so that the code that is audited needs no hook.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.round import (
    PublicState,
    new_model,
    party_data,
    protected_sum,
    sum_settings,
)
from mpcfl.secagg.base import IntVector, Levels, SecureSum, SumId
from mpcfl.secagg.opened_sum import OpenedSum
from mpcfl.secagg.registry import load_backend
from mpcfl.secagg.salvage import Salvage


class WatchedSum:
    """A session that also keeps what its own rank puts in; implements `SecureSum`."""

    def __init__(self, secure: SecureSum) -> None:
        self._secure = secure
        self.inputs: list[IntVector] = []

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`."""
        return self._secure.parts

    def salvage(self) -> Salvage | None:
        """See `SecureSum.salvage`."""
        return self._secure.salvage()

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Any:
        """See `SecureSum.protect`."""
        if levels is not None:
            self.inputs.append(np.array(levels))
        return self._secure.protect(levels, sum_id)

    def aggregate(self, protected: Any) -> Any:
        """See `SecureSum.aggregate`."""
        return self._secure.aggregate(protected)

    def open(self, aggregated: Any) -> Levels:
        """See `SecureSum.open`."""
        return self._secure.open(aggregated)

    def prepare(self) -> None:
        """See `SecureSum.prepare`."""
        self._secure.prepare()

    def close(self) -> None:
        """See `SecureSum.close`."""
        self._secure.close()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What an auditor saw of some rounds.

    Attributes:
        opened: the opened sums, shape (rounds, dim), int64. Public.
        inputs: by watched rank, its own noised levels, shape (rounds, dim), int64. Secret.
    """

    opened: NDArray[np.int64]
    inputs: dict[int, NDArray[np.int64]] = field(repr=False)


def watch_rounds(publics: Sequence[PublicState], rounds: int, watched: Set[int]) -> Seen:
    """Run rounds of a fresh model, one thread per rank, with the job's backend.

    Args:
        publics: one state per rank, an aggregator's last; changed by the rounds.
        rounds: how many; each is one attempt.
        watched: data parties whose inputs are kept.
    """
    job = publics[0].job
    open_backend = load_backend(job.aggregation.backend)
    n_parties = job.parties.count

    def rank_program(transport: MemoryTransport) -> tuple[list[IntVector], list[IntVector]]:
        rank, public = transport.rank, publics[transport.rank]
        secure = WatchedSum(open_backend(transport, sum_settings(public, run_id="audit")))
        opened = []
        if rank < n_parties:
            party = party_data(public, rank, public.task.party_data(rank, n_parties))
            for round_id in range(rounds):
                sum_id = SumId(round_id)
                opened.append(protected_sum(public, party, secure, sum_id, transport.meter))
                whole = OpenedSum.whole(opened[-1], range(n_parties))
                new_model(public, whole, round_id, transport.meter)
        else:
            for _ in range(rounds):
                secure.open(secure.aggregate(secure.protect(None)))
        secure.close()
        return opened, secure.inputs if rank in watched else []

    results = run_parties(job.n_ranks, rank_program, job.aggregation.deadline_s)
    inputs = {rank: np.stack(results[rank][1]) for rank in sorted(watched)}
    return Seen(np.stack(results[0][0]), inputs)
