"""The site, and shells that type what its pages say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent.parent
# The modules beside this file, those of the MPI tests, and what the site is built with.
sys.path += [str(_TESTS / "docs"), str(_TESTS / "mpi"), str(_TESTS.parent / "docs" / "scripts")]

from jobs import WarmServer, warm_server  # noqa: E402 - found by the lines above
from typed_pages import Shell  # noqa: E402


@pytest.fixture(scope="session")
def docs() -> Path:
    """Return the folder of the pages."""
    return _TESTS.parent / "docs"


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmServer]:
    """Return what the ranks of `mpcfl run` are forked from: they have imported all before."""
    with warm_server() as server:
        yield server


@pytest.fixture(scope="module")
def new_shell(warm: WarmServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shell]:
    """Return a function that makes a shell in a fresh folder; `mpcfl run` has warm ranks."""

    def make(name: str) -> Shell:
        programs = tmp_path_factory.mktemp("programs")
        command = _TESTS / "mpi" / "warm_command.py"
        return Shell(tmp_path_factory.mktemp(name), programs, (command, warm.path))

    return make
