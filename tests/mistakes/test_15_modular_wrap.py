"""Mistake 15: the sum wraps around the ring, or the bits are too few for what they carry.

Who made it: google-research/federated#66 (parameters without meaning at 16 bits),
fedbiomed#1210, #1089 and #898, flower PR#4982 (the clipping range of quantized values). What
goes wrong: a sum beyond 2^(b-1) comes back with the other sign; the model is destroyed though
the figure for epsilon still holds. What would have to break here: a plan that does not fit is
made, a value outside the ring is wrapped in silence, or a party's sum is not saturated.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from mpcfl.dp import plan_for_job, sum_levels
from mpcfl.errors import PlanError, WrapDetected
from mpcfl.net.memory import run_parties
from mpcfl.round import run_round
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.registry import load_backend

REQUESTS = [
    {"modulus_bits": bits, "dim": dim, "parties": parties, "unit": unit, **more}
    for bits in (16, 20, 24, 32, 48, 64)
    for dim in (1, 1 << 20)
    for parties in (2, 40)
    for unit, more in (("party", {}), ("record", {"records": 2000}))
]


def worst_sum(plan) -> float:
    """All parties at their largest value, and noise that is rarer than 2^-41 for the run."""
    values = 2 * plan.dim * (plan.rounds + plan.spare_attempts)
    tail = math.sqrt(2 * math.log(values * 2**41))
    largest = plan.saturation_int if plan.unit == "record" else plan.scale * plan.clip_norm + 0.5
    return plan.parties * largest + plan.local_sigma * math.sqrt(plan.parties) * tail


def all_fit(plan_of) -> bool:
    plans = []
    for request in REQUESTS:
        try:
            plans.append(plan_of(**request))
        except PlanError:
            continue
    assert len(plans) > len(REQUESTS) // 3
    return all(worst_sum(plan) < 2 ** (plan.modulus_bits - 1) for plan in plans)


def test_the_worst_sum_of_every_plan_fits_its_ring(plan_of, sabotage):
    assert all_fit(plan_of)
    with sabotage("mpcfl.dp.ring_fit:wrap_probability", lambda right, *arguments: 0.0):
        assert not all_fit(plan_of)


def test_too_few_bits_are_refused_with_a_number_that_works(plan_of):
    tight = {"unit": "record", "records": 2000, "modulus_bits": 16}
    with pytest.raises(PlanError, match=r"modulus_bits to at least (\d+)") as refused:
        plan_of(**tight)
    bits = int(str(refused.value).partition("at least ")[2].split(",")[0].split(" ")[0])
    assert plan_of(**tight | {"modulus_bits": bits}).modulus_bits == bits
    with pytest.raises(PlanError):
        plan_of(**tight | {"modulus_bits": bits - 1})


def open_sum(inputs: list[np.ndarray], backend: str = "plain", bits: int = 20) -> np.ndarray:
    def program(transport):
        settings = SumSettings(dim=len(inputs[0]), modulus_bits=bits, run_id="test")
        secure = load_backend(backend)(transport, settings)
        return secure.open(secure.aggregate(secure.protect(inputs[transport.rank])))

    return run_parties(len(inputs), program, 120.0)[0]


@pytest.mark.parametrize("backend", ["plain", "crypten"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_single_value_outside_the_ring_is_refused_and_not_wrapped(backend, sign):
    edge = np.array([2**19 - 1 if sign > 0 else -(2**19), 0], dtype=np.int64)
    zero = np.zeros(2, dtype=np.int64)
    np.testing.assert_array_equal(open_sum([edge, zero, zero], backend), edge)
    with pytest.raises(WrapDetected, match="more modulus bits"):
        open_sum([edge + sign, zero, zero], backend)


@pytest.fixture
def record_mean_is_right(job_of, line_task):
    """Tell whether a sum in which all records pull the same way keeps sign and size.

    All records are sampled, and each is far above the clip norm: the largest signal there is.
    """

    class Steep(line_task):
        def party_data(self, party, n_parties):
            return torch.ones(30, self.n_inputs), 1e4 * torch.ones(30, 1)

    def check(bits: int, rotation: str = "none") -> bool:
        job = job_of(
            Steep,
            "record",
            privacy={"records": 90, "epsilon": 100.0, "rotation": rotation},
            # A checked sum refuses to wrap.
            aggregation={"modulus_bits": bits, "checked": False},
        )
        plan = plan_for_job(job, 3)
        # The model starts at zero and the server's step is one mean of 90 clipped gradients.
        error = run_round(job).parameters - 1 / math.sqrt(3)
        noise = 8 * math.sqrt(3) * plan.local_sigma
        rounding = 90 * 0.5 + 8 * math.sqrt(90) / 2
        return bool(np.all(np.abs(error) < (noise + rounding) / (90 * plan.scale)))

    return check


@pytest.mark.parametrize("bits", [17, 24, 32])
def test_the_largest_signal_comes_back_with_its_sign(bits, record_mean_is_right, sabotage):
    assert record_mean_is_right(bits)
    if bits > 17:
        return

    def too_fine(right, request, multiplier, sigma):
        """Give every plan a grid that is eight times too fine for its ring."""
        fit = right(request, multiplier, sigma)
        if fit is None:
            return None
        return dataclasses.replace(
            fit,
            scale=fit.scale * 8,
            local_sigma=fit.local_sigma * 8,
            norm_bound_int=fit.norm_bound_int * 64,
            saturation_int=fit.saturation_int * 8,
        )

    with sabotage("mpcfl.dp.ring_fit:fit_sigma", too_fine):
        assert not record_mean_is_right(bits)


@pytest.mark.parametrize("bits", [16, 20])
def test_so_it_does_in_a_ring_of_few_bits(bits, record_mean_is_right):
    assert record_mean_is_right(bits, "hadamard")


def test_a_partys_sum_is_saturated_and_never_wrapped(plan_of):
    plan = plan_of(unit="record", records=2000, modulus_bits=32, dim=2)
    rows = np.full((2000, 2), plan.saturation_int // 4, dtype=np.int64)
    rows[:, 1] *= -1
    np.testing.assert_array_equal(
        sum_levels([rows], plan), [plan.saturation_int, -plan.saturation_int]
    )
