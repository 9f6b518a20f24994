"""An attack by the owner of a Paillier key: decrypt every ciphertext that it ever received.

Custody promises that an owner of the private key receives products over several parties only.
The auditor takes each message that reached an owner, as it was before sealing, decrypts it
with the owner's own key, reads the slots where values are packed, and compares what comes out
with every other party's input.

Tried here is the owner alone. An owner that pools what it has with a rank through which single
ciphertexts pass reads inputs under either custody: that is a stated limit, no finding. Where
nobody owns the key, see `key_shares.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpcfl.audit.observe import Observation, Words
from mpcfl.audit.tap import Message, Recorder
from mpcfl.audit.verdict import Finding
from mpcfl.errors import MpcflError
from mpcfl.secagg.base import IntVector, SecureSum, to_offset_binary

_WORD = (1 << 64) - 1
# Pieces of an input that are shorter than this in all may be equal by chance.
_LEAST_BITS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Decrypted:
    """What an owner of the private key read out of one message. Secret.

    Attributes:
        number: of the sum.
        words: values in offset binary, as they were added up, uint64.
    """

    number: int
    words: Words = field(repr=False)


def decrypt_all_received(session: SecureSum, rank: int, recorder: Recorder) -> list[Decrypted]:
    """Return what all ciphertexts that this rank received decrypt to; see `Inspector`.

    Args:
        session: of a Paillier backend, not closed yet.
        rank: of the session.
        recorder: has all messages of the sums that this rank has finished.
    """
    route: Any = session
    ops = route._link.ops
    return [
        Decrypted(message.number, slot_words(ops, plaintexts))
        for message, ciphertexts in received_ciphertexts(ops, rank, recorder)
        if (plaintexts := ops.raw_decrypt(ciphertexts))
    ]


def received_ciphertexts(
    ops: Any, rank: int, recorder: Recorder
) -> Iterator[tuple[Message, list[int]]]:
    """Yield the messages of sums to a rank that hold ciphertexts under its key, and those.

    Args:
        ops: the rank's `CipherOps`.
        rank: of the session.
        recorder: has all messages of the sums that this rank has finished.
    """
    width_bytes = len(ops.write([1]))
    for message in list(recorder.inner):
        count, rest = divmod(len(message.payload), width_bytes)
        if rank not in message.receivers or message.number < 0 or rest or not count:
            continue
        try:
            yield message, ops.read(message.payload, count * ops.slots)
        except MpcflError:
            continue


def slot_words(ops: Any, plaintexts: Sequence[int]) -> Words:
    """Return the values in plaintexts, slot by slot, mod 2^64; zeros at the end are left out."""
    layout = getattr(ops, "layout", None)
    values = list(plaintexts)
    if layout is not None:
        slot = (1 << layout.slot_bits) - 1
        starts = range(0, layout.used_bits, layout.slot_bits)
        values = [plaintext >> start & slot for plaintext in plaintexts for start in starts]
    words = np.array([int(value & _WORD) for value in values], dtype=np.uint64)
    trimmed: Words = np.trim_zeros(words, "b")
    return trimmed


def is_read(pieces: Sequence[Words], levels: IntVector, modulus_bits: int) -> bool:
    """Tell whether decrypted pieces are pieces of one party's input, more than chance gives."""
    whole = to_offset_binary(np.ascontiguousarray(levels), modulus_bits).tobytes()
    found = sum(len(piece) for piece in pieces if piece.tobytes() in whole)
    return found * modulus_bits >= _LEAST_BITS


def check_key_owners(observation: Observation) -> Finding:
    """Check that nothing which an owner decrypted is the input of one party."""
    bits = observation.settings.modulus_bits
    read = sum(
        is_read([one.words for one in decrypted if one.number == number], levels, bits)
        for owner, decrypted in observation.inspected.items()
        for number, vectors in enumerate(observation.inputs)
        for rank, levels in enumerate(vectors)
        if rank != owner
    )
    n_decrypted = sum(len(decrypted) for decrypted in observation.inspected.values())
    detail = (
        f"owners of the private key decrypted all {n_decrypted} messages of ciphertexts that they "
        f"received and got {read} times another party's input; none may be"
    )
    figures = {"decrypted": n_decrypted, "inputs_read": read}
    return Finding("key-owner-reads-sums-only", read == 0 and n_decrypted > 0, detail, figures)
