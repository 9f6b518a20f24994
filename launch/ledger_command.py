"""`mpcfl ledger`: read a privacy ledger, check its chain, print what it adds up to."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from mpcfl.dp.ledger import verify_ledger


def show_ledger(file: Path, *, as_json: bool) -> None:
    """Verify and print a ledger.

    Raises:
        LedgerError: it can't be read, or its chain is broken; the text names file and line.
    """
    report = verify_ledger(file)
    if as_json:
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
        return
    for name, value in asdict(report).items():
        sys.stdout.write(f"{name.replace('_', ' ')}: {value}\n")
