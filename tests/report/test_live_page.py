"""The page of a run that goes on: its texts, its charts, and what it may load."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mpcfl.report import live_state
from mpcfl.report.live_page import fragment, live_page, security_policy
from mpcfl.report.live_page_chart import Chart, draw, ticks
from mpcfl.report.live_state import LiveState, read_state
from mpcfl.report.run_record import append_round

sys.path.append(str(Path(__file__).parent))

from run_folders import held, make_folder, record, run_record


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_state, "_LOOK_AGAIN_S", 0.0)


@pytest.fixture
def running(tmp_path: Path) -> LiveState:
    with held(make_folder(tmp_path / "run", 7)) as folder:
        return read_state(folder.path)


def cards(text: str) -> dict[str, str]:
    """Return the headline figures."""
    pattern = r'data-figure="(\w+)"><span>[^<]*</span><strong>([^<]*)</strong>'
    return dict(re.findall(pattern, text))


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314 - made here, a moment ago


def test_the_headline_is_the_last_round(running: LiveState) -> None:
    assert cards(fragment(running)) == {
        "rounds": "7 of 20",
        "epsilon": "0.9375 of 4",
        "accuracy": "0.8929",
        "loss": "0.1429",
        "parties": "4 of 4",
        "bytes": "14.0 KiB",
        "time": "5.25 s",
        "backend": "ring",
    }


def test_the_script_is_told_whether_to_go_on(running: LiveState, tmp_path: Path) -> None:
    assert fragment(running).startswith('<div data-phase="running" data-over="no" data-title="7/20')
    folder = make_folder(tmp_path / "other", 2)
    assert 'data-phase="interrupted" data-over="yes"' in fragment(read_state(folder.path))


def test_the_page_holds_the_fragment(running: LiveState) -> None:
    assert f'<div id="live">{fragment(running)}</div>' in live_page(running)


def test_only_the_one_script_and_the_styles_of_the_page_are_allowed(running: LiveState) -> None:
    text, policy = live_page(running), security_policy()
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in contents]
        wanted = f"{directive} " + " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
        assert wanted in policy.split("; ")
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    # What these rules would stop.
    assert not re.search(r'\sstyle="|\son\w+="|<(img|link|iframe|object|base|form)\b', text)
    assert not re.search(r"https?://", text)


def test_names_and_reasons_can_not_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = make_folder(tmp_path / "run")
    names = ("a<b>", 'c"d', "e&f", "g'h")
    append_round(folder.rounds_jsonl, record(1, parties=names, seconds={evil: 1.0, "train": 1}))
    broken = run_record(folder, 0, model_sha256="", stopped_early=f"failed: {evil}")
    broken.save(folder.run_json)
    text = fragment(read_state(folder.path))
    assert evil not in text
    assert text.count("alert(1)") == 3
    assert "a&lt;b&gt;" in text
    parsed(text)


def test_a_lost_party_stands_out(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run", 2)) as folder:
        append_round(folder.rounds_jsonl, record(3, parties=("north", "south", "west")))
        text = fragment(read_state(folder.path))
    assert '<li class="lost">east (lost)</li>' in text
    assert "east was lost; 3 parties went on: north, south, west" in text
    assert cards(text)["parties"] == "3 of 4"


@pytest.mark.parametrize(
    ("rounds", "unit", "charts"), [(0, "record", 0), (1, "record", 6), (9, "none", 5)]
)
def test_every_moment_has_a_page(tmp_path: Path, rounds: int, unit: str, charts: int) -> None:
    with held(make_folder(tmp_path / "run", rounds, unit=unit)) as folder:
        text = fragment(read_state(folder.path))
    assert len(parsed(text).findall('.//svg[@class="chart"]')) == charts
    assert ("no privacy" in text) == (unit == "none")


def test_rounds_that_nobody_timed_have_a_page(tmp_path: Path) -> None:
    with held(make_folder(tmp_path / "run")) as folder:
        untimed = record(1, seconds={}, bytes_sent=0, bytes_received=0, accuracy=None, loss=None)
        append_round(folder.rounds_jsonl, untimed)
        text = fragment(read_state(folder.path))
    parsed(text)
    assert cards(text)["accuracy"] == "-"


def points_of(svg: str) -> list[tuple[float, float]]:
    line = parsed(svg).find("polyline")
    assert line is not None
    pairs = [pair.split(",") for pair in str(line.get("points")).split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_a_chart_is_as_high_as_its_values() -> None:
    chart = Chart("c", {"a": [(1, 0.0), (6, 5.0), (11, 10.0)]}, 11)
    left, middle, right = points_of(draw(chart))
    assert left[0] < middle[0] < right[0]
    assert middle[0] == pytest.approx((left[0] + right[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((left[1] + right[1]) / 2, abs=0.1)
    assert right[1] < left[1]


def test_a_chart_of_many_rounds_is_thinned_and_keeps_the_last() -> None:
    chart = Chart("c", {"a": [(i, float(i)) for i in range(1, 10_001)]}, 10_000)
    points = points_of(draw(chart))
    assert 200 < len(points) <= 401
    assert points[-1] == points_of(draw(Chart("c", {"a": [(10_000, 10_000.0)]}, 10_000)))[0]


@pytest.mark.parametrize("height", [0.0, 1e-12, 1.0, -3.0, 1e300])
def test_a_chart_takes_any_height(height: float) -> None:
    parsed(draw(Chart("c", {"a": [(1, height)]}, 1, ("limit", height))))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.06, [0.0, 0.5, 1.0]),
        (0.0, 4.24, [0.0, 2.0, 4.0]),
        (1, 60, [20.0, 40.0, 60.0]),
        (0.0, 0.2, [0.0, 0.05, 0.1, 0.15, 0.2]),
        (1, 1, [1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected
