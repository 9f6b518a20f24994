"""Where each party's results go: into one folder that all see, or into one on every host.

The lowest party makes the folder and leaves a mark in it. Who finds the mark uses that folder;
of those who don't, the lowest makes one on its own host, and so on, until everybody has one. The
first of each folder keeps it: holds its lock, and has it written (`Run.appoint_recorder`).

A path that another party told is only used where its mark is found; a folder is only made where
this party's own options, or its working directory, say.
"""

from __future__ import annotations

import json
import os
import secrets
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mpcfl.config import Job
from mpcfl.errors import ConfigError
from mpcfl.net.roster import check_in
from mpcfl.net.wire import FLAG, Format, Kind, blob, text
from mpcfl.parties.connection import Connection
from mpcfl.parties.key_share import keep_key, require_kept_key
from mpcfl.parties.setup import Rank, attempt, present
from mpcfl.report.run_folder import RunFolder, RunLock, fresh_run_path, open_run_folder

# A path as the file system has it, which may be no text; longer than any system takes.
_FOLDER = Format(Kind.FOLDER, path=blob(1 << 16), name=text(1 << 10), mark=text(64))
_PLACED = Format(Kind.PLACED, placed=FLAG)
_MARK_BYTES = 16
# A folder, and at the party that keeps it its lock and the mark.
_Taken: TypeAlias = tuple[RunFolder, RunLock | None, str]


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where one party's results go.

    Attributes:
        folder: of the run, on this host.
        sharers: numbers of the parties that see the same folder, this one included, ascending.
        keepers: the lowest of each folder, ascending; more than one where hosts share no files.
        lock: keeps other runs out of the folder; at its keeper only.
    """

    folder: RunFolder
    sharers: tuple[int, ...]
    keepers: tuple[int, ...]
    lock: RunLock | None = None

    @property
    def is_shared_by_all(self) -> bool:
        """True if there is one folder for all parties."""
        return len(self.keepers) == 1

    def close(self) -> None:
        """Let other runs in."""
        if self.lock is not None:
            self.lock.close()


def agree_on_folder(options: Namespace, rank: Rank, connection: Connection) -> RunPlace:
    """Make the folders of a new run, or take those of one that is resumed.

    Raises:
        PartyNotReady: raised by all ranks alike: a folder is not empty, can't be made, or is no
            run's.
    """
    transport, own = connection.transport, None
    asked: Path | None = options.resume or options.out
    name = fresh_run_path(rank.public.job.task).name
    homes: dict[int, int] = {}
    while len(homes) < transport.n_ranks:
        keeper = next(seat for seat in range(transport.n_ranks) if seat not in homes)
        claim = _claim(Path("runs") / name if asked is None else asked, options, rank)
        made, error = attempt(claim) if transport.rank == keeper else (None, None)
        check_in(transport, connection.names, {}, error)
        with _marked(made) as mark:
            words = {"path": _path_bytes(made), "name": name, "mark": mark}
            told = [_FOLDER.decode(m) for m in transport.allgather(_FOLDER.encode(**words))]
            # Where nobody asked for a folder, it has the name that the first party gave it.
            name = _plain(told[0]["name"])
            own = own or made or _found(told[keeper], asked)
            placed = transport.allgather(_PLACED.encode(placed=own is not None))
        for seat, answer in enumerate(placed):
            if _PLACED.decode(answer)["placed"]:
                homes.setdefault(seat, keeper)
    folder, lock, _ = present(own)
    home = [connection.members[seat] for seat in homes if homes[seat] == homes[transport.rank]]
    keepers = sorted({connection.members[keeper] for keeper in homes.values()})
    return RunPlace(folder, tuple(sorted(home)), tuple(keepers), lock)


def _claim(path: Path, options: Namespace, rank: Rank) -> Callable[[], _Taken]:
    """Return what makes the folder of a new run, or takes that of one to be resumed."""

    def claim() -> _Taken:
        if options.resume is not None:
            folder = RunFolder(path)
            require_kept_key(folder, rank.key)
            _require_party_file(folder, rank)
        else:
            folder = open_run_folder(path)
            keep_key(folder, rank.key)
            if rank.own is not None:
                folder.party_files_note.write_text(
                    "These parties know each other by party files.\n"
                )
            _write_job(folder, rank.public.job)
        lock = RunLock(folder)
        # A name that nobody can guess.
        mark = f".{secrets.token_hex(_MARK_BYTES)}"
        (folder.path / mark).touch()
        return folder, lock, mark

    return claim


def _require_party_file(folder: RunFolder, rank: Rank) -> None:
    """Refuse to go on with throw-away identities where the run had real ones.

    Raises:
        ConfigError: it did, and this party has brought no party file.
    """
    if rank.own is None and folder.party_files_note.exists():
        raise ConfigError(
            f"{folder.path}: this run was begun with party files; bring them again with "
            "--party-files DIR (or --party FILE)"
        )


def _write_job(folder: RunFolder, job: Job) -> None:
    folder.job_json.write_text(json.dumps(job.model_dump(mode="json"), indent=2) + "\n")


@contextmanager
def _marked(made: _Taken | None) -> Iterator[str]:
    """Give the mark in a folder; it is gone once everybody has looked."""
    if made is None:
        yield ""
        return
    folder, _, mark = made
    try:
        yield mark
    finally:
        (folder.path / mark).unlink(missing_ok=True)


def _path_bytes(made: _Taken | None) -> bytes:
    return b"" if made is None else os.fsencode(made[0].path.resolve())


def _found(told: Mapping[str, Any], asked: Path | None) -> _Taken | None:
    """Return the keeper's folder if it is there on this host as well, and is the one asked for."""
    path = Path(os.fsdecode(told["path"]))
    mark = _plain(told["mark"])
    if asked is not None and asked.resolve() != path:
        return None
    # Unlike Path.is_file, False where this party may not look.
    return (RunFolder(path), None, "") if os.path.isfile(path / mark) else None  # noqa: PTH113


def _plain(name: str) -> str:
    """Return the name of a file that another party told; refuse one that leads elsewhere."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise ConfigError("another party named a file that leads out of the run's folder")
    return name
