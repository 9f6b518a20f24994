"""Keep what a task's code prints about private records from leaving the party.

Under MPI all that a rank prints is carried to whoever started the run, perhaps on another party's
machine; a training loop that prints its loss would publish it. What is muted here is what this
thread writes to Python's standard output and error: not what other programs or compiled code
write, nor a log handler that was made before.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from mpcfl.config import Unit

_STREAMS = ("stdout", "stderr")
_own = threading.local()
_lock = threading.Lock()
# How many threads are muted, and what stands in sys while any is.
_muted_threads = 0
_curtains: dict[str, _Curtain] = {}


class _Curtain:
    """A stream that lets through what the threads write that are not muted."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, or say so."""
        if getattr(_own, "depth", 0):
            return len(text)
        written: int = self.stream.write(text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, or say so."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def muted() -> Iterator[None]:
    """Drop what this thread prints meanwhile; other threads print as ever."""
    _own.depth = getattr(_own, "depth", 0) + 1
    _draw()
    try:
        yield
    finally:
        _open()
        _own.depth -= 1


def _draw() -> None:
    global _muted_threads
    with _lock:
        _muted_threads += 1
        for name in _STREAMS:
            stream = getattr(sys, name)
            # None in a process without a terminal.
            if stream is not None and not isinstance(stream, _Curtain):
                _curtains[name] = _Curtain(stream)
                setattr(sys, name, _curtains[name])


def _open() -> None:
    global _muted_threads
    with _lock:
        _muted_threads -= 1
        if _muted_threads:
            return
        for name, curtain in _curtains.items():
            # Somebody may have put another stream there meanwhile.
            if getattr(sys, name) is curtain:
                setattr(sys, name, curtain.stream)
        _curtains.clear()


def quiet_for(unit: Unit) -> AbstractContextManager[None]:
    """Return what mutes a task's code on private records, in a job that hides a unit."""
    return nullcontext() if unit is Unit.NONE else muted()
