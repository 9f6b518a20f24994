"""The benchmarks of Paillier: what they make of records, and what they leave behind."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mpcfl.errors import BackendUnavailable, ConfigError, ProtocolError
from mpcfl.hazmat import modular

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
def launch() -> Make:
    """Return a maker of records: processor seconds of each sum, at each of two ranks."""

    def make(name: str, cpu_seconds: list[float], **changes: Any) -> dict[str, Any]:
        sums = [
            {"seconds": 2 * s, "cpu_seconds": s, "sent_to": [3000, 5000], "bytes_sent": 8000}
            for s in cpu_seconds
        ]
        rank = {
            "setup": {"seconds": 1.0, "cpu_seconds": 10.0},
            "sums": sums,
            "grown_bytes": 250_000_000,
        }
        settings: dict[str, Any] = {
            "dim": 1000,
            "custody": "clients",
            "parties": 1,
            "key_bits": 2048,
        }
        settings["precompute"] = False
        record = _record("paillier_speed", name, settings)
        record["measured"] = {"ranks": [rank, {**rank, "grown_bytes": 1}]}
        return {**record, **changes}

    return make


@pytest.fixture
def visits() -> Make:
    """Return a maker of records of single operations, in seconds by subject and operation."""

    def make(name: str, seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
        settings = {"subjects": list(seconds), "key_bits": 2048, "warmups": 1}
        record = _record("paillier_peers", name, settings)
        record["measured"] = {
            "cpu_seconds": {
                subject: {operation: [99.0, s, s, 3 * s] for operation, s in columns.items()}
                for subject, columns in seconds.items()
            }
        }
        return record

    return make


def _record(case: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    machine = {"fingerprint": "0123"}
    head = {"schema": 1, "case": case, "name": name, "settings": settings, "machine": machine}
    return {**head, "failure": None, "measured": {}}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize(("ours_s", "code"), [(0.001, 0), (0.00101, 0), (0.00144, 1)])
def test_phe_must_take_so_many_times_as_long(
    case: Module,
    launch: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ours_s: float,
    code: int,
) -> None:
    records = (launch("phe-2048", [1.0]), launch("gmpy2-2048", [50.0, ours_s]))
    assert case("paillier_speed").main(["--table", write(tmp_path / "r", *records)]) == code
    printed = capsys.readouterr()
    # The first sum of the longer session does not count: it comes with the opening.
    ratio = f"phe / paillier with gmpy2 | {1 / ours_s:.0f} |"
    assert ratio in printed.out
    assert "phe / paillier with gmpy2, opening and tables included | 0.017 |" in printed.out
    missed = "missed: processor time per coordinate, 2048 bits: phe / paillier with gmpy2: 694"
    assert (missed in printed.err) == bool(code)


def test_what_goes_to_the_aggregator_is_ciphertext_and_the_rest_are_opened_sums(
    case: Module, launch: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r", launch("bytes-clients", [1.0, 1.0]))
    assert case("paillier_speed").main(["--table", path]) == 0
    out = capsys.readouterr().out
    assert "clients: bytes of ciphertext that a data party sends, per coordinate | 5.000 |" in out
    assert "clients: bytes of opened sums that a rank sends, per coordinate | 3.000 |" in out


def test_a_party_of_a_chain_sends_ciphertext_only(
    case: Module, launch: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = launch("bytes-holder", [1.0])
    record["settings"]["custody"] = "holder"
    assert case("paillier_speed").main(["--table", write(tmp_path / "r", record)]) == 1
    said = capsys.readouterr().err
    assert "holder: bytes of ciphertext that a data party sends, per coordinate: 8.000" in said


def test_memory_is_that_of_the_rank_that_grew_most(
    case: Module, launch: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "r", launch("memory-clients", [1.0]))
    assert case("paillier_speed").main(["--table", path]) == 0
    assert (
        "10,000,000 coordinates, MB | 250 |  | 1 | at most 300 | yes |" in capsys.readouterr().out
    )


def test_a_failed_launch_is_exit_code_1_even_without_limits(
    case: Module, launch: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = launch("phe-2048", [1.0], failure="timed out after 1 s", measured={})
    path = write(tmp_path / "r", failed, launch("kernel-2048", [1.0]))
    assert case("paillier_speed").main(["--table", path, "--no-limits"]) == 1
    printed = capsys.readouterr()
    assert "phe / paillier with kernel | failed |  |  | at least 2500 | **no** |" in printed.out
    assert "phe-2048 failed: timed out after 1 s" in printed.err


def test_records_of_two_machines_are_refused(
    case: Module, launch: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = launch("phe-2048", [1.0], machine={"fingerprint": "4567"})
    path = write(tmp_path / "r", launch("phe-2048", [1.0]), other)
    assert case("paillier_speed").main(["--table", path]) == 1
    assert "several machines" in capsys.readouterr().err


@pytest.mark.parametrize(("decrypt_s", "code"), [(1.0, 0), (1.01, 1)])
def test_decryption_must_be_no_slower_than_that_of_others_but_phe(
    case: Module,
    visits: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    decrypt_s: float,
    code: int,
) -> None:
    figures = case("paillier_figures")
    seconds = {name: {"encrypt": 1.0, "decrypt": 1.0} for name in figures.RIVALS}
    seconds["phe"] = {"encrypt": 1.0, "decrypt": 0.1}
    seconds |= {name: {"encrypt": 0.9, "decrypt": decrypt_s} for name in figures.OURS}
    path = write(tmp_path / "r", visits("libraries-2048", seconds))
    assert case("paillier_peers").main(["--table", path]) == code
    # The warm-up of 99 s does not count.
    row = "| phe | 2048 | 100,000 (100,000 to 300,000) | 1,000,000 (1,000,000 to 3,000,000) |"
    assert row in capsys.readouterr().out.splitlines()


def test_a_new_run_replaces_its_own_cells_only(
    case: Module, launch: Make, visits: Make, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    packing = {"packing": {"pack": 0.01, "unpack": 0.01}}
    records = [launch("phe-2048", [1.0]), launch("flashe", [1.0]), visits("packing", packing)]
    write(path, *records)
    case("paillier_cell").forget(path, "paillier_speed", ["phe-2048", "packing"])
    assert case("paillier_cell").load(path) == records[1:]


@pytest.fixture
def program(case: Module, launch: Make) -> Any:
    """Return a program of two cells that measures nothing."""
    cells = [case("paillier_cell").Round(name) for name in ("phe-2048", "kernel-2048")]
    return case("paillier_command").Program(
        case="paillier_speed",
        description=None,
        cells=cells,
        plan=lambda chosen, _: list(chosen),
        measure=lambda cell: launch(cell.name, [1.0]),
    )


def test_records_are_kept_with_the_page_that_they_make(
    case: Module, program: Any, tmp_path: Path
) -> None:
    path, run = tmp_path / "new" / "r.jsonl", case("paillier_command").run
    assert run(program, ["--record", str(path), "--no-limits"]) == 0
    assert run(program, ["--record", str(path), "--only", "phe-2048"]) == 0
    records = case("paillier_cell").load(path)
    assert [record["name"] for record in records] == ["kernel-2048", "phe-2048"]
    page = path.with_suffix(".md").read_text()
    assert page == case("paillier_page").page(records)
    assert "phe / paillier with kernel | 1.000 |" in page
    # One for each table of the program that did not run.
    assert page.count("(not measured)") == 4


def test_a_smoke_run_keeps_nothing_and_judges_nothing(
    case: Module, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = case("paillier_command")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "r.jsonl")
    assert command.run(program, ["--smoke"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert command.run(program, []) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.jsonl", "r.md"]


def test_an_unknown_cell_is_an_error_that_names_the_known_ones(
    case: Module, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case("paillier_speed").main(["--smoke", "--only", "phe-1024"]) == 1
    assert "no cell 'phe-1024'; known are phe-2048, phe-3072" in capsys.readouterr().err


def test_every_launch_of_every_cell_is_planned(case: Module) -> None:
    speed = case("paillier_speed")
    cells = speed.cells()
    planned = [cell.name for cell in speed.plan(cells, False)]
    assert sorted(planned) == sorted(cell.name for cell in cells for _ in range(cell.launches))
    figures = case("paillier_figures")
    names = {cell.name for cell in cells} | {b.name for b in case("paillier_peers").benches()}
    for program in (figures.SPEED, figures.PEERS):
        assert all(names.issuperset(figure.cells) for figure in figures.figures(program))


def test_inputs_fill_16_bits_and_differ_between_ranks(case: Module) -> None:
    ranks = [case("paillier_rank").levels(rank, slice(0, 1_000_000)) for rank in range(4)]
    for vector in ranks:
        assert (vector.min(), vector.max()) == (-32_768, 32_767)
    assert len({vector.tobytes() for vector in ranks}) == 4
    pieces = [case("paillier_rank").levels(3, slice(a, a + 500_000)) for a in (0, 500_000)]
    assert np.array_equal(np.concatenate(pieces), ranks[3])


def test_a_wrong_sum_voids_the_cell(case: Module) -> None:
    rank, cell = case("paillier_rank"), case("paillier_cell").Round("any", parties=3, dim=200_000)
    total = sum(rank.levels(party, slice(0, cell.dim)) for party in range(3))
    right = (total + 32_768) % 65_536 - 32_768
    rank.require_exact(right, cell, cell.dim)
    late = right.copy()
    late[-1] += 1
    for wrong in (late, right[:-1], right.astype(np.int32), total):
        with pytest.raises(ProtocolError, match="is not the sum"):
            rank.require_exact(wrong, cell, cell.dim)


def test_the_kernel_is_left_out_where_that_is_asked_for(
    case: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    arithmetic = case("paillier_without_kernel")
    # Put back after the test, as the case changes it for good.
    monkeypatch.setattr(modular, "_KERNEL_BITS", modular._KERNEL_BITS)
    assert arithmetic.choose_arithmetic(kernel=False) == "gmpy2"
    assert not modular.Modulus((1 << 2048) + 1).uses_kernel
    with pytest.raises(BackendUnavailable, match="leave the cells of the kernel out"):
        arithmetic.choose_arithmetic(kernel=True)


@pytest.mark.mpi
def test_a_launch_leaves_every_raw_value(case: Module, tmp_path: Path) -> None:
    cells, figures = case("paillier_cell"), case("paillier_figures")
    cell = cells.Round("trial", arithmetic=cells.GMPY2, parties=2, dim=500, sums=1)
    made = cells.launch("trial_case", cell)
    assert made["failure"] is None
    assert made["measured"]["arithmetic"] == "gmpy2"
    ranks = made["measured"]["ranks"]
    assert [len(rank["sums"]) for rank in ranks] == [2, 2, 2]
    assert all(sums["cpu_seconds"] > 0 for rank in ranks for sums in rank["sums"])
    # 112 slots of 18 bits; a party sends all of its five ciphertexts to the aggregator.
    (per_coordinate,) = figures.ciphertext_bytes([made])
    assert 5 * 512 <= per_coordinate * cell.dim < 6 * 512
    assert {"fingerprint", "cpu"} <= set(made["machine"])
    assert "gmpy2" in made["versions"]


def test_workers_check_and_time_every_operation(case: Module) -> None:
    peers = case("paillier_peers")
    subjects = ("mpcfl, gmpy2", "packing")
    bench = peers.Bench("trial", subjects, 2048, rounds=1, warmups=1, visit_s=0.0)
    made = peers.measure(bench)
    assert made["failure"] is None
    values = made["measured"]["cpu_seconds"]
    assert set(values["packing"]) == {"pack", "unpack"}
    assert set(values["mpcfl, gmpy2"]) == {"encrypt", "encrypt, by the owner", "add", "decrypt"}
    kinds = made["measured"].values()
    columns = [c for by_subject in kinds for found in by_subject.values() for c in found.values()]
    seconds = [value for column in columns for value in column]
    assert len(seconds) == 24
    assert min(seconds) > 0


def test_a_worker_that_ends_is_a_failed_record(case: Module) -> None:
    peers = case("paillier_peers")
    made = peers.measure(peers.Bench("trial", ("no such subject",), 2048))
    assert made["failure"].startswith("no such subject ended: ")
    assert "KeyError" in made["failure"]


def test_a_library_that_is_not_there_is_named_with_the_remedy(
    case: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = case("paillier_peers")
    monkeypatch.setattr(peers.Worker, "answer", lambda _: {"missing": "heu"})
    made = peers.measure(peers.Bench("trial", ("packing",), 2048))
    assert made["failure"].startswith("'heu' is not installed; run: pip install")


def test_a_file_that_cannot_be_read_is_an_error(case: Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read records"):
        case("paillier_cell").load(tmp_path / "none")
