"""Every backend over real MPI processes: equal sums, and errors at every rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MPIRUN = Path(sys.executable).parent / "mpirun"
OPTIONS = "--allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1"

SUMS = """
import numpy as np
from mpi4py import MPI
import mpcfl

comm = MPI.COMM_WORLD
levels = np.arange(-3, 4) * (comm.rank + 1) * 300_000_000
levels = ((levels + 2**31) % 2**32 - 2**31).astype(np.int32)
totals = {}
for backend in ("plain", "crypten", "crypten-stock", "phe", "crypten-stock"):
    opened = mpcfl.open_secure_sum(comm=comm, backend=backend, dim=7, key_bits=2048)
    with opened as secure:
        first, second = secure.sum(levels), secure.sum(levels)
        assert first.dtype == np.int32
        assert secure.bytes_sent > 0
        assert np.array_equal(first, second), backend
    totals[backend] = first
assert all(np.array_equal(total, totals["plain"]) for total in totals.values()), totals
assert np.array_equal(mpcfl.secure_sum(levels, comm=comm), totals["plain"])
print("rank", comm.rank, "agrees", flush=True)
"""

REFUSALS = """
import numpy as np
from mpi4py import MPI
import mpcfl
from mpcfl.errors import ProtocolError, WrapDetected

comm = MPI.COMM_WORLD
levels = np.array([2**40 if comm.rank == 1 else 1])
with mpcfl.open_secure_sum(comm=comm, backend="crypten", dim=1) as secure:
    try:
        secure.sum(levels)
    except WrapDetected:
        assert comm.rank == 1
        print("rank", comm.rank, "refused", flush=True)
    except ProtocolError as error:
        assert "rank 1 refused" in str(error)
        print("rank", comm.rank, "refused", flush=True)
first = mpcfl.open_secure_sum(comm=comm, backend="crypten-stock", dim=1)
try:
    mpcfl.open_secure_sum(comm=comm, backend="crypten-stock", dim=1)
except mpcfl.errors.BackendUnavailable:
    print("rank", comm.rank, "one at a time", flush=True)
first.close()
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
        assert f"rank {rank} refused" in done.stdout
        assert f"rank {rank} one at a time" in done.stdout
