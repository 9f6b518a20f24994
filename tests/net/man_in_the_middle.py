"""A network in memory with somebody on one of its links, who changes one message.

Nobody waits for a deadline here: once all parties that are left wait for messages and none is
under way, nothing can ever come, and whoever waits loses the party that it waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mpcfl.errors import PartyLost
from mpcfl.net.memory import MemoryNetwork, MemoryTransport

Address = tuple[int, int, Any]


class Attack(Enum):
    """What is done to one message of a link."""

    FLIP = "one of its bits is flipped"
    DROP = "it never comes"
    SWAP = "it comes after the one that follows it"
    REPEAT = "it comes twice"
    REPLAY = "an older one comes in its place"
    REFLECT = "one that went the other way comes in its place"
    TRUNCATE = "its last byte is missing"
    EXTEND = "it has one byte more"


@dataclass
class Meddler:
    """Sits on the link from ``source`` to ``target`` and attacks message ``number`` on it.

    Attributes:
        met: the message went by.
        seen: all messages of the link, by kind, as they were sent.
        reflected: all messages of the other direction, by kind.
    """

    attack: Attack | None = None
    number: int = -1
    source: int = 0
    target: int = 1
    met: bool = False
    seen: dict[Any, list[bytes]] = field(default_factory=dict)
    reflected: dict[Any, list[bytes]] = field(default_factory=dict)
    _count: int = 0
    _held: dict[Any, bytes] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return how many messages went over the link so far."""
        return self._count

    def pass_on(self, kind: Any, message: bytes) -> list[bytes]:
        """Return what comes out of the link for a message that went in."""
        number, self._count = self._count, self._count + 1
        before = self.seen.setdefault(kind, [])
        out = [message, self._held.pop(kind)] if kind in self._held else [message]
        if number == self.number and self.attack is not None:
            self.met = True
            out = self._attacked(kind, message, before)
        before.append(message)
        return out

    def _attacked(self, kind: Any, message: bytes, before: Sequence[bytes]) -> list[bytes]:
        match self.attack:
            case Attack.FLIP:
                return [flipped(message, self.number)]
            case Attack.DROP:
                return []
            case Attack.SWAP:
                self._held[kind] = message
                return []
            case Attack.REPEAT:
                return [message, message]
            case Attack.REPLAY:
                return [_alike(before, message)]
            case Attack.REFLECT:
                return [_alike(self.reflected.get(kind, []), message)]
            case Attack.TRUNCATE:
                return [message[:-1]]
            case _:
                return [message + b"\0"]


def flipped(message: bytes, number: int) -> bytes:
    """Return a message with one bit changed, another one for each number."""
    changed = bytearray(message or b"\0")
    place = number * 7919 % (8 * len(changed))
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _alike(others: Sequence[bytes], message: bytes) -> bytes:
    """Return the last other message of the same length, or of any, or a flipped one."""
    same = [other for other in others if len(other) == len(message) and other != message]
    return (same or list(others) or [flipped(message, 0)])[-1]


class MeddledNetwork(MemoryNetwork):
    """Mailboxes between threads, with a meddler; see the module."""

    def __init__(self, n_ranks: int, meddler: Meddler) -> None:
        super().__init__(n_ranks)
        self._meddler = meddler
        self._changed = threading.Condition()
        self._waiting: dict[int, Address] = {}
        self._at_work = set(range(n_ranks))

    def put(self, source: int, target: int, kind: Any, message: bytes) -> None:
        """Deliver what the meddler leaves of a message."""
        with self._changed:
            out = [bytes(message)]
            if (source, target) == (self._meddler.source, self._meddler.target):
                out = self._meddler.pass_on(kind, bytes(message))
            elif (target, source) == (self._meddler.source, self._meddler.target):
                self._meddler.reflected.setdefault(kind, []).append(bytes(message))
            for piece in out:
                super().put(source, target, kind, piece)
            self._changed.notify_all()

    def get(self, source: int, target: int, kind: Any) -> bytes:
        """Return the next message, or lose its sender once nothing can come any more."""
        with self._changed:
            self._waiting[target] = (source, target, kind)
            try:
                while not self.has(source, target, kind):
                    if self.failed.is_set():
                        raise PartyLost("another party failed", ())
                    if self._nothing_comes():
                        raise PartyLost(f"party {source} sent nothing more", (source,))
                    self._changed.wait()
                return self._box(source, target, kind).get_nowait()
            finally:
                del self._waiting[target]

    def leave(self, rank: int, *, failed: bool) -> None:
        """Note that a rank is through, or has failed: then so have all."""
        with self._changed:
            self._at_work.discard(rank)
            if failed:
                self.failed.set()
            self._changed.notify_all()

    def unread(self) -> int:
        """Return how many messages nobody has taken."""
        return sum(box.qsize() for box in self._boxes.values())

    def _nothing_comes(self) -> bool:
        waiting = self._waiting
        return self._at_work <= waiting.keys() and not any(
            self.has(*waiting[rank]) for rank in self._at_work
        )


@dataclass(frozen=True)
class Outcome:
    """How a session ended at each rank: what it returned, or its error; and what nobody read."""

    returned: dict[int, Any]
    errors: dict[int, BaseException]
    unread: int

    def first_error(self) -> BaseException:
        """Return an error that is no consequence of another one, if there is one."""
        others = [e for e in self.errors.values() if str(e) != "another party failed"]
        named = [e for e in others if not isinstance(e, PartyLost)]
        return (named or others or list(self.errors.values()))[0]


def run_meddled(n_ranks: int, party: Callable[[MemoryTransport], Any], meddler: Meddler) -> Outcome:
    """Run ``party`` once per rank, each in a thread of its own, over a network with a meddler."""
    network = MeddledNetwork(n_ranks, meddler)
    returned: dict[int, Any] = {}
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            returned[rank] = party(MemoryTransport(network, rank))
        except BaseException as error:  # noqa: BLE001 - the test looks at all of them
            errors[rank] = error
        network.leave(rank, failed=rank in errors)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Outcome(returned, errors, network.unread())
