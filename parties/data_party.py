"""A rank that owns data: what it says to the others in every round, and what it writes down."""

from __future__ import annotations

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
from mpcfl.secagg.base import SecureSum

_TRAFFIC = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes at the transport, of one round."""

    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """What else happens in a round; only rank 0 does anything there.

    Attributes:
        applied: called with the next round's number once the model is new, before the commit.
        done: called with the round's number, this party's meter and all ranks' traffic.
    """

    applied: Callable[[int], None] = lambda _: None
    done: Callable[[int, Meter, Traffic], None] = lambda *_: None


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
        meter, before = Meter(), traffic_so_far(transport)
        with meter.stage("reserve"):
            reserved, objection = _reserve(rank, round_id)
        with meter.stage("agree"):
            stop, heads = agree_to_go_on(transport, objection, head_statement(rank))
            remember_heads(rank, public.job.parties.all_names(), heads)
        if stop is not None:
            if reserved is not None:
                reserved.ledger.abandon(reserved.token)
            return stop
        opened = protected_sum(public, party, secure, round_id, meter)
        new_model(public, opened, round_id, range(n_parties), meter)
        with meter.stage("checkpoint"):
            hooks.applied(round_id + 1)
        with meter.stage("commit"):
            _commit(rank, reserved)
        with meter.stage("agree"):
            traffic = total_traffic(transport, before)
        hooks.done(round_id, meter, traffic)
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


def traffic_so_far(transport: Transport) -> Traffic:
    """Return what this rank sent and received since its start."""
    return Traffic(transport.meter.bytes_sent, transport.meter.bytes_received)


def total_traffic(transport: Transport, before: Traffic) -> Traffic:
    """Add up all ranks' traffic since ``before``: a function of the protocol, not of the data."""
    own = traffic_so_far(transport)
    packed = _TRAFFIC.pack(
        own.bytes_sent - before.bytes_sent, own.bytes_received - before.bytes_received
    )
    counts = [_TRAFFIC.unpack(message) for message in transport.allgather(packed)]
    return Traffic(sum(sent for sent, _ in counts), sum(received for _, received in counts))
