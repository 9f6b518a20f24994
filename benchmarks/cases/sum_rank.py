"""What one rank of a sum benchmark does: ``python sum_rank.py PLAN OUT``, under mpirun.

Every variant's sum is compared with the exact sum before anything is timed, and after every
value. A value is the wall clock from a barrier on, at each rank, until it holds the sum in a
vector of its own. What a precomputing session makes ahead is ready before any clock starts, so
that it slows down nobody else's value.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by numpy's libraries when they load.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402 - see above
from numpy.typing import NDArray  # noqa: E402 - see above
from sum_cell import ALLREDUCE, Cell, Variant, parse_cell  # noqa: E402 - see above

import mpcfl  # noqa: E402 - see above
from mpcfl.bench.link_speed import (  # noqa: E402 - see above
    bit_per_s,
    measure_link,
    transmitted_bytes,
)
from mpcfl.errors import ProtocolError  # noqa: E402 - see above
from mpcfl.secagg.registry import load_backend  # noqa: E402 - see above

if TYPE_CHECKING:
    from mpi4py import MPI

Vector = NDArray[Any]
# What is written down for every value, in the order of the columns that ranks send each other.
COLUMNS = ("seconds", "cpu_seconds", "bytes_sent", "kernel_bytes")
# The golden ratio in 64 bits: multiples of it are spread evenly over the ring.
_WEYL = np.uint64(0x9E3779B97F4A7C15)
# Integers up to here are exact in float32.
_FLOAT32_BITS = 24
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Contender:
    """A variant that is ready to add.

    Attributes:
        add: all ranks call it together; returns the sum in a vector of its own.
        prepare: returns once nothing is left to do before the next sum.
        bytes_sent: this rank's count so far.
        close: all ranks call it together.
        expected: the exact sum.
        setup_s: seconds to open it at this rank.
        resident: bytes of this process before that.
    """

    add: Callable[[], Vector]
    prepare: Callable[[], None]
    bytes_sent: Callable[[], int]
    close: Callable[[], None]
    expected: Vector
    setup_s: float
    resident: int


def rank_levels(rank: int, cell: Cell, bits: int) -> NDArray[np.int64]:
    """Return a rank's integers, shape (dim,); public, equal on every run, no secrets.

    They fill ``bits`` bits as far as the sum of all parties surely stays within them.
    """
    first = rank * cell.dim
    words = np.arange(first + 1, first + 1 + cell.dim, dtype=np.uint64) * _WEYL
    # Multiples alone would differ from rank to rank by a constant.
    words ^= words >> np.uint64(32)
    words *= _WEYL
    return words.view(np.int64) >> np.int64(64 - bits + (cell.parties - 1).bit_length())


def open_contender(variant: Variant, cell: Cell, comm: MPI.Intracomm) -> Contender:
    """Make a variant's vectors and open its session; all ranks call it together."""
    levels, expected = make_vectors(variant, cell, comm.Get_rank())
    if variant.backend == ALLREDUCE:
        return _open_allreduce(comm, levels, expected)
    return _open_session(variant, comm, levels, expected)


def make_vectors(variant: Variant, cell: Cell, own_rank: int) -> tuple[Vector, Vector]:
    """Return a rank's input and the exact sum of all inputs."""
    is_float = variant.backend == ALLREDUCE
    bits = _FLOAT32_BITS if is_float else variant.modulus_bits
    dtype = np.dtype(np.float32 if is_float else variant.dtype)
    total = np.zeros(cell.dim, dtype=np.int64)
    for rank in range(cell.parties):
        total += rank_levels(rank, cell, bits)
    return rank_levels(own_rank, cell, bits).astype(dtype), total.astype(dtype)


def _open_allreduce(comm: MPI.Intracomm, levels: Vector, expected: Vector) -> Contender:
    def add() -> Vector:
        total = np.empty_like(levels)
        comm.Allreduce(levels, total)
        return total

    return Contender(add, _nothing, lambda: 0, _nothing, expected, 0.0, reset_peak())


def _open_session(
    variant: Variant, comm: MPI.Intracomm, levels: Vector, expected: Vector
) -> Contender:
    load_backend(variant.backend)  # libraries are no part of a session's memory
    resident, start = reset_peak(), time.perf_counter()
    session = mpcfl.open_secure_sum(
        comm=comm,
        backend=variant.backend,
        dim=levels.size,
        modulus_bits=variant.modulus_bits,
        **variant.options,
    )
    setup_s = time.perf_counter() - start
    prepare = session.prepare if variant.options.get("precompute", False) else _nothing
    return Contender(
        add=lambda: session.sum(levels),
        prepare=prepare,
        bytes_sent=lambda: session.bytes_sent,
        close=session.close,
        expected=expected,
        setup_s=setup_s,
        resident=resident,
    )


def _nothing() -> None:
    """There is nothing to do."""


def check(name: str, contender: Contender) -> int:
    """Make a first sum; return by how many bytes this process grew since before it was opened.

    What is made ahead for the next sum counts too.

    Raises:
        ProtocolError: it is not the exact sum, at this rank.
    """
    contender.prepare()
    total = contender.add()
    contender.prepare()
    grown = peak_bytes() - contender.resident
    _require_exact(name, total, contender.expected)
    return grown


def _require_exact(name: str, total: Vector, expected: Vector) -> None:
    if total.dtype != expected.dtype or not np.array_equal(total, expected):
        raise ProtocolError(f"{name}: the sum is not the sum of the inputs; the cell is void")


def time_sum(name: str, contender: Contender, cell: Cell, barrier: Callable[[], None]) -> list[Any]:
    """Return one value at this rank, in the order of `COLUMNS`."""
    bytes_before, kernel_before = contender.bytes_sent(), transmitted_bytes(cell.interface)
    barrier()
    cpu_start, start = time.process_time(), time.perf_counter()
    total = contender.add()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    # What another rank still sends belongs to this sum.
    barrier()
    kernel = transmitted_bytes(cell.interface) - kernel_before
    _require_exact(name, total, contender.expected)
    return [seconds, cpu_seconds, contender.bytes_sent() - bytes_before, kernel]


def reset_peak() -> int:
    """Forget the largest resident set so far and return the present one, in bytes (Linux)."""
    # What was freed, but kept for later, would hide what is needed next.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident set since the last `reset_peak`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def run(cell: Cell, order: list[list[str]], comm: MPI.Intracomm) -> dict[str, Any] | None:
    """Run a cell; return what all ranks measured at rank 0, None elsewhere."""
    link = measure_link(comm, cell.addresses, bit_per_s(cell.rate)) if cell.addresses else None
    contenders, grown = {}, []
    for variant in cell.variants:
        contenders[variant.name] = contender = open_contender(variant, cell, comm)
        grown.append(check(variant.name, contender))
    rows = []
    for name in (name for block in order for name in block):
        for contender in contenders.values():
            contender.prepare()
        rows.append(time_sum(name, contenders[name], cell, comm.Barrier))
    setups = gather(comm, np.array([c.setup_s for c in contenders.values()]))
    peaks = gather(comm, np.array(grown, dtype=np.float64))
    values = gather(comm, np.array(rows).reshape(-1, len(COLUMNS)))
    for contender in contenders.values():
        contender.close()
    if setups is None or peaks is None or values is None:
        return None
    return {
        "link": None if link is None else asdict(link),
        "exact": list(contenders),
        "setup_s": dict(zip(contenders, setups.max(axis=0).tolist(), strict=True)),
        "peak_bytes": dict(zip(contenders, peaks.max(axis=0).tolist(), strict=True)),
        "values": by_variant(values, order),
    }


def gather(comm: MPI.Intracomm, own: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return all ranks' arrays at rank 0, shape (parties, ...); None elsewhere."""
    everything = np.empty((comm.Get_size(), *own.shape)) if comm.Get_rank() == 0 else None
    comm.Gather(own, everything)
    return everything


def by_variant(values: NDArray[np.float64], order: list[list[str]]) -> dict[str, Any]:
    """Sort values, shape (parties, values, columns), by variant, column and block, then rank."""
    names = [name for block in order for name in block]
    found: dict[str, Any] = {name: {column: [] for column in COLUMNS} for name in names}
    for number, name in enumerate(names):
        for index, column in enumerate(COLUMNS):
            by_rank = values[:, number, index]
            digits = by_rank.round(7) if column.endswith("seconds") else by_rank.astype(np.int64)
            found[name][column].append(digits.tolist())
    return found


def main(arguments: list[str]) -> int:
    """Run the cell of a plan at this rank; return the exit status."""
    from mpi4py import MPI  # opens MPI

    plan_file, out = (Path(argument) for argument in arguments)
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    try:
        measured = run(parse_cell(plan["cell"]), plan["order"], MPI.COMM_WORLD)
    except Exception:  # noqa: BLE001 - the edge of the process: all ranks must end
        traceback.print_exc()
        # The other ranks may wait for this one in the middle of an exchange.
        MPI.COMM_WORLD.Abort(1)
    if measured is not None:
        out.write_text(json.dumps(measured), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
