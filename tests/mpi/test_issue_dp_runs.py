"""Real runs, killed and resumed or with noise in each party, against accounts made elsewhere."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from mpcfl.dp import verify_ledger
from mpcfl.launch.mpirun import compose

pytestmark = pytest.mark.mpi

TASK = """
import os
import time

import torch
from torch import nn


class PlaneTask:
    def model(self):
        return nn.Linear(2, 1)

    def party_data(self, party, n_parties):
        inputs, targets = self.test_data()
        return inputs[party::n_parties], targets[party::n_parties]

    def test_data(self):
        grid = torch.linspace(-1, 1, 20)
        inputs = torch.cartesian_prod(grid, grid)
        return inputs, (inputs.sum(dim=1, keepdim=True) > 0.02).float()

    def loss(self, outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)

    def metrics(self, outputs, targets):
        time.sleep(0.1)  # so that a kill meets the middle of the run
        return {"accuracy": float(((outputs > 0) == (targets > 0.5)).double().mean())}
"""

JOB = """
task = "plane_task:PlaneTask"

[parties]
count = 2
names = ["ada", "ben"]

[privacy]
unit = "record"
epsilon = 6.0
records = 400
sample_rate = 0.2
spare_attempts = 6

[training]
rounds = 10

[server]
learning_rate = 2.0

[aggregation]
backend = "crypten"
deadline_s = 60
"""


def reserves(ledger: Path) -> list[dict[str, Any]]:
    """Charges that a ledger reserved, from the lines of the file and nothing else."""
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [line["body"]["charge"] for line in lines if line["kind"] == "reserve"]


def composed(charges: list[dict[str, Any]], delta: float) -> float:
    """Epsilon of the charges by dp-accounting alone."""
    accountant = PLDAccountant()
    kinds = Counter((c["noise_multiplier"], c["sample_rate"], c["times"]) for c in charges)
    for (multiplier, rate, times), count in kinds.items():
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier))
        accountant.compose(event, count * times)
    return float(accountant.get_epsilon(delta))


class Ended(NamedTuple):
    code: int
    text: str


def start(folder: Path, *arguments: str, kill_after: str | None = None) -> Ended:
    """Run two ranks in a session of their own; SIGKILL all of it once a line has appeared."""
    command = compose(2, ["-m", "mpcfl.parties", *arguments])
    log = folder / f"log-{time.monotonic_ns()}.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if kill_after is not None:
                await_line(process, log, kill_after)
                kill_session(process.pid)
            code = process.wait(90)
        finally:
            kill_session(process.pid)
            process.wait()
    return Ended(code, log.read_text())


def await_line(process: subprocess.Popen[bytes], log: Path, line: str) -> None:
    until = time.monotonic() + 90
    while line not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.01)


def kill_session(leader: int) -> None:
    """Kill the launcher and all that it started, wherever that put itself."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(entry.parent.name)] = int(fields[1])
    family, grown = {leader}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    for member in family & (parents.keys() | {leader}):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its middle; `before` is what it left, `out` the resumed run."""
    folder = tmp_path_factory.mktemp("issue")
    (folder / "plane_task.py").write_text(TASK)
    (folder / "job.toml").write_text(JOB)
    killed = start(folder, "job.toml", "--out", "out", kill_after="round  4/10")
    assert killed.code != 0
    shutil.copytree(folder / "out", folder / "before")
    resumed = start(folder, "--resume", "out")
    assert resumed.code == 0, resumed.text
    return folder


def test_epsilon_is_the_composition_of_what_the_ledgers_hold(trial: Path) -> None:
    record = json.loads((trial / "out" / "run.json").read_text())
    delta = record["privacy"]["delta"]
    by_ledger = []
    for path in sorted((trial / "out" / "ledger").glob("party-*.jsonl")):
        found = composed(reserves(path), delta)
        assert verify_ledger(path).epsilon == pytest.approx(found, abs=0.002)
        by_ledger.append(found)
    assert len(by_ledger) == 2
    assert record["privacy"]["epsilon"] == pytest.approx(max(by_ledger), abs=0.002)
    assert record["privacy"]["epsilon"] <= 6.0


def test_nothing_that_was_spent_before_the_kill_is_forgotten(trial: Path) -> None:
    for path in sorted((trial / "before" / "ledger").glob("party-*.jsonl")):
        after = trial / "out" / "ledger" / path.name
        old, new = path.read_text(), after.read_text()
        whole = old[: old.rfind("\n") + 1]
        assert new.startswith(whole)
        assert len(reserves(after)) >= 10
        assert verify_ledger(after).epsilon > verify_ledger(path).epsilon
    rounds = json.loads((trial / "out" / "run.json").read_text())["rounds"]
    assert [row["round"] for row in rounds] == list(range(1, 11))
    spent = [row["epsilon"] for row in rounds]
    assert all(a < b for a, b in itertools.pairwise(spent))


def test_an_attempt_that_was_cut_short_is_charged_with_its_retry(trial: Path) -> None:
    for path in sorted((trial / "out" / "ledger").glob("party-*.jsonl")):
        charges = reserves(path)
        attempts = Counter((c["round_id"], c["attempt"]) for c in charges)
        assert set(attempts.values()) == {1}, "one reserve for each attempt"
        assert {c["round_id"] for c in charges} == set(range(10))
        report = verify_ledger(path)
        assert report.attempts == len(charges)
        # Reserves that no commit followed are all paid for, at the planned worst case.
        assert report.epsilon == pytest.approx(composed(charges, 1e-5), abs=0.002)


@pytest.mark.parametrize("cut", ["record's end", "swapped"])
def test_a_ledger_that_others_remember_longer_is_refused(
    trial: Path, tmp_path: Path, cut: str
) -> None:
    for name in ("plane_task.py", "job.toml"):
        shutil.copy(trial / name, tmp_path)
    shutil.copytree(trial / "before", tmp_path / "out")
    ledger, other = (tmp_path / "out" / "ledger" / f"party-{k}.jsonl" for k in (1, 0))
    if cut == "record's end":
        lines = ledger.read_text().splitlines(keepends=True)
        ledger.write_text("".join(lines[:4]))
    else:
        ledger.write_text(other.read_text())
    before = {path.name: path.read_bytes() for path in ledger.parent.glob("*.jsonl")}
    ended = start(tmp_path, "--resume", "out")
    assert ended.code != 0
    assert "party-1.jsonl" in ended.text
    assert "Traceback" not in ended.text
    assert {path.name: path.read_bytes() for path in ledger.parent.glob("*.jsonl")} == before


def test_noise_inside_each_party_reports_every_party_and_the_maximum(
    trial: Path, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    shutil.copy(trial / "plane_task.py", tmp_path)
    job = JOB.replace("[training]\n", "[training]\nlocal_steps = 3\n")
    job = job.replace("rounds = 10", "rounds = 2").replace("spare_attempts = 6", "")
    (tmp_path / "job.toml").write_text(job.replace("[privacy]", '[privacy]\nplacement = "local"'))
    ended = start(tmp_path, "job.toml", "--out", "out")
    assert ended.code == 0, ended.text
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    privacy, parties = record["privacy"], record["epsilon_by_party"]
    assert set(parties) == {"ada", "ben"}
    assert privacy["epsilon"] == max(parties.values())
    own = []
    for path in sorted((tmp_path / "out" / "ledger").glob("party-*.jsonl")):
        charges = reserves(path)
        assert sum(c["times"] for c in charges) == 2 * 3, "every step of every round"
        own.append(composed(charges, privacy["delta"]))
    assert privacy["epsilon"] == pytest.approx(max(own), abs=0.002)
    # Whoever sees the updates, or the sum, or is in a coalition: one party's noise is all there is.
    views = ("epsilon_single", "epsilon_outsider", "epsilon_own_share")
    assert all(math.isclose(privacy[view], privacy["epsilon"], abs_tol=1e-9) for view in views)
