"""Where a run begins: at round 0, or after the newest checkpoint that any of its hosts has.

Where parties keep folders of their own, a crash may leave one a round behind the others, and one
that was lost many. The lowest party with the newest checkpoint gives it to them: it is public
state, travels sealed, and is checked as any checkpoint is. No times travel with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpcfl.errors import MpcflError
from mpcfl.net.roster import check_in
from mpcfl.net.transport import Transport
from mpcfl.net.wire import FLAG, U64, Format, Kind, blob
from mpcfl.parties.connection import Connection
from mpcfl.parties.events import Ended, Event
from mpcfl.parties.folders import RunPlace
from mpcfl.parties.setup import Rank, attempt
from mpcfl.report.checkpoint import (
    incoming_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
    stored_checkpoint,
)
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import (
    RoundRecord,
    RunRecord,
    read_rounds,
    replace_rounds,
    round_lines,
)

_FINISHED = Format(Kind.FINISHED, finished=FLAG)
_CHECKPOINT = Format(Kind.CHECKPOINT, kept=FLAG, next_round=U64)
_PART_BYTES = 1 << 26
_PART = Format(Kind.CHECKPOINT_PART, last=FLAG, content=blob(_PART_BYTES))


def agree_on_checkpoint(
    rank: Rank, place: RunPlace, connection: Connection, tell: Callable[[Event], None]
) -> bool:
    """Put the newest checkpoint in place at every rank; return True if nothing is left to do.

    Raises:
        PartyNotReady, TranscriptMismatch: raised by all ranks alike: a checkpoint is damaged, or
            those of two hosts are of different runs.
    """
    transport, folder = connection.transport, place.folder
    begun, error = attempt(lambda: _run_of(folder))
    check_in(transport, connection.names, {"checkpoint": begun or ""}, error)
    if not place.is_shared_by_all:
        _bring_up_to_date(place, connection)

    def load() -> str:
        checkpoint = load_checkpoint(folder.checkpoint)
        restore(rank.public, checkpoint)
        rank.resumed, rank.first_round = True, checkpoint.facts.next_round
        if connection.number in place.keepers:
            # Read here, where an error still reaches all ranks as one sentence.
            read_rounds(folder.rounds_jsonl, rank.first_round)
        return checkpoint.facts.digest()

    digest, error = attempt(load)
    finished: Ended | None = None
    writes = connection.number in place.keepers and rank.party is not None
    if error is None and writes:
        finished, error = attempt(lambda: _finished(rank, folder))
    check_in(transport, connection.names, {"checkpoint": digest or ""}, error)
    told = transport.allgather(_FINISHED.encode(finished=finished is not None or not writes))
    is_over = all(_FINISHED.decode(answer)["finished"] for answer in told)
    if is_over and finished is not None and transport.rank == 0:
        tell(finished)
    return is_over


def agree_on_beginning(rank: Rank, place: RunPlace, connection: Connection) -> None:
    """Write the checkpoint of a new run before its first round can cost anything.

    From here on the run can be resumed: every ledger is there, and every party remembers all.
    """
    error: MpcflError | None = None

    def begin() -> None:
        place.folder.run_id.write_text(connection.view.run_id + "\n", encoding="utf-8")
        save_checkpoint(place.folder.checkpoint, rank.public, 0)

    if connection.number in place.keepers and not rank.resumed:
        _, error = attempt(begin)
    check_in(connection.transport, connection.names, {}, error)


def _run_of(folder: RunFolder) -> str:
    """Return which run a folder is of; two runs of one job must not be mixed."""
    return folder.run_id.read_text(encoding="utf-8").strip() if folder.run_id.exists() else ""


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


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Who gives its checkpoint to whom, by seat."""

    giver: int
    takers: tuple[int, ...]
    next_round: int


def _bring_up_to_date(place: RunPlace, connection: Connection) -> None:
    """Give the newest checkpoint to every folder that has an older one."""
    transport, own = connection.transport, connection.transport.rank
    keeps = connection.number in place.keepers
    kept, error = (
        attempt(lambda: load_checkpoint(place.folder.checkpoint).facts) if keeps else (None, None)
    )
    check_in(transport, connection.names, {}, error)
    statement = _CHECKPOINT.encode(
        kept=kept is not None, next_round=0 if kept is None else kept.next_round
    )
    told = [_CHECKPOINT.decode(message) for message in transport.allgather(statement)]
    rounds = {seat: words["next_round"] for seat, words in enumerate(told) if words["kept"]}
    newest = max(rounds.values())
    delivery = _Delivery(
        giver=min(seat for seat, known in rounds.items() if known == newest),
        takers=tuple(seat for seat, known in rounds.items() if known < newest),
        next_round=newest,
    )
    ready, error = (
        attempt(lambda: _ready(place.folder, newest)) if own == delivery.giver else (None, None)
    )
    check_in(transport, connection.names, {}, error)
    if ready is not None:
        _give(ready, transport, delivery.takers)
    _, error = (
        attempt(lambda: _take(place.folder, transport, delivery))
        if own in delivery.takers
        else (None, None)
    )
    check_in(transport, connection.names, {}, error)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a giver sends: a file, and two texts."""

    vectors: Path
    rounds: str
    facts: str


def _ready(folder: RunFolder, newest: int) -> _Ready:
    known = read_rounds(folder.rounds_jsonl, newest)
    # How long this party took, and how much memory, is its own affair.
    public = [replace(record, seconds={}, peak_rss_bytes=0) for record in known]
    vectors, facts = stored_checkpoint(folder.checkpoint)
    return _Ready(vectors, round_lines(public), facts.read_text(encoding="utf-8"))


def _give(ready: _Ready, transport: Transport, takers: tuple[int, ...]) -> None:
    with ready.vectors.open("rb") as stream:
        _send(transport, takers, iter(lambda: stream.read(_PART_BYTES), b""))
    for text in (ready.rounds, ready.facts):
        content = text.encode()
        parts = (content[at : at + _PART_BYTES] for at in range(0, len(content), _PART_BYTES))
        _send(transport, takers, parts)


def _send(transport: Transport, takers: tuple[int, ...], parts: Iterator[bytes]) -> None:
    for content in parts:
        message = _PART.encode(last=False, content=content)
        transport.exchange(dict.fromkeys(takers, message), [])
    transport.exchange(dict.fromkeys(takers, _PART.encode(last=True, content=b"")), [])


def _receive(transport: Transport, giver: int) -> Iterator[bytes]:
    while True:
        words = _PART.decode(transport.exchange({}, [giver])[giver])
        if words["last"]:
            return
        yield words["content"]


def _take(folder: RunFolder, transport: Transport, delivery: _Delivery) -> None:
    """Put another party's checkpoint in the place of this one's, the rounds that lack included."""
    vectors, rounds, facts = (_receive(transport, delivery.giver) for _ in range(3))
    try:
        own = read_rounds(folder.rounds_jsonl, delivery.next_round)
        with incoming_checkpoint(folder.checkpoint, delivery.next_round) as incoming:
            for content in vectors:
                incoming.vectors.write(content)
            lines = b"".join(rounds).decode()
            incoming.facts = b"".join(facts).decode()
    finally:
        # Whatever failed here, the giver sends all of it.
        for left in (vectors, rounds, facts):
            for _ in left:
                pass
    _add_rounds(folder, lines, own, delivery.next_round)


def _add_rounds(folder: RunFolder, lines: str, own: Sequence[RoundRecord], next_round: int) -> None:
    told = folder.checkpoint / "told-rounds.jsonl"
    told.write_text(lines, encoding="utf-8")
    rounds = {record.round: record for record in read_rounds(told, next_round)}
    told.unlink()
    rounds |= {record.round: record for record in own}
    replace_rounds(folder.rounds_jsonl, [rounds[number] for number in sorted(rounds)])
