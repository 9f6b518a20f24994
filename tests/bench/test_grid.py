import sys
from collections import Counter
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from mpcfl.bench.cells import make_cells
from mpcfl.bench.grid import load_grid, parse_grid
from mpcfl.bench.peers import PEERS
from mpcfl.bench.record import SHARED_MEMORY
from mpcfl.bench.scaling import require_model
from mpcfl.errors import ConfigError
from mpcfl.secagg.registry import backend_names

sys.path.append(str(Path(__file__).parent))
from grid_documents import GRID, MASKED


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
        ({"links": ["wan"]}, "grid.toml: links: 'wan' is no rate of a link"),
        ({"links": ["wan"]}, 'or "shared-memory"'),
        ({"links": ["0mbit"]}, "grid.toml: links: '0mbit' is no rate"),
        ({"links": ["10mbit", "10mbit"]}, "links has an entry twice"),
        ({"round_trip_ms": [40]}, "round_trip_ms = [40.0] does not apply to shared memory"),
        ({"round_trip_ms": [-1]}, "grid.toml: round_trip_ms.0 = -1 is not valid"),
        ({"custody": ["nobody"]}, "grid.toml: custody.0 = 'nobody' is not valid"),
        ({"peers": ["tenseal"]}, "peers names 'tenseal', which is no peer; did you mean tenseal-"),
        ({"backends": []}, "backends and peers are both empty"),
        ({"part": []}, "grid.toml: part"),
        ({"part": [{}, {"runs": 0}]}, "grid.toml: part 2: runs = 0 is not valid"),
        ({"part": [{"name": "other"}]}, "part 1: name holds for the whole grid"),
        ({"part": [{"comparable": False}]}, "part 1: comparable holds for the whole grid"),
        ({"part": [{"dimms": [3]}]}, "part 1: unknown key dimms; did you mean dims?"),
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


LINKS = ("shared-memory", "100mbit", "20mbit")


def _packaged(name):
    with as_file(files("mpcfl.grids") / f"{name}.toml") as file:
        return load_grid(file)


def test_the_packaged_scaling_grid_is_what_the_model_is_fitted_to():
    grid = _packaged("scaling")
    assert (grid.parts[0].runs, grid.parts[0].values >= 7) == (1, True)
    points = {cell.parameters for cell in make_cells(grid)}
    require_model(points)
    for parties in (2, 4, 8, 16, 32, 64):
        here = {p for p in points if p.parties == parties}
        assert len({p.dim for p in here}) >= 3
        variants = {(p.backend, p.neighbors is None) for p in here}
        # With two parties there is one graph.
        sparse = {("ring", False)} if parties > 2 else set()
        assert variants == {("plain", True), ("ring", True)} | sparse


def test_the_packaged_smoke_grid_is_a_trial_of_all_backends_and_custodies():
    grid = _packaged("smoke")
    assert not grid.comparable
    cells = make_cells(grid)
    assert {(cell.run, cell.values) for cell in cells} == {(0, 3)}
    assert {(c.parameters.backend, c.parameters.parties) for c in cells} == {
        (backend, parties) for backend in backend_names() for parties in (2, 4)
    }
    assert _custodies(cells) == {"holder", "clients", "threshold"}
    # It runs without root.
    assert not any(cell.needs_hosts for cell in cells)


def _custodies(cells):
    return {c.parameters.custody for c in cells if c.parameters.backend == "paillier"}


def test_the_packaged_laptop_grid_has_every_backend_in_memory_and_on_a_slow_link():
    cells = make_cells(_packaged("laptop"))
    assert all(cell.comparable and cell.values >= 3 for cell in cells)
    assert min(Counter(cell.parameters for cell in cells).values()) >= 3
    on = {(c.parameters.backend, c.parameters.link) for c in cells}
    assert on >= {(backend, link) for backend in backend_names() for link in LINKS[::2]}
    assert on >= {(backend, "100mbit") for backend in ("plain", "ring", "crypten", "paillier")}
    assert _custodies(cells) == {"holder", "clients", "threshold"}
    assert {c.parameters.parties for c in cells} == {2, 4}
    assert {c.parameters.round_trip_ms for c in cells} == {0.0, 40.0}
    # Whatever is on a link has its like in shared memory, and plain beside it.
    points = {cell.parameters for cell in cells}
    for point in (p for p in points if p.link != SHARED_MEMORY):
        assert replace(point, link=SHARED_MEMORY, round_trip_ms=0.0) in points


def test_the_packaged_paper_grid_has_all_there_is():
    cells = make_cells(_packaged("paper"))
    assert all(cell.comparable and cell.values >= 3 for cell in cells)
    assert min(Counter(cell.parameters for cell in cells).values()) >= 5
    assert {c.parameters.backend for c in cells} == {*backend_names(), *PEERS}
    assert {c.parameters.link for c in cells} == {"1gbit", *LINKS}
    assert {c.parameters.key_bits for c in cells} == {None, 2048, 3072}


def test_a_grid_keeps_the_text_of_its_file(tmp_path):
    file = tmp_path / "grid.toml"
    text = 'name = "x"\nbackends = ["plain"]\nparties = [2]\ndims = [1]\n'
    file.write_text(text)
    assert load_grid(file).text == text
