"""Mistake 11: what was spent is forgotten when a run is resumed, or with every new round.

Who made it: opacus#117, #373 and #688 (a new engine or a restored checkpoint starts at zero),
flower#605 (the other way round: epsilons of clients are added up). What goes wrong: a run that
is resumed k times spends k budgets and reports one. What would have to break here: a ledger
that is opened again counts less than what was reserved before, whatever was interrupted, or a
checkpoint's older round takes an entry back. Kill and resume of real processes is tested in
`tests/mpi/`.
"""

from __future__ import annotations

import shutil

import pytest

from mpcfl.dp import Budget, Ledger, plan_for_job, planned_charge, verify_ledger
from mpcfl.dp.heads import Claim
from mpcfl.errors import BudgetExceeded, LedgerError

PHASES = ("reserved", "opened", "committed", "abandoned", "torn")


@pytest.fixture
def plan(plan_of):
    return plan_of(rounds=8)


def open_in(folder, plan) -> Ledger:
    budget = Budget(plan.epsilon_budget, plan.delta)
    return Ledger.open(folder / "ledger.jsonl", identity="test", budget=budget)


def spend(ledger, plan, round_id) -> None:
    token = ledger.reserve(planned_charge(plan, round_id, ledger.next_attempt(round_id)))
    ledger.opened(token)
    ledger.commit(token)


def leave_at(phase, ledger, plan, folder) -> None:
    """Go on with round 2 until ``phase``, and leave everything as a killed process does."""
    charge = planned_charge(plan, 2, ledger.next_attempt(2))
    token = ledger.reserve(charge)
    if phase in ("opened", "committed"):
        ledger.opened(token)
    if phase == "committed":
        ledger.commit(token)
    if phase == "abandoned":
        ledger.abandon(token)
    ledger.close()
    if phase == "torn":
        path = folder / "ledger.jsonl"
        path.write_bytes(path.read_bytes()[:-20])


@pytest.fixture
def remembers(tmp_path, plan):
    """Tell whether a ledger that was left in a phase knows of all three releases."""

    def check(phase) -> bool:
        folder = tmp_path / phase
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ledger = open_in(folder, plan)
        for round_id in range(2):
            spend(ledger, plan, round_id)
        leave_at(phase, ledger, plan, folder)
        with open_in(folder, plan) as again:
            return again.epsilon() >= plan.epsilon(rounds=3) * (1 - 1e-9)

    return check


@pytest.mark.parametrize("phase", PHASES)
def test_a_ledger_left_in_any_phase_counts_all_that_was_reserved(phase, remembers, sabotage):
    assert remembers(phase)

    def new_engine(right, entries, path):
        return right(entries[:1], path)

    with sabotage("mpcfl.dp.ledger:replayed", new_engine):
        assert not remembers(phase)


def test_a_checkpoint_of_an_earlier_round_takes_nothing_back(tmp_path, plan):
    with open_in(tmp_path, plan) as ledger:
        for round_id in range(3):
            spend(ledger, plan, round_id)
    # The model goes back to round 1; rounds 1 and 2 are run, and paid for, once more.
    with open_in(tmp_path, plan) as ledger:
        assert [ledger.next_attempt(round_id) for round_id in range(4)] == [1, 1, 1, 0]
        for round_id in (1, 2):
            spend(ledger, plan, round_id)
        assert ledger.epsilon() == pytest.approx(plan.epsilon(rounds=5), rel=1e-9)


def test_resuming_for_ever_ends_at_the_budget(tmp_path, plan):
    figures = []
    for _ in range(plan.rounds):
        with open_in(tmp_path, plan) as ledger:
            spend(ledger, plan, 0)
            figures.append(ledger.epsilon())
    assert figures == sorted(set(figures))
    assert figures[-1] <= plan.epsilon_budget
    with open_in(tmp_path, plan) as ledger, pytest.raises(BudgetExceeded):
        spend(ledger, plan, 0)


def test_an_older_copy_of_the_ledger_is_refused_by_who_saw_the_newer_one(tmp_path, plan):
    with open_in(tmp_path, plan) as ledger:
        spend(ledger, plan, 0)
        older = (tmp_path / "ledger.jsonl").read_bytes()
        spend(ledger, plan, 1)
        seen = Claim("a peer", ledger.signed_head())
    budget = Budget(plan.epsilon_budget, plan.delta)

    def reopened() -> Ledger:
        path = tmp_path / "ledger.jsonl"
        return Ledger.open(path, identity="test", budget=budget, claims=[seen])

    reopened().close()
    (tmp_path / "ledger.jsonl").write_bytes(older)
    with pytest.raises(LedgerError, match="a peer"):
        reopened()


class KilledError(RuntimeError):
    """All parties die."""


@pytest.fixture
def resumed_spends(job_of, line_task, run_job, sabotage):
    """Return what a run has spent that died in its second round and was resumed, by rounds."""
    job = job_of(line_task, privacy={"spare_attempts": 2}, aggregation={"backend": "crypten"})
    plan = plan_for_job(job, 3)

    def dies(right, public, party, secure, sum_id, meter):
        if sum_id.round_id == 1:
            raise KilledError
        return right(public, party, secure, sum_id, meter)

    def run(put_back=lambda folder, older: None) -> int:
        with sabotage("mpcfl.parties.data_party:protected_sum", dies):
            killed = run_job(job)
        assert isinstance(killed.error, KilledError)
        older = {path: path.read_bytes() for path in killed.folder.checkpoint.iterdir()}
        again = run_job(job, killed.folder)
        assert again.error is None
        if put_back(again.folder, older):
            assert run_job(job, again.folder).error is None
        spent = verify_ledger(again.folder.ledger_jsonl(1)).epsilon
        figures = [plan.epsilon(rounds=rounds) for rounds in range(6)]
        return min(range(6), key=lambda rounds: abs(figures[rounds] - spent))

    return run


def test_a_run_that_died_and_was_resumed_pays_for_the_lost_round(
    resumed_spends, sabotage, uncharged
):
    assert resumed_spends() == 3

    def paid_already(right, run, attempt):
        """The round that was lost is not charged again."""
        if run.rank.resumed and run.progress.round_id == run.rank.first_round:
            return uncharged(right, run, attempt)
        return right(run, attempt)

    with sabotage("mpcfl.parties.data_party:_reserve", paid_already):
        assert resumed_spends() == 2


def test_putting_the_checkpoint_back_buys_no_round(resumed_spends):
    def put_back(folder, older):
        for path, content in older.items():
            path.write_bytes(content)
        return True

    # Rounds 0 and 1 (lost), 1 again, and after the checkpoint was put back 1 once more.
    assert resumed_spends(put_back) == 4


def test_epsilons_of_parties_are_not_added_up(job_of, line_task, run_job):
    # Every party protects its own data: three ledgers, each with the epsilon of the run.
    job = job_of(line_task, aggregation={"backend": "crypten"})
    ran = run_job(job)
    assert ran.error is None
    figures = [verify_ledger(ran.folder.ledger_jsonl(party)).epsilon for party in range(3)]
    planned = plan_for_job(job, 3).epsilon()
    assert figures == pytest.approx([planned] * 3, rel=1e-9)
