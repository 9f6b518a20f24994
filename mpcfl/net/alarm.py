"""What members tell each other beside the rounds: whom they miss, where they are, that it is over.

A word is public among the members; `membership.py` seals it and says what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpcfl.net.wire import FLAG, U32, Format, Kind, ascending

# More parties than any job has; bounds what is read.
MAX_PARTIES = 1 << 14
_ALARM = Format(
    Kind.ALARM,
    moved=FLAG,
    over=FLAG,
    epoch=U32,
    parties=ascending(U32, MAX_PARTIES),
    doubted=ascending(U32, MAX_PARTIES),
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """One word of an epoch.

    Attributes:
        epoch: that its sender is in, or has moved to.
        parties: whom it knows to be lost; the members of ``epoch``, if it has moved.
        doubted: who was silent for a deadline, as far as it knows.
        moved: it has gone on, and tells a party that is behind where to.
        over: it knows that the run came to its end, and leaves.
    """

    epoch: int
    parties: frozenset[int] = frozenset()
    doubted: frozenset[int] = frozenset()
    moved: bool = False
    over: bool = False

    def encode(self) -> bytes:
        """Return its bytes."""
        return _ALARM.encode(
            moved=self.moved,
            over=self.over,
            epoch=self.epoch,
            parties=sorted(self.parties),
            doubted=sorted(self.doubted),
        )

    @classmethod
    def decode(cls, message: bytes, sender: str) -> Alarm:
        """Read what ``sender`` said.

        Raises:
            ProtocolError: it is not an alarm.
        """
        words = _ALARM.decode(message, sender)
        return cls(
            words["epoch"],
            frozenset(words["parties"]),
            frozenset(words["doubted"]),
            moved=words["moved"],
            over=words["over"],
        )
