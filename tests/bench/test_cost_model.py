import dataclasses
import math

import numpy as np
import pytest

from mpcfl.bench.cost_model import (
    SHARED_RATES,
    CostModel,
    Link,
    MeasuredCell,
    Workload,
    amounts,
    coordinate_rate,
    count,
    fit,
)
from mpcfl.errors import ConfigError
from mpcfl.net.memory import run_parties
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.registry import load_backend

CORES = 2
RATES = {
    "sum": 2e-4,
    "exchange": 8e-5,
    "message": 1.2e-5,
    "wire_byte": 3e-10,
    "mask_key": 2e-5,
    "mask_byte": 7e-10,
    "coordinate_plain": 5e-9,
    "coordinate_ring": 6e-9,
}
TRUTH = CostModel(RATES)
WORKLOADS = [
    Workload(backend, parties, dim, 32, neighbors)
    for parties in (2, 4, 8, 16, 32, 64)
    for dim in (1_000, 30_000, 1_000_000, 4_000_000)
    for backend, neighbors in (("plain", 0), ("ring", parties - 1), ("ring", parties // 2))
]


def _cells(factors=None):
    """Cells that follow the true rates, each off by a factor."""
    seconds = [TRUTH.predict(workload, CORES) for workload in WORKLOADS]
    factors = np.ones(len(seconds)) if factors is None else factors
    return [
        MeasuredCell(workload, CORES, float(true * factor))
        for workload, true, factor in zip(WORKLOADS, seconds, factors, strict=True)
    ]


def _noise():
    """Factors within 10 %, the same on every run, with no pattern that the model could follow."""
    return 1 + 0.1 * np.cos(np.arange(len(WORKLOADS)) ** 2)


@pytest.mark.parametrize("backend", ["plain", "ring"])
@pytest.mark.parametrize(
    ("parties", "dim", "bits"), [(2, 1, 32), (3, 100, 20), (5, 1001, 64), (2, 2_200_000, 32)]
)
def test_counts_are_what_the_transport_counts(backend, parties, dim, bits):
    levels = np.zeros(dim, dtype=np.int64)

    def party(transport):
        settings = SumSettings(dim=dim, modulus_bits=bits, run_id="0" * 32)
        session = load_backend(backend)(transport, settings)
        meter = transport.meter
        before = meter.messages_sent, meter.bytes_sent
        session.open(session.aggregate(session.protect(levels)))
        session.close()
        return meter.messages_sent - before[0], meter.bytes_sent - before[1]

    found = run_parties(parties, party)
    neighbors = parties - 1 if backend == "ring" else 0
    counted = count(Workload(backend, parties, dim, bits, neighbors))
    assert counted.metered == tuple(map(sum, zip(*found, strict=True)))
    assert counted.messages * parties == counted.metered[0]
    assert counted.bytes * parties == pytest.approx(counted.metered[1], rel=1e-15)
    # The formula of the docstring, up to the padding to whole groups of words.
    packed = dim * (bits if backend == "ring" else 64) / 8
    padding = parties * bits * (counted.exchanges - 1)
    assert 0 <= counted.metered[1] / (2 * (parties - 1)) - packed <= padding


def test_counts_of_a_sum_by_hand():
    counted = count(Workload("ring", 4, 1600, 20, 2))
    # Four slices of 400 words, 1000 bytes each, to three others, twice; masks in 4-byte words.
    assert counted.metered == (4 * 6, 4 * 6 * 1000)
    assert (counted.exchanges, counted.messages, counted.bytes) == (2, 6, 6000)
    assert (counted.mask_keys, counted.mask_bytes) == (2, 2 * 1600 * 4)
    assert counted.link_bytes == counted.bytes
    # Three chunks of 4 MiB at most: as many streams per neighbor, and waits that overlap.
    longer = count(Workload("ring", 2, 2_200_000, 32, 1))
    assert (longer.mask_keys, longer.exchanges, longer.messages) == (3, 4, 6)


def test_counts_of_a_tree_by_hand():
    counted = count(Workload("ring", 64, 100, 20, 63))
    # Up and down six levels: the root's link carries all of these vectors of 4-byte words.
    assert (counted.exchanges, counted.link_bytes) == (12, 12 * 400)
    assert counted.messages * 64 == 2 * 63
    assert counted.bytes * 64 == 2 * 63 * 400
    assert counted.metered == (64, 64 * 400)


def test_work_of_parties_that_share_cores_is_done_in_turns():
    workload = Workload("ring", 64, 100_000, 32, 22)
    own, shared = amounts(workload, 64), amounts(workload, 2)
    assert own == amounts(workload, 1000)
    assert shared == {name: own[name] * (1 if name == "sum" else 32) for name in own}
    assert own["mask_byte"] == 22 * 100_000 * 4
    assert own[coordinate_rate("ring")] == 100_000


def test_mask_work_grows_with_neighbors_and_not_with_parties():
    few = [count(Workload("ring", n, 10**6, 32, 22)).mask_bytes for n in (64, 1000, 10_000)]
    assert few == [22 * 4 * 10**6] * 3


def test_known_rates_are_recovered_exactly():
    fitted = fit(_cells())
    # Columns of length 1 are far from dependent here, so little more than rounding is lost.
    assert fitted.model.rates == pytest.approx(RATES, rel=1e-9)
    assert all(model.rates == pytest.approx(RATES, rel=1e-8) for model in fitted.without)


def test_noise_moves_no_prediction_by_more_than_the_noise():
    """Projection onto a convex set shortens distances, so relative errors obey the bound."""
    cells = _cells(_noise())
    measured = np.array([cell.seconds for cell in cells])
    true = np.array([TRUTH.predict(workload, CORES) for workload in WORKLOADS])
    model = fit(cells).model
    predicted = np.array([model.predict(workload, CORES) for workload in WORKLOADS])
    noise = np.linalg.norm(true / measured - 1)
    assert 0 < np.linalg.norm((predicted - true) / measured) <= noise
    # And no rates at all fit the measurement better, the true ones included.
    assert np.linalg.norm(predicted / measured - 1) <= noise


def test_rates_are_never_negative():
    # Time that falls with the dim asks for a negative rate.
    cells = [dataclasses.replace(c, seconds=1 / c.workload.dim) for c in _cells()]
    fitted = fit(cells)
    for model in (fitted.model, *fitted.without):
        assert min(model.rates.values()) >= 0
        assert any(rate > 0 for rate in model.rates.values())


def test_a_prediction_of_a_cell_left_out_does_not_know_it():
    factors = np.ones(len(WORKLOADS))
    factors[-1] = 2.0
    cells = _cells(factors)
    fitted = fit(cells)
    workload, true = WORKLOADS[-1], cells[-1].seconds / 2
    assert fitted.without[-1].predict(workload, CORES) == pytest.approx(true, rel=1e-8)
    assert fitted.model.predict(workload, CORES) > 1.01 * true
    # Every other model has seen the outlier.
    assert fitted.without[0].rates != pytest.approx(RATES, rel=1e-3)


def test_errors_of_unseen_cells_are_larger():
    cells = _cells(_noise())
    fitted = fit(cells)
    seen = [abs(fitted.model.predict(c.workload, CORES) / c.seconds - 1) for c in cells]
    unseen = [
        abs(model.predict(c.workload, CORES) / c.seconds - 1)
        for model, c in zip(fitted.without, cells, strict=True)
    ]
    assert sum(unseen) > sum(seen)


def test_a_link_adds_its_own_seconds_and_no_others():
    workload, link = Workload("ring", 1_000, 10**6, 32, 999), Link("test", 1e9, 1e-3)
    parts = TRUTH.parts(workload, 1_000, link)
    near = TRUTH.parts(workload, 1_000)
    # One chunk, two waits; 4 MB but for this party's own slice, out and in, at 125 MB/s.
    assert parts.pop("latency") == 2e-3
    assert parts.pop("bandwidth") == pytest.approx(2 * 0.999 * 4e6 / 125e6, rel=1e-12)
    assert parts == near
    assert math.isclose(near["mask_byte"], 999 * 4e6 * 7e-10)


def test_the_range_holds_all_models():
    fitted = fit(_cells(_noise()))
    workload, link = Workload("ring", 10_000, 10**9, 32, 42), Link("test", 1e9, 1e-3)
    low, high = fitted.interval(workload, link)
    every = [
        sum(model.parts(workload, 10_000, link).values())
        for model in (fitted.model, *fitted.without)
    ]
    assert (low, high) == (min(every), max(every))
    assert low < high


def test_what_the_model_can_not_do_is_refused():
    with pytest.raises(ConfigError, match="does not know backend 'phe', only crypten, plain, ring"):
        Workload("phe", 2, 10, 32, 0)
    rates = len(SHARED_RATES) + 2
    cells = _cells()[:rates]
    with pytest.raises(ConfigError, match=f"has {rates} rates .* found {rates}; add dims"):
        fit(cells)
    model = fit([cell for cell in _cells() if cell.workload.backend == "plain"]).model
    with pytest.raises(ConfigError, match="no cell with backend 'ring' was measured"):
        model.predict(WORKLOADS[-1], CORES)
