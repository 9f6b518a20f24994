"""Whole jobs against strangers, losses and full disks, from outside: what a user would see.

The exit code of a job that was stopped is mpirun's, which may be 0 when all ranks end at once;
`mpcfl run` goes by what the ranks say, and so do these tests.
"""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import TASK, Ended, WarmServer, left_behind, run_job

from mpcfl.audit.transcript import check_run
from mpcfl.dp import verify_ledger
from mpcfl.net.identity import Identity, public_key_text

pytestmark = [pytest.mark.mpi, pytest.mark.open_mpi]

NAMES = ("ada", "ben", "cyd", "dan")
ERROR = "mpcfl: error: "
# Far below the deadline of a job that does not name another one, on any machine.
SOON_S = 30.0

# A rank to which things happen: its options are others, its packages, its disk or its life.
RANK = """
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import mpcfl.parties.joining
from mpcfl.net import roster
from mpcfl.net.meter import Meter
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.wire import Kind
from mpcfl.parties.__main__ import main

own = json.loads(sys.argv[1]).get(os.environ["PMIX_RANK"], {})
arguments = [own.get("swap", {}).get(word, word) for word in sys.argv[2:]]
versions = own.get("versions", {})
version = roster.version
roster.version = lambda package: versions.get(package) or version(package)
mpcfl.parties.joining.__version__ = versions.get("mpcfl", mpcfl.parties.joining.__version__)
if "file_bytes" in own:
    # As on a full disk, for this party alone: what is longer can't be written.
    resource.setrlimit(resource.RLIMIT_FSIZE, (own["file_bytes"],) * 2)
if "local_ranks" in own:
    # What Open MPI says of a job on two hosts.
    os.environ["OMPI_COMM_WORLD_LOCAL_SIZE"] = str(own["local_ranks"])


def meet(stage, count=[0]):
    count[0] += stage == own["at"]
    if stage == own["at"] and count[0] == own["round"]:
        Path("met").write_text(str(time.time()))
        os.kill(os.getpid(), own["signal"])
        time.sleep(1.0)


if "at" in own:
    measured = Meter.stage

    def stage(self, name):
        meet(name)
        return measured(self, name)

    Meter.stage = stage


# What of a handshake the network can record, and play again in another run.
handshake = {bytes([Kind[name]]): name for name in ("HELLO", "SIGNATURE")}
allgather = MpiTransport.allgather


def played(self, message):
    name = handshake.get(message[5:6]) if message.startswith(b"mpfl") else None
    if name and "record" in own:
        Path(own["record"] + name).write_bytes(message)
    if not name or "replay" not in own:
        return allgather(self, message)
    said = allgather(self, Path(own["replay"] + name).read_bytes())
    said[self.rank] = message
    return said


MpiTransport.allgather = played


def unpickled(event, arguments):
    if event == "pickle.find_class":
        Path("unpickled").write_text(repr(arguments))


sys.addaudithook(unpickled)
sys.exit(main(arguments))
"""

JOB = f"""
task = "watched_task:WatchedTask"

[parties]
count = {len(NAMES)}
names = {json.dumps(NAMES)}
max_dropout = 1

[privacy]
unit = "record"
epsilon = 14.0
records = 80
sample_rate = 0.5
spare_attempts = 3

[training]
rounds = 4

[aggregation]
backend = "ring"
deadline_s = 60.0
"""

# Tells when a party looks at its data.
WATCHED_TASK = """
from pathlib import Path

from small_task import SmallTask


class WatchedTask(SmallTask):
    def party_data(self, party, n_parties):
        Path(f"looked-{party}").touch()
        return super().party_data(party, n_parties)
"""


@dataclass
class World:
    """A folder with a job, party files of all, and the ranks that run it."""

    folder: Path
    warm: WarmServer

    def identities(self, folder: str = "parties", names: Sequence[str] = NAMES) -> None:
        """Make identities and party files of parties that know each other."""
        (self.folder / folder).mkdir()
        keys = {name: Identity.new() for name in names}
        for name, identity in keys.items():
            identity.save(self.folder / folder / f"{name}.key")
        self.pin(folder, {name: key.public_key for name, key in keys.items()})

    def pin(self, folder: str, keys: dict[str, bytes]) -> None:
        """Write the party files."""
        lines = {name: f'{name} = "{public_key_text(key)}"\n' for name, key in keys.items()}
        for name in keys:
            peers = "".join(line for other, line in lines.items() if other != name)
            text = f'name = "{name}"\nidentity = "{name}.key"\n\n[peers]\n{peers}'
            (self.folder / folder / f"{name}.toml").write_text(text)

    def run(
        self,
        *arguments: str,
        others: dict[int, dict[str, Any]] | None = None,
        n_ranks: int = len(NAMES),
        start: Sequence[str] = ("job.toml", "--out", "out"),
    ) -> Ended:
        """Run the job; ``others`` says what is different at which rank."""
        spec = json.dumps({str(rank): other for rank, other in (others or {}).items()})
        line = (self.folder / "rank.py", spec, *start, *arguments)
        ended = run_job(self.warm, n_ranks, line, self.folder, deadline_s=90.0)
        assert ended.code is not None, f"it hung\n{ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        assert left_behind(self.warm, SOON_S) == []
        return ended

    def looked(self) -> list[str]:
        """Return who has looked at data."""
        return sorted(path.name for path in self.folder.glob("looked-*"))


@pytest.fixture
def world(tmp_path: Path, warm: WarmServer) -> World:
    (tmp_path / "small_task.py").write_text(TASK)
    (tmp_path / "watched_task.py").write_text(WATCHED_TASK)
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "job.toml").write_text(JOB)
    return World(tmp_path, warm)


def errors(ended: Ended) -> list[str]:
    lines = (line.partition(ERROR) for line in ended.stderr.splitlines())
    return [words for _, prefix, words in lines if prefix]


FILES = ("--party-files", "parties")


@pytest.mark.parametrize(
    ("what", "other", "says"),
    [
        ("a new identity", {}, "another identity"),
        ("a stranger", {"swap": {"parties": "strangers"}}, "another identity"),
        ("no identity", {"swap": {"--party-files": "--set", "parties": "training.seed=0"}}, "ben"),
        ("an open identity", {}, "chmod 600"),
        ("another job", {"swap": {"job.toml": "job-2.toml"}}, "another job"),
        ("another library", {"versions": {"numpy": "1.0"}}, "numpy 1.0 instead of"),
        ("another mpcfl", {"versions": {"mpcfl": "9.9"}}, "same version of mpcfl"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_who_is_not_expected_is_refused_before_any_data_is_touched(
    world: World, what: str, other: dict[str, Any], says: str
) -> None:
    world.identities()
    world.identities("strangers")
    job = (world.folder / "job.toml").read_text()
    (world.folder / "job-2.toml").write_text(job.replace("epsilon = 14.0", "epsilon = 14.5"))
    if what == "a new identity":
        (world.folder / "parties" / "ben.key").unlink()
        Identity.new().save(world.folder / "parties" / "ben.key")
    if what == "an open identity":
        (world.folder / "parties" / "ben.key").chmod(0o640)
    ended = world.run(*FILES, others={1: other})
    assert "done: " not in ended.stdout
    assert any(says in sentence for sentence in errors(ended)), ended.stderr
    assert world.looked() == []
    assert not (world.folder / "out").exists()
    assert ended.seconds < SOON_S


def test_an_old_transcript_is_refused_before_any_data_is_touched(world: World) -> None:
    """Somebody plays again what ben said, and signed, in an honest run of the same parties."""
    world.identities()
    honest = world.run(*FILES, others={1: {"record": "ben-"}})
    assert "done: " in honest.stdout, honest.stderr
    assert {path.name for path in world.folder.glob("ben-*")} == {"ben-HELLO", "ben-SIGNATURE"}
    for path in world.folder.glob("looked-*"):
        path.unlink()
    again = ("job.toml", "--out", "again")
    ended = world.run(*FILES, others={1: {"replay": "ben-"}}, start=again)
    assert "done: " not in ended.stdout
    sentence = "a message from ben failed authentication in stage handshake"
    assert any(sentence in line for line in errors(ended)), ended.stderr
    assert world.looked() == []
    assert not (world.folder / "again").exists()
    assert ended.seconds < SOON_S


def test_several_hosts_without_party_files_are_refused_before_any_data_is_touched(
    world: World,
) -> None:
    ended = world.run(others={rank: {"local_ranks": 2} for rank in range(len(NAMES))})
    assert "done: " not in ended.stdout
    assert any("more than one host" in sentence for sentence in errors(ended)), ended.stderr
    assert any("--party-files" in sentence for sentence in errors(ended))
    assert world.looked() == []
    assert not (world.folder / "out").exists()


def secrets_of(folder: Path) -> list[bytes]:
    """Return the seeds of all identities in every form that could be written somewhere."""
    found = []
    for path in folder.glob("*.key"):
        der = base64.b64decode("".join(path.read_text().splitlines()[1:-1]))
        seed = der[-32:]
        found += [seed, seed.hex().encode(), base64.b64encode(seed), base64.b64encode(der)[20:60]]
    return found


def test_a_run_that_loses_a_party_keeps_its_books_and_its_secrets(world: World) -> None:
    world.identities()
    ended = world.run(*FILES, others={2: {"at": "aggregate", "round": 2, "signal": signal.SIGKILL}})
    assert ended.code == 0, ended.stderr
    assert "cyd was lost" in ended.stdout
    out = world.folder / "out"
    record = json.loads((out / "run.json").read_text())
    rosters = [entry["parties"] for entry in record["rounds"]]
    survivors = ["ada", "ben", "dan"]
    assert rosters[0] == list(NAMES)
    assert rosters[2:] == [survivors, survivors]
    ledgers = [verify_ledger(path) for path in sorted((out / "ledger").glob("party-*.jsonl"))]
    assert len(ledgers) == len(NAMES)
    assert record["privacy"]["epsilon"] == max(ledger.epsilon for ledger in ledgers)
    # Nothing that a transcript knows to be charged is missing in that party's ledger.
    for number, ledger in enumerate(ledgers):
        lines = (out / "transcript" / f"party-{number}.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        charged = {(e["round_id"], e["attempt"]) for e in events if e["kind"] == "charge"}
        assert ledger.attempts >= len(charged) >= 2
    assert list(check_run(out)) == []
    # What may be read by others holds no key; and nobody built an object from what came.
    texts = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    texts += [ended.stdout.encode(), ended.stderr.encode()]
    assert len(texts) > 12
    for secret in secrets_of(world.folder / "parties"):
        assert not any(secret in text for text in texts)
    assert not (world.folder / "unpickled").exists()


@pytest.mark.parametrize("stage", ["session", "aggregate", "open"])
def test_an_unplanned_loss_ends_all_ranks_at_once_with_party_and_stage(
    world: World, stage: str
) -> None:
    died = {"at": stage, "round": 1, "signal": signal.SIGKILL}
    ended = world.run("--set", "parties.max_dropout=0", others={3: died})
    since = time.time() - float((world.folder / "met").read_text())
    assert any("dan" in sentence and "stage " in sentence for sentence in errors(ended))
    assert since < SOON_S, "it waited for the deadline"
    assert not any(line.startswith("done: ") for line in ended.stdout.splitlines())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_party_is_lost_beside_an_aggregator_that_has_gone_ahead(
    world: World, number: signal.Signals
) -> None:
    """The aggregator has nothing to pay, so it may be at its next step before the others."""
    names = (*NAMES, "aggregator")
    world.identities(names=names)
    settings = ('aggregation.backend="paillier"', 'aggregation.custody="clients"')
    more = ("aggregation.key_bits=2048", "aggregation.deadline_s=6.0")
    changes = [word for setting in (*settings, *more) for word in ("--set", setting)]
    lost = {"at": "session", "round": 1, "signal": number}
    ended = world.run(*FILES, *changes, others={1: lost}, n_ranks=len(names))
    assert ended.code == 0, ended.stderr
    assert "ben was lost" in ended.stdout
    assert list(check_run(world.folder / "out")) == []


def test_a_stopped_run_goes_on_without_a_party_which_is_back_later(world: World) -> None:
    world.identities()
    died = {"at": "aggregate", "round": 2, "signal": signal.SIGKILL}
    stopped = world.run(*FILES, others={1: died, 3: died})
    assert "done: " not in stopped.stdout
    assert any("ben" in line and "dan" in line for line in errors(stopped))
    out = world.folder / "out"
    spent = [verify_ledger(path).epsilon for path in sorted((out / "ledger").glob("*.jsonl"))]
    # Without dan; cyd, who is at rank 2 now, is lost before the third round: too few.
    again = {2: {"at": "reserve", "round": 2, "signal": signal.SIGKILL}}
    resume = ("--resume", "out")
    second = world.run(*FILES, "--without", "dan", others=again, n_ranks=3, start=resume)
    assert "resumed after round 1" in second.stdout
    assert any("cyd" in line and "dan" in line for line in errors(second)), second.stderr
    assert "done: " not in second.stdout
    last = world.run(*FILES, start=resume)
    assert last.code == 0, last.stderr
    record = json.loads((out / "run.json").read_text())
    assert [entry["round"] for entry in record["rounds"]] == [1, 2, 3, 4]
    assert record["rounds"][0]["parties"] == list(NAMES)
    assert record["rounds"][1]["parties"] == ["ada", "ben", "cyd"]
    assert record["rounds"][3]["parties"] == list(NAMES)
    ledgers = [verify_ledger(path) for path in sorted((out / "ledger").glob("party-*.jsonl"))]
    assert all(ledger.epsilon > before for ledger, before in zip(ledgers, spent, strict=True))
    assert record["privacy"]["epsilon"] == max(ledger.epsilon for ledger in ledgers)
    assert list(check_run(out)) == []


def test_a_party_whose_disk_is_full_says_so_and_the_others_go_on_without_it(world: World) -> None:
    """Its files can't grow by another charge, so it sends nothing of that round."""
    short = ("--set", "aggregation.deadline_s=4.0")
    ended = world.run(*short, others={1: {"file_bytes": 2600}})
    told = [line for line in errors(ended) if "party-1" in line]
    assert any("disk is full" in line or "too large" in line for line in told), ended.stderr
    assert "ben was lost" in ended.stdout
    out = world.folder / "out"
    record = json.loads((out / "run.json").read_text())
    assert [entry["round"] for entry in record["rounds"]] == [1, 2, 3, 4]
    assert record["rounds"][-1]["parties"] == ["ada", "cyd", "dan"]
    ledgers = [verify_ledger(path) for path in sorted((out / "ledger").glob("party-*.jsonl"))]
    # Whole up to where it ended, and all that the others began with it is paid for.
    assert ledgers[1].attempts >= 1
    assert ledgers[0].epsilon > ledgers[1].epsilon
    assert record["privacy"]["epsilon"] == max(ledger.epsilon for ledger in ledgers)
    assert list(check_run(out)) == []
