"""Mistake 14: amplification by sampling is claimed for parties whom everybody sees.

Who made it: experiment scripts with q = sampled / all clients and theorems on secret Poisson
samples, beside a server that samples a fixed number and knows whom. What goes wrong: with z = 1,
100 rounds and a tenth of the parties in each an epsilon of 7.0 is claimed, and whoever knows
which ones took part faces 92. What would have to break here: some way to give a party-level plan
a sample rate, or to pay less for it.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from mpcfl.config import PartiesTable
from mpcfl.dp import gaussian_epsilon, make_plan, plan_for_job
from mpcfl.errors import ConfigError, PlanError


def test_a_party_level_plan_takes_no_sample_rate(plan_of):
    with pytest.raises(PlanError, match="amplifies nothing"):
        plan_of(sample_rate=0.1)


def test_a_party_level_job_takes_no_sample_rate(job_of, line_task):
    with pytest.raises(ConfigError, match="sample_rate must be 1 at party level"):
        job_of(line_task, privacy={"sample_rate": 0.5})


def test_no_other_key_samples_parties(job_of, line_task):
    keys = set(PartiesTable.model_fields) | set(inspect.signature(make_plan).parameters)
    suspicious = {"fraction", "participation", "sampled", "party_rate", "cohort"}
    assert not {key for key in keys if any(word in key for word in suspicious)}
    with pytest.raises(ConfigError, match="unknown key"):
        job_of(line_task, parties={"sample_rate": 0.5})


def pays_in_full(plan) -> bool:
    """At party level every planned sum costs what one without sampling costs."""
    full = gaussian_epsilon(
        noise_multiplier=plan.multiplier(), sample_rate=1.0, rounds=plan.rounds, delta=plan.delta
    )
    return plan.epsilon() >= full * (1 - 1e-9)


def test_every_party_level_round_is_paid_in_full(plan_of, job_of, line_task):
    assert pays_in_full(plan_of())
    assert pays_in_full(plan_for_job(job_of(line_task, training={"rounds": 20}), 3))
    # The check fires on a plan that was given a rate behind everybody's back.
    assert not pays_in_full(dataclasses.replace(plan_of(), sample_rate=0.1))


def test_what_the_claim_hides():
    claimed, true = (
        gaussian_epsilon(noise_multiplier=1.0, sample_rate=rate, rounds=100, delta=1e-5)
        for rate in (0.1, 1.0)
    )
    assert claimed == pytest.approx(7.05, abs=0.01)
    assert true == pytest.approx(91.8, abs=0.1)
