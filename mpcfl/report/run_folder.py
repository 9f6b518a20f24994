"""The folder of one run: where each result goes, and the promise that nothing is overwritten."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.report.atomic import open_atomically


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run's results, all inside ``path``."""

    path: Path

    @property
    def job_json(self) -> Path:
        """The job as it was run, defaults included."""
        return self.path / "job.json"

    @property
    def run_json(self) -> Path:
        """The `RunRecord`."""
        return self.path / "run.json"

    @property
    def model_pt(self) -> Path:
        """The last model, as ``torch.load(..., weights_only=True)`` reads it."""
        return self.path / "model.pt"

    @property
    def saved_model(self) -> Path:
        """The last model in the form of its ecosystem, where the task has one."""
        return self.path / "model"

    @property
    def report_html(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def threshold_key(self) -> Path:
        """The fingerprint of the key that the parties brought shares of, where they did."""
        return self.path / "threshold-key.txt"

    @property
    def run_id(self) -> Path:
        """Which run it is, as the parties agreed when it began; equal on all hosts."""
        return self.path / "run-id.txt"

    @property
    def party_files_note(self) -> Path:
        """Is there if the parties knew each other by their party files when the run began."""
        return self.path / "party-files.txt"

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoint, and of what is known of the rounds before it."""
        return self.path / "checkpoint"

    @property
    def rounds_jsonl(self) -> Path:
        """The `RoundRecord` of every round, as soon as it is over."""
        return self.checkpoint / "rounds.jsonl"

    def read_job(self) -> Job:
        """Return the job of this run.

        Raises:
            ConfigError: it can't be read, or is none.
        """
        try:
            document = json.loads(self.job_json.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{self.job_json}: can't read the job: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{self.job_json}: not a JSON file: {error}") from None
        return parse_job(document, str(self.job_json))

    def ledger_jsonl(self, party: int) -> Path:
        """Return the privacy ledger of a party; its folder is made at the first call."""
        path = self.path / "ledger" / f"party-{party}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return path

    def transcript_jsonl(self, party: int) -> Path:
        """Return the public transcript of a party's attempts; its folder is made at the first."""
        path = self.path / "transcript" / f"party-{party}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return path

    def save_model(self, state_dict: Mapping[str, Any]) -> None:
        """Write the model; an older one stays until the new one is whole."""
        import torch  # a benchmark, which shares this module, must not pay for torch

        with open_atomically(self.model_pt) as stream:
            torch.save(dict(state_dict), stream)


class RunLock:
    """Keeps other runs out of a folder as long as this process lives, or until `close`."""

    __slots__ = ("_descriptor",)

    def __init__(self, folder: RunFolder, *, probe: bool = False) -> None:
        """Take the lock; `job.json`, which every run has and none rewrites, carries it.

        Args:
            folder: of the run.
            probe: only see whether another process has it; several may look at once.

        Raises:
            ConfigError: another process has it, or there is no run.
        """
        try:
            # Whoever only looks may not be allowed to write.
            access = os.O_RDONLY if probe else os.O_RDWR
            self._descriptor = os.open(folder.job_json, access | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{folder.job_json}: can't open it: {error.strerror}") from None
        try:
            kind = fcntl.LOCK_SH if probe else fcntl.LOCK_EX
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(
                f"the run in {folder.path} is still going; wait until it ends, or end it"
            ) from None

    def close(self) -> None:
        """Let others in; harmless if called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def require_resumable(path: Path) -> RunFolder:
    """Return the folder of a run that can be continued; changes nothing.

    Raises:
        ConfigError: there is no run, no checkpoint, or the run is still going.
    """
    folder = RunFolder(path)
    if not folder.job_json.is_file():
        raise ConfigError(
            f"{path} holds no run to resume (there is no {folder.job_json.name}); name the folder "
            "that a run printed as its output"
        )
    RunLock(folder, probe=True).close()
    if not folder.checkpoint.is_dir():
        raise ConfigError(
            f"the run in {path} has no checkpoint: it was stopped before its first round began, or "
            "by a version of mpcfl that wrote none; start the job again with a new --out (what "
            "its ledgers say is spent)"
        )
    return folder


def fresh_run_path(task: str) -> Path:
    """Return a name for a new run's folder: ``runs/<task>-<UTC time>-<4 hex digits>``."""
    name = "".join(character if character.isalnum() else "-" for character in task)
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def open_run_folder(path: Path) -> RunFolder:
    """Make the folder of a new run, or take one that is there and empty.

    Raises:
        ConfigError: the folder is not empty, not a folder, or can't be written.
    """
    claim_empty_folder(path)
    return RunFolder(path)


def require_vacant(path: Path) -> None:
    """Refuse a path that holds anything; makes nothing.

    Raises:
        ConfigError: names the path and the remedy.
    """
    try:
        occupied = next(path.iterdir(), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error) from None
    if occupied is not None:
        raise ConfigError(
            f"the output folder {path} is not empty (it holds {occupied.name}); nothing is "
            "overwritten: choose a new folder with --out"
        )


def claim_empty_folder(path: Path) -> None:
    """Make ``path`` and its parents; refuse a folder that holds anything or can't be written.

    Raises:
        ConfigError: names the folder and the remedy.
    """
    require_vacant(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permission bits tell little (root, read-only mounts), so a file is really made.
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"can't write to the output folder {path}: {error.strerror}; choose another one with --out"
    )
