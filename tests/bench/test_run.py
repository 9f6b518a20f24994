import subprocess
from contextlib import contextmanager
from dataclasses import replace
from subprocess import CompletedProcess

import pytest

from mpcfl.bench import result_folder
from mpcfl.bench.cell import CellResult
from mpcfl.bench.cells import parse_cell, remaining
from mpcfl.bench.record import MeasuredLink, load_records
from mpcfl.bench.result_folder import begin_results, resume_results
from mpcfl.bench.run import run_grid
from mpcfl.errors import ConfigError, MpcflError

GRID = 'name = "test"\n'


@pytest.fixture
def good(measurement):
    def start(cell, cell_file, out_file):
        assert parse_cell(cell_file.read_text()) == cell
        result = CellResult(measurement((1.0, 2.0)), {"python": "3"}, None)
        out_file.write_text(result.to_json())
        return CompletedProcess([], 0, "", "")

    return start


def run_new(cells, start, out, on_step=None):
    with begin_results(out, GRID) as results:
        return run_grid(cells, start, results, on_step)


def test_each_cell_leaves_one_record_in_the_given_order(cell, good, tmp_path):
    cells = [cell("plain", run) for run in (2, 0, 1)]
    seen = []
    records = run_new(cells, good, tmp_path / "out", seen.append)
    assert [r.run for r in records] == [2, 0, 1]
    assert load_records(tmp_path / "out") == records
    assert [(step.done, step.total) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [step.record for step in seen] == records
    assert seen[0].seconds_left > 0
    assert seen[2].seconds_left == 0
    assert all(r.failure is None and r.versions == {"python": "3"} for r in records)
    assert not records[0].comparable
    assert records[0].started_at.endswith("+00:00")


def test_the_folder_keeps_the_grid_file(cell, good, tmp_path):
    run_new([cell()], good, tmp_path / "out")
    assert (tmp_path / "out" / "grid.toml").read_text() == GRID


def test_the_link_that_the_ranks_measured_is_in_the_record(cell, measurement, tmp_path):
    link = MeasuredLink("tbf", "relay", 9.5e7, 9.4e7, 0.0404, "cubic")

    def start(cell, cell_file, out_file):
        out_file.write_text(CellResult(measurement((1.0,)), {}, None, link).to_json())
        return CompletedProcess([], 0, "", "")

    assert run_new([cell()], start, tmp_path / "out")[0].link == link
    assert load_records(tmp_path / "out")[0].link == link


def _exits(cell, cell_file, out_file):
    return CompletedProcess([], 3, "", "noise\nrank 1: no such backend\n\n")


def _mpirun_exits(cell, cell_file, out_file):
    rule = "-" * 76
    words = f"{rule}\nanother thing\n{rule}\n{rule}\nprterun lost\n\n  a daemon\n{rule}\n"
    return CompletedProcess([], 213, "", words)


def _silent(cell, cell_file, out_file):
    return CompletedProcess([], 0, "", "")


def _torn(cell, cell_file, out_file):
    out_file.write_text('{"measured"')
    return CompletedProcess([], 137, "", "")


def _of_another_version(cell, cell_file, out_file):
    out_file.write_text('{"measured": {}}')
    return CompletedProcess([], 0, "", "")


def _times_out(cell, cell_file, out_file):
    raise subprocess.TimeoutExpired("mpirun", cell.timeout_s)


def _no_launcher(cell, cell_file, out_file):
    raise FileNotFoundError(2, "No such file or directory", "mpirun")


def _no_hosts(cell, cell_file, out_file):
    raise MpcflError("the kernel has no veth")


def _says_why(cell, cell_file, out_file):
    out_file.write_text(CellResult(None, {}, "the sum is wrong").to_json())
    return CompletedProcess([], 1, "", "Abort was called\n")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (_exits, "exit code 3: rank 1: no such backend"),
        (_mpirun_exits, "exit code 213: prterun lost a daemon"),
        (_silent, "ended without a result"),
        (_torn, "exit code 137: nothing on standard error"),
        (_of_another_version, "can't be read; did mpcfl change while the grid ran?"),
        (_times_out, "timed out after 30 s"),
        (_no_launcher, "could not be started"),
        (_no_hosts, "could not be started: the kernel has no veth"),
        (_says_why, "the sum is wrong"),
    ],
)
def test_a_failed_launch_is_a_failed_record_and_the_grid_goes_on(
    cell, good, tmp_path, start, reason
):
    def first_fails(this, cell_file, out_file):
        return (start if this.run == 0 else good)(this, cell_file, out_file)

    records = run_new([cell(run=0), cell(run=1)], first_fails, tmp_path / "out")
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
        run_new([cell(run=0), cell(run=1)], interrupted, tmp_path / "out")
    assert [r.run for r in load_records(tmp_path / "out")] == [0]


def test_a_folder_with_something_in_it_is_refused(cell, good, tmp_path):
    (tmp_path / "records.jsonl").write_text("old")
    with pytest.raises(ConfigError, match="--out"):
        run_new([cell()], good, tmp_path)
    assert (tmp_path / "records.jsonl").read_text() == "old"


@pytest.fixture
def half_done(cell, good, tmp_path):
    """A folder in which runs 0 and 1 are over, the first of them failed."""
    folder = tmp_path / "out"

    def start(this, cell_file, out_file):
        return (_exits if this.run == 0 else good)(this, cell_file, out_file)

    run_new([cell(run=0), cell(run=1)], start, folder)
    return folder


@contextmanager
def resumed(folder, grid=GRID):
    with resume_results(folder, grid) as results:
        yield results


def test_a_resumed_grid_runs_what_is_not_measured_and_keeps_every_record(cell, good, half_done):
    cells = [cell(run=run) for run in range(3)]
    before = (half_done / "records.jsonl").read_text()
    with resumed(half_done) as results:
        waiting = remaining(cells, results.earlier)
        assert [c.run for c in waiting] == [0, 2]
        records = run_grid(waiting, good, results)
        assert results.torn is None
    assert [(r.run, r.failure is None) for r in records] == [
        (0, False),
        (1, True),
        (0, True),
        (2, True),
    ]
    assert load_records(half_done) == records
    assert (half_done / "records.jsonl").read_text().startswith(before)


def test_a_torn_last_line_is_set_aside_and_said(half_done, good, cell):
    file = half_done / "records.jsonl"
    whole = file.read_bytes()
    # A character of several bytes, cut in two.
    torn = '{"schema":"mpcfl.bench.record/3","grid":"ä'.encode()[:-1]
    file.write_bytes(whole + torn)
    with resumed(half_done) as results:
        assert "torn" in results.torn
        assert len(results.earlier) == 2
        run_grid([cell(run=2)], good, results)
    assert (half_done / "records.torn").read_bytes() == torn + b"\n"
    assert file.read_bytes().startswith(whole)
    assert [r.run for r in load_records(half_done)] == [0, 1, 2]


def _other_machine(monkeypatch):
    here = result_folder.this_machine()
    other = replace(here, fingerprint="0" * 16)
    monkeypatch.setattr(result_folder, "this_machine", lambda: other)


def _other_commit(monkeypatch):
    monkeypatch.setattr(result_folder, "checkout_commit", lambda: "f" * 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [(_other_machine, "records of another machine"), (_other_commit, "this is " + "f" * 40)],
)
def test_records_of_another_machine_or_commit_are_not_gone_on_with(
    half_done, monkeypatch, change, message
):
    before = (half_done / "records.jsonl").read_bytes()
    change(monkeypatch)
    with pytest.raises(ConfigError, match=message), resumed(half_done):
        pass
    assert (half_done / "records.jsonl").read_bytes() == before


def test_a_folder_of_another_grid_or_of_none_is_not_gone_on_with(half_done, tmp_path):
    with pytest.raises(ConfigError, match="results of another grid file"):
        resumed(half_done, GRID + "runs = 2\n").__enter__()
    with pytest.raises(ConfigError, match=r"there is no grid\.toml"):
        resumed(tmp_path).__enter__()


def test_two_programs_never_write_one_folder(half_done):
    with resumed(half_done), pytest.raises(ConfigError, match="still running"):
        resumed(half_done).__enter__()
