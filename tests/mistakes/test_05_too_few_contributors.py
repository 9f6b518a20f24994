"""Mistake 5: fewer parties reply than the noise was planned for, and the server only warns.

Who made it: Flower's `validate_replies` logs CLIENTS_DISCREPANCY_WARNING and goes on. What goes
wrong: the noise of those who are missing is missing too; with 5 of 10 shares an epsilon of 8
is really 12.26. What would have to break here: a sum is opened although a party is lost, or a
sum with fewer contributors is charged like a full one.
"""

from __future__ import annotations

import math

import pytest

from mpcfl.dp import Budget, Ledger, planned_charge, realised_charge, verify_ledger
from mpcfl.errors import LedgerError, MpcflError


class LostError(RuntimeError):
    """Party 2 is gone."""


@pytest.fixture
def ran_until_a_loss(job_of, line_task, run_job, sabotage):
    """Return a run in which party 2 dies in round 1, and whether no sum was opened from then on."""

    def dies_at_round_one(right, public, party, secure, sum_id, meter):
        if sum_id.round_id == 1 and secure.secure.transport.rank == 2:
            raise LostError
        return right(public, party, secure, sum_id, meter)

    def run(*, checked: bool):
        job = job_of(line_task, training={"rounds": 3}, aggregation={"checked": checked})
        with sabotage("mpcfl.parties.data_party:protected_sum", dies_at_round_one):
            ran = run_job(job)
        assert isinstance(ran.error, LostError | MpcflError)
        report = verify_ledger(ran.folder.ledger_jsonl(0))
        # Whatever happened, every reserve is spent.
        assert len(ran.reserves(0)) >= 2
        assert report.epsilon > 0
        stopped_at_once = len(ran.reserves(0)) == 2 and report.unresolved == 1
        return ran, ran.openings == 1 and ran.rounds == [0] and stopped_at_once

    return run


@pytest.mark.parametrize("checked", [False, True])
def test_no_sum_is_opened_without_all_planned_contributors(checked, ran_until_a_loss):
    _, refused = ran_until_a_loss(checked=checked)
    assert refused


def test_a_sum_that_goes_on_without_the_lost_party_is_noticed(ran_until_a_loss, sabotage):
    def only_warns(right, self, source, target, lane):
        try:
            return right(self, source, target, lane)
        except Exception:  # noqa: BLE001 - this is the mistake
            # Of so short a vector, party 0 adds up everything: to it and from it go whole vectors.
            adds_up = {"SCATTER": target, "GATHER": source}.get(lane.name, 0)
            return bytes(3 * 8) if adds_up == 0 else b""

    with sabotage("mpcfl.net.memory:MemoryNetwork.get", only_warns):
        ran, refused = ran_until_a_loss(checked=False)
    assert not refused
    assert ran.openings == 2


def test_the_plan_counts_the_fewest_contributors_that_it_allows(plan_of):
    plan = plan_of(max_dropout=4)
    assert plan.quorum == 6
    assert plan.epsilon(contributors=6) <= 8.0 < plan.epsilon(contributors=5)
    assert plan.multiplier(contributors=1) == 0.0
    assert plan.epsilon(contributors=1) == math.inf


def spent_with_five(plan, folder, realise) -> float:
    reserved = planned_charge(plan, 0)
    path = folder / "ledger.jsonl"
    with Ledger.open(path, identity="test", budget=Budget(100.0, 1e-5)) as ledger:
        token = ledger.reserve(reserved)
        ledger.opened(token)
        ledger.commit(token, realise(plan, reserved, 6))
        return ledger.epsilon()


def test_the_ledger_charges_for_the_noise_that_was_there(plan_of, tmp_path):
    plan = plan_of(rounds=1)

    def charged_in_full(folder, realise) -> bool:
        folder.mkdir()
        return spent_with_five(plan, folder, realise) >= plan.epsilon(contributors=6)

    assert plan.epsilon(contributors=6) > 8.5
    assert charged_in_full(tmp_path / "right", realised_charge)
    assert not charged_in_full(
        tmp_path / "wrong", lambda plan, reserved, n: realised_charge(plan, reserved, 10)
    )


def test_a_sum_without_enough_noise_for_the_coalition_cannot_be_charged(plan_of):
    plan = plan_of()
    with pytest.raises(LedgerError, match="above 0"):
        realised_charge(plan, planned_charge(plan, 0), 1)
