"""What one rank of a Paillier benchmark does: ``python paillier_rank.py PLAN OUT``, under mpirun.

A session of a few coordinates comes first, and its sum is compared with the exact one. Then the
session of the cell is opened, which is the set-up, and summed in: once, or as often as it says.
Processor seconds are those of all threads of a rank (and of children it waited for) from a
barrier on until every rank has come to the next one, so waiting is in them. Every sum is compared
with the exact one before its value counts, after its clock has stopped.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by numpy's libraries when they load.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402 - see above
from numpy.typing import NDArray  # noqa: E402 - see above
from paillier_cell import CLIENTS, KERNEL, Round  # noqa: E402 - see above
from paillier_without_kernel import choose_arithmetic  # noqa: E402 - see above
from sum_rank import peak_bytes, reset_peak  # noqa: E402 - see above

from mpcfl.config import Custody  # noqa: E402 - see above
from mpcfl.errors import ProtocolError  # noqa: E402 - see above
from mpcfl.net.mpi import MpiTransport  # noqa: E402 - see above
from mpcfl.secagg.base import BackendFactory, SecureSum, SumSettings  # noqa: E402 - see above
from mpcfl.secagg.registry import load_backend  # noqa: E402 - see above

if TYPE_CHECKING:
    from mpi4py import MPI

Vector = NDArray[np.int64]
# Values fill these bits, and the sum is taken mod 2^16: nothing is left unused.
BITS = 16
_CHECKED_DIM = 20
# The golden ratio in 64 bits: multiples of it are spread evenly over the ring.
_WEYL = np.uint64(0x9E3779B97F4A7C15)
# Values that are compared at a time, so that comparing takes little memory.
_PIECE = 1 << 17


class CountingTransport(MpiTransport):
    """The transport over MPI, with a count of the bytes that go to each rank."""

    def __init__(self, comm: MPI.Intracomm, deadline_s: float) -> None:
        super().__init__(comm, deadline_s)
        self.sent_to = [0] * comm.Get_size()

    def exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """See `Transport.exchange`."""
        for target, message in outgoing.items():
            self.sent_to[target] += len(message)
        return super().exchange(outgoing, sources)


def levels(rank: int, indices: slice) -> Vector:
    """Return a rank's integers at some indices; public, equal on every run, no secrets."""
    # A prime far above every length keeps the ranks apart.
    first = rank * 1_000_000_007 + 1
    words = np.arange(first + indices.start, first + indices.stop, dtype=np.uint64) * _WEYL
    # Multiples alone would differ from rank to rank by a constant.
    words ^= words >> np.uint64(32)
    words *= _WEYL
    return words.view(np.int64) >> np.int64(64 - BITS)


def require_exact(opened: Any, cell: Round, dim: int) -> None:
    """Compare a sum with the exact one, piece by piece.

    Raises:
        ProtocolError: they differ.
    """
    right = opened.shape == (dim,) and opened.dtype == np.int64
    for start in range(0, dim if right else 0, _PIECE):
        indices = slice(start, min(start + _PIECE, dim))
        total = sum((levels(rank, indices) for rank in range(cell.parties)), np.int64(0))
        centred = (total + (1 << (BITS - 1))) % (1 << BITS) - (1 << (BITS - 1))
        right = right and bool(np.array_equal(opened[indices], centred))
    if not right:
        raise ProtocolError(f"{cell.name}: the sum is not the sum of the inputs; the cell is void")


class Party:
    """One rank: its transport, its data and its open session."""

    def __init__(self, cell: Round, transport: CountingTransport) -> None:
        self.cell, self.transport = cell, transport
        self.has_data = cell.custody != CLIENTS or transport.rank < transport.n_ranks - 1

    def run(self) -> list[dict[str, Any]]:
        """Return what each rank measured; all ranks call it together."""
        factory = load_backend(self.cell.backend)
        self._check(factory)
        own = levels(self.transport.rank, slice(0, self.cell.dim)) if self.has_data else None
        resident = reset_peak()
        before = self._barrier()
        session = factory(self.transport, self._settings(self.cell.dim))
        setup = _since(before, self._barrier())
        sums = [self._time_sum(session, own)]
        grown = peak_bytes() - resident
        sums += [self._time_sum(session, own) for _ in range(self.cell.sums)]
        session.close()
        own_numbers = {"setup": setup, "sums": sums, "grown_bytes": grown, "resident": resident}
        gathered = self.transport.allgather(json.dumps(own_numbers).encode())
        return [json.loads(message) for message in gathered]

    def _check(self, factory: BackendFactory) -> None:
        dim = min(_CHECKED_DIM, self.cell.dim)
        session = factory(self.transport, self._settings(dim))
        own = levels(self.transport.rank, slice(0, dim)) if self.has_data else None
        opened = session.open(session.aggregate(session.protect(own)))
        session.close()
        if self.has_data:
            require_exact(opened, self.cell, dim)
        self.transport.allgather(b"")

    def _settings(self, dim: int) -> SumSettings:
        # Rank 0 names the session; the id is public and only has to be fresh.
        run_id = self.transport.allgather(secrets.token_hex(16).encode())[0].decode()
        return SumSettings(
            dim=dim,
            modulus_bits=BITS,
            key_bits=self.cell.key_bits,
            custody=Custody(self.cell.custody),
            run_id=run_id,
            precompute=self.cell.precompute,
        )

    def _barrier(self) -> dict[str, float]:
        self.transport.allgather(b"")  # the ranks that wait in it sleep
        spent = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in spent)
        return {"seconds": time.perf_counter(), "cpu_seconds": cpu_seconds}

    def _time_sum(self, session: SecureSum, own: Vector | None) -> dict[str, Any]:
        session.prepare()
        sent_before = list(self.transport.sent_to)
        metered_before = self.transport.meter.bytes_sent
        before = self._barrier()
        opened = session.open(session.aggregate(session.protect(own)))
        found: dict[str, Any] = _since(before, self._barrier())
        pairs = zip(self.transport.sent_to, sent_before, strict=True)
        found["sent_to"] = [after - earlier for after, earlier in pairs]
        # More than the line above if a backend sends past `exchange`.
        found["bytes_sent"] = self.transport.meter.bytes_sent - metered_before
        if self.has_data:
            require_exact(opened, self.cell, self.cell.dim)
        return found


def _since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, Any]:
    return {name: round(now[name] - before[name], 6) for name in before}


def main(arguments: list[str]) -> int:
    """Run the cell of a plan at this rank; return the exit status."""
    from mpi4py import MPI  # opens MPI

    plan_file, out = (Path(argument) for argument in arguments)
    cell = Round(**json.loads(plan_file.read_text(encoding="utf-8")))
    try:
        arithmetic = choose_arithmetic(cell.arithmetic == KERNEL)
        transport = CountingTransport(MPI.COMM_WORLD, cell.timeout_s)
        ranks = Party(cell, transport).run()
    except Exception:  # noqa: BLE001 - the edge of the process: all ranks must end
        traceback.print_exc()
        # The other ranks may wait for this one in the middle of an exchange.
        MPI.COMM_WORLD.Abort(1)
    if transport.rank == 0:
        out.write_text(json.dumps({"arithmetic": arithmetic, "ranks": ranks}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
