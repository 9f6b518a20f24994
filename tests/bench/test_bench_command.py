"""`mpcfl bench GRID` from its words to its exit code, with launches that only pretend to run."""

import io
import json
import re
from subprocess import CompletedProcess

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mpcfl.bench.cell import CellResult
from mpcfl.bench.record import load_records
from mpcfl.bench.run import Step
from mpcfl.errors import ConfigError, MpcflError
from mpcfl.launch import bench_cell, bench_command
from mpcfl.launch.bench_view import grid_view
from mpcfl.launch.cli import app

WRITERS = {name: getattr(bench_command, name) for name in ("write_report", "write_tables")}

GRID = """
name = "pair"
runs = 2
backends = ["plain", "ring"]
parties = [2]
dims = [10]
"""


@pytest.fixture
def launches(monkeypatch, measurement):
    """Replace every launch; return what was launched, and the backends that are to fail."""
    launched, failing = [], set()

    def start(cell, cell_file, out_file, /):
        launched.append((cell.parameters.backend, cell.run))
        if cell.parameters.backend in failing:
            return CompletedProcess([], 1, stderr="no luck")
        out_file.write_text(CellResult(measurement((1.0, 2.0, 3.0)), {}, None).to_json())
        return CompletedProcess([], 0, stderr="")

    monkeypatch.setattr(bench_command, "start_cell", start)
    # Drawing takes longer than everything else together.
    for name in WRITERS:
        monkeypatch.setattr(bench_command, name, lambda records, path: None)
    return launched, failing


@pytest.fixture
def grid_file(tmp_path):
    file = tmp_path / "pair.toml"
    file.write_text(GRID)
    return file


def _bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_a_grid_leaves_records_tables_and_page_and_says_how_far_it_is(
    launches, grid_file, tmp_path, monkeypatch
):
    for name, writer in WRITERS.items():
        monkeypatch.setattr(bench_command, name, writer)
    done = _bench(grid_file, "--out", tmp_path / "R")
    assert done.exit_code == 0, done.output
    assert len(load_records(tmp_path / "R")) == 4
    left = {path.name for path in (tmp_path / "R").iterdir()}
    assert left >= {"records.jsonl", "grid.toml", "report.html", "summary.json", "tables"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("cell ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(line.endswith(" left)") for line in lines[:3])
    assert lines[3].endswith("done")


def test_a_failed_cell_is_shown_with_its_reason_and_ends_with_exit_code_1(
    launches, grid_file, tmp_path
):
    launches[1].add("ring")
    done = _bench(grid_file, "--out", tmp_path / "R")
    assert done.exit_code == 1
    assert "failed: exit code 1: no luck" in done.stdout
    records = load_records(tmp_path / "R")
    assert sum(record.failure is not None for record in records) == 2


def test_resuming_runs_only_what_is_missing_and_then_succeeds(launches, grid_file, tmp_path):
    launched, failing = launches
    failing.add("ring")
    _bench(grid_file, "--out", tmp_path / "R")
    failing.clear()
    launched.clear()
    done = _bench("--resume", tmp_path / "R")
    assert done.exit_code == 0, done.output
    assert sorted(launched) == [("ring", 0), ("ring", 1)]
    assert "2 of 4 cells are measured already" in done.stdout
    # The failed records stay; what they said no longer counts.
    assert len(load_records(tmp_path / "R")) == 6
    summary = json.loads((tmp_path / "R" / "summary.json").read_text())
    assert [row["failures"] for row in summary] == [[], []]


def test_a_finished_grid_can_be_resumed_and_is_left_as_it_is(launches, grid_file, tmp_path):
    _bench(grid_file, "--out", tmp_path / "R")
    launches[0].clear()
    assert _bench(grid_file, "--resume", tmp_path / "R").exit_code == 0
    assert launches[0] == []


def test_json_is_one_document_of_the_rows(launches, grid_file, tmp_path):
    done = _bench(grid_file, "--out", tmp_path / "R", "--json")
    rows = json.loads(done.stdout)
    assert {row["parameters"]["backend"] for row in rows} == {"plain", "ring"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smokey"], "smokey: no such grid file, and no packaged grid; known: laptop, paper, scal"),
        (["pair.toml", "--resume", "R", "--out", "S"], "--resume goes on in its own folder"),
        (["pair.toml", "--resume", "nowhere"], r"there is no grid\.toml"),
        (["--resume", "nowhere"], r"nowhere/grid\.toml: can't read the grid file"),
        (["other.toml", "--resume", "R"], "R holds results of another grid file"),
        (["wrong.toml", "--out", "S"], "wrong.toml: links: 'fast' is no rate"),
        (["pair.toml", "--out", "R"], "is not empty"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(
    launches, grid_file, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    _bench("pair.toml", "--out", "R")
    launches[0].clear()
    (tmp_path / "other.toml").write_text(GRID.replace("10", "11"))
    (tmp_path / "wrong.toml").write_text(GRID + 'links = ["fast"]\n')
    done = _bench(*arguments)
    assert isinstance(done.exception, MpcflError)
    assert re.search(message, str(done.exception))
    assert launches[0] == []
    assert not (tmp_path / "S").exists()


def test_without_root_a_grid_with_links_is_refused_before_anything_runs(
    launches, grid_file, tmp_path, monkeypatch
):
    asked = []

    def obstacle(*, delayed):
        asked.append(delayed)
        return "making network namespaces needs root; run this as root"

    monkeypatch.setattr(bench_cell, "obstacle", obstacle)
    assert _bench(grid_file, "--out", tmp_path / "R").exit_code == 0
    assert asked == []
    launches[0].clear()
    grid_file.write_text(GRID + 'links = ["shared-memory", "20mbit"]\nround_trip_ms = [0, 40]\n')
    done = _bench(grid_file, "--out", tmp_path / "S")
    assert str(done.exception) == (
        "8 of 12 cells need hosts with links of their own: making network namespaces needs root; "
        'run this as root, or take a grid with links = ["shared-memory"]'
    )
    assert asked == [True]
    assert launches[0] == []
    assert not (tmp_path / "S").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(record, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, color_system=None)
    with grid_view(console, 2) as show:
        show(Step(record(run=0), 1, 2, 150.0))
        show(Step(record(run=1, failure="lost"), 2, 2, 0.0))
    shown = stream.getvalue()
    assert "cell 1/2" in shown
    assert "done  (about 2 min 30 s left)" in shown
    assert "failed: lost\n" in shown
    # The bar stands on the last line, and no longer says how long it takes.
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).rstrip()
    assert plain.endswith("2/2" if terminal else "failed: lost")


def test_the_page_and_the_tables_can_be_made_anew_from_the_records(
    launches, grid_file, tmp_path, monkeypatch
):
    for name, writer in WRITERS.items():
        monkeypatch.setattr(bench_command, name, writer)
    folder = tmp_path / "R"
    assert _bench(grid_file, "--out", folder).exit_code == 0
    made = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    again = _bench("report", folder / "records.jsonl", "--out", tmp_path / "new" / "place")
    assert again.exit_code == 0, again.output
    assert "see " in again.output
    for path, content in made.items():
        if path.name not in {"records.jsonl", "grid.toml"}:
            assert (tmp_path / "new" / "place" / path.relative_to(folder)).read_bytes() == content
    (folder / "report.html").unlink()
    assert _bench("report", folder).exit_code == 0
    assert (folder / "report.html").read_bytes() == made[folder / "report.html"]


def test_a_report_without_records_says_so(tmp_path):
    done = _bench("report", tmp_path / "nothing")
    assert isinstance(done.exception, ConfigError)
    assert "nothing: can't read benchmark records" in str(done.exception)
