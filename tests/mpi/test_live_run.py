"""A real run, looked at while it goes on: by a browser, in lines, and in its trackers' stores.

One run serves all tests; what its end is needed for comes last in the file.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mpcfl.report.run_record import RunRecord
from mpcfl.report.units import epsilon_text

sys.path += [str(Path(__file__).parent.parent / name) for name in ("mpi", "bench", "report")]

from browser import find_browser, open_tab
from jobs import TASK, WarmServer
from tracker_stores import (
    as_tensorboard_keeps,
    expected,
    mlflow_figures,
    mlflow_runs,
    tensorboard_figures,
)

pytestmark = pytest.mark.mpi
BROWSER = find_browser()
ROUNDS, BUDGET = 8, 6.0
# The run waits in these rounds until it was looked at; the page then shows the rounds before.
HELD = (3, 6)
DEADLINE_S = 120.0

# Measuring waits as long as a file is there, so that somebody can look.
SLOW_TASK = f"""
import time
from pathlib import Path

{TASK}

class SlowTask(SmallTask):
    # The first time is before the first round.
    measured = 0

    def metrics(self, outputs, targets):
        while Path(f"hold-{{self.measured}}").exists():
            time.sleep(0.02)
        self.measured += 1
        return {{"accuracy": float(((outputs > 0) == (targets > 0.5)).double().mean())}}
"""
JOB = f"""
task = "slow_task:SlowTask"

[parties]
count = 2
names = ["adelaide", "benedict"]

[privacy]
unit = "record"
epsilon = {BUDGET}
records = 80
sample_rate = 0.5

[training]
rounds = {ROUNDS}

[server]
learning_rate = 4.0

[aggregation]
backend = "ring"
deadline_s = 120
"""
# What is not there in the page on its first request, and what the page itself shows.
SHOWN = """Object.fromEntries([...document.querySelectorAll("[data-figure]")].map(card =>
  [card.dataset.figure, card.querySelector("strong").textContent]))"""


class _Address(str):
    """An address that a tab opens as it opens files."""

    __slots__ = ()

    def as_uri(self) -> str:
        return str(self)


@dataclass
class Looked:
    """A run, and what was seen of it while it went on.

    Attributes:
        looks: what the page showed, look by look.
        rows: the rounds of the page's table at the last look but one.
        picture: a screenshot, PNG.
        lines: what `mpcfl watch` printed; `code` is how it ended.
    """

    out: Path
    run_code: int = -1
    run_errors: str = ""
    looks: list[dict[str, str]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    picture: bytes = b""
    complaints: list[Any] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    after_end: str = ""
    lines: str = ""
    code: int = -1


def _start(stack: ExitStack, command: list[object], folder: Path) -> subprocess.Popen[str]:
    """Start a command that ends with the block, whatever becomes of the test."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    stack.callback(end)
    return process


def _until(what: str, is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def _round(shown: dict[str, str]) -> int:
    return int(shown["rounds"].split(" of ")[0])


def _look(tab: Any, looked: Looked, url: str) -> None:
    """Look at the page of a run that goes on, twice, and at its end."""
    tab.open(_Address(url), 1180)

    def shows(number: int) -> bool:
        shown = tab.evaluate(SHOWN)
        if _round(shown) >= number:
            looked.looks.append(shown)
        return _round(shown) >= number

    _until("the first rounds on the page", lambda: shows(HELD[0] - 1))
    (looked.out.parent / f"hold-{HELD[0]}").unlink()
    _until("further rounds on the page", lambda: shows(HELD[1] - 1))
    height = tab.evaluate("document.documentElement.scrollHeight")
    size = {"width": 1180, "height": height, "deviceScaleFactor": 1, "mobile": False}
    tab.call("Emulation.setDeviceMetricsOverride", **size)
    looked.picture = base64.b64decode(tab.call("Page.captureScreenshot", format="png")["data"])
    looked.rows = tab.evaluate(
        "[...document.querySelectorAll('section:last-of-type tbody tr')].map("
        "row => [...row.children].map(cell => cell.textContent))"
    )
    (looked.out.parent / f"hold-{HELD[1]}").unlink()
    phase = "document.querySelector('[data-phase]').dataset.phase"
    _until("the end on the page", lambda: tab.evaluate(phase) == "ended")
    looked.looks.append(tab.evaluate(SHOWN))
    looked.complaints, looked.requests = tab.complaints(), tab.requests()
    looked.after_end = tab.evaluate("document.title")


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory, warm: WarmServer) -> Looked:
    folder = tmp_path_factory.mktemp("live")
    (folder / "slow_task.py").write_text(SLOW_TASK)
    (folder / "job.toml").write_text(JOB)
    for number in HELD if BROWSER is not None else ():
        (folder / f"hold-{number}").touch()
    looked = Looked(folder / "out")
    mpcfl = ["-m", "mpcfl.launch"]
    warm_command = [Path(__file__).parent / "warm_command.py", warm.path]
    trackers = ["--track", "tensorboard", "--track", "mlflow"]
    with ExitStack() as stack:
        run = _start(stack, [*warm_command, "run", "job.toml", "--out", "out", *trackers], folder)
        _until("the run's folder", (looked.out / "job.json").is_file)
        watch = _start(stack, [*mpcfl, "watch", "out"], folder)
        if BROWSER is not None:
            serve = _start(stack, [*mpcfl, "serve", "out", "--port", "0", "--json"], folder)
            assert serve.stdout is not None
            url = json.loads(serve.stdout.readline())["url"]
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mpcfl-browser-")))
            _look(stack.enter_context(open_tab(BROWSER, home)), looked, url)
        _, looked.run_errors = run.communicate(timeout=DEADLINE_S)
        looked.run_code = run.returncode
        looked.lines, _ = watch.communicate(timeout=DEADLINE_S)
        looked.code = watch.returncode
    return looked


@pytest.fixture
def record(looked: Looked) -> RunRecord:
    assert looked.run_code == 0, looked.run_errors
    return RunRecord.load(looked.out / "run.json")


needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: chromium)")


@needs_browser
def test_the_page_grows_while_the_run_goes_on(looked: Looked) -> None:
    first, second, last = looked.looks
    assert (_round(first), _round(second)) == (HELD[0] - 1, HELD[1] - 1)
    assert last["rounds"] == f"{ROUNDS} of {ROUNDS}"
    assert looked.after_end == f"{ROUNDS}/{ROUNDS} slow_task:SlowTask"


@needs_browser
def test_what_the_page_shows_is_what_the_rounds_say(looked: Looked, record: RunRecord) -> None:
    budget = epsilon_text(BUDGET)
    for shown in looked.looks:
        one = record.rounds[_round(shown) - 1]
        assert shown["epsilon"] == f"{epsilon_text(one.epsilon)} of {budget}"
        assert shown["accuracy"] == f"{one.accuracy:.4f}"
        assert shown["loss"] == f"{one.loss:.4f}"
        assert shown["parties"] == "2 of 2"
    assert len(looked.rows) == HELD[1] - 1
    for number, epsilon, accuracy, *_ in looked.rows:
        one = record.rounds[int(number) - 1]
        assert (epsilon, accuracy) == (epsilon_text(one.epsilon), f"{one.accuracy:.4f}")


@needs_browser
def test_the_page_complains_of_nothing_and_asks_nobody_else(looked: Looked) -> None:
    assert looked.complaints == []
    paths = {address.rpartition("/")[2] for address in looked.requests}
    assert paths == {"", "fragment"}
    assert len({address.rpartition("/")[0] for address in looked.requests}) == 1


@needs_browser
def test_the_screenshot_shows_a_page(looked: Looked, repository: Path) -> None:
    # For people, too.
    (repository / "build").mkdir(exist_ok=True)
    (repository / "build" / "live.png").write_bytes(looked.picture)
    assert looked.picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(looked.picture[at : at + 4], "big") for at in (16, 20))
    assert (width, height > 1500) == (1180, True)
    # A blank page of this size is some kilobytes.
    assert len(looked.picture) > 50_000


def test_watch_tells_every_round_once(looked: Looked, record: RunRecord) -> None:
    lines = looked.lines.splitlines()
    told = [line for line in lines if line.startswith("round ")]
    assert [line.split("/")[0].split()[1] for line in told] == [
        str(number) for number in range(1, ROUNDS + 1)
    ]
    for line, one in zip(told, record.rounds, strict=True):
        assert f"epsilon {one.epsilon:.4f} of 6  loss {one.loss:.4f}" in line
    assert looked.code == 0
    assert lines[-1].startswith(f"ended: {ROUNDS} rounds, epsilon ")


def test_tensorboard_reads_every_round(looked: Looked, record: RunRecord) -> None:
    wanted = as_tensorboard_keeps(expected(record.rounds, BUDGET, record))
    assert tensorboard_figures(looked.out / "tensorboard") == wanted
    assert len(wanted["epsilon"]) == ROUNDS


def test_mlflow_reads_every_round(looked: Looked, record: RunRecord) -> None:
    assert mlflow_figures(looked.out / "mlruns") == expected(record.rounds, BUDGET, record)
    (run,) = mlflow_runs(looked.out / "mlruns")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "out")
    assert run.data.params["privacy.epsilon"] == str(BUDGET)


def test_no_store_names_a_party(looked: Looked) -> None:
    for folder in ("tensorboard", "mlruns"):
        files = [path for path in (looked.out / folder).rglob("*") if path.is_file()]
        assert files
        for path in files:
            assert not any(name in path.read_bytes() for name in (b"adelaide", b"benedict"))
            assert os.uname().nodename not in path.name


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_spent(
    mpcfl_command: Callable[..., Any], tmp_path: Path
) -> None:
    done = mpcfl_command("run", "toy", "--track", "wandb", "--out", "out")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == (
        "mpcfl: error: no tracker is named 'wandb'; there are: mlflow, tensorboard\n"
    )
    assert not (tmp_path / "out").exists()
