"""What the tests of the privacy layer share: known answers, and bits that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.dp import Charge, NoisePlan, make_plan
from mpcfl.hazmat.bits import KeystreamBits, raw_keyed_bits

VECTORS = Path(__file__).parents[1] / "vectors" / "dp_known_answers.json"


@pytest.fixture(scope="session")
def known() -> dict[str, Any]:
    return json.loads(VECTORS.read_text())


@pytest.fixture
def keyed_bits() -> Callable[[int], KeystreamBits]:
    return lambda key: raw_keyed_bits(key.to_bytes(32, "big"))


@pytest.fixture(scope="session")
def party_plan() -> NoisePlan:
    return make_plan(
        epsilon=8.0, delta=1e-5, rounds=10, parties=10, dim=50, clip_norm=1.0, modulus_bits=32
    )


@pytest.fixture(scope="session")
def record_plan() -> NoisePlan:
    return make_plan(
        epsilon=4.0,
        delta=1e-5,
        rounds=20,
        parties=4,
        dim=30,
        clip_norm=0.5,
        modulus_bits=32,
        unit="record",
        sample_rate=0.2,
        records=1000,
    )


@pytest.fixture
def charge(party_plan: NoisePlan) -> Charge:
    return Charge(
        round_id=0,
        attempt=0,
        unit=party_plan.unit,
        noise_multiplier=2.0,
        sample_rate=1.0,
        contributors=10,
        purpose="update",
        plan_fingerprint=party_plan.fingerprint(),
    )
