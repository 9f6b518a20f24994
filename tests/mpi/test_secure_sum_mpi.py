"""Every backend over real MPI processes: equal sums, and errors at every rank."""

import os
import subprocess
import sys

import pytest

from mpcfl.launch.mpi_line import MpiKind, kind_of
from mpcfl.launch.mpirun import find_mpirun

MPIRUN = find_mpirun()
OPTIONS = "--allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1"
if kind_of(MPIRUN) is MpiKind.MPICH:
    OPTIONS = ""

SUMS = """
import numpy as np
from mpi4py import MPI
import mpcfl

comm = MPI.COMM_WORLD
levels = np.arange(-3, 4) * (comm.rank + 1) * 300_000_000
levels = ((levels + 2**31) % 2**32 - 2**31).astype(np.int32)
# These sums wrap around, which a check would refuse.
unchecked = {"checked": False}
totals = {}
for backend in ("plain", "ring", "crypten", "crypten-stock", "phe", "crypten-stock"):
    opened = mpcfl.open_secure_sum(
        comm=comm, backend=backend, dim=7, key_bits=2048, precompute=comm.rank > 0, **unchecked
    )
    with opened as secure:
        first = secure.sum(levels)
        secure.prepare()
        second = secure.sum(levels)
        assert first.dtype == np.int32
        assert secure.bytes_sent > 0
        assert np.array_equal(first, second), backend
    totals[backend] = first
assert all(np.array_equal(total, totals["plain"]) for total in totals.values()), totals
assert np.array_equal(mpcfl.secure_sum(levels, comm=comm, **unchecked), totals["plain"])
within = mpcfl.secure_sum(levels // 4, comm=comm)
assert np.array_equal(within, sum(comm.allgather(levels // 4)))
print("rank", comm.rank, "agrees", flush=True)
"""

REFUSALS = """
import numpy as np
from mpi4py import MPI
import mpcfl
from mpcfl.errors import ConfigError, ProtocolError, WrapDetected

comm = MPI.COMM_WORLD
levels = np.array([2**40 if comm.rank == 1 else 1])
for backend in ("ring", "crypten"):
    with mpcfl.open_secure_sum(comm=comm, backend=backend, dim=1, precompute=True) as secure:
        try:
            secure.sum(levels)
        except WrapDetected:
            assert comm.rank == 1
            print("rank", comm.rank, "refused with", backend, flush=True)
        except ProtocolError as error:
            assert "rank 1 refused" in str(error)
            print("rank", comm.rank, "refused with", backend, flush=True)
        assert secure.sum(np.array([comm.rank])).tolist() == [3]
first = mpcfl.open_secure_sum(comm=comm, backend="crypten-stock", dim=1)
try:
    mpcfl.open_secure_sum(comm=comm, backend="crypten-stock", dim=1)
except mpcfl.errors.BackendUnavailable:
    print("rank", comm.rank, "one at a time", flush=True)
first.close()
try:
    deadline_s = "soon" if comm.rank == 1 else 20
    mpcfl.open_secure_sum(comm=comm, backend="plain", dim=1, deadline_s=deadline_s)
except ConfigError:
    assert comm.rank == 1
    print("rank", comm.rank, "heard of the deadline", flush=True)
except ProtocolError as error:
    assert "rank 1 refused" in str(error)
    print("rank", comm.rank, "heard of the deadline", flush=True)
with mpcfl.open_secure_sum(comm=comm, backend="plain", dim=1, deadline_s=7) as secure:
    assert secure._transport.deadline_s == 7
    # A communicator of the user's stays the user's: its messages don't meet ours.
    comm.Isend(np.array([5]), dest=(comm.rank + 1) % comm.size, tag=1)
    assert secure.sum(np.array([comm.rank])).tolist() == [3]
    inbox = np.zeros(1, int)
    comm.Recv(inbox, source=(comm.rank - 1) % comm.size, tag=1)
    assert inbox.tolist() == [5]
"""

SILENT = """
import time
import numpy as np
from mpi4py import MPI
import mpcfl
from mpcfl.errors import OutOfOrder, PartyLost

comm = MPI.COMM_WORLD
secure = mpcfl.open_secure_sum(comm=comm, backend="plain", dim=1, deadline_s=1)
if comm.rank == 0:
    for error in (PartyLost, OutOfOrder):
        try:
            print("wrong sum", secure.sum(np.array([100])), flush=True)
        except error:
            print("rank 0", error.__name__, flush=True)
else:
    time.sleep(2)
    try:
        print("wrong sum", secure.sum(np.array([10])), flush=True)
    except PartyLost:
        print("rank 1 PartyLost", flush=True)
secure.close()
print("rank", comm.rank, "closed", flush=True)
time.sleep(3 - 2 * comm.rank)
comm.Abort(3)
"""


def run_ranks(n_ranks, program, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(program)
    command = [MPIRUN, *OPTIONS.split(), "-n", str(n_ranks), sys.executable, str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.mpi
def test_all_backends_give_equal_sums_over_mpi(tmp_path):
    done = run_ranks(3, SUMS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("crypten-*")), "gloo's meeting place was left behind"
    assert sorted(done.stdout.split("\n")[:3]) == [f"rank {rank} agrees" for rank in range(3)]


@pytest.mark.mpi
def test_refused_vector_or_second_stock_session_is_an_error_at_every_rank(tmp_path):
    done = run_ranks(3, REFUSALS, tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        for backend in ("ring", "crypten"):
            assert f"rank {rank} refused with {backend}\n" in done.stdout
        assert f"rank {rank} one at a time" in done.stdout
        assert f"rank {rank} heard of the deadline" in done.stdout


@pytest.mark.mpi
def test_rank_that_came_late_gives_no_sum_at_any_rank(tmp_path):
    done = run_ranks(2, SILENT, tmp_path)
    said = [line for line in done.stdout.splitlines() if line.startswith(("rank", "wrong"))]
    expected = ["rank 0 PartyLost", "rank 0 OutOfOrder", "rank 0 closed"]
    assert sorted(said) == sorted([*expected, "rank 1 PartyLost", "rank 1 closed"]), done.stderr
