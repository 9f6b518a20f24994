import re
from html.parser import HTMLParser

import pytest

from mpcfl.bench.record import Machine
from mpcfl.bench.report import bench_report, write_report
from mpcfl.bench.summary import summarize, table
from mpcfl.errors import ConfigError

HOSTILE = "<script>alert('x')</script>"


class Tables(HTMLParser):
    """Keeps the cells of every table row and the names of all tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.rows, self.tags, self.cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th")
        if self.cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


def test_the_table_is_the_summary_of_the_records(record, tmp_path):
    records = [record(), record((4.0,), backend="crypten")]
    write_report(records, tmp_path / "report.html")
    found = Tables((tmp_path / "report.html").read_text(encoding="utf-8"))
    headings, cells = table(summarize(records))
    assert list(headings) in found.rows
    for row in cells:
        assert list(row) in found.rows
    assert found.tags.count("svg") == 4


def test_the_page_needs_nothing_from_outside(record):
    text = bench_report([record(), record((4.0,), backend="crypten")])
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert not {"script", "link", "img", "iframe"} & set(Tables(text).tags)
    assert text == bench_report([record(), record((4.0,), backend="crypten")])


def test_failures_and_trials_are_shown(record):
    records = [record(comparable=False), record(backend="phe", failure="no key to be had")]
    text = bench_report(records)
    assert "1 of 2 runs failed" in text
    assert "A trial grid" in text
    rows = Tables(text).rows
    assert [records[1].case, "0", "no key to be had"] in rows


def test_a_grid_where_everything_failed_still_has_a_page(record):
    assert "No run was measured" in bench_report([record(failure="lost")])


def test_hostile_texts_stay_text(record, parameters):
    p = parameters(HOSTILE)
    changes = {"grid": HOSTILE, "versions": {HOSTILE: HOSTILE}, "commit": HOSTILE}
    text = bench_report(
        [record(parameters=p, **changes), record(failure=HOSTILE, case=HOSTILE, **changes)]
    )
    assert "<script" not in text
    assert ["commit", HOSTILE] in Tables(text).rows


def test_no_records_and_two_machines_are_refused(record):
    other = Machine("Other CPU", 4, 1 << 33, "6.1", "fedcba9876543210")
    with pytest.raises(ConfigError, match="no benchmark records"):
        bench_report([])
    with pytest.raises(ConfigError, match="different machines"):
        bench_report([record(), record(machine=other)])
