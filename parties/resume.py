"""Which job a rank runs: the one that was named, or the one whose folder is to be continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcfl.config import Job, load_job
from mpcfl.errors import ConfigError
from mpcfl.report.run_folder import RunFolder, require_resumable

_SHOWN_KEYS = 5


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asked to run.

    Attributes:
        job: the job file; None only where a run is resumed.
        resume: the folder of the run to continue, if one is.
        out: a folder for a new run's results.
    """

    job: Path | None
    overrides: Sequence[str] = ()
    parties: int | None = None
    resume: Path | None = None
    out: Path | None = None

    def load(self) -> Job:
        """Return the job.

        Raises:
            ConfigError: nothing was named, the job is wrong, or it is not that of the run which
                is to be continued; the text names the keys that differ.
        """
        if self.resume is None:
            if self.job is None:
                raise ConfigError("name a JOB, or the folder of a run with --resume")
            return load_job(self.job, self.overrides, self.parties)
        if self.out is not None:
            raise ConfigError(
                "--out can't be given with --resume: a resumed run goes on in its own folder"
            )
        folder = require_resumable(self.resume)
        saved = folder.read_job()
        if self.job is not None:
            _require_same(saved, load_job(self.job, self.overrides, self.parties), folder)
        elif self.overrides or self.parties is not None:
            raise ConfigError(
                "a run that is resumed keeps its job; leave -n, --set and --backend out, or name "
                "the JOB as well to have it compared"
            )
        return saved


def _require_same(saved: Job, asked: Job, folder: RunFolder) -> None:
    if saved.digest() == asked.digest():
        return
    before, now = (dict(_flat(job.model_dump(mode="json"))) for job in (saved, asked))
    keys = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    changes = [f"{key} (was {before.get(key)!r}, is {now.get(key)!r})" for key in sorted(keys)]
    more = ["and others"] if len(changes) > _SHOWN_KEYS else []
    raise ConfigError(
        f"this is not the job of {folder.path}, it differs in "
        f"{', '.join(changes[:_SHOWN_KEYS] + more)}; leave JOB and its options out to resume, or "
        "start a new run with --out"
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
