"""What every transport promises, over threads here and over real MPI processes below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpcfl.errors import PartyLost
from mpcfl.net.memory import MemoryTransport, run_parties


def check_contract(transport) -> None:
    """Run at every rank; shared with the MPI program by import."""
    rank, n = transport.rank, transport.n_ranks
    others = [r for r in range(n) if r != rank]

    for size in (0, 1, 1000, 300_001):
        gathered = transport.allgather(bytes([rank]) * size)
        assert gathered == [bytes([r]) * size for r in range(n)]

    # Messages of one pair keep their order, whatever the sizes.
    for number in range(5):
        received = transport.exchange({r: bytes([number]) * (5 - number) for r in others}, others)
        assert received == {r: bytes([number]) * (5 - number) for r in others}

    # One-way traffic: only the next rank is told.
    following, previous = (rank + 1) % n, (rank - 1) % n
    if n > 1:
        received = transport.exchange({following: b"on"}, [previous])
        assert received == {previous: b"on"}

    for dim in (1, 2, 7, 10_000):
        mine = np.arange(dim, dtype=np.uint64) * np.uint64(rank + 1) - np.uint64(5)
        want = sum(
            (np.arange(dim, dtype=np.uint64) * np.uint64(r + 1) - np.uint64(5)) for r in range(n)
        )
        assert np.array_equal(transport.allreduce(mine.copy()), want), dim

    before = transport.meter.bytes_sent
    transport.allgather(b"x" * 100)
    assert transport.meter.bytes_sent - before == 100 * len(others)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_threads_keep_the_contract(n: int) -> None:
    run_parties(n, check_contract)


def test_a_failure_reaches_all_threads_and_is_the_one_reported() -> None:
    def party(transport: MemoryTransport) -> None:
        if transport.rank == 1:
            raise KeyError("the cause")
        transport.allgather(b"")

    with pytest.raises(KeyError, match="the cause"):
        run_parties(3, party)


def test_silence_ends_at_the_deadline_and_names_the_party() -> None:
    def party(transport: MemoryTransport) -> None:
        if transport.rank == 0:
            transport.exchange({}, [1])

    with pytest.raises(PartyLost, match="party 1 sent nothing") as caught:
        run_parties(2, party, deadline_s=0.1)
    assert caught.value.ranks == (1,)


PROGRAM = """
import importlib.util, sys
from mpi4py import MPI
import mpcfl.net.mpi as mpi
spec = importlib.util.spec_from_file_location("contract", {contract!r})
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)
transport = mpi.MpiTransport(MPI.COMM_WORLD, 20.0, duplicate={duplicate})
contract.check_contract(transport)
# The same with messages in many pieces, as above 256 MiB.
mpi._PIECE_BYTES = 64
contract.check_contract(transport)
transport.close()
transport.close()
MPI.COMM_WORLD.Barrier()
print("kept", transport.rank)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("duplicate", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_mpi_keeps_the_contract(mpirun, tmp_path: Path, n: int, duplicate: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(contract=__file__, duplicate=duplicate))
    done = mpirun(n, program, timeout_s=60)
    assert done.code == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == sorted(["", *(f"kept {r}" for r in range(n))])


LOSS = """
import os, sys, time
from mpi4py import MPI
import numpy as np
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
transport = MpiTransport(MPI.COMM_WORLD, 3.0, ["north", "south", "east"])
transport.allgather(b"")
if transport.rank == 1:
    {fate}
start = time.monotonic()
try:
    while True:
        {call}
except PartyLost as error:
    waited = time.monotonic() - start
    print(f"{{transport.rank}}|{{waited:.1f}}|{{error}}|{{error.ranks}}", flush=True)
    # One after the other: mpirun may hang when two ranks abort in the same moment.
    time.sleep(1.0 + transport.rank)
    MPI.COMM_WORLD.Abort(9)
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    "call", ["transport.allgather(b'x')", "transport.allreduce(np.zeros(100_000, np.uint64))"]
)
@pytest.mark.parametrize(
    ("fate", "words", "at_most_s"),
    [
        ("os.kill(os.getpid(), 9)", "south (rank 1) died", 2.0),
        ("time.sleep(60)", "south (rank 1) did not answer within 3 s", 5.0),
    ],
)
def test_mpi_names_a_dead_and_a_silent_party(
    mpirun, tmp_path: Path, call: str, fate: str, words: str, at_most_s: float
) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOSS.format(fate=fate, call=call))
    done = mpirun(3, program, timeout_s=60)
    assert done.code != 0
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert {line[0] for line in told} == {"0", "2"}, done.stdout + done.stderr
    for _, seconds, text, ranks in told:
        assert words in text
        assert ranks == "(1,)"
        assert float(seconds) < at_most_s


BORROWED = """
from mpi4py import MPI
from mpcfl.net.mpi import MpiTransport

class Watched(MPI.Intracomm):
    made = []
    def Dup(self, *arguments):
        raise AssertionError("a blocking call")
    def Idup(self, *arguments):
        self.made.append("a duplicate")
        return super().Idup(*arguments)
    def Set_errhandler(self, *arguments):
        self.made.append("a handler")
        return super().Set_errhandler(*arguments)

comm = Watched(MPI.COMM_WORLD)
MpiTransport(comm).close()
assert not comm.made, comm.made
comm.Set_errhandler(MPI.ERRORS_ARE_FATAL)
MpiTransport(comm, duplicate=True).close()
assert comm.Get_errhandler() == MPI.ERRORS_ARE_FATAL, "the user's handler was changed"
MpiTransport(comm)
assert comm.Get_errhandler() == MPI.ERRORS_RETURN
comm.Barrier()
print("as it was", flush=True)
"""


@pytest.mark.mpi
def test_mpi_borrows_the_communicator_unless_told_to_duplicate_it(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BORROWED)
    done = mpirun(2, program, timeout_s=60)
    assert done.code == 0, done.stderr
    assert done.stdout.split("\n") == ["as it was", "as it was", ""]


ALONE = """
import time
from mpi4py import MPI
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
if MPI.COMM_WORLD.rank == 1:
    time.sleep(60)
start = time.monotonic()
try:
    MpiTransport(MPI.COMM_WORLD, 1.0, ["north", "south"], duplicate=True)
except PartyLost as error:
    print(f"{time.monotonic() - start:.1f}|{error}|{error.ranks}", flush=True)
    MPI.COMM_WORLD.Abort(9)
"""


@pytest.mark.mpi
def test_mpi_duplicate_has_a_deadline(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ALONE)
    done = mpirun(2, program, timeout_s=30)
    assert done.stdout, done.stderr
    seconds, text, ranks = done.stdout.splitlines()[0].split("|")
    assert 1.0 <= float(seconds) < 3.0
    assert "south (rank 1) did not answer within 1 s" in text
    assert ranks == "(1,)"


LATE = """
import gc, time, weakref
from mpi4py import MPI
import numpy as np
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
comm = MPI.COMM_WORLD
transport = MpiTransport(comm, 0.5, duplicate=True)
comm.Barrier()
size = 1_000_000  # far above what MPI sends without asking the receiver
outgoing, incoming = np.full(size, comm.rank + 7, np.uint64), np.zeros(size, np.uint64)
if comm.rank == 1:
    comm.Barrier()  # the other rank has given up and forgotten all
    transport.deadline_s = 20.0
    transport._swap({0: outgoing}, {0: incoming})
    assert incoming.min() == incoming.max() == 7, incoming
else:
    watched = [weakref.ref(outgoing), weakref.ref(incoming)]
    try:
        transport._swap({1: outgoing}, {1: incoming})
    except PartyLost:
        transport.close()
    del outgoing, incoming, transport
    gc.collect()
    assert all(array() is not None for array in watched), "MPI writes into freed memory"
    comm.Barrier()
print("done", flush=True)
comm.Barrier()
"""


@pytest.mark.mpi
def test_mpi_keeps_what_a_failed_exchange_left_open(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LATE)
    done = mpirun(2, program, timeout_s=60)
    assert done.code == 0, done.stderr
    assert done.stdout.split("\n") == ["done", "done", ""]
