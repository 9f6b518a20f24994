"""Runs that are killed in every stage and resumed: epsilon only grows, and the model goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import WarmServer, run_job

from mpcfl.dp import gaussian_epsilon, verify_ledger
from mpcfl.dp.chain import read_chain
from mpcfl.dp.heads import SeenHeads, heads_path
from mpcfl.dp.ledger_key import LedgerKey, key_path
from mpcfl.report.checkpoint import load_checkpoint

pytestmark = pytest.mark.mpi

# Records are looked up by index, so a tensor that notes the indices sees every sample.
TASK = """
import os
from pathlib import Path

import torch
from torch import nn


# As Open MPI and MPICH call it.
RANK = os.environ.get("PMIX_RANK") or os.environ["PMI_RANK"]


class Watched(torch.Tensor):
    def __getitem__(self, index):
        with Path(f"samples-{RANK}.txt").open("a") as log:
            log.write(" ".join(str(i) for i in index.tolist()) + "\\n")
        return self.as_subclass(torch.Tensor)[index]


class WatchedTask:
    def model(self):
        return nn.Linear(2, 1)

    def party_data(self, party, n_parties):
        inputs, targets = self.test_data()
        return inputs[party::n_parties].as_subclass(Watched), targets[party::n_parties]

    def test_data(self):
        grid = torch.linspace(-1, 1, 30)
        inputs = torch.cartesian_prod(grid, grid)
        return inputs, (inputs.sum(dim=1, keepdim=True) > 0.02).float()

    def loss(self, outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)

    def metrics(self, outputs, targets):
        return {"accuracy": float(((outputs > 0) == (targets > 0.5)).double().mean())}
"""

JOB = """
task = "watched_task:WatchedTask"

[parties]
count = 2
names = ["ada", "ben"]

[privacy]
unit = "record"
epsilon = 12.0
records = 900
sample_rate = 0.25
spare_attempts = 12

[training]
rounds = 8

[server]
learning_rate = 4.0

[aggregation]
backend = "plain"
deadline_s = 60
"""

# Runs a rank that kills itself when it enters, or leaves, one stage of one of its rounds.
DOOMED = """
import os
import signal
import sys
from contextlib import contextmanager

from mpcfl.parties.__main__ import main

from mpcfl.net.meter import Meter

STAGE, ROUND, RANKS, END = sys.argv[1:5]
original, rounds = Meter.stage, 0
RANK = os.environ.get("PMIX_RANK") or os.environ["PMI_RANK"]


def die(name, end):
    if (name, str(rounds), end) == (STAGE, ROUND, END) and RANK in RANKS:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def stage(self, name):
    global rounds
    rounds += name == "reserve"
    die(name, "enter")
    with original(self, name):
        yield
    die(name, "leave")


Meter.stage = stage
sys.exit(main(sys.argv[5:]))
"""

STAGES = (
    *("reserve", "agree", "train", "clip", "quantize", "noise", "protect", "aggregate", "open"),
    *("apply", "checkpoint", "commit"),
)
Command = Callable[..., Any]


class Trial:
    """A folder with the job, in which runs are started, killed and resumed."""

    def __init__(self, folder: Path, warm: WarmServer) -> None:
        self.folder, self.out, self._warm = folder, folder / "out", warm
        (folder / "watched_task.py").write_text(TASK)
        (folder / "doomed.py").write_text(DOOMED)
        (folder / "job.toml").write_text(JOB)

    def start(self, *, die: tuple[str, int, str, str] | None, resume: bool) -> Any:
        """Run all ranks, which die at (stage, round of this process, ranks, enter or leave)."""
        fate = ("never", 0, "", "enter") if die is None else die
        arguments = self.arguments(fate, resume=resume)
        done = run_job(self._warm, 2, arguments, self.folder, deadline_s=150)
        # With fault tolerance mpirun itself ends well if all ranks were killed.
        assert resume or "watched_task" in done.stdout, done.stdout + done.stderr
        ended = "done: " in done.stdout or "nothing left to do" in done.stdout
        assert ended is (die is None), done.stdout + done.stderr
        assert done.code == 0 or die is not None
        return done

    def arguments(self, fate: tuple[str, int, str, str], *, resume: bool) -> list[object]:
        options = ["--resume", "out"] if resume else ["job.toml", "--out", "out"]
        return [self.folder / "doomed.py", *fate, *options, "--insecure"]

    def epsilons(self) -> list[float]:
        """Verify every ledger against all heads; return what each has spent."""
        ledgers = sorted((self.out / "ledger").glob("*.jsonl"))
        return [verify_ledger(ledger).epsilon for ledger in ledgers]

    def record(self) -> dict[str, Any]:
        return json.loads((self.out / "run.json").read_text())

    def samples(self, party: int) -> list[list[int]]:
        lines = (self.folder / f"samples-{party}.txt").read_text().splitlines()
        return [[int(index) for index in line.split()] for line in lines]


@pytest.fixture
def trial(tmp_path: Path, warm: WarmServer) -> Trial:
    return Trial(tmp_path, warm)


def test_a_run_killed_in_every_stage_goes_on_and_epsilon_only_grows(trial: Trial) -> None:
    """One start and eleven resumes in one folder, each killed in another stage; then the last."""
    spent, next_round = [0.0, 0.0], 0
    for number, stage in enumerate(STAGES):
        # The whole run, then a single rank, by turns; the other rank then ends by itself.
        ranks = ("01", "1", "0")[number % 3]
        trial.start(die=(stage, 1 if number % 2 else 2, ranks, "enter"), resume=number > 0)
        now = trial.epsilons()
        assert all(after >= before for before, after in zip(spent, now, strict=True)), stage
        kept = load_checkpoint(trial.out / "checkpoint").facts.next_round
        assert kept >= next_round, stage
        spent, next_round = now, kept
    before = load_checkpoint(trial.out / "checkpoint")
    trial.start(die=None, resume=True)
    assert all(after >= before for before, after in zip(spent, trial.epsilons(), strict=True))
    assert_whole(trial, before.facts.next_round)


def assert_whole(trial: Trial, resumed_after: int) -> None:
    """The record of a run that came to its end agrees with its ledgers and its job."""
    record = trial.record()
    assert record["stopped_early"] is None
    assert [entry["round"] for entry in record["rounds"]] == list(range(1, 9))
    assert record["privacy"]["epsilon"] == trial.epsilons()[0]
    assert record["privacy"]["epsilon"] <= record["privacy"]["epsilon_planned"]
    assert record["metrics"]["accuracy"] > 0.85
    spent = [entry["epsilon"] for entry in record["rounds"]]
    assert spent == sorted(spent)
    report = verify_ledger(trial.out / "ledger" / "party-0.jsonl")
    retries = sum(entry["attempt"] for entry in record["rounds"])
    assert report.rounds == 8
    assert retries > 0
    assert report.attempts - report.rounds <= retries


def test_a_run_that_lacks_budget_for_the_retry_stops_with_the_checkpoints_model(
    trial: Trial,
) -> None:
    job = trial.folder / "job.toml"
    job.write_text(JOB.replace("spare_attempts = 12\n", "").replace("rounds = 8", "rounds = 2"))
    trial.start(die=("aggregate", 2, "01", "enter"), resume=False)
    checkpoint = load_checkpoint(trial.out / "checkpoint")
    spent = trial.epsilons()
    done = trial.start(die=None, resume=True)
    assert "stopped early: the next round would raise epsilon to" in done.stdout
    assert trial.epsilons() == spent
    record = trial.record()
    assert record["stopped_early"]
    assert record["privacy"]["epsilon"] == spent[0] <= record["privacy"]["epsilon_planned"]
    # The attempt that failed is in every view, as somebody may have opened it.
    assert record["privacy"]["epsilon_own_share"] == pytest.approx(spent[0])
    assert [entry["round"] for entry in record["rounds"]] == [1]
    state = torch.load(trial.out / "model.pt", weights_only=True)
    values = np.concatenate([tensor.numpy().ravel() for tensor in state.values()])
    assert values.tolist() == checkpoint.parameters.astype(np.float32).tolist()


def test_a_retried_round_draws_again_and_is_charged_again(
    trial: Trial, mpcfl_command: Command, mpirun: Command
) -> None:
    job = trial.folder / "job.toml"
    job.write_text(JOB.replace("rounds = 8", "rounds = 1"))
    trial.start(die=("open", 1, "01", "enter"), resume=False)
    trial.start(die=None, resume=True)
    for party in (0, 1):
        first, second = (set(sample) for sample in trial.samples(party))
        # Each of 450 records is in both independent samples with probability 1/16: 66 or more
        # are with 1.5e-10 (both parties: 3e-10). One and the same sample has about 112 records,
        # fewer than 66 with 6e-8.
        assert len(first & second) < 66
    report = verify_ledger(trial.out / "ledger" / "party-1.jsonl")
    assert (report.rounds, report.attempts, report.unresolved) == (1, 2, 1)
    z = trial.record()["plan"]["noise_multiplier"]
    two = gaussian_epsilon(noise_multiplier=z, sample_rate=0.25, rounds=2, delta=1e-5)
    assert report.epsilon == pytest.approx(two, rel=1e-6)
    assert [entry["attempt"] for entry in trial.record()["rounds"]] == [1]
    assert_finished_is_left_alone(trial, mpcfl_command)
    assert_cut_ledger_is_refused(trial, mpirun)


def assert_finished_is_left_alone(trial: Trial, mpcfl_command: Command) -> None:
    before = contents(trial.out)
    done = mpcfl_command("run", "--resume", "out", "--insecure")
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("nothing left to do: all 1 rounds were done")
    assert contents(trial.out) == before


def assert_cut_ledger_is_refused(trial: Trial, mpirun: Command) -> None:
    """Ben's ledger is put back to an older state, and his own memory with it."""
    (trial.out / "run.json").unlink()
    ledger = trial.out / "ledger" / "party-1.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))
    mine = SeenHeads.load(heads_path(ledger)).of("watched_task:WatchedTask/ada")
    own, _ = read_chain(ledger.read_bytes(), ledger)
    key = LedgerKey.load(key_path(ledger))
    head = key.sign("watched_task:WatchedTask/ben", (2, own[-1].hash))
    heads_path(ledger).unlink()
    SeenHeads(heads_path(ledger)).remember([mine, head])
    before = contents(trial.out)
    # By real ranks, as it is their exit code that counts.
    done = mpirun(2, *trial.arguments(("never", 0, "", "enter"), resume=True), timeout_s=150)
    assert done.code != 0
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("mpcfl: error: ")]
    for words in ("ben (rank 1)", "party-1.jsonl", "has 2 entries", "ada saw", "from a copy"):
        assert words in sentence
    assert contents(trial.out) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_noise_a_resumed_run_ends_with_the_same_model(
    tmp_path: Path, warm: WarmServer, repository: Path
) -> None:
    """The server's moments and the order of the batches go on too, and so does an aggregator."""
    (tmp_path / "doomed.py").write_text(DOOMED)
    job = repository / "launch" / "jobs" / "toy.toml"
    changes = ('server.optimizer="fedadam"', "training.rounds=6", "aggregation.key_bits=2048")
    options = [part for change in changes for part in ("--set", change)]

    def run(n: int, fate: tuple[object, ...], *arguments: object) -> dict[str, Any] | None:
        program = [tmp_path / "doomed.py", *fate, *arguments]
        done = run_job(warm, n, program, tmp_path, deadline_s=150)
        assert "Traceback" not in done.stderr
        record = tmp_path / str(arguments[-1]) / "run.json"
        return json.loads(record.read_text()) if "done: " in done.stdout else None

    alive = ("never", 0, "", "enter")
    straight = run(2, alive, job, *options, "--set", 'aggregation.backend="plain"', "--out", "a")
    options += ["--set", 'aggregation.backend="phe"', "--set", 'aggregation.custody="clients"']
    assert run(3, ("commit", 3, "01", "enter"), job, *options, "--out", "b") is None
    resumed = run(3, alive, "--resume", "b")
    assert straight is not None
    assert resumed is not None
    assert resumed["model_sha256"] == straight["model_sha256"]
    assert [entry["round"] for entry in resumed["rounds"]] == [1, 2, 3, 4, 5, 6]
    for before, after in zip(straight["rounds"], resumed["rounds"], strict=True):
        assert after["loss"] == before["loss"]
    # Killed between the checkpoint and the record: nobody counted that round's bytes.
    assert [entry["bytes_sent"] > 0 for entry in resumed["rounds"]] == [
        *(True, True, False, True, True, True)
    ]


def test_a_run_whose_every_rank_is_killed_does_not_end_well(
    tmp_path: Path, mpcfl_command: Command
) -> None:
    killed = "        import os, signal\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    entry = "    def party_data(self, party, n_parties):\n"
    (tmp_path / "watched_task.py").write_text(TASK.replace(entry, entry + killed))
    (tmp_path / "job.toml").write_text(JOB)
    done = mpcfl_command("run", "job.toml", "--insecure", "--out", "out")
    assert done.code == 1
    assert "no reason given" in done.stderr
    # Nobody got as far as a checkpoint, so there is nothing to go on from.
    assert "--resume" not in done.stderr
