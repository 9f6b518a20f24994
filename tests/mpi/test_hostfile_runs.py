"""`mpcfl run --hostfile` on four hosts: addresses, names and files of their own; no common disk.

The remote agent that takes the place of ssh enters the namespaces of a host. The task's module
gives every party bits that are a function of its number and nothing else, so that all that is
opened can be compared with a run on one host; there is no other way to choose them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hosts import NEEDS_NAMESPACES
from party_files import write_party_files

from mpcfl.launch.hosts import Host, LinkedHosts, LinkSettings, linked_hosts
from mpcfl.launch.namespaces import members

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.open_mpi("hosts are entered by Open MPI's remote agent"),
    NEEDS_NAMESPACES,
]

NAMES = ("north", "south", "east", "west")
_ROUNDS = 4
_TASK = """
import mpcfl.parties.setup
from mpcfl.hazmat.bits import KeystreamBits
from mpcfl.learn.tasks.breast_cancer import BreastCancerTask

_party_data = mpcfl.parties.setup.party_data


def seeded(public, number, records, bits=None):
    return _party_data(public, number, records, KeystreamBits(bytes([number]) * 32))


mpcfl.parties.setup.party_data = seeded


class Seeded(BreastCancerTask):
    pass
"""
_JOB = f"""
task = "seeded_task:Seeded"

[parties]
count = 4
names = {json.dumps(NAMES)}
max_dropout = 1

[privacy]
unit = "record"
epsilon = 8.0
records = 455
sample_rate = 0.2
spare_attempts = 4

[training]
rounds = {_ROUNDS}

[aggregation]
backend = "BACKEND"
deadline_s = 20.0
"""


@dataclass(frozen=True)
class Hospitals:
    """Four hosts, on each of which one party has its own files.

    Attributes:
        linked: the hosts, in the order of the parties.
        own: the folder that shows other files on every host.
        folder: that all see; work starts here.
    """

    linked: LinkedHosts
    own: Path
    folder: Path

    def said_on(self, number: int, *command: str) -> str:
        """Return what a command prints on a party's host."""
        host = self.linked.hosts[number]
        line = [*host.enter(), *command]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=20).stdout

    @contextmanager
    def running(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """Start `mpcfl run` on the first host; end it with the block."""
        line = [*self.linked.hosts[0].enter(), sys.executable, "-m", "mpcfl.launch", "run"]
        with subprocess.Popen(
            [*line, *map(str, arguments), "--hostfile", "hosts.txt"],
            env=os.environ | self.linked.mpi.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: object) -> str:
        """Run to the end; return what was printed."""
        with self.running(*arguments) as process:
            printed, _ = process.communicate(timeout=120)
            assert process.returncode == 0, printed
        return printed

    def record(self, number: int) -> dict[str, Any]:
        """Return the record of the run as it lies on a party's host."""
        found: dict[str, Any] = json.loads(self.said_on(number, "cat", f"{self.own}/out/run.json"))
        return found


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospitals]:
    own = tmp_path / "own"
    own.mkdir()
    write_party_files(tmp_path / "made", NAMES)
    (tmp_path / "seeded_task.py").write_text(_TASK)
    monkeypatch.chdir(tmp_path)
    with linked_hosts(len(NAMES), LinkSettings("1gbit"), own) as linked:
        found = Hospitals(linked, own, tmp_path)
        (tmp_path / "hosts.txt").write_text("".join(f"{a}\n" for a in linked.addresses))
        for number, name in enumerate(NAMES):
            found.said_on(number, "mkdir", f"{own}/parties")
            for file in (f"{name}.toml", f"{name}.key"):
                found.said_on(number, "cp", "-p", str(tmp_path / "made" / file), f"{own}/parties")
        shutil.rmtree(tmp_path / "made")
        yield found


def write_job(folder: Path, backend: str) -> Path:
    path = folder / "job.toml"
    path.write_text(_JOB.replace("BACKEND", backend))
    return path


def opened(transcript: str) -> list[tuple[int, int, str]]:
    """Return round, attempt and digest of every sum that a party saw opened."""
    events = [json.loads(line) for line in transcript.splitlines()]
    return [(e["round_id"], e["attempt"], e["digest"]) for e in events if e["kind"] == "open"]


def test_four_hosts_open_the_sums_of_one_host_and_each_keeps_its_own_files(
    hospitals: Hospitals, mpcfl_command: Callable[..., Any]
) -> None:
    job = write_job(hospitals.folder, "crypten")
    alone = mpcfl_command("run", job, "--out", "alone", cwd=hospitals.folder)
    assert alone.code == 0, alone.stderr
    out = hospitals.own / "out"
    printed = hospitals.run(job, "--party-files", hospitals.own / "parties", "--out", out)

    for address, name in zip(hospitals.linked.addresses, NAMES, strict=True):
        assert f"--host {address}:1 " in printed
        assert f"--party {hospitals.own}/parties/{name}.toml " in printed
    expected = json.loads((hospitals.folder / "alone" / "run.json").read_text())
    for number, name in enumerate(NAMES):
        log = f"transcript/party-{number}.jsonl"
        sums = opened(hospitals.said_on(number, "cat", f"{out}/{log}"))
        assert len(sums) >= _ROUNDS
        assert sums == opened((hospitals.folder / "alone" / log).read_text())
        record = hospitals.record(number)
        assert record["model_sha256"] == expected["model_sha256"]
        assert record["privacy"] == expected["privacy"]
        for folder in ("ledger", "transcript", "local"):
            found = hospitals.said_on(number, "ls", f"{out}/{folder}").split()
            assert {file.partition(".")[0] for file in found} == {f"party-{number}"}
        assert sorted(hospitals.said_on(number, "ls", f"{hospitals.own}/parties").split()) == [
            f"{name}.key",
            f"{name}.toml",
        ]
    # Nothing of it is outside of the hosts.
    assert list(hospitals.own.iterdir()) == []


def kill_party(host: Host) -> None:
    """Kill the party on a host; MPI's daemon there goes on."""
    parties = [
        pid
        for pid in members(host.holder)
        if b"mpcfl.parties" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and b"python" in Path(f"/proc/{pid}/exe").resolve().name.encode()
    ]
    assert len(parties) == 1
    os.kill(parties[0], signal.SIGKILL)


def until(process: subprocess.Popen[str], words: str) -> str:
    """Read what a run prints up to a line with some words."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"{words!r} was not printed:\n{said}")


def test_a_host_whose_party_is_killed_is_done_without_and_catches_up_when_the_run_is_resumed(
    hospitals: Hospitals,
) -> None:
    job, out = write_job(hospitals.folder, "ring"), hospitals.own / "out"
    more = ["--set", "training.rounds=40", "--party-files", hospitals.own / "parties"]
    with hospitals.running(job, *more, "--out", out) as process:
        said = until(process, "round  5/")
        kill_party(hospitals.linked.hosts[2])
        said += until(process, "east was lost") + until(process, "round 15/")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    behind = json.loads(hospitals.said_on(2, "cat", f"{out}/checkpoint/checkpoint.json"))
    assert behind["next_round"] < 15
    printed = hospitals.run("--resume", out, "--party-files", hospitals.own / "parties")
    assert "resum" in printed
    records = [hospitals.record(number) for number in range(4)]
    assert len({record["model_sha256"] for record in records}) == 1
    numbers = [entry["round"] for entry in records[2]["rounds"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert NAMES[2] not in records[0]["rounds"][12]["parties"]
    assert NAMES[2] in records[0]["rounds"][-1]["parties"]
