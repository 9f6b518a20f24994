"""What a rank does from start to end: check in, serve every round, agree on the model."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from mpcfl.net.roster import check_in
from mpcfl.parties.checkpoints import agree_on_beginning, agree_on_checkpoint
from mpcfl.parties.connection import Connection
from mpcfl.parties.credentials import read_own_file
from mpcfl.parties.data_party import bytes_so_far
from mpcfl.parties.events import Event, Preparing
from mpcfl.parties.folders import RunPlace, agree_on_folder
from mpcfl.parties.joining import agree_on_job, connect
from mpcfl.parties.key_share import KeyFiles
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.progress import Progress, Run
from mpcfl.parties.recorder import Recorder
from mpcfl.parties.rounds import finish, take_part
from mpcfl.parties.setup import Rank, attempt, located_task, make_rank, present
from mpcfl.parties.total_ledger import open_total_ledger
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.tracker_choice import read_choices
from mpcfl.secagg.opened_sum import OpenedSum

if TYPE_CHECKING:
    # Loading it starts MPI, which parties in one process do without.
    from mpcfl.net.mpi import MpiTransport


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
        with closing(agree_on_folder(options, rank, connection)) as place:
            if options.resume is not None and agree_on_checkpoint(rank, place, connection, tell):
                return RunEnd()
            open_ledgers(rank, connection, place.folder)
            open_total_ledger(rank, connection, place.folder)
            agree_on_beginning(rank, place, connection)
            serve_rounds(rank, place, connection, tell)
            seat = connection.transport.rank
            lost, silent = connection.has_lost, connection.has_silent
            return RunEnd(seat, lost, silent, has_parted=True)


def serve_rounds(
    rank: Rank, place: RunPlace, connection: Connection, tell: Callable[[Event], None]
) -> None:
    """Serve every round that is left, and agree on the model that came out."""
    run = _begin(rank, place, connection, tell)
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
            _log_locally(place.folder, rank, rank.party.left_out)
        run.close_session()
        run.attempts.close()
        if rank.ledger is not None:
            rank.ledger.close()


def _begin(
    rank: Rank, place: RunPlace, connection: Connection, tell: Callable[[Event], None]
) -> Run:
    folder = place.folder
    transcript = None if rank.party is None else folder.transcript_jsonl(connection.number)
    rank.bytes_before = bytes_so_far(connection.transport)
    opened = OpenedSum(rank.public.ring.vector_dim)
    run = Run(
        rank=rank,
        connection=connection,
        place=place,
        attempts=AttemptLog(transcript, connection.number),
        progress=Progress(rank.first_round, opened, meter=Meter(parent=connection.transport.meter)),
        # Of those who write on several hosts one speaks to people.
        make_recorder=lambda start: Recorder(
            rank, folder, lambda event: tell(event) if run.speaks else None, start
        ),
    )
    run.appoint_recorder()
    return run


def _log_locally(folder: RunFolder, rank: Rank, not_finite: int) -> None:
    """Note what was left out, for this party's eyes; always, and always at the same length.

    The number says something about its data, and so would the mere existence of the file.
    """
    path = folder.path / "local" / f"party-{rank.number}.log"
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    words = f"{not_finite:>12} records or updates failed or were not finite: left out\n"
    total = None if rank.ledger is None else rank.ledger.total
    if total is not None:
        words += (
            f"{total.epsilon():>12.4f} epsilon spent on this data set in all runs: {total.path}\n"
        )
    path.write_text(words)


def _agree_on_start(
    job: Job, connection: Connection, options: Namespace, tell: Callable[[Event], None]
) -> Rank:
    def load() -> Rank:
        files = KeyFiles(options.keys, options.passphrases)
        is_first = connection.transport.rank == 0
        progress = _tenths(tell) if is_first else ignore_progress
        number = connection.number
        own = read_own_file(options, connection.names[connection.transport.rank])
        data = own.data if own is not None and number < job.parties.count else None
        loaded = make_rank(job, number, files, progress, located_task(job, data))
        loaded.own, loaded.trackers = own, read_choices(options.track)
        return loaded

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
