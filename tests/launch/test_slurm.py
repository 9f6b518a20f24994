"""The batch script under a real Slurm: one node, whose daemons are started and stopped here."""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpcfl.net.identity import Identity, public_key_text

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch/slurm/job.sbatch"
NAMES = ("bob", "alice")
_DAEMONS = ("slurmd", "slurmctld", "munged")
_SBIN = "/usr/sbin:/usr/bin:/bin"
_READY_S, _JOB_S, _STOP_S = 20.0, 60.0, 1.0
_MISSING = [name for name in (*_DAEMONS, "sbatch", "srun") if not shutil.which(name, path=_SBIN)]
# Slurm looks for this one by this name, and only Debian's libpmix-dev has it.
_HAS_PMIX = any(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so"))

needs_slurm = pytest.mark.skipif(
    bool(_MISSING) or os.geteuid() != 0,
    reason=f"Slurm's daemons need root, and {', '.join(_MISSING) or 'nothing'} is missing: "
    "apt-get install slurmctld slurmd slurm-client munge",
)
needs_pmix = pytest.mark.skipif(
    not _HAS_PMIX, reason="srun --mpi=pmix: apt-get install libpmix-dev"
)

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A node and its controller; what `sbatch` says and does there."""

    folder: Path

    def call(self, *command: object, **environment: str) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env={
                **os.environ,
                "SLURM_CONF": f"{self.folder}/slurm.conf",
                "PATH": _SBIN,
                # The tests run as root, whom mpirun would refuse.
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=_READY_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, launch: str, *arguments: object, n: int = 2) -> str:
        place = ("--nodes=1", f"--ntasks={n}", f"--ntasks-per-node={n}", "--output=%j.log")
        return self.call(
            *("sbatch", "--parsable", *place, SCRIPT, *arguments),
            MPCFL_LAUNCH=launch,
            MPCFL_PYTHON=sys.executable,
            MPCFL_PARTY_FILES=str(self.folder / "parties"),
        )

    def state(self, number: str) -> str:
        return self.call("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T")

    def log(self, number: str) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / f"{number}.log").read_text()
        return ""

    def wait(self, number: str) -> str:
        """Return how a job ended."""
        end = time.monotonic() + _JOB_S
        while (state := self.state(number)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < end, f"{state}: {self.log(number)}"
            time.sleep(0.2)
        return state


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Start munge and Slurm with all their files in a folder; stop them whatever happens."""
    folder = tmp_path_factory.mktemp("slurm")
    # munge asks that nobody else may change what leads to its socket.
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = dict(zip(("controller_port", "node_port"), free_ports(2), strict=True))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(_CONFIG.format(host=host, folder=folder, **ports))
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(secrets.token_bytes(1024))
    node = Slurm(folder)
    _write_party_files(folder / "parties")
    try:
        files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed"}
        places = [f"--{name}={folder}/munge.{end}" for name, end in files.items()]
        node.call("munged", "--force", *places, f"--pid-file={folder}/munged.pid")
        node.call("slurmctld", "-c")
        node.call("slurmd", "-c")
        end = time.monotonic() + _READY_S
        while node.call("sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield node
    finally:
        stop_daemons(folder)


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _write_party_files(folder: Path) -> None:
    folder.mkdir()
    identities = {name: Identity.new() for name in NAMES}
    for name, identity in identities.items():
        identity.save(folder / f"{name}.key")
        (peer,) = set(NAMES) - {name}
        pin = public_key_text(identities[peer].public_key)
        (folder / f"{name}.toml").write_text(
            f'name = "{name}"\nidentity = "{name}.key"\n\n[peers]\n{peer} = "{pin}"\n'
        )
        (folder / f"{name}.toml").chmod(0o600)


def stop_daemons(folder: Path) -> None:
    """End those that wrote a process number here, and all of their jobs that are left."""
    with suppress(AssertionError, subprocess.TimeoutExpired):
        Slurm(folder).call("scancel", "--user=root", "--signal=KILL")
    for name in _DAEMONS:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int((folder / f"{name}.pid").read_text())
            ended = os.pidfd_open(pid)
            os.kill(pid, signal.SIGTERM)
            # The controller takes its time; nothing of what it would save is looked at again.
            if not select.select([ended], [], [], _STOP_S)[0]:
                os.kill(pid, signal.SIGKILL)
                select.select([ended], [], [], _READY_S)
            os.close(ended)


def test_the_script_is_one_that_bash_and_its_reader_can_follow() -> None:
    subprocess.run(["/bin/bash", "-n", str(SCRIPT)], check=True)
    options = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --ntasks-per-node=1" in options
    assert "#SBATCH --no-requeue" in options


@needs_slurm
@pytest.mark.mpi
@pytest.mark.open_mpi("the script starts Open MPI's parties")
def test_both_forms_run_the_job_with_each_partys_own_file(slurm: Slurm) -> None:
    forms = ["mpirun", "srun"] if _HAS_PMIX else ["mpirun"]
    # Its own backend takes seconds to import, in every rank.
    job = (ROOT / "launch/jobs/toy.toml", "--set", 'aggregation.backend="ring"')
    numbers = [slurm.submit(form, *job) for form in forms]
    for form, number in zip(forms, numbers, strict=True):
        assert slurm.wait(number) == "COMPLETED", slurm.log(number)
        # The line comes first, so that it can be copied.
        assert form in slurm.log(number).split("-m mpcfl.parties")[0]
        record = json.loads((slurm.folder / f"runs/slurm-{number}/run.json").read_text())
        assert record["parties"] == 2
        assert [entry["parties"] for entry in record["rounds"]] == [list(NAMES)] * 10
        assert record["metrics"]["accuracy"] == 1.0


@needs_slurm
@needs_pmix
@pytest.mark.mpi
@pytest.mark.open_mpi("the script starts Open MPI's parties")
def test_srun_refuses_a_job_that_counts_on_surviving_a_loss(slurm: Slurm) -> None:
    names = '["bob", "alice", "eve"]'
    changes = ("parties.count=3", f"parties.names={names}", "parties.max_dropout=1")
    sets = [word for change in changes for word in ("--set", change)]
    number = slurm.submit("srun", ROOT / "launch/jobs/digits.toml", *sets, n=3)
    assert slurm.wait(number) == "FAILED"
    log = slurm.log(number)
    assert "parties.max_dropout = 1 asks to go on without a party that dies" in log
    assert "mpirun --with-ft ulfm" in log
    assert "Traceback" not in log


@needs_slurm
@pytest.mark.mpi
def test_a_form_that_is_neither_is_refused_with_both_names(slurm: Slurm) -> None:
    number = slurm.submit("mpiexec", ROOT / "launch/jobs/toy.toml")
    assert slurm.wait(number) == "FAILED"
    assert 'MPCFL_LAUNCH is "mpiexec"; it must be mpirun or srun' in slurm.log(number)
