from collections import Counter
from importlib.resources import as_file, files

import pytest

from mpcfl.bench.grid import load_grid, make_cells, parse_cell, parse_grid
from mpcfl.bench.scaling import require_model
from mpcfl.errors import ConfigError
from mpcfl.secagg.neighbors import resolve_neighbors
from mpcfl.secagg.registry import backend_names

GRID = {
    "name": "test",
    "runs": 3,
    "backends": ["plain", "phe"],
    "parties": [2, 3],
    "dims": [10, 1000],
    "key_bits": [2048, 3072],
    "largest_dim": {"phe": 10},
}

MASKED = {"backends": ["plain", "ring"], "largest_dim": {}}


def test_every_point_comes_once_per_run_and_caps_hold():
    cells = make_cells(parse_grid(GRID, "grid.toml"))
    # plain: 2 parties x 2 dims; phe: 2 parties x 1 dim x 2 key sizes.
    points = Counter(cell.parameters for cell in cells)
    assert len(points) == 8
    assert set(points.values()) == {3}
    assert {c.parameters.dim for c in cells if c.parameters.backend == "phe"} == {10}
    assert {c.parameters.key_bits for c in cells if c.parameters.backend == "plain"} == {None}


def test_cells_come_in_random_order_and_none_is_lost():
    grid = parse_grid(GRID, "grid.toml")
    orders = [make_cells(grid) for _ in range(4)]
    key = repr
    assert all(sorted(order, key=key) == sorted(orders[0], key=key) for order in orders)
    # 24 cells: two of the orders are equal with probability below 1e-22.
    assert orders[0] != orders[1]


def test_a_cell_survives_its_json():
    cell = make_cells(parse_grid(GRID, "grid.toml"))[0]
    assert parse_cell(cell.to_json()) == cell
    assert cell.n_ranks == cell.parameters.parties


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partys": [2]}, "grid.toml: unknown key partys; did you mean parties?"),
        ({"zzz": 1}, "grid.toml: unknown key zzz; known are"),
        ({"dims": []}, "grid.toml: dims"),
        ({"dims": ["ten"]}, "grid.toml: dims.0 = 'ten' is not valid"),
        ({"parties": [1]}, "grid.toml: parties.0 = 1 is not valid"),
        ({"runs": 0}, "grid.toml: runs = 0 is not valid"),
        ({"runs": 2.5}, "grid.toml: runs = 2.5 is not valid"),
        ({"modulus_bits": [65]}, "grid.toml: modulus_bits.0 = 65"),
        ({"key_bits": [128]}, "grid.toml: key_bits.0 = 128"),
        ({"links": ["wan"]}, "grid.toml: links.0 = 'wan'"),
        ({"custody": ["clients"]}, "grid.toml: custody.0 = 'clients' is not valid"),
        ({"custody": ["threshold"]}, "custody = ['threshold'] does not apply to backend 'phe'"),
        ({"custody": ["holder", "holder"]}, "custody has an entry twice"),
        (
            {"backends": ["plane"]},
            "backends names 'plane', which is no backend; did you mean plain",
        ),
        ({"largest_dim": {"ph": 3}}, "largest_dim names 'ph'"),
        ({"dims": [10, 10]}, "dims has an entry twice"),
        ({"dtypes": ["int16"]}, "grid.toml: dtypes.0 = 'int16' is not valid"),
        (
            {"dtypes": ["int32"], "modulus_bits": [32, 40]},
            "dtypes names 'int32', which is too narrow for modulus_bits = 40",
        ),
        ({"largest_total": 0}, "grid.toml: largest_total = 0 is not valid"),
        ({"neighbors": ["auto"]}, "neighbors = ['auto'] does not apply to backend 'phe'"),
        ({"neighbors": []}, "grid.toml: neighbors"),
        (MASKED | {"neighbors": ["few"]}, "= 'few' is not valid"),
        (MASKED | {"neighbors": [0]}, "= 0 is not valid"),
        (MASKED | {"neighbors": [True]}, "= True is not valid"),
        (MASKED | {"neighbors": [2, 2]}, "neighbors has an entry twice"),
        (
            MASKED | {"parties": [64], "neighbors": [4]},
            "grid.toml: neighbors = 4: neighbors = 4 is not safe: with up to 21 of 64",
        ),
        ({"parties": [200], "modulus_bits": [8]}, "parties = 200 is too many"),
    ],
)
def test_a_wrong_grid_is_refused_with_file_key_and_remedy(change, message):
    with pytest.raises(ConfigError) as refusal:
        parse_grid(GRID | change, "grid.toml")
    assert message in str(refusal.value)


def test_missing_keys_files_and_bad_toml_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"g: backends is missing"):
        parse_grid({k: v for k, v in GRID.items() if k != "backends"}, "g")
    with pytest.raises(ConfigError, match="can't read the grid file"):
        load_grid(tmp_path / "absent.toml")
    file = tmp_path / "grid.toml"
    file.write_text("name = ")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_grid(file)


def test_caps_that_leave_nothing_are_refused():
    grid = parse_grid(GRID | {"backends": ["phe"], "dims": [1000]}, "grid.toml")
    with pytest.raises(ConfigError, match="largest_dim and largest_total leave no cell"):
        make_cells(grid)


def test_a_shared_key_is_measured_with_the_backend_that_has_one():
    changes = {
        "backends": ["plain", "phe", "paillier"],
        "dims": [10],
        "key_bits": [2048],
        "custody": ["holder", "threshold"],
    }
    points = {cell.parameters for cell in make_cells(parse_grid(GRID | changes, "grid"))}
    assert {(p.backend, p.custody) for p in points} == {
        ("plain", None),
        ("phe", "holder"),
        ("paillier", "holder"),
        ("paillier", "threshold"),
    }
    assert {p.variant for p in points if p.custody == "threshold"} == {
        "paillier 2048 bit, threshold"
    }


def _points(**changes):
    return {cell.parameters for cell in make_cells(parse_grid(GRID | MASKED | changes, "grid"))}


def test_neighbors_vary_where_there_are_masks_only():
    points = _points(parties=[16], dims=[10], neighbors=["all", "auto", 8])
    graphs = {(p.backend, p.neighbors, p.colluding) for p in points}
    # A third of 16 colluding is 5.
    few = resolve_neighbors("auto", 16, 5, 0)
    assert few < 8
    assert graphs == {
        ("plain", None, None),
        ("ring", None, None),
        ("ring", few, 5),
        ("ring", 8, 5),
    }


def test_a_graph_that_turns_out_complete_is_measured_once():
    points = _points(parties=[2, 3], dims=[10], neighbors=["all", "auto", 7])
    assert {(p.backend, p.parties, p.neighbors) for p in points} == {
        (backend, parties, None) for backend in ("plain", "ring") for parties in (2, 3)
    }
    assert len(make_cells(parse_grid(GRID | MASKED | {"neighbors": ["all", 7]}, "g"))) == 8 * 3


def test_dtypes_follow_the_modulus_or_are_named():
    def dtypes(**changes):
        points = _points(parties=[2], dims=[10], **changes)
        return {(p.modulus_bits, p.dtype) for p in points}

    assert dtypes(modulus_bits=[20, 32, 33]) == {(20, "int32"), (32, "int32"), (33, "int64")}
    assert dtypes(dtypes=["int32", "int64"]) == {(32, "int32"), (32, "int64")}


def test_points_with_too_many_integers_in_all_are_left_out():
    points = _points(parties=[2, 4], dims=[10, 100], largest_total=200)
    assert {(p.parties, p.dim) for p in points} == {(2, 10), (4, 10), (2, 100)}


def test_the_packaged_scaling_grid_is_what_the_model_is_fitted_to():
    with as_file(files("mpcfl.launch") / "grids" / "scaling.toml") as file:
        grid = load_grid(file)
    assert (grid.runs, grid.values >= 7) == (1, True)
    points = {cell.parameters for cell in make_cells(grid)}
    require_model(points)
    for parties in (2, 4, 8, 16, 32, 64):
        here = {p for p in points if p.parties == parties}
        assert len({p.dim for p in here}) >= 3
        variants = {(p.backend, p.neighbors is None) for p in here}
        # With two parties there is one graph.
        sparse = {("ring", False)} if parties > 2 else set()
        assert variants == {("plain", True), ("ring", True)} | sparse


def test_the_packaged_smoke_grid_is_a_trial_of_all_backends_at_two_and_four_parties():
    with as_file(files("mpcfl.launch") / "grids" / "smoke.toml") as file:
        grid = load_grid(file)
    assert not grid.comparable
    assert grid.runs == 1
    assert grid.values == 3
    assert set(grid.backends) == set(backend_names())
    assert grid.parties == [2, 4]
