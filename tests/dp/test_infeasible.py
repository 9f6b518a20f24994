from __future__ import annotations

import math
import re
from typing import Any
from unittest.mock import patch

import pytest

from mpcfl.dp import make_plan
from mpcfl.errors import PlanError

PARTY: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-5, "rounds": 10, "parties": 10, "dim": 50, "clip_norm": 1.0,
    "modulus_bits": 16,
}  # fmt: skip
RECORD: dict[str, Any] = {"unit": "record", "records": 1000, "sample_rate": 1.0}


def fits(arguments: dict[str, Any]) -> bool:
    # Looking for a remedy takes longer than finding that there is need of one.
    with patch("mpcfl.dp.planner.explain_infeasible", return_value="infeasible"):
        try:
            make_plan(**arguments)
        except PlanError:
            return False
    return True


def refusal(arguments: dict[str, Any]) -> str:
    with pytest.raises(PlanError) as caught:
        make_plan(**arguments)
    return str(caught.value)


def three_digits(low: float, high: float) -> list[float]:
    """Return all numbers of three significant digits strictly between two."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    numbers = (float(f"{digits}e{decade - 2}") for decade in decades for digits in range(100, 1000))
    return [number for number in numbers if low < number < high]


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.05, "dim": 20_000},
        {"epsilon": 300.0, "parties": 400, "colluding": 100},
        {"epsilon": 1.0, "dim": 100_000, "rounds": 50},
        {"epsilon": 0.1, "dim": 30_000, "mechanism": "skellam", "rounds": 100},
        {
            "epsilon": 4.0,
            "rounds": 1,
            "parties": 100,
            "dim": 250,
            "rotation": "hadamard",
            "modulus_bits": 10,
            "mechanism": "skellam",
        },
        {"epsilon": 0.02, "rotation": "hadamard", "modulus_bits": 12},
        {"epsilon": 0.01, "counts": 2, "dim": 5000},
        {"epsilon": 500.0, **RECORD, "records": 400},
        # Two sigmas leave a gap between the budgets that they can serve.
        {"epsilon": 900.0, "dim": 100_000_000},
    ],
)
def test_the_epsilon_named_is_the_nearest_that_works(change: dict[str, Any]) -> None:
    arguments = {**PARTY, **change}
    asked = arguments["epsilon"]
    text = refusal(arguments)
    nearest = float(re.search(r"epsilon to ([\d.e+-]*\d)", text)[1])
    assert fits({**arguments, "epsilon": nearest})
    away = abs(nearest - asked)
    nearer = three_digits(max(asked - away, asked / 1000), asked + away)
    # Some keep the test short; the interval of one sigma is much wider than the step.
    tried = {*nearer[:: 1 + len(nearer) // 300], *nearer[:9], *nearer[-9:]}
    assert not any(fits({**arguments, "epsilon": epsilon}) for epsilon in tried)


@pytest.mark.parametrize(
    "change",
    [{"epsilon": 0.05, "dim": 20_000}, {"epsilon": 300.0, "parties": 400, "colluding": 100}],
)
def test_the_ring_named_is_the_smallest_that_works(change: dict[str, Any]) -> None:
    arguments = {**PARTY, **change}
    bits = int(re.search(r"modulus_bits to at least (\d+)", refusal(arguments))[1])
    assert [fits({**arguments, "modulus_bits": b}) for b in (bits - 1, bits)] == [False, True]
    # One bit short gives the same answer.
    text = refusal({**arguments, "modulus_bits": bits - 1})
    assert f"modulus_bits to at least {bits}," in text


def test_a_low_bit_request_that_needs_a_wide_ring_is_sent_there() -> None:
    arguments = {**PARTY, "epsilon": 0.01, "dim": 1 << 22, "rounds": 1000, "rotation": "hadamard"}
    text = refusal(arguments)
    found = re.search(r"modulus_bits to at least (\d+) and rotation to 'none'", text)
    assert fits({**arguments, "modulus_bits": int(found[1]), "rotation": "none"})


@pytest.mark.parametrize(("multiplier", "parties"), [(100.0, 10), (1e-2, 400)])
def test_the_noise_multiplier_named_is_the_nearest_that_works(
    multiplier: float, parties: int
) -> None:
    arguments = {**PARTY, "parties": parties, "epsilon": 1e9, "dim": 1 << 20}
    arguments["noise_multiplier"] = multiplier
    nearest = float(re.search(r"noise_multiplier to ([\d.e+-]*\d)", refusal(arguments))[1])
    assert fits({**arguments, "noise_multiplier": nearest})
    step = 1.01 if nearest < multiplier else 1 / 1.01
    assert not fits({**arguments, "noise_multiplier": nearest * step})


def test_sampled_requests_are_searched_too() -> None:
    arguments = {**PARTY, **RECORD, "sample_rate": 0.1, "epsilon": 0.05, "dim": 1 << 20}
    nearest = float(re.search(r"epsilon to ([\d.e+-]*\d)", refusal(arguments))[1])
    assert fits({**arguments, "epsilon": nearest})
    assert not fits({**arguments, "epsilon": nearest * 0.98})
