from dataclasses import replace

import pytest

from mpcfl.bench.record import Machine
from mpcfl.bench.summary import document, quartiles, settled, summarize, table
from mpcfl.errors import ConfigError


def test_quartiles_of_known_values():
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    assert quartiles([4.0]) == (4.0, 4.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)


def test_a_row_has_the_known_statistics(record):
    rows = summarize([record((1.0, 2.0), run=0), record((3.0, 4.0, 5.0), run=1)])
    assert len(rows) == 1
    numbers = rows[0].numbers
    assert (numbers.n_runs, numbers.n_values) == (2, 5)
    assert (numbers.low_quartile_s, numbers.median_s, numbers.high_quartile_s) == (2, 3, 4)
    assert numbers.stages_s == {"protect": 1.5, "aggregate": 0.75, "open": 0.75}
    # Launches sent 600 bytes in two sums and in three; 2 parties x 10 coordinates.
    assert numbers.bytes_per_coordinate == (300 + 200) / 2 / 20
    assert numbers.peak_rss_bytes == 3 << 20
    assert numbers.setup_s == 0.75
    assert rows[0].ratio == 1.0


def test_ratios_are_against_plain_at_the_same_workload(record, parameters):
    elsewhere = parameters("crypten", parties=3)
    rows = summarize(
        [
            record((2.0,)),
            record((6.0,), backend="crypten"),
            record((6.0,), parameters=elsewhere),
        ]
    )
    ratios = {(r.parameters.backend, r.parameters.parties): r.ratio for r in rows}
    assert ratios == {("plain", 2): 1.0, ("crypten", 2): 3.0, ("crypten", 3): None}


def test_a_failed_case_stays_in_the_table_with_its_reason(record):
    rows = summarize([record(), record(backend="phe", failure="no key")])
    headings, cells = table(rows)
    failed = dict(zip(headings, cells[1], strict=True))
    assert failed["median"] == "failed"
    assert failed["remark"] == "failed: no key"
    assert rows[1].numbers is None


def test_one_failed_launch_of_a_measured_case_is_shown(record):
    row = summarize([record(run=0), record(run=1, failure="lost")])[0]
    assert row.failures == ("lost",)
    assert row.numbers.n_runs == 1


def test_a_failed_launch_that_was_made_again_no_longer_counts(record):
    failed, other = record(run=1, failure="lost"), record(run=2, failure="lost too")
    again = record((5.0,), run=1)
    assert settled([record(run=0), failed, other, again]) == [record(run=0), other, again]
    # It counts as long as it fails, and once.
    later = record(run=1, failure="lost again")
    assert settled([failed, later]) == [later]
    row = summarize([record(run=0), failed, again])[0]
    assert row.failures == ()
    assert row.numbers.n_runs == 2


def test_a_measurement_is_never_left_out(record):
    records = [record(run=0), record(run=0), record(run=0, failure="later")]
    assert settled(records) == records


def test_links_and_round_trips_are_different_cases_and_shown(record, parameters):
    links = [parameters(), parameters(link="20mbit"), parameters(link="20mbit", round_trip_ms=40.0)]
    rows = summarize([record((2.0,), parameters=p) for p in links])
    headings, cells = table(rows)
    shown = {dict(zip(headings, row, strict=True))["link"] for row in cells}
    assert shown == {"shared-memory", "20mbit", "20mbit + 40 ms"}
    assert all(row.ratio == 1.0 for row in rows)


def test_doubts_are_named(record):
    def doubts(records):
        return summarize(records)[0].doubts

    steady = (1.0, 1.01, 1.02)
    assert doubts([record(steady, run=i) for i in range(5)]) == ()
    assert doubts([record(steady)]) == ("fewer than 5 runs of 3 values",)
    assert doubts([record(steady, comparable=False)]) == ("trial, not comparable",)
    off = replace(record(steady).measured, largest_error=0.25)
    inexact = [record(run=i, measured=off) for i in range(5)]
    assert doubts(inexact) == ("inexact: coordinates off by up to 0.25",)
    wide = [record((1.0, 2.0, 9.0), run=i) for i in range(5)]
    assert doubts(wide) == ("IQR is 400% of the median",)


def test_two_machines_never_share_a_table(record):
    other = Machine("Other CPU", 4, 1 << 33, "6.1", "fedcba9876543210")
    with pytest.raises(ConfigError, match="different machines"):
        summarize([record(), record(machine=other)])


def test_the_document_is_plain_data(record):
    row = document(summarize([record()]))[0]
    assert row["parameters"]["backend"] == "plain"
    assert row["numbers"]["median_s"] == 2.0
