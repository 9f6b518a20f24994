import re
from html.parser import HTMLParser

import pytest

from mpcfl.report.html import run_report, write_run_report
from mpcfl.report.run_record import ModelRecord
from mpcfl.report.threat_model import OUT_OF_SCOPE, backend_words

VOID = {"meta", "br", "img", "link", "hr", "input"}
HOSTILE = "<script>alert('x')</script>$a_b$&\""


class Page(HTMLParser):
    """Checks that tags nest, and keeps the tables, texts and attributes."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.rows, self.texts, self.attributes = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def assert_self_contained(text):
    page = Page(text)
    for name, value in page.attributes:
        assert name in ("xmlns", "xmlns:xlink") or "//" not in (value or "")
        assert name != "src"
        assert not name.startswith("on")
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    assert "http" not in outside
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_is_self_contained_and_well_formed(run_record):
    assert_self_contained(run_report(run_record()))


def test_the_headline_the_plots_and_the_tables_match_the_record(run_record):
    page = Page(run_report(run_record()))
    assert "3.8766 of 4" in page.texts
    assert "0.9375" in page.texts
    assert page.tags.count("svg") == 5
    # The last round: epsilon spent, accuracy, loss, seconds of the three stages, bytes.
    assert ["2", "0", "3", "0.7", "0.3333", "1 s", "1 MiB", "north, south"] in page.rows
    assert ["sigma", "512"] in page.rows
    assert ["aggregation.custody", "holder"] in page.rows
    assert ["mpcfl", "0.1.0"] in page.rows
    views = {row[0]: row[1] for row in page.rows if len(row) == 3}
    assert views["outsider"] == "3"
    assert views["own share only"] == "9.25"


def test_the_page_says_what_is_trained_and_so_travels(run_record):
    model = ModelRecord({HOSTILE: 1234, "bias": 10}, 56789, {"base": HOSTILE})
    text = run_report(run_record(model=model))
    assert_self_contained(text)
    page = Page(text)
    assert [HOSTILE, "1,234"] in page.rows
    assert ["bias", "10"] in page.rows
    assert ["base", HOSTILE] in page.rows
    assert any("1,244 values" in words and "56,789 other" in words for words in page.texts)


def test_rounds_that_were_not_measured_leave_no_hole_in_the_line(run_record, rounds):
    few = (*rounds(2, accuracy=None, loss=None), *rounds(1))
    page = Page(run_report(run_record(rounds=few)))
    assert page.tags.count("svg") == 5
    never = Page(run_report(run_record(rounds=rounds(3, accuracy=None, loss=None))))
    assert never.tags.count("svg") == 3


def test_the_same_record_gives_the_same_bytes(run_record):
    assert run_report(run_record()) == run_report(run_record())


def test_hostile_names_stay_text(run_record, rounds):
    record = run_record(
        job={"task": HOSTILE, HOSTILE: HOSTILE},
        backend=HOSTILE,
        rounds=rounds(parties=(HOSTILE,), seconds={HOSTILE: 1.0}),
        metrics={HOSTILE: 1.0},
        versions={HOSTILE: HOSTILE},
        stopped_early=HOSTILE,
        plan={HOSTILE: {HOSTILE: [HOSTILE]}},
        model_sha256=HOSTILE,
    )
    text = run_report(record)
    assert "<script" not in text
    assert_self_contained(text)
    assert [HOSTILE, HOSTILE] in Page(text).rows


def test_both_color_schemes_are_there_and_every_plot_follows_them(run_record):
    text = run_report(run_record())
    assert "prefers-color-scheme: dark" in text
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    # What is left of fixed colors would vanish on one of the two backgrounds.
    assert not re.search(r"#[0-9a-fA-F]{6}", svg)
    assert all(f"--{name}:" in text for name in set(re.findall(r"var\(--([a-z0-9-]+)\)", text)))


def test_the_threat_model_and_the_early_stop_are_said(run_record):
    text = " ".join(Page(run_report(run_record(stopped_early="budget spent"))).texts)
    assert "Stopped early: budget spent" in text
    assert backend_words("phe", "holder") in text
    for sentence in OUT_OF_SCOPE:
        assert sentence in text


@pytest.mark.parametrize("custody", ["holder", "clients", "threshold"])
def test_the_card_says_what_is_left_if_custody_breaks(run_record, custody):
    job = {
        "task": "digits",
        "parties": {"count": 5},
        "privacy": {"unit": "none"},
        "training": {"rounds": 1},
        "aggregation": {"backend": "paillier", "custody": custody},
    }
    text = " ".join(Page(run_report(run_record(job=job, backend="paillier"))).texts)
    # The epsilon of a party's own share, as in the table of views.
    assert "its own share of noise only: epsilon 9.25 over this run" in text
    assert ("any 3 of the 5 shares" in text) is (custody == "threshold")


def test_a_backend_without_a_key_has_no_custody_that_could_break(run_record):
    text = run_report(run_record(job={"task": "digits"}, backend="ring"))
    assert "does decrypt" not in text


def test_noise_inside_each_party_has_other_words_than_shares_of_it(run_record):
    def words(job):
        return " ".join(Page(run_report(run_record(job=job))).texts)

    assert "each party adds all of it" in words({"privacy": {"placement": "local"}})
    assert "each party adds all of it" not in words({"privacy": {"placement": "distributed"}})


def test_a_run_without_privacy_says_so(run_record, privacy, rounds):
    none = privacy(
        unit="none", epsilon=None, epsilon_planned=None, delta=None, mechanism=None, accountant=None
    )
    text = " ".join(
        Page(run_report(run_record(privacy=none, rounds=rounds(epsilon=None), plan={}))).texts
    )
    assert "no privacy" in text
    assert "This run adds no noise" in text
    assert "No noise plan" in text


def test_a_run_without_rounds_or_figures_still_has_a_page(run_record, rounds, tmp_path):
    write_run_report(run_record(rounds=(), metrics={}), tmp_path / "report.html")
    assert_self_contained((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(
        run_report(run_record(rounds=rounds(accuracy=None, loss=None, seconds={})))
    )


@pytest.mark.parametrize("backend", ["plain", "crypten", "crypten-stock", "phe", "paillier"])
def test_every_backend_has_words_of_its_own(backend):
    assert "another package" not in backend_words(backend, "holder")


def test_custody_changes_the_words_and_strangers_get_a_hint():
    assert backend_words("phe", "holder") != backend_words("phe", "clients")
    assert "another package" in backend_words("stranger", None)


def test_what_each_partys_ledger_says_is_in_a_table(run_record):
    record = run_record(epsilon_by_party={"alice": 1.25, "bob": 1.5})
    rows = Page(run_report(record)).rows
    assert ["alice", "1.25"] in rows
    assert ["bob", "1.5"] in rows
