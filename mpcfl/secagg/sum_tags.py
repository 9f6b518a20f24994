"""What the data parties of a checked sum share against the network: a key, and masked tags.

All data parties know a group key K, to which each contributed; the network and an aggregator do
not. For each part of each sum K gives a fresh secret r (`hazmat/linear_tag.py`). A party's tag
<r, x> mod p leaves it under one mask per other data party, uniform mod p, which cancel in the
sum over all of them and in nothing less: what becomes known is <r, sum>, a function of the sum.

Assumes: parties that follow the protocol; whoever knows K can make a wrong sum that passes.
Does not protect against a party that puts in what it should not: tags are of what it put in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from mpcfl.errors import OutOfOrder, WrapDetected
from mpcfl.hazmat.bits import KEY_BYTES, SystemBits, derive_key, domain_tag, raw_keyed_bits
from mpcfl.hazmat.linear_tag import (
    Coefficients,
    raw_coefficients,
    raw_linear_tag,
    raw_residues,
    raw_vector_digest,
    tag_prime,
)
from mpcfl.net.channel import PairSecrets, SealedTransport
from mpcfl.net.wire import Format, Kind, fixed
from mpcfl.secagg.base import Levels, SumId, SumSettings, check_range

_KEY_WORDS = KEY_BYTES // 8
_CONTRIBUTION = Format(Kind.TAG_KEY, contribution=fixed(KEY_BYTES))
# Up to so many bits a vector is compared as int32, whichever type a rank has it in.
_SHORT_BITS = 32


class SumTags:
    """One data party's tags, and what it checks those of all others by. Secret.

    Args:
        group_key: K, 32 bytes.
        secrets: shared with every other data party; taken over.
        settings: of the session.
        parts: how its vectors fall into parts; equal at all ranks.

    Attributes:
        prime: p.
        width: bytes that a number mod p takes.
    """

    def __init__(
        self,
        group_key: bytes,
        secrets: PairSecrets,
        settings: SumSettings,
        parts: Sequence[slice],
    ) -> None:
        self._group_key = group_key
        self._secrets = secrets
        self._bits = settings.modulus_bits
        self._parts = parts
        self._process_id = os.getpid()
        self._drawn: tuple[SumId, Coefficients] | None = None
        self.prime = tag_prime(self._bits)
        self.width = -(-self.prime.bit_length() // 8)

    def masked(self, levels: Levels, sum_id: SumId, rank: int) -> bytes:
        """Return the tags of this rank's vector under their masks, one number per part.

        Args:
            levels: shape (dim,), contiguous, each value in [-2^(b-1), 2^(b-1)).
            sum_id: once for each, as a second vector under the same masks would show a difference.
            rank: this one.

        Raises:
            OutOfOrder: this is a child process, whose parent has the same masks.
        """
        if os.getpid() != self._process_id:
            raise OutOfOrder("this session was opened before a fork; open a new one")
        coefficients = self._coefficients(sum_id)
        tags = [
            raw_linear_tag(levels[part], coefficients, number)
            for number, part in enumerate(self._parts)
        ]
        for peer in self._secrets.peers:
            key = self._secrets.key(peer, "sum-tag-mask", sum_id.round_id, sum_id.attempt)
            masks = raw_residues(raw_keyed_bits(key), len(tags), self.prime)
            sign = 1 if rank < peer else -1
            tags = [tag + sign * mask for tag, mask in zip(tags, masks, strict=True)]
        return b"".join((tag % self.prime).to_bytes(self.width, "big") for tag in tags)

    def add_up(self, messages: Sequence[bytes]) -> list[int]:
        """Return the tag of the sum for each part, from the masked tags of all data parties."""
        totals = [0] * len(self._parts)
        for message in messages:
            for number in range(len(totals)):
                place = number * self.width
                totals[number] += int.from_bytes(message[place : place + self.width], "big")
        return [total % self.prime for total in totals]

    def is_tag_of(self, total: int, sum_id: SumId, number: int, values: Levels) -> bool:
        """Tell whether a part of the sum has the tag that the sum has.

        Args:
            total: what `add_up` returned for that part.
            sum_id: which sum.
            number: of the part.
            values: what was opened; a wrong length or a value outside the ring is never right.
        """
        part = self._parts[number]
        if values.shape != (part.stop - part.start,):
            return False
        try:
            check_range(values, self._bits)
        except WrapDetected:
            return False
        contiguous = np.ascontiguousarray(values)
        return raw_linear_tag(contiguous, self._coefficients(sum_id), number) == total

    def digest(self, sum_id: SumId, nonces: Sequence[bytes], opened: Levels) -> bytes:
        """Return 16 bytes by which parties compare what they were told.

        Args:
            sum_id: which sum.
            nonces: of all data parties, each drawn after its own vector was opened: nobody can
                have chosen what to tell whom by them.
            opened: shape (dim,), each value in [-2^(b-1), 2^(b-1)).
        """
        drawn = (nonce.hex() for nonce in nonces)
        tag = domain_tag("sum-digest", sum_id.round_id, sum_id.attempt, *drawn)
        key = derive_key(self._group_key, tag)
        one_type = np.dtype("<i4" if self._bits <= _SHORT_BITS else "<i8")
        return raw_vector_digest(key, np.ascontiguousarray(opened, dtype=one_type))

    def put_away(self) -> None:
        """Let go of r; it can be drawn again."""
        self._drawn = None

    def forget(self) -> None:
        """Drop all secrets."""
        self.put_away()
        self._group_key = b""
        self._secrets.forget()

    def __repr__(self) -> str:
        return "SumTags(<redacted>)"

    def _coefficients(self, sum_id: SumId) -> Coefficients:
        """Return r of all parts of a sum; that of the last sum is kept."""
        if not self._group_key:
            raise OutOfOrder("this session was closed; open a new one")
        if self._drawn is None or self._drawn[0] != sum_id:
            tag = domain_tag("sum-tag", sum_id.round_id, sum_id.attempt)
            stream = raw_keyed_bits(derive_key(self._group_key, tag))
            lengths = [part.stop - part.start for part in self._parts]
            self._drawn = sum_id, raw_coefficients(stream, lengths, self._bits)
        return self._drawn[1]


def agree_group_key(
    wires: SealedTransport, rank: int, data_ranks: Sequence[int], run_id: str
) -> bytes:
    """Return K, to which all data ranks contribute; they call it together, nobody else does.

    Raises:
        ProtocolError: a rank sent something else than a contribution.
    """
    own = SystemBits().words(_KEY_WORDS).tobytes()
    others = [other for other in data_ranks if other != rank]
    message = _CONTRIBUTION.encode(contribution=own)
    received = wires.exchange(dict.fromkeys(others, message), others)
    contributions = {
        source: _CONTRIBUTION.decode(text, f"rank {source}")["contribution"]
        for source, text in received.items()
    }
    contributions[rank] = own
    together = b"".join(contributions[source] for source in data_ranks)
    return derive_key(together, domain_tag("sum-tag-group", run_id, *data_ranks))
