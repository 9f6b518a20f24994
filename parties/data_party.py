"""What a rank says to the others in every round, and what it writes down.

A round's sum takes one attempt; more, if parties are lost. Before the first byte of an attempt
leaves, its charge is on the disk of every party, and so is the head of every party's ledger with
that charge in it. An aggregator goes through the same steps without data, ledger and sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpcfl.dp.attempts import Failure, attempt_digest, opened_digest
from mpcfl.dp.ledger import planned_charge, realised_charge
from mpcfl.errors import (
    BudgetExceeded,
    CheckFailed,
    MpcflError,
    PartyLost,
    QuorumLost,
    TranscriptMismatch,
    were_lost,
)
from mpcfl.learn.model import model_digest
from mpcfl.net.roster import agree_to_go_on, check_in
from mpcfl.net.transport import Transport
from mpcfl.net.wire import F64, U64, Format, Kind, optional
from mpcfl.parties.ledgers import head_statement, remember_heads
from mpcfl.parties.progress import Reserved, Run
from mpcfl.parties.recorder import Totals
from mpcfl.parties.setup import Rank
from mpcfl.round import new_model, protected_sum
from mpcfl.secagg.base import SumId
from mpcfl.secagg.opened_sum import PartialSum, Piece

_DIGEST_DIGITS = 64
_TOTALS = Format(Kind.TOTALS, sent=U64, received=U64, epsilon=optional(F64))


def play_round(run: Run) -> str | None:
    """Take part in the round that this party needs next, or in what is left of it.

    Returns:
        Why the run stops here, before this round, or None.

    Raises:
        PartyLost: a party was lost; what is known of the sum was kept, so that this may be
            called again once the survivors have agreed on who they are.
        MpcflError: the run can't go on; the ledger then holds an unresolved reserve at most.
    """
    if run.progress.opened.missing:
        stop = attempt_sum(run)
        if stop is not None:
            return stop
    settle(run)
    return None


def attempt_sum(run: Run) -> str | None:
    """Make one attempt at what is missing of the round's sum; return why the run stops, if so."""
    progress = run.progress
    with progress.meter.stage("session"):
        session = run.session_for(progress.opened.missing)
    attempt = run.rank.next_attempt(progress.round_id)
    with progress.meter.stage("reserve"):
        objection = _reserve(run, attempt)
    begun = False
    try:
        with progress.meter.stage("agree"):
            stop = _agree_on_attempt(run, attempt, objection)
        if stop is not None:
            _fail(run, attempt, Failure.REFUSED)
            _abandon(run)
            return _why_stopped(run, stop)
        begun = True
        _open_sum(run, session, attempt)
    except PartyLost:
        if begun:
            run.salvage(attempt)
        _fail(run, attempt, Failure.PARTY_LOST)
        raise
    except MpcflError as error:
        checked = isinstance(error, CheckFailed)
        _fail(run, attempt, Failure.CHECK_FAILED if checked else Failure.STOPPED)
        raise
    return None


def open_product(run: Run) -> None:
    """Open the encrypted sum that all who lack it hold, with the key shares that are left."""
    session, product = run.session, run.progress.product
    if session is None or product is None:
        raise QuorumLost("the encrypted sum of this round is gone; continue with --resume")
    attempt = run.rank.next_attempt(run.progress.round_id) - 1
    try:
        opened = product.open_over(run.connection.transport)
    except PartyLost:
        run.salvage(attempt)
        raise
    values = opened.astype(np.int64, copy=False)
    run.progress.opened.add_all(values, session, attempt)
    run.attempts.open(run.progress.round_id, attempt, session.spans, opened_digest(values))


def settle(run: Run) -> None:
    """Put a sum that is known to use: the new model, the checkpoint, the ledger, the record.

    Raises:
        PartyLost: a party was lost; this party's own round is over all the same.
    """
    progress, rank, transport = run.progress, run.rank, run.connection.transport
    round_id, meter = progress.round_id, progress.meter
    if rank.party is not None:
        new_model(rank.public, progress.opened, round_id, meter)
        with meter.stage("checkpoint"):
            if run.recorder is not None:
                run.recorder.applied(round_id + 1)
        with meter.stage("commit"):
            _commit(run)
        run.attempts.settle(round_id)
    before = rank.bytes_before
    totals = Totals(*_bytes_since(transport, before))
    parties, caught_up = run.data_members, progress.caught_up
    progress.advance(transport.meter)
    try:
        if not caught_up:
            with meter.stage("agree"):
                totals = agree_on_totals(transport, run.connection.members, before, rank)
    finally:
        rank.bytes_before = bytes_so_far(transport)
        if run.recorder is not None:
            run.recorder.after_round(round_id, meter, totals, parties)


def agree_on_model(rank: Rank, transport: Transport, names: Sequence[str]) -> str:
    """Compare the final models of all parties; return the digest, hex; "" at an aggregator."""
    if rank.party is None:
        check_in(transport, names, {})
        return ""
    digest = model_digest(rank.public.model).hex()
    check_in(transport, names, {"model": digest})
    return digest


def _agree_on_attempt(run: Run, attempt: int, objection: str | None) -> str | None:
    """Hear that all have charged the same attempt, and keep what shows it; or why one objects."""
    connection = run.connection
    stop, stated = agree_to_go_on(connection.transport, objection, _statement(run, attempt))
    heads = _require_same_attempt(run, stated)
    remember_heads(run.rank, connection.members, heads)
    return stop


def _open_sum(run: Run, session: PartialSum, attempt: int) -> None:
    progress, rank = run.progress, run.rank
    progress.opened.note_roster(attempt, run.data_members)
    sum_id = SumId(progress.round_id, attempt)
    if rank.party is None:
        with progress.meter.stage("aggregate"):
            session.open(session.aggregate(session.protect(None, sum_id)))
        for span in session.spans:
            progress.opened.add(Piece(span, attempt, None))
        return
    run.attempts.begin(progress.round_id, attempt)
    opened = protected_sum(rank.public, rank.party, session, sum_id, progress.meter)
    progress.opened.add_all(opened, session, attempt)
    run.attempts.open(progress.round_id, attempt, session.spans, opened_digest(opened))


def _reserve(run: Run, attempt: int) -> str | None:
    """Write the attempt's charge ahead; or return why the budget forbids it."""
    rank, progress = run.rank, run.progress
    _abandon(run)
    if rank.ledger is not None:
        charge = planned_charge(rank.public.plan, progress.round_id, attempt, view=rank.view)
        try:
            progress.reserved = Reserved(rank.ledger, charge, rank.ledger.reserve(charge))
        except BudgetExceeded as error:
            return str(error)
    rank.note_attempt(progress.round_id, attempt + 1)
    # What is charged now is another sum than the one that lies encrypted here.
    progress.product = None
    if rank.party is not None:
        spans = progress.opened.missing
        run.attempts.charge(progress.round_id, attempt, run.data_members, spans)
    return None


def _abandon(run: Run) -> None:
    """Close the charge of an attempt whose sum is not used; it stays spent."""
    reserved, run.progress.reserved = run.progress.reserved, None
    if reserved is not None:
        reserved.ledger.abandon(reserved.token)


def _statement(run: Run, attempt: int) -> str:
    """Return what this party says before an attempt: what it is for, and its ledger's head."""
    progress, view = run.progress, run.connection.view.digest
    digest = attempt_digest(progress.round_id, attempt, view, progress.opened.missing)
    return digest + head_statement(run.rank)


def _require_same_attempt(run: Run, stated: Sequence[str]) -> list[str]:
    """Refuse to go on unless all mean the same attempt; return the heads of their ledgers.

    Raises:
        TranscriptMismatch: somebody is at another round, attempt, view or part of the vector.
    """
    for place, statement in enumerate(stated):
        if statement[:_DIGEST_DIGITS] != stated[0][:_DIGEST_DIGITS]:
            names = run.connection.names
            raise TranscriptMismatch(
                f"{names[place]} is at another attempt than {names[0]}; the run stops, continue "
                "it with --resume"
            )
    return [statement[_DIGEST_DIGITS:] for statement in stated]


def _fail(run: Run, attempt: int, reason: Failure) -> None:
    """Note that an attempt has ended without its sum, if this party had charged it."""
    charged = run.rank.next_attempt(run.progress.round_id) > attempt
    if run.rank.party is not None and charged:
        run.attempts.fail(run.progress.round_id, attempt, reason)


def _why_stopped(run: Run, objection: str) -> str:
    """Return the objection; a loss that the budget has no spare attempt for is an error.

    Raises:
        QuorumLost: parties were lost in this round.
    """
    if not run.progress.lost:
        return objection
    raise QuorumLost(
        f"{were_lost(run.progress.lost)} in round {run.progress.round_id + 1}, and there is no "
        f"attempt to spare: {objection}; plan for it with privacy.spare_attempts"
    )


def _commit(run: Run) -> None:
    """Note that the round's sum was opened and used, with the noise that was really in it."""
    reserved, run.progress.reserved = run.progress.reserved, None
    if reserved is None:
        return
    plan, rosters = run.rank.public.plan, run.progress.opened.rosters
    contributors = len(rosters.get(reserved.charge.attempt, ())) or plan.quorum
    realised = realised_charge(plan, reserved.charge, contributors, view=run.rank.view)
    reserved.ledger.opened(reserved.token)
    reserved.ledger.commit(reserved.token, realised)


def bytes_so_far(transport: Transport) -> tuple[int, int]:
    """Return how many bytes this rank sent and received since its start."""
    return transport.meter.bytes_sent, transport.meter.bytes_received


def agree_on_totals(
    transport: Transport, members: Sequence[int], before: tuple[int, int], rank: Rank
) -> Totals:
    """Add up what all ranks sent since ``before``, and hear what each ledger has spent.

    Bytes are a function of the protocol, and epsilons of the plan and of failed attempts: neither
    says anything about the data.
    """
    sent, received = _bytes_since(transport, before)
    spent = None if rank.ledger is None else rank.ledger.epsilon()
    message = _TOTALS.encode(sent=sent, received=received, epsilon=spent)
    totals = [_TOTALS.decode(text) for text in transport.allgather(message)]
    return Totals(
        bytes_sent=sum(words["sent"] for words in totals),
        bytes_received=sum(words["received"] for words in totals),
        epsilons={
            number: words["epsilon"]
            for number, words in zip(members, totals, strict=True)
            if words["epsilon"] is not None and not math.isnan(words["epsilon"])
        },
    )


def _bytes_since(transport: Transport, before: tuple[int, int]) -> tuple[int, int]:
    sent, received = bytes_so_far(transport)
    return sent - before[0], received - before[1]
