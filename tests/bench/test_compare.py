import math

import pytest

from mpcfl.bench.compare import any_regression, compare, table, u_distribution
from mpcfl.bench.record import Machine
from mpcfl.errors import ConfigError

TIMES = (1.00, 1.03, 0.98, 1.01, 0.99)


def _records(record, times, factor=1.0, **changes):
    return [record((t * factor,) * 3, run=i, **changes) for i, t in enumerate(times)]


def test_u_distribution_is_the_known_one():
    assert u_distribution(2, 2) == [1, 1, 2, 1, 1]
    assert u_distribution(1, 3) == [1, 1, 1, 1]
    counts = u_distribution(5, 5)
    assert sum(counts) == math.comb(10, 5)
    assert counts == counts[::-1]


def test_equal_data_is_not_significant(record):
    changes = compare(_records(record, TIMES), _records(record, TIMES))
    assert changes[0].verdict == "not significant"
    assert changes[0].low <= 1 <= changes[0].high
    assert not any_regression(changes)


def test_a_slowdown_of_a_half_is_found_with_its_size(record):
    changes = compare(_records(record, TIMES), _records(record, TIMES, 1.5))
    assert changes[0].verdict == "slower"
    assert changes[0].ratio == pytest.approx(1.5, rel=0.01)  # a median of ratios, not exact
    assert changes[0].low <= 1.5 <= changes[0].high
    assert any_regression(changes)


def test_a_speedup_is_found_and_is_no_regression(record):
    changes = compare(_records(record, TIMES), _records(record, TIMES, 0.5))
    assert changes[0].verdict == "faster"
    assert not any_regression(changes)


def test_a_sure_but_tiny_slowdown_is_no_regression(record):
    steady = (1.0, 1.0001, 1.0002, 1.0003, 1.0004)
    changes = compare(_records(record, steady), _records(record, steady, 1.02))
    assert changes[0].significant
    assert not any_regression(changes)


def test_four_launches_are_too_few_for_any_verdict(record):
    changes = compare(_records(record, TIMES[:4]), _records(record, TIMES[:4], 10.0))
    assert changes[0].verdict == "not significant, too few runs"
    assert table(changes)[1][0][3] == "-"


def test_values_of_one_launch_do_not_count_as_launches(record):
    slow = [record((2.0,) * 50)]
    assert not compare([record((1.0,) * 50)], slow)[0].significant


def test_the_interval_covers_the_true_factor_as_often_as_it_says():
    """All 252 orders of ten ranks, equally likely if nothing changed: exactly 2 are called."""
    from itertools import combinations

    from mpcfl.bench.compare import _ratio_interval

    called = 0
    for chosen in combinations(range(10), 5):
        a = [1.0 + i for i in chosen]
        b = [1.0 + i for i in range(10) if i not in chosen]
        _, low, high = _ratio_interval(a, b)
        called += low > 1 or high < 1
    assert called == 2


def test_a_launch_that_newly_fails_is_a_regression(record):
    broken = [record(run=0), record(run=1, failure="lost")]
    changes = compare([record(run=0), record(run=1)], broken)
    assert changes[0].verdict == "failed in B"
    assert any_regression(changes)


def test_a_case_that_failed_on_both_sides_is_not_measured(record):
    changes = compare([record(failure="lost")], [record(failure="lost")])
    assert changes[0].verdict == "not measured in both"
    assert not any_regression(changes)


def test_what_can_not_be_compared_is_refused(record):
    other = Machine("Other CPU", 4, 1 << 33, "6.1", "fedcba9876543210")
    with pytest.raises(ConfigError, match="different machines"):
        compare([record()], [record(machine=other)])
    with pytest.raises(ConfigError, match="not comparable"):
        compare([record(comparable=False)], [record(comparable=False)])
    with pytest.raises(ConfigError, match="no case in common"):
        compare([record()], [record(backend="phe")])
