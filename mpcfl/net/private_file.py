"""Key files on the disk: written once and never over another, read only if nobody else could.

A secret file has mode 0600 and belongs to the user who reads it; everything else is refused,
as somebody may have copied or replaced it. A file that says whom to trust may be read by all, but
changed by its owner only. What is checked is the open file and not its name, so
nothing can be swapped in between. Links are followed: a file that a scheduler or a vault put in
place is judged by its own owner and mode.

Does not protect against root, nor against a file system that keeps no modes (FAT on a stick).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from mpcfl.errors import KeyFileError

# A threshold key of 3072 bits for 1,000 parties takes 1.6 MB.
MAX_KEY_FILE_BYTES = 16 << 20
_OWNER_ONLY = 0o600
_FOR_ALL_TO_READ = 0o644


def read_key_file(path: Path, *, secret: bool) -> bytes:
    """Return the content of a key file.

    Raises:
        KeyFileError: it can't be read or is too large; or it is ``secret`` and of another owner,
            or the group or others can get at it.
    """
    return _read(path, "key file", _check_secret if secret else _check_nothing)


def read_trusted_file(path: Path, what: str) -> bytes:
    """Return the content of a file that nobody but its owner can change.

    Args:
        path: of the file; its owner is the user or root.
        what: what it is, for errors.

    Raises:
        KeyFileError: it can't be read, is too large, is of another owner, or the group or others
            may write it.
    """
    return _read(path, what, _check_trusted)


def _read(path: Path, what: str, check: Callable[[Path, os.stat_result], None]) -> bytes:
    # Without the flag, opening a pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(path, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path}: not a file; name the {what} itself")
            check(path, status)
            content = stream.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(
            f"{path}: can't read the {what}: {error.strerror}; mend it and try again"
        ) from None
    if len(content) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(
            f"{path}: larger than {MAX_KEY_FILE_BYTES} bytes, which no {what} is; "
            "restore it from a copy"
        )
    return content


def _check_nothing(_path: Path, _status: os.stat_result) -> None:
    """Take a public file as it is; who may trust it is another question."""


def _check_secret(path: Path, status: os.stat_result) -> None:
    _check_owner(path, status, (os.geteuid(),))
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"{path}: others than its owner may read or change it (mode "
            f"{stat.S_IMODE(status.st_mode):04o}); if none of them did, run: chmod 600 {path}"
        )


def _check_trusted(path: Path, status: os.stat_result) -> None:
    # Root could change it anyway, and is who puts such files into containers.
    _check_owner(path, status, (os.geteuid(), 0))
    if status.st_mode & 0o022:
        raise KeyFileError(
            f"{path}: others than its owner may change it (mode "
            f"{stat.S_IMODE(status.st_mode):04o}); if none of them did, run: chmod go-w {path}"
        )


def _check_owner(path: Path, status: os.stat_result, owners: Collection[int]) -> None:
    if status.st_uid not in owners:
        raise KeyFileError(
            f"{path}: belongs to another user (uid {status.st_uid}), who could change it; "
            "make it yours (chown) if you trust its content"
        )


def write_key_file(path: Path, content: bytes, *, secret: bool) -> None:
    """Write a new file, whole and on the disk when this returns, or nothing.

    The bytes go to a file beside ``path``, which gets its name only at the end, and only if the
    name is free.

    Raises:
        KeyFileError: ``path`` exists already, or the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write_and_sync(temporary, content, _OWNER_ONLY if secret else _FOR_ALL_TO_READ)
            # Unlike a rename, a link never replaces what bears the name.
            os.link(temporary, path, follow_symlinks=False)
        finally:
            temporary.unlink(missing_ok=True)
        _keep_name(path)
    except FileExistsError:
        raise KeyFileError(
            f"{path}: exists already and is not overwritten; choose another name or folder"
        ) from None
    except OSError as error:
        raise KeyFileError(
            f"{path}: can't write the key file: {error.strerror}; mend it and try again"
        ) from None


def _keep_name(path: Path) -> None:
    """Put a new name on the disk, or take it back."""
    try:
        sync_folder(path.parent)
    except OSError:
        remove_files([path])
        raise


def _write_and_sync(path: Path, content: bytes, mode: int) -> None:
    # A file of this name is the rest of a process of the same id that was killed.
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Put names themselves on the disk, not only the files' content.

    Raises:
        OSError: the disk refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_files(paths: list[Path]) -> None:
    """Remove what can be removed, quietly: an error is being reported already."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)
