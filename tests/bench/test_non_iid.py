"""The case about parties with unlike records: its runs, its page, and that both belong together."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mpcfl.learn.registry import load_task

CASES = Path(__file__).parents[2] / "benchmarks" / "cases"


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # A program finds the modules beside it.
    monkeypatch.syspath_prepend(str(CASES))
    return importlib.import_module("non_iid")


def test_each_run_is_made_once_and_stays_within_epsilon(
    case: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "non_iid.jsonl"
    arguments = ["--smoke", "--json", "--out", str(results)]
    assert case.main(arguments) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [case.method_name(run) for run in runs] == [
        "FedAvg",
        "FedProx, mu 1",
        "record-level DP, epsilon 4",
    ]
    assert {run["concentration"] for run in runs} == {0.3}
    assert all(0.0 < run["accuracy"] <= 1.0 for run in runs)
    assert all(run["least_records"] >= 10 for run in runs)
    spent = [run["epsilon_spent"] for run in runs]
    assert spent[:2] == [None, None]
    assert 3.9 < spent[2] <= 4.0
    before = results.read_text()
    assert case.main(arguments) == 0
    assert results.read_text() == before
    assert case.page(runs) == results.with_suffix(".md").read_text()


def test_every_cell_has_all_methods_and_only_valid_jobs(case: ModuleType) -> None:
    found = list(case.settings())
    assert len(found) == 2 * 4 * case.REPETITIONS * (len(case.MUS) + 1)
    for setting in found:
        if setting["task"] == "digits":
            job = case.job_of(setting)
            assert job.training.proximal_mu == setting["mu"]
            assert (job.training.local_steps > 1) == (setting["unit"] == "none")
            assert len(job.parties.weights) == (case.PARTIES if setting["unit"] == "none" else 0)


def test_the_task_is_the_packaged_one_dealt_out_anew(case: ModuleType) -> None:
    packaged = load_task("digits").party_data(0, 1)
    skews = []
    for options in ({"split": "iid"}, {"split": "dirichlet", "concentration": 0.1}):
        task = case.SkewedTask(name="digits", **options)
        shards = [task.party_data(party, 10) for party in range(10)]
        everything = torch.cat([inputs for inputs, _ in shards])
        assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, packaged[0].numpy()))
        sizes, skew = case.sizes_and_skew(task, 10)
        assert sizes == [len(labels) for _, labels in shards]
        skews.append(skew)
    assert 0.0 < skews[0] < 0.2 < 0.6 < skews[1] < 0.9


def test_a_table_has_a_column_per_split_and_the_spread_of_its_runs(case: ModuleType) -> None:
    common = {"task": "digits", "unit": "none", "machine": "m", "skew": 0.5}
    sizes = {"least_records": 10, "most_records": 99}
    records = [
        {**common, **sizes, "mu": mu, "concentration": 0.3, "accuracy": accuracy}
        for mu, accuracy in ((0.0, 0.80), (0.0, 0.90), (0.1, 0.70))
    ]
    text = case.tables(records)
    assert "| task | method | Dirichlet 0.3 |" in text
    assert "| digits | FedAvg | 0.850 ± 0.071 |" in text
    assert "| digits | FedProx, mu 0.1 | 0.700 |" in text
    assert "| digits | records of a party, least to most | 10 to 99 |" in text


def test_the_committed_page_is_that_of_the_committed_records(case: ModuleType) -> None:
    records = case.load_results(case.RESULTS)
    for setting in case.settings():
        assert sum(case.is_of(record, setting) for record in records) == 1
    assert case.PAGE.read_text(encoding="utf-8") == case.page(records)
