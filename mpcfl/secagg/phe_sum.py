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

import gmpy2
import numpy as np
import phe
from numpy.typing import NDArray

from mpcfl.errors import ConfigError, OutOfOrder, ProtocolError
from mpcfl.net.channel import SealedTransport, agree_pair_secrets
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.custody import KEY_MAKER, Roles, assign_roles, check_key_bits
from mpcfl.secagg.phe_codec import (
    CiphertextCodec,
    decode_public_key,
    encode_public_key,
    raw_decode_primes,
    raw_encode_primes,
)
from mpcfl.secagg.phe_routes import Ciphertexts, ClientsSum, HolderSum

_WORD = (1 << 64) - 1


class PheOps:
    """Paillier by `phe`, for one key; the private key is there only where custody puts it.

    Args:
        modulus: the public key n.
        private_key: phe's private key, or None; secret.
        largest_sum: largest plaintext that honest inputs can add up to.
    """

    def __init__(
        self, modulus: int, private_key: phe.PaillierPrivateKey | None, largest_sum: int
    ) -> None:
        self.codec = CiphertextCodec(modulus)
        self._public_key = phe.PaillierPublicKey(modulus)
        self._private_key = private_key
        self._largest_sum = largest_sum

    def encrypt(self, values: NDArray[np.uint64]) -> Ciphertexts:
        """Return one fresh ciphertext per value, shape (k,), uint64."""
        return [self._public_key.raw_encrypt(value) for value in values.tolist()]

    def multiply(self, left: Ciphertexts, right: Ciphertexts) -> Ciphertexts:
        """Return ciphertexts of the coordinate-wise sums; needs no key but n."""
        square = gmpy2.mpz(self.codec.modulus) ** 2
        pairs = zip(left, right, strict=True)
        return [int(gmpy2.mpz(one) * other % square) for one, other in pairs]

    def decrypt(self, ciphertexts: Ciphertexts) -> NDArray[np.uint64]:
        """Return the plaintexts mod 2^64, shape (k,), uint64.

        Raises:
            OutOfOrder: this rank has no private key, or has forgotten it.
            ProtocolError: a plaintext is larger than the inputs can add up to.
        """
        if self._private_key is None:
            raise OutOfOrder("this rank has no private key, or its session was closed")
        plaintexts = [self._private_key.raw_decrypt(ciphertext) for ciphertext in ciphertexts]
        if any(plaintext > self._largest_sum for plaintext in plaintexts):
            raise ProtocolError("a decrypted sum is larger than the inputs can add up to")
        return np.array([plaintext & _WORD for plaintext in plaintexts], dtype=np.uint64)

    def forget(self) -> None:
        """Drop the private key."""
        self._private_key = None


def open_phe_sum(transport: Transport, settings: SumSettings) -> HolderSum | ClientsSum:
    """Make and hand out keys and open a session; see `BackendFactory`.

    Raises:
        ConfigError: the key size or the custody is refused.
    """
    check_key_bits(settings.key_bits)
    roles = assign_roles(settings.custody, transport.n_ranks)
    largest_sum = len(roles.data_ranks) * ((1 << settings.modulus_bits) - 1)
    if largest_sum.bit_length() >= settings.key_bits:
        raise ConfigError("the sum does not fit the Paillier modulus; raise key_bits")
    secrets = agree_pair_secrets(transport, settings.run_id)
    wires = SealedTransport(transport, secrets, "phe")
    secrets.forget()
    modulus, private_key = _share_keys(transport.rank, wires, settings.key_bits, roles)
    ops = PheOps(modulus, private_key, largest_sum)
    if roles.aggregator is None:
        return HolderSum(transport, wires, ops, settings)
    return ClientsSum(transport, wires, ops, settings, roles.data_ranks)


def _share_keys(
    rank: int, wires: SealedTransport, key_bits: int, roles: Roles
) -> tuple[int, phe.PaillierPrivateKey | None]:
    """Make the key at one rank; give the modulus to all, the primes to who may have them."""
    everybody = {*roles.data_ranks, *roles.key_ranks}
    if roles.aggregator is not None:
        everybody.add(roles.aggregator)
    if rank != KEY_MAKER:
        message = wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
        return _read_keys(message, key_bits, owner=rank in roles.key_ranks)
    public_key, private_key = phe.generate_paillier_keypair(n_length=key_bits)
    public = encode_public_key(public_key.n, key_bits)
    both = public + raw_encode_primes(private_key.p, private_key.q, key_bits)
    others = everybody - {KEY_MAKER}
    wires.exchange({r: both if r in roles.key_ranks else public for r in others}, [])
    return public_key.n, private_key


def _read_keys(
    message: bytes, key_bits: int, owner: bool
) -> tuple[int, phe.PaillierPrivateKey | None]:
    cut = key_bits // 8
    if not owner:
        return decode_public_key(message, key_bits), None
    modulus = decode_public_key(message[:cut], key_bits)
    p, q = raw_decode_primes(message[cut:], key_bits)
    try:
        return modulus, phe.PaillierPrivateKey(phe.PaillierPublicKey(modulus), p, q)
    except (ValueError, ZeroDivisionError):
        raise ProtocolError("the private key that came does not fit the public key") from None
