"""What the parties tell each other of their ledgers, so that none can be cut unseen.

On opening, everybody first states the signed heads that it remembers; each party then opens its
ledger, which must go on from all of them; then everybody states its head as it is now, and
keeps those of the others. With each reserve the new heads go round. Adversary: a party whose
ledger, key or memory was changed or put back; it is named. See `mpcfl/dp/heads.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mpcfl.config import Job
from mpcfl.dp.heads import Claim, SeenHeads, SignedHead, heads_path, read_head
from mpcfl.dp.ledger import Ledger
from mpcfl.errors import ConfigError, LedgerError
from mpcfl.net.roster import check_in
from mpcfl.net.transport import Transport
from mpcfl.parties.setup import Rank, attempt
from mpcfl.report.run_folder import RunFolder


def open_ledgers(
    rank: Rank, transport: Transport, names: tuple[str, ...], folder: RunFolder
) -> None:
    """Open every party's ledger; all ranks call it together.

    Sets the rank's ledger, its memory of the others', and the attempt of each round.

    Raises:
        PartyNotReady: a ledger, a key or a memory is missing, or contradicts another.
    """
    number, private = transport.rank, rank.keeps_ledger
    seen, error = attempt(lambda: _memory(rank, number, folder) if private else None)
    check_in(transport, names, {}, error)
    memory = [asdict(head) for head in seen.all()] if seen is not None else []
    memories = transport.allgather(json.dumps(memory).encode())
    ledger, error = attempt(
        lambda: (
            _open(rank, number, folder, _claims(rank, number, names, memories)) if private else None
        )
    )
    check_in(transport, names, {}, error)
    rank.ledger, rank.seen = ledger, seen
    statements = [text.decode() for text in transport.allgather(_statement(ledger).encode())]
    _, error = attempt(lambda: _take(rank, names, statements))
    check_in(transport, names, {}, error)


def head_statement(rank: Rank) -> str:
    """Return this party's signed head as a statement to all; empty without a ledger."""
    return "" if rank.ledger is None else rank.ledger.signed_head().to_json()


def remember_heads(rank: Rank, names: Sequence[str], statements: Sequence[str]) -> None:
    """Keep the heads that all parties stated; they are on this party's disk when this returns.

    Raises:
        LedgerError: a party stated none, or one that contradicts an earlier one; it is named.
    """
    if rank.seen is None:
        return
    job = rank.public.job
    heads = [_signed(job, number, names, statements[number]) for number in range(job.parties.count)]
    rank.seen.remember(heads)


def ledger_identity(job: Job, number: int) -> str:
    """Return whose ledger it is, and of what."""
    return f"{job.task}/{job.parties.all_names()[number]}"


def _memory(rank: Rank, number: int, folder: RunFolder) -> SeenHeads:
    """Return what this party remembers; a run that is resumed must remember something."""
    path = heads_path(_ledger_path(folder, number))
    if rank.resumed or path.exists():
        return SeenHeads.load(path)
    return SeenHeads(path)


def _claims(
    rank: Rank, number: int, names: Sequence[str], memories: Sequence[bytes]
) -> list[Claim] | None:
    """Return what the peers remember of this party's ledger; None at the start of a run."""
    if not rank.resumed:
        return None
    job = rank.public.job
    identity = ledger_identity(job, number)
    claims = []
    for peer in range(job.parties.count):
        try:
            heads = [read_head(document) for document in json.loads(memories[peer])]
        except (ValueError, TypeError, LedgerError) as error:
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
    if rank.first_round > 0 and ledger.next_attempt(rank.first_round - 1) == 0:
        ledger.close()
        raise LedgerError(
            f"{_ledger_path(folder, number)}: the checkpoint holds round {rank.first_round}, which "
            "this ledger never reserved; one of them is of another run, restore it from a copy"
        )
    return ledger


def _ledger_path(folder: RunFolder, number: int) -> Path:
    try:
        return folder.ledger_jsonl(number)
    except OSError as error:
        raise ConfigError(
            f"{folder.path}: can't make the ledger folder: {error.strerror}; choose another --out"
        ) from None


def _statement(ledger: Ledger | None) -> str:
    if ledger is None:
        return ""
    attempts = {str(round_id): n for round_id, n in ledger.next_attempts.items()}
    return json.dumps({"head": asdict(ledger.signed_head()), "attempts": attempts})


def _take(rank: Rank, names: Sequence[str], statements: Sequence[str]) -> None:
    """Keep the heads, and find the attempt that all parties will use for each round."""
    if rank.ledger is None:
        return
    documents = [json.loads(text or "{}") for text in statements]
    remember_heads(rank, names, [json.dumps(document.get("head")) for document in documents])
    attempts: dict[int, int] = {}
    for document in documents:
        stated: Mapping[str, int] = document.get("attempts", {})
        for key, value in stated.items():
            attempts[int(key)] = max(attempts.get(int(key), 0), value)
    rank.attempts = attempts


def _signed(job: Job, number: int, names: Sequence[str], statement: str) -> SignedHead:
    """Return the head that a party stated, of its own ledger."""
    try:
        head = read_head(json.loads(statement))
    except (ValueError, LedgerError):
        raise LedgerError(
            f"{names[number]} stated no valid head of its ledger; the run can't go on without it"
        ) from None
    if head.identity != ledger_identity(job, number):
        raise LedgerError(f"{names[number]} stated the head of another ledger than its own")
    return head
