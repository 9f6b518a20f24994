"""The privacy ledger: what one party has spent on one data set, written before it is spent.

Events, in the order of an attempt: *reserve* before the first byte leaves, *open* when the sum
is known, *commit* when it is used; *abandon* if it failed. A reserve counts as spent for ever,
whatever became of its attempt: a party that died may have opened the sum. The ledger holds
events, not epsilons, so that epsilon is always the composition of everything, under today's
accountant. It is never rewound and holds no secret: no noise, update, count or metric.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mpcfl.dp.account import Account, replayed
from mpcfl.dp.accountant import AccountantKind, accountant_kind
from mpcfl.dp.chain import ChainFile, Torn, read_chain
from mpcfl.dp.charge import Budget, Charge, planned_charge, realised_charge
from mpcfl.errors import BudgetExceeded, LedgerError, OutOfOrder

__all__ = [
    "Budget",
    "Charge",
    "Ledger",
    "LedgerReport",
    "Token",
    "planned_charge",
    "realised_charge",
    "verify_ledger",
]


@dataclass(frozen=True, slots=True)
class Token:
    """Names one reserve of one ledger."""

    sequence: int


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What a ledger says about itself.

    Attributes:
        entries: finished lines.
        unresolved: reserves without commit or abandon; they count as spent.
        torn_last_line: a crash left an unfinished line; counted as one more of the last reserve,
            unless it can't have been one. Before the first reserve it is counted with that one.
        epsilon: spent so far, rounded up.
        identity: of the data set and party.
        budget: total budget, if there is one.
        accountant: the theorems in use.
    """

    entries: int
    unresolved: int
    torn_last_line: bool
    epsilon: float
    identity: str
    budget: Budget | None
    accountant: AccountantKind


class Ledger:
    """One party's ledger, open and locked. Use `Ledger.open`; close it or use ``with``."""

    def __init__(self, chain: ChainFile, account: Account) -> None:
        self._chain = chain
        self._account = account

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        identity: str,
        budget: Budget | None,
        accountant: AccountantKind | str = AccountantKind.PLD,
    ) -> Self:
        """Open a ledger, or make a new one.

        Args:
            path: the file; its folder must exist.
            identity: of the party and its data set; a ledger of another one is refused.
            budget: total budget; None for a run without privacy, which reserves nothing.
            accountant: the theorems in use; can't be changed later.

        Raises:
            LedgerError: damaged, locked, or of another identity, budget or accountant.
        """
        header = {
            "identity": identity,
            "budget": None if budget is None else asdict(budget),
            "accountant": accountant_kind(accountant).value,
        }
        chain = ChainFile(Path(path))
        try:
            account = replayed(chain.entries, chain.path)
            ledger = cls(chain, account)
            ledger._recover(header)
        except BaseException:  # the lock is released whatever went wrong, then passed on
            chain.close()
            raise
        return ledger

    def _recover(self, header: dict[str, Any]) -> None:
        """Write the header of a new ledger, or check an old one, and mend an unfinished line."""
        torn = self._chain.torn
        known = self._account.header
        for key in known:
            if known[key] != header[key]:
                raise LedgerError(
                    f"{self._chain.path}: this ledger has {key} {known[key]!r}, the run "
                    f"{header[key]!r}; use the ledger of this run's data set"
                )
        torn_body = None if torn is None else _torn_body(torn, self._account)
        self._chain.drop_torn()
        if not known:
            self._append("header", header)
        if torn_body is not None:
            self._append("torn", torn_body)

    def _append(self, kind: str, body: dict[str, Any]) -> int:
        entry = self._chain.append(kind, body)
        self._account.replay(entry)
        return entry.sequence

    def reserve(self, charge: Charge) -> Token:
        """Charge an attempt, before its first byte leaves.

        Raises:
            BudgetExceeded: the charge would pass the budget; nothing was written.
            LedgerError: there is no budget, or the disk refused.
        """
        budget = self._account.budget
        if budget is None:
            raise LedgerError(f"{self._chain.path}: a ledger without a budget takes no charge")
        epsilon_after = self._account.epsilon_with(charge)
        if epsilon_after > budget.epsilon:
            raise BudgetExceeded(epsilon_after, budget.epsilon)
        return Token(self._append("reserve", {"charge": asdict(charge)}))

    def opened(self, token: Token) -> None:
        """Note that the sum of this attempt is known.

        Raises:
            OutOfOrder: the attempt was opened before, or is over.
        """
        if self._pending(token)[1]:
            raise OutOfOrder("this attempt was opened before; an attempt has one opening")
        self._append("open", {"reserve": token.sequence})

    def commit(self, token: Token, realised: Charge | None = None) -> None:
        """Close an attempt whose sum was used.

        Args:
            token: of the reserve.
            realised: what was really released, `realised_charge`. Without sampling it replaces
                the planned charge; with sampling it is only recorded.

        Raises:
            OutOfOrder: the attempt was not opened, or is over.
        """
        charge, opened = self._pending(token)
        if not opened:
            raise OutOfOrder("an attempt must be opened before it is committed")
        if realised is not None and realised.sample_rate != charge.sample_rate:
            raise LedgerError("the realised charge has another sample rate than the reserve")
        body = None if realised is None else asdict(realised)
        self._append("commit", {"reserve": token.sequence, "realised": body})

    def abandon(self, token: Token) -> None:
        """Close an attempt that failed; it stays spent, since others may have opened it."""
        self._pending(token)
        self._append("abandon", {"reserve": token.sequence})

    def _pending(self, token: Token) -> tuple[Charge, bool]:
        if token.sequence not in self._account.pending:
            raise OutOfOrder("this attempt is over or was never reserved in this ledger")
        return self._account.pending[token.sequence]

    def epsilon(self) -> float:
        """Return what is spent, unresolved reserves included, rounded up; 0 without a budget."""
        return self._account.epsilon()

    def next_attempt(self, round_id: int) -> int:
        """Return the attempt number that a retry of this round must use."""
        return self._account.attempts[round_id]

    @property
    def head(self) -> tuple[int, str]:
        """Return (length, hash of the last entry); who remembers it notices a cut.

        No peer remembers it in this version.
        """
        return self._chain.head

    def close(self) -> None:
        """Release the lock; harmless if called twice."""
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _torn_body(torn: Torn, account: Account) -> dict[str, Any]:
    charged = account.may_be_reserve(torn.content)
    last = account.last_charge
    return {
        "size_bytes": len(torn.content),
        "sha256": hashlib.sha256(torn.content).hexdigest(),
        "charge": asdict(last) if charged and last is not None else None,
        "owed": charged and last is None,
    }


def verify_ledger(path: Path | str) -> LedgerReport:
    """Check a ledger without changing or locking it.

    Unresolved reserves and one unfinished last line are reported and counted as spent.

    Raises:
        LedgerError: the file can't be read, or the chain is not intact; names file, line, reason.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: can't read the ledger: {error.strerror}") from None
    entries, torn = read_chain(content, path)
    if not entries and torn is None:
        raise LedgerError(f"{path}: the file is empty, so it is not a ledger")
    account = replayed(entries, path)
    more = account.last_charge if torn and account.may_be_reserve(torn.content) else None
    return LedgerReport(
        entries=len(entries),
        unresolved=len(account.pending),
        torn_last_line=torn is not None,
        epsilon=account.epsilon(*([] if more is None else [more])),
        identity=account.header.get("identity", ""),
        budget=account.budget,
        accountant=accountant_kind(account.header.get("accountant", "pld")),
    )
