"""Whole parties of one run, a thread each, whose folders and party files are their own."""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from parties_in_threads import DyingNetwork, connected

from mpcfl.config import Job
from mpcfl.net.memory import MemoryTransport
from mpcfl.parties.checkpoints import agree_on_beginning, agree_on_checkpoint
from mpcfl.parties.connection import Connection
from mpcfl.parties.events import Event
from mpcfl.parties.folders import RunPlace, agree_on_folder
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.party_file import PartyFile
from mpcfl.parties.program import serve_rounds
from mpcfl.parties.setup import Rank, located_task, make_rank
from mpcfl.parties.total_ledger import open_total_ledger


@dataclass
class Hosts:
    """What came of a run: by seat, where it went and what ended it; and what people were told."""

    places: dict[int, RunPlace] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    told: dict[int, list[Event]] = field(default_factory=dict)


def run_on_hosts(
    job: Job,
    asked: Sequence[Path | None],
    *,
    resume: bool = False,
    dies_at: dict[int, int] | None = None,
    owns: Sequence[PartyFile | None] = (),
) -> Hosts:
    """Run a job from its folders on.

    Args:
        job: the run.
        asked: by seat, the folder that a party asks for.
        resume: go on with the run that is there.
        dies_at: by seat, the message of its rounds before which that party dies.
        owns: by seat, the party file; empty for none.
    """
    ranks = [loaded(job, number, owns[number] if owns else None) for number in range(job.n_ranks)]
    network, hosts = DyingNetwork(job.n_ranks, dies_at), Hosts()

    def live(seat: int) -> None:
        path = asked[seat]
        options = Namespace(out=None if resume else path, resume=path if resume else None)
        events = hosts.told.setdefault(seat, [])
        try:
            with closing(connected(job, MemoryTransport(network, seat))) as connection:
                take_part(options, ranks[seat], connection, events)
        except BaseException as error:  # noqa: BLE001 - the test says which one it expects
            hosts.errors[seat] = error
        finally:
            network.dead.add(seat)

    def take_part(
        options: Namespace, rank: Rank, connection: Connection, events: list[Event]
    ) -> None:
        seat = connection.number
        with closing(agree_on_folder(options, rank, connection)) as place:
            hosts.places[seat] = place
            if resume and agree_on_checkpoint(rank, place, connection, events.append):
                return
            open_ledgers(rank, connection, place.folder)
            open_total_ledger(rank, connection, place.folder)
            agree_on_beginning(rank, place, connection)
            network.in_rounds.add(seat)
            serve_rounds(rank, place, connection, events.append)

    threads = [
        threading.Thread(target=live, args=(seat,), name=f"party {seat}", daemon=True)
        for seat in range(job.n_ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    assert not any(thread.is_alive() for thread in threads)
    return hosts


def loaded(job: Job, number: int, own: PartyFile | None) -> Rank:
    """Return what a party loads before its first round."""
    task = located_task(job, None if own is None else own.data)
    rank = make_rank(job, number, task=task)
    rank.own = own
    return rank
