"""Backends with one fault each, which the audit of masks must find."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.net.channel import agree_pair_secrets
from mpcfl.secagg import custody
from mpcfl.secagg.crypten_sum import CryptenSum
from mpcfl.secagg.phe_sum import open_phe_sum


class Altered:
    """A stream of mask words with something done to them."""

    def __init__(self, stream, change):
        self.stream, self.change = stream, change

    def fill(self, out):
        self.stream.fill(out)
        out[:] = self.change(out)


class TopBitZero(CryptenSum):
    def _streams(self):
        streams = super()._streams()
        return [(Altered(s, lambda w: w >> np.uint64(1)), adds) for s, adds in streams]


class OneBitBiased(CryptenSum):
    """Bit 17 of a mask is one in three quarters of all words."""

    def _streams(self):
        def bias(words):
            return words | ((words >> np.uint64(1)) & np.uint64(1 << 17))

        return [(Altered(s, bias), adds) for s, adds in super()._streams()]


class TwinBits(CryptenSum):
    """The two highest bits of a mask are always equal; each by itself is fair."""

    def _streams(self):
        def twin(words):
            second = words << np.uint64(1)
            return (second >> np.uint64(1)) | (second & np.uint64(1 << 63))

        return [(Altered(s, twin), adds) for s, adds in super()._streams()]


class SameMaskInEverySum(CryptenSum):
    def _streams(self):
        self._sums = 0
        return super()._streams()


class RepeatedBlock(CryptenSum):
    """A mask repeats its first 256 words over and over."""

    def _streams(self):
        def repeat(words):
            return np.resize(words[:256].copy(), len(words))

        return [(Altered(s, repeat), adds) for s, adds in super()._streams()]


class TwoNeighborsOnly(CryptenSum):
    """Shares of zero around a ring, as CrypTen ships them, from keys as good as ours."""

    def _streams(self):
        near = {(self._rank + 1) % self._n_ranks, (self._rank - 1) % self._n_ranks}
        self._peers = tuple(peer for peer in self._peers if peer in near)
        return super()._streams()


class ShortMaskSeeds(CryptenSum):
    """Masks from 16 bits of the derived key, stretched by a hash."""

    def _streams(self):
        self._sums += 1
        return [(self._short(peer), self._rank < peer) for peer in self._peers]

    def _short(self, peer):
        key = self._secrets.key(peer, "short", self._sums)
        return raw_keyed_bits(hashlib.sha256(key[:2]).digest())


class Telling(CryptenSum):
    """Also sends its levels, encoded by ``tell``, to everybody."""

    def __init__(self, transport, settings, secrets, tell):
        super().__init__(transport, settings, secrets)
        self._transport, self._tell = transport, tell

    def protect(self, levels):
        self._transport.allgather(self._tell(levels))
        return super().protect(levels)


class StretchedBits:
    """Words stretched from a short seed."""

    def __init__(self, seed):
        self.seed = seed

    def words(self, count):
        return raw_keyed_bits(hashlib.sha256(self.seed).digest()).words(count)


def opener(kind):
    return lambda transport, settings: kind(
        transport, settings, agree_pair_secrets(transport, settings.run_id)
    )


def open_with_short_secrets(transport, settings):
    bits = StretchedBits(os.urandom(2))
    return CryptenSum(transport, settings, agree_pair_secrets(transport, settings.run_id, bits))


def open_with_the_same_secrets(transport, settings):
    bits = StretchedBits(bytes([transport.rank]))
    return CryptenSum(transport, settings, agree_pair_secrets(transport, settings.run_id, bits))


def open_with_hashed_32_bit_seeds(transport, settings):
    """Only its opening is real enough: what it publishes is a hash of 32 bits."""
    transport.allgather(hashlib.sha256(os.urandom(4)).digest())
    return CryptenSum(transport, settings, agree_pair_secrets(transport, settings.run_id))


def open_phe_with_one_randomizer(transport, settings):
    session = open_phe_sum(transport, settings)
    key = session._link.ops._public_key
    session._link.ops.encrypt = lambda values: [key.raw_encrypt(v, 12345) for v in values.tolist()]
    return session


@pytest.fixture
def small_keys(monkeypatch):
    monkeypatch.setattr(custody, "MIN_KEY_BITS", 512)


def open_phe_with_a_detour(transport, settings):
    """Rank 1 also sends its ciphertexts straight to rank 0, which owns the key."""
    session = open_phe_sum(transport, settings)
    link, aggregate = session._link, session.aggregate

    def detour(protected):
        for chunk, own in zip(session._chunks, protected.ciphertexts, strict=True):
            if transport.rank == 1:
                link.send_ciphertexts(0, own)
            if transport.rank == 0:
                link.receive_ciphertexts(1, chunk)
        return aggregate(protected)

    session.aggregate = detour
    return session
