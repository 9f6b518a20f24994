"""A rank that owns data: what it says to the others in every round, and what it writes down."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from mpcfl.dp.ledger import Charge, Ledger, Token, planned_charge, realised_charge
from mpcfl.errors import BudgetExceeded
from mpcfl.learn.model import model_digest
from mpcfl.net.meter import Meter
from mpcfl.net.roster import agree_to_go_on, check_in
from mpcfl.net.transport import Transport
from mpcfl.parties.ledgers import head_statement, remember_heads
from mpcfl.parties.setup import Rank
from mpcfl.round import new_model, protected_sum
from mpcfl.secagg.base import SecureSum, SumId

_TOTALS = struct.Struct(">QQd")


@dataclass(frozen=True, slots=True)
class Totals:
    """What all ranks together can say of a round once it is over. Public.

    Attributes:
        bytes_sent: payload at the transport, of all ranks.
        bytes_received: the same, received.
        epsilons: spent so far by each data party's ledger, in rank order; empty without privacy.
    """

    bytes_sent: int
    bytes_received: int
    epsilons: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Hooks:
    """What else happens in a round; only rank 0 does anything there.

    Attributes:
        applied: called with the next round's number once the model is new, before the commit.
        done: called with the round's number, this party's meter and all ranks' totals.
    """

    applied: Callable[[int], None] = lambda _: None
    done: Callable[[int, Meter, Totals], None] = lambda *_: None


def run_data_party(rank: Rank, secure: SecureSum, transport: Transport, hooks: Hooks) -> str | None:
    """Take part in every round that is left, or in as many as the budget allows.

    Before a round's first byte leaves, its charge is on this party's disk, and the head of
    every party's ledger, with that charge in it, is on the disks of all.

    Returns:
        Why the run stopped before its last round, or None.

    Raises:
        MpcflError: the run can't go on; the ledger then holds an unresolved reserve at most.
    """
    public, party = rank.public, rank.party
    if party is None:
        raise ValueError("a data party needs data")
    n_parties = public.job.parties.count
    for round_id in range(rank.first_round, public.job.training.rounds):
        meter, before = Meter(), bytes_so_far(transport)
        with meter.stage("reserve"):
            reserved, objection = _reserve(rank, round_id)
        with meter.stage("agree"):
            stop, heads = agree_to_go_on(transport, objection, head_statement(rank))
            remember_heads(rank, public.job.parties.all_names(), heads)
        if stop is not None:
            if reserved is not None:
                reserved.ledger.abandon(reserved.token)
            return stop
        sum_id = SumId(round_id, rank.attempt_of(round_id))
        opened = protected_sum(public, party, secure, sum_id, meter)
        new_model(public, opened, round_id, range(n_parties), meter)
        with meter.stage("checkpoint"):
            hooks.applied(round_id + 1)
        with meter.stage("commit"):
            _commit(rank, reserved)
        with meter.stage("agree"):
            epsilon = None if rank.ledger is None else rank.ledger.epsilon()
            totals = agree_on_totals(transport, before, epsilon)
        hooks.done(round_id, meter, totals)
    return None


def agree_on_model(rank: Rank, transport: Transport, names: tuple[str, ...]) -> str:
    """Compare the final models of all parties; return the digest, hex."""
    digest = model_digest(rank.public.model).hex()
    check_in(transport, names, {"model": digest})
    return digest


@dataclass(frozen=True, slots=True)
class _Reserved:
    """A round's charge, written ahead in this party's ledger."""

    ledger: Ledger
    charge: Charge
    token: Token


def _reserve(rank: Rank, round_id: int) -> tuple[_Reserved | None, str | None]:
    """Write the round's charge ahead; or return why the budget forbids it."""
    if rank.ledger is None:
        return None, None
    attempt = rank.attempt_of(round_id)
    charge = planned_charge(rank.public.plan, round_id, attempt, view=rank.view)
    try:
        return _Reserved(rank.ledger, charge, rank.ledger.reserve(charge)), None
    except BudgetExceeded as error:
        return None, str(error)


def _commit(rank: Rank, reserved: _Reserved | None) -> None:
    """Note that the round's sum was opened and used, with the noise that was really in it."""
    if reserved is None:
        return
    plan = rank.public.plan
    realised = realised_charge(plan, reserved.charge, plan.parties, view=rank.view)
    reserved.ledger.opened(reserved.token)
    reserved.ledger.commit(reserved.token, realised)


def bytes_so_far(transport: Transport) -> tuple[int, int]:
    """Return how many bytes this rank sent and received since its start."""
    return transport.meter.bytes_sent, transport.meter.bytes_received


def agree_on_totals(
    transport: Transport, before: tuple[int, int], epsilon: float | None = None
) -> Totals:
    """Add up what all ranks sent since ``before``, and hear what each ledger has spent.

    Bytes are a function of the protocol, and epsilons of the plan and of failed attempts: neither
    says anything about the data.
    """
    sent, received = bytes_so_far(transport)
    spent = math.nan if epsilon is None else epsilon
    packed = _TOTALS.pack(sent - before[0], received - before[1], spent)
    totals = [_TOTALS.unpack(message) for message in transport.allgather(packed)]
    return Totals(
        bytes_sent=sum(sent for sent, _, _ in totals),
        bytes_received=sum(received for _, received, _ in totals),
        epsilons=tuple(spent for _, _, spent in totals if not math.isnan(spent)),
    )
