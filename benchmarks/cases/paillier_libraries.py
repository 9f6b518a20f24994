"""Paillier by several libraries behind one face, for `paillier_worker.py`.

Each makes a key of its own and works on batches of integers, by the library's own batch calls where
it has some. What only turns Python's integers into the library's own kind, and back, is left out
of the time of others, and is in ours.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable
from typing import Any, Protocol

from paillier_without_kernel import choose_arithmetic

# Batches of as many ciphertexts; a multiple of what our kernel does at once.
BATCH = 64
# One of phe takes as long as a batch of the others.
_PHE_BATCH = 16
# Plaintexts fill the key but for so many bits: some libraries keep room for sums.
_SPARE_BITS = 128
# Encryptions ahead when our table is made: a vector of a million coordinates.
_AHEAD = 10_000


class Library(Protocol):
    """One library with a key.

    Attributes:
        batch: ciphertexts that one call of an operation makes, adds or opens.
        operations: by name; each call does a whole batch.
    """

    batch: int
    operations: dict[str, Callable[[], object]]

    def check(self) -> bool:
        """Return whether the sum of two batches opens to the sum of their plaintexts."""
        ...


def plaintexts(key_bits: int, count: int) -> list[int]:
    """Return fresh random plaintexts of key_bits - 128 bits, as packed ones are."""
    return [secrets.randbits(key_bits - _SPARE_BITS) for _ in range(count)]


class Phe:
    """`phe` with gmpy2, without its encoding of floats."""

    batch = _PHE_BATCH

    def __init__(self, key_bits: int) -> None:
        phe = importlib.import_module("phe")
        if not importlib.import_module("phe.util").HAVE_GMP:
            raise ImportError("phe does not find gmpy2", name="gmpy2")
        self._gmpy2 = importlib.import_module("gmpy2")
        self._public, self._private = phe.generate_paillier_keypair(n_length=key_bits)
        self._plain = plaintexts(key_bits, self.batch)
        self._cipher = self._encrypt()
        self.operations: dict[str, Callable[[], object]] = {
            "encrypt": self._encrypt,
            "add": self._add,
            "decrypt": lambda: self._decrypt(self._cipher),
        }

    def _encrypt(self) -> list[int]:
        return [self._public.raw_encrypt(plain) for plain in self._plain]

    def _add(self) -> list[int]:
        square, mpz = self._gmpy2.mpz(self._public.nsquare), self._gmpy2.mpz
        return [int(mpz(cipher) * cipher % square) for cipher in self._cipher]

    def _decrypt(self, ciphers: list[int]) -> list[int]:
        return [self._private.raw_decrypt(cipher) for cipher in ciphers]

    def check(self) -> bool:
        """See `Library.check`."""
        return self._decrypt(self._add()) == [2 * plain for plain in self._plain]


class Heu:
    """ZPaillier of SecretFlow's HEU; whole arrays at once."""

    batch = BATCH

    def __init__(self, key_bits: int) -> None:
        heu_numpy = importlib.import_module("heu.numpy")
        schemes = importlib.import_module("heu.phe").SchemaType
        self._kit = heu_numpy.setup(schemes.ZPaillier, key_bits)
        self._plain = plaintexts(key_bits, self.batch)
        encoded = self._kit.array(self._plain, self._kit.bigint_encoder())
        encryptor, evaluator = self._kit.encryptor(), self._kit.evaluator()
        self._decryptor = self._kit.decryptor()
        cipher = encryptor.encrypt(encoded)
        self.operations: dict[str, Callable[[], Any]] = {
            "encrypt": lambda: encryptor.encrypt(encoded),
            "add": lambda: evaluator.add(cipher, cipher),
            "decrypt": lambda: self._decryptor.decrypt(cipher),
        }

    def check(self) -> bool:
        """See `Library.check`."""
        opened = self._decryptor.decrypt(self.operations["add"]())
        numbers = opened.to_numpy(self._kit.bigint_encoder()).ravel()
        return [int(number) for number in numbers] == [2 * plain for plain in self._plain]


class Pypaillier:
    """`pypaillier`; lists of blobs at once."""

    batch = BATCH

    def __init__(self, key_bits: int) -> None:
        library = importlib.import_module("paillier")
        public, self._private = library.generate_keypair(key_bits)
        self._library = library
        self._plain = plaintexts(key_bits, self.batch)
        cipher = library.encrypt_integers(public, self._plain)
        both = [*cipher, *cipher]
        pairs = [[first, first + self.batch] for first in range(self.batch)]
        self.operations: dict[str, Callable[[], Any]] = {
            "encrypt": lambda: library.encrypt_integers(public, self._plain),
            "add": lambda: library.add_blocks(public, both, pairs),
            "decrypt": lambda: self._decrypt(cipher),
        }

    def _decrypt(self, ciphers: Any) -> Any:
        return self._library.decrypt_exact_many(self._private, ciphers)

    def check(self) -> bool:
        """See `Library.check`."""
        opened = self._decrypt(self.operations["add"]())
        return [number for number, _ in opened] == [2 * plain for plain in self._plain]


class Ours:
    """`mpcfl.hazmat.paillier`; encryption with the public key, and by the owner of the key."""

    batch = BATCH

    def __init__(self, key_bits: int, *, kernel: bool) -> None:
        choose_arithmetic(kernel)
        from mpcfl.hazmat import paillier
        from mpcfl.hazmat.randomizers import Randomizers

        self._private = paillier.generate_key(key_bits)
        public = self._public = self._private.public_key
        self._paillier = paillier
        self._plain = plaintexts(key_bits, self.batch)
        by_anybody = Randomizers(public, n_ahead=_AHEAD)
        by_owner = Randomizers(public, self._private, n_ahead=_AHEAD)
        self._cipher = self._encrypt(by_anybody)
        self.operations: dict[str, Callable[[], object]] = {
            "encrypt": lambda: self._encrypt(by_anybody),
            "encrypt, by the owner": lambda: self._encrypt(by_owner),
            "add": lambda: paillier.add(public, self._cipher, self._cipher),
            "decrypt": lambda: self._private.decrypt(self._cipher),
        }

    def _encrypt(self, randomizers: Any) -> list[int]:
        drawn = randomizers.draw(self.batch)
        return self._paillier.encrypt(self._public, self._plain, drawn)

    def check(self) -> bool:
        """See `Library.check`."""
        owned: Any = self.operations["encrypt, by the owner"]()
        opened = self._private.decrypt(self._paillier.add(self._public, self._cipher, owned))
        return opened == [2 * plain for plain in self._plain]
