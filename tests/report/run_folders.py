"""Run folders as they are while somebody writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpcfl.config import parse_job
from mpcfl.report.run_folder import RunFolder, RunLock
from mpcfl.report.run_record import SCHEMA, PrivacyRecord, RoundRecord, RunRecord, append_round

NAMES = ("north", "south", "east", "west")


def record(number: int, **changes: Any) -> RoundRecord:
    fields: dict[str, Any] = {
        "round": number,
        "attempt": 0,
        "parties": NAMES,
        "epsilon": 0.5 + 0.0625 * number,
        "accuracy": 1 - 0.75 / number,
        "loss": 1 / number,
        "seconds": {"train": 0.25, "open": 0.5},
        "bytes_sent": 2048 + number,
        "bytes_received": 2048,
        "peak_rss_bytes": 1 << 20,
    }
    return RoundRecord(**(fields | changes))


def make_folder(path: Path, rounds: int = 0, *, unit: str = "record", **tables: Any) -> RunFolder:
    """Make the folder of a run that has some rounds behind it."""
    document: dict[str, Any] = {
        "task": "digits",
        "parties": {"count": 4, "names": NAMES, "max_dropout": 1},
        "privacy": {"unit": "none"},
        "training": {"rounds": 20},
        "aggregation": {"backend": "ring"},
    }
    if unit == "record":
        document["privacy"] = {
            "unit": "record", "epsilon": 4.0, "records": 1437, "sample_rate": 0.2,
            "spare_attempts": 3,
        }  # fmt: skip
    for name, table in tables.items():
        document[name] = document[name] | table
    folder = RunFolder(path)
    folder.checkpoint.mkdir(parents=True)
    job = parse_job(document, "inline").model_dump(mode="json")
    folder.job_json.write_text(json.dumps(job))
    # What a live view must never show.
    for name in ("local", "ledger"):
        (path / name).mkdir()
        (path / name / "party-0.jsonl").write_text("SECRET-OF-NORTH")
    for number in range(1, rounds + 1):
        privacy: dict[str, Any] = {} if unit == "record" else {"epsilon": None}
        append_round(folder.rounds_jsonl, record(number, **privacy))
    return folder


def run_record(folder: RunFolder, rounds: int, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "job": json.loads(folder.job_json.read_text()),
        "backend": "ring",
        "parties": 4,
        "dim": 650,
        "privacy": PrivacyRecord("record", 1.75, 4.0, 1.0, 1.0, 9.0, 1e-5, "x", "pld", "y"),
        "metrics": {"accuracy": 0.9375, "loss": 0.25},
        "rounds": tuple(record(number) for number in range(1, rounds + 1)),
        "model_sha256": "ab" * 32,
        "versions": {},
        "stopped_early": None,
        "plan": {},
    }
    return RunRecord(**(fields | changes))


@contextmanager
def held(folder: RunFolder) -> Iterator[RunFolder]:
    """Hold a folder as a run does that goes on."""
    lock = RunLock(folder)
    try:
        yield folder
    finally:
        lock.close()
