"""At most one partial decryption per chunk of a sum and key share, logged durably first.

A second product under the same name would be a second opening: whoever could ask for both
would learn the difference of two sums. So a name is spent before the partial is made, and a
crash in between loses the sum, not the guarantee. The log lies beside the key share's file and
is as long-lived as the share; a share that was dealt for one session is logged in memory.

Assumes that the file is not rolled back, and not cut at the end of a line: who can do that can
as well read the share's file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpcfl.errors import KeyFileError, OutOfOrder
from mpcfl.hazmat.bits import domain_tag
from mpcfl.net.private_file import sync_folder
from mpcfl.secagg.base import SumId

_Entry = tuple[str, int, int, int]
_FIELDS = ("run", "round", "attempt", "chunk")
# Each line ends a chain of hashes that begins here, so that no line can change or go missing.
_FIRST_HASH = hashlib.sha256(domain_tag("decryption-log")).hexdigest()


class DecryptionLog:
    """What one key share has decrypted; one process at a time.

    Args:
        path: the log, made with mode 0600 if it is not there; None keeps it in memory.

    Raises:
        KeyFileError: the file is damaged, open to others, or in use by another process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._spent: set[_Entry] = set()
        self._head = _FIRST_HASH
        self._closed = False
        self._one_by_one = threading.Lock()
        self._process_id = os.getpid()
        self._file = None if path is None else _open_locked(path)
        # Who forgets the log gives its file back all the same.
        self._give_back = weakref.finalize(self, _close, self._file)
        if path is not None and self._file is not None:
            try:
                self._read(path, self._file)
            except BaseException:
                self.close()
                raise

    def spend(self, run_id: str, sum_id: SumId, chunk: int, digest: str) -> None:
        """Note durably that a chunk's partial decryption is about to be made.

        Args:
            run_id: of the session.
            sum_id: of the sum.
            chunk: its number.
            digest: of the product that is decrypted; public, in hex.

        Raises:
            OutOfOrder: it was made before, or the log was closed; nothing is noted.
            KeyFileError: it can't be written, so the partial must not be made; the log is
                closed, as what it holds now is not known.
        """
        entry = (run_id, sum_id.round_id, sum_id.attempt, chunk)
        # A child process has a copy of what was spent, which would not hear of its parent's.
        if os.getpid() != self._process_id:
            raise OutOfOrder("this key share belongs to the parent process; load it there")
        with self._one_by_one:
            if self._closed:
                raise OutOfOrder("this key share was put away; load it again")
            if entry in self._spent:
                raise OutOfOrder(
                    f"this key share has decrypted chunk {chunk} of round {sum_id.round_id}, "
                    f"attempt {sum_id.attempt} before; open each sum once, and start a new "
                    "attempt for another"
                )
            if self._file is not None:
                fields = dict(zip(_FIELDS, entry, strict=True)) | {"product": digest}
                self._append(self._file, fields)
            self._spent.add(entry)

    def close(self) -> None:
        """Give the file back; nothing can be noted any more."""
        with self._one_by_one:
            self._shut()

    def _shut(self) -> None:
        self._closed, self._file = True, None
        self._give_back()

    def _append(self, file: int, fields: dict[str, Any]) -> None:
        head = _next_hash(self._head, fields)
        line = json.dumps(fields | {"hash": head}).encode() + b"\n"
        whole = os.fstat(file).st_size
        try:
            _write_all(file, line)
            os.fsync(file)
        except BaseException as error:
            # Half a line before the next one would make the log unreadable.
            with suppress(OSError):
                os.ftruncate(file, whole)
            self._shut()
            if not isinstance(error, OSError):
                raise
            raise KeyFileError(
                f"{self._path}: can't note what is decrypted: {error.strerror}; mend it and open a "
                "new session"
            ) from error
        self._head = head

    def _read(self, path: Path, file: int) -> None:
        content = _read_all(path, file)
        *lines, torn = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            fields = _parse(line, self._head)
            if fields is None:
                raise KeyFileError(
                    f"{path}, line {number} is damaged, so what this key share has decrypted is "
                    "not known; deal new key shares"
                )
            self._head = str(fields["hash"])
            run, *numbers = (fields[field] for field in _FIELDS)
            self._spent.add((run, numbers[0], numbers[1], numbers[2]))
        if torn:
            # Written before its partial was made: cut short, nothing was ever decrypted for it.
            os.ftruncate(file, len(content) - len(torn))


def _open_locked(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        status = os.fstat(file)
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
            raise KeyFileError(f"{path} must be yours alone; run: chmod 600 {path}")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A log whose name could be lost in a crash would be no log.
        sync_folder(path.parent)
    except BlockingIOError:
        os.close(file)
        raise KeyFileError(
            f"{path} is in use: another process works with this key share, or this one has loaded "
            "it before; wait until it ends"
        ) from None
    except OSError as error:
        os.close(file)
        raise _unusable(path, error) from None
    except BaseException:
        os.close(file)
        raise
    return file


def _unusable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"{path}: can't note there what is decrypted: {error.strerror}; put the key share into a "
        "folder of your own, on a disk that has locks"
    )


def _read_all(path: Path, file: int) -> bytes:
    """Return what is in the file that is locked, whatever bears its name by now."""
    try:
        return os.pread(file, os.fstat(file).st_size, 0)
    except OSError as error:
        raise _unusable(path, error) from None


def _close(file: int | None) -> None:
    if file is not None:
        os.close(file)


def _next_hash(head: str, fields: dict[str, Any]) -> str:
    content = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(domain_tag("decryption-log", head, content)).hexdigest()


def _parse(line: bytes, head: str) -> dict[str, Any] | None:
    """Return what a line says, or None if it does not follow the line before."""
    try:
        fields: dict[str, Any] = json.loads(line)
        told = fields.pop("hash")
        run, *numbers = (fields[field] for field in _FIELDS)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(run, str) or not all(type(n) is int for n in numbers):
        return None
    return fields | {"hash": told} if told == _next_hash(head, fields) else None


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
