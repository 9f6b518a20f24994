"""What the parties tell each other of their ledgers, so that none can be cut unseen.

On opening, everybody first states the signed heads that it remembers; each party then opens its
ledger, which must go on from all of them; then everybody states its head as it is now, and
keeps those of the others. With each reserve the new heads go round. Adversary: a party whose
ledger, key or memory was changed or put back; it is named. See `mpcfl/dp/heads.py`. What a party
tells is bounded in size before it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcfl.config import Job
from mpcfl.dp.attempt_events import EventKind, read_log
from mpcfl.dp.heads import Claim, SeenHeads, SignedHead, heads_path, read_head
from mpcfl.dp.ledger import Ledger
from mpcfl.errors import ConfigError, LedgerError
from mpcfl.net.alarm import MAX_PARTIES
from mpcfl.net.roster import check_in
from mpcfl.net.wire import U32, U64, Format, Kind, fixed, listing, optional, record, text
from mpcfl.parties.connection import Connection
from mpcfl.parties.setup import Rank, attempt
from mpcfl.parties.total_ledger import remember_total_heads, total_head
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import read_rounds

# A task's name and a party's; and more rounds than any run has.
_MAX_IDENTITY_BYTES = 1 << 12
_MAX_ROUNDS = 1 << 24
_HEAD = record(
    identity=text(_MAX_IDENTITY_BYTES),
    public_key=fixed(32),
    length=U64,
    hash=fixed(32),
    signature=fixed(64),
)
# What a party remembers of all ledgers, and what it says of its own, if it has one.
_LEDGER_MEMORY = Format(Kind.LEDGER_MEMORY, heads=listing(_HEAD, MAX_PARTIES))
_LEDGER = Format(
    Kind.LEDGER,
    head=optional(_HEAD),
    attempts=listing(record(round=U64, next=U32), _MAX_ROUNDS),
)


def open_ledgers(rank: Rank, connection: Connection, folder: RunFolder) -> None:
    """Open every party's ledger; all ranks call it together.

    Sets the rank's ledger, its memory of the others', and the attempt of each round.

    Raises:
        PartyNotReady: a ledger, a key or a memory is missing, or contradicts another.
    """
    transport, names = connection.transport, connection.names
    number, private = connection.number, rank.keeps_ledger
    recalled, error = attempt(lambda: _recall(rank, number, folder))
    check_in(transport, names, {}, error)
    seen, charged = (None, {}) if recalled is None else recalled
    memories = transport.allgather(_told_memory(seen))
    ledger, error = attempt(
        lambda: (
            _open(rank, number, folder, _claims(rank, connection, memories)) if private else None
        )
    )
    check_in(transport, names, {}, error)
    rank.ledger, rank.seen = ledger, seen
    statements = transport.allgather(_told_ledger(ledger, charged))
    _, error = attempt(lambda: _take(rank, connection, statements))
    check_in(transport, names, {}, error)


def head_statement(rank: Rank) -> str:
    """Return this party's signed heads as a statement to all; empty without a ledger.

    On the first line that of the run's ledger, on the second that of its own, if it keeps one.
    """
    if rank.ledger is None:
        return ""
    heads = (rank.ledger.signed_head().to_json(), total_head(rank))
    return "\n".join(head for head in heads if head is not None)


def remember_heads(rank: Rank, members: Sequence[int], statements: Sequence[str]) -> None:
    """Keep the heads that all members stated; they are on this party's disk when this returns.

    Args:
        rank: this one.
        members: numbers of those who take part.
        statements: theirs, in the same order.

    Raises:
        LedgerError: a party stated none, or one that contradicts an earlier one; it is named.
    """
    told = [statement.partition("\n") for statement in statements]
    _remember(rank, members, [_head_in(of_run) for of_run, _, _ in told])
    remember_total_heads(rank, members, [own or None for _, _, own in told])


def ledger_identity(job: Job, number: int) -> str:
    """Return whose ledger it is, and of what."""
    return f"{job.task}/{job.parties.all_names()[number]}"


def _memory(rank: Rank, number: int, folder: RunFolder) -> SeenHeads:
    """Return what this party remembers; a run that is resumed must remember something."""
    path = heads_path(_ledger_path(folder, number))
    if rank.resumed or path.exists():
        return SeenHeads.load(path)
    return SeenHeads(path)


def _claims(rank: Rank, connection: Connection, memories: Sequence[bytes]) -> list[Claim] | None:
    """Return what the peers remember of this party's ledger; None at the start of a run."""
    if not rank.resumed:
        return None
    job, names = rank.public.job, connection.names
    identity = ledger_identity(job, connection.number)
    claims = []
    for peer, member in enumerate(connection.members):
        if member >= job.parties.count:
            continue
        told = _LEDGER_MEMORY.decode(memories[peer], names[peer])["heads"]
        try:
            heads = [_read(words) for words in told]
        except LedgerError as error:
            raise LedgerError(
                f"{names[peer]} holds a ledger head that nobody signed ({error}); its file of "
                "heads was changed, it must be restored from a copy"
            ) from None
        own = [head for head in heads if head.identity == identity]
        if not own:
            raise LedgerError(
                f"{names[peer]} no longer remembers the ledger of {identity}; its file of heads "
                "was changed, it must be restored from a copy"
            )
        claims += [Claim(names[peer], head) for head in own]
    return claims


def _open(rank: Rank, number: int, folder: RunFolder, claims: list[Claim] | None) -> Ledger:
    job = rank.public.job
    ledger = Ledger.open(
        _ledger_path(folder, number),
        identity=ledger_identity(job, number),
        budget=rank.budget,
        accountant=job.privacy.accountant,
        claims=claims,
    )
    last = _last_round(rank, number, folder)
    if last > 0 and ledger.next_attempt(last - 1) == 0:
        ledger.close()
        raise LedgerError(
            f"{_ledger_path(folder, number)}: the checkpoint holds round {last}, which this ledger "
            "never reserved; one of them is of another run, restore it from a copy"
        )
    return ledger


def _last_round(rank: Rank, number: int, folder: RunFolder) -> int:
    """Return the last round of the checkpoint, from 1, in which a party took part; 0 if none.

    A round that nobody lived to record has the parties of the one before it.
    """
    records = read_rounds(folder.rounds_jsonl, rank.first_round)
    name = rank.names[number]
    if not records or name in records[-1].parties:
        return rank.first_round
    return max((record.round for record in records if name in record.parties), default=0)


def _ledger_path(folder: RunFolder, number: int) -> Path:
    try:
        return folder.ledger_jsonl(number)
    except OSError as error:
        raise ConfigError(
            f"{folder.path}: can't make the ledger folder: {error.strerror}; choose another --out"
        ) from None


def _told_memory(seen: SeenHeads | None) -> bytes:
    heads = () if seen is None else seen.all()
    return _LEDGER_MEMORY.encode(heads=[_written(head) for head in heads])


def _recall(rank: Rank, number: int, folder: RunFolder) -> tuple[SeenHeads | None, dict[int, int]]:
    """Return what this party remembers of all ledgers, if it has one, and of its own attempts."""
    seen = _memory(rank, number, folder) if rank.keeps_ledger else None
    return seen, _charged_before(rank, number, folder)


def _charged_before(rank: Rank, number: int, folder: RunFolder) -> dict[int, int]:
    """Return the next attempt of each round, by what this party began to make, paid or not."""
    following: dict[int, int] = {}
    if rank.party is None or not rank.resumed:
        return following
    path = folder.transcript_jsonl(number)
    for event in read_log(path) if path.exists() else ():
        if event.kind is EventKind.CHARGE:
            following[event.round_id] = max(following.get(event.round_id, 0), event.attempt + 1)
    return following


def _told_ledger(ledger: Ledger | None, charged: Mapping[int, int]) -> bytes:
    stated = [*charged.items(), *(() if ledger is None else ledger.next_attempts.items())]
    return _LEDGER.encode(
        head=None if ledger is None else _written(ledger.signed_head()),
        attempts=[{"round": round_id, "next": following} for round_id, following in stated],
    )


def _take(rank: Rank, connection: Connection, statements: Sequence[bytes]) -> None:
    """Keep the heads, and find the attempt that all parties will use for each round."""
    told = zip(statements, connection.names, strict=True)
    ledgers = [_LEDGER.decode(statement, name) for statement, name in told]
    heads = [None if words["head"] is None else _valid(words["head"]) for words in ledgers]
    _remember(rank, connection.members, heads)
    rank.attempts = {}
    for words in ledgers:
        for stated in words["attempts"]:
            rank.note_attempt(stated["round"], stated["next"])


def _remember(rank: Rank, members: Sequence[int], heads: Sequence[SignedHead | None]) -> None:
    """Keep the head of each member that has a ledger; see `remember_heads`."""
    if rank.seen is None:
        return
    job = rank.public.job
    stated = zip(members, heads, strict=True)
    rank.seen.remember(
        [_own_head(job, number, head) for number, head in stated if number < job.parties.count]
    )


def _head_in(statement: str) -> SignedHead | None:
    """Return the head that a statement holds, or None if it holds none that its party signed."""
    try:
        return read_head(json.loads(statement))
    except (ValueError, RecursionError, LedgerError):
        # Text that is nested deeper than any head is, among others.
        return None


def _valid(words: Mapping[str, Any]) -> SignedHead | None:
    try:
        return _read(words)
    except LedgerError:
        return None


def _written(head: SignedHead) -> dict[str, Any]:
    """Return the fields of a head as they are told."""
    return {
        "identity": head.identity,
        "public_key": bytes.fromhex(head.public_key),
        "length": head.length,
        "hash": bytes.fromhex(head.hash),
        "signature": bytes.fromhex(head.signature),
    }


def _read(words: Mapping[str, Any]) -> SignedHead:
    """Return a head that was told; LedgerError if its party did not sign it."""
    return SignedHead(
        words["identity"],
        words["public_key"].hex(),
        words["length"],
        words["hash"].hex(),
        words["signature"].hex(),
    )


def _own_head(job: Job, number: int, head: SignedHead | None) -> SignedHead:
    """Return the head that a party stated, of its own ledger."""
    name = job.parties.all_names()[number]
    if head is None:
        raise LedgerError(
            f"{name} stated no valid head of its ledger; the run can't go on without it"
        )
    if head.identity != ledger_identity(job, number):
        raise LedgerError(f"{name} stated the head of another ledger than its own")
    return head
