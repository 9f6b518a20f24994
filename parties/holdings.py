"""After a loss: what the survivors hold of the round's sum, and who lacks what.

Every survivor states the round that it needs next, and what it knows of that round's sum and of
the one before. What anybody knows stands: the lowest who has a piece gives it to those who lack
it. What nobody knows may be asked for again, by a new attempt. Two values for one coordinate
stop the run. All of it travels sealed; sums are public among the data parties.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mpcfl.dp.attempts import opened_digest
from mpcfl.errors import CheckFailed, QuorumLost
from mpcfl.net.wire import (
    FLAG,
    U32,
    U64,
    Format,
    Kind,
    blob,
    fixed,
    listing,
    optional,
    record,
)
from mpcfl.parties.progress import Run
from mpcfl.secagg.opened_sum import OpenedSum, Piece, Span

_MOST_PIECES = 1 << 16
# Less than what a transport takes in one message: 134 million coordinates.
_MOST_BYTES = (1 << 30) - (1 << 10)
_DIGEST_BYTES = 32
_WORD_BYTES = 8
_HOLDINGS = Format(
    Kind.HOLDINGS,
    round=U64,
    next_attempt=U32,
    blind=FLAG,
    product=optional(fixed(_DIGEST_BYTES)),
    held=listing(
        record(round=U64, attempt=U32, start=U64, stop=U64, digest=fixed(_DIGEST_BYTES)),
        _MOST_PIECES,
    ),
)

# Pieces one after the other, int64, little-endian; as long as they say, and in that order.
_VALUES = Format(Kind.HELD_VALUES, values=blob(_MOST_BYTES))


@dataclass(frozen=True, slots=True, order=True)
class _Held:
    """A piece that somebody holds, without its values."""

    round: int
    span: Span
    attempt: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Statement:
    """What one survivor says of itself."""

    round_id: int
    next_attempt: int
    blind: bool
    product: bytes | None
    held: frozenset[_Held]


def share_holdings(run: Run) -> bool:
    """Bring every survivor to what any of them knows; all of them call it together.

    Returns:
        True if every one that lacks something holds the same encrypted sum of it, to be opened.

    Raises:
        CheckFailed: two survivors hold different values of one coordinate.
        QuorumLost: some of the sum is known to nobody, and a backend can't tell whether it is.
        PartyLost: another party was lost meanwhile.
    """
    transport = run.connection.transport
    messages = transport.allgather(_own_statement(run))
    statements = [_read(message) for message in messages]
    is_data = [number in run.data_members for number in run.connection.members]
    stated = [one for one, data in zip(statements, is_data, strict=True) if data]
    target = min(one.round_id for one in stated)
    behind = [
        place for place, one in enumerate(statements) if one.round_id == target and is_data[place]
    ]
    wanted = sorted({h for one in stated for h in one.held if h.round == target})
    _refuse_contradictions(wanted)
    is_known = sum(held.span[1] - held.span[0] for held in wanted) == run.progress.opened.dim
    own_round = run.progress.round_id
    if run.rank.party is None and (own_round < target or (own_round > target and not is_known)):
        run.progress.step_to(target)
    _hand_over(run, statements, wanted, behind)
    lacking = [statements[place] for place in behind]
    # An aggregator, which has no ledger to write, may have counted on before the others.
    for one in statements:
        run.rank.note_attempt(one.round_id, one.next_attempt)
    if is_known:
        ahead = any(one.round_id > target for one in statements)
        run.progress.caught_up = ahead and run.progress.round_id == target
        return False
    if any(one.blind for one in lacking):
        raise QuorumLost(
            "a sum broke off in a backend that can't tell what was opened of it, so it must not "
            "be tried again; continue with --resume"
        )
    products = {one.product for one in lacking}
    return len(products) == 1 and None not in products


def _own_statement(run: Run) -> bytes:
    progress = run.progress
    sums = [(progress.round_id, progress.opened)]
    if progress.previous is not None:
        sums.append((progress.round_id - 1, progress.previous))
    product = progress.product
    return _HOLDINGS.encode(
        round=progress.round_id,
        next_attempt=run.rank.next_attempt(progress.round_id),
        blind=progress.blind,
        product=None if product is None else bytes.fromhex(product.digest),
        held=[_stated(round_id, piece) for round_id, opened in sums for piece in _known(opened)],
    )


def _known(opened: OpenedSum) -> list[Piece]:
    return [piece for piece in opened.pieces if piece.values is not None]


def _stated(round_id: int, piece: Piece) -> dict[str, object]:
    values = piece.values if piece.values is not None else np.empty(0, np.int64)
    return {
        "round": round_id,
        "attempt": piece.attempt,
        "start": piece.span[0],
        "stop": piece.span[1],
        "digest": bytes.fromhex(opened_digest(values)),
    }


def _read(message: bytes) -> _Statement:
    words = _HOLDINGS.decode(message)
    held = frozenset(
        _Held(h["round"], (h["start"], h["stop"]), h["attempt"], h["digest"]) for h in words["held"]
    )
    return _Statement(words["round"], words["next_attempt"], words["blind"], words["product"], held)


def _refuse_contradictions(held: Sequence[_Held]) -> None:
    for one, other in itertools.pairwise(held):
        if one.span[1] > other.span[0]:
            raise CheckFailed(
                f"two parties hold different sums of one coordinate of round {one.round + 1}; they "
                "were not told the same, and the run stops without them"
            )


def _hand_over(
    run: Run, statements: Sequence[_Statement], wanted: Iterable[_Held], behind: Sequence[int]
) -> None:
    """Send what others lack and this party is the lowest to hold; take what it lacks itself."""
    transport = run.connection.transport
    givers = {
        held: min(place for place, one in enumerate(statements) if held in one.held)
        for held in wanted
    }
    lacks = {place: [h for h in givers if h not in statements[place].held] for place in behind}
    own = transport.rank
    outgoing = {
        place: _VALUES.encode(values=b"".join(_values(run, h) for h in lacking if givers[h] == own))
        for place, lacking in lacks.items()
        if place != own and any(givers[h] == own for h in lacking)
    }
    mine = lacks.get(own, [])
    sources = sorted({givers[held] for held in mine})
    received = transport.exchange(outgoing, sources)
    for source in sources:
        _take_over(run, source, [h for h in mine if givers[h] == source], received[source])
    if run.rank.party is None and run.progress.round_id in {h.round for h in givers}:
        for held in givers:
            run.progress.opened.add(Piece(held.span, held.attempt, None))


def _values(run: Run, held: _Held) -> bytes:
    progress = run.progress
    opened = progress.opened if held.round == progress.round_id else progress.previous
    found = next(p for p in _known(opened or progress.opened) if p.span == held.span)
    return np.ascontiguousarray(found.values, dtype="<i8").tobytes()


def _take_over(run: Run, source: int, pieces: Sequence[_Held], message: bytes) -> None:
    progress, at = run.progress, 0
    content = _VALUES.decode(message, run.connection.names[source])["values"]
    giver = run.connection.members[source]
    for held in pieces:
        length = _WORD_BYTES * (held.span[1] - held.span[0])
        piece, at = content[at : at + length], at + length
        if len(piece) != length:
            raise CheckFailed(f"{run.connection.names[source]} sent less of a sum than it holds")
        values = np.frombuffer(piece, dtype="<i8").astype(np.int64)
        if bytes.fromhex(opened_digest(values)) != held.digest:
            raise CheckFailed(f"{run.connection.names[source]} sent another sum than it stated")
        run.require_piece(Piece(held.span, held.attempt, values))
        progress.opened.add(Piece(held.span, held.attempt, values))
        digest = held.digest.hex()
        run.attempts.open(progress.round_id, held.attempt, [held.span], digest, source=giver)
    if at != len(content):
        raise CheckFailed(f"{run.connection.names[source]} sent more of a sum than was asked for")
