"""The folder of one run: where each result goes, and the promise that nothing is overwritten."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    def report_html(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    def ledger_jsonl(self, party: int) -> Path:
        """Return the privacy ledger of a party; its folder is made at the first call."""
        path = self.path / "ledger" / f"party-{party}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return path

    def save_model(self, state_dict: Mapping[str, Any]) -> None:
        """Write the model; an older one stays until the new one is whole."""
        import torch  # a benchmark, which shares this module, must not pay for torch

        with open_atomically(self.model_pt) as stream:
            torch.save(dict(state_dict), stream)


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
