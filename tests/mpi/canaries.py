"""Search of captured traffic for secrets, in every encoding that anything here writes.

What counts is a run of bytes: a secret is found if so many bytes in a row of one of its encodings
are in a stream. Windows of 16 bytes (8 for texts and for what is shorter) meet random bytes with
2^-128 (2^-64) for each pair of places: with 10^7 bytes of stream and 10^6 windows of 8 bytes, of
which a search has far fewer, the chance of a false hit is 5e-7, and with 16 bytes nil.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.net.codec import WordCodec

Bytes = NDArray[np.uint8]
WINDOW_BYTES = 16
SHORT_BYTES = 8
# A window of fewer different bytes, as in a run of small numbers, is everywhere.
_LEAST_VARIETY = 6
_MIX = np.uint64(0x9E3779B97F4A7C15)


def of_integers(values: NDArray[Any], bits: int) -> Iterator[bytes]:
    """Yield a vector of integers in every encoding: words, packed words, texts.

    Args:
        values: shape (n,), int64.
        bits: b; both residues mod 2^b and values above -2^(b-1) are looked for.
    """
    plain = values.astype(np.int64)
    for shifted in (plain, plain + (1 << (bits - 1))):
        for size in (1, 2, 4, 8):
            # Casts of integers take them mod 2^(8 size).
            for order in "<>":
                yield from _as_text_too(shifted.astype(f"{order}i{size}").tobytes())
        codec = WordCodec(bits)
        yield codec.pack(shifted.view(np.uint64).astype(codec.dtype)).tobytes()
    yield from of_numbers(plain)


def of_numbers(values: NDArray[Any]) -> Iterator[bytes]:
    """Yield a vector of numbers as floats in both orders, and as texts."""
    flat = np.ravel(values)
    for size in (2, 4, 8):
        for order in "<>":
            with np.errstate(over="ignore"):
                floats = flat.astype(f"{order}f{size}")
            if np.isfinite(floats).all():
                yield from _as_text_too(floats.tobytes())
    numbers = flat.tolist()
    for separator in (",", ", ", " ", "\n"):
        yield separator.join(map(repr, numbers)).encode()
        yield separator.join(f"{number:.6g}" for number in numbers).encode()


def of_key(key: bytes) -> Iterator[bytes]:
    """Yield a key in both orders, and as texts."""
    yield from _as_text_too(key)
    yield from _as_text_too(key[::-1])
    yield str(int.from_bytes(key, "big")).encode()


def _as_text_too(content: bytes) -> Iterator[bytes]:
    yield content
    yield content.hex().encode()
    yield content.hex().upper().encode()
    # By where it begins in the text: at one byte of three.
    for skipped in range(3):
        yield base64.b64encode(content[skipped : len(content) - (len(content) - skipped) % 3])
        yield base64.urlsafe_b64encode(content[skipped:])


class Haystack:
    """Streams of bytes in which runs of bytes are looked for."""

    def __init__(self, streams: Sequence[bytes]) -> None:
        # What ends one stream and begins the next is no run of either.
        self._content = (b"\xa5" * WINDOW_BYTES).join(streams)
        self._marks = {n: np.unique(_marks(self._content, n)) for n in (SHORT_BYTES, WINDOW_BYTES)}

    def holds(self, encodings: Iterable[bytes], window: int = WINDOW_BYTES) -> bool:
        """Tell whether any encoding has ``window`` bytes in a row with the streams in common."""
        return any(True for encoding in encodings for _ in self._shared(encoding, window))

    def share(self, encoding: bytes, window: int = WINDOW_BYTES) -> float:
        """Return the part of an encoding's windows that are in the streams."""
        return sum(1 for _ in self._shared(encoding, window)) / max(1, len(encoding) - window + 1)

    def _shared(self, encoding: bytes, window: int) -> Iterator[bytes]:
        marks = _marks(encoding, window)
        known = self._marks[window]
        places = np.minimum(np.searchsorted(known, marks), len(known) - 1)
        for place in np.flatnonzero(known[places] == marks):
            run = encoding[place : place + window]
            if len(set(run)) >= _LEAST_VARIETY and run in self._content:
                yield run


def _marks(content: bytes, window: int) -> NDArray[np.uint64]:
    """Return a number for each window of some bytes: equal ones have equal numbers."""
    n_windows = len(content) - window + 1
    if n_windows <= 0:
        return np.empty(0, np.uint64)
    data = np.frombuffer(content, np.uint8)
    words = np.zeros(len(data) - 7, np.uint64)
    for place in range(8):
        words |= data[place : place + len(words)].astype(np.uint64) << np.uint64(8 * place)
    marks = words[:n_windows].copy()
    for place in range(8, window, 8):
        marks = marks * _MIX + words[place : place + n_windows]
    return marks
