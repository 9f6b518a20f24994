"""A party's own key share from a ceremony: where it lies, and whether it suits the job."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mpcfl.config import Custody, Job
from mpcfl.errors import ConfigError
from mpcfl.report.run_folder import RunFolder
from mpcfl.secagg.base import BackendFactory
from mpcfl.secagg.custody import resolve_threshold
from mpcfl.secagg.registry import load_backend


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where this party's key share lies, and its passphrase; None where rank 0 deals shares.

    Raises:
        ConfigError: one is given without the other.
    """

    folder: Path | None = None
    passphrases: Path | None = None

    def __post_init__(self) -> None:
        if (self.folder is None) != (self.passphrases is None):
            raise ConfigError("--keys DIR and --passphrases FILE go together; give both or none")


NO_KEY_FILES = KeyFiles()


def backend_of(job: Job, rank: int, files: KeyFiles) -> tuple[BackendFactory, str]:
    """Return what opens this job's backend, and the key of this party's share where it has one.

    Args:
        job: the run.
        rank: this party's.
        files: where its share lies.

    Returns:
        The factory, and the fingerprint of the key; "" without a share.

    Raises:
        KeyFileError: the share can't be opened; the message names the file.
        ConfigError: the job has no use for a share, or the key does not suit it.
    """
    open_backend = load_backend(job.aggregation.backend)
    if files.folder is None or files.passphrases is None:
        return open_backend, ""
    if job.aggregation.custody is not Custody.THRESHOLD:
        raise ConfigError('--keys is of use with aggregation.custody = "threshold" only')
    # Whoever has key files has what reads them; the module needs gmpy2.
    from mpcfl.secagg.key_files import share_path
    from mpcfl.secagg.key_holding import check_share, hold_share, read_own_passphrase

    path = share_path(files.folder, job.parties.all_names()[rank])
    held = hold_share(path, read_own_passphrase(files.passphrases, rank))
    # The plan and the card go by the job's threshold, so the key must have the same.
    threshold = resolve_threshold(job.aggregation.threshold, job.parties.count)
    check_share(held.share, job.aggregation.key_bits, threshold)
    # Only backends with custody `threshold` take a share; the job has been checked for it.
    with_share: Any = open_backend
    return partial(with_share, held=held), held.share.key.fingerprint


def keep_key(folder: RunFolder, key: str) -> None:
    """Note in a new run's folder which key its parties have shares of, if they brought any."""
    if key:
        folder.threshold_key.write_text(key + "\n", encoding="utf-8")


def require_kept_key(folder: RunFolder, key: str) -> None:
    """Refuse to continue a run with another key than it began with: who dealt it is trusted.

    Raises:
        ConfigError: the parties brought other shares, or some where there were none, or none.
    """
    path = folder.threshold_key
    kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if kept == key:
        return
    if not key:
        raise ConfigError(
            f"{folder.path}: this run was begun with key shares of a ceremony (key {kept[:16]}); "
            "add --keys DIR and --passphrases FILE"
        )
    if not kept:
        raise ConfigError(f"{folder.path}: this run was begun without key files; leave out --keys")
    raise ConfigError(
        f"{folder.path}: this run was begun with shares of the key {kept[:16]}, these are of "
        f"{key[:16]}; bring the former"
    )
