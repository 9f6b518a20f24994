from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mpcfl.config import parse_job
from mpcfl.dp import (
    NoisePlan,
    View,
    gaussian_epsilon,
    make_fixed_point_plan,
    make_plan,
    plan_for_job,
    quantize_rows,
)
from mpcfl.dp.grid import round_grid
from mpcfl.errors import ConfigError, PlanError

PARTY: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-5, "rounds": 10, "parties": 10, "dim": 50, "clip_norm": 1.0,
    "modulus_bits": 32,
}  # fmt: skip
RECORD: dict[str, Any] = {
    **PARTY, "epsilon": 4.0, "parties": 4, "unit": "record", "sample_rate": 0.2, "records": 1000,
}  # fmt: skip


def test_plans_match_the_known_answers(known: dict[str, Any]) -> None:
    outputs = {
        "noise_multiplier": 1e-5, "local_sigma": 0, "scale": 1e-6, "norm_bound_int": 1e-7,
        "rounding_inflation": 1e-4, "overhead_vs_central": 1e-4,
    }  # fmt: skip
    for row in known["plan"]:
        plan = make_plan(**{key: row[key] for key in row if key not in outputs})
        for name, tolerance in outputs.items():
            assert getattr(plan, name) == pytest.approx(row[name], rel=tolerance), (name, row)


@pytest.mark.parametrize("arguments", [PARTY, RECORD, {**RECORD, "sample_rate": 1.0}])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_plan_spends_its_budget_and_never_more(
    arguments: dict[str, Any], accountant: str
) -> None:
    plan = make_plan(**arguments, accountant=accountant, spare_attempts=3)
    assert 0.999 * plan.epsilon_budget < plan.epsilon() <= plan.epsilon_budget
    assert plan.epsilon() == plan.epsilon(rounds=13)
    assert plan.epsilon(rounds=10) < plan.epsilon_budget


@pytest.mark.parametrize("arguments", [PARTY, RECORD])
@pytest.mark.parametrize("bits", [16, 17, 20, 24, 32, 48, 64])
def test_everything_that_a_plan_allows_fits_the_ring(arguments: dict[str, Any], bits: int) -> None:
    try:
        plan = make_plan(**{**arguments, "modulus_bits": bits})
    except PlanError:
        assert bits < 24
        return
    half = 2 ** (bits - 1)
    assert plan.wrap_probability <= 2.0**-40
    assert plan.parties * plan.saturation_int * (plan.unit == "record") < half
    # With 6 sigma of the sum's noise on top of the worst signal nothing wraps.
    signal = plan.saturation_int if plan.unit == "record" else plan.scale * plan.clip_norm + 0.5
    assert plan.parties * signal + 6 * plan.local_sigma * math.sqrt(plan.parties) < half


LOW_BIT: dict[str, Any] = {**PARTY, "rotation": "hadamard", "modulus_bits": 12}
LOCAL: dict[str, Any] = {**RECORD, "placement": "local", "local_steps": 3}


@pytest.mark.parametrize("arguments", [PARTY, RECORD, LOW_BIT])
def test_a_skellam_plan_spends_its_budget_by_renyi_bounds(arguments: dict[str, Any]) -> None:
    plan = make_plan(**arguments, mechanism="skellam")
    assert 0.99 * plan.epsilon_budget < plan.epsilon() <= plan.epsilon_budget
    assert plan.multiplier() == pytest.approx(plan.noise_multiplier, rel=1e-12)
    gaussian = make_plan(**arguments)
    # Renyi bounds ask for more noise than the exact curve of the Gaussian.
    assert plan.noise_multiplier > gaussian.noise_multiplier
    assert plan.wrap_probability <= 2.0**-40


def test_skellam_noise_may_be_coarser_where_the_ring_is_small() -> None:
    arguments = {**PARTY, "parties": 100, "dim": 250, "rounds": 1, "epsilon": 4.0,
                 "rotation": "hadamard", "modulus_bits": 12}  # fmt: skip
    with pytest.raises(PlanError):
        make_plan(**arguments)
    plan = make_plan(**arguments, mechanism="skellam")
    assert plan.local_sigma < 8
    assert plan.rounding_inflation <= 2.0
    assert plan.epsilon() <= 4.0


@pytest.mark.parametrize("bits", [10, 11, 12, 14, 16, 20])
def test_a_rotation_makes_room_in_rings_of_few_bits(bits: int) -> None:
    plan = make_plan(**{**LOW_BIT, "modulus_bits": bits})
    assert plan.wrap_probability <= 2.0**-40
    assert (plan.rotated_dim, plan.vector_dim) == (64, 64)
    # ||q||^2 <= c^2 + d/4 + c + sqrt(d)/2 for rows of norm c, and c is the largest of that kind.
    c = plan.scale * plan.clip_norm
    assert c * c + 16 + c + 4 == pytest.approx(plan.norm_bound_int, abs=1)
    assert plan.rounding_inflation == pytest.approx(math.sqrt(plan.norm_bound_int) / c, rel=1e-3)
    if bits >= 16:
        plain = make_plan(**{**PARTY, "modulus_bits": bits})
        assert plain.local_sigma <= plan.local_sigma


def test_bits_and_rotation_have_to_suit_each_other() -> None:
    for change in ({"modulus_bits": 9}, {"modulus_bits": 21}):
        with pytest.raises((ConfigError, PlanError), match=r"between 10 and 20|at most 20 bits"):
            make_plan(**{**LOW_BIT, **change})
    with pytest.raises(ConfigError, match="rotation 'hadamard' works from 10 bits on"):
        make_plan(**{**PARTY, "modulus_bits": 15})


def test_under_local_placement_every_view_faces_one_share() -> None:
    plan = make_plan(**LOCAL, colluding=2, max_dropout=1, spare_attempts=2)
    figures = {plan.epsilon(view=view) for view in View}
    assert figures == {plan.epsilon(contributors=1)}
    assert 0.99 * 4.0 < plan.epsilon() <= 4.0
    assert plan.noise_multiplier == pytest.approx(plan.multiplier(), rel=1e-12)
    # 12 rounds of 3 steps are 36 releases.
    z = plan.multiplier()
    alike = gaussian_epsilon(noise_multiplier=z, sample_rate=0.2, rounds=36, delta=1e-5)
    assert plan.epsilon() == pytest.approx(alike, rel=1e-6)
    assert plan.epsilon(rounds=4) < plan.epsilon(rounds=5) < plan.epsilon()


def test_under_local_placement_a_person_in_two_parties_is_two_releases() -> None:
    two = make_plan(**LOCAL, max_parties_per_person=2)
    assert two.l2_sensitivity == math.sqrt(two.norm_bound_int)
    assert two.releases_per_round == 6
    one = make_plan(**{**LOCAL, "rounds": 20})
    assert two.noise_multiplier == pytest.approx(one.noise_multiplier, rel=1e-9)
    assert two.epsilon(rounds=5) == pytest.approx(one.epsilon(rounds=10), rel=1e-9)


def test_local_placement_needs_no_room_in_the_ring_and_no_second_party() -> None:
    small = make_plan(**{**LOCAL, "modulus_bits": 16})
    assert small.local_sigma == make_plan(**LOCAL).local_sigma == 1 << 28
    assert make_plan(**{**LOCAL, "parties": 1}).epsilon() <= 4.0
    assert small.denominator(4) == small.denominator(1) == 50.0


def test_counts_take_their_share_of_the_sensitivity() -> None:
    plain, counted = make_plan(**PARTY), make_plan(**PARTY, counts=2, count_share=0.3)
    assert counted.norm_bound_int == plain.norm_bound_int
    assert counted.noise_multiplier == plain.noise_multiplier
    # sqrt(1 - 2 0.3^2) of the scale is left to the model; the noise stays.
    assert counted.scale == pytest.approx(plain.scale * math.sqrt(0.82), rel=1e-5)
    assert counted.rounding_inflation == pytest.approx(1 / math.sqrt(0.82), rel=1e-5)
    assert counted.vector_dim == 52
    # What was calibrated holds for the longer vector too: its slack grows with its length.
    assert counted.epsilon() <= 8.0


def test_the_largest_sigma_that_fits_is_taken() -> None:
    plan = make_plan(**{**PARTY, "modulus_bits": 20})
    assert plan.local_sigma & (plan.local_sigma - 1) == 0
    wider = make_plan(**{**PARTY, "modulus_bits": 21})
    assert wider.local_sigma == 2 * plan.local_sigma
    assert make_plan(**{**PARTY, "modulus_bits": 60}).local_sigma == 1 << 28


def test_the_clip_norm_only_moves_the_scale() -> None:
    small, large = (make_plan(**{**PARTY, "clip_norm": c}) for c in (0.01, 10.0))
    assert small.norm_bound_int == large.norm_bound_int
    assert small.scale * 0.01 == pytest.approx(large.scale * 10.0, rel=1e-12)


def test_the_views_are_ordered_by_what_they_know() -> None:
    plan = make_plan(**PARTY, colluding=3, max_dropout=1)
    own, coalition, single, outsider = (
        plan.epsilon(view=v) for v in ("own-share", "coalition", "single", "outsider")
    )
    assert own > coalition > single > outsider
    assert plan.epsilon(contributors=10) < plan.epsilon(contributors=9) == coalition
    assert plan.epsilon(contributors=3) == math.inf
    assert plan.epsilon(rounds=0, contributors=3) == 0.0


def test_the_coalition_faces_the_planned_noise_multiplier() -> None:
    plan = make_plan(**PARTY, colluding=2, max_dropout=1)
    assert plan.multiplier() == pytest.approx(plan.noise_multiplier, rel=1e-12)
    assert plan.multiplier(contributors=9, view=View.COALITION) == plan.multiplier()


def test_planning_as_if_everybody_were_honest_would_cost_more() -> None:
    # Known mistake: noise of sigma / sqrt(n). One of ten colludes: 8 is really 8.53.
    plan = make_plan(**PARTY)
    naive = dataclasses.replace(plan, norm_bound_int=round(plan.norm_bound_int * 10 / 9))
    assert naive.epsilon(view="outsider") == pytest.approx(8.0, abs=0.01)
    assert naive.epsilon() == pytest.approx(8.53, abs=0.01)


def test_persons_in_two_parties_double_the_sensitivity() -> None:
    whole = {**RECORD, "sample_rate": 1.0}
    one, two = (make_plan(**whole, max_parties_per_person=k) for k in (1, 2))
    assert two.l2_sensitivity == 2 * math.sqrt(two.norm_bound_int)
    assert two.epsilon() == pytest.approx(one.epsilon(), rel=1e-4)
    assert two.overhead_vs_central == pytest.approx(one.overhead_vs_central, rel=0.01)


def test_persons_in_two_parties_are_refused_under_sampling() -> None:
    with pytest.raises(PlanError, match=r"sample_rate to 1, or max_parties_per_person to 1"):
        make_plan(**RECORD, max_parties_per_person=2)


def test_why_it_is_refused_two_records_sampled_apart_pass_the_bound_for_one_draw() -> None:
    # One sum in one coordinate: nothing of this person, or Binomial(2, q) records of length 1.
    z, q = 0.2, 0.01
    noise = statistics.NormalDist(0.0, 2 * z)
    claimed = gaussian_epsilon(noise_multiplier=z, sample_rate=q, rounds=1, delta=0.012)

    def gain(x: float) -> float:
        apart = (1 - q) ** 2 * noise.pdf(x) + 2 * q * (1 - q) * noise.pdf(x - 1)
        return apart + q * q * noise.pdf(x - 2) - math.exp(claimed) * noise.pdf(x)

    delta = math.fsum(max(0.0, gain(step / 1000)) / 1000 for step in range(-4000, 6000))
    assert delta > 0.012


def test_a_given_noise_multiplier_is_used_as_it_is() -> None:
    plan = make_plan(**PARTY, noise_multiplier=1.0)
    assert plan.noise_multiplier == pytest.approx(1.0, rel=1e-4)
    assert plan.noise_multiplier >= 1.0
    assert plan.epsilon() > plan.epsilon_budget == 8.0


@pytest.mark.parametrize("arguments", [PARTY, RECORD])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("multiplier", [0.3, 1e-9, 1e-155, 1e-300])
def test_a_noise_multiplier_that_pays_for_no_round_is_refused_with_one_that_does(
    arguments: dict[str, Any], accountant: str, multiplier: float
) -> None:
    arguments = {**arguments, "accountant": accountant}
    with pytest.raises(PlanError, match=r"one round costs epsilon \S+, and the budget") as caught:
        make_plan(**arguments, noise_multiplier=multiplier)
    enough = float(re.search(r"at least (\S+) for one round", str(caught.value))[1])
    plan = make_plan(**arguments, noise_multiplier=enough)
    assert plan.rounds_within_budget() >= 1
    assert 0.95 * plan.epsilon_budget < plan.epsilon(rounds=1) <= plan.epsilon_budget


@pytest.mark.parametrize(("arguments", "multiplier"), [(PARTY, 1.0), (RECORD, 0.85)])
def test_the_rounds_within_the_budget_are_all_that_it_pays_for(
    arguments: dict[str, Any], multiplier: float
) -> None:
    plan = make_plan(**arguments, noise_multiplier=multiplier)
    count = plan.rounds_within_budget()
    assert 1 <= count < plan.rounds
    assert plan.epsilon(rounds=count) <= plan.epsilon_budget < plan.epsilon(rounds=count + 1)


def test_the_rounds_within_the_budget_are_never_more_than_planned() -> None:
    plan = make_plan(**PARTY, spare_attempts=5)
    assert plan.rounds_within_budget() == 10
    assert plan.rounds_within_budget(view="own-share") < 10
    assert make_plan(**PARTY, noise_multiplier=50.0).rounds_within_budget() == 10
    fixed = make_fixed_point_plan(parties=2, dim=3, rounds=7, modulus_bits=32)
    assert fixed.rounds_within_budget() == 7


@pytest.mark.parametrize("epsilon", [1e15, 1e17, 1e25])
def test_levels_are_exact_in_float64_however_little_noise_there_is(epsilon: float) -> None:
    plan = make_plan(**{**PARTY, "epsilon": epsilon, "modulus_bits": 64})
    assert math.isqrt(plan.norm_bound_int) < 2**52
    row = np.zeros((1, 50))
    row[0, 0] = 1.0 - 1e-9
    assert quantize_rows(row, round_grid(plan, 0))[0, 0] == pytest.approx(plan.scale, rel=1e-6)


def test_the_denominator_at_record_level_is_public() -> None:
    plan = make_plan(**RECORD)
    assert plan.denominator(4) == plan.denominator(2) == 200.0
    assert make_plan(**PARTY).denominator(7) == 7.0


def test_two_parties_of_which_one_colludes_are_feasible() -> None:
    assert make_plan(**{**PARTY, "parties": 2}).epsilon() <= 8.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parties": 1}, "at least 2 parties"),
        ({"colluding": 10}, "at least 11 parties"),
        ({"colluding": 5, "max_dropout": 5}, "at least 11 parties"),
        ({"max_dropout": 5}, "half"),
        ({"sample_rate": 0.5}, "amplifies nothing"),
        ({"rotation": "hadamard"}, "use rotation 'none'"),
        ({"placement": "local"}, "unit 'record'"),
        ({"local_steps": 2}, "placement 'local'"),
        (
            {"placement": "local", **{k: RECORD[k] for k in ("unit", "records")}, "counts": 1},
            "no counts",
        ),
        ({"unit": "none"}, "make_fixed_point_plan"),
    ],
)
def test_what_no_ring_could_mend_is_refused_with_the_remedy(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(**{**PARTY, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0), ("epsilon", -1.0), ("epsilon", math.nan), ("epsilon", math.inf),
        ("delta", 0.0), ("delta", 1.0), ("rounds", 0), ("parties", 0), ("dim", 0),
        ("clip_norm", 0.0), ("clip_norm", math.inf), ("clip_norm", math.nan),
        ("modulus_bits", 15), ("modulus_bits", 65), ("colluding", 0), ("max_dropout", -1),
        ("spare_attempts", -1), ("unit", "device"), ("accountant", "gdp"),
        ("noise_multiplier", 0.0), ("max_parties_per_person", 0), ("sample_rate", 0.0),
        ("mechanism", "laplace"), ("rotation", "fourier"), ("placement", "central"),
        ("counts", 3), ("counts", -1), ("count_share", 0.5), ("count_share", 0.0),
        ("local_steps", 0),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        make_plan(**{**PARTY, name: value})


def test_record_level_needs_the_public_total() -> None:
    with pytest.raises(ConfigError, match="records"):
        make_plan(**{**RECORD, "records": None})


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.01, "dim": 1 << 20, "rounds": 1000, "modulus_bits": 16},
        {"epsilon": 200.0, "parties": 1000, "dim": 10, "modulus_bits": 16},
        {"epsilon": 1.0, "dim": 100_000, "modulus_bits": 16, "rounds": 50},
    ],
)
def test_an_infeasible_plan_names_requests_that_do_work(change: dict[str, Any]) -> None:
    arguments = {**PARTY, **change}
    with pytest.raises(PlanError) as caught:
        make_plan(**arguments)
    text = str(caught.value)
    bits = int(re.search(r"modulus_bits to at least (\d+)", text)[1])
    epsilon = float(re.search(r"epsilon to ([\d.e+-]*\d)", text)[1])
    assert make_plan(**{**arguments, "modulus_bits": bits}).modulus_bits == bits
    with pytest.raises(PlanError):
        make_plan(**{**arguments, "modulus_bits": bits - 1})
    assert make_plan(**{**arguments, "epsilon": epsilon}).epsilon() <= epsilon


def test_an_infeasible_noise_multiplier_names_one_that_works() -> None:
    arguments = {**PARTY, "dim": 1 << 20, "modulus_bits": 16, "noise_multiplier": 100.0}
    with pytest.raises(PlanError, match="noise_multiplier to") as caught:
        make_plan(**arguments)
    nearest = float(re.search(r"noise_multiplier to ([\d.]+)", str(caught.value))[1])
    assert make_plan(**{**arguments, "noise_multiplier": nearest}).local_sigma >= 8


def test_the_fingerprint_covers_every_field_and_repeats() -> None:
    plan = make_plan(**PARTY)
    assert plan.fingerprint() == make_plan(**PARTY).fingerprint()
    assert len(dataclasses.fields(NoisePlan)) == 29
    for field in dataclasses.fields(NoisePlan):
        value = getattr(plan, field.name)
        other = value + 1 if isinstance(value, int | float) else "other"
        changed = dataclasses.replace(plan, **{field.name: other})
        assert changed.fingerprint() != plan.fingerprint(), field.name


def test_a_plan_survives_json() -> None:
    fixed = make_fixed_point_plan(parties=2, dim=3, rounds=1, modulus_bits=32)
    for plan in (make_plan(**RECORD), make_plan(**LOCAL), make_plan(**LOW_BIT, counts=2), fixed):
        assert json.loads(json.dumps(plan.to_dict(), allow_nan=False)) == plan.to_dict()


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan(**PARTY).epsilon_budget = 100.0


def test_without_privacy_epsilon_is_infinite_for_every_view() -> None:
    plan = make_fixed_point_plan(parties=2, dim=3, rounds=1, modulus_bits=32)
    assert plan.local_sigma == 0
    assert plan.clip_norm == math.inf
    for view in View:
        assert plan.epsilon(view=view) == math.inf


def test_a_ring_too_small_for_fixed_point_is_refused() -> None:
    with pytest.raises(PlanError, match="more bits"):
        make_fixed_point_plan(parties=200, dim=3, rounds=1, modulus_bits=8)
    with pytest.raises(ConfigError, match="dim"):
        make_fixed_point_plan(parties=2, dim=0, rounds=1, modulus_bits=8)


def test_a_bad_view_or_count_is_refused() -> None:
    plan = make_plan(**PARTY)
    with pytest.raises(ValueError, match="everybody"):
        plan.epsilon(view="everybody")
    with pytest.raises(ConfigError, match="rounds"):
        plan.epsilon(rounds=-1)


def test_a_job_gives_the_plan_of_its_tables() -> None:
    document: dict[str, Any] = {
        "task": "digits",
        "parties": {"count": 4},
        "privacy": {"unit": "record", "epsilon": 4.0, "sample_rate": 0.2, "records": 1000},
        "training": {"rounds": 10},
        "aggregation": {"backend": "plain"},
    }
    assert plan_for_job(parse_job(document, "job"), 50) == make_plan(**RECORD)
    document["privacy"] = {"unit": "none"}
    assert plan_for_job(parse_job(document, "job"), 50) == make_fixed_point_plan(
        parties=4, dim=50, rounds=10, modulus_bits=32
    )


def test_importing_the_layer_loads_nothing_heavy() -> None:
    script = (
        "import sys, mpcfl.dp; "
        "heavy = {'torch', 'mpi4py', 'crypten', 'dp_accounting', 'scipy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_delta_near_the_chance_of_a_wrap_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1e-10"):
        make_plan(
            epsilon=8.0, delta=1e-12, rounds=10, parties=10, dim=50, clip_norm=1.0, modulus_bits=32
        )
