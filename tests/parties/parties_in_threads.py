"""Whole parties of one run, a thread each: the program of `parties/` from the handshake on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpcfl.config import Job
from mpcfl.net.handshake import HandshakeContext, authenticate
from mpcfl.net.identity import Identity
from mpcfl.net.memory import Lane, MemoryNetwork, MemoryTransport
from mpcfl.parties import data_party
from mpcfl.parties.connection import Carrier, Connection
from mpcfl.parties.events import Event
from mpcfl.parties.folders import RunPlace
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.program import serve_rounds
from mpcfl.parties.rules import rank_names, require_quorum, seats
from mpcfl.parties.setup import Rank, make_rank
from mpcfl.report.checkpoint import load_checkpoint, restore, save_checkpoint
from mpcfl.report.run_folder import RunFolder
from mpcfl.secagg.base import SumId
from mpcfl.secagg.opened_sum import OpenedSum, PartialSum, Piece

Vector = NDArray[np.int64]


class Line:
    """A task for any number of parties: four records each; a model of two weights and a bias."""

    def model(self) -> nn.Module:
        model = nn.Linear(2, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    def party_data(self, party: int, n_parties: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.arange(8.0).reshape(4, 2) / 8 - 0.5 + party / n_parties
        return inputs, inputs.sum(dim=1, keepdim=True) + 0.25

    def test_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.party_data(0, 1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)


class KilledError(BaseException):
    """A party is gone in the middle of a line; no `except Exception` of its own sees that."""


def connected(
    job: Job, transport: MemoryTransport, numbers: Sequence[int] | None = None
) -> Connection:
    """Make the handshake; return this thread's link to all parties of a job."""
    present = tuple(range(job.n_ranks)) if numbers is None else tuple(numbers)
    names = tuple(rank_names(job)[number] for number in present)
    transport.names = names
    identity = Identity.new()
    context = HandshakeContext(job.digest().hex(), names, ())
    agreed = authenticate(transport, identity, None, context)
    carrier = Carrier(transport, transport.port(), present, lambda left: require_quorum(job, left))
    return Connection(carrier, identity, agreed)


def loaded_ranks(job: Job, folder: RunFolder, numbers: Sequence[int]) -> list[Rank]:
    """Return what each party loads before its first round; from a checkpoint if there is one.

    One after the other: initial weights come from torch's one generator.
    """
    ranks = [make_rank(job, number) for number in numbers]
    if not folder.checkpoint.exists():
        folder.path.mkdir(exist_ok=True)
        folder.job_json.write_text(json.dumps(job.model_dump(mode="json")))
        save_checkpoint(folder.checkpoint, ranks[0].public, 0)
        return ranks
    for rank in ranks:
        checkpoint = load_checkpoint(folder.checkpoint)
        restore(rank.public, checkpoint)
        rank.resumed, rank.first_round = True, checkpoint.facts.next_round
    return ranks


class DyingNetwork(MemoryNetwork):
    """A network on which some threads die: each just before a message of its choice leaves.

    Args:
        n_ranks: threads.
        dies_at: by seat, which message of its rounds never leaves, from 0 on.
        deadline_s: of every exchange.
    """

    def __init__(
        self, n_ranks: int, dies_at: Mapping[int, int] | None = None, deadline_s: float = 20.0
    ) -> None:
        super().__init__(n_ranks, deadline_s)
        self.dies_at = dict(dies_at or {})
        self.sent = dict.fromkeys(range(n_ranks), 0)
        self.in_rounds: set[int] = set()
        self._counting = threading.Lock()

    def put(self, source: int, target: int, lane: Lane, message: bytes) -> None:
        """Deliver a message, unless its sender is dead or dies now."""
        with self._counting:
            if source in self.in_rounds:
                if self.sent[source] == self.dies_at.get(source, -1):
                    self.dead.add(source)
                self.sent[source] += 1
        if source in self.dead:
            raise KilledError
        super().put(source, target, lane, message)


@dataclass
class Ran:
    """What came of a run.

    Attributes:
        ranks: as they are at the end, by seat.
        network: that joined them.
        numbers: of the parties, by seat.
        inputs: by number and sum, the noised levels that a party put in.
        used: by number and round, the pieces that a party made its new model of, and over whom.
        members: by seat, the numbers of those who took part at the end, for who came to it.
        errors: by seat, what ended a party that did not come to its end.
        events: that were told, by whoever told them.
    """

    folder: RunFolder
    ranks: list[Rank]
    network: DyingNetwork
    numbers: tuple[int, ...]
    inputs: dict[tuple[int, SumId], Vector] = field(default_factory=dict)
    used: dict[tuple[int, int], list[tuple[Piece, tuple[int, ...]]]] = field(default_factory=dict)
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


def run_job(
    job: Job,
    folder: RunFolder,
    dies_at: Mapping[int, int] | None = None,
    *,
    without: Sequence[str] = (),
    prepare: Callable[[Rank], None] = lambda _: None,
) -> Ran:
    """Run a job, or go on with the run of a folder, in a thread per party that is there.

    Args:
        job: the run.
        folder: of its results.
        dies_at: by seat, the message of its rounds before which that party dies.
        without: names of the parties that are not there.
        prepare: changes what a party has loaded.
    """
    numbers = seats(job, job.n_ranks - len(without), without)
    ranks = loaded_ranks(job, folder, numbers)
    network = DyingNetwork(len(numbers), dies_at)
    ran = Ran(folder, ranks, network, numbers)

    def live(seat: int) -> None:
        transport = MemoryTransport(network, seat)
        try:
            with closing(connected(job, transport, numbers)) as connection:
                open_ledgers(ranks[seat], connection, folder)
                prepare(ranks[seat])
                network.in_rounds.add(seat)
                place = RunPlace(folder, numbers, numbers[:1])
                serve_rounds(ranks[seat], place, connection, ran.events.append)
                ran.members[seat] = connection.members
        except BaseException as error:  # noqa: BLE001 - the test says which one it expects
            ran.errors[seat] = error
        finally:
            # Its process ends, and the others see that.
            network.dead.add(seat)

    threads = [
        threading.Thread(target=live, args=(seat,), name=f"party {number}", daemon=True)
        for seat, number in enumerate(numbers)
    ]
    with _watched(ran):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60.0)
    assert not any(thread.is_alive() for thread in threads), "a party hangs"
    return ran


@contextmanager
def _watched(ran: Ran) -> Iterator[None]:
    """Note what each party puts into a sum, and what it takes out of it."""
    protect, new_model = PartialSum.protect, data_party.new_model

    def watched_protect(self: PartialSum, levels: Any, sum_id: SumId | None = None) -> Any:
        if levels is not None and sum_id is not None:
            ran.inputs[_own_number(), sum_id] = levels.copy()
        return protect(self, levels, sum_id)

    def watched_model(public: Any, opened: OpenedSum, round_id: int, meter: Any) -> None:
        rosters = opened.rosters
        ran.used[_own_number(), round_id] = [(p, rosters[p.attempt]) for p in opened.pieces]
        new_model(public, opened, round_id, meter)

    with (
        patch.object(PartialSum, "protect", watched_protect),
        patch.object(data_party, "new_model", watched_model),
    ):
        yield


def _own_number() -> int:
    return int(threading.current_thread().name.removeprefix("party "))
