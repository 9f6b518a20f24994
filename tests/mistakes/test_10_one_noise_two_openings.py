"""Mistake 10: after a lost party a round is tried again with the same noise, or uncharged.

Who made it: retry loops around secure aggregation that keep the masked inputs, or draw afresh
and count the round once. What goes wrong: one noise under two rosters, and the difference of
the sums is one party's update in the clear; fresh noise means two releases, and an epsilon of 8
is really 12.26. What would have to break here: a share can be added twice, a second attempt
draws the same bits, or an attempt is made without an entry of its own in the ledger.
"""

from __future__ import annotations

import numpy as np
import pytest

from mpcfl.dp import Budget, Ledger, NoiseShare, add_noise, draw_noise_share, plan_for_job
from mpcfl.dp import planned_charge as charge_of
from mpcfl.errors import BudgetExceeded, OutOfOrder
from mpcfl.hazmat.bits import raw_keyed_bits


def test_a_share_is_spent_by_adding_it(plan_of, sabotage):
    plan = plan_of()

    def serves_twice() -> bool:
        share = draw_noise_share(plan)
        levels = np.zeros(plan.dim, dtype=np.int64)
        first = add_noise(levels, share)
        try:
            return bool(np.array_equal(add_noise(levels, share), first))
        except OutOfOrder:
            return False

    assert not serves_twice()

    def keeps(right, self):
        noise = right(self)
        NoiseShare.__init__(self, noise)
        return noise

    with sabotage("mpcfl.dp.noise:NoiseShare.take", keeps):
        assert serves_twice()


@pytest.mark.stat
def test_the_difference_of_two_attempts_is_covered_by_noise(
    job_of, silent_task, opened, sabotage, variance_fits
):
    """Two-sided at 1e-9; with one noise the difference is exactly one party's update."""

    class OnePartyLess(silent_task):
        """The second roster: party 1 brings an update in the first attempt only."""

    class Everybody(silent_task):
        def party_data(self, party, n_parties):
            inputs, targets = super().party_data(party, n_parties)
            return inputs, targets + (party == 1)

    plan = plan_for_job(job_of(Everybody), 400)

    def is_covered() -> bool:
        difference = opened(job_of(Everybody)) - opened(job_of(OnePartyLess))
        # The update adds at most the clip norm, which is nothing beside 400 x 6 S^2.
        return variance_fits(difference, 6 * plan.local_sigma**2)

    assert is_covered()
    ranks = iter(range(1000))

    def by_round(right, plan, bits=None):
        return right(plan, raw_keyed_bits((next(ranks) % 3).to_bytes(32, "big")))

    with sabotage("mpcfl.round:draw_noise_share", by_round):
        assert not is_covered()


@pytest.fixture
def ledger_of(tmp_path):
    """Open the ledger of a plan's whole budget."""
    return lambda plan: Ledger.open(
        tmp_path / "ledger.jsonl", identity="test", budget=Budget(plan.epsilon_budget, plan.delta)
    )


def test_a_second_attempt_is_a_second_charge(plan_of, ledger_of):
    plan = plan_of(rounds=1)
    assert plan.epsilon() == pytest.approx(8.0, abs=1e-6)
    # What a retry really costs if the plan reserved nothing for it.
    assert plan.epsilon(rounds=2) == pytest.approx(12.26, abs=0.05)
    with ledger_of(plan) as ledger:
        ledger.abandon(ledger.reserve(charge_of(plan, 0)))
        assert ledger.epsilon() == pytest.approx(8.0, abs=1e-6)
        with pytest.raises(BudgetExceeded, match=r"12\.2"):
            ledger.reserve(charge_of(plan, 0, attempt=1))


def test_spare_attempts_are_paid_for_in_advance(plan_of, ledger_of):
    plan = plan_of(rounds=1, spare_attempts=1)
    assert plan.epsilon(rounds=1) < 6
    with ledger_of(plan) as ledger:
        ledger.abandon(ledger.reserve(charge_of(plan, 0)))
        assert ledger.next_attempt(0) == 1
        token = ledger.reserve(charge_of(plan, 0, attempt=1))
        ledger.opened(token)
        ledger.commit(token)
        assert ledger.epsilon() == pytest.approx(8.0, abs=1e-6)


def test_one_attempt_has_one_opening(plan_of, ledger_of):
    plan = plan_of()
    with ledger_of(plan) as ledger:
        token = ledger.reserve(charge_of(plan, 0))
        ledger.opened(token)
        with pytest.raises(OutOfOrder, match="opened before"):
            ledger.opened(token)


@pytest.mark.parametrize("checked", [False, True])
def test_every_opening_of_a_run_has_an_entry_of_its_own(
    checked, job_of, line_task, run_job, sabotage
):
    job = job_of(line_task, training={"rounds": 3}, aggregation={"checked": checked})

    def run():
        ran = run_job(job)
        attempts = {(c["round_id"], c["attempt"]) for c in ran.reserves(0)}
        return ran, ran.openings == len(ran.reserves(0)) == len(attempts)

    ran, each_is_charged = run()
    assert each_is_charged
    assert ran.openings == 3

    def tries_twice(right, *arguments):
        right(*arguments)
        return right(*arguments)

    with sabotage("mpcfl.parties.data_party:protected_sum", tries_twice):
        ran, each_is_charged = run()
    if checked:
        # The session itself has one opening for each name.
        assert isinstance(ran.error, OutOfOrder)
        assert (ran.openings, ran.rounds) == (1, [])
    else:
        assert not each_is_charged
