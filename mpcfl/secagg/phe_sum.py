"""The `phe` backend: textbook Paillier, one `phe` ciphertext per coordinate. A baseline.

Integers go in as they are (no `EncodedNumber`), in offset binary; ciphertexts are multiplied
by gmpy2. Randomizers are phe's own: `random.SystemRandom` below n, the operating system's
generator. Source: Paillier 1999 (EUROCRYPT), scheme 1, with g = n + 1 and phe's decryption
by the Chinese remainder theorem.

Who learns an input: whoever owns the private key and sees a single ciphertext. Nobody does
both, unless ranks collude as `custody.py` says. Ranks are assumed to follow the protocol:
nothing proves that a product is complete or that an opened sum is the true one. Powers are
not computed in constant time. This is the only module that imports `phe` (GPLv3).
"""

from __future__ import annotations

from collections.abc import Sequence

import gmpy2
import numpy as np
import phe

from mpcfl.errors import ConfigError, OutOfOrder, ProtocolError
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    IntVector,
    Levels,
    SumId,
    SumSettings,
    from_offset_binary,
    to_offset_binary,
)
from mpcfl.secagg.custody import assign_roles, check_key_bits
from mpcfl.secagg.key_dealing import deal_primes, open_wires
from mpcfl.secagg.paillier_codec import CiphertextCodec
from mpcfl.secagg.paillier_link import Ciphertexts
from mpcfl.secagg.paillier_routes import ClientsSum, HolderSum

# Values in the largest chunk, for keys of up to 2048 bits: 512 encryptions take 4 s. The cost
# of one grows with about the cube of the key (0.27 s at 8192 bits), so longer keys get
# shorter chunks, see `chunk_values`; a deadline of 120 s is far away for all of them.
CHUNK_VALUES = 512
_CHUNK_KEY_BITS = 2048
_WORD = (1 << 64) - 1


class PheOps:
    """Paillier by `phe`, for one key; implements `CipherOps`.

    Args:
        modulus: the public key n.
        primes: its two primes where custody puts the private key, else None; secret.
        modulus_bits: b.

    Raises:
        ProtocolError: the primes do not belong to the modulus.
    """

    def __init__(self, modulus: int, primes: tuple[int, int] | None, modulus_bits: int) -> None:
        self.codec = CiphertextCodec(modulus)
        self._public_key = phe.PaillierPublicKey(modulus)
        self._private_key = None if primes is None else _private_key(self._public_key, *primes)
        self._modulus_bits = modulus_bits

    @property
    def slots(self) -> int:
        """See `CipherOps.slots`: a ciphertext per coordinate is what this baseline is about."""
        return 1

    @property
    def chunk_values(self) -> int:
        """See `CipherOps.chunk_values`."""
        return chunk_values(self.codec.modulus.bit_length())

    def encrypt(self, levels: Levels) -> Ciphertexts:
        """Return one fresh ciphertext per value."""
        values = to_offset_binary(levels.astype(np.int64, copy=False), self._modulus_bits)
        return [self._public_key.raw_encrypt(value) for value in values.tolist()]

    def multiply(self, left: Ciphertexts, right: Ciphertexts) -> Ciphertexts:
        """Return ciphertexts of the coordinate-wise sums; needs no key but n."""
        square = gmpy2.mpz(self.codec.modulus) ** 2
        pairs = zip(left, right, strict=True)
        return [int(gmpy2.mpz(one) * other % square) for one, other in pairs]

    def decrypt(self, ciphertexts: Ciphertexts, n_values: int, n_inputs: int) -> IntVector:
        """See `CipherOps.decrypt`; a plaintext that the inputs can't add up to is refused."""
        if self._private_key is None:
            raise OutOfOrder("this rank has no private key, or its session was closed")
        plaintexts = self.raw_decrypt(ciphertexts)
        if len(plaintexts) != n_values or max(plaintexts, default=0) > n_inputs * self._largest:
            raise ProtocolError("a decrypted sum is larger than the inputs can add up to")
        words = np.array([plaintext & _WORD for plaintext in plaintexts], dtype=np.uint64)
        return from_offset_binary(words, self._modulus_bits, n_inputs)

    def raw_decrypt(self, ciphertexts: Sequence[int]) -> list[int]:
        """Return the plaintexts, whatever they are; for the audit of what an owner can read."""
        if self._private_key is None:
            return []
        return [self._private_key.raw_decrypt(ciphertext) for ciphertext in ciphertexts]

    def write(self, ciphertexts: Ciphertexts) -> bytes:
        """See `CipherOps.write`."""
        return self.codec.encode(ciphertexts)

    def read(self, message: bytes, n_values: int) -> Ciphertexts:
        """See `CipherOps.read`."""
        return self.codec.decode(message, n_values)

    def begin(self, sum_id: SumId) -> None:
        """There is nothing made ahead."""

    def finish(self) -> None:
        """There is nothing to make ahead."""

    def prepare(self) -> None:
        """There is nothing to prepare: phe draws each randomizer as it encrypts."""

    def forget(self) -> None:
        """Drop the private key."""
        self._private_key = None

    @property
    def _largest(self) -> int:
        return (1 << self._modulus_bits) - 1


def chunk_values(key_bits: int) -> int:
    """Return the longest chunk for a key; equal at all ranks, because ``key_bits`` is.

    Args:
        key_bits: size of the Paillier modulus.
    """
    return max(1, CHUNK_VALUES * _CHUNK_KEY_BITS**3 // max(key_bits, _CHUNK_KEY_BITS) ** 3)


def open_phe_sum(transport: Transport, settings: SumSettings) -> HolderSum | ClientsSum:
    """Make and hand out keys and open a session; see `BackendFactory`.

    Raises:
        ConfigError: the key size or the custody is refused.
    """
    check_key_bits(settings.key_bits)
    roles = assign_roles(settings.custody, transport.n_ranks)
    if roles.shared_key:
        raise ConfigError('backend "phe" has no threshold keys; take backend "paillier" for them')
    largest_sum = len(roles.data_ranks) * ((1 << settings.modulus_bits) - 1)
    if largest_sum.bit_length() >= settings.key_bits:
        raise ConfigError("the sum does not fit the Paillier modulus; raise key_bits")
    wires = open_wires(transport, settings, "phe")
    dealt = deal_primes(transport.rank, wires, settings.key_bits, roles, _make_primes)
    ops = PheOps(dealt.modulus, dealt.primes, settings.modulus_bits)
    if roles.aggregator is None:
        return HolderSum(transport, wires, ops, settings)
    return ClientsSum(transport, wires, ops, settings, roles.data_ranks)


def _make_primes(key_bits: int) -> tuple[int, int]:
    _, private_key = phe.generate_paillier_keypair(n_length=key_bits)
    return private_key.p, private_key.q


def _private_key(public_key: phe.PaillierPublicKey, p: int, q: int) -> phe.PaillierPrivateKey:
    try:
        return phe.PaillierPrivateKey(public_key, p, q)
    except (ValueError, ZeroDivisionError):
        raise ProtocolError("the private key that came does not fit the public key") from None
