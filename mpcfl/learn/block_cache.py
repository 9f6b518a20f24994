"""Arrays that take long to compute, kept on disk in blocks, made by all processes together.

Several ranks on one machine want the same array. Each takes the next block that nobody is at,
computes it and writes it down; in the end all read all. A process that is killed loses the block
it was at, and its lock goes with it. A file takes its name only when it is whole, and one that
can't be read is made again: a cache can cost time, never a result.

What is kept is as secret as what it was made from: the folder has mode 0700, its files 0600. It
lies at one party and is never sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from mpcfl.errors import ConfigError

Array = NDArray[Any]
# Told what is made, and how many of how many blocks are there.
TellProgress = Callable[[str, int, int], None]
# Makes the rows from the first up to, and without, the last.
MakeBlock = Callable[[int, int], Array]


def cache_root() -> Path:
    """Return the folder of all caches: ``mpcfl`` in the user's cache folder (XDG_CACHE_HOME)."""
    return user_cache_path("mpcfl")


def cache_key(*parts: object) -> str:
    """Return a name for what these parts determine: 32 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:32]


def file_digest(*paths: Path) -> str:
    """Return the SHA-256 of the names and contents of some files, hex, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        name = path.name.encode()
        digest.update(len(name).to_bytes(8, "big") + name)
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class BlockCache:
    """One array on disk, shape (n_rows, ...), in files of ``block_rows`` rows.

    Attributes:
        folder: of this array alone; its name says what it was made from.
        n_rows: of the whole array.
        block_rows: rows per file; fewer in the last.
        what: in a few words, for people.
    """

    folder: Path
    n_rows: int
    block_rows: int
    what: str

    def rows(self, make: MakeBlock, progress: TellProgress) -> Array:
        """Return the whole array, computing with all other processes what is not there yet.

        Args:
            make: computes rows; equal in every process.
            progress: is told how far all of them are.

        Raises:
            ConfigError: the folder can't be written.
        """
        starts = range(0, self.n_rows, self.block_rows)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for waits in (False, True) if not self.is_complete() else ():
                for start in starts:
                    self._require_block(start, make, waits)
                    progress(self.what, sum(self._path(s).exists() for s in starts), len(starts))
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.folder}: can't keep {self.what}: {error.strerror}; free "
                "space, or name another folder in the environment variable XDG_CACHE_HOME"
            ) from None
        blocks = [self._read(start, make) for start in starts]
        return np.concatenate(blocks)

    def is_complete(self) -> bool:
        """Tell whether every block is there."""
        return all(self._path(s).exists() for s in range(0, self.n_rows, self.block_rows))

    def _require_block(self, start: int, make: MakeBlock, waits: bool) -> None:
        """Make a block unless it is there or, without waiting, somebody else is at it."""
        path = self._path(start)
        if path.exists():
            return
        with _lock(path.with_suffix(".lock"), waits) as is_mine:
            if is_mine and not path.exists():
                self._write(path, make(start, min(start + self.block_rows, self.n_rows)))

    def _read(self, start: int, make: MakeBlock) -> Array:
        path = self._path(start)
        try:
            block: Array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            # Cut short by a power failure, or deleted this moment.
            block = make(start, min(start + self.block_rows, self.n_rows))
            self._write(path, block)
        return block

    def _write(self, path: Path, block: Array) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                np.save(stream, block, allow_pickle=False)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08}.npy"


@contextlib.contextmanager
def _lock(path: Path, waits: bool) -> Iterator[bool]:
    """Hold a lock that ends with this process; yield False if another one has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def whole_array(folder: Path, what: str, make: Callable[[], Array]) -> Array:
    """Return an array that one process computes in one go, from disk if it is there.

    Args:
        folder: of this array alone.
        what: in a few words, for people.
        make: returns it, with any number of rows.

    Raises:
        ConfigError: the folder can't be written.
    """
    cache = BlockCache(folder, 1, 1, what)
    found: Array = cache.rows(lambda _start, _stop: make()[np.newaxis], ignore_progress)[0]
    return found


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""
