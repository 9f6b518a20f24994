import pytest

from mpcfl.bench.progress import Launch, duration_text, launch_seconds, seconds_left


def test_nothing_is_known_before_the_first_launch(cell):
    assert seconds_left([], [cell()]) is None
    assert seconds_left([Launch(cell(), 2.0, 1.0)], []) == 0


def test_a_launch_takes_what_its_case_took_on_average(cell, parameters):
    over = [
        Launch(cell(run=0), 2.0, 1.0),
        Launch(cell(run=1), 4.0, 1.0),
        Launch(cell(parameters=parameters(dim=20)), 100.0, 1.0),
    ]
    assert seconds_left(over, [cell(run=2), cell(run=3)]) == 6.0


def test_sums_grow_with_the_vectors_and_the_start_does_not(cell, parameters):
    over = [Launch(cell(), 7.0, 2.0), Launch(cell("ring"), 1000.0, 999.0)]
    longer = cell(parameters=parameters(dim=40))
    # Parties bring as many integers each, and more sums add them up: 1 + 1 + 3 to 1 + 1 + 8.
    wider = cell(parameters=parameters(parties=6), values=8)
    assert launch_seconds(over, longer) == pytest.approx(5 + 2 * 4)
    assert launch_seconds(over, wider) == pytest.approx(5 + 2 * 3 * 2)


def test_the_nearest_amount_and_the_same_network_are_preferred(cell, parameters):
    def on(link, dim):
        return cell(parameters=parameters(dim=dim, link=link))

    over = [
        Launch(on("shared-memory", 10), 1.0, 0.0),
        Launch(on("20mbit", 10), 3.0, 1.0),
        Launch(on("20mbit", 1000), 52.0, 50.0),
    ]
    assert launch_seconds(over, on("20mbit", 500)) == pytest.approx(2 + 25)
    assert launch_seconds(over, on("20mbit", 20)) == pytest.approx(2 + 2)
    # No launch on this link is over: one of the same backend stands in for it.
    assert launch_seconds(over[:1], on("20mbit", 99)) == 1.0


def test_what_has_no_likeness_takes_the_mean_of_all(cell):
    over = [Launch(cell("plain"), 1.0, 0.5), Launch(cell("ring"), 3.0, 0.5)]
    assert launch_seconds(over, cell("crypten")) == 2.0


def test_a_launch_knows_the_time_of_its_sums(cell, measurement):
    # One warm-up of 9 s, values of 1 and 2 s: 4 s on average. One more sum is only checked.
    assert Launch.of(cell(values=2), 30.0, measurement((1.0, 2.0))).sums_s == 16.0
    assert Launch.of(cell(values=2), 10.0, measurement((1.0, 2.0))).sums_s == 10.0
    assert Launch.of(cell(), 5.0, None).sums_s == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration_text(seconds) == text
