"""The masked sums and their jobs on real MPI processes, from outside."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.mpi

# Every rank knows every input, so each checks what it opened by itself.
ORACLE = """
import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import mpcfl
from mpcfl.errors import OutOfOrder, PartyLost, ProtocolError, TranscriptMismatch, WrapDetected

comm = MPI.COMM_WORLD
BITS = (8, 16, 20, 24, 32, 48, 64)


def draw(rank, dim, bits, dtype=np.int64, turn=0):
    words = hashlib.shake_256(f"{rank} {bits} {turn}".encode()).digest(8 * dim)
    return (np.frombuffer(words, dtype=np.int64) >> np.int64(64 - bits)).astype(dtype)


def exact(ranks, dim, bits, turn=0):
    # Mod 2^64 first: 2^b divides it.
    total = np.zeros(dim, np.uint64)
    for rank in ranks:
        total += draw(rank, dim, bits, turn=turn).view(np.uint64)
    return (total << np.uint64(64 - bits)).view(np.int64) >> np.int64(64 - bits)


def say(*words):
    print("rank", comm.rank, *words, flush=True)
"""

# Short vectors at nine ranks take another way through MPI than long ones.
NINE = """
for dim, bits, pre in [(d, b, p) for d in (0, 5, 20_011) for b in BITS for p in (0, 1)]:
    kind = np.int32 if bits <= 32 and dim % 2 else np.int64
    few = {"neighbors": 4, "colluding": 3} if pre else {}
    # Sums of the whole ring wrap around, and bytes are those of the vectors.
    few["checked"] = False
    with mpcfl.open_secure_sum(
        comm=comm, backend="ring", dim=dim, modulus_bits=bits, precompute=bool(pre), **few
    ) as session:
        for turn in range(2):
            session.prepare()
            before = session.bytes_sent
            total = session.sum(draw(comm.rank, dim, bits, kind, turn))
            assert total.dtype == kind
            assert np.array_equal(total, exact(range(9), dim, bits, turn)), (dim, bits, pre)
    if dim > 20_000:
        ideal = 2 * 8 / 9 * 4 * dim * bits / 32
        assert abs(session.bytes_sent - before - ideal) <= 0.01 * ideal, (bits, before)
say("agrees")
# Neither closed nor waited for: the process must end all the same.
left_open = mpcfl.open_secure_sum(comm=comm, backend="ring", dim=100_000, precompute=True)
left_open.sum(np.zeros(100_000, np.int32))
"""

GROUPS = """
half = comm.Split(comm.rank % 2)
pairs = [rank for rank in range(comm.size) if rank % 2 == comm.rank % 2]
for backend in ("ring", "crypten"):
    options = {"backend": backend, "modulus_bits": 20, "checked": False}
    alone = mpcfl.secure_sum(draw(7, 50, 20), comm=MPI.COMM_SELF, **options)
    assert np.array_equal(alone, draw(7, 50, 20))
    # A session of all, and one of each half, at the same time.
    few = {"neighbors": "auto", "colluding": 1}
    options |= {"dim": 90_001}
    with (
        mpcfl.open_secure_sum(comm=comm, precompute=True, **few, **options) as everybody,
        mpcfl.open_secure_sum(comm=half, **options) as some,
    ):
        for turn in range(3):
            own = draw(comm.rank, 90_001, 20, np.int32, turn)
            comm.Isend(np.array([turn]), dest=(comm.rank + 1) % comm.size, tag=0)
            assert np.array_equal(some.sum(own), exact(pairs, 90_001, 20, turn)), backend
            total = everybody.sum(own)
            assert total.dtype == np.int32
            assert np.array_equal(total, exact(range(comm.size), 90_001, 20, turn)), backend
            inbox = np.zeros(1, int)
            comm.Recv(inbox, source=(comm.rank - 1) % comm.size, tag=0)
            assert inbox[0] == turn
"""

ERRORS = """
def error_of(call):
    try:
        got = call()
    except Exception as error:
        return error
    raise AssertionError(f"no error but {got}")


WRONG = [np.array([2**31, 0]), np.zeros(2), np.zeros(3, np.int32), None, np.zeros(2, np.uint64)]
for backend, precompute in (("ring", True), ("ring", False), ("crypten", True)):
    options = {"backend": backend, "precompute": precompute, "deadline_s": 20}
    with mpcfl.open_secure_sum(comm=comm, dim=2, **options) as session:
        for bad in WRONG:
            session.prepare()
            own = bad if comm.rank == 1 else np.ones(2, np.int32)
            error = error_of(lambda: session.sum(own))
            if comm.rank != 1:
                assert type(error) is ProtocolError, repr(error)
                assert "rank 1 refused" in str(error), error
        assert session.sum(np.full(2, comm.rank)).tolist() == [3, 3]
    own = np.ones(2 + (comm.rank == 2), np.int64)
    error = error_of(lambda: mpcfl.secure_sum(own, comm=comm, **options))
    assert type(error) is TranscriptMismatch, repr(error)
    assert "rank 2 wants dim=3" in str(error), error
    others = (("dim", 2, 3), ("modulus_bits", 32, 20), ("backend", "plain", backend))
    for key, value, other in others:
        chosen = {"dim": 2} | options | {key: other if comm.rank == 2 else value}
        error = error_of(lambda: mpcfl.open_secure_sum(comm=comm, **chosen))
        assert type(error) is TranscriptMismatch, repr(error)
        assert f"rank 2 wants {key}={other}" in str(error), error
    assert mpcfl.secure_sum(np.ones(2, np.int32), comm=comm, **options).tolist() == [3, 3]
say("is done")
"""

KILLED = """
# What the design promises: every rank knows this long after a death.
GONE_S = 5
backend, dim = sys.argv[1], int(sys.argv[2])
options = {"backend": backend, "dim": dim, "precompute": True, "deadline_s": 60}
session = mpcfl.open_secure_sum(comm=comm, **options)
own = np.full(dim, comm.rank, np.int32)
session.sum(own)
comm.Barrier()
start, sums = time.monotonic(), 0
if comm.rank == 1:
    threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
try:
    while True:
        assert session.sum(own)[-1] == 6
        sums += 1
except PartyLost as lost:
    took_s = time.monotonic() - start
    assert sums > 0
    if 1 in lost.ranks:
        assert "rank 1" in str(lost), lost
        Path("named").touch()
    again = 0
    try:
        session.sum(own)
    except OutOfOrder:
        again = 1
    session.close()
    when = "soon" if took_s < 0.4 + GONE_S else f"after {took_s} s"
    say("lost", when, "over" if again else "goes on")
# Nobody may learn of it only because another one ends; with a dead rank no end is orderly.
Path(f"knows-{comm.rank}").touch()
while len(list(Path().glob("knows-*"))) < 3 and time.monotonic() - start < 0.4 + GONE_S:
    time.sleep(0.01)
time.sleep(0.2)
os._exit(0)
"""

MEMORY = """
def resident(key):
    lines = [line.split() for line in open("/proc/self/status")]
    return next(int(line[1]) * 1024 for line in lines if line[0] == key)


dim, backend = 6_000_000, "ring"
bits, precompute = int(sys.argv[1]), sys.argv[2] == "ahead"
options = {"backend": backend, "modulus_bits": bits, "precompute": precompute}
mpcfl.secure_sum(np.zeros(1000, np.int32), comm=comm, **options)
before = resident("VmRSS:")
own = np.full(dim, comm.rank, np.int32)
peaks = []
with mpcfl.open_secure_sum(comm=comm, dim=dim, **options) as session:
    for _ in range(4):
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        total = session.sum(own)
        session.prepare()
        assert total[0] == total[-1] == 3
        total = None
        peaks.append(resident("VmHWM:"))
# What a rank holds shows in every sum after the first, which has nothing made ahead; what MPI keeps
# of messages that come early, when the machine is busy, does not.
vectors = (min(peaks[1:]) - before) / own.nbytes
say("holds", "three" if vectors <= 3.25 else vectors)
"""

Command = Callable[..., Any]


@pytest.fixture
def ranks(mpirun: Command, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs a program at n ranks."""

    def run(n_ranks: int, program: str, *arguments: object) -> Any:
        script = tmp_path / "program.py"
        script.write_text(ORACLE + program)
        return mpirun(n_ranks, script, *arguments, timeout_s=100)

    return run


def said(done: Any) -> list[str]:
    return sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))


def test_nine_ranks_open_exact_sums_of_every_ring_and_length(ranks: Command) -> None:
    done = ranks(9, NINE)
    assert done.code == 0, done.stderr
    assert said(done) == [f"rank {rank} agrees" for rank in range(9)]


def test_sessions_of_some_ranks_keep_apart_and_errors_reach_all(ranks: Command) -> None:
    done = ranks(3, GROUPS + ERRORS)
    assert done.code == 0, done.stderr
    assert said(done) == [f"rank {rank} is done" for rank in range(3)]


@pytest.mark.open_mpi
@pytest.mark.parametrize(("backend", "dim"), [("ring", 2_000_000), ("ring", 3)])
def test_a_rank_killed_amid_sums_is_an_error_at_all_others_at_once(
    backend: str, dim: int, ranks: Command, tmp_path: Path
) -> None:
    done = ranks(4, KILLED, backend, dim)
    assert said(done) == [f"rank {rank} lost soon over" for rank in (0, 2, 3)], done.stderr
    # Whoever saw it die names it; the others may have heard only that somebody gave up.
    assert (tmp_path / "named").exists()


@pytest.mark.parametrize(("bits", "when"), [(32, "online"), (20, "ahead")])
def test_a_rank_holds_three_vectors_at_most(bits: int, when: str, ranks: Command) -> None:
    done = ranks(3, MEMORY, bits, when)
    assert done.code == 0, done.stderr
    assert said(done) == [f"rank {rank} holds three" for rank in range(3)]


def rank_process(folder: Path, rank: int) -> int:
    """Return the process that a rank of the run in ``folder`` is."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # It ended while we looked.
            continue
        if str(folder).encode() in words and f"PMIX_RANK={rank}".encode() in environment:
            return int(entry.name)
    raise AssertionError(f"no rank {rank} is running")


def killed_run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a job and kill its rank 2 in the third round; return the exit code and its errors."""
    command = [sys.executable, "-m", "mpcfl.launch", "run", *arguments, "--out", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(100, process.terminate)
        watchdog.start()
        for line in process.stdout:
            if line.startswith("round  3/"):
                os.kill(rank_process(folder, 2), signal.SIGKILL)
        errors = process.stderr.read()
        watchdog.cancel()
    return process.returncode, errors


@pytest.mark.open_mpi
def test_digits_learn_on_a_sparse_ring_through_a_kill_within_the_budget(
    mpcfl_command: Command, tmp_path: Path
) -> None:
    sets = (
        "training.rounds=24",
        "privacy.spare_attempts=3",
        "aggregation.neighbors=2",
        "aggregation.modulus_bits=28",
    )
    options = [word for change in sets for word in ("--set", change)]
    out = tmp_path / "out"
    code, errors = killed_run(out, "digits", "--backend", "ring", *options)
    assert code != 0
    for word in ("east", "--resume"):
        assert word in errors
    assert "Traceback" not in errors
    resumed = mpcfl_command("run", "--resume", out, "--json")
    assert resumed.code == 0, resumed.stderr
    run = json.loads(resumed.stdout)
    assert run == json.loads((out / "run.json").read_text())
    assert run["backend"] == "ring"
    assert run["job"]["aggregation"]["neighbors"] == 2
    assert [row["round"] for row in run["rounds"]] == list(range(1, 25))
    spent = [row["epsilon"] for row in run["rounds"]]
    assert all(before < after for before, after in itertools.pairwise(spent))
    assert run["privacy"]["epsilon"] <= 4.0
    # Ten digits: chance is a tenth.
    assert run["metrics"]["accuracy"] > 0.5
    # What is sent for a sum of 650 words of 28 bits at four ranks, and a page of agreement.
    assert 6 / 4 * 650 * 28 / 8 < run["rounds"][-1]["bytes_sent"] < 60_000
