"""What a party has spent on one data set over all of its runs, in a ledger of its own.

A party file names the folder, the data set and the total budget. Every charge of a run is
written there first, and then in the run's own ledger, so that a new output folder resets nothing.
The peers that keep such a ledger themselves remember the heads of this one beside it, from run to
run, by the same signed heads as within a run (`mpcfl/dp/heads.py`): a ledger that was cut, or put
back, is refused by whoever has seen more of it.

What is told to others is the head, hence the name of the data set and how many entries there are;
never epsilon. Does not protect against a party that names one data set by two names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcfl.dp.heads import Claim, SeenHeads, SignedHead, heads_path, read_head
from mpcfl.dp.ledger import Ledger
from mpcfl.errors import ConfigError, LedgerError
from mpcfl.net.roster import check_in
from mpcfl.net.wire import Format, Kind, optional, text
from mpcfl.parties.connection import Connection
from mpcfl.parties.setup import Rank, attempt

# One signed head as JSON; a party remembers one for every data set that it has met.
_HEAD_BYTES = 1 << 13
_MEMORY_BYTES = 1 << 22
_MEMORY = Format(Kind.TOTAL_MEMORY, heads=text(_MEMORY_BYTES))
_HEAD = Format(Kind.TOTAL_HEAD, head=optional(text(_HEAD_BYTES)))


def open_total_ledger(rank: Rank, connection: Connection) -> None:
    """Open this party's own ledger, if it keeps one, and have the run's ledger charge it too.

    All ranks call it together, after `open_ledgers`.

    Raises:
        PartyNotReady: raised by all ranks alike: a ledger is damaged, cut, of another budget, or
            somebody has seen more of it.
    """
    transport, names = connection.transport, connection.names
    path = _path(rank)
    seen, error = attempt(lambda: None if path is None else _memory(path))
    check_in(transport, names, {}, error)
    told = transport.allgather(_MEMORY.encode(heads=_to_json(() if seen is None else seen.all())))
    ledger, error = attempt(
        lambda: None if path is None else _open(rank, path, _claims(rank, connection, told))
    )
    check_in(transport, names, {}, error)
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


def _path(rank: Rank) -> Path | None:
    own = None if rank.own is None else rank.own.ledger
    if own is None or not rank.keeps_ledger:
        return None
    return own.folder / f"{own.data_set}-{rank.public.job.privacy.unit}.jsonl"


def _identity(rank: Rank) -> str:
    own = None if rank.own is None else rank.own.ledger
    data_set = "" if own is None else own.data_set
    return f"{rank.names[rank.number]}/{data_set}/{rank.public.job.privacy.unit}"


def _memory(path: Path) -> SeenHeads:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{path.parent}: can't make the ledger folder: {error.strerror}; mend the party file"
        ) from None
    file = heads_path(path)
    return SeenHeads.load(file) if file.exists() else SeenHeads(file)


def _claims(rank: Rank, connection: Connection, told: Sequence[bytes]) -> list[Claim] | None:
    """Return what the peers remember of this party's own ledger; None where nobody does."""
    claims = [
        Claim(name, read_head(words))
        for name, message in zip(connection.names, told, strict=True)
        for words in _from_json(_MEMORY.decode(message, name)["heads"], name)
        if words.get("identity") == _identity(rank)
    ]
    return claims or None


def _open(rank: Rank, path: Path, claims: list[Claim] | None) -> Ledger:
    own = None if rank.own is None else rank.own.ledger
    if own is None:
        raise ConfigError("a party without a ledger of its own can't open it")
    return Ledger.open(path, identity=_identity(rank), budget=own.budget, claims=claims)


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
