"""`mpcfl ledger`: read a privacy ledger, check its chain, print what it adds up to."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from mpcfl.dp.ledger import LedgerReport, verify_ledger


def show_ledger(file: Path, *, as_json: bool) -> None:
    """Verify and print a ledger, held against the signed heads of it that lie in its folder.

    Raises:
        LedgerError: it can't be read, its chain is broken, or somebody saw more of it; the text
            names the file, the line or the witness, and the remedy.
    """
    report = verify_ledger(file)
    if as_json:
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
        return
    for name, value in _rows(report).items():
        sys.stdout.write(f"{name}: {value}\n")


def _rows(report: LedgerReport) -> dict[str, str]:
    """Return what a person wants to know, in words."""
    retries = report.attempts - report.rounds
    rows = {
        "identity": report.identity,
        "entries": str(report.entries),
        "rounds": f"{report.rounds}, {report.attempts} attempts charged",
        "unresolved": f"{report.unresolved} (count as spent)",
        "torn last line": "yes (counts as spent)" if report.torn_last_line else "no",
    }
    if retries > 0:
        rows["rounds"] += f", {retries} of them retries"
    if report.budget is not None:
        budget = report.budget
        rows["epsilon"] = f"{report.epsilon:.6g} of {budget.epsilon:.6g} at delta {budget.delta:g}"
        rows["accountant"] = report.accountant.value
    else:
        rows["epsilon"] = "no budget, nothing can be charged"
    seen = [f"{head.file} (entry {head.entries})" for head in report.heads_seen]
    rows["goes on from the heads in"] = ", ".join(seen) or "no file: none lies in this folder"
    return rows
