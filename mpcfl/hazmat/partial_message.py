"""Partial decryptions on the wire: fixed widths, so that lengths tell nothing and are checked.

A message is the share's index, the proof's challenge and response, and one value mod n^2 per
ciphertext, each as big-endian bytes of a width that the threshold key fixes. What is decoded is
unchecked: `threshold.check_partials` says whether it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpcfl.errors import ProtocolError
from mpcfl.hazmat.partial_proof import (
    CHALLENGE_BITS,
    PartialProof,
    encode_integers,
    response_bits,
    width_of,
)
from mpcfl.hazmat.threshold_key import ThresholdKey

_INDEX_BYTES = 4
_CHALLENGE_BYTES = CHALLENGE_BITS // 8


@dataclass(frozen=True, slots=True)
class PartialDecryption:
    """What a holder sends: values[j] = c_j^(2 Delta s_i) mod n^2 and their proof; unchecked."""

    index: int
    values: tuple[int, ...]
    proof: PartialProof


def encode_partial(key: ThresholdKey, partial: PartialDecryption) -> bytes:
    """Encode for the wire: index, challenge, response and values, all of fixed width."""
    head = (
        partial.index.to_bytes(_INDEX_BYTES, "big")
        + partial.proof.challenge.to_bytes(_CHALLENGE_BYTES, "big")
        + partial.proof.response.to_bytes(_response_bytes(key), "big")
    )
    return head + encode_integers(partial.values, width_of(key.public_key.square))


def decode_partial(key: ThresholdKey, message: bytes, count: int) -> PartialDecryption:
    """Decode what `encode_partial` wrote for ``count`` ciphertexts; nothing is checked but form.

    Raises:
        ProtocolError: the message has another length, or an index that the key does not have.
    """
    widths = [_INDEX_BYTES, _CHALLENGE_BYTES, _response_bytes(key)]
    widths += [width_of(key.public_key.square)] * count
    if len(message) != sum(widths):
        raise ProtocolError(
            f"a message with {count} partial decryptions has {len(message)} bytes, expected "
            f"{sum(widths)}; all parties need the same version and key"
        )
    numbers, start = [], 0
    for width in widths:
        numbers.append(int.from_bytes(message[start : start + width], "big"))
        start += width
    index, challenge, response, *values = numbers
    if not 1 <= index <= key.n_shares:
        raise ProtocolError(
            f"a partial decryption says it is of key share {index}, but there are {key.n_shares}"
        )
    return PartialDecryption(index, tuple(values), PartialProof(challenge, response))


def _response_bytes(key: ThresholdKey) -> int:
    return (response_bits(key.exponent_bits) + 7) // 8
