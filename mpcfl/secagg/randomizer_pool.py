"""Randomizers h^x that are made ahead, in a thread, while the party trains.

A randomizer depends on the key alone, so all that is left of an encryption is one product.
Each one is handed out once. The pool is bounded, in number and in bytes, and it is thrown
away when an attempt fails: what may have been handed out before is never handed out again.
Who reads this process' memory reads the randomizers, now a little longer.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from mpcfl.errors import OutOfOrder

# 64 MiB of randomizers at 2048 bits are 131,072, enough for 13 million values of 20 bits.
_MAX_POOL_BYTES = 64 << 20
# Drawn at once, so that a thread that is told to stop does so soon.
_BATCH = 64


class DrawsRandomizers(Protocol):
    """Makes fresh randomizers; see `hazmat/randomizers.py`."""

    def draw(self, count: int) -> Sequence[int]:
        """Return ``count`` of them."""
        ...


class RandomizerPool:
    """This rank's randomizers, each handed out once. Secret.

    Args:
        source: makes them; used by one thread at a time.
        n_ahead: how many to keep ready; 0 makes each one when it is asked for.
        width_bytes: of one of them.
    """

    def __init__(self, source: DrawsRandomizers, n_ahead: int, width_bytes: int) -> None:
        self._source: DrawsRandomizers | None = source
        self._n_ahead = min(n_ahead, _MAX_POOL_BYTES // width_bytes)
        self._ready: deque[int] = deque()
        self._changed = threading.Condition()
        self._drawing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._stopped = False
        self._process_id = os.getpid()

    def take(self, count: int) -> list[int]:
        """Return ``count`` randomizers, those that are ready first.

        Raises:
            OutOfOrder: the pool was closed, or this is another process, which would repeat them.
        """
        self._require_open()
        with self._changed:
            taken = [self._ready.popleft() for _ in range(min(count, len(self._ready)))]
        if len(taken) < count:
            taken += self._draw(count - len(taken))
        return taken

    def refill(self) -> None:
        """Start to make randomizers in the background until the pool is full."""
        self._require_open()
        if self._n_ahead == 0 or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._fill, name="randomizers", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return once the pool is full; at once where nothing is made ahead.

        Raises:
            OutOfOrder: as `take`.
            Exception: what went wrong in the background.
        """
        self.refill()
        if self._thread is not None:
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def pause(self) -> None:
        """Stop making randomizers, because the time of a sum has come; those made stay."""
        thread, self._thread = self._thread, None
        if thread is not None and os.getpid() == self._process_id:
            self._stopped = True
            thread.join()
            self._stopped = False

    def wipe(self) -> None:
        """Throw away what was made ahead, for an attempt that failed."""
        self.pause()
        with self._changed:
            self._ready.clear()

    def close(self) -> None:
        """Throw away everything; nothing can be taken afterwards."""
        self.wipe()
        self._source = None

    def __repr__(self) -> str:
        return "RandomizerPool(<redacted>)"

    def __reduce__(self) -> Any:
        raise TypeError("randomizers must not leave their process")

    def _require_open(self) -> None:
        if self._source is None or os.getpid() != self._process_id:
            raise OutOfOrder("this rank's randomizers were forgotten; open a new session")

    def _draw(self, count: int) -> list[int]:
        source = self._source
        if source is None:
            raise OutOfOrder("this rank's randomizers were forgotten; open a new session")
        with self._drawing:
            return list(source.draw(count))

    def _fill(self) -> None:
        try:
            while not self._stopped and (missing := self._n_ahead - len(self._ready)) > 0:
                made = self._draw(min(_BATCH, missing))
                with self._changed:
                    self._ready.extend(made)
        except Exception as error:  # noqa: BLE001 - raised where somebody waits for the pool
            self._error = error
