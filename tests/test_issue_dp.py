"""Claims of the privacy layer from outside: own formulas and sums, the public interface only."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

import mpcfl.dp as dp
from mpcfl.errors import ConfigError, LedgerError, PlanError

KNOWN = json.loads((Path(__file__).parent / "vectors" / "dp_known_answers.json").read_text())
PLAN_RESULTS = {
    "noise_multiplier": 1e-5,
    "local_sigma": 0,
    "scale": 1e-6,
    "norm_bound_int": 1e-7,
    "rounding_inflation": 1e-4,
    "overhead_vs_central": 1e-4,
}
BASE: dict[str, Any] = {
    "epsilon": 4.0,
    "delta": 1e-5,
    "rounds": 20,
    "parties": 6,
    "dim": 300,
    "clip_norm": 0.7,
    "modulus_bits": 24,
}


# --- own oracles: nothing below uses the package under test ---


def exact_gaussian_epsilon(multiplier: float, delta: float) -> float:
    """Root of the analytic Gaussian curve in 40 digits."""
    with mpmath.workdps(40):
        mu = 1 / mpmath.mpf(multiplier)

        def excess(eps: Any) -> Any:
            return (
                mpmath.ncdf(mu / 2 - eps / mu)
                - mpmath.exp(eps) * mpmath.ncdf(-mu / 2 - eps / mu)
                - delta
            )

        low, high = mpmath.mpf(0), mu * mu / 2 + 12 * mu
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        return float(high)


def google_pld(multiplier: float, rate: float, rounds: int, delta: float) -> float:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
    return float(PLDAccountant().compose(event, rounds).get_epsilon(delta))


def renyi_epsilon(multiplier: float, rounds: int, delta: float) -> float:
    """Canonne, Kamath, Steinke's conversion at the best real order."""
    orders = 1 + np.geomspace(1e-3, 1e4, 400_000)
    curve = rounds * orders / (2 * multiplier**2)
    values = curve + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return float(values.min())


def summed_noise(sigma: int, shares: int) -> np.ndarray:
    """Mass of the sum of independent discrete Gaussians, by plain convolution."""
    reach = np.arange(-12 * sigma, 12 * sigma + 1)
    one = np.exp(-(reach.astype(float) ** 2) / (2 * sigma**2))
    one /= one.sum()
    mass = one
    for _ in range(shares - 1):
        mass = np.convolve(mass, one)
    return mass


def released_delta(
    mass: np.ndarray, shift: int, *, epsilon: float, rate: float = 1.0, rounds: int = 1
) -> float:
    """Hockey-stick divergence, the worse direction, of one or two releases in one dimension."""
    out = np.concatenate([mass, np.zeros(shift)])
    moved = np.concatenate([np.zeros(shift), mass])
    both = [(1 - rate) * out + rate * moved, out]
    if rounds == 2:
        both = [np.outer(law, law) for law in both]
    p, q = both
    return max(float(np.maximum(a - math.exp(epsilon) * b, 0).sum()) for a, b in ((p, q), (q, p)))


def ring_has_room(plan: dp.NoisePlan, arguments: dict[str, Any], sigma: int) -> bool:
    """Say whether a share of this size fits the ring, by the plan equations of the wide ring."""
    n, d = arguments["parties"], arguments["dim"]
    m = n - arguments.get("colluding", 1) - arguments.get("max_dropout", 0)
    bound = math.sqrt(m * sigma**2 - 4) / plan.noise_multiplier
    level = bound - math.sqrt(d) / 2  # s times c
    tail = sigma * math.sqrt(2 * n * math.log(2 * d * arguments["rounds"] * 2.0**40))
    return level > 0 and 2 * (n * (level + 0.5) + tail) + 2 <= 2 ** arguments["modulus_bits"]


# --- (a) known answers ---


@pytest.mark.parametrize("row", KNOWN["continuous"], ids=lambda row: f"z{row['noise_multiplier']}")
def test_continuous_rows_through_the_public_interface(row: dict[str, Any]) -> None:
    request = {
        "noise_multiplier": row["noise_multiplier"],
        "sample_rate": row["q"],
        "rounds": row["steps"],
        "delta": row["delta"],
    }
    pld = dp.gaussian_epsilon(**request)
    assert pld == pytest.approx(row["dpa_pld"], abs=0.002)
    assert pld == pytest.approx(row["opacus_prv"], abs=0.0115)  # PRV rounds up by 0.01
    assert row["ms_prv_lo"] <= pld + 1e-4
    renyi = dp.gaussian_epsilon(**request, accountant="rdp")
    assert pld <= renyi <= row["dpa_rdp"] + 0.002


@pytest.mark.parametrize("row", KNOWN["discrete"], ids=lambda row: f"D{row['Delta2']}-S{row['S']}")
def test_discrete_rows_through_the_public_interface(row: dict[str, Any]) -> None:
    request = {
        "l2_sensitivity": row["Delta2"],
        "local_sigma": row["S"],
        "parties": row["n"],
        "colluding": row["t"],
        "dim": row["d"],
        "rounds": row["T"],
        "delta": row["delta"],
        "sample_rate": row["q"],
    }
    pld = dp.discrete_gaussian_epsilon(**request)
    assert pld == pytest.approx(row["pld_sigma2_minus_4"], abs=0.002)
    assert pld >= row["pld_same_sigma_UNSOUND"] - 1e-4
    published = row["dpa_zcdp_rdp"] if row["dpa_zcdp_rdp"] is not None else row["ddg_rdp_int"]
    renyi = dp.discrete_gaussian_epsilon(**request, accountant="rdp")
    assert renyi == pytest.approx(published, abs=0.002)
    assert dp.skellam_epsilon(**request) == pytest.approx(row["skellam_L_rdp"], abs=0.002)


@pytest.mark.parametrize("row", KNOWN["plan"], ids=lambda row: f"b{row['modulus_bits']}")
def test_plan_rows_and_the_largest_sigma_that_fits(row: dict[str, Any]) -> None:
    arguments = {key: row[key] for key in row if key not in PLAN_RESULTS}
    plan = dp.make_plan(**arguments)
    for name, tolerance in PLAN_RESULTS.items():
        assert getattr(plan, name) == pytest.approx(row[name], rel=tolerance), name
    assert ring_has_room(plan, arguments, plan.local_sigma)
    assert plan.local_sigma == 2**28 or not ring_has_room(plan, arguments, 2 * plan.local_sigma)
    # Without sampling and Renyi orders the figure is the analytic curve at the lemma's noise.
    m = row["parties"] - row["colluding"] - row["max_dropout"]
    z = math.sqrt((m * plan.local_sigma**2 - 4) / plan.norm_bound_int / row["rounds"])
    assert plan.epsilon() == pytest.approx(exact_gaussian_epsilon(z, row["delta"]), rel=1e-5)
    assert 0.999 * row["epsilon"] < plan.epsilon() <= row["epsilon"]


def test_the_oracle_of_this_file_meets_the_published_divergences() -> None:
    for row in KNOWN["ibm"]["dg_delta"]:
        mass = summed_noise(math.isqrt(row["sigma2"]), 1)
        found = released_delta(mass, row["sens"], epsilon=row["eps"])
        assert found == pytest.approx(row["delta"], rel=1e-8)
    for row in KNOWN["ibm"]["cdp_eps"]:
        z = 1 / math.sqrt(2 * row["rho"])
        assert renyi_epsilon(z, 1, row["delta"]) == pytest.approx(row["eps"], abs=2e-6)
        reported = dp.gaussian_epsilon(
            noise_multiplier=z, sample_rate=1.0, rounds=1, delta=row["delta"], accountant="rdp"
        )
        assert row["eps"] - 1e-6 <= reported <= row["eps"] * 1.02


@pytest.mark.parametrize("z", [0.3, 1.7, 25.0])
@pytest.mark.parametrize("rounds", [1, 40])
@pytest.mark.parametrize("delta", [1e-9, 1e-3])
def test_further_rows_without_sampling(z: float, rounds: int, delta: float) -> None:
    request: dict[str, Any] = {
        "noise_multiplier": z,
        "sample_rate": 1.0,
        "rounds": rounds,
        "delta": delta,
    }
    truth = exact_gaussian_epsilon(z / math.sqrt(rounds), delta)
    found = dp.gaussian_epsilon(**request)
    assert truth - 1e-12 <= found <= truth * (1 + 1e-6) + 1e-9
    # If delta alone nearly pays, the conversion at real orders beats a grid of them by more.
    lower = max(renyi_epsilon(z, rounds, delta), 0.0)
    assert lower - 1e-6 <= dp.gaussian_epsilon(**request, accountant="rdp")


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "delta"),
    [(0.65, 0.03, 150, 1e-6), (1.5, 0.4, 60, 1e-5), (6.0, 0.9, 30, 1e-7)],
)
def test_further_rows_with_sampling(z: float, rate: float, rounds: int, delta: float) -> None:
    found = dp.gaussian_epsilon(noise_multiplier=z, sample_rate=rate, rounds=rounds, delta=delta)
    assert found == pytest.approx(google_pld(z, rate, rounds, delta), abs=0.002)
    assert found < exact_gaussian_epsilon(z / math.sqrt(rounds), delta)


# --- (b) never below what one dimension already costs ---


@pytest.mark.parametrize(
    ("parties", "rate", "budget"), [(2, 1.0, 3.0), (3, 1.0, 0.6), (3, 0.3, 2.0), (4, 0.5, 4.5)]
)
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_plan_never_promises_more_than_its_integers_keep(
    parties: int, rate: float, budget: float, rounds: int
) -> None:
    delta = 1e-5
    plan = dp.make_plan(
        epsilon=budget,
        delta=delta,
        rounds=rounds,
        parties=parties,
        dim=1,
        clip_norm=1.0,
        modulus_bits=12,
        unit="record",
        sample_rate=rate,
        records=30,
        rotation="hadamard",
    )
    shift = math.isqrt(plan.norm_bound_int)
    assert shift >= 1
    mass = summed_noise(plan.local_sigma, parties - 1)
    spent = plan.epsilon()
    truth = released_delta(mass, shift, epsilon=spent, rate=rate, rounds=rounds)
    assert truth <= delta * (1 + 1e-9)
    # The oracle bites: a tenth less epsilon would be a false promise, unless rounding down of
    # the shift left room.
    less = released_delta(mass, shift + 1, epsilon=0.9 * spent, rate=rate, rounds=rounds)
    assert less > delta


@pytest.mark.parametrize("sigma", [1, 2, 8])
@pytest.mark.parametrize("shift", [1, 3, 8])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_small_sigmas_are_never_undercharged(sigma: int, shift: int, rate: float) -> None:
    for parties in (2, 4):
        spent = dp.discrete_gaussian_epsilon(
            l2_sensitivity=shift,
            local_sigma=sigma,
            parties=parties,
            colluding=1,
            dim=1,
            rounds=1,
            delta=1e-4,
            sample_rate=rate,
        )
        mass = summed_noise(sigma, parties - 1)
        truth = released_delta(mass, shift, epsilon=spent, rate=rate)
        assert truth <= 1e-4 * (1 + 1e-9), parties


# --- (c) plans ---


def test_equal_requests_have_equal_fingerprints_and_others_do_not() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"epsilon": 4.0000001},
        {"delta": 1.1e-5},
        {"rounds": 21},
        {"parties": 7},
        {"dim": 301},
        {"clip_norm": 0.71},
        {"modulus_bits": 25},
        {"colluding": 2},
        {"max_dropout": 1},
        {"spare_attempts": 1},
        {"mechanism": "skellam"},
        {"accountant": "rdp"},
        {"unit": "record", "records": 100},
        {"unit": "record", "records": 101},
    ]
    plans = [dp.make_plan(**{**BASE, **change}) for change in changes]
    prints = [plan.fingerprint for plan in plans]
    values = [text() if callable(text) else text for text in prints]
    assert len(set(values)) == len(changes)
    again = dp.make_plan(**BASE)
    repeated = again.fingerprint() if callable(again.fingerprint) else again.fingerprint
    assert repeated == values[0]
    assert again == plans[0]
    assert hash(again) == hash(plans[0])


def test_no_field_of_a_plan_can_be_set() -> None:
    plan = dp.make_plan(**BASE)
    for field in dataclasses.fields(plan):
        with pytest.raises((AttributeError, TypeError)):
            setattr(plan, field.name, getattr(plan, field.name))
    with pytest.raises((AttributeError, TypeError)):
        plan.another = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [{}, {"max_dropout": 2}, {"modulus_bits": 16, "dim": 40}])
def test_sigma_is_the_largest_power_of_two_that_the_ring_holds(change: dict[str, Any]) -> None:
    arguments = {**BASE, **change}
    plan = dp.make_plan(**arguments)
    assert plan.local_sigma.bit_count() == 1
    assert plan.local_sigma >= 8
    assert ring_has_room(plan, arguments, plan.local_sigma)
    assert not ring_has_room(plan, arguments, 2 * plan.local_sigma)
    assert plan.wrap_probability <= 2.0**-40


def test_epsilon_grows_with_rounds_and_knowledge_and_falls_with_contributors() -> None:
    plan = dp.make_plan(**{**BASE, "max_dropout": 2, "colluding": 2})
    by_round = [plan.epsilon(rounds=count) for count in range(21)]
    assert by_round[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(by_round))
    by_number = [plan.epsilon(contributors=count) for count in (4, 5, 6)]
    assert by_number[0] == plan.epsilon()
    assert by_number[0] > by_number[1] > by_number[2]
    views = [plan.epsilon(view=view) for view in ("outsider", "single", "coalition")]
    assert views[0] < views[1] < views[2]


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"rounds": 0},
        {"parties": 0},
        {"dim": 0},
        {"clip_norm": 0.0},
        {"clip_norm": -1.0},
        {"modulus_bits": 8},
        {"modulus_bits": 65},
        {"colluding": 0},
        {"colluding": 6},
        {"max_dropout": -1},
        {"max_dropout": 3},
        {"spare_attempts": -1},
        {"unit": "person"},
        {"unit": "record"},  # without the public total
        {"unit": "party", "sample_rate": 0.5},
        {"unit": "record", "records": 100, "sample_rate": 0.0},
        {"unit": "record", "records": 100, "sample_rate": 1.01},
        {"mechanism": "laplace"},
        {"rotation": "hadamard"},  # at 24 bits
        {"rotation": "fourier"},
        {"accountant": "gdp"},
    ],
    ids=str,
)
def test_requests_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, PlanError)):
        dp.make_plan(**{**BASE, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"modulus_bits": 16, "dim": 1_000_000},
        {"modulus_bits": 11, "rotation": "hadamard", "dim": 1000},
        {"modulus_bits": 11, "rotation": "hadamard", "dim": 5000, "parties": 12},
    ],
    ids=str,
)
def test_what_an_infeasible_request_is_told_to_change_is_the_least_change(
    change: dict[str, Any],
) -> None:
    arguments = {**BASE, **change}
    with pytest.raises(PlanError) as refused:
        dp.make_plan(**arguments)
    message = str(refused.value)
    bits = int(re.search(r"modulus_bits to at least (\d+)", message)[1])  # type: ignore[index]
    epsilon = float(re.search(r"epsilon to ([\d.e+-]*\d)", message)[1])  # type: ignore[index]
    dp.make_plan(**{**arguments, "modulus_bits": bits})
    dp.make_plan(**{**arguments, "epsilon": epsilon})
    for fewer in range(arguments["modulus_bits"], bits):
        with pytest.raises(PlanError):
            dp.make_plan(**{**arguments, "modulus_bits": fewer})
    # The set of epsilons that work need not be an interval: look on both sides.
    gap = abs(epsilon - arguments["epsilon"]) * 0.97
    for step in np.linspace(0.0, gap, 12):
        for nearer in (arguments["epsilon"] + step, arguments["epsilon"] - step):
            if nearer > 0:
                with pytest.raises(PlanError):
                    dp.make_plan(**{**arguments, "epsilon": float(nearer)})


# --- (f) a retry is a second draw, and is paid for twice ---


def test_retries_that_a_crash_cut_short_are_charged_twice(tmp_path: Path) -> None:
    plan = dp.make_plan(
        **{**BASE, "rounds": 12, "spare_attempts": 12, "unit": "record", "records": 500},
        sample_rate=0.05,
    )
    path, spent = tmp_path / "party-0.jsonl", [0.0]
    budget = dp.Budget(epsilon=plan.epsilon_budget, delta=plan.delta)
    for round_id in range(12):
        for attempt in (0, 1):
            # Every attempt is a process of its own; the first one dies after its reserve.
            with dp.Ledger.open(path, identity="task/ada", budget=budget) as ledger:
                assert ledger.next_attempt(round_id) == attempt
                token = ledger.reserve(dp.planned_charge(plan, round_id, attempt))
                if attempt:
                    ledger.opened(token)
                    ledger.commit(token)
                spent.append(ledger.epsilon())
    assert all(a < b for a, b in itertools.pairwise(spent))
    z = math.sqrt((5 * plan.local_sigma**2 - 4) / plan.norm_bound_int)
    assert spent[-1] == pytest.approx(google_pld(z, 0.05, 24, plan.delta), abs=0.002)
    assert spent[-1] > 1.15 * google_pld(z, 0.05, 12, plan.delta)
    assert dp.verify_ledger(path).epsilon == pytest.approx(spent[-1], abs=1e-9)
    with (
        dp.Ledger.open(path, identity="task/ada", budget=budget) as ledger,
        pytest.raises(LedgerError),
    ):
        ledger.reserve(dp.planned_charge(plan, 12, 0))


def test_the_figures_of_two_draws_and_of_one_sample_used_twice() -> None:
    twice: dict[str, Any] = {"sample_rate": 0.01, "delta": 1e-5}
    fresh = dp.gaussian_epsilon(noise_multiplier=1.0, rounds=2000, **twice)
    reused = dp.gaussian_epsilon(noise_multiplier=math.sqrt(0.5), rounds=1000, **twice)
    assert fresh == pytest.approx(2.58, abs=0.005)
    assert reused == pytest.approx(4.48, abs=0.005)
