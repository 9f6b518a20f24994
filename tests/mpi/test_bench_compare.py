"""`mpcfl bench compare` on real runs: a backend that got slower between them is found."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpcfl.launch.cli import app

pytestmark = pytest.mark.mpi

# Another package's backend: `ring`, but where the folder of the run says so, a later sum waits. The
# first sum of a session is not timed, so it doesn't.
BACKEND = """
import time
from pathlib import Path

from mpcfl.secagg.ring_sum import open_ring_sum


class Late:
    def __init__(self, session):
        self._session, self._wait_s = session, 0.0

    def __getattr__(self, name):
        return getattr(self._session, name)

    def aggregate(self, protected):
        time.sleep(self._wait_s)
        self._wait_s = 0.2 if Path("late").exists() else 0.0
        return self._session.aggregate(protected)


def open_late_sum(transport, settings):
    return Late(open_ring_sum(transport, settings))
"""
# Four launches a side are the fewest that can raise an alarm, if there is one case.
GRID = """
name = "pair"
runs = 4
values = 3
warmups = 0
backends = ["late-ring"]
parties = [2]
dims = [1000]
"""


@pytest.fixture
def late_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the backend for every process that is started from here."""
    folder = tmp_path / "packages"
    info = folder / "late_ring-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "late_ring.py").write_text(BACKEND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late-ring\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[mpcfl.backends]\nlate-ring = late_ring:open_late_sum\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.usefixtures("late_ring")
def test_a_backend_that_got_slower_is_found(
    mpcfl_command: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("before", "after")]
    for folder in folders:
        folder.mkdir()
        (folder / "pair.toml").write_text(GRID)
    (folders[1] / "late").touch()
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(mpcfl_command, "bench", "pair.toml", "--out", "R", cwd=folder)
            for folder in folders
        ]
    assert [run.result().code for run in runs] == [0, 0], runs[0].result().stderr
    results = [folder / "R" for folder in folders]
    slower = CliRunner().invoke(app, ["bench", "compare", *map(str, results)])
    assert (slower.exit_code, " slower" in slower.stdout) == (1, True), slower.output
    faster = CliRunner().invoke(app, ["bench", "compare", *map(str, reversed(results))])
    assert (faster.exit_code, " faster" in faster.stdout) == (0, True), faster.output
    same = CliRunner().invoke(app, ["bench", "compare", str(results[0]), str(results[0])])
    assert (same.exit_code, "not significant" in same.stdout) == (0, True), same.output
