import csv
import io
import re
import statistics
import sys
from pathlib import Path

import pytest

from mpcfl.bench.record import Stage
from mpcfl.bench.summary import summarize
from mpcfl.bench.tables import (
    HEADINGS,
    LINK_HEADINGS,
    case_cells,
    escape_tex,
    tables,
    write_tables,
)
from mpcfl.errors import ConfigError

sys.path.append(str(Path(__file__).parent))
from grid_records import COSTS, grid_records

HOSTILE = 'a & b_c $x$ 5% #1 {\\input{x}} ~^ <"quoted">\n\\end{tabular}, "2"'
SOME = {name: COSTS[name] for name in list(COSTS)[:6] if name[0] in ("plain", "ring", "paillier")}


@pytest.fixture
def records(record):
    made = grid_records(SOME, (2,), (1_000, 10_000), trips=(0.0, 40.0), runs=3)
    p = made[0].parameters
    return [*made, record(parameters=p, case=p.case, run=3, failure=HOSTILE, grid="synthetic")]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def tex_rows(text):
    """Undo LaTeX: the cells of every row of all tabulars, headings among them."""
    plain = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^",
        r"\textless{}": "<", r"\textgreater{}": ">", r"\textquotedbl{}": '"',
    }  # fmt: skip
    found = []
    for line in text.splitlines():
        if not line.endswith(r" \\"):
            continue
        cells = re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))
        undone = []
        for cell in cells:
            cell = cell.replace(r"$\mu$s", "us")
            parts = re.split(r"(\\text[a-z]+\{\}|\\[&%$#_{}])", cell)
            undone.append("".join(plain.get(p, p[1:] if p.startswith("\\") else p) for p in parts))
        found.append(tuple("-" if cell == "--" else cell for cell in undone))
    return found


def test_every_case_has_a_row_with_the_numbers_of_its_records(records):
    rows = rows_of(tables(records)["cases.csv"])
    summary = summarize(records)
    assert len(rows) == len(summary)
    for row, expected in zip(rows, summary, strict=True):
        p, numbers = expected.parameters, expected.numbers
        assert (row["backend"], int(row["parties"]), int(row["dim"])) == (
            p.backend,
            p.parties,
            p.dim,
        )
        assert (row["link"], float(row["round_trip_ms"])) == (p.link, p.round_trip_ms)
        measured = [r.measured for r in records if r.parameters == p and r.measured is not None]
        seconds = [value.seconds for m in measured for value in m.values]
        # Printed so that it reads back equal.
        assert float(row["median_s"]) == statistics.median(seconds) == numbers.median_s
        assert float(row["low_quartile_s"]) == numbers.low_quartile_s
        assert float(row["protect_s"]) == numbers.stages_s["protect"]
        assert float(row["bytes_per_sum"]) == sum(measured[0].bytes_sent["aggregate"]) / 3
        assert float(row["busiest_bytes"]) == max(measured[0].bytes_sent["aggregate"]) / 3
        assert int(row["sums_compared"]) == 5 * len(measured)
        assert int(row["n_failed"]) == len(expected.failures)
        on_link = p.link != "shared-memory"
        assert bool(row["one_way_bit_per_s"]) == bool(row["kernel_bytes_per_sum"]) == on_link
        if on_link:
            kernel = sum(measured[0].interface_bytes) / 3
            assert float(row["kernel_bytes_per_sum"]) == kernel


def test_every_raw_value_is_in_the_table(records):
    rows = rows_of(tables(records)["values.csv"])
    found = {
        (r["backend"], r["key_bits"], r["dim"], r["link"], float(r["round_trip_ms"]), r["run"],
         r["kind"], r["value"], r["rank"]): tuple(float(r[f"{s}_s"]) for s in (*Stage, "total"))
        for r in rows
    }  # fmt: skip
    assert len(found) == len(rows)
    expected = {}
    for r in (r for r in records if r.measured is not None):
        p = r.parameters
        head = (p.backend, str(p.key_bits or ""), str(p.dim), p.link, p.round_trip_ms, str(r.run))
        kinds = (("warm-up", r.measured.warmups), ("timed", r.measured.values))
        for kind, values in kinds:
            for number, v in enumerate(values):
                for rank in range(len(v.total)):
                    key = (*head, kind, str(number), str(rank))
                    times = (v.protect, v.aggregate, v.open, v.total)
                    expected[key] = tuple(t[rank] for t in times)
    assert found == expected


def test_links_and_crossovers_match_the_records(records):
    made = tables(records)
    links = rows_of(made["links.csv"])
    on_links = [r for r in records if r.link is not None]
    assert len(links) == len(on_links)
    totals = sum(sum(r.measured.interface_bytes) for r in on_links)
    assert sum(int(row["kernel_bytes"]) for row in links) == totals
    packets = sum(sum(r.measured.interface_packets) for r in on_links)
    assert sum(int(row["kernel_packets"]) for row in links) == packets
    assert {row["delay"] for row in links if float(row["round_trip_ms"])} == {"relay"}
    crossovers = rows_of(made["crossovers.csv"])
    assert {(row["dim"], row["round_trip_ms"]) for row in crossovers} == {
        (dim, trip) for dim in ("1000", "10000") for trip in ("0.0", "40.0")
    }
    rate = next(float(row["rate_bit_per_s"]) for row in crossovers if row["faster_above"] == "ring")
    assert 1e5 < rate < 1e8


def test_latex_reads_back_as_the_cells_of_the_page(records):
    made = tables(records)
    found = tex_rows(made["cases.tex"])
    assert HEADINGS in found
    for row in summarize(records):
        assert tuple(" ".join(cell.split()) for cell in case_cells(row)) in found
    assert made["cases.tex"].count(r"\begin{tabular}") == len(
        {r.parameters.network for r in records}
    )
    assert LINK_HEADINGS in tex_rows(made["links.tex"])


def test_latex_has_balanced_braces_and_equal_columns(records):
    for name, text in tables(records).items():
        if not name.endswith(".tex"):
            continue
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
        columns = [len(spec) for spec in re.findall(r"\\begin\{tabular\}\{(l+)\}", text)]
        assert {len(row) for row in tex_rows(text)} == set(columns)


def test_latex_signs_are_escaped():
    assert escape_tex("50% of $5 & a_b") == r"50\% of \$5 \& a\_b"
    assert escape_tex("\\input{x}") == r"\textbackslash{}input\{x\}"
    assert escape_tex("100 us\nlater") == r"100 $\mu$s later"
    assert escape_tex("bus") == "bus"


def test_the_same_records_give_the_same_files(records, tmp_path):
    write_tables(records, tmp_path / "tables")
    write_tables(records, tmp_path / "tables")
    files = {
        path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "tables").iterdir()
    }
    assert files == tables(records)
    assert {name.partition(".")[2] for name in files} == {"csv", "tex"}


def test_failures_alone_and_nothing_at_all(record):
    made = tables([record(failure="lost")])
    assert rows_of(made["cases.csv"])[0]["remark"] == "failed: lost"
    assert rows_of(made["values.csv"]) == []
    assert "failed" in made["cases.tex"]
    with pytest.raises(ConfigError, match="no benchmark records"):
        tables([])
