"""Adds up the entries of a ledger: what is spent, and which reserves are still pending."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from mpcfl.config import Unit
from mpcfl.dp.accountant import Mechanism, Releases, accountant_kind, composed_epsilon
from mpcfl.dp.chain import Entry
from mpcfl.dp.charge import Budget, Charge
from mpcfl.errors import LedgerError

# What the writer of a chain puts first in a line that can't cost anything.
_FREE_EVENT = re.compile(rb'\{"schema":\d+,"sequence":\d+,"kind":"(open|commit|abandon)"')


# Noise multiplier, sample rate and mechanism: equal releases are composed together.
_Kind = tuple[float, float, str]


class Account:
    """The state that the entries of a chain add up to.

    Attributes:
        header: what the first line states, and the public key if a later one adds it.
        spent: how many releases of each kind.
        pending: reserves that are not resolved, by their place, and whether each was opened.
        charges: attempts that were charged, unfinished lines included.
        next_attempts: by round, the number of its next attempt.
    """

    def __init__(self) -> None:
        self.header: dict[str, Any] = {}
        self.spent: Counter[_Kind] = Counter()
        self.pending: dict[int, tuple[Charge, bool]] = {}
        self.last_charge: Charge | None = None
        self.charges = 0
        self.next_attempts: dict[int, int] = {}
        # Unfinished lines before the first reserve: each will be charged as a copy of it.
        self.owed = 0

    @property
    def budget(self) -> Budget | None:
        """Return the total budget that the header states, if there is one."""
        return Budget(**self.header["budget"]) if self.header.get("budget") else None

    def replay(self, entry: Entry) -> None:
        """Take one entry into account; ValueError, KeyError or TypeError if it makes no sense."""
        if (entry.kind == "header") != (entry.sequence == 0):
            raise ValueError("a ledger has one header, on its first line")
        body = entry.body
        match entry.kind:
            case "header":
                self.header = dict(body)
            case "key":
                self._introduce(body["public_key"])
            case "reserve":
                self._reserve(entry.sequence, _charge_from(body["charge"]))
            case "open":
                charge, opened = self.pending[body["reserve"]]
                if opened:
                    raise ValueError("one reserve was opened twice")
                self.pending[body["reserve"]] = (charge, True)
            case "commit":
                self._commit(*self.pending.pop(body["reserve"]), body["realised"])
            case "abandon":
                del self.pending[body["reserve"]]
            case "torn":
                if body["charge"] is not None:
                    self._spend(_charge_from(body["charge"]), 1)
                    self.charges += 1
                elif body.get("owed", True):
                    self.owed += 1
            case _:
                raise ValueError(f"{entry.kind!r} is not a kind of entry")

    def _introduce(self, public_key: str) -> None:
        """Give a key to a ledger that was begun without one."""
        if self.header.get("public_key") is not None:
            raise ValueError("a ledger has one key")
        self.header["public_key"] = public_key

    def check_unit(self, charge: Charge) -> None:
        """Refuse a charge for another privacy unit; ValueError.

        Figures for records and for parties don't add up: a party-level release costs a record
        more, and a record-level release says nothing of a party.
        """
        if self.last_charge is not None and charge.unit is not self.last_charge.unit:
            raise ValueError(
                f"this ledger counts privacy per {self.last_charge.unit}, the charge is per "
                f"{charge.unit}; keep a ledger for each unit"
            )

    def _reserve(self, sequence: int, charge: Charge) -> None:
        self.check_unit(charge)
        self.pending[sequence] = (charge, False)
        self.last_charge = charge
        known = self.next_attempts.get(charge.round_id, 0)
        self.next_attempts[charge.round_id] = max(known, charge.attempt + 1)
        self._spend(charge, 1 + self.owed)
        self.charges += 1 + self.owed
        self.owed = 0

    def _commit(self, planned: Charge, opened: bool, realised: dict[str, Any] | None) -> None:
        if not opened:
            raise ValueError("a commit without an open")
        # The planned worst case stands, except that unequal Gaussian releases without sampling
        # compose exactly (Gaussian DP): there, what was really released replaces it.
        if realised is not None and _is_exact(planned):
            charge = _charge_from(realised)
            if not _is_exact(charge):
                raise ValueError("what was realised is of another kind than what was reserved")
            self._spend(planned, -1)
            self._spend(charge, 1)

    def _spend(self, charge: Charge, count: int) -> None:
        self.spent[_kind(charge)] += count * charge.times

    def may_be_reserve(self, torn: bytes) -> bool:
        """Tell whether an unfinished line may have been a reserve, pending ones or not.

        Nothing left this party before its reserve was finished; the charge is for the reader
        who can't know that. It is a copy of the last reserve, else of the first one to come.
        """
        # The first line is the header; of the others, only what names its kind is let off.
        return bool(self.header) and _FREE_EVENT.match(torn) is None

    def epsilon_with(self, charge: Charge) -> float:
        """Return epsilon after one more reserve, with what is owed since before the first."""
        return self.epsilon(*[charge] * (1 + self.owed))

    def epsilon(self, *more: Charge) -> float:
        """Return epsilon of all that is spent, and of ``more``."""
        budget = self.budget
        if budget is None:
            return 0.0
        counts = self.spent.copy()
        for charge in more:
            counts[_kind(charge)] += charge.times
        releases = [Releases(z, q, count, of) for (z, q, of), count in sorted(counts.items())]
        return composed_epsilon(releases, budget.delta, accountant_kind(self.header["accountant"]))


def _kind(charge: Charge) -> _Kind:
    return charge.noise_multiplier, charge.sample_rate, str(charge.mechanism)


def _is_exact(charge: Charge) -> bool:
    return charge.sample_rate == 1.0 and charge.mechanism == Mechanism.DISCRETE_GAUSSIAN


def _charge_from(body: dict[str, Any]) -> Charge:
    return Charge(**{**body, "unit": Unit(body["unit"])})


def replayed(entries: list[Entry], path: Path) -> Account:
    """Add up a checked chain; LedgerError names the line if its events make no sense."""
    account = Account()
    for entry in entries:
        try:
            account.replay(entry)
        except (ValueError, KeyError, TypeError, LedgerError) as error:
            reason = "it names no pending reserve" if isinstance(error, KeyError) else error
            raise LedgerError(f"{path}: line {entry.sequence + 1}: {reason}") from None
    return account
