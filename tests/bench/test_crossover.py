import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpcfl.bench.case_numbers import Cases
from mpcfl.bench.crossover import Crossover, link_studies, rate_text
from mpcfl.bench.link_figures import leader_changes, link_chart
from mpcfl.bench.link_model import LinkCell, LinkModel, crossing, fit_link_model, fit_variant
from mpcfl.bench.link_section import crossover_sentences
from mpcfl.bench.report_figures import choose_looks

sys.path.append(str(Path(__file__).parent))
from grid_records import COSTS, grid_records

RING, PAILLIER = ("ring", None, None), ("paillier", 2048, "holder")
PLAIN, LARGE = ("plain", None, None), ("paillier", 3072, "holder")
INF = math.inf


def cell(seconds, rate=INF, trip_s=0.0, n_bytes=1_000_000):
    return LinkCell(rate, trip_s, trip_s * 1e3, n_bytes, tuple(seconds))


def fit(cells):
    return fit_link_model(cells, np.array([c.launch_s[0] for c in cells]))


def close(value):
    # A few roundings of float64 in a system of three equations.
    return pytest.approx(value, rel=1e-9)


def test_the_model_of_exact_cells_is_exact():
    # 2 s of computing, every byte sent one and a half times, four waits.
    truth = LinkModel(compute_s=2.0, link_bytes=1.5e6, round_trips=4.0)
    networks = ((INF, 0.0), (1e8, 1e-4), (1e8, 0.04), (2e7, 1e-4), (2e7, 0.04))
    found = fit([cell([truth.seconds(*network)], *network) for network in networks])
    assert found.compute_s == close(2.0)
    assert found.link_bytes == close(1.5e6)
    assert found.round_trips == close(4.0)


def test_two_networks_are_enough_where_round_trips_are_left_out():
    found = fit([cell([2.0]), cell([2.8], 1e7, 1e-4)])
    assert (found.compute_s, found.link_bytes, found.round_trips) == (close(2.0), close(1e6), 0.0)


def test_no_link_is_taken_to_carry_bytes_faster_than_its_rate():
    # 1 MB at 10 Mbit/s takes 0.8 s; a burst that passed at once took none.
    found = fit([cell([2.0]), cell([2.0], 1e7), cell([2.0], 2e7)])
    assert found.link_bytes >= 1e6


def test_curves_cross_where_more_bytes_cost_as_much_as_more_computing():
    frugal, fast = LinkModel(1.0, 1e6, 0.0), LinkModel(0.1, 1e7, 0.0)
    # 9 MB more against 0.9 s less: 72 Mbit in 0.9 s.
    assert crossing(frugal, fast, 0.0) == (True, close(8e7))
    assert crossing(fast, frugal, 0.0) == (False, close(8e7))
    rate = crossing(frugal, fast, 0.0)[1]
    assert frugal.seconds(rate, 0.0) == close(fast.seconds(rate, 0.0))
    assert frugal.seconds(rate / 2, 0.0) < fast.seconds(rate / 2, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "a_wins"),
    [
        ((0.1, 1e6, 0), (1.0, 1e7, 0), True),
        ((1.0, 1e7, 0), (0.1, 1e6, 0), False),
        ((0.1, 1e6, 0), (0.1, 1e7, 0), True),
        ((0.1, 1e6, 0), (1.0, 1e6, 0), True),
        ((1.0, 1e6, 0), (0.1, 1e6, 0), False),
        # Without a round trip it would be the other one.
        ((0.1, 1e6, 50), (1.0, 1e6, 1), False),
    ],
)
def test_one_that_is_never_worse_wins_at_every_rate(a, b, a_wins):
    assert crossing(LinkModel(*a), LinkModel(*b), 0.04) == (a_wins, INF)


def true_rate(dim, trip_s=1e-4):
    """From the costs of the synthetic records alone, for two parties."""
    fixed = {}
    for name in (RING, PAILLIER):
        start, per_coordinate, _, waits, _ = COSTS[name]
        fixed[name] = start + per_coordinate * dim + waits * trip_s
    more_bytes = (COSTS[RING][2] - COSTS[PAILLIER][2]) * dim
    return 8 * more_bytes / (fixed[PAILLIER] - fixed[RING])


def studies(**changes):
    options = {"costs": {n: COSTS[n] for n in (RING, PAILLIER)}, "parties": (2,), "dims": (10_000,)}
    return link_studies(Cases.of(grid_records(**{**options, **changes})))


def test_records_give_the_crossover_that_they_were_made_with():
    (study,) = studies(noise=0.0)
    (found,) = study.crossovers
    assert (found.first.backend, found.second.backend) == ("paillier", "ring")
    assert found.rate_bit_per_s == pytest.approx(true_rate(10_000), rel=1e-6)
    # Launches that agree leave no doubt.
    assert found.low == pytest.approx(found.high, rel=1e-6)
    assert found.largest_error < 1e-6
    assert found.outside
    assert found.sentence.startswith("paillier 2048 bit, holder beats ring below 2.4")
    assert found.sentence.endswith("extrapolated)")


def test_round_trips_have_crossovers_of_their_own():
    (study,) = studies(noise=0.0, trips=(0.0, 40.0))
    rates = {c.round_trip_ms: c.rate_bit_per_s for c in study.crossovers}
    for trip_ms in (0.0, 40.0):
        expected = true_rate(10_000, 1e-4 + trip_ms / 1e3)
        assert rates[trip_ms] == pytest.approx(expected, rel=1e-6)


def test_nothing_is_said_of_round_trips_with_which_a_variant_was_not_measured():
    """Its model knows no waits, and would be the faster one."""
    pair = {variant: COSTS[variant] for variant in (RING, PAILLIER)}
    records = [
        r
        for r in grid_records(pair, (2,), (10_000,), trips=(0.0, 40.0), noise=0.0)
        if r.parameters.backend != "ring" or r.parameters.round_trip_ms == 0
    ]
    (study,) = link_studies(Cases.of(records))
    told = {c.round_trip_ms for c in study.crossovers if "ring" in c.sentence}
    assert told == {0.0}
    sentences = crossover_sentences(study)
    assert not [s for s in sentences if "ring" in s and "40 ms" in s]
    assert leader_changes(study, 40.0) == ()
    looks = choose_looks(Cases.of(records).measured)
    without, with_it = (link_chart("t", [(study, ms)], looks) for ms in (40.0, 0.0))
    assert "ring" in with_it
    assert "ring" not in without


def test_luck_widens_the_interval_around_the_truth():
    (study,) = studies(noise=0.05)
    (found,) = study.crossovers
    assert found.low < true_rate(10_000) < found.high
    assert found.low < found.rate_bit_per_s < found.high


def test_the_same_records_give_the_same_interval_in_any_order():
    records = grid_records(COSTS, (2,), (1_000,))
    again = link_studies(Cases.of(records[::-1]))
    assert {c.sentence for s in link_studies(Cases.of(records)) for c in s.crossovers} == {
        c.sentence for s in again for c in s.crossovers
    }


def test_one_launch_has_no_interval():
    (study,) = studies(runs=1)
    assert "one launch, no interval" in study.crossovers[0].sentence


def test_the_baseline_and_other_keys_are_not_compared():
    costs = {name: COSTS[name] for name in (PLAIN, RING, PAILLIER, LARGE)}
    (study,) = studies(costs=costs)
    pairs = {(c.first.variant, c.second.variant) for c in study.crossovers}
    small, large = "paillier 2048 bit, holder", "paillier 3072 bit, holder"
    assert pairs == {(small, "ring"), (large, "ring")}


def test_what_never_wins_is_named_once_and_what_leads_is_marked():
    names = (PLAIN, RING, PAILLIER, ("crypten", None, None), ("crypten-stock", None, None))
    (study,) = studies(costs={name: COSTS[name] for name in names}, noise=0.0)
    sentences = crossover_sentences(study)
    assert "Never beating ring, at any link rate: crypten; crypten-stock" in sentences
    assert sum("ring" in sentence for sentence in sentences) == len(sentences) == 2
    # crypten meets paillier as well, but ring is faster there than both.
    ((rate, seconds),) = leader_changes(study, 0.0)
    assert rate == pytest.approx(true_rate(10_000), rel=1e-6)
    (ring,) = (v.model for v in study.variants if v.parameters.backend == "ring")
    assert seconds == close(ring.seconds(rate, 1e-4))


def test_workloads_on_one_network_have_no_study():
    assert studies(links=("20mbit",)) == []
    assert studies(links=("shared-memory",)) == []


def test_a_model_says_how_far_it_misses(parameters):
    # Between two rates the time goes up, then down: no model of this form does both.
    cells = [cell([1.0, 1.0]), cell([3.0, 3.0], 1e9, 0.0, 1), cell([1.0, 1.0], 1e8, 0.0, 1)]
    assert fit_variant(parameters(), cells).largest_error > 0.3


@pytest.mark.parametrize(
    ("rate", "low", "high", "words"),
    [
        (2e6, 1e6, 3e6, "a beats b below 2 Mbit/s (95% interval: 1 Mbit/s to 3 Mbit/s)"),
        (2e6, 1e6, INF, "a beats b below 2 Mbit/s (95% interval: at least 1 Mbit/s)"),
        (2e6, 0.0, 3e6, "a beats b below 2 Mbit/s (95% interval: at most 3 Mbit/s)"),
        (2e6, 0.0, INF, "a beats b below 2 Mbit/s (95% interval: not determined)"),
        (INF, INF, INF, "b never beats a"),
        (INF, 1e9, INF, "b never beats a (95% interval: at least 1 Gbit/s)"),
        (INF, 0.0, INF, "b never beats a (95% interval: not determined)"),
    ],
)
def test_sentences_promise_no_more_than_the_interval(parameters, rate, low, high, words):
    a, b = parameters("a"), parameters("b")
    assert Crossover(a, b, 0.0, rate, low, high, False, 0.0).sentence == words
    delayed = Crossover(a, b, 40.0, rate, low, high, False, 0.0).sentence
    assert " at 40 ms of round trip" in delayed


def test_rates_as_people_read_them():
    texts = [rate_text(r) for r in (5.0, 881_234.0, 999_600.0, 3.14159e6, 9.5e8, 1e9)]
    assert texts == ["5 bit/s", "881 kbit/s", "1 Mbit/s", "3.14 Mbit/s", "950 Mbit/s", "1 Gbit/s"]


def test_a_link_that_was_not_measured_is_left_out():
    records = [
        replace(r, link=None) if r.parameters.link == "1gbit" else r
        for r in grid_records({RING: COSTS[RING]}, (2,), (1_000,))
    ]
    (study,) = link_studies(Cases.of(records))
    assert [c.rate_bit_per_s for c in study.variants[0].cells] == [INF, 9.5e7, 1.9e7]
