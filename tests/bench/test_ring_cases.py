"""The cases about the speed of sums: what they make of records, and what they leave behind."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mpcfl.errors import ConfigError, ProtocolError

CASES = Path(__file__).parents[2] / "benchmarks" / "cases"
Module = Callable[[str], ModuleType]
Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # A program finds the modules beside it.
    monkeypatch.syspath_prepend(str(CASES))


@pytest.fixture
def case() -> Module:
    return importlib.import_module


@pytest.fixture
def record(case: Module) -> Make:
    """Return a maker of records: seconds by variant; rank 1 is the slowest."""

    def make(cell: str, seconds: dict[str, list[float]], **changes: Any) -> dict[str, Any]:
        values = {
            name: {
                "seconds": [[s / 2, s] for s in (9.0, *timed)],
                "cpu_seconds": [[s, s] for s in (9.0, *timed)],
                "bytes_sent": [[40_000_000, 40_000_000] for _ in (9.0, *timed)],
                "kernel_bytes": [[41_000_000, 41_000_000] for _ in (9.0, *timed)],
            }
            for name, timed in seconds.items()
        }
        link = {"one_way_bit_per_s": 9e8, "both_ways_bit_per_s": 8e8, "round_trip_s": 5e-5}
        fields = {
            "schema": case("sum_cell").SCHEMA,
            "case": "ring_speed",
            "name": cell,
            "parties": 2,
            "dim": 10_000_000,
            "variants": [{"name": name, "dtype": "int32"} for name in seconds],
            "warmups": 1,
            "machine": {"fingerprint": "0123"},
            "failure": None,
            "measured": {
                "values": values,
                "exact": list(seconds),
                "link": link,
                "peak_bytes": dict.fromkeys(seconds, 60_000_000),
            },
        }
        return {**fields, **changes}

    return make


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def four(ring_s: float) -> dict[str, list[float]]:
    return {
        "allreduce": [1.0, 1.0, 4.0],
        "ring": [ring_s] * 3,
        "prepared": [1.2] * 3,
        "int64": [2.0] * 3,
    }


def test_the_table_is_made_from_records(
    case: Module, record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r.jsonl", record("four", four(2.5)))
    assert case("ring_speed").main(["--table", path]) == 0
    rows = capsys.readouterr().out.splitlines()
    # The warm-up of 9 s does not count, the slowest rank does, and the middle of the values.
    assert "| four | ring / Allreduce | 2.500 | 1.562 to 2.500 | 3 | 2.7 | yes |" in rows
    assert "| four | ring: memory besides the input, in vectors | 1.500 |  | 1 | 3 | yes |" in rows
    assert any(row.startswith("| four | ring | 2.50 s | 2.50 s to 2.50 s | 3 |") for row in rows)


def test_a_missed_limit_is_named_and_is_exit_code_1(
    case: Module, record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r.jsonl", record("four", four(2.8)))
    main = case("ring_speed").main
    assert main(["--table", path]) == 1
    printed = capsys.readouterr()
    assert "| four | ring / Allreduce | 2.800 | 1.750 to 2.800 | 3 | 2.7 | **no** |" in printed.out
    assert printed.err == "missed: four: ring / Allreduce above 2.7\n"
    assert main(["--table", path, "--no-limits"]) == 0


def test_launches_of_a_cell_are_put_together(
    case: Module, record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r.jsonl", record("four", four(2.6)), record("four", four(2.9)))
    assert case("ring_speed").main(["--table", path, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (figure,) = (f for f in report["figures"] if f["figure"] == "ring / Allreduce")
    assert (figure["n"], figure["value"], figure["reached"]) == (6, 2.75, False)
    assert len(report["records"]) == 2


def test_a_failed_launch_is_printed_and_is_exit_code_1_even_without_limits(
    case: Module, record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = record("four", four(2.0), failure="timed out after 1 s", measured={})
    path = write(tmp_path / "r.jsonl", failed)
    assert case("ring_speed").main(["--table", path, "--no-limits"]) == 1
    printed = capsys.readouterr()
    assert "| four | ring / Allreduce | failed |  |  | 2.7 | **no** |" in printed.out
    assert "four failed: timed out after 1 s" in printed.err


def test_records_of_two_machines_are_refused(
    case: Module, record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = record("four", four(2.0), machine={"fingerprint": "4567"})
    path = write(tmp_path / "r.jsonl", record("four", four(2.0)), other)
    assert case("ring_speed").main(["--table", path]) == 1
    assert "several machines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("crypten_s", "ring_s", "code"), [(1.0, 0.125, 0), (1.01, 0.125, 1), (1.0, 0.126, 1)]
)
def test_crypten_as_shipped_is_what_the_others_must_beat(
    case: Module, record: Make, tmp_path: Path, crypten_s: float, ring_s: float, code: int
) -> None:
    seconds = {"allreduce": [0.01] * 3, "ring": [ring_s] * 3, "crypten": [crypten_s] * 3}
    path = write(tmp_path / "r.jsonl", record("crypten", {**seconds, "crypten-stock": [1.0] * 3}))
    assert case("ring_speed").main(["--table", path]) == code


@pytest.mark.parametrize(("masks_s", "code"), [(20.0, 0), (25.0, 1)])
def test_mask_work_must_grow_as_k(
    case: Module, record: Make, tmp_path: Path, masks_s: float, code: int
) -> None:
    # With 2 neighbors, 22 (what the planner takes of 64 parties) and all 63: one second each,
    # and ten for the sum itself.
    seconds = {"two": [12.0] * 3, "auto": [12.0 + masks_s] * 3, "all": [73.0] * 3}
    path = write(tmp_path / "r.jsonl", record("sparse-64", seconds))
    assert case("ring_speed").main(["--table", path]) == code


@pytest.mark.parametrize(
    ("b32_s", "b20_s", "b20_bytes", "missed"),
    [
        (1.1, 0.75, 25_000_000, ""),
        (1.11, 0.75, 25_000_000, "ring b=32 / Allreduce"),
        (1.1, 0.76, 25_000_000, "ring b=20 / Allreduce"),
        (1.1, 0.75, 25_260_000, "ring b=20: bytes at the transport"),
    ],
)
def test_time_and_bytes_over_the_network_are_judged(
    case: Module,
    record: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    b32_s: float,
    b20_s: float,
    b20_bytes: int,
    missed: str,
) -> None:
    seconds = {"allreduce": [1.0] * 3, "b=32": [b32_s] * 3, "b=20": [b20_s] * 3}
    made = record("two", seconds, case="ring_network")
    made["measured"]["values"]["b=20"]["bytes_sent"] = [[b20_bytes] * 2] * 4
    path = write(tmp_path / "r.jsonl", record("four", four(9.0)), made)
    assert case("ring_network").main(["--table", path]) == int(bool(missed))
    printed = capsys.readouterr()
    assert "| two | link, one way: Mbit/s | 900 |" in printed.out
    assert printed.err.count("missed") == int(bool(missed))
    assert missed in printed.err


def test_inputs_fill_the_ring_and_their_sum_stays_in_it(case: Module) -> None:
    cell = case("sum_cell").Cell("any", parties=5, dim=20_000, variants=())
    for bits in (8, 20, 32, 64):
        ranks = [case("sum_rank").rank_levels(rank, cell, bits) for rank in range(5)]
        half = 1 << (bits - 1)
        total = [sum(map(int, column)) for column in zip(*ranks, strict=True)]
        assert -half <= min(total) < -half // 4
        assert half // 4 < max(total) < half
        assert len({vector.tobytes() for vector in ranks}) == 5


def test_a_wrong_sum_voids_the_cell(case: Module) -> None:
    rank = case("sum_rank")
    right = np.arange(5, dtype=np.int32)
    for wrong in (right + np.int32(1), right.astype(np.int64), right[:4]):
        contender = rank.Contender(
            lambda w=wrong: w, lambda: None, int, lambda: None, right, 0.0, 0
        )
        with pytest.raises(ProtocolError, match="is not the sum"):
            rank.check("any", contender)


def test_every_block_has_every_timed_variant_in_an_order_of_its_own(case: Module) -> None:
    cells = case("sum_cell")
    names = [f"v{number}" for number in range(8)]
    variants = [cells.Variant(name, "plain") for name in names]
    untimed = cells.Variant("untimed", "plain", timed=False)
    cell = cells.Cell("any", 2, 10, (*variants, untimed), values=4, warmups=1)
    order = cells.draw_order(cell)
    assert [sorted(block) for block in order] == [names] * 5
    # Equal orders in all five blocks have a chance of 8!^-4, which is 4e-19.
    assert len({tuple(block) for block in order}) > 1
    assert cells.parse_cell(json.loads(json.dumps(cells.asdict(cell)))) == cell


def test_a_file_without_records_of_the_case_is_an_error(
    case: Module, record: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r.jsonl", record("four", four(2.0)))
    assert case("ring_network").main(["--table", path]) == 1
    assert "no records of ring_network" in capsys.readouterr().err


def test_an_unknown_cell_is_an_error_that_names_the_known_ones(case: Module) -> None:
    options = case("sum_case").make_parser("A case.").parse_args(["--only", "five"])
    with pytest.raises(ConfigError, match=r"no cell 'five'; known are four, eight, crypten"):
        case("sum_case").choose(case("ring_speed").cells(), options)


def test_a_launch_leaves_every_raw_value(
    case: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, sums = case("sum_cell"), case("sum_case")
    variants = tuple(cells.Variant(name, name) for name in ("allreduce", "plain"))
    cell = cells.Cell("trial", 2, 1000, variants, values=2, warmups=1, timeout_s=60.0)
    path = tmp_path / "new" / "r.jsonl"
    (made,) = sums.measure("trial_case", [cell], path)
    assert made["failure"] is None
    assert sums.read("trial_case", path) == [json.loads(json.dumps(made))]
    assert made["measured"]["exact"] == ["allreduce", "plain"]
    columns = made["measured"]["values"]["plain"]
    assert all(np.shape(columns[name]) == (3, 2) for name in case("sum_rank").COLUMNS)
    # At least one vector of 1,000 words leaves each of two ranks in every sum.
    assert all(n > 4000 for by_rank in columns["bytes_sent"] for n in by_rank)
    assert {"fingerprint", "cpu"} <= set(made["machine"])
    assert "numpy" in made["versions"]


def test_network_namespaces_are_refused_without_root_in_one_sentence(
    case: Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert case("ring_network").main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "making network namespaces needs root; run this as root\n"


RESULTS = CASES.parent / "results"


@pytest.mark.parametrize("name", ["ring_speed", "ring_network", "checked_sum"])
def test_committed_figures_reach_every_limit(
    case: Module, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert case(name).main(["--table", str(RESULTS / "ring.jsonl")]) == 0
    tables = capsys.readouterr().out
    limits = [figure for figure in case(name).figures() if figure.limit is not None]
    assert tables.count("| yes |") == len(limits) > 0
    # What people read is what the records say.
    assert tables.strip() in (RESULTS / "ring.md").read_text()
