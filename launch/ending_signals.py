"""The signals that end this process, put off or ignored while a job is being started or ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalsDeferred:
    """Keeps them until they are let in; only the main thread gets signals.

    Python drops an exception that a signal raises within what it calls before and after a fork.
    """

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _keep(self, number: int, _: object) -> None:
        self._came.append(number)

    def release(self) -> None:
        """Have signals do what they do, those that came meanwhile included."""
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler)
        came, self._came = self._came, []
        for number in came:
            signal.raise_signal(number)


@contextmanager
def signals_held() -> Iterator[None]:
    """Ignore a second Ctrl-C while processes are being ended; only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
