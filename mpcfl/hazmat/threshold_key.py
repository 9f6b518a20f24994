"""Keys of threshold Paillier: the public part, one holder's share, and the dealer that makes both.

A dealer chooses safe primes p = 2p' + 1 and q = 2q' + 1, n = p q, m = p'q', and d with d = 0 mod m
and d = 1 mod n. It shares d by a polynomial f of degree t - 1 over Z_{n m}: f(0) = d, s_i = f(i).
In public it gives v, a generator of the group of squares mod n^2 (cyclic, of order n m), and
v_i = v^(Delta s_i) with Delta = n_shares!, which fixes s_i mod n m.

Any t - 1 shares go with every d just as well: exactly one polynomial of degree t - 1 runs through
them and any f(0), as indices and their differences are invertible mod n m (n_shares < p', q').

Sources: Fouque, Poupard, Stern 2000 (key generation); Damgard, Jurik 2001 (PKC),
section 4.1, with s = 1. Assumes a dealer that follows the ceremony, tells nobody p, q, d and f,
and forgets them. Nothing here is constant time: the dealer works once, in a process of its own.
Leaves room for keys without a dealer: they end in the same two types.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NoReturn

import gmpy2

from mpcfl.errors import ConfigError, ProtocolError
from mpcfl.hazmat.bits import BitSource, SystemBits, domain_tag
from mpcfl.hazmat.modular import Modulus
from mpcfl.hazmat.paillier import MIN_KEY_BITS, PublicKey, are_far, check_ciphertexts
from mpcfl.hazmat.partial_proof import encode_integers, width_of
from mpcfl.hazmat.primes import draw_below, is_probable_prime, safe_prime

# Delta = n_shares! lengthens the exponent of every partial, by 8,530 bits for 1,000 shares.
MAX_SHARES = 1000


@dataclass(frozen=True, slots=True)
class ThresholdKey:
    """The public part of a threshold key.

    Attributes:
        public_key: encrypts; of safe primes, so that it has a generator.
        threshold: t, how many shares decrypt.
        n_shares: how many there are.
        verification_base: v, generator of the group of squares mod n^2.
        verification_keys: v_i = v^(Delta s_i) mod n^2, of share i at position i - 1.

    Raises:
        ConfigError: numbers that no dealer gives.
    """

    public_key: PublicKey
    threshold: int
    n_shares: int
    verification_base: int
    verification_keys: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_sizes(self.n_shares, self.threshold)
        if len(self.verification_keys) != self.n_shares:
            raise ConfigError(
                f"a threshold key has {len(self.verification_keys)} verification keys, expected "
                f"one for each of its {self.n_shares} shares; take the file of the ceremony"
            )
        try:
            check_ciphertexts(self.public_key, [self.verification_base, *self.verification_keys])
        except ProtocolError:
            raise ConfigError(
                "a threshold key has a verification key that is not invertible mod n^2; take the "
                "file of the ceremony"
            ) from None

    @property
    def delta(self) -> int:
        """Return Delta = n_shares!."""
        return math.factorial(self.n_shares)

    @property
    def exponent_bits(self) -> int:
        """Return a length that Delta s_i never passes, as s_i < n m < n^2 / 4."""
        return int(self.delta * (self.public_key.square // 4)).bit_length()

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the whole public part, in hex."""
        public, sizes = self.public_key, (self.threshold, self.n_shares)
        tag = domain_tag("threshold-key", int(public.has_generator), *sizes)
        numbers = (public.modulus, self.verification_base, *self.verification_keys)
        encoded = encode_integers(numbers, width_of(public.square))
        return hashlib.sha256(tag + encoded).hexdigest()


class KeyShare:
    """Share ``index`` (from 1 on) of a threshold key: s_i = f(i), which only its holder knows.

    Raises:
        ConfigError: the index or the value is out of range.
    """

    __slots__ = ("_value", "index", "key")

    def __init__(self, key: ThresholdKey, index: int, value: int) -> None:
        if not 1 <= index <= key.n_shares or not 0 <= value < key.public_key.square // 4:
            raise ConfigError(
                f"key share {index} is out of range for a key of {key.n_shares} shares; take the "
                "file of the ceremony"
            )
        self.key = key
        self.index = int(index)
        self._value = int(value)

    def raw_value(self) -> int:
        """Return s_i, to be written to its holder's key file and nowhere else."""
        return self._value

    def raw_exponent(self) -> int:
        """Return Delta s_i, the exponent that the verification key fixes."""
        return self.key.delta * self._value

    def check(self) -> None:
        """Return if the share is the one of its key: v^(Delta s_i) = v_i. Takes one power.

        Raises:
            ConfigError: it is not.
        """
        modulus, key = Modulus(self.key.public_key.square), self.key
        (power,) = modulus.power_secret(
            [key.verification_base], self.raw_exponent(), key.exponent_bits
        )
        if power != key.verification_keys[self.index - 1]:
            raise ConfigError(
                f"key share {self.index} does not belong to its threshold key; take both from the "
                "same ceremony"
            )

    def __repr__(self) -> str:
        return f"KeyShare(index={self.index}, <redacted>)"

    def __bool__(self) -> NoReturn:
        raise TypeError("a key share is not a truth value; test `is None`")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key share is not pickled; write a key file")


def deal_key(
    key_bits: int, n_shares: int, threshold: int, bits: BitSource | None = None
) -> tuple[ThresholdKey, list[KeyShare]]:
    """Make a key of ``key_bits`` bits and its shares, in the order of their indices.

    Args:
        key_bits: even, at least 2048.
        n_shares: how many shares, 2 to 1,000.
        threshold: how many of them decrypt, 2 to n_shares.
        bits: source of all randomness; the system's by default.

    Raises:
        ConfigError: a number is out of range.

    Privacy: the caller sees all shares; each is for its holder alone, and then to be forgotten.
    """
    if key_bits < MIN_KEY_BITS:
        raise ConfigError(
            f"key_bits = {key_bits} is below {MIN_KEY_BITS}, which can be broken; use 3072"
        )
    return raw_deal_key(key_bits, n_shares, threshold, bits)


def raw_deal_key(
    key_bits: int, n_shares: int, threshold: int, bits: BitSource | None = None
) -> tuple[ThresholdKey, list[KeyShare]]:
    """Do what `deal_key` does, for keys of any length; unsafe below 2048 bits.

    Raises:
        ConfigError: a number is out of range, or key_bits is odd.
    """
    _check_sizes(n_shares, threshold)
    if key_bits % 2:
        raise ConfigError(f"key_bits = {key_bits} is odd; use an even number, as 3072")
    source = SystemBits() if bits is None else bits
    p = q = safe_prime(key_bits // 2, source)
    while not are_far(p, q):
        q = safe_prime(key_bits // 2, source)
    return raw_deal_key_from_primes(p, q, n_shares, threshold, source)


def raw_deal_key_from_primes(
    p: int, q: int, n_shares: int, threshold: int, bits: BitSource | None = None
) -> tuple[ThresholdKey, list[KeyShare]]:
    """Share the key of two given safe primes; unsafe if anybody else knows them.

    Raises:
        ConfigError: the primes are not safe primes, are related, or too small for n_shares.
    """
    _check_sizes(n_shares, threshold)
    _check_primes(p, q, n_shares)
    source = SystemBits() if bits is None else bits
    n, m = p * q, (p // 2) * (q // 2)
    order = n * m
    # d = m (m^-1 mod n): 0 mod m and 1 mod n.
    secret = m * int(gmpy2.invert(m, n))
    coefficients = [secret, *(draw_below(source, order) for _ in range(threshold - 1))]
    values = [_evaluate(coefficients, index, order) for index in range(1, n_shares + 1)]
    base, delta = _draw_generator(p, q, source), math.factorial(n_shares)
    keys = (int(gmpy2.powmod(base, delta * value % order, n * n)) for value in values)
    public_key = PublicKey(n, has_generator=True)
    key = ThresholdKey(public_key, threshold, n_shares, base, tuple(keys))
    return key, [KeyShare(key, index, value) for index, value in enumerate(values, 1)]


def _check_sizes(n_shares: int, threshold: int) -> None:
    """Refuse numbers of shares that make no sense."""
    if not 2 <= threshold <= n_shares <= MAX_SHARES:
        raise ConfigError(
            f"{threshold} of {n_shares} key shares can't be dealt; expected 2 <= threshold <= "
            f"number of shares <= {MAX_SHARES}"
        )


def _check_primes(p: int, q: int, n_shares: int) -> None:
    """Refuse primes for which the scheme is not what its proofs are about."""
    if not all(is_probable_prime(r) and is_probable_prime(r // 2) for r in (p, q)):
        raise ConfigError("a threshold key needs two safe primes; make the key anew")
    # A half that is the other prime would leave a common factor of n and its group's order.
    if p == q or p // 2 == q or q // 2 == p:
        raise ConfigError("the two primes of a threshold key are related; make the key anew")
    if n_shares >= min(p, q) // 2:
        raise ConfigError(f"the primes are too small for {n_shares} shares; use more key bits")


def _evaluate(coefficients: list[int], point: int, modulus: int) -> int:
    """Return the polynomial's value, by Horner's rule; lowest coefficient first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % modulus
    return value


def _draw_generator(p: int, q: int, bits: BitSource) -> int:
    """Return a random square mod n^2 that generates all of them: of order p q p' q'."""
    n = p * q
    order = n * (p // 2) * (q // 2)
    while True:
        drawn = draw_below(bits, n * n)
        if gmpy2.gcd(drawn, n) != 1:
            continue
        square = gmpy2.powmod(drawn, 2, n * n)
        cofactors = (order // factor for factor in (p, q, p // 2, q // 2))
        if all(gmpy2.powmod(square, cofactor, n * n) != 1 for cofactor in cofactors):
            return int(square)
