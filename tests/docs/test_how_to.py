"""The how-to pages, typed: every console block, each page in a folder of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typed_pages import Shell, blocks

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
PAGES = sorted(path.stem for path in HOW_TO.glob("*.md") if "```console\n" in path.read_text())


@pytest.mark.mpi
@pytest.mark.parametrize("name", PAGES)
def test_every_command_prints_what_the_page_shows(
    name: str, new_shell: Callable[[str], Shell]
) -> None:
    assert new_shell(name).follow((HOW_TO / f"{name}.md").read_text())


def test_pages_with_commands_are_found() -> None:
    assert {"choose-a-backend", "keys", "ledger", "own-backend", "resume"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_prompt_stands_in_console_blocks_only(name: str) -> None:
    """A command behind a prompt promises that it was typed, and what it printed."""
    for block in blocks((HOW_TO / f"{name}.md").read_text()):
        assert block.language == "console" or not block.text.startswith("$ ")


@pytest.fixture
def suite(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the contract suite, with the backend of the page registered as it would be."""
    page = (HOW_TO / "own-backend.md").read_text()
    files = {block.title: block.text for block in blocks(page) if block.title}
    (tmp_path / "mpcfl_shares.py").write_text(files["mpcfl-shares/mpcfl_shares.py"])
    about = tmp_path / "mpcfl_shares-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mpcfl-shares\nVersion: 0.1.0\n")
    entry = "[mpcfl.backends]\nshares = mpcfl_shares:open_shares_sum\n"
    (about / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path)
    path = repository / "tests" / "contract" / "test_secure_sum.py"
    spec = importlib.util.spec_from_file_location("contract_of_the_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[False, True], ids=["bare", "checked"])
def shares(suite: ModuleType, request: pytest.FixtureRequest) -> Any:
    return suite.Case("shares", checked=request.param)


@pytest.mark.parametrize("n_parties", [1, 2, 3, 5, 8])
def test_own_backend_sums_for_any_number_of_parties(
    suite: ModuleType, shares: Any, n_parties: int
) -> None:
    suite.test_sum_equals_the_ring_sum_for_any_number_of_parties(shares, n_parties)


@pytest.mark.parametrize("bits", [8, 16, 20, 32, 48, 64])
def test_own_backend_is_exact_at_both_ends(suite: ModuleType, shares: Any, bits: int) -> None:
    suite.test_sum_is_exact_at_both_ends_and_at_the_wrap_boundary(shares, bits)


def test_own_backend_keeps_the_rest_of_the_law(suite: ModuleType, shares: Any) -> None:
    suite.test_k_sums_on_one_session_equal_k_sessions(shares)
    for dim in (1, 2, 3):
        suite.test_tiny_vectors_work(shares, dim)
    suite.test_sums_may_have_numbers_that_leave_gaps(shares)
    suite.test_dtypes_may_differ_between_parties(shares)
    suite.test_int32_that_could_not_hold_the_sum_is_refused(shares)
    suite.test_refused_vector_leaves_the_session_as_it_was(shares)
    suite.test_number_of_a_sum_never_repeats_or_goes_back(shares, suite.SumId(2))
    for side in (-1, 1):
        suite.test_value_outside_the_range_is_refused_not_wrapped(shares, 20, side)
    for dtype in (np.int32, np.int64):
        suite.test_memory_of_any_layout_is_summed_and_not_changed(
            shares, np.ascontiguousarray, dtype
        )


def test_own_backend_refuses_after_it_was_closed(suite: ModuleType, shares: Any) -> None:
    suite.test_closed_session_refuses_the_next_sum("shares", shares.checked)
