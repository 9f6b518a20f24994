"""Paillier's cryptosystem with short exponents: keys, encryption, decryption, sums.

A ciphertext of m in [0, n) is c = (1 + m n) r mod n^2 (Paillier 1999, with g = 1 + n). The
randomizer r is an n-th power, made ahead and used once (`randomizers.py`):

- with a generator, r = h_s^x with x uniform of |n|/2 bits and h_s = h^n mod n^2, h = -y^2 mod n
  (Damgard, Jurik, Nielsen 2010 [DJN10], section 4.2). For p = q = 3 mod 4 and
  gcd(p - 1, q - 1) = 2, h generates, up to a few large factors, the elements of Jacobi symbol 1;
- without one (keys made elsewhere, as by `phe`), r = s^n with s uniform in Z*_n.

Assumes: the decisional composite residuosity assumption (DCR; [DJN10] Theorem 1), and, with a
generator, that h^x with x of |n|/2 bits can't be told from h^x with x uniform in the whole
range. The latter follows from the hardness of factoring n (Goldreich, Rosen 2003); shorter
exponents would need a new assumption and are not offered. Ciphertexts with a generator
have Jacobi symbol 1, which says nothing of m.

The generator is bound to n: y is expanded from a domain-tagged hash of n, so that everybody
recomputes h and nobody sends it; a wrong one can't come in. With the hash as a random oracle, y is
uniform in Z_n up to 2^-128, as if it had been drawn by the key's owner; that y is public costs
nothing, as the reduction to factoring chooses the base itself.

Time: `PrivateKey.decrypt` and key generation are not constant time. They are for the owner of the
private key, in its own process. Encryption from randomizers, sums and checks use
arithmetic whose time depends on sizes only, as far as GMP's does. See `randomizers.py` for theirs.

Does not protect against: chosen ciphertexts (who decrypts must check what, see the callers),
changed ciphertexts (Paillier is malleable by design), wrong congruences claimed by a key's owner
(who can decrypt anyway), a reader of this process' memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import gmpy2

from mpcfl.errors import ConfigError, ProtocolError
from mpcfl.hazmat.bits import BitSource, SystemBits, domain_tag
from mpcfl.hazmat.modular import Modulus
from mpcfl.hazmat.primes import MIN_PRIME_BITS, blum_prime, is_probable_prime

DEFAULT_KEY_BITS = 3072
# Conventionally rated as 112-bit security; 3072 bits as 128-bit.
MIN_KEY_BITS = 2048
# y is expanded to this many bits more than n, which leaves a bias of 2^-128.
_SPARE_BITS = 128
# FIPS 186-5, A.1.3: |p - q| > 2^(key_bits / 2 - 100), against Fermat's factoring method.
_NEARNESS_BITS = 100


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What is needed to encrypt; public.

    Attributes:
        modulus: n, odd, the product of two primes of one length.
        has_generator: p = q = 3 mod 4 and gcd(p - 1, q - 1) = 2, by the word of its owner, so that
            randomizers may be short powers of `generator`.

    Raises:
        ConfigError: the modulus is even, or too small to be one.
    """

    modulus: int
    has_generator: bool

    def __post_init__(self) -> None:
        # A plain int, whatever came in, so that keys print and encode alike.
        object.__setattr__(self, "modulus", int(self.modulus))
        if self.modulus < 1 << (2 * MIN_PRIME_BITS - 2) or self.modulus % 2 == 0:
            raise ConfigError(
                "this is no Paillier modulus: it is even or tiny; make a key with `mpcfl keygen`"
            )

    @property
    def key_bits(self) -> int:
        """Return |n|."""
        return self.modulus.bit_length()

    @property
    def exponent_bits(self) -> int:
        """Return the length of a randomizer's exponent, |n| / 2 rounded up."""
        return -(-self.key_bits // 2)

    @property
    def square(self) -> int:
        """Return n^2, the modulus of ciphertexts."""
        return self.modulus * self.modulus

    @property
    def generator(self) -> int:
        """Return h_s = h^n mod n^2; computed once per key.

        Raises:
            ValueError: the key has none.
        """
        if not self.has_generator:
            raise ValueError("this key has no generator; use the full r^n")
        return _generator(self.modulus)

    @property
    def fingerprint(self) -> str:
        """Return 64 hex digits that name the key, SHA-256 with a domain tag."""
        tag = domain_tag("paillier-public-key", int(self.has_generator))
        return hashlib.sha256(tag + _encode(self.modulus)).hexdigest()


class PrivateKey:
    """The primes of a key, and decryption by the Chinese remainder theorem.

    Secret: never shown, compared, pickled or sent. Only its owner's process holds it.
    """

    __slots__ = ("_halves", "_lift", "public_key")

    def __init__(self, p: int, q: int, *, has_generator: bool) -> None:
        """Check the primes and precompute.

        Args:
            p: one prime of the modulus.
            q: the other.
            has_generator: demand the congruences that a generator needs, and use one.

        Raises:
            ConfigError: p or q is not an odd prime, they are equal, gcd(n, phi(n)) is not 1, or
                the congruences do not hold. Which value it was is not said.
        """
        p, q = gmpy2.mpz(p), gmpy2.mpz(q)
        _check_primes(p, q, has_generator)
        self.public_key = PublicKey(int(p * q), has_generator)
        self._halves = (_Half(p, q), _Half(q, p))
        # q^-1 mod p, for Garner's recombination.
        self._lift = gmpy2.invert(q, p)

    def raw_primes(self) -> tuple[int, int]:
        """Return (p, q). Unsafe alone: whoever reads them reads every plaintext."""
        first, second = self._halves
        return int(first.prime), int(second.prime)

    def decrypt(self, ciphertexts: Sequence[int]) -> list[int]:
        """Return the plaintexts, each in [0, n).

        Not constant time: exponents, moduli and plaintexts steer the time of the modular powers.
        It is for the key's owner, in a process that no adversary shares a core with.

        Raises:
            ProtocolError: a ciphertext is not one, see `check_ciphertexts`; nothing is decrypted.
        """
        check_ciphertexts(self.public_key, ciphertexts)
        first, second = (half.logarithms(ciphertexts) for half in self._halves)
        p, q = (half.prime for half in self._halves)
        return [b + q * ((a - b) * self._lift % p) for a, b in zip(first, second, strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __bool__(self) -> NoReturn:
        raise TypeError("a private key has no truth value; compare with None")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key must not leave its process")


class _Half:
    """Decryption modulo one of the two primes; as secret as the key."""

    __slots__ = ("_inverse", "_square", "prime")

    def __init__(self, prime: int, other: int) -> None:
        self.prime = prime
        self._square = Modulus(prime * prime)
        # (1 + n)^(p - 1) = 1 + (p - 1) n = 1 - q p mod p^2, so the logarithm of 1 + n is -q.
        self._inverse = gmpy2.invert(-other, prime)

    def logarithms(self, ciphertexts: Sequence[int]) -> list[int]:
        """Return the plaintexts modulo the prime: L(c^(p - 1) mod p^2) / L((1 + n)^(p - 1))."""
        prime, inverse, square = self.prime, self._inverse, gmpy2.mpz(self._square.value)
        powers = self._square.power([c % square for c in ciphertexts], int(prime - 1))
        return [(power - 1) // prime * inverse % prime for power in powers]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key must not leave its process")


def generate_key(key_bits: int = DEFAULT_KEY_BITS, bits: BitSource | None = None) -> PrivateKey:
    """Make a key with a generator.

    Args:
        key_bits: length of n, exactly; even. 3072 by default, 2048 for comparisons.
        bits: source of the primes; the system's by default. For tests.

    Raises:
        ConfigError: a key below 2048 bits, or of odd length.
    """
    if key_bits < MIN_KEY_BITS:
        raise ConfigError(
            f"a Paillier key of {key_bits} bits is not safe; take key_bits = {DEFAULT_KEY_BITS}, "
            f"or {MIN_KEY_BITS} at least"
        )
    return raw_generate_key(key_bits, bits)


def raw_generate_key(key_bits: int, bits: BitSource | None = None) -> PrivateKey:
    """Make a key of any length from 32 bits on. Unsafe alone: short keys are for tests."""
    if key_bits % 2 or key_bits < 4 * MIN_PRIME_BITS:
        raise ConfigError(f"key_bits = {key_bits} is not an even number from 32 on")
    source = SystemBits() if bits is None else bits
    while True:
        p, q = (blum_prime(key_bits // 2, source) for _ in range(2))
        if are_far(p, q) and gmpy2.gcd(p - 1, q - 1) == 2 and _is_coprime_to_order(p, q):
            return PrivateKey(p, q, has_generator=True)


def are_far(p: int, q: int) -> bool:
    """Tell whether two primes of one length differ enough (FIPS 186-5, A.1.3), and at all."""
    return abs(p - q) > 1 << max(0, int(p).bit_length() - _NEARNESS_BITS)


def encrypt(
    public_key: PublicKey, plaintexts: Sequence[int], randomizers: Sequence[int]
) -> list[int]:
    """Encrypt: (1 + m n) r mod n^2, element by element.

    Args:
        public_key: of the receiver.
        plaintexts: each in [0, n).
        randomizers: from `Randomizers.draw`, as many; **each may be used once ever**: two
            ciphertexts with one randomizer show the difference of their plaintexts.

    Raises:
        ValueError: a plaintext outside [0, n), or another number of randomizers.
    """
    n = gmpy2.mpz(public_key.modulus)
    if not all(0 <= m < n for m in plaintexts):
        raise ValueError("a plaintext lies outside [0, n); pack fewer slots, or wrap it first")
    _check_lengths(plaintexts, randomizers)
    square = n * n
    # r + n (m r mod n): the same, by shorter products.
    return [(r + n * (m * r % n)) % square for m, r in zip(plaintexts, randomizers, strict=True)]


def add(public_key: PublicKey, left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Return ciphertexts of the sums mod n: the products mod n^2, element by element.

    Raises:
        ValueError: the lengths differ.
    """
    _check_lengths(left, right)
    return _ciphertext_ring(public_key.modulus).multiply(left, right)


def rerandomize(
    public_key: PublicKey, ciphertexts: Sequence[int], randomizers: Sequence[int]
) -> list[int]:
    """Return fresh ciphertexts of the same plaintexts, unlinkable without the private key.

    Args:
        public_key: of the receiver.
        ciphertexts: any that passed `check_ciphertexts`.
        randomizers: as for `encrypt`; each may be used once ever.
    """
    return add(public_key, ciphertexts, randomizers)


def check_ciphertexts(public_key: PublicKey, ciphertexts: Iterable[int]) -> None:
    """Refuse what is not in Z*_{n^2}: the whole batch at the price of one gcd.

    A common factor with n would be 0 modulo a prime, which the owner's decryption would betray.

    Raises:
        ProtocolError: one is not in (0, n^2), or has a factor in common with n.
    """
    n, square = gmpy2.mpz(public_key.modulus), gmpy2.mpz(public_key.square)
    product = gmpy2.mpz(1)
    for index, ciphertext in enumerate(ciphertexts):
        if not 0 < ciphertext < square:
            raise ProtocolError(
                f"ciphertext {index} is not in (0, n^2): it is damaged, or of another key"
            )
        product = product * ciphertext % n
    if gmpy2.gcd(product, n) != 1:
        raise ProtocolError(
            "a ciphertext has a factor in common with the modulus; it is forged or damaged"
        )


def _check_lengths(left: Sequence[int], right: Sequence[int]) -> None:
    if len(left) != len(right):
        raise ValueError(f"{len(left)} values can't be matched with {len(right)}")


def _check_primes(p: Any, q: Any, has_generator: bool) -> None:
    """Refuse primes that make no key; the messages hold no digit of them."""
    if p == q:
        raise ConfigError("the two primes of this private key are equal; make a new key")
    if not all(x > 2 and is_probable_prime(x) for x in (p, q)):
        raise ConfigError(
            "a factor of this private key is not an odd prime; the key is damaged or forged"
        )
    if not _is_coprime_to_order(p, q):
        raise ConfigError(
            "gcd(n, phi(n)) of this private key is not 1, so it can't decrypt; make a new key"
        )
    if has_generator and not (p % 4 == q % 4 == 3 and gmpy2.gcd(p - 1, q - 1) == 2):
        raise ConfigError(
            "this private key claims a generator, which needs p = q = 3 mod 4 and "
            "gcd(p - 1, q - 1) = 2; load it as a key without one"
        )


def _is_coprime_to_order(p: int, q: int) -> bool:
    return bool(gmpy2.gcd(p * q, (p - 1) * (q - 1)) == 1)


def _encode(number: int) -> bytes:
    """Encode a positive integer, big-endian; with its length, so that it ends somewhere."""
    content = int(number).to_bytes(-(-int(number).bit_length() // 8), "big")
    return len(content).to_bytes(4, "big") + content


@lru_cache(maxsize=16)
def _generator(modulus: int) -> int:
    """Return h_s = (-y^2)^n mod n^2 with y expanded from n; public, so it may be kept."""
    n = gmpy2.mpz(modulus)
    expanded = hashlib.shake_256(domain_tag("paillier-generator") + _encode(modulus))
    y = int.from_bytes(expanded.digest((modulus.bit_length() + _SPARE_BITS) // 8 + 1), "big") % n
    if gmpy2.gcd(y, n) != 1:
        raise ConfigError("this modulus has a factor that its own hash shows; make a new key")
    return int(gmpy2.powmod(-y * y % n, n, n * n))


@lru_cache(maxsize=16)
def _ciphertext_ring(modulus: int) -> Modulus:
    """Return arithmetic mod n^2; public, so it may be kept."""
    return Modulus(modulus * modulus)
