import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mpcfl.bench.cells import make_cells, parse_cell, points, remaining
from mpcfl.bench.grid import parse_grid
from mpcfl.errors import ConfigError
from mpcfl.secagg.neighbors import resolve_neighbors

sys.path.append(str(Path(__file__).parent))
from grid_documents import GRID, MASKED


def _cells(**changes):
    return make_cells(parse_grid(GRID | changes, "grid.toml"))


def _points(**changes):
    return {cell.parameters for cell in _cells(**changes)}


def test_every_point_comes_once_per_run_and_caps_hold():
    # plain: 2 parties x 2 dims; phe: 2 parties x 1 dim x 2 key sizes.
    found = Counter(cell.parameters for cell in _cells())
    assert len(found) == 8
    assert set(found.values()) == {3}
    assert {p.dim for p in found if p.backend == "phe"} == {10}
    assert {p.key_bits for p in found if p.backend == "plain"} == {None}


def test_cells_come_in_random_order_and_none_is_lost():
    orders = [_cells() for _ in range(4)]
    key = repr
    assert all(sorted(order, key=key) == sorted(orders[0], key=key) for order in orders)
    # 24 cells: two of the orders are equal with probability below 1e-22.
    assert orders[0] != orders[1]


def test_a_cell_survives_its_json():
    cell = replace(_cells()[0], interface="mpcfl0", addresses=("198.18.0.1",), delay="relay")
    assert parse_cell(cell.to_json()) == cell


def test_caps_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="largest_dim and largest_total leave no cell"):
        _cells(backends=["phe"], dims=[1000])


def test_every_custody_is_measured_with_the_backends_that_have_it():
    found = _points(
        backends=["plain", "phe", "paillier"],
        dims=[10],
        key_bits=[2048],
        custody=["holder", "clients", "threshold"],
    )
    assert {(p.backend, p.custody) for p in found} == {
        ("plain", None),
        *(("phe", custody) for custody in ("holder", "clients")),
        *(("paillier", custody) for custody in ("holder", "clients", "threshold")),
    }
    assert {p.variant for p in found if p.custody == "threshold"} == {
        "paillier 2048 bit, threshold"
    }


def test_only_clients_and_peers_need_one_more_rank():
    cells = _cells(
        backends=["plain", "paillier"],
        peers=["tenseal-ckks", "heu-zpaillier"],
        custody=["holder", "clients", "threshold"],
        parties=[4],
    )
    ranks = {(c.parameters.backend, c.parameters.custody): c.n_ranks for c in cells}
    assert ranks == {
        ("plain", None): 4,
        ("paillier", "holder"): 4,
        ("paillier", "threshold"): 4,
        ("paillier", "clients"): 5,
        ("tenseal-ckks", "clients"): 5,
        ("heu-zpaillier", "clients"): 5,
    }


def test_a_peer_varies_with_the_size_of_the_key_where_it_has_one():
    found = _points(backends=[], peers=["tenseal-ckks", "heu-zpaillier"])
    sizes = {(p.backend, p.key_bits) for p in found}
    assert sizes == {
        ("tenseal-ckks", None),
        ("heu-zpaillier", 2048),
        ("heu-zpaillier", 3072),
    }


def test_round_trips_are_crossed_with_links_and_never_with_shared_memory():
    found = _points(dims=[10], links=["shared-memory", "20mbit", "1gbit"], round_trip_ms=[0, 40])
    assert {(p.link, p.round_trip_ms) for p in found} == {
        ("shared-memory", 0.0),
        ("20mbit", 0.0),
        ("20mbit", 40.0),
        ("1gbit", 0.0),
        ("1gbit", 40.0),
    }
    cells = _cells(dims=[10], links=["shared-memory", "20mbit"])
    assert {(c.parameters.link, c.needs_hosts) for c in cells} == {
        ("shared-memory", False),
        ("20mbit", True),
    }


def test_parts_override_keys_and_share_the_others():
    parts = [{}, {"backends": ["ring"], "dims": [7], "runs": 1, "largest_dim": {}}]
    cells = _cells(part=parts)
    ring = [cell for cell in cells if cell.parameters.backend == "ring"]
    assert {(c.parameters.parties, c.parameters.dim, c.run) for c in ring} == {(2, 7, 0), (3, 7, 0)}
    without_ring = [cell for cell in cells if cell.parameters.backend != "ring"]
    assert sorted(map(repr, without_ring)) == sorted(map(repr, _cells()))


def test_what_stands_in_two_parts_runs_once_as_the_first_says():
    cells = _cells(backends=["plain"], largest_dim={}, part=[{"values": 9}, {"runs": 8}])
    assert len(cells) == 4 * 3
    assert {cell.values for cell in cells} == {9}


def test_neighbors_vary_where_there_are_masks_only():
    found = _points(**MASKED, parties=[16], dims=[10], neighbors=["all", "auto", 8])
    graphs = {(p.backend, p.neighbors, p.colluding) for p in found}
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
    found = _points(**MASKED, parties=[2, 3], dims=[10], neighbors=["all", "auto", 7])
    assert {(p.backend, p.parties, p.neighbors) for p in found} == {
        (backend, parties, None) for backend in ("plain", "ring") for parties in (2, 3)
    }
    assert len(_cells(**MASKED, neighbors=["all", 7])) == 8 * 3


def test_dtypes_follow_the_modulus_or_are_named():
    def dtypes(**changes):
        found = _points(**MASKED, parties=[2], dims=[10], **changes)
        return {(p.modulus_bits, p.dtype) for p in found}

    assert dtypes(modulus_bits=[20, 32, 33]) == {(20, "int32"), (32, "int32"), (33, "int64")}
    assert dtypes(dtypes=["int32", "int64"]) == {(32, "int32"), (32, "int64")}


def test_points_with_too_many_integers_in_all_are_left_out():
    found = _points(**MASKED, parties=[2, 4], dims=[10, 100], largest_total=200)
    assert {(p.parties, p.dim) for p in found} == {(2, 10), (4, 10), (2, 100)}


def test_points_of_a_part_are_in_the_order_of_its_axes():
    part = parse_grid(GRID | MASKED, "g").parts[0]
    assert [(p.backend, p.parties) for p in points(part)][:4] == [
        *[("plain", 2)] * 2,
        *[("plain", 3)] * 2,
    ]


def test_what_was_measured_is_not_waiting_and_what_failed_is(record, cell):
    cells = [cell(run=run) for run in range(4)]
    records = [
        record(run=2),
        record(run=0, failure="lost"),
        record(backend="crypten", run=1),
    ]
    assert [c.run for c in remaining(cells, records)] == [0, 1, 3]
