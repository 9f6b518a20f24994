"""The plug point for messages that may come at any time: who raises an alarm doesn't wait.

Beside a transport, whose exchanges all ranks make together, stands a port: a message is posted
and forgotten, and taken by whoever looks. Parties are named by their original numbers, which no
loss changes. A port offers no secrecy and no authenticity; `membership.py` seals what it posts.
"""

from __future__ import annotations

from typing import Protocol


class Port(Protocol):
    """One party's end; messages of one party to another come in the order they were posted."""

    def post(self, party: int, message: bytes) -> None:
        """Send a message and go on; what can't be delivered is lost."""
        ...

    def take(self, party: int) -> bytes | None:
        """Return the next message of a party, or None if none is here yet."""
        ...

    def is_dead(self, party: int) -> bool:
        """Tell whether a party is known to be dead; False says nothing."""
        ...
