from collections import Counter
from importlib.resources import as_file, files

import pytest

from mpcfl.bench.grid import load_grid, make_cells, parse_cell, parse_grid
from mpcfl.errors import ConfigError

GRID = {
    "name": "test",
    "runs": 3,
    "backends": ["plain", "phe"],
    "parties": [2, 3],
    "dims": [10, 1000],
    "key_bits": [2048, 3072],
    "largest_dim": {"phe": 10},
}


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
        (
            {"backends": ["plane"]},
            "backends names 'plane', which is no backend; did you mean plain",
        ),
        ({"largest_dim": {"ph": 3}}, "largest_dim names 'ph'"),
        ({"dims": [10, 10]}, "dims has an entry twice"),
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
    with pytest.raises(ConfigError, match="largest_dim leaves no cell"):
        make_cells(grid)


def test_the_packaged_smoke_grid_is_a_trial_of_all_backends_at_two_and_four_parties():
    with as_file(files("mpcfl.launch") / "grids" / "smoke.toml") as file:
        grid = load_grid(file)
    assert not grid.comparable
    assert grid.runs == 1
    assert grid.values == 3
    assert set(grid.backends) >= {"plain", "crypten-stock", "crypten", "phe"}
    assert grid.parties == [2, 4]
