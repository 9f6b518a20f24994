"""Warm ranks, hosts and key files for tests that run whole jobs over MPI."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The modules beside this file.
_BESIDE = Path(__file__).parent
sys.path.append(str(_BESIDE))

from jobs import WarmServer, warm_server  # noqa: E402 - found by the lines above


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmServer]:
    """Return what starts MPI jobs whose ranks have imported all before; one for all tests."""
    with warm_server() as server:
        yield server


@pytest.fixture
def mpcfl_command(mpcfl_command: Callable[..., Any], warm: WarmServer) -> Callable[..., Any]:
    """Return the function of that name; the ranks of `mpcfl run` are warm."""

    def run(*arguments: object, **more: Any) -> Any:
        if arguments[0] == "run":
            more["program"] = (_BESIDE / "warm_command.py", warm.path)
        return mpcfl_command(*arguments, **more)

    return run
