"""What a run says of itself stays true when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpcfl.dp.ledger import verify_ledger

pytestmark = pytest.mark.mpi


def test_a_comparison_backend_is_charged_with_what_it_exposes(
    mpcfl_command, tmp_path: Path
) -> None:
    done = mpcfl_command(
        *("run", "digits", "--backend", "plain", "--insecure", "--out", "out"),
        *("--set", "training.rounds=2"),
    )
    assert done.code == 0, done.stderr
    assert "INSECURE: each party's noised input is visible" in done.stdout
    privacy = json.loads((tmp_path / "out" / "run.json").read_text())["privacy"]
    # The job asks for 4 against the planned coalition; bare inputs carry one share of noise.
    assert privacy["epsilon_own_share"] > 5
    for view in ("epsilon", "epsilon_single", "epsilon_outsider"):
        assert privacy[view] == pytest.approx(privacy["epsilon_own_share"], rel=1e-3), view
    ledger = verify_ledger(tmp_path / "out" / "ledger" / "party-0.jsonl")
    assert ledger.epsilon == pytest.approx(privacy["epsilon_own_share"], rel=1e-3)


def test_a_model_that_diverges_is_kept_and_its_loss_is_null(mpcfl_command, tmp_path: Path) -> None:
    done = mpcfl_command(
        *("run", "digits", "--out", "out", "--set", "training.rounds=3"),
        *("--set", "server.learning_rate=1e38"),
    )
    assert done.code == 0, done.stderr
    assert "loss not finite" in done.stdout
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["metrics"]["loss"] is None
    assert (tmp_path / "out" / "model.pt").exists()


def test_the_seconds_of_the_rounds_are_those_of_the_clock(mpcfl_command, tmp_path: Path) -> None:
    done = mpcfl_command(
        *("run", "digits", "--out", "out", "--set", "training.rounds=40", "--debug")
    )
    assert done.code == 0, done.stderr
    rounds = json.loads((tmp_path / "out" / "run.json").read_text())["rounds"]
    told = sum(sum(r["seconds"].values()) for r in rounds)
    assert len(rounds) == 40
    folder = tmp_path / "out"
    wall = (folder / "model.pt").stat().st_mtime - (folder / "job.json").stat().st_mtime
    # The wall clock also holds opening the session and writing records.
    assert 0.5 * (wall - 2.0) < told <= wall


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_run_whose_owner_goes_away_ends(
    number: signal.Signals, listening, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mpcfl.launch", "run", "toy", "--out", str(out)]
    with subprocess.Popen(
        [*command, "--set", "training.rounds=20000"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=listening,
    ) as launcher:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if line.startswith("round"):
                break
        os.kill(launcher.pid, number)
        launcher.stdout.read()
    assert launcher.returncode == 130
    rounds = out / "checkpoint" / "rounds.jsonl"
    lines = rounds.read_text().count("\n")
    time.sleep(1.0)
    assert rounds.read_text().count("\n") == lines


def test_a_run_under_nohup_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["nohup", sys.executable, "-m", "mpcfl.launch", "run", "toy", "--out", str(out)]
    with subprocess.Popen(
        [*command, "--set", "training.rounds=200"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as launcher:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if line.startswith("round"):
                break
        os.kill(launcher.pid, signal.SIGHUP)
        launcher.stdout.read()
    assert launcher.returncode == 0
    assert (out / "model.pt").exists()
