"""The privacy ledger: what one party has spent on one data set, written before it is spent.

Events, in the order of an attempt: *reserve* before the first byte leaves, *open* when the sum
is known, *commit* when it is used; *abandon* if it failed. A reserve counts as spent for ever,
whatever became of its attempt: a party that died may have opened the sum. The ledger holds
events, not epsilons, so that epsilon is always the composition of everything, under today's
accountant. It is never rewound and holds no secret: no noise, update, count or metric.

A ledger that was cut still verifies by itself; signed heads (`heads.py`), which others keep,
tell. What is missing, changed or contradicted by any of them is refused, never mended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mpcfl.dp.account import Account, replayed
from mpcfl.dp.accountant import AccountantKind, accountant_kind
from mpcfl.dp.chain import ChainFile, Torn
from mpcfl.dp.charge import Budget, Charge, planned_charge, realised_charge
from mpcfl.dp.heads import ChainState, Claim, SeenHeads, SignedHead, heads_path
from mpcfl.dp.ledger_key import LedgerKey, key_path
from mpcfl.dp.ledger_report import LedgerReport, SeenBy, verify_ledger
from mpcfl.errors import BudgetExceeded, LedgerError, OutOfOrder, TotalBudgetExceeded

__all__ = [
    "Budget",
    "Charge",
    "Ledger",
    "LedgerReport",
    "SeenBy",
    "Token",
    "planned_charge",
    "realised_charge",
    "verify_ledger",
]


@dataclass(frozen=True, slots=True)
class Token:
    """Names one reserve of one ledger."""

    sequence: int


class Ledger:
    """One party's ledger, open and locked. Use `Ledger.open`; close it or use ``with``."""

    def __init__(self, chain: ChainFile, account: Account) -> None:
        self._chain = chain
        self._account = account
        self._key: LedgerKey | None = None
        # The party's ledger over all runs, and its tokens by those of this one.
        self._total: Ledger | None = None
        self._total_tokens: dict[Token, Token] = {}

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        identity: str,
        budget: Budget | None,
        accountant: AccountantKind | str = AccountantKind.PLD,
        claims: Sequence[Claim] | None = None,
    ) -> Self:
        """Open a ledger, or make a new one.

        Args:
            path: the file; its folder must exist.
            identity: of the party and its data set; a ledger of another one is refused.
            budget: total budget; None for a run without privacy, which reserves nothing.
            accountant: the theorems in use; can't be changed later.
            claims: what the peers remember of this ledger, which must then be there and go on
                from all of it; None where nobody was asked.

        Raises:
            LedgerError: damaged, cut, missing, locked, without its key, or of another identity,
                budget or accountant. The file is then as it was.
        """
        header = {
            "identity": identity,
            "budget": None if budget is None else asdict(budget),
            "accountant": accountant_kind(accountant).value,
        }
        path = Path(path)
        _require_file(path, claims)
        chain = ChainFile(path, create=claims is None)
        try:
            ledger = cls(chain, replayed(chain.entries, chain.path))
            ledger._check(header, claims)
            ledger._recover(header)
        except BaseException:  # the lock is released whatever went wrong, then passed on
            chain.close()
            raise
        return ledger

    def _check(self, header: Mapping[str, Any], claims: Sequence[Claim] | None) -> None:
        """Compare a ledger with this run, its key, and what anybody remembers of it."""
        path, known = self._chain.path, self._account.header
        if not known and claims is not None:
            raise LedgerError(f"{path}: the ledger is empty; restore it from a copy")
        for key, value in header.items() if known else ():
            if known[key] != value:
                raise LedgerError(
                    f"{path}: this ledger has {key} {known[key]!r}, the run {value!r}; use the "
                    "ledger of this run's data set"
                )
        public_key = known.get("public_key")
        if public_key is not None or key_path(path).exists():
            self._key = LedgerKey.load(key_path(path))
        if self._key is not None and public_key not in {None, self._key.public_key}:
            raise LedgerError(
                f"{key_path(path)}: this is the key of another ledger; restore the one that "
                "belongs to it from a copy"
            )
        state = ChainState(path, public_key, [entry.hash for entry in self._chain.entries])
        state.require([*_own_claims(path, header["identity"]), *(claims or ())])

    def _recover(self, header: dict[str, Any]) -> None:
        """Mend an unfinished line; give a key, and a new ledger its header."""
        torn = self._chain.torn
        torn_body = None if torn is None else _torn_body(torn, self._account)
        if self._key is None:
            self._key = LedgerKey.make(key_path(self._chain.path))
        self._chain.drop_torn()
        public_key = {"public_key": self._key.public_key}
        if not self._account.header:
            self._append("header", {**header, **public_key})
        elif "public_key" not in self._account.header:
            self._append("key", public_key)
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
            LedgerError: there is no budget, the charge is for another privacy unit than those
                before it, or the disk refused.
        """
        budget = self._account.budget
        if budget is None:
            raise LedgerError(f"{self._chain.path}: a ledger without a budget takes no charge")
        try:
            self._account.check_unit(charge)
        except ValueError as error:
            raise LedgerError(f"{self._chain.path}: {error}") from None
        epsilon_after = self._account.epsilon_with(charge)
        if epsilon_after > budget.epsilon:
            raise BudgetExceeded(epsilon_after, budget.epsilon)
        # The party's own first: whatever happens in between, it has no less than this one.
        total_token = None if self._total is None else self._reserve_in_total(charge)
        token = Token(self._append("reserve", {"charge": asdict(charge)}))
        if total_token is not None:
            self._total_tokens[token] = total_token
        return token

    def charge_also(self, total: Ledger) -> None:
        """Write all that is charged from now on in the party's own ledger too, and there first.

        Args:
            total: over all runs on the party's data set; closed with this one.
        """
        self._total = total

    @property
    def total(self) -> Ledger | None:
        """Return the party's own ledger over all runs, if it keeps one."""
        return self._total

    def _reserve_in_total(self, charge: Charge) -> Token | None:
        if self._total is None:
            return None
        try:
            return self._total.reserve(charge)
        except BudgetExceeded as error:
            raise TotalBudgetExceeded(error.epsilon_after, error.epsilon_budget) from None

    def opened(self, token: Token) -> None:
        """Note that the sum of this attempt is known.

        Raises:
            OutOfOrder: the attempt was opened before, or is over.
        """
        if self._pending(token)[1]:
            raise OutOfOrder("this attempt was opened before; an attempt has one opening")
        if self._total is not None and token in self._total_tokens:
            self._total.opened(self._total_tokens[token])
        self._append("open", {"reserve": token.sequence})

    def commit(self, token: Token, realised: Charge | None = None) -> None:
        """Close an attempt whose sum was used.

        Args:
            token: of the reserve.
            realised: what was really released, `realised_charge`. It replaces the planned
                charge where the noise is Gaussian and nothing is sampled; else it is only
                recorded.

        Raises:
            OutOfOrder: the attempt was not opened, or is over.
        """
        charge, opened = self._pending(token)
        if not opened:
            raise OutOfOrder("an attempt must be opened before it is committed")
        if realised is not None and _kind(realised) != _kind(charge):
            raise LedgerError(
                "the realised charge has another sample rate, mechanism or number of releases "
                "than the reserve"
            )
        body = None if realised is None else asdict(realised)
        # Here the party's own comes last: what was realised may cost less than what was planned.
        self._append("commit", {"reserve": token.sequence, "realised": body})
        if self._total is not None and token in self._total_tokens:
            self._total.commit(self._total_tokens.pop(token), realised)

    def abandon(self, token: Token) -> None:
        """Close an attempt that failed; it stays spent, since others may have opened it."""
        self._pending(token)
        self._append("abandon", {"reserve": token.sequence})
        if self._total is not None and token in self._total_tokens:
            self._total.abandon(self._total_tokens.pop(token))

    def _pending(self, token: Token) -> tuple[Charge, bool]:
        if token.sequence not in self._account.pending:
            raise OutOfOrder("this attempt is over or was never reserved in this ledger")
        return self._account.pending[token.sequence]

    def epsilon(self) -> float:
        """Return what is spent, unresolved reserves included, rounded up; 0 without a budget."""
        return self._account.epsilon()

    def next_attempt(self, round_id: int) -> int:
        """Return one more than the largest attempt of this round, or 0 if there is none."""
        return self._account.next_attempts.get(round_id, 0)

    @property
    def next_attempts(self) -> Mapping[int, int]:
        """Return `next_attempt` of every round that was reserved."""
        return dict(self._account.next_attempts)

    @property
    def charges(self) -> int:
        """Return how many attempts were charged, whatever became of them."""
        return self._account.charges

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._chain.path

    @property
    def head(self) -> tuple[int, str]:
        """Return (length, hash of the last entry); who remembers it notices a cut."""
        return self._chain.head

    def signed_head(self) -> SignedHead:
        """Return the head in this party's own words, for others to remember."""
        if self._key is None:
            raise ValueError("use Ledger.open")
        return self._key.sign(self._account.header["identity"], self.head)

    def close(self) -> None:
        """Release the lock, and that of the party's own; harmless if called twice."""
        self._chain.close()
        if self._total is not None:
            self._total.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _require_file(path: Path, claims: Sequence[Claim] | None) -> None:
    """Refuse to begin a new ledger where there was one."""
    leftovers = (key_path(path), heads_path(path))
    if not path.exists() and (claims is not None or any(file.exists() for file in leftovers)):
        raise LedgerError(
            f"{path}: the ledger is missing; restore it from a copy; what was spent stays spent"
        )


def _own_claims(path: Path, identity: str) -> list[Claim]:
    """Return what this party itself remembers of its ledger."""
    file = heads_path(path)
    head = SeenHeads.load(file).of(identity) if file.exists() else None
    return [] if head is None else [Claim(file.name, head)]


def _kind(charge: Charge) -> tuple[float, str, int]:
    return charge.sample_rate, charge.mechanism, charge.times


def _torn_body(torn: Torn, account: Account) -> dict[str, Any]:
    charged = account.may_be_reserve(torn.content)
    last = account.last_charge
    return {
        "size_bytes": len(torn.content),
        "sha256": hashlib.sha256(torn.content).hexdigest(),
        "charge": asdict(last) if charged and last is not None else None,
        "owed": charged and last is None,
    }
