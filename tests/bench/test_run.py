import subprocess
from subprocess import CompletedProcess

import pytest

from mpcfl.bench.cell import CellResult
from mpcfl.bench.grid import parse_cell
from mpcfl.bench.record import load_records
from mpcfl.bench.run import run_grid
from mpcfl.errors import ConfigError


@pytest.fixture
def good(measurement):
    def start(cell, cell_file, out_file):
        assert parse_cell(cell_file.read_text()) == cell
        result = CellResult(measurement((1.0, 2.0)), {"python": "3"}, None)
        out_file.write_text(result.to_json())
        return CompletedProcess([], 0, "", "")

    return start


def test_each_cell_leaves_one_record_in_the_given_order(cell, good, tmp_path):
    cells = [cell("plain", run) for run in (2, 0, 1)]
    seen = []
    records = run_grid(cells, good, tmp_path / "out", lambda *call: seen.append(call))
    assert [r.run for r in records] == [2, 0, 1]
    assert load_records(tmp_path / "out") == records
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(r.failure is None and r.versions == {"python": "3"} for r in records)
    assert not records[0].comparable
    assert records[0].started_at.endswith("+00:00")


def _exits(cell, cell_file, out_file):
    return CompletedProcess([], 3, "", "noise\nrank 1: no such backend\n\n")


def _silent(cell, cell_file, out_file):
    return CompletedProcess([], 0, "", "")


def _torn(cell, cell_file, out_file):
    out_file.write_text('{"measured"')
    return CompletedProcess([], 137, "", "")


def _times_out(cell, cell_file, out_file):
    raise subprocess.TimeoutExpired("mpirun", cell.timeout_s)


def _no_launcher(cell, cell_file, out_file):
    raise FileNotFoundError(2, "No such file or directory", "mpirun")


def _says_why(cell, cell_file, out_file):
    out_file.write_text(CellResult(None, {}, "the sum is wrong").to_json())
    return CompletedProcess([], 1, "", "Abort was called\n")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (_exits, "exit code 3: rank 1: no such backend"),
        (_silent, "ended without a result"),
        (_torn, "exit code 137: nothing on standard error"),
        (_times_out, "timed out after 30 s"),
        (_no_launcher, "could not be started"),
        (_says_why, "the sum is wrong"),
    ],
)
def test_a_failed_launch_is_a_failed_record_and_the_grid_goes_on(
    cell, good, tmp_path, start, reason
):
    def first_fails(this, cell_file, out_file):
        return (start if this.run == 0 else good)(this, cell_file, out_file)

    records = run_grid([cell(run=0), cell(run=1)], first_fails, tmp_path / "out")
    assert reason in records[0].failure
    assert records[0].measured is None
    assert records[0].versions["python"]
    assert records[1].failure is None


def test_an_interrupted_grid_keeps_what_it_has(cell, good, tmp_path):
    def interrupted(this, cell_file, out_file):
        if this.run == 1:
            raise KeyboardInterrupt
        return good(this, cell_file, out_file)

    with pytest.raises(KeyboardInterrupt):
        run_grid([cell(run=0), cell(run=1)], interrupted, tmp_path / "out")
    assert [r.run for r in load_records(tmp_path / "out")] == [0]


def test_a_folder_with_something_in_it_is_refused(cell, good, tmp_path):
    (tmp_path / "records.jsonl").write_text("old")
    with pytest.raises(ConfigError, match="--out"):
        run_grid([cell()], good, tmp_path)
    assert (tmp_path / "records.jsonl").read_text() == "old"
