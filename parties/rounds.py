"""All rounds of a run at one rank, whatever happens to other parties meanwhile.

A loss never ends a round by itself: the survivors agree on who they are, share what any of them
knows of the round's sum, and ask again for what nobody knows, as far as the plan's `max_dropout`
and `spare_attempts` go. Where they don't, the run stops with the names of those who are missing.
"""

from __future__ import annotations

from mpcfl.errors import PartyLost, QuorumLost, RunOver
from mpcfl.net.wire import Format, Kind
from mpcfl.parties.data_party import agree_on_model, open_product, play_round
from mpcfl.parties.holdings import share_holdings
from mpcfl.parties.progress import Run
from mpcfl.report.run_record import is_complete

# How often a round is tried again although everybody is there: then the deadline is too short.
_MOST_FALSE_ALARMS = 3
_WRITTEN = Format(Kind.WRITTEN)


def take_part(run: Run) -> str | None:
    """Take part in every round that is left, or in as many as the budget allows.

    Returns:
        Why the run stopped before its last round, or None.

    Raises:
        QuorumLost: too few parties are left to open a sum; names those who are missing.
        MpcflError: the run can't go on.
    """
    _sign_first_view(run)
    rounds = run.rank.public.job.training.rounds
    while run.progress.round_id < rounds:
        try:
            stop = play_round(run)
        except QuorumLost:
            raise
        except PartyLost as lost:
            _recover(run, lost)
            continue
        if stop is not None:
            return stop
    return None


def _sign_first_view(run: Run) -> None:
    """Sign who takes part from the beginning; who is lost in here is lost as in a round."""
    if run.rank.party is not None:
        run.attempts.view(0, run.data_members, run.connection.view.digest)
    try:
        with run.progress.meter.stage("view"):
            run.connection.confirm()
    except QuorumLost:
        raise
    except PartyLost as lost:
        _recover(run, lost)


def finish(run: Run, stopped: str | None) -> None:
    """Agree on the model, write it down, and leave together.

    Raises:
        QuorumLost: too few parties are left, and the folder is not complete.
        MpcflError: the models differ, or the folder can't be written.
    """
    run.connection.hurry()
    lost: PartyLost | None = None
    while True:
        try:
            if lost is not None:
                _recover(run, lost)
            _finish(run, stopped)
        except RunOver:
            # Whoever was the first to know has written the folder, and had compared all models.
            break
        except QuorumLost:
            # All else is done: whoever died meanwhile changes nothing.
            if _is_written_here(run) and not is_complete(run.folder.run_json):
                raise
            break
        except PartyLost as again:
            lost = again
            continue
        break
    if run.recorder is not None and run.speaks:
        run.recorder.tell_end()
    with run.progress.meter.stage("finish"):
        run.connection.part()


def _finish(run: Run, stopped: str | None) -> None:
    with run.progress.meter.stage("finish"):
        digest = agree_on_model(run.rank, run.connection.transport, run.connection.names)
        if run.recorder is not None:
            run.recorder.finish(digest, stopped)
        if not run.place.is_shared_by_all:
            # Nobody tells of the end before every host has its results.
            run.connection.transport.allgather(_WRITTEN.encode())
        if not run.speaks:
            run.connection.await_end(witness=min(run.data_members))


def _is_written_here(run: Run) -> bool:
    """Tell whether a party with data writes the folder on this host."""
    return any(number < run.rank.public.job.parties.count for number in run.place.sharers)


def _recover(run: Run, lost: PartyLost) -> None:
    """Go on with those who are left, all of them knowing what any of them knows."""
    progress, parties = run.progress, run.rank.public.job.parties
    stage = f"in stage {progress.meter.current}" if progress.meter.current else "between stages"
    where = f" ({stage} of round {progress.round_id + 1})"
    if parties.max_dropout == 0:
        raise QuorumLost(str(lost) + where, lost.ranks) from lost
    before = run.connection.members
    while True:
        try:
            run.connection.recover(lost)
            gone = tuple(number for number in before if number not in run.connection.members)
            progress.false_alarms += not gone
            if progress.false_alarms > _MOST_FALSE_ALARMS:
                raise QuorumLost(str(lost), lost.ranks)
            _note_loss(run, gone)
            before = run.connection.members
            if share_holdings(run):
                open_product(run)
        except QuorumLost as error:
            raise type(error)(str(error) + where, error.ranks) from error
        except PartyLost as again:
            lost = again
            continue
        return


def _note_loss(run: Run, gone: tuple[int, ...]) -> None:
    """Write down who is left, and see to it that one of them writes the run's folder."""
    view, names = run.connection.view, run.rank.names
    lost = tuple(names[number] for number in gone)
    run.progress.lost += lost
    if run.rank.party is not None:
        run.attempts.view(view.epoch, run.data_members, view.digest)
    run.appoint_recorder()
    if run.recorder is not None and lost:
        left = tuple(names[number] for number in run.data_members)
        run.recorder.after_loss(run.progress.round_id, lost, left)
