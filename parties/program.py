"""What a rank does from start to end: check in, serve every round, agree on the model."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mpcfl.config import Job
from mpcfl.dp.attempts import AttemptLog
from mpcfl.errors import (
    LeftOut,
    MpcflError,
    PartyNotReady,
    ProtocolError,
    TranscriptMismatch,
)
from mpcfl.learn.block_cache import TellProgress, ignore_progress
from mpcfl.learn.model import model_digest
from mpcfl.net.meter import Meter
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.roster import check_in
from mpcfl.net.wire import FLAG, Format, Kind, blob
from mpcfl.parties.connection import Connection
from mpcfl.parties.data_party import bytes_so_far
from mpcfl.parties.events import Ended, Event, Preparing
from mpcfl.parties.joining import agree_on_job, connect
from mpcfl.parties.key_share import KeyFiles, keep_key, require_kept_key
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.progress import Progress, Run
from mpcfl.parties.recorder import Recorder
from mpcfl.parties.rounds import finish, take_part
from mpcfl.parties.setup import Rank, attempt, make_rank, present
from mpcfl.report.checkpoint import load_checkpoint, restore, save_checkpoint
from mpcfl.report.run_folder import RunFolder, RunLock, fresh_run_path, open_run_folder
from mpcfl.report.run_record import RunRecord, read_rounds
from mpcfl.secagg.opened_sum import OpenedSum

# As the file system has it, which may be no text; longer than any system takes.
_FOLDER = Format(Kind.FOLDER, path=blob(1 << 16))
_FINISHED = Format(Kind.FINISHED, finished=FLAG)


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended for its MPI processes.

    Attributes:
        place: of this rank among those who are left.
        has_lost: somebody was lost.
        has_silent: one of them may not be dead.
        has_parted: all who are left know that the run is over.
    """

    place: int = 0
    has_lost: bool = False
    has_silent: bool = False
    has_parted: bool = False


def run_rank(options: Namespace, transport: MpiTransport, tell: Callable[[Event], None]) -> RunEnd:
    """Run this rank's part of a job to its end, from its beginning or from a checkpoint.

    Raises:
        PartyNotReady, TranscriptMismatch: raised by all ranks alike before a round starts.
        MpcflError: this rank can't go on.
    """
    job, numbers = agree_on_job(options, transport)
    with closing(connect(options, job, numbers, transport)) as connection:
        rank = _agree_on_start(job, connection, options, tell)
        folder, lock = _agree_on_folder(options, rank, connection)
        try:
            if options.resume is not None and _agree_on_checkpoint(rank, folder, connection, tell):
                return RunEnd()
            open_ledgers(rank, connection, folder)
            _agree_on_beginning(rank, folder, connection)
            _run_rounds(rank, folder, connection, tell)
            place = connection.transport.rank
            lost, silent = connection.has_lost, connection.has_silent
            return RunEnd(place, lost, silent, has_parted=True)
        finally:
            if lock is not None:
                lock.close()


def _run_rounds(
    rank: Rank, folder: RunFolder, connection: Connection, tell: Callable[[Event], None]
) -> None:
    """Serve every round that is left, and agree on the model that came out."""
    run = _begin(rank, folder, connection, tell)
    try:
        stopped = take_part(run)
        finish(run, stopped)
    except MpcflError as error:
        # Whose place another has taken leaves the folder to that one.
        if run.recorder is not None and not isinstance(error, LeftOut):
            run.recorder.fail(str(error))
        if isinstance(error, PartyNotReady | TranscriptMismatch):
            # Not all ranks need have seen it, as they all do before the first round.
            raise ProtocolError(str(error)) from error
        raise
    finally:
        if rank.party is not None:
            _log_locally(folder, connection.number, rank.party.left_out)
        run.close_session()
        run.attempts.close()
        if rank.ledger is not None:
            rank.ledger.close()


def _begin(
    rank: Rank, folder: RunFolder, connection: Connection, tell: Callable[[Event], None]
) -> Run:
    transcript = None if rank.party is None else folder.transcript_jsonl(connection.number)
    rank.bytes_before = bytes_so_far(connection.transport)
    opened = OpenedSum(rank.public.ring.vector_dim)
    run = Run(
        rank=rank,
        connection=connection,
        folder=folder,
        attempts=AttemptLog(transcript, connection.number),
        progress=Progress(rank.first_round, opened, meter=Meter(parent=connection.transport.meter)),
        make_recorder=lambda start: Recorder(rank, folder, tell, start),
    )
    run.appoint_recorder()
    return run


def _log_locally(folder: RunFolder, rank: int, not_finite: int) -> None:
    """Note what was left out, for this party's eyes; always, and always at the same length.

    The number says something about its data, and so would the mere existence of the file.
    """
    path = folder.path / "local" / f"party-{rank}.log"
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(f"{not_finite:>12} records or updates failed or were not finite: left out\n")


def _agree_on_start(
    job: Job, connection: Connection, options: Namespace, tell: Callable[[Event], None]
) -> Rank:
    def load() -> Rank:
        files = KeyFiles(options.keys, options.passphrases)
        is_first = connection.transport.rank == 0
        progress = _tenths(tell) if is_first else ignore_progress
        return make_rank(job, connection.number, files, progress)

    rank, error = attempt(load, options.debug)
    facts = {}
    if rank is not None:
        facts["plan"] = rank.public.plan.fingerprint()
        facts["threshold key"] = rank.key
        facts["model"] = model_digest(rank.public.model).hex()
    check_in(connection.transport, connection.names, facts, error)
    return present(rank)


def _tenths(tell: Callable[[Event], None]) -> TellProgress:
    """Return what tells people of every further tenth, and no more often."""
    told: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth > told.get(what, -1):
            told[what] = tenth
            tell(Preparing(what, done, total))

    return progress


def _agree_on_folder(
    options: Namespace, rank: Rank, connection: Connection
) -> tuple[RunFolder, RunLock | None]:
    """Let rank 0 make the folder, or take the one to resume, and tell its path to the others."""
    job, transport = rank.public.job, connection.transport
    path: Path = options.resume or options.out or fresh_run_path(job.task)

    def claim() -> RunLock:
        if options.resume is not None:
            require_kept_key(RunFolder(path), rank.key)
            return RunLock(RunFolder(path))
        folder = open_run_folder(path)
        keep_key(folder, rank.key)
        folder.job_json.write_text(json.dumps(job.model_dump(mode="json"), indent=2) + "\n")
        return RunLock(folder)

    lock, error = attempt(claim) if transport.rank == 0 else (None, None)
    check_in(transport, connection.names, {}, error)
    own = os.fsencode(path.resolve()) if transport.rank == 0 else b""
    told = transport.allgather(_FOLDER.encode(path=own))
    agreed = _FOLDER.decode(told[0], connection.names[0])["path"]
    return RunFolder(Path(os.fsdecode(agreed))), lock


def _agree_on_checkpoint(
    rank: Rank, folder: RunFolder, connection: Connection, tell: Callable[[Event], None]
) -> bool:
    """Put the checkpoint in place at every rank; return True if nothing is left to do."""
    transport = connection.transport

    def load() -> str:
        checkpoint = load_checkpoint(folder.checkpoint)
        restore(rank.public, checkpoint)
        rank.resumed, rank.first_round = True, checkpoint.facts.next_round
        if transport.rank == 0:
            # Read here, where an error still reaches all ranks as one sentence.
            read_rounds(folder.rounds_jsonl, rank.first_round)
        return checkpoint.facts.digest()

    digest, error = attempt(load)
    finished: Ended | None = None
    if error is None and transport.rank == 0:
        finished, error = attempt(lambda: _finished(rank, folder))
    check_in(transport, connection.names, {"checkpoint": digest or ""}, error)
    told = transport.allgather(_FINISHED.encode(finished=finished is not None))
    if finished is not None:
        tell(finished)
    return bool(_FINISHED.decode(told[0], connection.names[0])["finished"])


def _finished(rank: Rank, folder: RunFolder) -> Ended | None:
    """Return the end of a run that left nothing to do, not even its report."""
    rounds = rank.public.job.training.rounds
    files = (folder.run_json, folder.model_pt, folder.report_html)
    if rank.first_round < rounds or not all(file.exists() for file in files):
        return None
    record = RunRecord.load(folder.run_json)
    if not record.model_sha256 or len(record.rounds) < rounds:
        return None
    return Ended(
        rounds=rounds,
        epsilon=record.privacy.epsilon,
        epsilon_planned=record.privacy.epsilon_planned,
        delta=rank.public.job.privacy.delta,
        metrics=dict(record.metrics),
        folder=str(folder.path),
        before=True,
    )


def _agree_on_beginning(rank: Rank, folder: RunFolder, connection: Connection) -> None:
    """Write the checkpoint of a new run before its first round can cost anything.

    From here on the run can be resumed: every ledger is there, and every party remembers all.
    """
    error: MpcflError | None = None
    transport = connection.transport
    if transport.rank == 0 and not rank.resumed:
        _, error = attempt(lambda: save_checkpoint(folder.checkpoint, rank.public, 0))
    check_in(transport, connection.names, {}, error)
