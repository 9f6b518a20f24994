"""Which MPI carries this run, and whether the other ranks outlive one that dies.

Only Open MPI 5 under `mpirun --with-ft ulfm` keeps the others alive here. Elsewhere, under MPICH
for one, the death of a rank ends all of them, and a run goes on by being resumed.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpi4py import MPI

# What Open MPI's mpirun tells its ranks by `--with-ft ulfm`.
_FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"
_OFF = ("", "0", "false", "no")


def mpi_name() -> str:
    """Return the name and version of the MPI that this process has loaded."""
    vendor, numbers = MPI.get_vendor()
    return f"{vendor} {'.'.join(map(str, numbers))}"


def survives_losses(environment: Mapping[str, str]) -> bool:
    """Tell whether ranks go on when one of them dies.

    Args:
        environment: of this process, as its launcher made it.
    """
    asked = environment.get(_FAULT_TOLERANCE, "").lower() not in _OFF
    return asked and MPI.get_vendor()[0] == "Open MPI"
