"""The page as a browser shows it: nothing complains, nothing is missing, nothing sticks out."""

import re
import sys
from pathlib import Path

import pytest

from mpcfl.bench.report import write_report
from mpcfl.bench.summary import summarize
from mpcfl.bench.tables import HEADINGS, case_cells

sys.path.append(str(Path(__file__).parent))
from browser import find_browser, open_tab
from grid_records import COSTS, grid_records

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: chromium)")
WIDTH = 1280
SOME = {name: COSTS[name] for name in COSTS if name[0] in ("plain", "ring", "paillier")}
# Charts that take room, with the number of texts and shapes in each.
CHARTS = """[...document.querySelectorAll("svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  return [Math.round(box.width), Math.round(box.height),
          svg.querySelectorAll("text").length, svg.querySelectorAll("path").length];
})"""
TABLES = """[...document.querySelectorAll("tr")].map(row =>
  [...row.children].map(cell => cell.textContent))"""
COLORS = """[getComputedStyle(document.body).backgroundColor,
  getComputedStyle(document.querySelector("h1")).color,
  getComputedStyle(document.querySelector("svg text")).fill,
  getComputedStyle(document.querySelector("details")).backgroundColor]"""
# What reaches beyond the right edge without a scroll bar of its own.
STICKING_OUT = """[...document.querySelectorAll("main *")].filter(e =>
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
  && !e.closest(".scroll") && !e.closest("svg")).map(e => e.outerHTML.slice(0, 80))"""
UNFOLD = "document.querySelectorAll('details').forEach(e => { e.open = true; })"


@pytest.fixture(scope="module")
def records():
    return grid_records(SOME, (2,), (1_000, 10_000), ("shared-memory", "20mbit"), runs=2)


@pytest.fixture(scope="module")
def tab(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write_report(records, folder / "report.html")
    with open_tab(BROWSER, folder) as opened:
        opened.open(folder / "report.html", WIDTH)
        yield opened


def test_nothing_complains_and_nothing_else_is_loaded(tab):
    assert tab.evaluate("document.readyState") == "complete"
    assert tab.complaints() == []
    assert [address.rpartition("/")[2] for address in tab.requests()] == ["report.html"]


def test_all_charts_are_there_with_texts_and_shapes(tab):
    tab.evaluate(UNFOLD)
    charts = tab.evaluate(CHARTS)
    # Time on two networks, bytes, two against length, links, cross-overs, memory.
    assert len(charts) == tab.evaluate("document.querySelectorAll('figure').length") == 8
    for width, height, n_texts, n_paths in charts:
        assert width > 400
        assert height > 100
        assert n_texts > 5
        assert n_paths > 5


def test_the_tables_are_the_records(tab, records):
    rows = tab.evaluate(TABLES)
    assert list(HEADINGS) in rows
    for row in summarize(records):
        assert list(case_cells(row)) in rows


@pytest.mark.parametrize("width", [WIDTH, 480])
def test_nothing_sticks_out(tab, width, records):
    size = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
    tab.call("Emulation.setDeviceMetricsOverride", width=width, **size)
    tab.evaluate(UNFOLD)
    assert tab.evaluate(STICKING_OUT) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def luminance(color):
    """Return the relative luminance of an rgb(...) text, as WCAG 2.1 defines it."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_dark_is_dark_and_both_are_legible(tab):
    found = {}
    for scheme in ("light", "dark"):
        tab.prefer(scheme)
        found[scheme] = [luminance(color) for color in tab.evaluate(COLORS)]
    for light, dark in zip(found["light"], found["dark"], strict=True):
        assert light != dark
    for page, heading, chart_text, card in found.values():
        for text, behind in ((heading, page), (chart_text, card)):
            high, low = max(text, behind) + 0.05, min(text, behind) + 0.05
            # WCAG 2.1, criterion 1.4.3: text of normal size.
            assert high / low >= 4.5
    assert found["light"][0] > 0.5 > found["dark"][0]
