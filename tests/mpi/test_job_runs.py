"""Whole jobs under a real mpirun, as their users start them. Every run serves several tests."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

pytestmark = pytest.mark.mpi

LIMIT_S = 180
STAGES = {"train", "clip", "quantize", "noise", "protect", "aggregate", "open", "apply"}

SMALL_TASK = """
import torch
from torch import nn


class SmallTask:
    def model(self):
        return nn.Linear(2, 1)

    def party_data(self, party, n_parties):
        steps = torch.arange(20.0).reshape(20, 1) / 10 - 1 + 0.01 * party
        inputs = torch.cat([steps, steps**2], dim=1)
        return inputs, inputs.sum(dim=1, keepdim=True)

    def test_data(self):
        return self.party_data(0, 1)

    def loss(self, outputs, targets):
        return nn.functional.mse_loss(outputs, targets)


class OneBadRecord(SmallTask):
    def party_data(self, party, n_parties):
        inputs, targets = super().party_data(party, n_parties)
        if party == 1:
            inputs[7, 0] = float("nan")
        return inputs, targets
"""

SMALL_JOB = """
task = "small_task:SmallTask"

[parties]
count = 2
names = ["ada", "ben"]

[privacy]
unit = "none"

[training]
rounds = 2
batch_size = 20

[aggregation]
backend = "plain"
"""

BAD_RECORD_JOB = """
task = "small_task:OneBadRecord"

[parties]
count = 2
names = ["ada", "ben"]

[privacy]
unit = "record"
epsilon = 8.0
records = 40

[training]
rounds = 2

[aggregation]
backend = "crypten"
"""


WARM_COMMAND = Path(__file__).parent / "warm_command.py"


@dataclass(frozen=True)
class JobRun:
    """A run that ended well, and its output folder."""

    out: Path
    stdout: str
    stderr: str
    record: dict[str, Any] = field(repr=False)

    @property
    def round_lines(self) -> list[str]:
        return [line for line in self.stdout.splitlines() if line.startswith("round")]

    def printed(self, what: str) -> list[str]:
        """The figure printed after a word in each round's line, digit for digit."""
        return [re.search(rf"\b{what} (-?\d+\.\d+)", line)[1] for line in self.round_lines]


def finish(command: Sequence[object], cwd: Path) -> tuple[int, str, str]:
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    try:
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # Its ranks are in sessions of their own.
        stdout, stderr = process.communicate(timeout=10)
        pytest.fail(f"hung for {LIMIT_S} s: {command}\n{stdout}\n{stderr}")
    return process.returncode, stdout, stderr


def refuse_constant(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def strict_json(text: str) -> Any:
    return json.loads(text, parse_constant=refuse_constant)


def job_run(cwd: Path, *arguments: object, warm: Any = None) -> JobRun:
    """Run `mpcfl run ARGS --out out` in a folder, on warm ranks or not; it must end well."""
    program = ["-m", "mpcfl.launch"] if warm is None else [WARM_COMMAND, warm.path]
    command = [sys.executable, *program, "run", *arguments, "--out", "out"]
    code, stdout, stderr = finish(command, cwd)
    assert code == 0, stderr
    out = cwd / "out"
    return JobRun(out, stdout, stderr, strict_json((out / "run.json").read_text()))


Command = Callable[..., Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> JobRun:
    return job_run(tmp_path_factory.mktemp("digits"), "digits", warm=warm)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> JobRun:
    return job_run(tmp_path_factory.mktemp("toy"), "toy")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> JobRun:
    """About 10 of the 30 rounds fit the budget of 4 at half of the sample and this noise."""
    options = ("-n", 2, "--set", "privacy.noise_multiplier=2.0", "--json")
    return job_run(tmp_path_factory.mktemp("stopped"), "breast-cancer", *options, warm=warm)


@pytest.fixture(scope="module")
def party_level(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> JobRun:
    changes = ('privacy.unit="party"', "privacy.sample_rate=1", "privacy.epsilon=8")
    changes += ("training.rounds=2",)
    options = [part for change in changes for part in ("--set", change)]
    return job_run(tmp_path_factory.mktemp("party"), "digits", "-n", 3, *options, warm=warm)


@pytest.fixture(scope="module")
def own_task(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> JobRun:
    folder = tmp_path_factory.mktemp("own")
    (folder / "small_task.py").write_text(SMALL_TASK)
    (folder / "job.toml").write_text(SMALL_JOB)
    return job_run(folder, "job.toml", "-n", 4, warm=warm)


@pytest.fixture(scope="module")
def bad_record(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> JobRun:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "small_task.py").write_text(SMALL_TASK)
    (folder / "job.toml").write_text(BAD_RECORD_JOB)
    return job_run(folder, "job.toml", warm=warm)


def test_every_round_prints_epsilon_and_accuracy(digits: JobRun) -> None:
    assert len(digits.round_lines) == digits.record["job"]["training"]["rounds"]
    assert len(digits.printed("epsilon")) == len(digits.round_lines)
    assert len(digits.printed("accuracy")) == len(digits.round_lines)


def test_epsilon_grows_every_round_and_stays_within_the_budget(digits: JobRun) -> None:
    for spent in (
        [entry["epsilon"] for entry in digits.record["rounds"]],
        [float(text) for text in digits.printed("epsilon")],
    ):
        assert all(before < after for before, after in itertools.pairwise(spent))
        assert spent[0] > 0
        assert spent[-1] <= 4.0


def test_digits_reaches_its_accuracy(digits: JobRun) -> None:
    assert digits.record["metrics"]["accuracy"] >= 0.90
    assert digits.record["rounds"][-1]["accuracy"] == digits.record["metrics"]["accuracy"]
    assert float(digits.printed("accuracy")[-1]) >= 0.90


def test_run_json_has_the_agreed_keys(digits: JobRun) -> None:
    record = digits.record
    assert set(record) == {
        *("schema", "job", "backend", "parties", "dim", "privacy", "metrics", "rounds"),
        *("model_sha256", "versions", "stopped_early", "plan", "epsilon_by_party", "model"),
    }
    assert record["model"]["trained"] == {"weight": 640, "bias": 10}
    assert set(record["epsilon_by_party"].values()) == {record["privacy"]["epsilon"]}
    assert set(record["privacy"]) == {
        *("unit", "epsilon", "epsilon_planned", "epsilon_single", "epsilon_outsider"),
        *("epsilon_own_share", "delta", "mechanism", "accountant", "neighboring_relation"),
    }
    for entry in record["rounds"]:
        assert set(entry) - {"loss"} == {
            *("round", "attempt", "parties", "epsilon", "accuracy", "seconds"),
            *("bytes_sent", "bytes_received", "peak_rss_bytes"),
        }
    assert record["stopped_early"] is None


def test_run_json_says_what_was_run(digits: JobRun) -> None:
    record = digits.record
    assert (record["backend"], record["parties"], record["dim"]) == ("ring", 4, 650)
    assert record["job"]["task"] == "digits"
    assert (record["privacy"]["unit"], record["privacy"]["delta"]) == ("record", 1e-5)
    assert len({entry["round"] for entry in record["rounds"]}) == 60
    for entry in record["rounds"]:
        assert entry["parties"] == ["north", "south", "east", "west"]
        assert set(entry["seconds"]) >= STAGES
        assert all(seconds >= 0 for seconds in entry["seconds"].values())
        # A share of 650 coordinates to three peers does not fit into fewer bytes.
        assert entry["bytes_sent"] >= 3 * 650 * 4
        assert entry["bytes_received"] >= 3 * 650 * 4
        assert entry["peak_rss_bytes"] > 0


def test_versions_are_recorded(digits: JobRun) -> None:
    versions = digits.record["versions"]
    assert versions["torch"] == torch.__version__
    assert all(versions[name] for name in ("mpcfl", "python", "numpy", "crypten", "mpi4py"))


def test_the_views_of_the_privacy_loss_are_ordered(digits: JobRun) -> None:
    privacy = digits.record["privacy"]
    assert 0 < privacy["epsilon_outsider"] < privacy["epsilon"] <= privacy["epsilon_planned"]
    assert privacy["epsilon_planned"] <= 4.0
    assert privacy["epsilon_own_share"] > privacy["epsilon"]
    # One party may collude, so the planned coalition is any single party.
    assert privacy["epsilon_single"] == privacy["epsilon"]


def test_every_ledger_verifies_and_agrees_with_run_json(
    digits: JobRun, mpcfl_command: Command
) -> None:
    files = sorted((digits.out / "ledger").glob("*.jsonl"))
    assert [file.name for file in files] == [f"party-{rank}.jsonl" for rank in range(4)]
    for file in files:
        done = mpcfl_command("ledger", "verify", file, "--json")
        assert done.code == 0, done.stderr
        verified = strict_json(done.stdout)
        assert verified["epsilon"] == digits.record["privacy"]["epsilon"]
        assert verified["unresolved"] == 0
    assert digits.record["rounds"][-1]["epsilon"] == digits.record["privacy"]["epsilon"]


def test_a_ledger_changed_by_one_digit_does_not_verify(
    digits: JobRun, mpcfl_command: Command, tmp_path: Path
) -> None:
    text = (digits.out / "ledger" / "party-2.jsonl").read_text()
    changed = tmp_path / "changed.jsonl"
    changed.write_text(text.replace('"sample_rate":0.5', '"sample_rate":0.4', 1))
    assert changed.read_text() != text
    done = mpcfl_command("ledger", "verify", changed)
    assert done.code != 0
    assert "changed.jsonl" in done.stderr


def test_the_model_loads_without_pickle_and_has_all_coordinates(digits: JobRun) -> None:
    state = torch.load(digits.out / "model.pt", weights_only=True)
    assert sum(tensor.numel() for tensor in state.values()) == digits.record["dim"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_the_report_stands_alone(digits: JobRun) -> None:
    page = (digits.out / "report.html").read_text()
    assert "<svg" in page
    assert re.search(r"(?:src|href|action|data)\s*=\s*[\"']?\s*(?:https?:)?//", page) is None
    assert (
        re.search(r"@import|url\(\s*[\"']?(?:https?:)?//|<link\b|<script[^>]*\bsrc", page) is None
    )


def test_the_report_shows_the_guarantee_and_the_versions(digits: JobRun) -> None:
    page = (digits.out / "report.html").read_text()
    assert re.search(r"collu(?:de|sion)|coalition", page)
    assert torch.__version__ in page
    # After one round, without the digits that printing may round.
    assert f"{digits.record['rounds'][0]['epsilon']:.8f}"[:4] in page
    assert all(name in page for name in ("north", "south", "east", "west"))


def test_the_mpirun_line_is_printed(toy: JobRun) -> None:
    lines = [line for line in toy.stdout.splitlines() if "mpirun" in line]
    assert len(lines) == 1
    assert " -n 2 " in lines[0]
    assert "-m mpcfl.parties" in lines[0]


def test_the_loss_of_the_tutorial_falls_each_round(toy: JobRun) -> None:
    losses = [float(text) for text in toy.printed("loss")]
    assert len(losses) == 10
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert toy.record["rounds"][0]["parties"] == ["bob", "alice"]


def test_without_privacy_no_epsilon_is_claimed(toy: JobRun) -> None:
    privacy = toy.record["privacy"]
    assert privacy["unit"] == "none"
    assert {value for name, value in privacy.items() if name.startswith("epsilon")} == {None}
    assert {entry["epsilon"] for entry in toy.record["rounds"]} == {None}
    assert not any("epsilon" in line for line in toy.round_lines)


@pytest.mark.parametrize(("custody", "ranks"), [("holder", 2), ("clients", 3)])
def test_paillier_gives_the_same_model_as_crypten(
    custody: str, ranks: int, toy: JobRun, tmp_path: Path
) -> None:
    changes = ("aggregation.key_bits=2048", f'aggregation.custody="{custody}"')
    options = [part for change in changes for part in ("--set", change)]
    found = job_run(tmp_path, "toy", "--backend", "phe", *options)
    assert f" -n {ranks} " in found.stdout
    assert found.record["backend"] == "phe"
    assert found.record["parties"] == 2
    assert found.record["rounds"][-1]["parties"] == ["bob", "alice"]
    assert found.printed("loss") == toy.printed("loss")
    assert found.record["model_sha256"] == toy.record["model_sha256"]


def test_bare_mpirun_gives_the_same_model(toy: JobRun, repository: Path, tmp_path: Path) -> None:
    from mpcfl.launch.mpirun import compose

    job = repository / "launch" / "jobs" / "toy.toml"
    command = compose(2, ["-m", "mpcfl.parties", str(job), "--out", "out"])
    code, stdout, stderr = finish(command, tmp_path)
    assert code == 0, stderr
    record = strict_json((tmp_path / "out" / "run.json").read_text())
    assert record["model_sha256"] == toy.record["model_sha256"]
    assert record["job"] == toy.record["job"]
    printed = [line for line in stdout.splitlines() if line.startswith("round")]
    assert [line.split("  ")[1:3] for line in printed] == [
        line.split("  ")[1:3] for line in toy.round_lines
    ]


def test_with_json_standard_output_is_one_document(stopped: JobRun) -> None:
    assert strict_json(stopped.stdout) == stopped.record


def test_a_run_stops_before_the_round_that_exceeds_the_budget(stopped: JobRun) -> None:
    record = stopped.record
    assert 1 <= len(record["rounds"]) < record["job"]["training"]["rounds"]
    assert record["stopped_early"]
    assert "stopped early" in stopped.stderr
    spent = [entry["epsilon"] for entry in record["rounds"]]
    assert record["privacy"]["epsilon"] == spent[-1] <= 4.0
    # One more round would not have fitted: each costs less than the one before it.
    assert spent[-1] + (spent[-1] - spent[-2]) > 4.0


def test_a_run_that_stops_early_keeps_model_report_and_ledgers(
    stopped: JobRun, digits: JobRun, mpcfl_command: Command
) -> None:
    state = torch.load(stopped.out / "model.pt", weights_only=True)
    assert sum(tensor.numel() for tensor in state.values()) == stopped.record["dim"]
    assert "stopped early" in (stopped.out / "report.html").read_text().lower()
    assert "stopped early" not in (digits.out / "report.html").read_text().lower()
    done = mpcfl_command("ledger", "verify", stopped.out / "ledger" / "party-1.jsonl", "--json")
    assert done.code == 0
    assert strict_json(done.stdout)["epsilon"] == stopped.record["privacy"]["epsilon"]


def test_fewer_parties_cut_the_names(party_level: JobRun, stopped: JobRun) -> None:
    assert party_level.record["parties"] == 3
    assert party_level.record["rounds"][0]["parties"] == ["north", "south", "east"]
    assert stopped.record["rounds"][0]["parties"] == ["clinic-a", "clinic-b"]


def test_party_level_spends_its_own_budget(party_level: JobRun) -> None:
    privacy = party_level.record["privacy"]
    assert privacy["unit"] == "party"
    spent = [entry["epsilon"] for entry in party_level.record["rounds"]]
    assert 0 < spent[0] < spent[1] == privacy["epsilon"] <= privacy["epsilon_planned"] <= 8.0
    # All rounds were run, so the plan is used up but for its margins.
    assert privacy["epsilon"] > 7.9
    assert privacy["epsilon_outsider"] < privacy["epsilon"] < privacy["epsilon_own_share"]


def test_more_parties_get_made_up_names(own_task: JobRun) -> None:
    names = own_task.record["rounds"][0]["parties"]
    assert names[:2] == ["ada", "ben"]
    assert len(set(names)) == len(names) == 4
    assert own_task.record["parties"] == 4


def test_a_task_beside_the_job_needs_no_python_path(own_task: JobRun) -> None:
    assert own_task.record["job"]["task"] == "small_task:SmallTask"
    assert len(own_task.record["rounds"]) == 2
    first, second = (float(text) for text in own_task.printed("loss"))
    assert second < first


def test_a_record_that_is_not_finite_does_not_end_the_run(bad_record: JobRun) -> None:
    assert len(bad_record.record["rounds"]) == 2
    assert math.isfinite(float(bad_record.printed("loss")[-1]))
    state = torch.load(bad_record.out / "model.pt", weights_only=True)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_nothing_published_tells_of_a_record_that_is_not_finite(bad_record: JobRun) -> None:
    told = re.compile(r"\bnan\b|\binf\b|finite|invalid|skipped|bad record", re.IGNORECASE)
    for text in (bad_record.stdout, bad_record.stderr, (bad_record.out / "run.json").read_text()):
        assert told.search(text) is None
    assert bad_record.stderr == ""
    for file in sorted((bad_record.out / "ledger").glob("*.jsonl")):
        assert told.search(file.read_text()) is None
