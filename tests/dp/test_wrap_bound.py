from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mpcfl.config import Placement, Unit
from mpcfl.dp import draw_noise_share, make_plan, quantize_rows, sum_levels
from mpcfl.dp.accountant import AccountantKind
from mpcfl.dp.grid import round_grid
from mpcfl.dp.request import PlanRequest
from mpcfl.dp.rotation import round_signs
from mpcfl.dp.wrap_bound import Levels, _Spread, _sum_wraps, wrap_probability
from mpcfl.hazmat.bits import KeystreamBits

Keyed = Callable[[int], KeystreamBits]
SMALL: dict[str, Any] = {
    "epsilon": 8.0, "delta": 1e-5, "rounds": 10, "parties": 4, "dim": 64, "clip_norm": 1.0,
    "modulus_bits": 16,
}  # fmt: skip
REQUEST = PlanRequest(
    **SMALL,
    colluding=1,
    max_dropout=0,
    spare_attempts=0,
    unit=Unit.PARTY,
    sample_rate=1.0,
    records=None,
    mechanism="discrete-gaussian",
    rotation="none",
    noise_multiplier=None,
    max_parties_per_person=1,
    accountant=AccountantKind.PLD,
    placement=Placement.DISTRIBUTED,
    local_steps=1,
    counts=0,
    count_share=0.1,
)


def request(**changes: Any) -> PlanRequest:
    return dataclasses.replace(REQUEST, **changes)


@pytest.mark.parametrize("variance", [1, 3, 100, 10**6])
def test_the_skellam_tail_is_bounded_and_sharper_than_bernstein(variance: int) -> None:
    for deviations in (0.5, 2.0, 4.0, 8.0):
        room = deviations * math.sqrt(variance)
        bound = _Spread(0.0, float(variance)).tail(room)
        exact = stats.skellam.sf(math.ceil(room) - 1, variance / 2, variance / 2)
        assert exact <= bound <= math.exp(-(room**2) / (2 * (variance + room)))
        assert bound >= math.exp(-(room**2) / (2 * variance))


def test_a_plan_with_skellam_noise_is_held_to_the_skellam_tail() -> None:
    # 4 shares of variance 1 in a ring of +-15: far beyond what a Gaussian of variance 4 reaches.
    levels = Levels(sigma=1, clip_levels=0.0, count_level=0, saturation_int=1)
    gaussian, skellam = (
        _sum_wraps(request(mechanism=mechanism, modulus_bits=5), levels)
        for mechanism in ("discrete-gaussian", "skellam")
    )
    assert gaussian < 2 * stats.skellam.sf(13, 2, 2) <= skellam


def test_a_tail_of_both_parts_is_above_either_and_below_a_larger_gaussian() -> None:
    both = _Spread(50.0, 100.0).tail(60.0)
    assert both > _Spread(0.0, 100.0).tail(60.0)
    assert both > _Spread(50.0, 0.0).tail(60.0)
    assert both > _Spread(150.0, 0.0).tail(60.0)
    # The bound is the infimum over all l: no other may be lower.
    others = [-x * 60.0 + x * x * 25.0 + 100.0 * (math.cosh(x) - 1) for x in np.arange(0, 2, 0.001)]
    assert both == pytest.approx(math.exp(min(others)), rel=1e-3)
    assert both <= math.exp(min(others)) * (1 + 1e-12)


@pytest.mark.parametrize("room", [-3.0, 0.0])
def test_without_room_a_wrap_is_certain(room: float) -> None:
    assert _Spread(1.0, 0.0).tail(room) == 1.0
    assert wrap_probability(request(), Levels(8, 1e9, 0, 10)) == 1.0


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_in_a_ring_too_small_wraps_are_rarer_than_the_bound(
    mechanism: str, rotation: str, keyed_bits: Keyed
) -> None:
    # 4 parties with the same row, sigma 8 each, and 7 bits instead of 16. Of 25,600 sums with fresh
    # noise some 30 wrap (none: below 1e-11), where the bound allows 800.
    bits, rotated = 7, rotation == "hadamard"
    asked = request(modulus_bits=bits, rotation=rotation, mechanism=mechanism)
    clip_levels = 25.0 if rotated else 4.0
    levels = Levels(sigma=8, clip_levels=clip_levels, count_level=0, saturation_int=30)
    plan = dataclasses.replace(
        make_plan(**{**SMALL, "rotation": rotation, "mechanism": mechanism}),
        local_sigma=8,
        scale=levels.clip_levels,
        norm_bound_int=10**6,
        saturation_int=10**6,
    )
    # Every coordinate is at the clip norm, or two coordinates make a row of that norm.
    row = np.zeros((1, 64)) if rotated else np.ones((1, 64))
    row[0, :2] = [0.6, -0.8] if rotated else [-1.0, 1.0]
    wrapped, n_values = 0, 0
    for round_id in range(400):
        grid = round_grid(plan, round_id)
        blocks = [quantize_rows(row * (1 - 1e-9), grid, None, keyed_bits(k)) for k in range(4)]
        total = sum(sum_levels([block], plan) + draw_noise_share(plan).take() for block in blocks)
        wrapped += int(np.count_nonzero(np.abs(total) > 2 ** (bits - 1) - 1))
        n_values += total.size
    bound = _sum_wraps(asked, levels)
    assert 0 < wrapped / n_values < bound < 0.1


def test_a_rotated_signal_alone_stays_within_its_bound(keyed_bits: Keyed) -> None:
    # 8 parties with one row of 40 levels add up to a coordinate of deviation 40, noise of 3; about
    # 1 in 700 of 25,600 lies above 127 (none: below 1e-11), and the bound allows 1 in 45.
    plan = dataclasses.replace(
        make_plan(**{**SMALL, "rotation": "hadamard"}), local_sigma=1, scale=40.0,
        norm_bound_int=10**6, saturation_int=10**6,
    )  # fmt: skip
    rng = np.random.default_rng(11)  # noqa: TID251 - inputs only
    row = rng.normal(size=(1, 64))
    row *= (1 - 1e-9) / np.linalg.norm(row)
    wrapped = 0
    for round_id in range(400):
        levels = quantize_rows(np.tile(row, (8, 1)), round_grid(plan, round_id))
        noise = sum(draw_noise_share(plan).take() for _ in range(8))
        wrapped += int(np.count_nonzero(np.abs(levels.sum(axis=0) + noise) > 127))
    asked = request(parties=8, modulus_bits=8, rotation="hadamard")
    bound = _sum_wraps(asked, Levels(1, 40.0, 0, 10**6))
    assert 0 < wrapped / 25_600 < bound < 0.03


@pytest.mark.parametrize(("parties", "c"), [(4, 50.0), (1, 205.0)])
def test_the_bound_adds_up_sums_and_single_values_of_all_rounds(parties: int, c: float) -> None:
    sigma, count_level, half = 6, 50, 2**8 - 1
    asked = request(parties=parties, modulus_bits=9, spare_attempts=3, counts=2)

    def wraps(signal: float) -> float:
        """Bound the sum of all parties, and every party's value."""
        of_all = 2 * math.exp(-((half - parties * signal) ** 2) / (2 * parties * sigma**2))
        return of_all + parties * 2 * math.exp(-((half - signal) ** 2) / (2 * sigma**2))

    expected = 13 * (64 * wraps(c + 0.5) + 2 * wraps(count_level))
    found = wrap_probability(asked, Levels(sigma, c, count_level, 10**6))
    assert expected < 1.0
    assert expected * (1 - 1e-9) <= found <= expected * (1 + 2**-14)


@pytest.mark.parametrize("mechanism", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("rotation", "bits"), [("none", 16), ("hadamard", 12), ("hadamard", 10)])
def test_the_worst_inputs_at_both_ends_never_wrap(
    mechanism: str, sign: float, rotation: str, bits: int
) -> None:
    plan = make_plan(
        **{**SMALL, "modulus_bits": bits, "rotation": rotation, "mechanism": mechanism}
    )
    half = 2 ** (bits - 1)
    spike = np.zeros((1, 64))
    spike[0, 5] = sign * (1 - 1e-9)
    flat = np.full((1, 64), sign * (1 - 1e-9) / 8)
    for row in (spike, flat):
        for round_id in range(20):
            grid = round_grid(plan, round_id)
            values = [
                sum_levels([quantize_rows(row, grid)], plan) + draw_noise_share(plan).take()
                for _ in range(plan.parties)
            ]
            assert max(np.abs(value).max() for value in values) < half
            assert np.abs(np.sum(values, axis=0)).max() < half


@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_saturated_sums_of_all_parties_fit_at_record_level(rotation: str) -> None:
    plan = make_plan(
        **{**SMALL, "modulus_bits": 20, "rotation": rotation, "dim": 1 << 15}, unit="record",
        sample_rate=0.1, records=2000, counts=1, count_share=0.3,
    )  # fmt: skip
    assert plan.wrap_probability <= 2.0**-40
    largest = plan.parties * plan.saturation_int
    assert largest + 6.5 * plan.local_sigma * math.sqrt(plan.parties) < 2**19
    # 200 records are sampled on average, and every one may count 1.
    assert plan.saturation_int >= 200 * plan.count_level_int


def test_a_rotation_needs_less_room_at_record_level(keyed_bits: Keyed) -> None:
    base = {**SMALL, "dim": 1000, "unit": "record", "sample_rate": 0.1, "records": 2000}
    plain = make_plan(**{**base, "modulus_bits": 20})
    rotated = make_plan(**{**base, "modulus_bits": 20}, rotation="hadamard")
    assert rotated.local_sigma >= 2 * plain.local_sigma
    # All records of a party alike: its sum still stays below the saturation.
    row = np.zeros((1, 1000))
    row[0, 3] = 1 - 1e-9
    rows = np.tile(row, (250, 1))
    for round_id in range(5):
        levels = quantize_rows(rows, round_grid(rotated, round_id), None, keyed_bits(round_id))
        assert np.abs(levels.sum(axis=0)).max() < rotated.saturation_int


def test_the_bound_is_rounded_up_to_a_few_bits() -> None:
    probability = wrap_probability(request(), Levels(64, 100.0, 0, 101))
    mantissa, _ = math.frexp(probability)
    assert (mantissa * 2**16).is_integer()
    assert 0.0 < wrap_probability(request(modulus_bits=60), Levels(8, 10.0, 0, 10)) < 1e-300


@pytest.mark.parametrize("bits", [12, 13, 16])
def test_a_row_aligned_with_the_public_signs_still_fits_the_ring(bits: int) -> None:
    # A backend refuses a value outside the ring, and all see it: no row may bring that about.
    plan = make_plan(
        epsilon=200.0, delta=1e-5, rounds=1, parties=10, dim=2**14, clip_norm=1.0,
        modulus_bits=bits, rotation="hadamard",
    )  # fmt: skip
    aligned = round_signs(plan, 0)[None, :] / math.sqrt(plan.dim) * (1 - 1e-9)
    largest = np.abs(quantize_rows(aligned, round_grid(plan, 0))).max()
    # All of the row is in one coordinate, and the noise still has ten deviations of room.
    assert largest >= 0.9 * plan.scale - 1
    assert largest + 10 * plan.local_sigma < 2 ** (bits - 1)
