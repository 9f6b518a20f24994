import math

import pytest

from mpcfl.report.units import bytes_text, epsilon_text, seconds_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ns"),
        (5e-9, "5 ns"),
        (1.5e-6, "1.50 us"),
        (0.0123, "12.3 ms"),
        (1, "1 s"),
        (250.4, "250 s"),
    ],
)
def test_seconds_have_three_digits_and_a_unit(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (1 << 30, "1 GiB"), (1 << 52, "4096 TiB")],
)
def test_bytes_have_binary_units(n_bytes, text):
    assert bytes_text(n_bytes) == text


def test_epsilon_is_rounded_up_and_infinity_is_no_guarantee():
    assert epsilon_text(3.87651) == "3.8766"
    assert epsilon_text(4.0) == "4"
    assert epsilon_text(0.00001) == "0.0001"
    assert epsilon_text(None) == epsilon_text(math.inf) == "no guarantee"
