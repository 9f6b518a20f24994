"""Modular arithmetic on batches of numbers, all modulo one odd number.

Two ways, equal bit for bit: the kernel `mpcfl.hazmat._ifma` (eight numbers at once, AVX-512
IFMA), where it was built and the processor has it, and GMP by way of gmpy2 everywhere else.
The kernel multiplies by Montgomery's method in radix 2^52 with results below twice the
modulus, so that no step compares (Gueron 2002; Gueron and Krasnov 2012 for the radix). Modulo
a square m^2, as all of Paillier is, a number is x0 + x1 m and its parts are multiplied modulo m
(`ifma.c` says how), for 5/8 of the work. Fixed bases use a table of powers by radix-2^w digits
(Brickell, Gordon, McCurley, Wilson 1992).

Numbers may be `int` or `gmpy2.mpz` on the way in, of any size and sign, and are reduced;
results are `gmpy2.mpz` in [0, modulus). All work but the conversion of numbers releases the
interpreter lock, except for short products by gmpy2.

Secrets: only `Modulus.power_secret` hides its exponent from whoever measures time or the
cache. `Modulus.power`, `Modulus.powers` and `FixedBase.power` don't promise it, and nothing
here hides a base from an observer of the conversion. Python can't wipe numbers; the kernel
wipes its own buffers. A modulus may be secret (p^2), so that no repr shows one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import gmpy2

from mpcfl.errors import BackendUnavailable

try:
    from mpcfl.hazmat import _ifma
except ImportError:  # not built: no compiler, or another architecture
    _KERNEL_BITS = 0
else:
    # One that was built in place from older sources takes other arguments.
    _CURRENT = getattr(_ifma, "INTERFACE", 1) == 2
    _KERNEL_BITS = _ifma.MAX_BITS if _CURRENT and _ifma.supported() else 0

# The kernel takes as long for one number as for eight, about what GMP takes for two.
_FEWEST_FOR_KERNEL: Final = 2
_TABLE_TAG: Final = b"mpcfl fixed base 1"
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_HEADER_BYTES: Final = len(_TABLE_TAG) + 2 * _DIGEST_BYTES
MIN_WINDOW_BITS: Final = 1
MAX_WINDOW_BITS: Final = 16


def kernel_name() -> str:
    """Return what computes by default: ``"avx512-ifma"`` or ``"gmpy2"``."""
    return "avx512-ifma" if _KERNEL_BITS else "gmpy2"


class Modulus:
    """An odd modulus of at least 3 and the ways to compute modulo it; ``value`` is the modulus.

    With the kernel, eight numbers take as long as one: pass long batches.

    Args:
        value: the modulus; may be secret.
        kernel: True for the kernel, False for gmpy2, None for the kernel where it is
            there and the modulus has at most 8192 bits.

    Raises:
        ValueError: the modulus is even or below 3.
        BackendUnavailable: ``kernel`` is True and there is none for this modulus.
    """

    __slots__ = ("_context", "_one", "_part_width", "_root", "_width", "value")

    def __init__(self, value: int, *, kernel: bool | None = None) -> None:
        self.value = gmpy2.mpz(value)
        bits = self.value.bit_length()
        if self.value < 3 or self.value % 2 == 0:
            raise ValueError(f"a modulus must be odd and at least 3; this one has {bits} bits")
        if kernel and bits > _KERNEL_BITS:
            raise BackendUnavailable(
                f"the kernel was asked for and takes moduli up to {_KERNEL_BITS} bits here (0: not "
                f"built, or no AVX-512 IFMA), not {bits}; leave the choice open or use gmpy2"
            )
        self._width = 8 * ((bits + 63) // 64)
        self._one = gmpy2.mpz(1)
        self._root = gmpy2.isqrt(self.value) if gmpy2.is_square(self.value) else None
        self._context: _ifma.Context | None = None
        if bits <= _KERNEL_BITS and kernel is not False:
            self._context = self._open_kernel()

    def _open_kernel(self) -> _ifma.Context:
        """Hand the modulus, or its root, to the kernel, with R^2 and 1 - R."""
        inner = self.value if self._root is None else self._root
        # A part of a number modulo a square takes one bit more than the root.
        part_bits = inner.bit_length() + (self._root is not None)
        self._part_width = 8 * ((part_bits + 63) // 64)
        radix_bits = _ifma.radix_bits(inner.bit_length())
        square = gmpy2.powmod(2, 2 * radix_bits, self.value)
        complement = (1 - gmpy2.powmod(2, radix_bits, inner)) % inner
        contents = [n.to_bytes(self._part_width, "little") for n in (inner, complement)]
        return _ifma.Context(contents[0], self._pack((square,)), contents[1])

    @property
    def uses_kernel(self) -> bool:
        """Whether the kernel computes, and not gmpy2."""
        return self._context is not None

    def multiply(self, left: Sequence[int], right: Sequence[int]) -> list[int]:
        """Return the products left[i] * right[i].

        Raises:
            ValueError: the sequences differ in length.
        """
        _check_lengths(len(left), len(right))
        # Modulo a square, converting costs as much as the product.
        few = len(left) < _FEWEST_FOR_KERNEL
        if self._context is None or few or self._root is not None:
            return [gmpy2.mpz(a) * b % self.value for a, b in zip(left, right, strict=True)]
        return self._unpack(self._context.multiply(self._pack(left), self._pack(right)))

    def power(self, bases: Sequence[int], exponent: int) -> list[int]:
        """Return the powers bases[i] ** exponent; the exponent is public and not negative."""
        _check_exponents((exponent,), None)
        if self._context is None or len(bases) < _FEWEST_FOR_KERNEL:
            return list(gmpy2.powmod_base_list(self._reduced(bases), exponent, self.value))
        bits = max(1, exponent.bit_length())
        return self._unpack(self._context.power(*self._packed(bases, (exponent,), bits)))

    def power_secret(self, bases: Sequence[int], exponent: int, exponent_bits: int) -> list[int]:
        """Return the powers bases[i] ** exponent of one secret exponent.

        Time and memory trace don't depend on the exponent below 2^exponent_bits, up to the
        conversion of the exponent to bytes and, by gmpy2, its number of 64-bit words.

        Raises:
            ValueError: the exponent is negative or longer than ``exponent_bits``.
        """
        _check_exponents((exponent,), exponent_bits)
        if self._context is not None:
            packed = self._packed(bases, (exponent,), exponent_bits)
            return self._unpack(self._context.power(*packed))
        # GMP's powm_sec takes no exponent zero, which nobody has as a secret.
        if exponent == 0:
            return [self._one] * len(bases)
        with _unlocked():
            return [gmpy2.powmod_sec(base, exponent, self.value) for base in self._reduced(bases)]

    def powers(self, bases: Sequence[int], exponents: Sequence[int]) -> list[int]:
        """Return the powers bases[i] ** exponents[i]; exponents are public and not negative."""
        _check_lengths(len(bases), len(exponents))
        _check_exponents(exponents, None)
        if self._context is None or len(bases) < _FEWEST_FOR_KERNEL:
            pairs = zip(self._reduced(bases), exponents, strict=True)
            with _unlocked():
                return [gmpy2.powmod(base, exponent, self.value) for base, exponent in pairs]
        bits = max(1, *(exponent.bit_length() for exponent in exponents))
        return self._unpack(self._context.power(*self._packed(bases, exponents, bits)))

    def _packed(
        self, bases: Sequence[int], exponents: Sequence[int], bits: int
    ) -> tuple[bytes, bytes, int]:
        """Return what the kernel takes for a power: one exponent for all bases or one for each."""
        return self._pack(bases), _pack_exponents(exponents, bits), bits

    def _reduced(self, numbers: Iterable[int]) -> list[Any]:
        return [gmpy2.mpz(number) % self.value for number in numbers]

    def _pack(self, numbers: Iterable[int]) -> bytes:
        """Join numbers, reduced, as the kernel takes them: little-endian, part by part."""
        parts: Iterable[Any] = self._reduced(numbers)
        if self._root is not None:
            pairs = (gmpy2.f_divmod(number, self._root) for number in parts)
            parts = (part for second, first in pairs for part in (first, second))
        return _join(parts, self._part_width)

    def _unpack(self, content: bytes) -> list[int]:
        """Split what the kernel returns."""
        parts = _split(content, self._part_width)
        if self._root is None:
            return parts
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [(first + second * self._root) % self.value for first, second in pairs]

    def __repr__(self) -> str:
        return f"Modulus(<{self.value.bit_length()} bits>, kernel={self.uses_kernel})"

    def __reduce__(self) -> Any:
        raise TypeError("a modulus may be secret; send the key it belongs to, not the object")


class FixedBase:
    """Powers of one base by a table of base^(digit 2^(window_bits row)).

    A power takes one product for each ``window_bits`` bits of the exponent. The look-ups go
    to places that depend on the exponent: NOT constant time.

    Args:
        modulus: what to compute modulo.
        base: the base.
        exponent_bits: most bits of an exponent, at least 1.
        window_bits: digit width, from 1 to 16; the table has
            ceil(exponent_bits / window_bits) rows of 2^window_bits numbers.

    Raises:
        ValueError: a width is out of range.
    """

    __slots__ = ("_base", "_exponent_bits", "_modulus", "_table", "_window_bits")

    def __init__(self, modulus: Modulus, base: int, exponent_bits: int, window_bits: int) -> None:
        self._describe(modulus, base, exponent_bits, window_bits)
        self._table = self._make_table()

    def _describe(self, modulus: Modulus, base: int, exponent_bits: int, window_bits: int) -> None:
        if exponent_bits < 1 or not MIN_WINDOW_BITS <= window_bits <= MAX_WINDOW_BITS:
            raise ValueError(
                f"exponents of {exponent_bits} bits by windows of {window_bits}; expected at "
                f"least 1 and from {MIN_WINDOW_BITS} to {MAX_WINDOW_BITS}"
            )
        self._modulus = modulus
        self._base = gmpy2.mpz(base) % modulus.value
        self._exponent_bits = exponent_bits
        self._window_bits = window_bits

    @property
    def n_rows(self) -> int:
        """Number of digits of an exponent."""
        return -(-self._exponent_bits // self._window_bits)

    def power(self, exponents: Sequence[int]) -> list[int]:
        """Return base ** exponents[i]; look-ups are NOT constant time.

        Raises:
            ValueError: an exponent is negative or longer than the table was made for.
        """
        _check_exponents(exponents, self._exponent_bits)
        if self._modulus.uses_kernel:
            packed = _pack_exponents(exponents, self._exponent_bits)
            return self._modulus._unpack(self._table.power(packed))
        return [self._product(int(exponent)) for exponent in exponents]

    def entry(self, row: int, digit: int) -> int:
        """Return base^(digit 2^(window_bits row)).

        Raises:
            IndexError: there is no such row or digit.
        """
        if not (0 <= row < self.n_rows and 0 <= digit < 1 << self._window_bits):
            raise IndexError(f"row {row}, digit {digit} are not in the table")
        if self._modulus.uses_kernel:
            index = (row << self._window_bits) + digit
            return self._modulus._unpack(self._table.entries(index, 1))[0]
        number: int = self._table[row][digit]
        return number

    def to_bytes(self) -> bytes:
        """Return the table in a form that `from_bytes` reads on any machine, by either way.

        A tag, a digest of the parameters, a digest of the rest, and all numbers row by row,
        each as little-endian bytes in the fewest 64-bit words that hold the modulus.
        """
        width = self._modulus._width
        body = b"".join([_join(self._row(row), width) for row in range(self.n_rows)])
        return b"".join([_TABLE_TAG, self._fingerprint(), hashlib.sha256(body).digest(), body])

    @classmethod
    def from_bytes(
        cls, modulus: Modulus, base: int, exponent_bits: int, window_bits: int, content: bytes
    ) -> FixedBase:
        """Read what `to_bytes` wrote for the same base, modulus and widths.

        The digests find accidents, not forgeries: whoever writes the content chooses the
        powers. Keep it where only its owner can write, or compare entries.

        Raises:
            ValueError: the content is not such a table, or is damaged.
        """
        table = cls.__new__(cls)
        table._describe(modulus, base, exponent_bits, window_bits)
        table._check_content(content)
        table._table = table._read_table(memoryview(content)[_HEADER_BYTES:])
        return table

    def _make_table(self) -> Any:
        if self._modulus._context is not None:
            packed = self._modulus._pack((self._base,))
            return self._modulus._context.table(packed, self._exponent_bits, self._window_bits)
        return [self._make_row(row) for row in range(self.n_rows)]

    def _make_row(self, row: int) -> list[int]:
        value = self._modulus.value
        step = gmpy2.powmod(self._base, 1 << self._window_bits * row, value)
        numbers = [self._modulus._one]
        for _ in range(1, 1 << self._window_bits):
            numbers.append(numbers[-1] * step % value)
        return numbers

    def _row(self, row: int) -> list[int]:
        """Return all entries of a row."""
        if not self._modulus.uses_kernel:
            numbers: list[int] = self._table[row]
            return numbers
        per_row = 1 << self._window_bits
        return self._modulus._unpack(self._table.entries(row * per_row, per_row))

    def _read_table(self, body: memoryview) -> Any:
        row_bytes = self._modulus._width << self._window_bits
        starts = range(0, len(body), row_bytes)
        rows = (_split(body[s : s + row_bytes], self._modulus._width) for s in starts)
        if self._modulus._context is None:
            return list(rows)
        packed = b"".join([self._modulus._pack(row) for row in rows])
        return self._modulus._context.read_table(packed, self._exponent_bits, self._window_bits)

    def _product(self, exponent: int) -> int:
        product: int = self._modulus._one
        mask = (1 << self._window_bits) - 1
        for row in self._table:
            product = product * row[exponent & mask] % self._modulus.value
            exponent >>= self._window_bits
        return product

    def _fingerprint(self) -> bytes:
        numbers = (self._modulus.value, self._base, self._exponent_bits, self._window_bits)
        return hashlib.sha256(_TABLE_TAG + b"%x,%x,%x,%x" % tuple(map(int, numbers))).digest()

    def _check_content(self, content: bytes) -> None:
        n_numbers = self.n_rows << self._window_bits
        expected = _HEADER_BYTES + n_numbers * self._modulus._width
        if len(content) != expected:
            raise ValueError(f"a table of {len(content)} bytes; expected {expected}; make it anew")
        if bytes(content[: len(_TABLE_TAG)]) != _TABLE_TAG:
            raise ValueError("not a table of this version; make it anew")
        view = memoryview(content)[len(_TABLE_TAG) :]
        if view[:_DIGEST_BYTES] != self._fingerprint():
            raise ValueError("a table of another base, modulus or width; make it anew")
        body_digest = view[_DIGEST_BYTES : 2 * _DIGEST_BYTES]
        if body_digest != hashlib.sha256(view[2 * _DIGEST_BYTES :]).digest():
            raise ValueError("a table whose digest does not match, so it is damaged; make it anew")

    def __repr__(self) -> str:
        return f"FixedBase({self._modulus!r}, {self._exponent_bits}, {self._window_bits})"

    def __reduce__(self) -> Any:
        raise TypeError("a table is not pickled; write to_bytes() where only its owner can write")


@contextmanager
def _unlocked() -> Iterator[None]:
    """Let gmpy2 release the interpreter lock while it computes a power."""
    with gmpy2.context(gmpy2.get_context(), allow_release_gil=True):
        yield


def _join(numbers: Iterable[Any], width: int) -> bytes:
    """Join numbers as little-endian bytes of one width."""
    return b"".join([number.to_bytes(width, "little") for number in numbers])


def _split(content: bytes | memoryview, width: int) -> list[int]:
    """Reverse `_join`."""
    view = memoryview(content)
    starts = range(0, len(view), width)
    return [gmpy2.mpz.from_bytes(view[s : s + width], "little") for s in starts]


def _check_lengths(left: int, right: int) -> None:
    if left != right:
        raise ValueError(f"sequences of {left} and {right} numbers; expected the same length")


def _check_exponents(exponents: Sequence[int], most_bits: int | None) -> None:
    """Refuse exponents out of range, without saying what they are."""
    if most_bits is not None and most_bits < 1:
        raise ValueError(f"exponents of {most_bits} bits; expected at least 1")
    for exponent in exponents:
        if exponent < 0 or (most_bits is not None and exponent >> most_bits):
            limit = "" if most_bits is None else f" and below 2^{most_bits}"
            raise ValueError(f"an exponent is out of range; expected at least 0{limit}")


def _pack_exponents(exponents: Iterable[int], bits: int) -> bytes:
    """Join exponents as little-endian bytes, each in the fewest bytes that hold ``bits``."""
    width = (bits + 7) // 8
    return _join(exponents, width)
