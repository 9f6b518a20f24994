"""Keys made for one session: one rank makes the primes, custody says who gets them.

Everything travels sealed. Who gets the primes can decrypt everything under the key, as
`custody.py` says; the maker is assumed to follow the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpcfl.net.channel import SealedTransport, agree_pair_secrets
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.custody import KEY_MAKER, Roles
from mpcfl.secagg.paillier_codec import (
    decode_public_key,
    encode_public_key,
    raw_decode_primes,
    raw_encode_primes,
)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class DealtKey:
    """A Paillier key as one rank has it.

    Attributes:
        modulus: n, public among the ranks.
        primes: p and q where this rank owns the private key, else None; secret.
    """

    modulus: int
    primes: tuple[int, int] | None


def open_wires(transport: Transport, settings: SumSettings, purpose: str) -> SealedTransport:
    """Agree a secret with every rank and return sealed channels to them."""
    secrets = agree_pair_secrets(transport, settings.run_id)
    wires = SealedTransport(transport, secrets, purpose)
    secrets.forget()
    return wires


def deal_primes(
    rank: int,
    wires: SealedTransport,
    key_bits: int,
    roles: Roles,
    make: Callable[[int], tuple[int, int]],
) -> DealtKey:
    """Make the key at one rank; give the modulus to all, the primes to who may have them.

    Args:
        rank: this rank.
        wires: sealed channels to all others.
        key_bits: size of the modulus.
        roles: who owns the private key.
        make: returns two primes for a modulus of ``key_bits``; called at one rank.

    Raises:
        ProtocolError: what came is no key of that size.
    """
    if rank != KEY_MAKER:
        message = wires.exchange({}, [KEY_MAKER])[KEY_MAKER]
        return _read_key(message, key_bits, owner=rank in roles.key_ranks)
    p, q = make(key_bits)
    modulus = int(p * q)
    public = encode_public_key(modulus, key_bits)
    both = public + raw_encode_primes(p, q, key_bits)
    others = {*roles.data_ranks, *roles.key_ranks} - {KEY_MAKER}
    if roles.aggregator is not None:
        others.add(roles.aggregator)
    wires.exchange({r: both if r in roles.key_ranks else public for r in others}, [])
    return DealtKey(modulus, (p, q))


def _read_key(message: bytes, key_bits: int, *, owner: bool) -> DealtKey:
    if not owner:
        return DealtKey(decode_public_key(message, key_bits), None)
    cut = key_bits // 8
    modulus = decode_public_key(message[:cut], key_bits)
    return DealtKey(modulus, raw_decode_primes(message[cut:], key_bits))
