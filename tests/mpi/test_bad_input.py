"""Bad input ends a job at once: one plain sentence, nothing overwritten, no process left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# What the design promises: all ranks are gone this long after the first failure.
GONE_S = 5.0
PREFIX = "mpcfl: error: "

JOB = """
task = "toy"

[parties]
count = 2
names = ["bob", "alice"]

[privacy]
unit = "none"

[training]
rounds = 2

[aggregation]
backend = "plain"
"""

# The rounds are slow, so that there is time to kill a rank inside one.
SLOW_TASK = """
import time

import torch
from torch import nn


class SlowTask:
    def model(self):
        return nn.Linear(1, 1)

    def party_data(self, party, n_parties):
        return torch.ones(4, 1), torch.zeros(4, 1)

    def test_data(self):
        return self.party_data(0, 1)

    def loss(self, outputs, targets):
        time.sleep(0.1)
        return nn.functional.mse_loss(outputs, targets)
"""

Command = Callable[..., Any]


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "my-job.toml"
    path.write_text(JOB)
    return path


@pytest.fixture
def private_job(tmp_path: Path) -> Path:
    path = tmp_path / "private-job.toml"
    private = 'unit = "record"\nepsilon = 4.0\nrecords = 4'
    text = JOB.replace('unit = "none"', private).replace('"plain"', '"crypten"')
    path.write_text(text.replace('count = 2\nnames = ["bob", "alice"]', "count = 4"))
    return path


def processes_of(folder: Path) -> dict[int, int | None]:
    """Map the live processes that name a folder on their command line to their MPI rank."""
    found: dict[int, int | None] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if not any(str(folder).encode() in word for word in words):
                continue
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # It ended while we looked.
        ranks = [e.partition(b"=")[2] for e in environment if e.startswith(b"PMIX_RANK=")]
        found[int(entry.name)] = int(ranks[0]) if ranks else None
    return found


def assert_gone(folder: Path, within_s: float = GONE_S) -> None:
    deadline = time.monotonic() + within_s
    while left := processes_of(folder):
        assert time.monotonic() < deadline, f"still there after {within_s} s: {left}"
        time.sleep(0.05)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_one_sentence(done: Any, *words: str) -> str:
    """Check that a command failed with one plain sentence that has all these words."""
    assert done.code not in (0, None)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(PREFIX), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in lines[0]
    return lines[0].removeprefix(PREFIX)


def assert_refused_before_mpi(done: Any, out: Path, *words: str) -> str:
    """Check that the launcher alone refused: no mpirun line, and no output folder."""
    sentence = assert_one_sentence(done, *words)
    assert "mpirun" not in done.stdout
    assert not out.exists()
    return sentence


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        ("rounds = 2\n", "rounds = 2\nlocal_stepps = 3\n", ["local_stepps", "local_steps"]),
        ("[parties]\n", "[parties]\nnonsense = 1\n", ["nonsense"]),
        ('task = "toy"\n', 'task = "toy"\nnonsense = 1\n', ["nonsense"]),
        ("[training]\n", "[server]\nlearningrate = 1.0\n\n[training]\n", ["learning_rate"]),
        # A key that must be there is misspelt: the one in the file is what to mend.
        ("rounds = 2", "ruonds = 2", ["ruonds", "rounds"]),
        ("[aggregation]", "[agregation]", ["agregation", "aggregation"]),
    ],
)
def test_an_unknown_key_is_named_with_its_file(
    wrong: str, right: str, words: list[str], job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    assert wrong in JOB
    job_file.write_text(JOB.replace(wrong, right))
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, "my-job.toml", *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('training.rounds="two"', ["training.rounds", "integer"]),
        ("training.rounds=2.5", ["training.rounds", "integer"]),
        ("training.rounds=true", ["training.rounds", "integer"]),
        ("task=7", ["task", "string"]),
        ("training.rounds=0", ["training.rounds", "1"]),
        ("parties.count=0", ["parties.count", "1"]),
        ("parties.count=3", ["names", "2", "3"]),
        ("aggregation.modulus_bits=65", ["aggregation.modulus_bits", "64"]),
        ('privacy.unit="person"', ["privacy.unit", "record", "party", "none"]),
        ("parties=2", ["parties"]),
    ],
)
def test_a_wrong_value_is_named_with_its_file(
    change: str, words: list[str], job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--set", change, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, "my-job.toml", *words)


@pytest.mark.parametrize("value", ["0", "-1", "0.0", "nan", "inf", '"four"'])
def test_epsilon_must_be_a_positive_number(
    value: str, private_job: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    change = f"privacy.epsilon={value}"
    done = mpcfl_command("run", private_job, "--set", change, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, "private-job.toml", "privacy.epsilon")


@pytest.mark.parametrize("text", ["task = \n", "\xff", "[parties]\ncount = 1\ncount = 2\n"])
def test_a_file_that_is_no_toml_is_named(
    text: str, job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    job_file.write_text(text, encoding="latin-1")
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, "my-job.toml")


@pytest.mark.parametrize(
    ("name", "known"), [("missing.toml", ["digits", "toy"]), ("digitz", ["digits"])]
)
def test_a_missing_job_is_named_beside_the_packaged_ones(
    name: str, known: list[str], mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", name, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, name, *known)


@pytest.mark.parametrize(
    "change", ["training.rounds", "=3", "training.=3", ".rounds=3", "task.x=1"]
)
def test_a_malformed_override_is_quoted(
    change: str, job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--set", change, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, "--set", change)


@pytest.mark.parametrize(
    ("backend", "words"),
    [("cripten", ["cripten", "crypten"]), ("no-such-thing", ["no-such-thing", "crypten", "phe"])],
)
def test_an_unknown_backend_is_named_with_those_there_are(
    backend: str, words: list[str], job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--backend", backend, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, *words)


@pytest.mark.parametrize("backend", ["plain", "crypten-stock"])
def test_a_comparison_backend_needs_insecure_where_privacy_is_on(
    backend: str, private_job: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", private_job, "--backend", backend, "--out", out, timeout_s=20)
    assert_refused_before_mpi(done, out, backend, "--insecure")


@pytest.mark.parametrize(
    ("change", "word"), [("parties.colluding=2", "colluding"), ("parties.count=2", "two parties")]
)
def test_custody_holder_is_refused_where_a_coalition_could_open_an_update(
    change: str, word: str, private_job: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--backend", "phe", "--set", change, "--out", out)
    done = mpcfl_command("run", private_job, *options, timeout_s=20)
    assert_refused_before_mpi(done, out, "custody", "holder", "clients", word)


def test_an_error_prints_nothing_on_standard_output_with_json(
    job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--set", "training.rounds=0", "--json", "--out", out)
    done = mpcfl_command("run", job_file, *options, timeout_s=20)
    assert_refused_before_mpi(done, out, "training.rounds")
    assert done.stdout == ""


def test_an_infeasible_plan_names_remedies_that_work(
    job_file: Path, mpcfl_command: Command
) -> None:
    job_file.write_text(JOB.replace('unit = "none"', 'unit = "party"\nepsilon = 0.0001'))

    def plan(bits: int, *options: object) -> Any:
        change = f"aggregation.modulus_bits={bits}"
        return mpcfl_command("plan", job_file, "--set", change, *options, timeout_s=60)

    sentence = assert_one_sentence(plan(16), "modulus_bits", "epsilon")
    bits = re.search(r"modulus_bits to at least (\d+)", sentence)
    epsilon = re.search(r"epsilon to (\d+(?:\.\d+)?(?:e-?\d+)?)", sentence)
    assert bits is not None
    assert epsilon is not None
    assert plan(int(bits[1])).code == 0
    assert plan(int(bits[1]) - 1).code != 0
    assert plan(16, "--set", f"privacy.epsilon={epsilon[1]}").code == 0


@pytest.mark.mpi
def test_an_infeasible_plan_ends_a_run(
    job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    text = JOB.replace('unit = "none"', 'unit = "party"\nepsilon = 0.0001')
    job_file.write_text(text.replace('"plain"', '"crypten"\nmodulus_bits = 16'))
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--out", out, timeout_s=60)
    assert_one_sentence(done, "modulus_bits", "epsilon", "2 parties")
    assert_gone(out)


@pytest.mark.mpi
def test_an_unknown_task_is_named_with_the_nearest_one(
    job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--set", 'task="tooy"', "--out", out, timeout_s=60)
    assert_one_sentence(done, "tooy", "did you mean toy", "package.module:TaskClass")
    assert_gone(out)


@pytest.mark.mpi
def test_a_task_without_its_class_is_named(
    job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "slow_task.py").write_text(SLOW_TASK)
    out = tmp_path / "out"
    change = 'task="slow_task:FastTask"'
    done = mpcfl_command("run", job_file, "--set", change, "--out", out, timeout_s=60)
    assert_one_sentence(done, "slow_task", "FastTask")
    assert_gone(out)


@pytest.mark.mpi
def test_a_backend_whose_package_is_missing_says_how_to_install_it(
    job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    # Beside the job, it hides the real package from all ranks.
    (tmp_path / "phe.py").write_text("raise ModuleNotFoundError(\"No module named 'phe'\")\n")
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "--backend", "phe", "--out", out, timeout_s=60)
    assert_one_sentence(done, "phe", "pip install")
    assert_gone(out)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 3])
def test_bare_mpirun_refuses_ranks_that_do_not_fit(
    ranks: int, job_file: Path, mpirun: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpirun(ranks, "-m", "mpcfl.parties", job_file, "--out", out, timeout_s=60)
    assert_one_sentence(done, "2", str(ranks), "-n")
    assert not out.exists()
    assert_gone(out)


@pytest.mark.mpi
def test_bare_mpirun_names_a_misspelt_key_once(
    job_file: Path, mpirun: Command, tmp_path: Path
) -> None:
    job_file.write_text(JOB.replace("rounds = 2", "rounds = 2\nlocal_stepps = 3"))
    out = tmp_path / "out"
    done = mpirun(2, "-m", "mpcfl.parties", job_file, "--out", out, timeout_s=60)
    assert_one_sentence(done, "my-job.toml", "local_stepps", "local_steps")
    assert not out.exists()
    assert_gone(out)


@pytest.mark.mpi
def test_a_party_with_another_job_is_named(
    job_file: Path, mpirun: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One rank for each of two job files; the command is composed for the first alone.
    monkeypatch.setenv("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")
    other, out = tmp_path / "other.toml", tmp_path / "out"
    other.write_text(JOB.replace("rounds = 2", "rounds = 3"))
    program = ("-m", "mpcfl.parties")
    second = ("-n", 1, sys.executable, *program, other, "--out", out)
    done = mpirun(1, *program, job_file, "--out", out, ":", *second, timeout_s=60)
    assert_one_sentence(done, "alice", "job")
    assert not (out / "run.json").exists()
    assert_gone(out)


@pytest.mark.mpi
def test_a_party_without_data_is_named(
    job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = mpcfl_command("run", job_file, "-n", 5, "--out", out, timeout_s=90)
    sentence = assert_one_sentence(done, "toy", "no records")
    assert re.search(r"\b(?:bob|alice|party-\d)\b", sentence)
    assert not (out / "run.json").exists()
    assert_gone(out)


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """Return an output folder that holds an earlier run."""
    folder = tmp_path / "out"
    (folder / "ledger").mkdir(parents=True)
    for name in ("run.json", "model.pt", "report.html", "ledger/party-0.jsonl"):
        (folder / name).write_bytes(b"precious\n")
    return folder


def test_a_folder_that_is_not_empty_keeps_every_byte(
    job_file: Path, mpcfl_command: Command, taken: Path
) -> None:
    before = contents(taken)
    done = mpcfl_command("run", job_file, "--out", taken, timeout_s=20)
    assert_one_sentence(done, str(taken), "not empty", "--out")
    assert "mpirun" not in done.stdout
    assert contents(taken) == before


@pytest.mark.mpi
def test_bare_mpirun_keeps_every_byte_as_well(job_file: Path, mpirun: Command, taken: Path) -> None:
    before = contents(taken)
    done = mpirun(2, "-m", "mpcfl.parties", job_file, "--out", taken, timeout_s=60)
    assert_one_sentence(done, str(taken), "not empty", "--out")
    assert contents(taken) == before
    assert_gone(taken)


@pytest.mark.parametrize("below", ["", "below/it"])
def test_a_file_in_place_of_the_folder_is_kept(
    below: str, job_file: Path, mpcfl_command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "taken"
    file.write_bytes(b"precious\n")
    done = mpcfl_command("run", job_file, "--out", file / below, timeout_s=20)
    assert_one_sentence(done, str(file), "--out")
    assert "mpirun" not in done.stdout
    assert file.read_bytes() == b"precious\n"


class Running:
    """A slow job of three parties, in its second round or later."""

    def __init__(self, folder: Path, listening: Callable[[], None]) -> None:
        (folder / "slow_task.py").write_text(SLOW_TASK)
        job = folder / "slow-job.toml"
        text = JOB.replace('"toy"', '"slow_task:SlowTask"').replace("rounds = 2", "rounds = 999")
        job.write_text(
            text.replace("count = 2", "count = 3").replace('"alice"]', '"alice", "eve"]')
        )
        self.out = folder / "out"
        self.stdout, self.stderr = folder / "stdout.txt", folder / "stderr.txt"
        command = [sys.executable, "-m", "mpcfl.launch", "run", str(job), "--out", str(self.out)]
        with self.stdout.open("wb") as stdout, self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=listening,
            )

    def wait_for_a_round(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(r"^round +1/", self.stdout.read_text(), re.MULTILINE):
            assert self.process.poll() is None, self.stderr.read_text()
            assert time.monotonic() < deadline, self.stdout.read_text()
            time.sleep(0.1)

    def pid_of(self, rank: int) -> int:
        pids = [pid for pid, found in processes_of(self.out).items() if found == rank]
        assert len(pids) == 1, pids
        return pids[0]

    def end(self, timeout_s: float) -> SimpleNamespace:
        code = self.process.wait(timeout_s)
        stdout, stderr = self.stdout.read_text(), self.stderr.read_text()
        return SimpleNamespace(code=code, stdout=stdout, stderr=stderr)


@pytest.fixture
def running(tmp_path: Path, listening: Callable[[], None]) -> Iterator[Running]:
    job = Running(tmp_path, listening)
    try:
        job.wait_for_a_round()
        yield job
    finally:
        for pid in [*processes_of(job.out), job.process.pid]:
            if pid != job.process.pid or job.process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        job.process.wait()


@pytest.mark.mpi
@pytest.mark.open_mpi
@pytest.mark.parametrize(("rank", "name"), [(0, "bob"), (1, "alice")])
def test_a_party_that_is_killed_is_named_and_all_others_go(
    rank: int, name: str, running: Running
) -> None:
    victim = running.pid_of(rank)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    done = running.end(timeout_s=30)
    took_s = time.monotonic() - killed
    sentence = assert_one_sentence(done, name)
    assert not any(other in sentence for other in {"bob", "alice", "eve"} - {name})
    assert took_s < GONE_S
    assert_gone(running.out, within_s=max(0.1, GONE_S - took_s))
    assert "done" not in done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process(number: int, running: Running) -> None:
    os.kill(running.process.pid, number)
    done = running.end(timeout_s=30)
    assert done.code != 0
    assert "Traceback" not in done.stderr
    assert_gone(running.out)
