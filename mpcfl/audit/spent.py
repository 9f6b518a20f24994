"""What a privacy ledger has paid for, attempt by attempt, for the oracle of recovery.

Read only; the whole ledger is checked and added up as `mpcfl ledger` does it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcfl.dp.account import replayed
from mpcfl.dp.chain import Entry, read_chain
from mpcfl.dp.ledger_report import verify_ledger

AttemptId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Spent:
    """One ledger.

    Attributes:
        path: its file.
        epsilon: what it says is spent, rounded up; an unfinished last line included.
        reserves: place of the reserve of every attempt that it names.
        contributors: parties in the sum of every attempt that it closed with what was realised.
        entries: its finished lines.
    """

    path: Path
    epsilon: float
    reserves: Mapping[AttemptId, int]
    contributors: Mapping[AttemptId, int]
    entries: Sequence[Entry]

    def epsilon_of(self, attempts: Collection[AttemptId]) -> float:
        """Return epsilon of some of its attempts as if they were all, rounded up."""
        chosen = {self.reserves[attempt] for attempt in attempts}
        kept = [
            entry
            for entry in self.entries
            if entry.sequence in chosen
            or entry.kind in {"header", "key"}
            or entry.body.get("reserve") in chosen
        ]
        return replayed(kept, self.path).epsilon()


def read_spent(path: Path) -> Spent | None:
    """Read a ledger, and check its chain and the heads of it that lie beside it.

    Returns:
        What it paid for; None if it has no budget, as there is nothing to pay for then.

    Raises:
        LedgerError: it can't be read or is not intact; names file, line and reason.
    """
    report = verify_ledger(path)
    entries, _ = read_chain(path.read_bytes(), path)
    reserves, contributors = {}, {}
    for entry in entries:
        if entry.kind == "reserve":
            charge = entry.body["charge"]
            reserves[charge["round_id"], charge["attempt"]] = entry.sequence
        elif entry.kind == "commit" and entry.body["realised"] is not None:
            charge = entry.body["realised"]
            contributors[charge["round_id"], charge["attempt"]] = charge["contributors"]
    if report.budget is None:
        return None
    return Spent(path, report.epsilon, reserves, contributors, entries)
