"""The benchmark of distributed mean estimation, in its short form."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cases" / "mean_estimation.py"


@pytest.fixture(scope="module")
def case() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mean_estimation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks up its annotations in the module that it is defined in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_short_form_compares_both_mechanisms_with_a_trusted_server(
    case: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    case.main(["--smoke", "--json"])
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [(c["mechanism"], c["bits"]) for c in cells] == [
        (mechanism, bits) for mechanism in case.MECHANISMS for bits in (10, 12, 16)
    ]
    ratios = {(c["mechanism"], c["bits"]): c["ratio"] for c in cells}
    # 5 repeats of 250 coordinates: one standard error is 4 %. Noise from n - 1 of n parties
    # costs 1 % and Renyi bounds some 20 % at this epsilon.
    assert 0.75 < ratios["discrete-gaussian", 16] < 1.3
    assert 0.85 < ratios["skellam", 16] < 1.6
    assert all(0.75 < ratio < 3.0 for ratio in ratios.values())
    assert {c["source"] for c in cells if c["bits"] == 16} == {"plan"}


def test_plans_never_wrap_and_the_recipe_of_the_papers_may(case: ModuleType) -> None:
    planned = case.measure((100, 16, 2.0, "discrete-gaussian"), 3)
    assert (planned.source, planned.wrapped) == ("plan", 0.0)
    assert planned.text().endswith(" ")
    papers = case.measure((100, 10, 2.0, "discrete-gaussian"), 4)
    assert papers.source == "k=2"
    assert papers.text().endswith("*")
    # Two deviations of the worst sum: 4.6 % of 1,024 coordinates at most; 0.1 is 8 deviations off.
    assert papers.wrapped < 0.1


def test_what_leaves_the_ring_is_counted(case: ModuleType) -> None:
    # A sum of deviation 80 and more in a ring of +-16: five in six of 256 coordinates wrap.
    source, plan = case.recipe(100, 10, 2.0, "discrete-gaussian")
    assert source == "k=2"
    _, wrapped = case._trial(dataclasses.replace(plan, modulus_bits=5), 0)
    assert wrapped > 0.5


def test_a_ring_without_any_room_is_a_cell_without_a_ratio(case: ModuleType) -> None:
    cell = case.measure((300_000, 10, 2.0, "skellam"), 1)
    assert cell.ratio is None
    assert cell.text() == "-"


def test_the_table_has_a_row_per_ring_and_says_what_the_mark_means(case: ModuleType) -> None:
    cells = [
        case.Cell(100, bits, 2.0, mechanism, source, 8, 1.25, 0.01, 0.0)
        for mechanism in case.MECHANISMS
        for bits, source in ((10, "k=2"), (16, "plan"))
    ]
    text = case.table(cells)
    assert "n = 100" in text
    assert text.count("1.25*") == 2
    assert "* no plan" in text


def test_curves_are_drawn_where_matplotlib_is_there(case: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [
        case.Cell(100, 16, epsilon, mechanism, "plan", 8, 1.1, 0.01, 0.0)
        for mechanism in case.MECHANISMS
        for epsilon in (1.0, 2.0)
    ]
    case.draw_curves(cells, tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
