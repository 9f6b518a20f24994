"""The `paillier` backend on real MPI processes, its jobs, its key ceremony, and wrong commands."""

from __future__ import annotations

import json
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.config import load_job
from mpcfl.errors import ConfigError
from mpcfl.hazmat.threshold_key import raw_deal_key_from_primes
from mpcfl.launch import cli
from mpcfl.parties.rules import check_job
from mpcfl.parties.setup import KeyFiles, make_rank
from mpcfl.secagg import key_files
from mpcfl.secagg.key_files import load_key_share, share_path, write_key_share

Command = Callable[..., Any]
PREFIX = "mpcfl: error: "

# Small keys; every rank knows every input and checks what it opened by itself.
SURVIVORS = """
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import mpcfl
from mpcfl.config import Custody
from mpcfl.errors import OutOfOrder, PartyLost
from mpcfl.net.mpi import MpiTransport
from mpcfl.secagg import custody, paillier_ops
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.registry import load_backend

custody.MIN_KEY_BITS = 512
paillier_ops.chunk_ciphertexts = lambda key_bits: 4
comm = MPI.COMM_WORLD
DIM = 301


def draw(rank, bits, turn):
    words = hashlib.shake_256(f"{rank} {bits} {turn}".encode()).digest(8 * DIM)
    return np.frombuffer(words, dtype=np.int64) >> np.int64(64 - bits)


def exact(ranks, bits, turn):
    total = np.zeros(DIM, np.uint64)
    for rank in ranks:
        total += draw(rank, bits, turn).view(np.uint64)
    return (total << np.uint64(64 - bits)).view(np.int64) >> np.int64(64 - bits)


def say(*words):
    print("rank", comm.rank, *words, flush=True)


for options in ({"precompute": True}, {"custody": "threshold", "threshold": 3}):
    options["checked"] = False  # sums wrap around
    for bits, kind in ((20, np.int32), (64, np.int64)):
        with mpcfl.open_secure_sum(
            comm=comm, backend="paillier", dim=DIM, modulus_bits=bits, key_bits=512, **options
        ) as session:
            for turn in range(2):
                total = session.sum(draw(comm.rank, bits, turn).astype(kind))
                assert total.dtype == kind
                assert np.array_equal(total, exact(range(5), bits, turn)), (options, bits)
                session.prepare()

settings = SumSettings(
    DIM, 16, key_bits=512, custody=Custody.CLIENTS, run_id="00" * 16, precompute=True
)
secure = load_backend("paillier")(MpiTransport(comm, 30.0, duplicate=True), settings)
own = draw(comm.rank, 16, 9) if comm.rank < 4 else None
total = secure.open(secure.aggregate(secure.protect(own)))
assert np.array_equal(total, exact(range(4), 16, 9) if comm.rank < 4 else np.empty(0))
secure.close()

settings = SumSettings(
    DIM, 16, key_bits=512, custody=Custody.THRESHOLD, run_id="11" * 16, threshold=3
)
transport = MpiTransport(comm, 30.0, duplicate=True)
secure = load_backend("paillier")(transport, settings)
product = secure.aggregate(secure.protect(draw(comm.rank, 16, 5)))
transport.allgather(b"")
if comm.rank >= 3:
    os.kill(os.getpid(), signal.SIGKILL)
start = time.monotonic()
try:
    secure.open(product)
    raise AssertionError("the dead combine nothing")
except PartyLost:
    assert time.monotonic() - start < 10
    transport.abandon()
comm.Set_errhandler(MPI.ERRORS_RETURN)
# MPI finds the deaths one after the other.
living = comm.Shrink()
while living.size > 3:
    living.Set_errhandler(MPI.ERRORS_RETURN)
    time.sleep(0.05)
    living = living.Shrink()
assert living.size == 3
survivors = MpiTransport(living, 30.0)
opened = secure.open_over(survivors, product)
assert np.array_equal(opened, exact(range(5), 16, 5)), "the sum of all five, two of them dead"
survivors.allgather(b"")
secure.protect(draw(comm.rank, 16, 5))  # another sum begins
try:
    secure.open_over(survivors, product)
except OutOfOrder:
    say("opened once")
Path(f"done-{comm.rank}").touch()
while len(list(Path().glob("done-*"))) < 3 and time.monotonic() - start < 20:
    time.sleep(0.01)
time.sleep(0.2)
os._exit(0)
"""


@pytest.mark.open_mpi
def test_sums_on_mpi_and_an_opening_by_the_three_who_survive_two_of_five(
    mpirun: Command, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(SURVIVORS)
    done = mpirun(5, script, timeout_s=100)
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert said == [f"rank {rank} opened once" for rank in range(3)], done.stderr


# Jobs and the ceremony.

NAMES = ("north", "south", "east")
PASSPHRASES = [f"the passphrase of {name} here" for name in NAMES]

JOB = """
task = "toy"

[parties]
count = 3
names = ["north", "south", "east"]

[privacy]
unit = "none"

[training]
rounds = 2

[aggregation]
backend = "paillier"
custody = "threshold"
threshold = 2
key_bits = 2048
"""


@pytest.fixture
def passphrases(tmp_path: Path) -> Path:
    path = tmp_path / "passphrases"
    path.touch(mode=0o600)
    path.write_text("".join(f"{phrase}\n" for phrase in PASSPHRASES))
    return path


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_ceremony_then_a_job_with_its_shares_leaves_no_secret_on_the_disk(
    mpcfl_command: Command, tmp_path: Path, passphrases: Path
) -> None:
    keys, out, job = tmp_path / "keys", tmp_path / "out", tmp_path / "job.toml"
    job.write_text(JOB)
    options = ["--out", keys, "--parties", 3, "--threshold", 2, "--key-bits", 2048]
    options += ["--names", ",".join(NAMES), "--passphrases", passphrases, "--json"]
    dealt = mpcfl_command("keygen", *options)
    assert dealt.code == 0, dealt.stderr
    document = json.loads(dealt.stdout)
    assert document["threshold"] == 2
    assert {path.name for path in keys.iterdir()} == {*(f"{n}.share" for n in NAMES), "public.json"}
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert all(stat.S_IMODE((keys / f"{n}.share").stat().st_mode) == 0o600 for n in NAMES)
    # A second ceremony overwrites nothing.
    before = {path: path.read_bytes() for path in keys.iterdir()}
    again = mpcfl_command("keygen", *options)
    assert again.code != 0
    assert "Traceback" not in again.stderr
    assert {path: path.read_bytes() for path in keys.iterdir()} == before

    run = mpcfl_command(
        "run", job, "--keys", keys, "--passphrases", passphrases, "--out", out, "--json"
    )
    assert run.code == 0, run.stderr
    record = json.loads(run.stdout)
    assert record["backend"] == "paillier"
    assert record["job"]["aggregation"]["custody"] == "threshold"
    assert [row["round"] for row in record["rounds"]] == [1, 2]

    shares = [
        load_key_share(share_path(keys, n), p) for n, p in zip(NAMES, PASSPHRASES, strict=True)
    ]
    values = [share.raw_value() for share in shares]
    secrets = [form for v in values for form in (f"{v:x}".encode(), str(v).encode())]
    secrets += [v.to_bytes(512, "big") for v in values]
    secrets += [phrase.encode() for phrase in PASSPHRASES]
    for path in [*files_under(keys), *files_under(out), *tmp_path.glob("*")]:
        if path.is_file() and path != passphrases:
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
    for text in (dealt.stdout, dealt.stderr, run.stdout, run.stderr):
        assert not any(secret in text.encode() for secret in secrets)
    # What was decrypted in part is on the disk, as a name: two of three per round.
    logs = [p for p in keys.iterdir() if p.stem in NAMES and p.suffix != ".share"]
    lines = [line for path in logs for line in path.read_text().splitlines()]
    assert len(lines) == 2 * 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in logs)


def test_job_with_custody_clients_learns_what_a_plain_one_learns(
    mpcfl_command: Command, tmp_path: Path
) -> None:
    sets = ["aggregation.custody='clients'", "aggregation.key_bits=2048", "training.rounds=2"]
    options = [word for change in sets for word in ("--set", change)]
    run = mpcfl_command("run", "toy", "--backend", "paillier", *options, "--json")
    assert run.code == 0, run.stderr
    record = json.loads(run.stdout)
    # What bob and alice learn in two rounds, as the README of the toy shows it.
    assert [round(row["loss"], 3) for row in record["rounds"]] == [0.783, 0.393]


# Wrong commands.


@pytest.fixture
def mpcfl_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command in this process, which must start no other one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def starts_nothing(*args: object, **kwargs: object) -> None:
        raise AssertionError("a refused command started a process")

    monkeypatch.setattr("subprocess.Popen", starts_nothing)

    def says(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mpcfl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert captured.out == ""
        return int(ended.value.code or 0), captured.err

    return says


def assert_refused(said: tuple[int, str], *words: str) -> None:
    code, text = said
    assert code not in (0, None)
    lines = [line for line in text.splitlines() if line.startswith("mpcfl: error")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    assert "AssertionError" not in text
    for word in words:
        assert word in lines[0]
    # A remedy is a clause of its own.
    assert ";" in lines[0] or ":" in lines[0].removeprefix(PREFIX), text


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["custody='treshold'"], ["custody"]),
        (["custody=7"], ["custody"]),
        (["custodian='threshold'"], ["custodian"]),
        (["threshold=2"], ["threshold", "custody"]),
        (["custody='threshold'", "threshold=1"], ["threshold"]),
        (["custody='threshold'", "threshold=0"], ["threshold"]),
        (["custody='threshold'", "threshold=-2"], ["threshold"]),
        (["custody='threshold'", "threshold=5"], ["threshold"]),
        (["custody='threshold'", "threshold=2.5"], ["threshold"]),
        (["custody='threshold'", "threshold='two'"], ["threshold"]),
        (["custody='threshold'", "threshold=true"], ["threshold"]),
        (["custody='threshold'", "key_bits=1024"], ["key_bits"]),
        (["custody='threshold'", "key_bits=2049"], ["key_bits"]),
        (["custody='clients'", "threshold=2"], ["threshold"]),
    ],
)
def test_job_typed_wrong_is_one_sentence_and_leaves_nothing(
    mpcfl_says: Command, tmp_path: Path, sets: list[str], words: list[str]
) -> None:
    options = [word for change in sets for word in ("--set", f"aggregation.{change}")]
    assert_refused(mpcfl_says("run", "digits", "--backend", "paillier", *options), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parties", "table", "words"),
    [
        # The coalition would have the key.
        ({"colluding": 2}, {"custody": "'threshold'", "threshold": 2}, ["threshold", "colluding"]),
        ({"colluding": 3}, {"custody": "'threshold'"}, ["threshold", "colluding"]),
        # The living would not.
        ({"max_dropout": 1}, {"custody": "'threshold'", "threshold": 4}, ["max_dropout"]),
        # The holder and one rank of the chain open another party's update.
        ({"colluding": 2}, {"custody": "'holder'"}, ["holder", "colluding"]),
    ],
)
def test_custody_that_the_planned_coalition_breaks_is_refused(
    mpcfl_says: Command,
    tmp_path: Path,
    parties: dict[str, int],
    table: dict[str, object],
    words: list[str],
) -> None:
    changes = [f"parties.{key}={value}" for key, value in parties.items()]
    changes += [f"aggregation.{key}={value}" for key, value in table.items()]
    options = [word for change in changes for word in ("--set", change)]
    assert_refused(mpcfl_says("run", "digits", "--backend", "paillier", *options), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["ring", "phe", "crypten"])
def test_threshold_is_refused_for_other_backends(
    mpcfl_says: Command, tmp_path: Path, backend: str
) -> None:
    options = ["--backend", backend, "--set", "aggregation.custody='threshold'"]
    assert_refused(mpcfl_says("run", "digits", *options), "custody", "paillier")
    assert list(tmp_path.iterdir()) == []


GOOD = {"--parties": "3", "--threshold": "2", "--key-bits": "2048", "--names": "north,south,east"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--parties": "1"}, []),
        ({"--parties": "0", "--names": None}, []),
        ({"--parties": "-3", "--names": None}, []),
        ({"--parties": "three"}, ["parties"]),
        ({"--parties": "2"}, ["--parties"]),
        ({"--parties": "1001", "--names": None}, []),
        ({"--threshold": "1"}, ["threshold"]),
        ({"--threshold": "4"}, ["threshold"]),
        ({"--threshold": "0"}, ["threshold"]),
        ({"--threshold": None}, ["threshold"]),
        ({"--key-bits": "1024"}, ["key_bits"]),
        ({"--key-bits": "2049"}, ["key_bits"]),
        ({"--key-bits": "1000000"}, ["key_bits"]),
        ({"--names": "north,north,east"}, ["name"]),
        ({"--names": "../a,south,east"}, ["name"]),
        ({"--names": "north,,east"}, ["name"]),
        ({"--names": "public.json,south,east"}, ["name"]),
        ({"--passphrases": "none"}, ["none"]),
        ({"--passphrases": None}, ["terminal"]),
    ],
)
def test_ceremony_typed_wrong_is_one_sentence_and_leaves_nothing(
    mpcfl_says: Command,
    tmp_path: Path,
    passphrases: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, str | None],
    words: list[str],
) -> None:
    # Nobody sits at a terminal here.
    monkeypatch.setattr("getpass.getpass", lambda prompt: (_ for _ in ()).throw(EOFError))
    options = GOOD | {"--passphrases": str(passphrases)} | changed
    arguments = [word for pair in options.items() if pair[1] is not None for word in pair]
    assert_refused(mpcfl_says("keygen", "--out", tmp_path / "keys", *arguments), *words)
    assert list(tmp_path.iterdir()) == [passphrases]


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("\n".join(PASSPHRASES), 0o644, ["chmod 600"]),
        ("\n".join(PASSPHRASES[:2]), 0o600, ["2 lines"]),
        ("\n".join([*PASSPHRASES, "one more of them"]), 0o600, ["4 lines"]),
        ("\n".join([*PASSPHRASES[:2], "short"]), 0o600, ["east", "12"]),
        ("\n".join([*PASSPHRASES[:2], " " * 40]), 0o600, ["east", "12"]),
        ("", 0o600, ["lines"]),
    ],
)
def test_passphrases_that_protect_nothing_are_refused_and_not_shown(
    mpcfl_says: Command,
    tmp_path: Path,
    passphrases: Path,
    content: str,
    mode: int,
    words: list[str],
) -> None:
    passphrases.write_text(content)
    passphrases.chmod(mode)
    arguments = [word for pair in GOOD.items() for word in pair]
    said = mpcfl_says("keygen", "--out", "keys", *arguments, "--passphrases", passphrases)
    assert_refused(said, *words)
    assert not any(phrase in said[1] for phrase in PASSPHRASES)
    assert list(tmp_path.iterdir()) == [passphrases]


def test_ceremony_into_a_folder_in_use_or_that_cannot_be_made_leaves_it_alone(
    mpcfl_says: Command, tmp_path: Path, passphrases: Path
) -> None:
    arguments = [word for pair in GOOD.items() for word in pair]
    arguments += ["--passphrases", str(passphrases)]
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "south.share").write_text("somebody's")
    assert_refused(mpcfl_says("keygen", "--out", folder, *arguments), "south.share")
    assert [path.name for path in folder.iterdir()] == ["south.share"]
    assert (folder / "south.share").read_text() == "somebody's"
    (tmp_path / "file").touch()
    assert_refused(mpcfl_says("keygen", "--out", tmp_path / "file", *arguments), "file")
    assert_refused(mpcfl_says("keygen", "--out", tmp_path / "file" / "below", *arguments), "file")
    (folder / "east.share").symlink_to("nowhere")
    (folder / "south.share").unlink()
    assert_refused(mpcfl_says("keygen", "--out", folder, *arguments), "east.share")
    assert {path.name for path in folder.iterdir()} == {"east.share"}


def test_job_with_a_share_of_another_ceremony_names_the_party_and_leaves_nothing(
    mpcfl_command: Command,
    tmp_path: Path,
    passphrases: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
) -> None:
    vectors = json.loads((repository / "tests/vectors/threshold_paillier.json").read_text())
    primes = [int(vectors["primes"][name], 16) for name in ("p1024", "q1024")]
    monkeypatch.setattr(key_files, "_COST", key_files.ScryptCost(n=1 << 10, r=8, p=1))
    keys, job, pair = tmp_path / "keys", tmp_path / "job.toml", NAMES[:2]
    job.write_text(JOB.replace("count = 3", "count = 2").replace(', "east"', ""))
    keys.mkdir(mode=0o700)
    for rank, name in enumerate(pair):
        _, shares = raw_deal_key_from_primes(*primes, 2, 2)
        write_key_share(keys / f"{name}.share", shares[rank], pair, PASSPHRASES[rank])
    done = mpcfl_command("run", job, "--keys", keys, "--passphrases", passphrases)
    assert done.code not in (0, None)
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith(PREFIX))
    assert any(word in line for word in ("south", "rank 1")), line
    assert files_under(tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("parties", "threshold"), [({"colluding": 2}, 2), ({"colluding": 1, "max_dropout": 1}, 4)]
)
def test_key_whose_own_threshold_the_plan_breaks_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    parties: dict[str, int],
    threshold: int,
) -> None:
    # The job names no threshold, and its default, 3 of 4, would do.
    names = (*NAMES, "west")
    vectors = json.loads((repository / "tests/vectors/threshold_paillier.json").read_text())
    primes = [int(vectors["primes"][name], 16) for name in ("p1024", "q1024")]
    monkeypatch.setattr(key_files, "_COST", key_files.ScryptCost(n=1 << 10, r=8, p=1))
    _, shares = raw_deal_key_from_primes(*primes, 4, threshold)
    phrase = PASSPHRASES[0]
    write_key_share(tmp_path / "north.share", shares[0], names, phrase)
    passphrases = tmp_path / "passphrase"
    passphrases.touch(mode=0o600)
    passphrases.write_text(phrase)
    text = JOB.replace("threshold = 2\n", "").replace('"east"', '"east", "west"')
    lines = ["count = 4", *(f"{key} = {value}" for key, value in parties.items())]
    (tmp_path / "job.toml").write_text(text.replace("count = 3", "\n".join(lines)))
    job = load_job(tmp_path / "job.toml")
    check_job(job, insecure=False)
    with pytest.raises(ConfigError, match="threshold"):
        make_rank(job, 0, KeyFiles(tmp_path, passphrases))


def test_threshold_job_without_its_table_entry_refuses_keys(
    mpcfl_says: Command, tmp_path: Path, passphrases: Path
) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    options = ["--keys", ".", "--passphrases", passphrases]
    options += ["--set", "aggregation.custody='holder'"]
    assert_refused(mpcfl_says("run", job, *options), "threshold", "custody")
    assert {path.name for path in tmp_path.iterdir()} == {"job.toml", "passphrases"}
