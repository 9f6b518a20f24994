"""What a rank does from start to end: check in, serve every round, agree on the model."""

from __future__ import annotations

import json
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mpcfl import __version__
from mpcfl.config import Job, load_job
from mpcfl.errors import ConfigError, MpcflError
from mpcfl.learn.model import model_digest
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.roster import agree_run_id, check_in
from mpcfl.parties.aggregator import agree_without_model, run_aggregator
from mpcfl.parties.data_party import agree_on_model, run_data_party
from mpcfl.parties.events import Event
from mpcfl.parties.recorder import Recorder
from mpcfl.parties.rules import check_job, check_ranks, rank_names
from mpcfl.parties.setup import Rank, make_rank, open_ledger
from mpcfl.report.run_folder import RunFolder, fresh_run_path, open_run_folder
from mpcfl.round import sum_settings

T = TypeVar("T")


def run_rank(options: Namespace, transport: MpiTransport, tell: Callable[[Event], None]) -> None:
    """Run this rank's part of a job to its end.

    Raises:
        PartyNotReady, TranscriptMismatch: raised by all ranks alike before a round starts.
        MpcflError: this rank can't go on.
    """
    job = _agree_on_job(options, transport)
    rank = _agree_on_start(job, transport, options.debug)
    folder = _agree_on_folder(options.out, rank, transport)
    run_id = agree_run_id(transport)
    secure = rank.open_backend(transport, sum_settings(rank.public, run_id))
    if rank.party is None:
        run_aggregator(job.training.rounds, secure, transport)
        secure.close()
        agree_without_model(transport, transport.names)
        return
    recorder = Recorder(rank, folder, tell) if transport.rank == 0 else None
    after_round = recorder.after_round if recorder else lambda *_: None
    try:
        stopped = run_data_party(rank, secure, transport, after_round)
    except MpcflError as error:
        if recorder:
            recorder.fail(str(error))
        raise
    finally:
        _log_locally(folder, transport.rank, rank.party.not_finite)
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
    def load() -> Job:
        job = load_job(options.job, options.overrides, options.parties)
        check_ranks(job, transport.n_ranks)
        check_job(job, options.insecure)
        return job

    job, error = _attempt(load, options.debug)
    if job is not None:
        transport.deadline_s = job.aggregation.deadline_s
        transport.names = rank_names(job)
    digest = "" if job is None else job.digest().hex()
    check_in(transport, transport.names, {"version": __version__, "job": digest}, error)
    return _present(job)


def _agree_on_start(job: Job, transport: MpiTransport, debug: bool) -> Rank:
    rank, error = _attempt(lambda: make_rank(job, transport.rank), debug)
    facts = {}
    if rank is not None:
        facts["plan"] = rank.public.plan.fingerprint()
        facts["model"] = model_digest(rank.public.model).hex()
    check_in(transport, transport.names, facts, error)
    return _present(rank)


def _agree_on_folder(out: Path | None, rank: Rank, transport: MpiTransport) -> RunFolder:
    """Let rank 0 make the folder and tell its path to the others; open the ledgers in it."""
    job, path = rank.public.job, out or fresh_run_path(rank.public.job.task)
    error: MpcflError | None = None
    if transport.rank == 0:
        claimed, error = _attempt(lambda: open_run_folder(path), debug=False)
        if claimed is not None:
            claimed.job_json.write_text(json.dumps(job.model_dump(mode="json"), indent=2) + "\n")
    check_in(transport, transport.names, {}, error)
    paths = transport.allgather(str(path.resolve()).encode())
    folder = RunFolder(Path(paths[0].decode()))
    rank.ledger, error = _attempt(lambda: open_ledger(rank, transport.rank, folder), debug=False)
    check_in(transport, transport.names, {}, error)
    return folder


def _attempt(make: Callable[[], T], debug: bool) -> tuple[T | None, MpcflError | None]:
    """Return what ``make`` returns, or its error in a form that all ranks may see."""
    try:
        return make(), None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a task is foreign code
        if debug:
            traceback.print_exc()
        if isinstance(error, MpcflError):
            return None, error
        # Its text may hold data of this party.
        name = type(error).__name__
        return None, ConfigError(f"the task or its data failed with {name}; --debug shows where")


def _present(value: T | None) -> T:
    if value is None:
        raise ConfigError("a rank that can't start must have said so")
    return value
