"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` only if the block ends without an error.

    The new bytes go to a file beside ``path`` and are on the disk before the name moves,
    so a reader, a crash or a full disk never meets a torn file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text`` (UTF-8), or leave it as it was."""
    with open_atomically(path) as stream:
        stream.write(text.encode("utf-8"))


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk; without this a power cut may bring the old one back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
