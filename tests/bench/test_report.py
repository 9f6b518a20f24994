import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mpcfl.bench import link_figures, report_figures
from mpcfl.bench.case_numbers import Cases
from mpcfl.bench.dimension_fit import COST_MODEL, LINE, fit_dimensions
from mpcfl.bench.record import Machine
from mpcfl.bench.report import bench_report, write_report
from mpcfl.bench.report_figures import choose_looks, shown_dims
from mpcfl.bench.report_words import peer_words
from mpcfl.bench.summary import summarize
from mpcfl.bench.tables import HEADINGS, case_cells
from mpcfl.errors import ConfigError

sys.path.append(str(Path(__file__).parent))
from grid_records import COSTS, grid_records

HOSTILE = "<script>alert('x')</script>"
FEW = {name: COSTS[name] for name in COSTS if name[0] in ("ring", "paillier", "heu-zpaillier")}


class Page(HTMLParser):
    """Keeps the cells of every table row, all texts, and the names of all tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.rows, self.tags, self.texts, self.identifiers, self.cell = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.identifiers += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th")
        if self.cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.texts.append(data)
        if self.cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page():
    """A page of a small grid with links, a round trip and a peer, drawn once."""
    records = grid_records(FEW, (2, 4), (1_000, 10_000), ("shared-memory", "20mbit"), (0.0, 40.0))
    text = bench_report(records)
    return records, text, Page(text)


def test_the_tables_hold_all_cases(page):
    records, _, found = page
    assert list(HEADINGS) in found.rows
    for row in summarize(records):
        assert list(case_cells(row)) in found.rows


def test_the_page_needs_nothing_from_outside(page):
    _, text, found = page
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert len(found.identifiers) == len(set(found.identifiers))
    targets = re.findall(r'<a href="#([^"]*)"', text)
    assert targets
    assert set(targets) <= set(found.identifiers)


def test_every_section_has_its_charts(page):
    _, text, _ = page
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, re.DOTALL))
    charts = {anchor: part.count("<svg") for anchor, part in sections.items()}
    # 2 numbers of parties on 3 networks, two of 1 length each in the shorter chart.
    assert charts["time"] == 6
    assert charts["traffic"] == charts["memory"] == 2
    assert charts["scaling"] == 6
    assert charts["links"] == 1 + 2
    assert charts["equality"] == charts["method"] == charts["cases"] == 0


def test_the_crossovers_links_and_bytes_are_told(page):
    records, text, found = page
    assert any(t.startswith("paillier 2048 bit, holder beats ring below ") for t in found.texts)
    # As the synthetic link was: 95 % of 20 Mbit/s.
    row = ["20mbit", "40 ms", "19 Mbit/s", "95.0%", "18.8 Mbit/s", "40.1 ms", "relay", "cubic"]
    assert row in found.rows
    shown = {(row[0], row[4], row[5]) for row in found.rows if len(row) == 6}
    on_links = [r for r in records if r.measured is not None and r.link is not None]
    assert on_links
    for r in on_links:
        payload = r.measured.bytes_per_sum() * len(r.measured.values)
        kernel, packets = sum(r.measured.interface_bytes), sum(r.measured.interface_packets)
        with_headers = payload + packets * (52 if r.link.delay == "relay" else 66)
        expected = (r.case, f"{kernel / payload:.3f}", f"{kernel / with_headers - 1:+.1%}")
        assert expected in shown
    assert "counted by the kernel" in text


def test_equal_results_and_protection_are_told(page):
    _, _, found = page
    # 12 cases of 5 launches with 5 sums each.
    assert ["ring", "300", "none: every coordinate equal"] in found.rows
    words = {row[0]: row[1] for row in found.rows if len(row) == 2}
    assert words["paillier 2048 bit, threshold"].startswith("Nobody owns the Paillier private key")
    # The same is true with either key.
    assert "paillier 2048 bit, holder; paillier 3072 bit, holder" in words
    security, differences = peer_words("heu-zpaillier")
    assert f"Security: {security}" in found.texts
    assert set(differences) <= set(found.texts)


def test_inexact_peers_are_shown_with_their_error():
    costs = {name: cost for name, cost in COSTS.items() if name[0] == "tenseal-ckks"}
    found = Page(bench_report(grid_records(costs, (2,), (10,), ("shared-memory",))))
    assert ["tenseal-ckks", "25", "0.002 per coordinate"] in found.rows


def test_the_same_records_give_the_same_page(record, tmp_path):
    records = [record(), record((4.0,), backend="crypten")]
    write_report(records, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == bench_report(records)


def test_large_grids_have_few_charts_and_fold_their_tables(monkeypatch):
    drawn = []

    def drawing(kind):
        def draw(title, *_, **__):
            drawn.append((kind, title))
            return "<svg></svg>"

        return draw

    for kind in ("time", "bytes", "memory", "dimension", "parties"):
        monkeypatch.setattr(report_figures, f"{kind}_chart", drawing(kind))
    for kind in ("link", "network"):
        monkeypatch.setattr(link_figures, f"{kind}_chart", drawing(kind))
    records = grid_records(
        parties=(2, 3, 4, 6, 8), dims=(10, 100, 1_000), trips=(0.0, 20.0), runs=1, values=1
    )
    text = bench_report(records)
    assert len(summarize(records)) > 500
    kinds = Counter(kind for kind, _ in drawn)
    assert len(kinds) == 7
    assert max(kinds.values()) == 12
    assert len(drawn) == len(set(drawn))
    openly = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert openly.count("<svg") <= 15
    assert openly.count("<tr") < 60


def test_looks_are_unlike_for_every_variant():
    looks = choose_looks(Cases.of(grid_records(parties=(2,), dims=(10,), runs=1)).measured)
    assert len(looks) == len(set(looks.values())) == len(COSTS)
    alone = choose_looks(
        Cases.of(
            grid_records({("ring", None, None): COSTS["ring", None, None]}, (2,), (10,), runs=1)
        ).measured
    )
    assert alone["ring"] == looks["ring"]


def test_the_length_that_most_have_is_shown_and_the_longest():
    cases = Cases.of(grid_records(parties=(2,), links=("shared-memory",), runs=1)).measured
    assert shown_dims(cases) == [10_000, 100_000]
    assert shown_dims([c for c in cases if c.parameters.backend == "phe"]) == [10_000]


def test_lines_and_the_cost_model_are_fitted_to_lengths():
    records = grid_records(parties=(2, 4), links=("shared-memory",), noise=0.0, runs=1)
    fits = fit_dimensions(Cases.of(records).measured, 2)
    lines = {(f.parameters.variant, f.parameters.parties): f for f in fits if f.model == LINE}
    start_s, per_coordinate_s, *_ = COSTS["paillier", 2048, "holder"]
    found = lines["paillier 2048 bit, holder", 4]
    assert found.start_s == pytest.approx(start_s, rel=1e-9)
    # Four parties on two cores.
    assert found.per_coordinate_s == pytest.approx(2 * per_coordinate_s, rel=1e-9)
    assert found.largest_error < 1e-9
    assert {f.parameters.backend for f in fits if f.model == COST_MODEL} == {
        "plain", "ring", "crypten"
    }  # fmt: skip
    # Two lengths are no line.
    assert not any(variant.startswith("phe") for variant, _ in lines)


def test_failures_and_trials_are_shown(record):
    records = [record(comparable=False), record(backend="phe", failure="no key to be had")]
    text = bench_report(records)
    assert "1 of 2 runs failed" in text
    assert "A trial grid" in text
    rows = Page(text).rows
    assert [records[1].case, "0", "no key to be had"] in rows


def test_a_failed_launch_that_was_made_again_is_none(record):
    text = bench_report([record(failure="lost"), record()])
    assert "failed; the reasons" not in text
    assert "lost" not in text


def test_a_grid_where_everything_failed_still_has_a_page(record):
    assert "No run was measured" in bench_report([record(failure="lost")])


def test_hostile_texts_stay_text(record, parameters):
    p = parameters(HOSTILE)
    changes = {"grid": HOSTILE, "versions": {HOSTILE: HOSTILE}, "commit": HOSTILE}
    text = bench_report(
        [record(parameters=p, **changes), record(failure=HOSTILE, case=HOSTILE, **changes)]
    )
    assert "<script" not in text
    assert ["commit", HOSTILE] in Page(text).rows


def test_no_records_and_two_machines_are_refused(record):
    other = Machine("Other CPU", 4, 1 << 33, "6.1", "fedcba9876543210")
    with pytest.raises(ConfigError, match="no benchmark records"):
        bench_report([])
    with pytest.raises(ConfigError, match="different machines"):
        bench_report([record(), record(machine=other)])
