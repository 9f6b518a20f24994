"""The program of one rank of a benchmark cell: ``python -m mpcfl.bench.cell CELL OUT``.

Started by a launcher under mpirun, one process per party and aggregator. Rank 0 writes OUT: a
`CellResult` with the measurement, or the rank that failed first writes one with the reason.
Between hosts, the link is measured first, by the same processes.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict, TypeAdapter

from mpcfl.bench.record import MeasuredLink, Measurement
from mpcfl.errors import MpcflError

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpcfl.bench.cells import Cell

# Read by numpy's and torch's libraries when they load, hence set before either is imported.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "YACL_NUM_THREADS",
)


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a launch leaves behind: a measurement, or the reason why there is none.

    Attributes:
        link: that the ranks were on; None in shared memory, and where the launch failed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    measured: Measurement | None
    versions: dict[str, str]
    failure: str | None
    link: MeasuredLink | None = None

    def to_json(self) -> str:
        """Return the result as JSON."""
        return _ADAPTER.dump_json(self).decode()


_ADAPTER: TypeAdapter[CellResult] = TypeAdapter(CellResult)


def parse_result(text: str) -> CellResult:
    """Read what `CellResult.to_json` wrote."""
    return _ADAPTER.validate_json(text)


def main(arguments: list[str]) -> int:
    """Run one cell at this rank; return the exit status."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m mpcfl.bench.cell CELL.json OUT.json (under mpirun)\n")
        return 2
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"
    from mpi4py import MPI  # opens MPI, which importing this module must not do

    cell_file, out = (Path(argument) for argument in arguments)
    try:
        _run(cell_file, out, MPI.COMM_WORLD)
    except Exception as error:  # noqa: BLE001 - the edge of the process: all ranks must end
        traceback.print_exc()
        _write_failure(out, error)
        # The other ranks may wait for this one in the middle of an exchange.
        MPI.COMM_WORLD.Abort(1)
    return 0


def _run(cell_file: Path, out: Path, comm: MPI.Intracomm) -> None:
    from mpcfl.bench.cells import parse_cell
    from mpcfl.bench.machine import loaded_versions
    from mpcfl.bench.measure import measure
    from mpcfl.net.mpi import MpiTransport
    from mpcfl.report.atomic import write_atomically

    cell = parse_cell(cell_file.read_text(encoding="utf-8"))
    _require_ranks(cell, comm.Get_size())
    transport = MpiTransport(comm, deadline_s=cell.timeout_s)
    link = measure_link_of(cell, comm)
    measured = measure(cell, transport)
    if transport.rank == 0:
        result = CellResult(measured, loaded_versions(), failure=None, link=link)
        write_atomically(out, result.to_json())


def measure_link_of(cell: Cell, comm: MPI.Intracomm) -> MeasuredLink | None:
    """Return what the link is at rank 0; None elsewhere, and where there is none.

    Raises:
        MpcflError: the cell needs hosts and has none.
    """
    if not cell.needs_hosts:
        return None
    from mpcfl.bench.link_speed import bit_per_s, measure_link

    if not cell.interface:
        raise MpcflError(
            f"the cell asks for a link of {cell.parameters.link}, and its launcher made no hosts; "
            "run it by mpcfl bench"
        )
    found = measure_link(comm, cell.addresses, bit_per_s(cell.parameters.link))
    return None if found is None else MeasuredLink("tbf", cell.delay, **asdict(found))


def _require_ranks(cell: Cell, n_ranks: int) -> None:
    if n_ranks != cell.n_ranks:
        raise MpcflError(
            f"the cell needs {cell.n_ranks} MPI ranks, found {n_ranks}; start it with "
            f"mpirun -n {cell.n_ranks}"
        )


def _write_failure(out: Path, error: Exception) -> None:
    """Leave the reason for the launcher; the first rank that fails knows it best."""
    reason = str(error) if isinstance(error, MpcflError) else f"{type(error).__name__}: {error}"
    result = CellResult(measured=None, versions={}, failure=reason)
    with suppress(OSError), out.open("x", encoding="utf-8") as stream:
        stream.write(result.to_json())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
