"""What a rank does from start to end: check in, serve every round, agree on the model."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mpcfl import __version__
from mpcfl.config import Job
from mpcfl.errors import ConfigError, MpcflError
from mpcfl.learn.model import model_digest
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.roster import agree_run_id, check_in
from mpcfl.parties.aggregator import agree_without_model, run_aggregator
from mpcfl.parties.data_party import Hooks, agree_on_model, run_data_party
from mpcfl.parties.events import Ended, Event
from mpcfl.parties.key_share import KeyFiles, keep_key, require_kept_key
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.recorder import Recorder
from mpcfl.parties.resume import Request
from mpcfl.parties.rules import check_job, check_ranks, rank_names
from mpcfl.parties.setup import Rank, T, attempt, make_rank
from mpcfl.report.checkpoint import load_checkpoint, restore, save_checkpoint
from mpcfl.report.run_folder import RunFolder, RunLock, fresh_run_path, open_run_folder
from mpcfl.report.run_record import RunRecord, read_rounds
from mpcfl.round import sum_settings


def run_rank(options: Namespace, transport: MpiTransport, tell: Callable[[Event], None]) -> None:
    """Run this rank's part of a job to its end, from its beginning or from a checkpoint.

    Raises:
        PartyNotReady, TranscriptMismatch: raised by all ranks alike before a round starts.
        MpcflError: this rank can't go on.
    """
    job = _agree_on_job(options, transport)
    rank = _agree_on_start(job, transport, options)
    folder, lock = _agree_on_folder(options, rank, transport)
    try:
        if options.resume is not None and _agree_on_checkpoint(rank, folder, transport, tell):
            return
        open_ledgers(rank, transport, transport.names, folder)
        _agree_on_beginning(rank, folder, transport)
        _run_rounds(rank, folder, transport, tell)
    finally:
        if lock is not None:
            lock.close()


def _run_rounds(
    rank: Rank, folder: RunFolder, transport: MpiTransport, tell: Callable[[Event], None]
) -> None:
    """Serve every round that is left, and agree on the model that came out."""
    run_id = agree_run_id(transport)
    secure = rank.open_backend(transport, sum_settings(rank.public, run_id))
    if rank.party is None:
        with closing(secure):
            run_aggregator(rank.public.job.training.rounds - rank.first_round, secure, transport)
        agree_without_model(transport, transport.names)
        return
    recorder = Recorder(rank, folder, tell) if transport.rank == 0 else None
    hooks = Hooks(recorder.applied, recorder.after_round) if recorder else Hooks()
    try:
        stopped = run_data_party(rank, secure, transport, hooks)
    except MpcflError as error:
        if recorder:
            recorder.fail(str(error))
        raise
    finally:
        _log_locally(folder, transport.rank, rank.party.left_out)
        secure.close()
    if rank.ledger is not None:
        rank.ledger.close()
    digest = agree_on_model(rank, transport, transport.names)
    if recorder:
        recorder.finish(digest, stopped)


def _log_locally(folder: RunFolder, rank: int, not_finite: int) -> None:
    """Note what was left out, for this party's eyes; always, and always at the same length.

    The number says something about its data, and so would the mere existence of the file.
    """
    path = folder.path / "local" / f"party-{rank}.log"
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(f"{not_finite:>12} records or updates failed or were not finite: left out\n")


def _agree_on_job(options: Namespace, transport: MpiTransport) -> Job:
    request = Request(options.job, options.overrides, options.parties, options.resume, options.out)

    def load() -> Job:
        job = request.load()
        check_ranks(job, transport.n_ranks)
        check_job(job, options.insecure)
        return job

    job, error = attempt(load, options.debug)
    if job is not None:
        transport.deadline_s = job.aggregation.deadline_s
        transport.names = rank_names(job)
    digest = "" if job is None else job.digest().hex()
    check_in(transport, transport.names, {"version": __version__, "job": digest}, error)
    return _present(job)


def _agree_on_start(job: Job, transport: MpiTransport, options: Namespace) -> Rank:
    def load() -> Rank:
        files = KeyFiles(options.keys, options.passphrases)
        return make_rank(job, transport.rank, files)

    rank, error = attempt(load, options.debug)
    facts = {}
    if rank is not None:
        facts["plan"] = rank.public.plan.fingerprint()
        facts["threshold key"] = rank.key
        facts["model"] = model_digest(rank.public.model).hex()
    check_in(transport, transport.names, facts, error)
    return _present(rank)


def _agree_on_folder(
    options: Namespace, rank: Rank, transport: MpiTransport
) -> tuple[RunFolder, RunLock | None]:
    """Let rank 0 make the folder, or take the one to resume, and tell its path to the others."""
    job = rank.public.job
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
    check_in(transport, transport.names, {}, error)
    paths = transport.allgather(str(path.resolve()).encode())
    return RunFolder(Path(paths[0].decode())), lock


def _agree_on_checkpoint(
    rank: Rank, folder: RunFolder, transport: MpiTransport, tell: Callable[[Event], None]
) -> bool:
    """Put the checkpoint in place at every rank; return True if nothing is left to do."""

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
    check_in(transport, transport.names, {"checkpoint": digest or ""}, error)
    told = transport.allgather(b"" if finished is None else b"finished")
    if finished is not None:
        tell(finished)
    return told[0] != b""


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


def _agree_on_beginning(rank: Rank, folder: RunFolder, transport: MpiTransport) -> None:
    """Write the checkpoint of a new run before its first round can cost anything.

    From here on the run can be resumed: every ledger is there, and every party remembers all.
    """
    error: MpcflError | None = None
    if transport.rank == 0 and not rank.resumed:
        _, error = attempt(lambda: save_checkpoint(folder.checkpoint, rank.public, 0))
    check_in(transport, transport.names, {}, error)


def _present(value: T | None) -> T:
    if value is None:
        raise ConfigError("a rank that can't start must have said so")
    return value
