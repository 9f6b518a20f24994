"""What one rank sent and received, in bytes, where its time went, by stage, and where it is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class _End:
    """What `Meter.each` gets from an iterator that has no more items."""


_END = _End()


@dataclass(slots=True)
class Meter:
    """Counts one rank's traffic at the transport and its seconds by stage.

    Bytes are payload bytes handed to the transport, framing included. A collective is
    counted as one vector sent and one received. Seconds are wall clock.

    Attributes:
        current: the stage that is under way, "" between stages; for errors.
        parent: is told of the stage as well: the transport's meter, from that of a round.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    parent: Meter | None = field(default=None, repr=False)

    def count_sent(self, n_bytes: int) -> None:
        """Add one sent message."""
        self.bytes_sent += n_bytes
        self.messages_sent += 1

    def count_received(self, n_bytes: int) -> None:
        """Add one received message."""
        self.bytes_received += n_bytes

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, adding the time spent in making each to the stage ``name``."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                item = next(iterator, _END)
            if isinstance(item, _End):
                return
            yield item

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to the stage ``name``.

        A block that fails leaves ``current`` as it is, so that its error can name the stage.
        """
        start, outer = time.perf_counter(), self.current
        self._enter(name)
        try:
            yield
            self._enter(outer)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _enter(self, name: str) -> None:
        self.current = name
        if self.parent is not None:
            self.parent.current = name
