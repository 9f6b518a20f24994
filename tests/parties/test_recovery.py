"""Whole parties in threads, of which some die just before some message: what the others do then.

A death between two messages of a thread is a death at any instruction between them, as the others
know of it from messages alone. Every run here is held against the oracle of recovery, and every
opened sum against what its roster really put in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcfl.audit.transcript import check_run
from mpcfl.config import Job, parse_job
from mpcfl.dp.attempt_events import EventKind, read_log
from mpcfl.dp.chain import read_chain
from mpcfl.dp.ledger import verify_ledger
from mpcfl.errors import QuorumLost
from mpcfl.parties.events import Ended, Lost, RoundDone
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import is_complete, read_rounds
from mpcfl.secagg.base import SumId

sys.path.append(str(Path(__file__).parent))

from parties_in_threads import KilledError, Ran, run_job

pytestmark = pytest.mark.usefixtures("no_page")

ROUNDS = 2
# Messages of each party in two rounds of `ring` with three parties, none lost.
RING_MESSAGES = 38
NAMES = ("ada", "ben", "cyd", "dan", "eve")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ran]:
    """Return a function that runs a job in a folder of its own."""

    def in_folder(job: Job, dies_at: dict[int, int] | None = None, **more: Any) -> Ran:
        return run_job(job, RunFolder(tmp_path / "run"), dies_at, **more)

    return in_folder


def make_job(backend: str = "ring", count: int = 3, **more: Any) -> Job:
    unit = more.pop("unit", "record")
    privacy: dict[str, Any] = {"unit": unit}
    if unit == "record":
        privacy |= {"epsilon": 8.0, "records": 4 * count, "sample_rate": 0.5}
        privacy["spare_attempts"] = more.pop("spare_attempts", 1)
    names = NAMES[:count]
    document = {
        "task": "parties_in_threads:Line",
        "parties": {"count": count, "names": names, "max_dropout": more.pop("max_dropout", 1)},
        "privacy": privacy,
        "training": {"rounds": more.pop("rounds", ROUNDS)},
        "aggregation": {"backend": backend, **more},
    }
    return parse_job(document, "inline")


def require_sums_of_rosters(ran: Ran) -> None:
    """Every coordinate is the sum of what one stated roster put into one attempt."""
    for (_, round_id), pieces in ran.used.items():
        at = 0
        for piece, roster in pieces:
            assert piece.span[0] == at
            at = piece.span[1]
            inputs = [ran.inputs[number, SumId(round_id, piece.attempt)] for number in roster]
            assert np.array_equal(piece.values, sum(inputs)[slice(*piece.span)])
        assert at == ran.ranks[0].public.ring.vector_dim


def require_right_ledgers(ran: Ran) -> None:
    """A ledger holds the planned cost of every attempt that its party reserved, and no other."""
    plan = ran.ranks[0].public.plan
    for number in ran.numbers:
        if number == ran.ranks[0].public.job.parties.count:
            continue
        path = ran.folder.ledger_jsonl(number)
        entries = read_chain(path.read_bytes(), path)[0]
        attempts = sum(entry.kind == "reserve" for entry in entries)
        assert verify_ledger(path).epsilon == pytest.approx(plan.epsilon(rounds=attempts))


def require_finished(ran: Ran, dead: Collection[int]) -> None:
    """All but the dead came to the same end, and everything adds up."""
    assert check_run(ran.folder.path) == []
    assert {seat: type(error) for seat, error in ran.errors.items()} == dict.fromkeys(
        dead, KilledError
    )
    left = [seat for seat in range(len(ran.numbers)) if seat not in dead]
    count = ran.ranks[0].public.job.parties.count
    models = [ran.ranks[seat].public.parameters for seat in left if ran.numbers[seat] < count]
    assert all(np.array_equal(models[0], model) for model in models)
    for number in left:
        if number < count:
            assert set(left) <= {*last_roster(ran, number), count}
    require_sums_of_rosters(ran)
    require_right_ledgers(ran)
    require_whole_record(ran)


def last_roster(ran: Ran, number: int) -> tuple[int, ...]:
    """Return the last roster that all its members signed, as a data party noted it."""
    events = read_log(ran.folder.transcript_jsonl(number))
    return [event.roster for event in events if event.kind is EventKind.VIEW][-1]


def require_whole_record(ran: Ran) -> None:
    """The folder is complete, and names for each round those whose sum was used last."""
    assert is_complete(ran.folder.run_json)
    rounds = ran.ranks[0].public.job.training.rounds
    records = read_rounds(ran.folder.rounds_jsonl, rounds)
    assert [record.round for record in records] == list(range(1, rounds + 1))
    assert sum(isinstance(event, Ended) for event in ran.events) >= 1
    told = [event.round for event in ran.events if isinstance(event, RoundDone)]
    assert sorted(set(told)) == told


def test_without_a_loss_no_view_changes(run: Callable[..., Ran]) -> None:
    """And no party sends a message that the test of all points below would leave out."""
    ran = run(make_job())
    require_finished(ran, ())
    assert set(ran.network.sent.values()) == {RING_MESSAGES}
    assert set(ran.members.values()) == {(0, 1, 2)}
    assert not any(isinstance(event, Lost) for event in ran.events)


@pytest.mark.parametrize("message", range(RING_MESSAGES))
def test_whichever_message_a_party_dies_before_the_others_finish(
    message: int, run: Callable[..., Ran]
) -> None:
    """From the signatures on the first view to the last goodbye; whoever keeps the record too."""
    dead = message % 3
    ran = run(make_job(), {dead: message})
    require_finished(ran, [dead])


SAMPLES = [
    ("crypten", {}, (6, 8, 11, 14)),
    ("plain", {}, (7, 12)),
    ("paillier", {"custody": "threshold", "threshold": 2}, (10, 20, 25, 30)),
    ("paillier", {"custody": "holder", "count": 4}, (12, 18)),
    ("paillier", {"custody": "clients"}, (12, 18)),
]


@pytest.mark.parametrize(
    ("backend", "more", "message"),
    [(backend, more, message) for backend, more, points in SAMPLES for message in points],
)
def test_so_do_they_with_every_backend(
    backend: str, more: dict[str, Any], message: int, run: Callable[..., Ran]
) -> None:
    keys = {"key_bits": 2048} if backend == "paillier" else {}
    dead = message % 3
    ran = run(make_job(backend, **more, **keys), {dead: message})
    require_finished(ran, [dead])


def test_losses_one_after_the_other_leave_a_quorum(run: Callable[..., Ran]) -> None:
    ran = run(make_job(count=5, max_dropout=2, spare_attempts=2), {4: 30, 0: 52})
    require_finished(ran, [0, 4])
    assert {ran.members[seat] for seat in (1, 2, 3)} == {(1, 2, 3)}
    lost = [event.lost for event in ran.events if isinstance(event, Lost)]
    assert lost == [("eve",), ("ada",)]


def test_parties_lost_together_are_lost_once(run: Callable[..., Ran]) -> None:
    ran = run(make_job(count=5, max_dropout=2, spare_attempts=1), {1: 30, 2: 30})
    require_finished(ran, [1, 2])
    assert {ran.members[seat] for seat in (0, 3, 4)} == {(0, 3, 4)}


def refusals(ran: Ran, dead: Collection[int]) -> set[str]:
    """Return why the parties stopped that did not die; none of them finished."""
    assert check_run(ran.folder.path) == []
    require_sums_of_rosters(ran)
    require_right_ledgers(ran)
    assert ran.members == {}
    assert not is_complete(ran.folder.run_json)
    errors = {seat: error for seat, error in ran.errors.items() if seat not in dead}
    assert all(isinstance(error, QuorumLost) for error in errors.values()), errors
    return {str(error) for error in errors.values()}


def test_where_no_dropout_was_planned_all_stop_with_who_and_where(run: Callable[..., Ran]) -> None:
    ran = run(make_job(max_dropout=0), {1: 10})
    for reason in refusals(ran, [1]):
        assert "party 1 died" in reason
        assert "(in stage aggregate of round 1)" in reason
    assert {ran.errors[seat].ranks for seat in (0, 2)} == {(1,)}  # type: ignore[attr-defined]


def test_without_a_spare_attempt_all_stop_with_the_name(run: Callable[..., Ran]) -> None:
    """The first attempt was charged and broke off; there is nothing left to pay for another."""
    ran = run(make_job(spare_attempts=0), {1: 20})
    (reason,) = refusals(ran, [1])
    assert "ben was lost in round 2, and there is no attempt to spare" in reason
    assert "privacy.spare_attempts" in reason


def test_more_losses_than_planned_are_all_named(run: Callable[..., Ran]) -> None:
    ran = run(make_job(count=4), {1: 14, 3: 14})
    for reason in refusals(ran, [1, 3]):
        assert "ben, dan were lost: 2 of 4 parties are left" in reason
        assert "parties.max_dropout = 1" in reason


def test_nothing_is_summed_without_the_aggregator(run: Callable[..., Ran]) -> None:
    ran = run(make_job("paillier", custody="clients", key_bits=2048), {3: 16})
    for reason in refusals(ran, [3]):
        assert "aggregator was lost, and nothing is summed without the aggregator" in reason


def test_who_was_lost_is_left_out_of_a_resumed_run_and_joins_a_later_one(
    run: Callable[..., Ran],
) -> None:
    """Ben is lost in round 1, Cyd in round 2 and again in round 3; in the end both are there."""
    job = make_job(spare_attempts=3, rounds=3)
    ran = run(job, {1: 10, 2: 22})
    assert refusals(ran, [1, 2])
    assert rounds_and_parties(ran) == {1: ("ada", "cyd")}
    ran = run(job, {1: 11}, without=["ben"])
    assert ran.numbers == (0, 2)
    assert refusals(ran, [1])
    assert rounds_and_parties(ran) == {1: ("ada", "cyd"), 2: ("ada", "cyd")}
    ran = run(job)
    assert {rank.first_round for rank in ran.ranks} == {2}
    require_finished(ran, ())
    assert rounds_and_parties(ran)[3] == ("ada", "ben", "cyd")


def rounds_and_parties(ran: Ran) -> dict[int, tuple[str, ...]]:
    return {record.round: record.parties for record in read_rounds(ran.folder.rounds_jsonl, 99)}


def test_a_run_without_privacy_goes_on_after_it_broke_off_in_a_round(
    run: Callable[..., Ran],
) -> None:
    job = make_job(unit="none", max_dropout=0)
    ran = run(job, {1: 10})
    assert len(ran.errors) == 3
    ran = run(job)
    assert ran.errors == {}
    require_sums_of_rosters(ran)
    assert check_run(ran.folder.path) == []
