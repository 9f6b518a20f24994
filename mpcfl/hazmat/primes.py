"""Random integers and primes for Paillier keys, from our own bit source.

Primality: no number below 2^64 passes the Baillie-PSW test wrongly (checked exhaustively by
others), and no larger one is known that does. Above 2^64 a number must also pass
`ROUNDS` Miller-Rabin tests with fresh random bases, so that a composite, even one that
somebody built to deceive, passes with a probability of at most 4^-40 = 2^-80 (Rabin 1980);
for candidates drawn at random the error is far smaller yet (Damgard, Landrock, Pomerance 1993).

Searches are incremental: a random odd start, then upwards. A prime after a long gap is a little
likelier than another, which costs a fraction of a bit of entropy (Brandt, Damgard 1992).

Nothing here is constant time: keys are made once, by their owner, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import gmpy2
import numpy as np
from numpy.typing import NDArray

from mpcfl.hazmat.bits import BitSource, SystemBits

# Miller-Rabin rounds with random bases: error at most 4^-40.
ROUNDS = 40
MIN_PRIME_BITS = 8
_WORD_BITS = 64
_LIMB_BITS = 32
# Small factors that (p - 1) / 2 of a `blum_prime` does not have.
_ROUGH_BOUND = 1 << 16
# A base is drawn with this many bits more than its range, which leaves a bias of 2^-64.
_SPARE_BITS = 64
# Primes below it strike the sieve out one by one, the others together.
_SLICED_BELOW = 1 << 12


def draw_bits(bits: BitSource, n_bits: int, count: int = 1) -> list[int]:
    """Return ``count`` uniform integers in [0, 2^n_bits)."""
    words = -(-n_bits // _WORD_BITS)
    content = bits.words(count * words).tobytes()
    step, mask = words * _WORD_BITS // 8, (1 << n_bits) - 1
    return [
        int.from_bytes(content[at : at + step], "little") & mask
        for at in range(0, count * step, step)
    ]


def draw_below(bits: BitSource, bound: int) -> int:
    """Return a uniform integer in [0, bound), by rejection: no bias at all."""
    if bound < 1:
        raise ValueError("there is no number in an empty range")
    while True:
        drawn = draw_bits(bits, int(bound - 1).bit_length())[0] if bound > 1 else 0
        if drawn < bound:
            return drawn


def is_probable_prime(number: int, bits: BitSource | None = None) -> bool:
    """Tell whether ``number`` is prime; wrong with probability <= 2^-80, and only for composites.

    Args:
        number: any integer, which may be chosen by an adversary.
        bits: source of the random bases; the system's by default.
    """
    if number < 2 or not gmpy2.is_prime(gmpy2.mpz(number), 25):
        return False
    # Baillie-PSW, which `is_prime` begins with, is exact there.
    if number < 1 << _WORD_BITS:
        return True
    source = SystemBits() if bits is None else bits
    drawn = draw_bits(source, int(number).bit_length() + _SPARE_BITS, ROUNDS)
    return all(_passes(gmpy2.mpz(number), 2 + base % (number - 3)) for base in drawn)


def _passes(number: int, base: int) -> bool:
    """Make one Miller-Rabin test with a base in [2, number - 2]."""
    return bool(gmpy2.gcd(number, base) == 1 and gmpy2.is_strong_prp(number, base))


def blum_prime(n_bits: int, bits: BitSource) -> int:
    """Return a random prime p = 3 mod 4 of ``n_bits`` bits, its two top bits set.

    (p - 1) / 2 has no prime factor below 2^16 (2^(n_bits / 4) for short primes), so that a
    random square generates all squares mod p, or misses a few large factors of their number.
    """
    bound = min(_ROUGH_BOUND, 1 << (n_bits // 4))
    while True:
        for half in _pairs(n_bits, 32 * n_bits, bound, bits):
            prime = 2 * half + 1
            if _is_fermat(prime) and is_probable_prime(prime, bits):
                return int(prime)


def safe_prime(n_bits: int, bits: BitSource) -> int:
    """Return a random prime p with (p - 1) / 2 prime, of ``n_bits`` bits, its two top bits set.

    A pair is struck out by all primes below n_bits^2, and one Fermat test finishes off most of
    the others. The time varies much: its mean is some 0.3 s at 1024 bits, 2 s at 1536.
    """
    bound = min(n_bits * n_bits, 1 << (n_bits // 4))
    while True:
        for half in _pairs(n_bits, n_bits * n_bits // 4, bound, bits):
            prime = 2 * half + 1
            fermat = _is_fermat(half) and _is_fermat(prime)
            if fermat and is_probable_prime(half, bits) and is_probable_prime(prime, bits):
                return int(prime)


def _is_fermat(number: int) -> bool:
    """Make the cheapest test: 2^(number - 1) = 1."""
    return bool(gmpy2.powmod(2, number - 1, number) == 1)


def _pairs(n_bits: int, count: int, bound: int, bits: BitSource) -> Iterator[int]:
    """Yield odd h upwards from a random start; h and 2 h + 1 have no factor below ``bound``.

    Args:
        n_bits: length of 2 h + 1, whose two top bits are set.
        count: length of the stretch, in odd numbers; less where n_bits ends it.
        bound: of the sieve; below h.
        bits: source of the start.
    """
    if n_bits < MIN_PRIME_BITS:
        raise ValueError(f"a prime needs at least {MIN_PRIME_BITS} bits, not {n_bits}")
    # h has one bit less than 2 h + 1, and inherits its two top bits; the lowest is set.
    start = gmpy2.mpz(draw_bits(bits, n_bits - 3)[0] | 3 << (n_bits - 3) | 1)
    count = min(count, int((1 << (n_bits - 1)) - start + 1) // 2)
    alive = np.ones(count, dtype=np.bool_)
    primes = _odd_primes(bound)
    first = _residues(int(start), primes)
    half = (primes + 1) >> 1
    # h + 2 i = 0 mod s at i = -h / 2; 2 (h + 2 i) + 1 = 0 mod s at i = -(2 h + 1) / 4.
    for zero in ((primes - first) * half, (primes - first) * half - half * half):
        _strike(alive, primes, zero % primes)
    for index in np.flatnonzero(alive):
        yield start + 2 * int(index)


def _strike(alive: NDArray[np.bool_], primes: NDArray[np.int64], zero: NDArray[np.int64]) -> None:
    """Clear every position that is ``zero`` modulo its prime."""
    few = int(np.searchsorted(primes, _SLICED_BELOW))
    for prime, at in zip(primes[:few].tolist(), zero[:few].tolist(), strict=True):
        alive[at::prime] = False
    step, at_many = primes[few:], zero[few:]
    while at_many.size:
        inside = at_many < alive.size
        step, at_many = step[inside], at_many[inside]
        alive[at_many] = False
        at_many = at_many + step


def _residues(number: int, primes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``number`` modulo every prime (each below 2^31), by Horner's rule."""
    out = np.zeros(primes.size, dtype=np.int64)
    for shift in reversed(range(0, number.bit_length(), _LIMB_BITS)):
        limb = number >> shift & ((1 << _LIMB_BITS) - 1)
        out = ((out << _LIMB_BITS) + limb) % primes
    return out


@lru_cache(maxsize=4)
def _odd_primes(bound: int) -> NDArray[np.int64]:
    """Return the odd primes below ``bound``, by the sieve of Eratosthenes."""
    flags = np.ones(max(bound, 3), dtype=np.bool_)
    flags[:3] = False
    flags[4::2] = False
    for prime in range(3, int(gmpy2.isqrt(bound)) + 1, 2):
        if flags[prime]:
            flags[prime * prime :: prime] = False
    return np.flatnonzero(flags).astype(np.int64)
