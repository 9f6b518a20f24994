"""Mistake 12: the account is of another run than the one that ran: steps, rate or noise differ.

Who made it: FL-bench PR#200 (one step for any number), opacus#813 (another sampler),
opacus#80 and #128 (shuffled batches accounted as Poisson samples), jax_privacy#121. What goes
wrong: the figure belongs to other events; a fixed batch accounted as a Poisson sample has no
proof at all. What would have to break here: the ledger's entries differ from the sums that
were opened, the rate from the one that was sampled with, z from the noise that was added, or
the sample is no Poisson sample.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from mpcfl.dp import gaussian_epsilon, poisson_sample, verify_ledger
from mpcfl.errors import LedgerError

RATE = 0.5


@pytest.fixture
def account_is_of_this_run(job_of, silent_task, run_job, sabotage, variance_fits):
    """Tell whether a ledger's events are those that can be seen from outside the account.

    The noise is measured: 3,600 draws, two-sided at 1e-9; half of sigma is rejected surely.
    """
    job = job_of(
        silent_task,
        "record",
        privacy={"sample_rate": RATE},
        training={"rounds": 3},
        aggregation={"backend": "crypten"},
    )

    def check() -> bool:
        rates, noise = [], []

        def watch_rate(right, n_records, sample_rate, bits=None):
            rates.append(sample_rate)
            return right(n_records, sample_rate, bits)

        def watch_noise(right, levels, share):
            noised = right(levels, share)
            noise.append(noised - levels)
            return noised

        with (
            sabotage("mpcfl.round:poisson_sample", watch_rate),
            sabotage("mpcfl.round:add_noise", watch_noise),
        ):
            ran = run_job(job)
        if isinstance(ran.error, LedgerError):
            return False
        assert ran.error is None
        charges = ran.reserves(1)
        z, plan = charges[0]["noise_multiplier"], ran.publics[0].plan
        # Two honest shares of three.
        share_variance = ((z * plan.l2_sensitivity) ** 2 + 4) / 2
        spent = gaussian_epsilon(
            noise_multiplier=z, sample_rate=rates[0], rounds=ran.openings, delta=1e-5
        )
        ledger = verify_ledger(ran.folder.ledger_jsonl(1))
        return (
            [(c["sample_rate"], c["noise_multiplier"]) for c in charges] == [(rates[0], z)] * 3
            and ran.openings == 3
            and set(rates) == {RATE}
            and variance_fits(np.concatenate(noise), share_variance)
            and ledger.epsilon == pytest.approx(spent, rel=1e-6)
        )

    return check


@pytest.mark.stat
def test_the_ledger_holds_the_events_that_happened(account_is_of_this_run):
    assert account_is_of_this_run()


def test_the_check_fires_on_one_charge_for_all_steps(account_is_of_this_run, sabotage, uncharged):
    def one_step(right, run, attempt):
        """One step is charged for the whole run."""
        if run.progress.round_id > 0:
            return uncharged(right, run, attempt)
        return right(run, attempt)

    with sabotage("mpcfl.parties.data_party:_reserve", one_step):
        assert not account_is_of_this_run()


def other_rate(right, plan, *arguments, **named):
    """The rate that is charged is half of the one that is sampled with."""
    return dataclasses.replace(right(plan, *arguments, **named), sample_rate=RATE / 2)


def other_noise(right, plan, bits=None):
    """Half of the noise that is charged is added."""
    return right(dataclasses.replace(plan, local_sigma=plan.local_sigma // 2), bits)


@pytest.mark.parametrize(
    ("stage", "mistake"),
    [
        ("mpcfl.parties.data_party:planned_charge", other_rate),
        ("mpcfl.round:draw_noise_share", other_noise),
    ],
    ids=["rate", "noise"],
)
def test_the_check_fires_on_an_account_of_another_run(
    stage, mistake, account_is_of_this_run, sabotage
):
    with sabotage(stage, mistake):
        assert not account_is_of_this_run()


@pytest.fixture
def local_steps_are_charged(job_of, line_task, run_job, sabotage):
    """Tell whether a run with noise inside each party is charged for every local step."""
    pytest.importorskip("opacus")
    job = job_of(
        line_task,
        "record",
        privacy={"placement": "local", "sample_rate": RATE, "records": 90},
        training={"local_steps": 3},
        aggregation={"backend": "crypten"},
    )

    def check() -> bool:
        draws = []

        def watch(right, plan, *more):
            draws.append(plan.local_sigma)
            return right(plan, *more)

        with sabotage("mpcfl.learn.exact_optimizer:draw_noise_share", watch):
            ran = run_job(job)
        assert ran.error is None
        plan = ran.publics[0].plan
        charged = sum(charge["times"] for charge in ran.reserves(2))
        z = math.sqrt(draws[0] ** 2 - 4) / plan.l2_sensitivity
        spent = gaussian_epsilon(noise_multiplier=z, sample_rate=RATE, rounds=6, delta=1e-5)
        ledger = verify_ledger(ran.folder.ledger_jsonl(2))
        # Three parties, two rounds, three steps.
        return (
            len(draws) == 3 * charged == 18
            and spent <= 8.0
            and ledger.epsilon == pytest.approx(spent, rel=1e-6)
        )

    return check


def test_every_local_step_is_charged(local_steps_are_charged, sabotage):
    assert local_steps_are_charged()

    def once_a_round(right, *arguments, **named):
        return dataclasses.replace(right(*arguments, **named), times=1)

    with (
        sabotage("mpcfl.parties.data_party:planned_charge", once_a_round),
        sabotage("mpcfl.parties.data_party:realised_charge", once_a_round),
    ):
        assert not local_steps_are_charged()


def is_poisson(sample) -> bool:
    """Two-sided tests of the mean and the spread of sample sizes, 1e-9 together.

    400 draws from 1,000 records: a fixed size has no spread at all and is rejected surely.
    """
    n_records, rate, draws = 1000, 0.2, 400
    sizes = np.array([len(sample(n_records, rate)) for _ in range(draws)])
    variance = n_records * rate * (1 - rate)
    tail = 1e-9 / 4
    mean_off = abs(sizes.mean() - n_records * rate) / math.sqrt(variance / draws)
    spread = float(np.sum((sizes - n_records * rate) ** 2)) / variance
    return bool(
        mean_off < stats.norm.isf(tail)
        and stats.chi2.ppf(tail, draws) < spread < stats.chi2.isf(tail, draws)
    )


def shuffled_batch(n_records, rate):
    """The mistake: a fixed number of records, as a data loader gives them."""
    order = np.argsort(poisson_sample(n_records, 1.0))
    return order[: int(rate * n_records)]


@pytest.mark.stat
def test_the_sample_is_a_poisson_sample_and_no_shuffled_batch():
    assert is_poisson(poisson_sample)
    assert not is_poisson(shuffled_batch)


@pytest.mark.stat
def test_a_rate_that_is_ten_percent_too_large_is_noticed():
    # 10 % of 200 is 20; the mean of 400 sizes has a standard deviation of 0.63.
    assert not is_poisson(lambda n, rate: poisson_sample(n, 1.1 * rate))
