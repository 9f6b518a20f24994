"""What is wrong with a job in which a party was killed: its words, its record, its accounts."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

from jobs import Ended
from trials import NAMES, ROUNDS, Trial

from mpcfl.audit.transcript import check_run
from mpcfl.dp import verify_ledger
from mpcfl.errors import MpcflError

# A run with a dead party has to be over by then, however busy the machine is.
DEADLINE_S = 60.0


def judge(trial: Trial, ended: Ended, folder: Path) -> Iterator[str]:
    """Yield what is wrong with a job that has ended."""
    if ended.code is None:
        yield f"it was not over after {DEADLINE_S:g} s"
        return
    has_met = (folder / "met").exists()
    if trial.point is not None and not has_met:
        yield "its point was never reached"
    if "Traceback" in ended.stderr:
        yield "a traceback"
    if "done: " in ended.stdout:
        yield from _judge_finished(trial, ended, folder / "out")
        yield from _judge_attempts(trial, folder / "out")
    else:
        yield from _judge_stopped(trial, ended, folder / "out", has_met)
    # Before its first checkpoint a run has cost nothing, and its ledgers may be half made.
    if (folder / "out" / "checkpoint").exists():
        yield from _judge_accounts(folder / "out")


def _judge_finished(trial: Trial, ended: Ended, out: Path) -> Iterator[str]:
    if ended.code != 0:
        yield f"it finished with exit code {ended.code}"
    if ended.lingered and trial.signal == signal.SIGKILL:
        yield "parties were still there seconds after the run was over"
    record = json.loads((out / "run.json").read_text())
    if record["stopped_early"] is not None or not record["model_sha256"]:
        yield "run.json is not that of a whole run"
    if [entry["round"] for entry in record["rounds"]] != list(range(1, ROUNDS + 1)):
        yield "run.json lacks a round"
    survivors = [name for rank, name in enumerate(NAMES) if rank != trial.rank]
    for entry in record["rounds"]:
        parties = entry["parties"]
        if parties not in (list(NAMES), survivors):
            yield f"round {entry['round']} names {parties}"
        if trial.point is not None and entry["round"] != trial.round_id:
            expected = survivors if entry["round"] > trial.round_id else list(NAMES)
            if parties != expected:
                yield f"round {entry['round']} names {parties}, not {expected}"
    is_told = f"{trial.victim} was lost" in ended.stdout
    if trial.point is not None and trial.round_id < ROUNDS and not is_told:
        yield "nobody was told of the loss"


def _judge_stopped(trial: Trial, ended: Ended, out: Path, has_met: bool) -> Iterator[str]:
    errors = [line for line in ended.stderr.splitlines() if "mpcfl: error: " in line]
    transcripts = [path.read_text() for path in (out / "transcript").glob("party-*.jsonl")]
    began = any('"kind":"charge"' in text for text in transcripts)
    if not has_met:
        yield f"it stopped although nobody was killed: {errors}"
    if not any(trial.victim in line for line in errors):
        yield f"it stopped without the name of who is missing: {errors}"
    if began and not trial.is_needed:
        yield f"it stopped, and three parties could have gone on: {errors}"


def _judge_attempts(trial: Trial, out: Path) -> Iterator[str]:
    """A round whose sum stood when the party died has had one attempt."""
    if trial.point is None or trial.kind.name not in trial.point.stands_under:
        return
    for path in sorted((out / "transcript").glob("party-*.jsonl")):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            begins = (event["kind"], event.get("round_id")) == ("begin", trial.round_id - 1)
            if begins and event["attempt"] > 0:
                yield f"{path.stem} asked again for a sum that stood"


def _judge_accounts(out: Path) -> Iterator[str]:
    """Ledgers are whole, charge for all that was begun, and the transcripts keep the rules."""
    try:
        for path in sorted((out / "ledger").glob("party-*.jsonl")):
            verify_ledger(path)
        for violation in check_run(out):
            yield f"the transcripts: {violation}"
    except MpcflError as error:
        yield f"a ledger: {error}"
