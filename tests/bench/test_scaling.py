import json
import subprocess

import pytest
from typer.testing import CliRunner

from mpcfl.bench.cell import CellResult
from mpcfl.bench.cells import parse_cell
from mpcfl.bench.cost_model import CostModel, count
from mpcfl.bench.grid import assumed_colluding
from mpcfl.bench.measure import measure
from mpcfl.bench.record import load_records
from mpcfl.bench.scaling import (
    FAR_DIMS,
    FAR_PARTIES,
    LINKS,
    require_model,
    study,
    workload_of,
)
from mpcfl.bench.scaling_report import document, remarks, tables
from mpcfl.errors import ConfigError
from mpcfl.launch import bench_command
from mpcfl.launch.cli import app
from mpcfl.net.memory import run_parties
from mpcfl.secagg.neighbors import least_neighbors

TRUTH = CostModel(
    {
        "sum": 2e-4,
        "exchange": 8e-5,
        "message": 1.2e-5,
        "wire_byte": 3e-10,
        "mask_key": 2e-5,
        "mask_byte": 7e-10,
        "coordinate_plain": 5e-9,
        "coordinate_ring": 6e-9,
    }
)
TINY = """
name = "tiny"
comparable = false
runs = 1
values = 2
backends = ["plain", "ring"]
parties = [2, 3]
dims = [10, 1000, 20000]
"""
N_FAR = len(LINKS) * len(FAR_PARTIES) * len(FAR_DIMS)


@pytest.fixture
def points(parameters):
    return [
        parameters(backend, parties=parties, dim=dim, neighbors=neighbors)
        for parties in (4, 8, 16, 32)
        for dim in (5_000, 300_000, 4_000_000)
        for backend, neighbors in (("plain", None), ("ring", None), ("ring", parties // 2))
    ]


@pytest.fixture
def point_record(record, measurement):
    """A record whose sums take what the true rates say, and whose meter is as given."""

    def make(point, factor=1.0, traffic=None):
        workload = workload_of(point)
        # The machine of the fixture has two cores.
        seconds = TRUTH.predict(workload, 2) * factor
        messages, n_bytes = traffic or count(workload).metered
        measured = measurement((seconds,) * 3)
        # Counts are over all three values; the set-up is no part of a sum.
        counts = {
            name: {
                "setup": (99, 99),
                "protect": (0, 0),
                "aggregate": (3 * total, 0),
                "open": (0, 0),
            }
            for name, total in (("messages", messages), ("bytes_sent", n_bytes))
        }
        fields = {field: getattr(measured, field) for field in measured.__slots__} | counts
        return record(parameters=point, case=point.case, measured=type(measured)(**fields))

    return make


def test_exact_cells_have_no_error_seen_or_unseen(points, point_record):
    result = study([point_record(point) for point in points])
    assert {row.parameters for row in result.cells} == set(points)
    assert all(abs(row.error) < 1e-8 and abs(row.unseen_error) < 1e-8 for row in result.cells)
    assert all(row.n_values == 3 and row.traffic is None for row in result.cells)
    assert result.rates == pytest.approx(TRUTH.rates, rel=1e-8)
    assert result.is_complete


def test_a_cell_that_is_off_shows_more_where_it_is_not_seen(points, point_record):
    records = [point_record(p, 2.0 if p == points[-1] else 1.0) for p in points]
    row = next(r for r in study(records).cells if r.parameters == points[-1])
    assert row.unseen_error == pytest.approx(-0.5, rel=1e-6)
    assert -0.5 < row.error < 0


def test_far_predictions_are_the_named_ones_with_their_range(points, point_record):
    result = study([point_record(p, 1 + 0.1 * (i % 3)) for i, p in enumerate(points)])
    # Plain, ring with all others, ring with few.
    assert len(result.predictions) == 3 * N_FAR
    for far in result.predictions:
        assert far.low_s <= far.seconds <= far.high_s
        assert far.seconds == pytest.approx(sum(far.parts_s.values()))
        assert far.parts_s["latency"] == count(far.workload).exchanges * far.link.latency_s
    few = {f.workload.parties: f for f in result.predictions if f.colluding is not None}
    for parties in FAR_PARTIES:
        assert few[parties].colluding == assumed_colluding(parties) == parties // 3
        assert few[parties].workload.neighbors == least_neighbors(parties, parties // 3, 0)


def test_a_meter_that_contradicts_the_counts_is_told(points, point_record):
    records = [point_record(point) for point in points]
    messages, n_bytes = count(workload_of(points[3])).metered
    records[3] = point_record(points[3], traffic=(messages, n_bytes + 8))
    result = study(records)
    told = [row for row in result.cells if row.traffic is not None]
    assert [row.parameters for row in told] == [points[3]]
    assert f"{n_bytes} bytes" in told[0].traffic
    assert f"{n_bytes + 8}" in told[0].traffic
    assert not result.is_complete


def test_without_enough_cells_there_is_no_model_but_the_table_stands(points, point_record, record):
    failed = [record(parameters=p, case=p.case, failure="lost") for p in points[3:]]
    records = [point_record(point) for point in points[:3]] + failed
    result = study(records)
    assert not result.is_complete
    assert (result.rates, result.predictions) == (None, ())
    assert [title for title, *_ in tables(result)] == ["Measured cells"]
    assert len(result.cells) == 3
    assert "failed: " + points[3].case + ": lost" in remarks(result)
    assert remarks(result)[-1].startswith("no model: the cost model has 8 rates")
    text = json.dumps(document(result, records), allow_nan=False)
    assert json.loads(text)["complete"] is False


def test_tables_and_document_say_the_same_and_label_what_is_extrapolated(points, point_record):
    records = [point_record(p, 1 + 0.1 * (i % 3)) for i, p in enumerate(points)]
    result = study(records)
    found = json.loads(json.dumps(document(result, records), allow_nan=False))
    (_, cell_heads, cells), (_, _, rates), (title, far_heads, far) = tables(result)
    assert "extrapolated" in title
    assert {len(row) for row in cells} == {len(cell_heads)}
    assert {len(row) for row in far} == {len(far_heads)}
    assert len(cells) == len(found["cells"]) == len(points)
    assert len(far) == len(found["predictions"]) == 3 * N_FAR
    assert [name for name, *_ in rates] == list(found["rates_seconds_per_unit"])
    shown = dict(zip(cell_heads, cells[0], strict=False))
    assert shown["error"] == f"{found['cells'][0]['unseen_error_percent']:+.0f}%"
    assert found["complete"] is True
    assert found["machine"]["cores"] == 2
    assert any("were not measured" in text for text in found["assumptions"])
    assert any("extrapolation" in text for text in remarks(result))


def test_grids_that_no_model_fits_are_refused_before_they_run(points, parameters):
    require_model(points)
    # Six shared rates and one per backend: nine cells are the least for two backends.
    require_model(points[:9])
    with pytest.raises(ConfigError, match="the grid has 8 cells, the cost model needs 9"):
        require_model(points[:8])
    with pytest.raises(ConfigError, match="does not know backend 'phe'"):
        require_model([*points, parameters("phe", key_bits=2048, custody="holder")])


def _in_threads(cell, cell_file, out_file):
    """Measure a cell as mpirun would, all ranks in threads of this process."""
    read = parse_cell(cell_file.read_text())
    assert read == cell
    measured = run_parties(cell.n_ranks, lambda transport: measure(read, transport))[0]
    out_file.write_text(CellResult(measured, {"python": "3"}, None).to_json())
    return subprocess.CompletedProcess([], 0, "", "")


def _invoke(grid, *arguments):
    return CliRunner().invoke(app, ["bench", "scaling", str(grid), *map(str, arguments)])


def test_the_command_measures_fits_and_looks_beyond(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_command, "start_cell", _in_threads)
    grid = tmp_path / "tiny.toml"
    grid.write_text(TINY)
    out = tmp_path / "R"
    result = _invoke(grid, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((out / "scaling.json").read_text())
    # Two backends, two numbers of parties, three dims; the meter agreed with all counts.
    assert len(found["cells"]) == len(load_records(out)) == 12
    assert found["complete"] is True
    for cell in found["cells"]:
        assert cell["median_s"] > 0
        expected = 100 * (cell["predicted_s"] / cell["median_s"] - 1)
        assert cell["error_percent"] == pytest.approx(expected)
        assert cell["traffic"] is None
    assert (out / "report.html").exists()
    assert (out / "summary.json").exists()


def test_the_command_prints_its_tables_and_fails_with_a_cell(monkeypatch, tmp_path):
    def one_fails(cell, cell_file, out_file):
        if (cell.parameters.backend, cell.n_ranks, cell.parameters.dim) == ("ring", 3, 10):
            return subprocess.CompletedProcess([], 7, stderr="it broke\n")
        return _in_threads(cell, cell_file, out_file)

    monkeypatch.setattr(bench_command, "start_cell", one_fails)
    grid = tmp_path / "tiny.toml"
    grid.write_text(TINY)
    result = _invoke(grid, "--out", tmp_path / "R")
    assert result.exit_code == 1
    for text in ("Measured cells", "Fitted rates", "extrapolated", "exit code 7: it broke"):
        assert text in result.output
    assert json.loads((tmp_path / "R" / "scaling.json").read_text())["complete"] is False


def test_the_command_refuses_a_grid_without_a_model_and_leaves_nothing(tmp_path):
    grid = tmp_path / "small.toml"
    grid.write_text(TINY.replace("dims = [10, 1000, 20000]", "dims = [10]"))
    result = _invoke(grid, "--out", tmp_path / "R")
    assert isinstance(result.exception, ConfigError)
    assert "the grid has 4 cells" in str(result.exception)
    assert not (tmp_path / "R").exists()
