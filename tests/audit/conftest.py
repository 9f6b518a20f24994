"""Backends with one fault each, which the audit of masks must find."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.net.channel import agree_pair_secrets
from mpcfl.secagg import custody
from mpcfl.secagg.base import FIRST_SUM
from mpcfl.secagg.crypten_sum import CryptenSum
from mpcfl.secagg.masks import PairMasks
from mpcfl.secagg.paillier_sum import open_paillier_sum
from mpcfl.secagg.phe_sum import open_phe_sum
from mpcfl.secagg.ring_sum import RingSum

PURPOSES = {"crypten": "crypten-mask", "ring": "ring-mask"}


class Altered:
    """A stream of mask words with something done to them."""

    def __init__(self, stream, change):
        self.stream, self.change = stream, change

    def fill(self, out):
        self.stream.fill(out)
        out[:] = self.change(out)


class AlteredMasks(PairMasks):
    """Masks whose words of ``bits`` bits go through `change`."""

    def _streams(self, sum_id, number):
        return [(Altered(s, self.change), adds) for s, adds in super()._streams(sum_id, number)]

    def bit(self, words, place):
        return words.dtype.type(1 << place)


class TopBitZero(AlteredMasks):
    def change(self, words):
        return words & ~self.bit(words, self.bits - 1)


class OneBitBiased(AlteredMasks):
    """A bit of a mask, the 17th of 32, is one in three quarters of all words."""

    def change(self, words):
        place = self.bits // 2 + 1
        return words | ((words >> self.bit(words, 0)) & self.bit(words, place))


class TwinBits(AlteredMasks):
    """The two highest bits of a mask are always equal; each by itself is fair."""

    def change(self, words):
        top = self.bit(words, self.bits - 1)
        return (words & ~top) | ((words << self.bit(words, 0)) & top)


class LowBitsOnly(AlteredMasks):
    """The upper half of each word goes without a mask."""

    def change(self, words):
        return words & words.dtype.type((1 << self.bits // 2) - 1)


class TwinHalves(AlteredMasks):
    """Both halves of a mask are equal; every byte of it is fair."""

    def change(self, words):
        half = words.dtype.type(self.bits // 2)
        low = words & words.dtype.type((1 << self.bits // 2) - 1)
        return low | (low << half)


class RepeatedBlock(AlteredMasks):
    """A mask repeats its first 256 words over and over."""

    def change(self, words):
        return np.resize(words[:256].copy(), len(words))


class SameMaskInEverySum(PairMasks):
    def _streams(self, sum_id, number):
        return super()._streams(FIRST_SUM, number)


class TwoNeighborsOnly(PairMasks):
    """Shares of zero around a ring, as CrypTen ships them, from keys as good as ours."""

    def _streams(self, sum_id, number):
        near = {(self._rank + 1) % self.n_ranks, (self._rank - 1) % self.n_ranks}
        self._peers = tuple(peer for peer in self._peers if peer in near)
        return super()._streams(sum_id, number)


class OnePairWithout(PairMasks):
    """Ranks 0 and 1 share no mask with each other."""

    def _streams(self, sum_id, number):
        self._peers = tuple(peer for peer in self._peers if {peer, self._rank} != {0, 1})
        return super()._streams(sum_id, number)


class SameSign(PairMasks):
    """Both sides of a pair add their stream."""

    def _streams(self, sum_id, number):
        return [(stream, True) for stream, _ in super()._streams(sum_id, number)]


class Bare(PairMasks):
    """No masks at all."""

    def _streams(self, sum_id, number):
        super()._streams(sum_id, number)
        return []


class ShortMaskSeeds(PairMasks):
    """Masks from 16 bits of the derived key, stretched by a hash."""

    def _streams(self, sum_id, number):
        context = (sum_id.round_id, number)
        return [(self._short(peer, *context), self._rank < peer) for peer in self._peers]

    def _short(self, peer, *context):
        key = self._secrets.key(peer, "short", *context)
        return raw_keyed_bits(hashlib.sha256(key[:2]).digest())


class Telling:
    """A session that also sends its levels, encoded by ``tell``, to everybody."""

    def __init__(self, session, transport, tell):
        self._session, self._transport, self._tell = session, transport, tell

    def __getattr__(self, name):
        return getattr(self._session, name)

    def protect(self, levels):
        self._transport.allgather(self._tell(levels))
        return self._session.protect(levels)


class NumberedAlike(Telling):
    """A session that makes every sum under the number of the first one."""

    def protect(self, levels):
        self._session._masks._last = None
        return self._session.protect(levels)


def session_of(backend, transport, settings, secrets, kind=PairMasks):
    """Return a session of a backend with another kind of masks."""
    masks = kind(transport.rank, secrets, PURPOSES[backend])
    masks.n_ranks = transport.n_ranks
    masks.bits = 64 if backend == "crypten" else settings.modulus_bits
    if backend == "ring":
        return RingSum(transport, settings, masks)
    # These masks come too late for those that are made ahead.
    session = CryptenSum(transport, replace(settings, precompute=False), secrets)
    session._masks.pairs = masks
    return session


class StretchedBits:
    """Words stretched from a short seed."""

    def __init__(self, seed):
        self.seed = seed

    def words(self, count):
        return raw_keyed_bits(hashlib.sha256(self.seed).digest()).words(count)


def opener(kind, backend="crypten"):
    def factory(transport, settings):
        secrets = agree_pair_secrets(transport, settings.run_id)
        return session_of(backend, transport, settings, secrets, kind)

    return factory


def teller(tell, backend="crypten", kind=Telling):
    def factory(transport, settings):
        return kind(opener(PairMasks, backend)(transport, settings), transport, tell)

    return factory


def open_from(seed, backend="crypten"):
    """Return a factory whose ranks stretch their session secrets from ``seed(rank)``."""

    def factory(transport, settings):
        bits = StretchedBits(seed(transport.rank))
        secrets = agree_pair_secrets(transport, settings.run_id, bits)
        return session_of(backend, transport, settings, secrets)

    return factory


def open_with_hashed_32_bit_seeds(transport, settings):
    """Only its opening is real enough: what it publishes is a hash of 32 bits."""
    transport.allgather(hashlib.sha256(os.urandom(4)).digest())
    return opener(PairMasks)(transport, settings)


def open_phe_with_one_randomizer(transport, settings):
    session = open_phe_sum(transport, settings)
    key = session._link.ops._public_key
    offset = 1 << (settings.modulus_bits - 1)
    session._link.ops.encrypt = lambda levels: [
        key.raw_encrypt(level + offset, 12345) for level in levels.tolist()
    ]
    return session


def open_paillier_with_one_randomizer(transport, settings):
    session = open_paillier_sum(transport, settings)
    pool = session._link.ops._pool
    if pool is not None:
        first = pool.take(1)
        pool.take = lambda count: first * count
    return session


@pytest.fixture
def small_keys(monkeypatch):
    monkeypatch.setattr(custody, "MIN_KEY_BITS", 512)


def detour(open_sum):
    """Return a factory where rank 1 also sends its ciphertexts straight to rank 0, a key owner."""

    def factory(transport, settings):
        session = open_sum(transport, settings)
        link, aggregate = session._link, session.aggregate

        def with_detour(protected):
            for chunk in link.chunks:
                if transport.rank == 1:
                    link.send_ciphertexts(0, link.ops.encrypt(protected[chunk]))
                if transport.rank == 0:
                    link.receive_ciphertexts(1, chunk)
            return aggregate(protected)

        session.aggregate = with_detour
        return session

    return factory


DETOURS = {"phe": detour(open_phe_sum), "paillier": detour(open_paillier_sum)}
ONE_RANDOMIZER = {
    "phe": open_phe_with_one_randomizer,
    "paillier": open_paillier_with_one_randomizer,
}
