"""Checks that nothing which a rank sends shows its input: neither in a plain encoding nor in part.

`check_cleartext` looks for the input itself, in the encodings that programs use, at every
byte of every message. `check_correlation` finds what that misses (other scales, parts of
the bits, other offsets): under a uniform mask each word sent is independent of the input,
so their correlation exceeds t / sqrt(dim) with a probability of at most 2 exp(-t^2 / 2), for
every lag, every bit and every reading of the bytes as words. The bound is exact, not
asymptotic: a uniform word is a sum of independent weighted signs (Hoeffding 1963, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import correlate

from mpcfl.audit.observe import Observation, Words
from mpcfl.audit.uniformity import MIN_STREAM_BYTES, word_bits, words_of
from mpcfl.audit.verdict import FALSE_POSITIVE_RATE, Finding
from mpcfl.secagg.base import IntVector, to_offset_binary

Reals = NDArray[np.float64]

# Coordinates that have to come in a row: 128 bits or more in every encoding.
_WINDOW = 16
_WORD_TYPES = ("<u8", ">u8", "<u4", ">u4", "<u2", ">u2", "<u1")
_SEPARATORS = (",", ", ", " ", "\n")


def check_cleartext(observations: Sequence[Observation], numbers: Sequence[int]) -> Finding:
    """Check that no run of a rank's input occurs, in a plain encoding, in what it sent.

    Args:
        observations: sessions.
        numbers: of sums whose inputs are uniform over the ring.
    """
    found: set[str] = set()
    searched = 0
    for observation in observations:
        sent = _payloads(observation)
        for number in numbers:
            for rank, levels in enumerate(observation.inputs[number]):
                searched += len(sent[rank])
                found |= _encodings_in(sent[rank], levels, observation.settings.modulus_bits)
    names = f" ({', '.join(sorted(found))})" if found else ""
    detail = (
        f"{len(found)} plain encodings of a party's levels{names} were found in {searched:,} bytes "
        "that it sent; none may"
    )
    return Finding("nothing-in-the-clear", not found, detail, {"encodings_found": len(found)})


def _payloads(observation: Observation) -> list[bytes]:
    """Return all that each data party sent, sealed or not yet; opened sums are left out."""
    sent = [bytearray() for _ in range(observation.n_parties)]
    numbers = range(len(observation.inputs))
    opening = {(m.sender, m.payload): None for m in observation.wire if m.number < 0}
    for sender, payload in opening:
        if sender < len(sent):
            sent[sender] += payload
    for number in numbers:
        for inner in (False, True):
            for (sender, _), stream in observation.streams(number, inner=inner).items():
                if sender < len(sent):
                    sent[sender] += stream
    return [bytes(one) for one in sent]


def _encodings_in(sent: bytes, levels: IntVector, modulus_bits: int) -> set[str]:
    return {
        name
        for name, windows in _encoded_windows(levels, modulus_bits).items()
        if any(window in sent for window in windows)
    }


def _encoded_windows(levels: IntVector, modulus_bits: int) -> dict[str, list[bytes]]:
    """Return, per plain encoding, the bytes of each run of coordinates."""
    offset = to_offset_binary(np.ascontiguousarray(levels), modulus_bits)
    residue = offset ^ np.uint64(1 << (modulus_bits - 1))
    real = levels.astype(np.float64)
    fraction = real / 2.0 ** (modulus_bits - 1)
    arrays: dict[str, NDArray[np.generic]] = {}
    for order in "<>":
        word = "little-endian" if order == "<" else "big-endian"
        for n_bytes in (8, 4, 2, 1):
            if 8 * n_bytes >= modulus_bits:
                arrays[f"int{8 * n_bytes} {word}"] = levels.astype(f"{order}i{n_bytes}")
                arrays[f"offset uint{8 * n_bytes} {word}"] = offset.astype(f"{order}u{n_bytes}")
        arrays[f"residue uint64 {word}"] = residue.astype(f"{order}u8")
        for n_bytes in (8, 4):
            arrays[f"float{8 * n_bytes} {word}"] = real.astype(f"{order}f{n_bytes}")
            arrays[f"float{8 * n_bytes} fraction {word}"] = fraction.astype(f"{order}f{n_bytes}")
    starts = range(0, max(1, len(levels) - _WINDOW + 1), _WINDOW)
    pieces = {
        name: [array[start : start + _WINDOW].tobytes() for start in starts]
        for name, array in arrays.items()
    }
    for name, words in (("offset", offset), ("residue", residue)):
        for bit_order in ("little", "big"):
            pieces[f"{name} packed to {modulus_bits} bits, {bit_order} bit order"] = [
                _packed(words[start : start + _WINDOW], modulus_bits, bit_order) for start in starts
            ]
    for separator in _SEPARATORS:
        pieces[f"decimal text, {separator!r}"] = [
            separator.join(map(str, levels[start : start + _WINDOW].tolist())).encode()
            for start in starts
        ]
    return pieces


def _packed(words: Words, modulus_bits: int, bit_order: str) -> bytes:
    bits = words[:, None] >> np.arange(modulus_bits, dtype=np.uint64) & np.uint64(1)
    ordered = bits if bit_order == "little" else bits[:, ::-1]
    flat = ordered.astype(np.uint8).reshape(-1)
    return np.packbits(flat, bitorder="little" if bit_order == "little" else "big").tobytes()


def check_correlation(observation: Observation, numbers: Sequence[int]) -> Finding:
    """Check that what a rank sends does not correlate with its input, at any lag or bit.

    Args:
        observation: one session.
        numbers: of sums whose inputs are uniform over the ring.
    """
    largest, trials = 0.0, 0
    for number in numbers:
        for (sender, _), stream in observation.streams(number).items():
            if sender < observation.n_parties and len(stream) >= MIN_STREAM_BYTES:
                levels = observation.inputs[number][sender]
                for peaks, looked_at in _peaks(stream, levels, observation.settings.modulus_bits):
                    largest, trials = max(largest, peaks), trials + looked_at
    bound = math.sqrt(2 * math.log(2 * max(1, trials) / FALSE_POSITIVE_RATE))
    dim = observation.settings.dim
    detail = (
        f"the largest of {trials:,} correlations of sent words with the sender's levels is "
        f"{largest / math.sqrt(dim):.3f}, the bound {bound / math.sqrt(dim):.3f}"
    )
    figures = {"statistic": largest, "bound": bound, "trials": trials}
    return Finding("no-correlation", trials > 0 and largest <= bound, detail, figures)


def correlation_has_power(dim: int) -> bool:
    """Tell whether a vector sent in the clear would be found: its statistic is sqrt(dim)."""
    # 12 is above the bound for any number of trials that fits into memory.
    return math.sqrt(dim) >= 12


def _peaks(stream: bytes, levels: IntVector, modulus_bits: int) -> Iterator[tuple[float, int]]:
    """Yield the largest statistic and the number of lags, per reading and per bit."""
    offset = to_offset_binary(np.ascontiguousarray(levels), modulus_bits)
    signal = _unit(levels.astype(np.float64))
    signs = [_unit(_bit_signs(offset, bit)) for bit in range(modulus_bits)]
    for word_type in _WORD_TYPES:
        n_bytes = int(word_type[2])
        for phase in range(n_bytes):
            usable = (len(stream) - phase) // n_bytes
            if usable < len(levels):
                continue
            words = np.frombuffer(stream, word_type, usable, phase).astype(np.uint64)
            yield _peak(_centred(words, 8 * n_bytes), signal)
            if phase:
                continue
            for bit in range(min(modulus_bits, 8 * n_bytes)):
                yield _peak(_bit_signs(words, bit), signs[bit])
    width = word_bits(stream, len(levels))
    if width % 8:
        # No machine word fits: the words as they were before they were packed.
        words = words_of(stream, len(levels))
        yield _peak(_centred(words, width), signal)
        for bit in range(min(modulus_bits, width)):
            yield _peak(_bit_signs(words, bit), signs[bit])


def _peak(words: Reals, probe: Reals) -> tuple[float, int]:
    """Return the largest |sum of word x probe| over all lags, and how many lags there are."""
    sums = correlate(words, probe, mode="valid")
    return float(np.max(np.abs(sums))), len(sums)


def _centred(words: Words, width: int) -> Reals:
    """Map words to reals of mean zero and variance one if they are uniform; two's complement."""
    spare = np.uint64(64 - width)
    signed = (words << spare).view(np.int64).astype(np.float64) / 2.0**63
    return (signed + 2.0**-width) * math.sqrt(3.0)


def _bit_signs(words: Words, bit: int) -> Reals:
    signs: Reals = (words >> np.uint64(bit) & np.uint64(1)).astype(np.float64) * 2.0 - 1.0
    return signs


def _unit(values: Reals) -> Reals:
    """Scale to Euclidean norm one."""
    return values / max(float(np.linalg.norm(values)), 1e-300)
