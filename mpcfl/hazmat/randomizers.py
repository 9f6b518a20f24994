"""Randomizers: the fresh n-th powers that blind Paillier ciphertexts, drawn ahead in batches.

Three ways, by what is at hand; all give the distribution that the security proof asks for:

- public key with a generator: h_s^x, x uniform of |n|/2 bits, from a fixed-base table mod n^2;
- its owner: the same x, from tables mod p^2 and q^2, joined by the Chinese remainder theorem;
- a key without a generator: s^n with s uniform in Z*_n; by its owner as s^p mod p^2 and
  s^q mod q^2. (The q-th power permutes the p-th powers mod p^2, as gcd(n, phi(n)) = 1, so that the
  result is distributed like s^n.)

Source: Damgard, Jurik, Nielsen 2010, section 4.2, for the exponent; Brickell, Gordon, McCurley,
Wilson 1992 for the tables. Assumptions are those of `paillier.py`.

Time: **none of the three is constant time**. The places that a table is read at are the digits of
the secret x: who shares caches with this process may see them. The owner's powers have p and q as
exponents, by arithmetic that does not hide them. s^n has a public exponent; its base is hidden
only as far as the arithmetic hides it. All are for a process that no adversary shares a core with.

Randomizers are secret until they are used, and a randomizer is used once. Python can't wipe them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import gmpy2

from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import BitSource, SystemBits
from mpcfl.hazmat.modular import MAX_WINDOW_BITS, FixedBase, Modulus
from mpcfl.hazmat.paillier import PrivateKey, PublicKey
from mpcfl.hazmat.primes import draw_below, draw_bits
from mpcfl.hazmat.table_cache import TableSpec, cached_table

# Bytes of all tables of one `Randomizers`; 10-bit windows at 2048 bits, 9 at 3072.
MAX_TABLE_BYTES = 96 << 20
# An entry takes up to this many times its size: the kernel keeps 52 bits in each 64-bit word.
_ENTRY_OVERHEAD = 64 / 52


class Randomizers:
    """Draws randomizers of one key, each of them once.

    Not for several threads at once. Holds the private key's primes where it has them.
    """

    __slots__ = ("_bits", "_powers", "public_key")

    def __init__(
        self,
        public_key: PublicKey,
        private_key: PrivateKey | None = None,
        *,
        n_ahead: int,
        cache: Path | None = None,
        bits: BitSource | None = None,
    ) -> None:
        """Make the table, or load it.

        Args:
            public_key: of the ciphertexts to come.
            private_key: its private key, if this process owns it: twice as fast.
            n_ahead: randomizers to be drawn, roughly; sets the size of the table.
            cache: folder of tables, see `table_cache.py`; None keeps nothing. The owner's tables
                are secret and never kept.
            bits: source of the exponents; the system's by default. For tests.

        Raises:
            ConfigError: the private key belongs to another public key.
            KeyFileError: the cache is unsafe, or holds a wrong table.
        """
        if private_key is not None and private_key.public_key != public_key:
            raise ConfigError("this private key does not belong to this public key")
        self.public_key = public_key
        self._bits = SystemBits() if bits is None else bits
        self._powers = _choose_powers(public_key, private_key, n_ahead, cache)

    def draw(self, count: int) -> list[int]:
        """Return ``count`` fresh randomizers mod n^2. Not constant time."""
        return self._powers.draw(count, self._bits)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("randomizers must not leave their process")


def choose_window(n_ahead: int, exponent_bits: int, entry_bytes: int) -> int:
    """Return the window width that makes ``n_ahead`` powers cheapest, table included.

    A table of width w has rows = ceil(exponent_bits / w) rows of 2^w entries, one product each;
    a power takes one product per row. So rows (2^w + n_ahead) is least, under the bound
    `MAX_TABLE_BYTES`. Never narrower for a larger ``n_ahead``.

    Args:
        n_ahead: powers to come.
        exponent_bits: of each.
        entry_bytes: size of an entry.
    """

    def rows(window: int) -> int:
        return -(-exponent_bits // window)

    def fits(window: int) -> bool:
        return (rows(window) << window) * entry_bytes * _ENTRY_OVERHEAD <= MAX_TABLE_BYTES

    widths = [w for w in range(2, MAX_WINDOW_BITS + 1) if fits(w)] or [2]
    return min(widths, key=lambda w: rows(w) * ((1 << w) + n_ahead))


class _Powers(Protocol):
    """One of the three ways."""

    def draw(self, count: int, bits: BitSource) -> list[int]: ...


def _choose_powers(
    public_key: PublicKey, private_key: PrivateKey | None, n_ahead: int, cache: Path | None
) -> _Powers:
    if private_key is None and not public_key.has_generator:
        return _FullPowers(public_key)
    if private_key is None:
        return _TablePowers(public_key, n_ahead, cache)
    if not public_key.has_generator:
        return _OwnersFullPowers(private_key)
    return _OwnersTablePowers(private_key, n_ahead)


class _TablePowers:
    """h_s^x mod n^2 by one table."""

    __slots__ = ("_exponent_bits", "_table")

    def __init__(self, public_key: PublicKey, n_ahead: int, cache: Path | None) -> None:
        self._exponent_bits = public_key.exponent_bits
        spec = TableSpec(
            name=public_key.fingerprint,
            modulus=Modulus(public_key.square),
            base=public_key.generator,
            exponent_bits=self._exponent_bits,
            window_bits=choose_window(n_ahead, self._exponent_bits, public_key.key_bits // 4),
        )
        self._table = spec.make() if cache is None else cached_table(cache, spec)

    def draw(self, count: int, bits: BitSource) -> list[int]:
        return self._table.power(draw_bits(bits, self._exponent_bits, count))


class _OwnersTablePowers:
    """The same by tables mod p^2 and q^2; equal exponents give equal randomizers."""

    __slots__ = ("_exponent_bits", "_join", "_tables")

    def __init__(self, private_key: PrivateKey, n_ahead: int) -> None:
        public_key = private_key.public_key
        self._exponent_bits = public_key.exponent_bits
        # Two tables of entries half as long: together as large as one mod n^2.
        window = choose_window(n_ahead, self._exponent_bits, public_key.key_bits // 4)
        self._join = _Join(private_key)
        self._tables = [
            FixedBase(square, public_key.generator, self._exponent_bits, window)
            for square in self._join.squares
        ]

    def draw(self, count: int, bits: BitSource) -> list[int]:
        exponents = draw_bits(bits, self._exponent_bits, count)
        first, second = (table.power(exponents) for table in self._tables)
        return self._join.join(first, second)


class _FullPowers:
    """s^n mod n^2."""

    __slots__ = ("_modulus", "_square")

    def __init__(self, public_key: PublicKey) -> None:
        self._modulus = public_key.modulus
        self._square = Modulus(public_key.square)

    def draw(self, count: int, bits: BitSource) -> list[int]:
        return self._square.power(_draw_units(self._modulus, count, bits), self._modulus)


class _OwnersFullPowers:
    """s^p mod p^2 and s^q mod q^2, joined."""

    __slots__ = ("_join", "_modulus", "_primes")

    def __init__(self, private_key: PrivateKey) -> None:
        self._modulus = private_key.public_key.modulus
        self._primes = private_key.raw_primes()
        self._join = _Join(private_key)

    def draw(self, count: int, bits: BitSource) -> list[int]:
        units = _draw_units(self._modulus, count, bits)
        first, second = (
            square.power(units, prime)
            for square, prime in zip(self._join.squares, self._primes, strict=True)
        )
        return self._join.join(first, second)


class _Join:
    """The Chinese remainder theorem mod p^2 and q^2, by Garner's formula; secret."""

    __slots__ = ("_inverse", "squares")

    def __init__(self, private_key: PrivateKey) -> None:
        p, q = (gmpy2.mpz(prime) for prime in private_key.raw_primes())
        self.squares = (Modulus(p * p), Modulus(q * q))
        self._inverse = gmpy2.invert(q * q, p * p)

    def join(self, first: Sequence[int], second: Sequence[int]) -> list[int]:
        """Return the numbers mod n^2 that are ``first`` mod p^2 and ``second`` mod q^2."""
        p2, q2 = (square.value for square in self.squares)
        inverse = self._inverse
        return [b + q2 * ((a - b) * inverse % p2) for a, b in zip(first, second, strict=True)]


def _draw_units(modulus: int, count: int, bits: BitSource) -> list[int]:
    """Return ``count`` uniform elements of Z*_n."""
    units: list[int] = []
    while len(units) < count:
        drawn = draw_below(bits, modulus)
        if gmpy2.gcd(drawn, modulus) == 1:
            units.append(drawn)
    return units
