"""What is known of one round's sum: coordinates, and over whom each of them was added up.

Without a loss a sum is one piece, over everybody. When parties are lost, pieces that anybody had
opened stand, and the rest comes from a later attempt, over fewer parties and with noise of its
own. All of it is public among the data parties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.config import PartiesTable, Weighting
from mpcfl.dp.counts import party_weight
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.secagg.base import IntVector, Levels, SecureSum, SumId
from mpcfl.secagg.salvage import parts_of

# Coordinates from the first up to, and without, the last.
Span = tuple[int, int]
# Steps per level when coordinates are scaled: far below the noise, and a power of two.
_STEPS = 1024.0


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Piece:
    """Neighboring coordinates that were opened together.

    Attributes:
        span: which ones.
        attempt: that opened them.
        values: their sum, shape (stop - start,), int64, centred; None at an aggregator, which is
            told no sum, only that it is known.
    """

    span: Span
    attempt: int
    values: IntVector | None


class OpenedSum:
    """The pieces of one round's sum, as far as this party knows them.

    Args:
        dim: length of the whole.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._pieces: dict[Span, Piece] = {}
        self._rosters: dict[int, tuple[int, ...]] = {}
        self._whole: IntVector | None = None

    @classmethod
    def whole(cls, values: IntVector, roster: Iterable[int]) -> OpenedSum:
        """Return a sum that is known at once, over these data parties."""
        opened = cls(values.size)
        opened.note_roster(0, roster)
        opened.add(Piece((0, values.size), 0, values))
        opened._whole = values
        return opened

    def note_roster(self, attempt: int, roster: Iterable[int]) -> None:
        """Note which data parties are in an attempt."""
        self._rosters[attempt] = tuple(roster)

    def add(self, piece: Piece) -> None:
        """Take a piece; the same one again changes nothing.

        Raises:
            ValueError: it overlaps another piece; the caller must never let that happen.
        """
        known = self._pieces.get(piece.span)
        if known is None and any(_overlap(piece.span, span) for span in self._pieces):
            raise ValueError("a coordinate was opened twice")
        if known is None and piece.span[0] < piece.span[1]:
            self._pieces[piece.span] = piece

    def add_all(self, values: IntVector, session: PartialSum, attempt: int) -> None:
        """Take the sum of all coordinates of a session, in the pieces in which others know it."""
        for part in parts_of(session.secure, values.size):
            at = part.start
            for start, stop in session.places(part):
                self.add(Piece((start, stop), attempt, values[at : at + stop - start]))
                at += stop - start
        if session.spans == ((0, self.dim),):
            self._whole = values

    @property
    def pieces(self) -> list[Piece]:
        """Return all pieces, in order."""
        return [self._pieces[span] for span in sorted(self._pieces)]

    @property
    def missing(self) -> tuple[Span, ...]:
        """Return the coordinates that are not known."""
        gaps, at = [], 0
        for start, stop in sorted(self._pieces):
            if at < start:
                gaps.append((at, start))
            at = stop
        return (*gaps, (at, self.dim)) if at < self.dim else tuple(gaps)

    @property
    def rosters(self) -> Mapping[int, tuple[int, ...]]:
        """Return the data parties of every attempt that has a piece."""
        used = {piece.attempt for piece in self._pieces.values()}
        return {attempt: self._rosters[attempt] for attempt in sorted(used)}

    @property
    def widest_roster(self) -> tuple[int, ...]:
        """Return the largest roster that has a piece: that of the first attempt with one."""
        return max(self.rosters.values(), key=len)

    def vector(self) -> IntVector:
        """Return the whole sum, shape (dim,), int64.

        Raises:
            ValueError: not all of it is known here.
        """
        pieces = self.pieces
        if self.missing or any(piece.values is None for piece in pieces):
            raise ValueError("not all of this sum is known here")
        if self._whole is not None:
            return self._whole
        return np.concatenate(
            [np.empty(0, np.int64), *(p.values for p in pieces if p.values is not None)]
        )

    def factors(self, size_of: Callable[[tuple[int, ...]], float]) -> NDArray[np.float64] | None:
        """Return what each coordinate is multiplied by to count as one over `widest_roster`.

        Args:
            size_of: what a sum over a roster is divided by to make a mean.

        Returns:
            Shape (dim,), float64; None where one roster has it all.
        """
        if len(set(self.rosters.values())) < 2:
            return None
        factors = np.ones(self.dim)
        whole = size_of(self.widest_roster)
        for piece in self.pieces:
            factors[slice(*piece.span)] = whole / size_of(self._rosters[piece.attempt])
        return factors


class PartialSum:
    """A session for some coordinates of longer vectors: a retry after a loss.

    Takes whole vectors, as the session for all of them does, and leaves out what is known.

    Args:
        secure: the session; its vectors have the coordinates of the spans, one after the other.
        spans: ascending.
    """

    def __init__(self, secure: SecureSum, spans: Iterable[Span]) -> None:
        self.secure, self.spans = secure, tuple(spans)

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Any:
        """See `SecureSum.protect`."""
        return self.secure.protect(None if levels is None else take(levels, self.spans), sum_id)

    def aggregate(self, protected: Any) -> Any:
        """See `SecureSum.aggregate`."""
        return self.secure.aggregate(protected)

    def open(self, aggregated: Any) -> Levels:
        """See `SecureSum.open`; the sum of the chosen coordinates only."""
        return self.secure.open(aggregated)

    def places(self, part: slice) -> list[Span]:
        """Return where a part of the shorter vector lies in the whole one."""
        found, before = [], 0
        for start, stop in self.spans:
            first, last = max(part.start - before, 0), min(part.stop - before, stop - start)
            if first < last:
                found.append((start + first, start + last))
            before += stop - start
        return found


def comparable_levels(
    opened: OpenedSum, ring: NoisePlan, parties: PartiesTable
) -> IntVector | NDArray[np.float64]:
    """Return a sum as if the widest roster had contributed to every coordinate.

    Args:
        opened: all of it known.
        ring: says what sums are divided by, and where the counts begin.
        parties: says how they are weighted.

    Returns:
        Shape (dim,); the integers themselves where one roster has it all, else float64, whole
        multiples of 2^-10, so that sums of them are exact in any order and equal everywhere.
    """
    levels = opened.vector()
    by_weight = opened.factors(lambda roster: _weight(ring, parties, roster))
    by_number = opened.factors(lambda roster: ring.denominator(len(roster)))
    if by_weight is None or by_number is None:
        return levels
    factors = np.concatenate((by_weight[: ring.rotated_dim], by_number[ring.rotated_dim :]))
    return np.rint(levels * factors * _STEPS) / _STEPS


def _weight(ring: NoisePlan, parties: PartiesTable, roster: tuple[int, ...]) -> float:
    if parties.weighting is Weighting.PUBLIC:
        return math.fsum(party_weight(parties, party, 0) for party in roster)
    return ring.denominator(len(roster))


def take(vector: Levels, spans: tuple[Span, ...]) -> Levels:
    """Return the coordinates of some spans, one after the other; the vector itself if it is all."""
    if spans == ((0, vector.size),):
        return vector
    return np.concatenate([vector[:0], *(vector[start:stop] for start, stop in spans)])


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]
