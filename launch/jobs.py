"""Find a job: a file, or the name of a packaged one."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from mpcfl.errors import ConfigError


def packaged_jobs() -> dict[str, Path]:
    """Return the packaged job files by name."""
    folder = Path(str(files("mpcfl.launch"))) / "jobs"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_job(job: str) -> Path:
    """Return the path of a job file.

    Raises:
        ConfigError: there is no such file, and no packaged job of that name.
    """
    path = Path(job)
    if path.is_file():
        return path
    known = packaged_jobs()
    if job in known:
        return known[job]
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"packaged jobs are {', '.join(known)}"
    raise ConfigError(f"{job}: no such job file, and no packaged job of that name; {hint}")
