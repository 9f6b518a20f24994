"""What a rank knows of a sum that broke off: parts that it opened, and products that can be.

An opened vector becomes known part by part: a slice where one rank adds it up, a chunk where
one rank decrypts it. When a rank is lost, what any survivor has opened stands, since the same
part must not be opened twice over different rosters; only what nobody has is tried again.
So a rank must name every part that it holds, and none that it does not hold.

Assumes that who asks is the rank itself: the values are sums in the clear, which every data
party may see and the network may not. Holds nothing of a single party, no mask and no key.
Does not tell what a lost rank knew, nor what is on its way to a rank that did not ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpcfl.errors import MpcflError
from mpcfl.net.transport import Transport

_Opened = NDArray[np.signedinteger[Any]]


class UnopenedProduct(Protocol):
    """A sum that lies encrypted at this rank, which any quorum of the key's holders can open."""

    @property
    def digest(self) -> str:
        """Return what names the product, in hex; equal at ranks that hold the same one."""
        ...

    def open_over(self, transport: Transport) -> _Opened:
        """Open it with the ranks of another transport; all of them call it together.

        A partial decryption that was made before is sent again, not made again. What was opened
        before this breaks off as well is in the next `SecureSum.salvage`.

        Returns:
            The sum of all inputs, also of ranks that are gone, shape (dim,), centred.

        Raises:
            ConfigError: too few holders are there.
            TranscriptMismatch: ranks hold different products.
            PartyLost: another rank was lost.
        """
        ...


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Salvage:
    """What this rank knows of the last sum, in the clear. For data parties only.

    Attributes:
        parts: how the vector falls into parts, in order; equal at all ranks.
        known: by number of part, its sum centred mod 2^b, int64; copies. A part without
            coordinates is always known.
        product: the whole sum, encrypted, where this rank formed it and can help to open it.
    """

    parts: tuple[slice, ...]
    known: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)
    product: UnopenedProduct | None = None


def parts_of(secure: object, dim: int) -> tuple[slice, ...]:
    """Return the parts of a session of sums; one part where its backend knows of none.

    Args:
        secure: a `SecureSum`, perhaps of a backend that was made before there were parts.
        dim: length of its vectors.
    """
    parts: tuple[slice, ...] | None = getattr(secure, "parts", None)
    if parts is None:
        return whole(dim)
    return parts


def salvage_of(secure: object) -> Salvage | None:
    """Return what this rank knows of the last sum; None where its backend can't tell.

    Where a rank can't tell, the sum must not be tried again: it may be open already.
    """
    salvage = getattr(secure, "salvage", None)
    found: Salvage | None = None if salvage is None else salvage()
    return found


def whole(dim: int) -> tuple[slice, ...]:
    """Return a vector as one part; no part where it is empty."""
    return (slice(0, dim),) if dim else ()


def nothing_in(parts: tuple[slice, ...]) -> dict[int, NDArray[np.int64]]:
    """Return the values of the parts that have no coordinates."""
    empty = np.empty(0, dtype=np.int64)
    return {number: empty for number, part in enumerate(parts) if part.start >= part.stop}


class OpenedParts:
    """Collects what is opened of one sum after the other, chunk by chunk. For data parties only.

    Args:
        parts: how vectors are cut; none is empty.
    """

    def __init__(self, parts: tuple[slice, ...]) -> None:
        self.parts = parts
        self._total: _Opened = np.empty(0, dtype=np.int64)
        self._there: set[int] = set()
        self._under_way: dict[int, Future[_Opened]] = {}

    def begin(self) -> None:
        """Forget the last sum."""
        self._total = np.empty(0, dtype=np.int64)
        self._there.clear()
        self._under_way.clear()

    def land(self, total: _Opened) -> None:
        """Take the vector, shape (dim,), into which this sum is opened from now on."""
        for number in self._there:
            total[self.parts[number]] = self._total[self.parts[number]]
        self._total = total

    @property
    def under_way(self) -> list[Future[_Opened]]:
        """The parts that are being opened at this rank, in the order in which that began."""
        return list(self._under_way.values())

    def expect(self, number: int, opening: Future[_Opened]) -> None:
        """Take note that a part is being opened at this rank."""
        self._under_way[number] = opening

    def take(self, number: int) -> _Opened:
        """Return a part that was expected, once it is open; from then on it is known."""
        values = self._under_way[number].result()
        self.put(number, values)
        del self._under_way[number]
        return values

    def put(self, number: int, values: _Opened) -> None:
        """Write a part into the vector that `land` took; from then on it is known."""
        self._total[self.parts[number]] = values
        self._there.add(number)

    def known(self) -> dict[int, NDArray[np.int64]]:
        """Return copies of all that is open, or that this rank opens without any message."""
        known: dict[int, NDArray[np.int64]] = {
            number: self._total[self.parts[number]].astype(np.int64) for number in self._there
        }
        for number, opening in self._under_way.items():
            try:
                known[number] = opening.result().astype(np.int64)
            except (MpcflError, CancelledError):
                # It was refused, or the session was closed before it was its turn.
                continue
        return dict(sorted(known.items()))
