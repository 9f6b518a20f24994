"""What a party has spent on one data set over all of its runs, in a ledger of its own.

A party file names the folder, the data set and the total budget. Every charge of a run is
written there first, and then in the run's own ledger, so that a new output folder resets nothing.
The peers that keep such a ledger themselves remember the heads of this one beside it, from run to
run, by the same signed heads as within a run (`mpcfl/dp/heads.py`): a ledger that was cut, or put
back, is refused by whoever has seen more of it.

What is told to others is the head, hence the name of the data set and how many entries there are;
never epsilon, and nothing of ledgers of parties that are not in the run. One data set has one
privacy unit, since figures of two don't add up.

Does not protect against a party that names one data set by two names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcfl.config import Unit
from mpcfl.dp.heads import Claim, SeenHeads, SignedHead, heads_path, read_head, seen_in
from mpcfl.dp.ledger import Ledger, verify_ledger
from mpcfl.errors import ConfigError, LedgerError
from mpcfl.net.roster import check_in
from mpcfl.net.wire import Format, Kind, optional, text
from mpcfl.parties.connection import Connection
from mpcfl.parties.setup import Rank, attempt
from mpcfl.report.run_folder import RunFolder

# One signed head as JSON; a party remembers one for every data set that it has met.
_HEAD_BYTES = 1 << 13
_MEMORY_BYTES = 1 << 22
_MEMORY = Format(Kind.TOTAL_MEMORY, heads=text(_MEMORY_BYTES))
_HEAD = Format(Kind.TOTAL_HEAD, head=optional(text(_HEAD_BYTES)))


def open_total_ledger(rank: Rank, connection: Connection, folder: RunFolder) -> None:
    """Open this party's own ledger, if it keeps one, and have the run's ledger charge it too.

    All ranks call it together, after `open_ledgers`.

    Args:
        rank: this one.
        connection: to all others.
        folder: of the run; a run that is resumed goes on in the same ledger.

    Raises:
        PartyNotReady: raised by all ranks alike: a ledger is damaged, cut, of another budget, or
            somebody has seen more of it.
    """
    transport, names = connection.transport, connection.names
    path, error = attempt(lambda: _path(rank, folder))
    check_in(transport, names, {}, error)
    known, error = attempt(lambda: () if path is None else _remembered(path.parent, rank.names))
    check_in(transport, names, {}, error)
    told = transport.allgather(_MEMORY.encode(heads=_to_json(known or ())))
    opened, error = attempt(
        lambda: None if path is None else _open(rank, path, _claims(rank, connection, told))
    )
    check_in(transport, names, {}, error)
    ledger, seen = (None, None) if opened is None else opened
    head = None if ledger is None else ledger.signed_head().to_json()
    stated = transport.allgather(_HEAD.encode(head=head))
    if ledger is not None and rank.ledger is not None:
        rank.ledger.charge_also(ledger)
        rank.total_seen = seen
    heads = [_HEAD.decode(message)["head"] for message in stated]
    _, error = attempt(lambda: remember_total_heads(rank, connection.members, heads))
    check_in(transport, names, {}, error)


def total_head(rank: Rank) -> str | None:
    """Return the signed head of this party's own ledger as JSON; None if it keeps none."""
    total = None if rank.ledger is None else rank.ledger.total
    return None if total is None else total.signed_head().to_json()


def remember_total_heads(rank: Rank, members: Sequence[int], heads: Sequence[str | None]) -> None:
    """Keep the heads that members stated of their own ledgers, if this party keeps one itself.

    Raises:
        LedgerError: a head is none, another party's, or contradicts an earlier one.
    """
    if rank.total_seen is None:
        return
    found = []
    for number, text_of in zip(members, heads, strict=True):
        if text_of is not None:
            found.append(_head_of(rank.names[number], text_of))
    rank.total_seen.remember(found)


def _head_of(name: str, statement: str) -> SignedHead:
    try:
        head = read_head(json.loads(statement))
    except (ValueError, RecursionError, LedgerError):
        raise LedgerError(
            f"{name} stated no valid head of its own ledger; the run can't go on without it"
        ) from None
    if not head.identity.startswith(f"{name}/"):
        raise LedgerError(f"{name} stated the head of another party's ledger")
    return head


def _path(rank: Rank, folder: RunFolder) -> Path | None:
    """Return the file of this party's own ledger; None where its party file has none.

    Raises:
        ConfigError: there is one, and the job could spend past it or begin another; or the run
            was begun with another one.
    """
    if rank.party is None:
        return None
    own = None if rank.own is None else rank.own.ledger
    _require_same(rank, folder, "" if own is None else own.data_set)
    if own is None:
        return None
    unit = rank.public.job.privacy.unit
    if rank.budget is None:
        raise ConfigError(
            "the party file has a [ledger], and this job asks for no privacy: it would spend "
            "without limit; set privacy.unit, or leave [ledger] out for data that need none"
        )
    for other in Unit:
        if other is not unit and (own.folder / f"{own.data_set}-{other}.jsonl").exists():
            raise LedgerError(
                f"the data set {own.data_set} was charged per {other} before, and this job hides a "
                f"{unit}: figures of two units don't add up to one budget; keep to the first"
            )
    return own.folder / f"{own.data_set}-{unit}.jsonl"


def _require_same(rank: Rank, folder: RunFolder, data_set: str) -> None:
    """Note, for this party's eyes, on which ledger a run goes; or hold it against what was noted.

    Raises:
        ConfigError: the run was begun on another ledger, on one, or on none.
    """
    note = folder.path / "local" / f"party-{rank.number}.ledger"
    if not rank.resumed:
        note.parent.mkdir(exist_ok=True)
        note.touch(mode=0o600)
        note.write_text(data_set + "\n", encoding="utf-8")
        return
    begun = note.read_text(encoding="utf-8").strip() if note.exists() else ""
    if begun != data_set:
        raise ConfigError(
            "this run was begun with another [ledger] in the party file, or with one where there "
            "is none now; bring the party file that it was begun with"
        )


def _identity(rank: Rank) -> str:
    own = None if rank.own is None else rank.own.ledger
    data_set = "" if own is None else own.data_set
    return f"{rank.names[rank.number]}/{data_set}/{rank.public.job.privacy.unit}"


def _remembered(folder: Path, names: Sequence[str]) -> tuple[SignedHead, ...]:
    """Return the heads that this party has seen of those who take part, of whichever data set.

    What it has seen in runs with others stays here.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{folder}: can't make the ledger folder: {error.strerror}; mend the party file"
        ) from None
    heads = (head for seen in seen_in(folder) for head in seen.all())
    return tuple(head for head in heads if head.identity.partition("/")[0] in names)


def _claims(rank: Rank, connection: Connection, told: Sequence[bytes]) -> list[Claim] | None:
    """Return what the peers remember of this party's own ledger; None where nobody does."""
    claims = [
        Claim(name, read_head(words))
        for name, message in zip(connection.names, told, strict=True)
        for words in _from_json(_MEMORY.decode(message, name)["heads"], name)
        if words.get("identity") == _identity(rank)
    ]
    return claims or None


def _open(rank: Rank, path: Path, claims: list[Claim] | None) -> tuple[Ledger, SeenHeads]:
    """Open the ledger, and, once nobody else writes it, what this party remembers beside it."""
    own = None if rank.own is None else rank.own.ledger
    if own is None:
        raise ConfigError("a party without a ledger of its own can't open it")
    # A crash may have left a file without a first line.
    is_begun = path.exists() and path.stat().st_size > 0
    if is_begun and verify_ledger(path).budget not in {None, own.budget}:
        # Without the figures: all parties read this.
        raise LedgerError(
            f"{own.data_set}: the ledger was begun with another budget than [ledger] of the party "
            "file has now; a budget that was set stays as it is"
        )
    ledger = Ledger.open(path, identity=_identity(rank), budget=own.budget, claims=claims)
    try:
        file = heads_path(path)
        return ledger, SeenHeads.load(file) if file.exists() else SeenHeads(file)
    except BaseException:  # the lock is released whatever went wrong, then passed on
        ledger.close()
        raise


def _to_json(heads: Sequence[SignedHead]) -> str:
    return json.dumps([json.loads(head.to_json()) for head in heads])


def _from_json(content: str, sender: str) -> list[Mapping[str, Any]]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(words, dict) for words in found):
        raise LedgerError(f"{sender} told something else than the heads that it has seen")
    return found
