"""What protection took is told stage by stage, against the time of the training."""

import pytest

from mpcfl.report.html import run_report
from mpcfl.report.overhead import overhead_line, protection, stage_costs

ROUNDS = [
    {"train": 10.0, "clip": 0.1, "open": 0.3, "apply": 0.5, "checkpoint": 0.25},
    {"train": 10.0, "clip": 0.1, "open": 0.3, "apply": 0.5, "evaluate": 2.0},
    {"train": 99.0, "clip": 9.9, "open": 9.9, "apply": 0.5, "evaluate": 2.0},
]


def test_a_stage_costs_what_it_takes_in_the_median_round():
    costs = {cost.stage: cost for cost in stage_costs(ROUNDS)}
    assert costs["train"].seconds == 10.0
    assert costs["clip"].seconds == 0.1
    assert costs["clip"].percent == pytest.approx(1.0)
    # One round of three has it.
    assert costs["checkpoint"].seconds == 0.0
    assert costs["evaluate"].seconds == 2.0


def test_what_plain_averaging_does_too_is_no_price_of_protection():
    kinds = {cost.stage: cost.is_protection for cost in stage_costs(ROUNDS)}
    assert {stage for stage, protects in kinds.items() if protects} == {"clip", "open"}
    assert [cost.is_protection for cost in stage_costs(ROUNDS)] == [False] * 4 + [True] * 2


def test_all_of_protection_is_the_sum_of_its_stages():
    whole = protection(stage_costs(ROUNDS))
    assert whole.seconds == pytest.approx(0.4)
    assert whole.percent == pytest.approx(4.0)


def test_the_line_names_the_largest_stages_first():
    assert overhead_line(ROUNDS) == (
        "protection took 400 ms a round, 4.0 % of the training time (open 3.0, clip 1.0)"
    )


def test_the_line_names_five_stages_at_most_and_none_that_is_nothing():
    seconds = {"train": 1.0, **{name: 0.01 * (i + 1) for i, name in enumerate("abcdefg")}}
    line = overhead_line([{**seconds, "idle": 0.0001}])
    assert line.endswith("(g 7.0, f 6.0, e 5.0, d 4.0, c 3.0)")
    assert overhead_line([{"train": 1.0, "idle": 0.0001}]) == (
        "protection took 100 us a round, 0.0 % of the training time"
    )


def test_a_price_beyond_the_training_has_no_digits_after_the_point():
    assert "31.2 ms a round, 312 % of" in overhead_line([{"train": 0.01, "open": 0.0312}])


@pytest.mark.parametrize("rounds", [[], [{}], [{"open": 1.0}], [{"train": 0.0, "open": 1.0}]])
def test_without_training_there_is_nothing_to_tell(rounds):
    assert overhead_line(rounds) == ""


def test_the_report_has_every_stage_and_the_sum(run_record, rounds):
    seconds = {"train": 2.0, "protect": 0.5, "open": 0.25, "apply": 0.25}
    text = run_report(run_record(rounds=rounds(seconds=seconds)))
    cells = ('<td class="number">500 ms</td>', '<td class="number">25.0</td>')
    assert f"<td>protect</td>{''.join(cells)}<td>protection</td>" in text
    assert "<td>all of protection</td>" in text
    assert '<td class="number">750 ms</td><td class="number">37.5</td>' in text


def test_a_report_without_seconds_has_no_such_table(run_record, rounds):
    assert "all of protection" not in run_report(run_record(rounds=rounds(seconds={})))
    assert "all of protection" not in run_report(run_record(rounds=()))
