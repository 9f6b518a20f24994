"""What a shell offers while somebody types: jobs, backends, grids and the keys of a job.

Called anew at every press of the key, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

# Of `mpcfl.secagg.registry`, which would load all that sums need.
_BACKENDS = "mpcfl.backends"


def complete_job(incomplete: str) -> list[str]:
    """Return packaged jobs and job files that begin so."""
    return [*_packaged("mpcfl.launch", "jobs", incomplete), *_toml_files(incomplete)]


def complete_grid(incomplete: str) -> list[str]:
    """Return packaged grids and grid files that begin so."""
    return [*_packaged("mpcfl.grids", "", incomplete), *_toml_files(incomplete)]


def complete_backend(incomplete: str) -> list[str]:
    """Return registered backends that begin so."""
    return _beginning({entry.name for entry in entry_points(group=_BACKENDS)}, incomplete)


def complete_key(incomplete: str) -> list[str]:
    """Return keys of a job file, as ``--set`` takes them, that begin so."""
    from mpcfl.config import Job

    return _beginning((f"{key}=" for key in _keys(Job)), incomplete)


def _keys(table: Any, prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        elif name != "task_options":
            yield prefix + name


def _packaged(package: str, folder: str, incomplete: str) -> list[str]:
    names = (path.stem for path in (Path(str(files(package))) / folder).glob("*.toml"))
    return _beginning(names, incomplete)


def _toml_files(incomplete: str) -> list[str]:
    """Return TOML files, and folders on the way to some, that begin so."""
    typed, slash, begin = incomplete.rpartition("/")
    folder = Path(typed + slash) if slash else Path()
    found = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    for path in entries:
        # Hidden ones only where a dot was typed.
        if path.name.startswith(".") and not begin.startswith("."):
            continue
        if path.is_dir() or path.suffix == ".toml":
            found.append(typed + slash + path.name + ("/" if path.is_dir() else ""))
    return _beginning(found, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
