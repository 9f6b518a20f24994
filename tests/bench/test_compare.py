"""Two sets of records compared: what is called slower, and how seldom that is luck."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from mpcfl.bench.compare import any_regression, backend_table, compare, document, table
from mpcfl.bench.record import Machine, MeasuredLink, Record
from mpcfl.bench.sides import load_side
from mpcfl.errors import ConfigError

Make = Callable[..., Record]

TIMES = (1.00, 1.03, 0.98, 1.01, 0.99)
LINK = MeasuredLink("tbf", "none", 9.5e7, 9.4e7, 2e-4, "cubic")


def launches(
    record: Make, times: tuple[float, ...], factor: float = 1.0, **changes: object
) -> list[Record]:
    return [record((t * factor,) * 3, run=i, **changes) for i, t in enumerate(times)]


def in_case(records: list[Record], **changes: object) -> list[Record]:
    parameters = replace(records[0].parameters, **changes)
    return [replace(r, parameters=parameters, case=parameters.case) for r in records]


def grid(
    record: Make, n_cases: int, times: Iterator[tuple[float, ...]], **changes: object
) -> list[Record]:
    """Return the launches of so many cases of one backend, which differ in their dimension."""
    return [
        r for dim in range(n_cases)
        for r in in_case(launches(record, next(times), **changes), dim=dim + 1)
    ]  # fmt: skip


def test_equal_data_is_not_significant(record: Make) -> None:
    (change,) = compare(launches(record, TIMES), launches(record, TIMES)).cases
    assert change.verdict == "not significant"
    assert change.low <= 1 <= change.high


def test_a_slowdown_of_a_half_is_found_with_its_size(record: Make) -> None:
    found = compare(launches(record, TIMES), launches(record, TIMES, 1.5))
    (change,) = found.cases
    assert change.verdict == "slower"
    assert change.ratio == pytest.approx(1.5, rel=0.01)  # a median of ratios, not exact
    assert change.low <= 1.5 <= change.high
    assert any_regression(found)


def test_a_speedup_is_found_and_is_no_regression(record: Make) -> None:
    found = compare(launches(record, TIMES), launches(record, TIMES, 0.5))
    assert (found.cases[0].verdict, found.backends[0].verdict) == ("faster", "faster")
    assert not any_regression(found)


def test_a_sure_slowdown_within_the_tolerance_is_no_regression(record: Make) -> None:
    steady = (1.0, 1.0001, 1.0002, 1.0003, 1.0004)
    found = compare(launches(record, steady), launches(record, steady, 1.04))
    assert (found.cases[0].verdict, found.backends[0].verdict) == ("slower", "not significant")
    assert not any_regression(found)
    assert any_regression(compare(launches(record, steady), launches(record, steady, 1.06)))


def test_three_launches_are_too_few_for_a_case(record: Make) -> None:
    found = compare(launches(record, TIMES[:3]), launches(record, TIMES[:3], 10.0))
    assert found.cases[0].verdict == "not significant, too few runs"
    assert table(found)[1][0][3] == "-"
    assert not any_regression(found)


def test_values_of_one_launch_do_not_count_as_launches(record: Make) -> None:
    assert not compare([record((1.0,) * 50)], [record((2.0,) * 50)]).cases[0].significant


def test_a_launch_counts_by_its_median(record: Make) -> None:
    before, after = record((1.0, 2.0, 9.0)), record((1.0, 6.0, 7.0))
    assert compare([before], [after]).cases[0].ratio == 3.0


def test_a_case_alone_stands_out_less_among_many(record: Make) -> None:
    """2 in 252 orders is rare for one case, and not for one of 40."""
    quiet = grid(record, 39, iter([TIMES] * 39))
    loud = [in_case(launches(record, TIMES, f), dim=40) for f in (1.0, 1.5)]
    found = compare(quiet + loud[0], quiet + loud[1])
    verdicts = {change.parameters.dim: change.verdict for change in found.cases}
    assert verdicts[40] == "not significant among so many cases"
    assert not any_regression(found)
    assert any("7 launches a side would do" in remark for remark in found.remarks)


def test_eight_launches_are_enough_for_one_case_in_two_hundred(record: Make) -> None:
    eight = tuple(1 + i / 1000 for i in range(8))
    quiet = grid(record, 199, iter([eight] * 199))
    loud = [in_case(launches(record, eight, f), dim=200) for f in (1.0, 1.2)]
    found = compare(quiet + loud[0], quiet + loud[1])
    assert [c.parameters.dim for c in found.cases if c.significant] == [200]
    assert any_regression(found)


def test_a_backend_that_is_slower_everywhere_is_found_in_three_launches(record: Make) -> None:
    times = TIMES[:3]
    quiet = grid(record, 6, iter([times] * 6), backend="phe")
    before, after = (grid(record, 6, iter([times] * 6), factor=f) for f in (1.0, 1.3))
    found = compare(quiet + before, quiet + after)
    assert {change.verdict for change in found.cases} == {"not significant, too few runs"}
    assert {(b.variant, b.verdict) for b in found.backends} == {
        ("plain", "slower"), ("phe", "not significant"),
    }  # fmt: skip
    assert ("plain", "6", "1.300", "slower") in backend_table(found)[1]
    assert any_regression(found)


def _times(seed: str, turn: int, n: int) -> Iterator[float]:
    """Yield n times that spread over a factor of seven, all from the seed."""
    digest = hashlib.shake_256(f"{seed}/{turn}".encode()).digest(8 * n)
    return (math.exp(2 * word / 2**64) for word in struct.unpack(f"<{n}Q", digest))


@pytest.mark.stat
def test_tables_of_luck_raise_an_alarm_as_seldom_as_they_say(record: Make) -> None:
    """400 tables of 12 cases in two backends, six launches a side, nothing changed.

    At most 5 % of the tables may call a case, and as many may raise an alarm. Rejects a true 5 %
    with probability 1e-9; without a correction 40 % of the tables call a case, which is found
    but with probability 1e-30.
    """
    seed, n_tables, n_cases, n_runs = secrets.token_hex(16), 400, 12, 6
    template = [
        in_case([record((1.0,), run=run)], backend=backend, dim=dim)[0]
        for backend in ("plain", "ring")
        for dim in range(1, n_cases // 2 + 1)
        for run in range(n_runs)
    ]
    bound = stats.binom.isf(1e-9, n_tables, 0.05)
    called = alarms = 0
    for turn in range(n_tables):
        times = _times(seed, turn, 2 * len(template))
        found = compare(*([_with_time(r, next(times)) for r in template] for _ in "AB"))
        called += any(change.significant for change in found.cases)
        alarms += any_regression(found)
    assert called <= bound, seed
    assert alarms <= bound, seed


def _with_time(record: Record, seconds: float) -> Record:
    assert record.measured is not None
    value = replace(record.measured.values[0], total=(seconds, seconds))
    return replace(record, measured=replace(record.measured, values=(value,)))


def test_a_launch_that_newly_fails_is_a_regression(record: Make) -> None:
    broken = [record(run=0), record(run=1, failure="lost")]
    found = compare([record(run=0), record(run=1)], broken)
    assert found.cases[0].verdict == "failed in B"
    assert any_regression(found)


def test_a_case_that_failed_on_both_sides_is_not_measured(record: Make) -> None:
    found = compare([record(failure="lost")], [record(failure="lost")])
    assert found.cases[0].verdict == "not measured in both"
    assert not any_regression(found)
    assert found.backends == ()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"one_way_bit_per_s": 8.9e7}, "the link differs, one_way_bit_per_s 9.5e+07 in A, 8.9e"),
        ({"both_ways_bit_per_s": 9.9e7}, "the link differs, both_ways_bit_per_s"),
        ({"round_trip_s": 5e-3}, "the link differs, round_trip_s"),
        ({"delay": "relay"}, "the link differs in what shapes or delays it"),
        ({"one_way_bit_per_s": 9.2e7, "round_trip_s": 9e-4}, ""),
    ],
)
def test_cases_over_links_that_differ_are_not_compared(
    record: Make, change: dict[str, float], verdict: str
) -> None:
    linked = in_case(launches(record, TIMES, link=LINK), link="100mbit")
    other = in_case(launches(record, TIMES, 3.0, link=replace(LINK, **change)), link="100mbit")
    here = launches(record, TIMES)
    found = {c.parameters.link: c for c in compare(linked + here, other + here).cases}
    if verdict:
        assert found["100mbit"].verdict.startswith(f"not comparable: {verdict}")
        assert not found["100mbit"].regressed
        with pytest.raises(ConfigError, match="no case can be compared"):
            compare(linked, other)
    else:
        assert found["100mbit"].verdict == "slower"
    assert found["shared-memory"].verdict == "not significant"


def test_what_can_not_be_compared_is_refused(record: Make) -> None:
    other = Machine("Other CPU", 4, 1 << 33, "6.1", "fedcba9876543210")
    with pytest.raises(ConfigError, match="different machines"):
        compare([record()], [record(machine=other)])
    with pytest.raises(ConfigError, match="not comparable"):
        compare([record(comparable=False)], [record(comparable=False)])
    with pytest.raises(ConfigError, match="no case in common"):
        compare([record()], [record(backend="phe")])


def test_remarks_say_what_else_may_differ(record: Make) -> None:
    early, late, last = (f"2030-01-02T0{hour}:00:00+00:00" for hour in (3, 4, 5))
    a = launches(record, TIMES, started_at=early, commit="1111")
    a += launches(record, TIMES, started_at=last, backend="phe")
    b = launches(record, TIMES, started_at=late, versions={"python": "3.12.0", "mpcfl": "0.2.0"})
    said = "\n".join(compare(a, b).remarks)
    assert "1 cases are only in A, such as: phe, 2 parties" in said
    assert "A holds records of 2 commits: 1111, None" in said
    assert "python 3.11.0 in A, 3.12.0 in B" in said
    assert "mpcfl 0.1.0" not in said
    assert "one side was over before the other began" not in said
    said = "\n".join(compare(a[:5], b).remarks)
    assert "one side was over before the other began" in said


def test_results_made_in_turns_get_no_remark(record: Make) -> None:
    hours = [f"2030-01-02T{hour:02}:00:00+00:00" for hour in range(10)]
    a = [record((1.0,), run=i, started_at=hours[2 * i]) for i in range(5)]
    b = [record((1.0,), run=i, started_at=hours[2 * i + 1]) for i in range(5)]
    assert compare(a, b).remarks == ()


def test_cases_that_all_lean_to_one_side_are_remarked(record: Make) -> None:
    before, after = (grid(record, 12, iter([TIMES] * 12), factor=f) for f in (1.0, 1.02))
    said = "\n".join(compare(before, after).remarks)
    assert "12 of 12 cases are slower in B, with a median ratio of 1.02" in said
    fewer = "\n".join(compare(before[:45], after[:45]).remarks)
    assert "cases are slower" not in fewer


def test_a_folder_of_results_made_in_turns_is_one_side(record: Make, tmp_path: Path) -> None:
    turns = [[record((1.0,), run=0)], [record(run=0, failure="lost")], [record((2.0,), run=0)]]
    for turn, records in enumerate(turns):
        folder = tmp_path / "A" / str(turn)
        folder.mkdir(parents=True)
        lines = [r.to_json() + "\n" for r in records]
        (folder / "records.jsonl").write_text("".join(lines))
    side = load_side(tmp_path / "A")
    assert [r.run for r in side] == [0, 1, 2]
    # The failure in one folder is not made good by a launch in another one.
    assert compare(side, side).cases[0].n_runs == (2, 2)
    assert compare(side[:1], side).cases[0].newly_failed
    assert load_side(tmp_path / "A" / "0") == turns[0]
    assert load_side(tmp_path / "A" / "0" / "records.jsonl") == turns[0]
    with pytest.raises(ConfigError, match="can't read benchmark records"):
        load_side(tmp_path / "none")


def test_a_failed_launch_that_was_made_again_is_forgotten(record: Make) -> None:
    resumed = [record(run=0), record(run=1, failure="lost"), record(run=1)]
    (change,) = compare([record(run=0)], resumed).cases
    assert (change.n_runs, change.newly_failed) == ((1, 2), False)


def test_the_document_is_json_and_says_all(record: Make) -> None:
    found = compare(launches(record, TIMES[:3]), launches(record, TIMES[:3]))
    said = json.loads(json.dumps(document(found), allow_nan=False))
    assert said["regressed"] is False
    assert said["cases"][0]["case"] == found.cases[0].parameters.case
    assert said["cases"][0]["high"] is None
    assert said["backends"][0]["verdict"] == "not significant"
