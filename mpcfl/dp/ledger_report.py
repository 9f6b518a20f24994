"""What a ledger says of itself, for people: read only, so that a run that goes on is not disturbed.

A ledger is held against every signed head of it that lies in its folder: this party's own, and,
where all parties write into one folder, those that the peers keep. Heads elsewhere are not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpcfl.dp.account import replayed
from mpcfl.dp.accountant import AccountantKind, accountant_kind
from mpcfl.dp.chain import read_chain
from mpcfl.dp.charge import Budget
from mpcfl.dp.heads import ChainState, Claim, seen_in
from mpcfl.dp.ledger_key import LedgerKey, key_path
from mpcfl.errors import LedgerError


@dataclass(frozen=True, slots=True)
class SeenBy:
    """A head that a file of heads holds, and that the ledger goes on from."""

    file: str
    entries: int


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What a ledger says about itself.

    Attributes:
        entries: finished lines.
        rounds: rounds that were reserved, once or more often.
        attempts: charged attempts, every retry and a torn reserve included.
        unresolved: reserves without commit or abandon; they count as spent.
        torn_last_line: a crash left an unfinished line; counted as one more of the last reserve,
            unless it can't have been one. Before the first reserve it is counted with that one.
        epsilon: spent so far, rounded up.
        identity: of the data set and party.
        budget: total budget, if there is one.
        accountant: the theorems in use.
        heads_seen: signed heads of this ledger that lie in its folder.
    """

    entries: int
    rounds: int
    attempts: int
    unresolved: int
    torn_last_line: bool
    epsilon: float
    identity: str
    budget: Budget | None
    accountant: AccountantKind
    heads_seen: tuple[SeenBy, ...]


def verify_ledger(path: Path | str) -> LedgerReport:
    """Check a ledger, and the heads of it that lie in its folder, without changing or locking it.

    Unresolved reserves and one unfinished last line are reported and counted as spent.

    Raises:
        LedgerError: the file can't be read, the chain is not intact, somebody signed or saw
            more of it, or the key beside it is another ledger's; names file, line and reason.
    """
    path = Path(path)
    # Before the ledger, which may be growing: whatever they hold is in it by now.
    seen = seen_in(path.parent)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: can't read the ledger: {error.strerror}") from None
    entries, torn = read_chain(content, path)
    if not entries and torn is None:
        raise LedgerError(f"{path}: the file is empty, so it is not a ledger")
    account = replayed(entries, path)
    identity = account.header.get("identity", "")
    claims = [Claim(file.path.name, head) for file in seen if (head := file.of(identity))]
    hashes = [entry.hash for entry in entries]
    public_key = account.header.get("public_key")
    _require_key(path, public_key)
    ChainState(path, public_key, hashes).require(claims)
    more = account.last_charge if torn and account.may_be_reserve(torn.content) else None
    return LedgerReport(
        entries=len(entries),
        rounds=len(account.next_attempts),
        attempts=account.charges + (more is not None),
        unresolved=len(account.pending),
        torn_last_line=torn is not None,
        epsilon=account.epsilon(*([] if more is None else [more])),
        identity=identity,
        budget=account.budget,
        accountant=accountant_kind(account.header.get("accountant", "pld")),
        heads_seen=tuple(SeenBy(claim.witness, claim.head.length) for claim in claims),
    )


def _require_key(path: Path, public_key: str | None) -> None:
    """Refuse a ledger whose key lies beside it and is another one's: it took another's place."""
    beside = key_path(path)
    if beside.exists() and LedgerKey.load(beside).public_key != public_key:
        raise LedgerError(
            f"{path}: this ledger is not the one that {beside.name} signs for; put back the "
            "ledger that belongs there"
        )
