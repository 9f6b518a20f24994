"""Steps of our own around Paillier, behind the face of `paillier_libraries.Library`.

What a threshold key costs, what packing costs, and the setting in which FLASHE was measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from paillier_libraries import plaintexts
from paillier_without_kernel import choose_arithmetic

from mpcfl.hazmat import paillier, threshold
from mpcfl.hazmat.modular import Modulus
from mpcfl.hazmat.packing import SlotLayout, pack, unpack
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.hazmat.threshold_key import deal_key
from mpcfl.secagg.base import IntVector

BITS = 16
# Threshold keys: any 3 of 5.
THRESHOLD, SHARES = 3, 5
# Ciphertexts whose partial decryptions are proven and checked together.
_THRESHOLD_BATCH = 64
_CONTEXT = b"benchmark"
PACKED_VALUES, PACKED_PARTIES = 1_000_000, 8
FLASHE_VALUES, FLASHE_PARTIES = 262_144, 10


class ThresholdSteps:
    """What one holder of a share does with a batch of ciphertexts, and whoever combines."""

    batch = _THRESHOLD_BATCH

    def __init__(self, key_bits: int, *, kernel: bool) -> None:
        choose_arithmetic(kernel)
        key, shares = deal_key(key_bits, SHARES, THRESHOLD)
        self._plain = plaintexts(key_bits, self.batch)
        drawn = Randomizers(key.public_key, n_ahead=self.batch).draw(self.batch)
        cipher = paillier.encrypt(key.public_key, self._plain, drawn)
        # The last ones, whose coefficients in the combination are not the smallest.
        chosen = shares[-THRESHOLD:]
        partials = [threshold.partially_decrypt(share, cipher, _CONTEXT) for share in chosen]
        checked = threshold.check_partials(key, cipher, partials, _CONTEXT)
        ring, exponent = Modulus(key.public_key.square), 2 * chosen[0].raw_exponent()
        self._combine: Callable[[], list[int]] = lambda: threshold.combine(key, checked)
        self.operations: dict[str, Callable[[], object]] = {
            "partial decryption alone": lambda: ring.power_secret(
                cipher, exponent, key.exponent_bits + 1
            ),
            "partial decryption and proof": lambda: threshold.partially_decrypt(
                chosen[0], cipher, _CONTEXT
            ),
            "check of one": lambda: threshold.check_partial(key, cipher, partials[0], _CONTEXT),
            "check of three": lambda: threshold.check_partials(key, cipher, partials, _CONTEXT),
            "combination of three": self._combine,
        }

    def check(self) -> bool:
        """See `Library.check`."""
        return self._combine() == self._plain


class Packing:
    """Putting a vector into plaintexts, and reading a sum back; one batch is one vector."""

    batch = 1

    def __init__(self, key_bits: int) -> None:
        layout = SlotLayout(BITS, PACKED_PARTIES, key_bits - 1)
        self._values = public_values(PACKED_VALUES)
        total = [PACKED_PARTIES * plain for plain in pack(self._values, layout)]
        self._unpack: Callable[[], IntVector] = lambda: unpack(
            total, layout, PACKED_VALUES, PACKED_PARTIES
        )
        self.operations: dict[str, Callable[[], object]] = {
            "pack": lambda: pack(self._values, layout),
            "unpack": self._unpack,
        }

    def check(self) -> bool:
        """See `Library.check`."""
        return bool(np.array_equal(self._unpack(), _centred(PACKED_PARTIES * self._values)))


class Flashe:
    """Encryption at one party, nine additions, one decryption; one batch is one vector."""

    batch = 1

    def __init__(self, key_bits: int, *, kernel: bool, n_values: int = FLASHE_VALUES) -> None:
        choose_arithmetic(kernel)
        private = paillier.generate_key(key_bits)
        public, layout = private.public_key, SlotLayout(BITS, FLASHE_PARTIES, key_bits - 1)
        count = layout.n_plaintexts(n_values)
        by_anybody = Randomizers(public, n_ahead=count)
        by_owner = Randomizers(public, private, n_ahead=count)
        values = self._values = public_values(n_values)

        def encrypt(randomizers: Randomizers) -> list[int]:
            return paillier.encrypt(public, pack(values, layout), randomizers.draw(count))

        def add() -> list[int]:
            total = cipher
            for _ in range(FLASHE_PARTIES - 1):
                total = paillier.add(public, total, cipher)
            return total

        cipher = encrypt(by_owner)
        total = add()
        self._open: Callable[[], IntVector] = lambda: unpack(
            private.decrypt(total), layout, n_values, FLASHE_PARTIES
        )
        self.operations: dict[str, Callable[[], object]] = {
            "encrypt": lambda: encrypt(by_anybody),
            "encrypt, by the owner": lambda: encrypt(by_owner),
            "add": add,
            "decrypt": self._open,
        }

    def check(self) -> bool:
        """See `Library.check`."""
        return bool(np.array_equal(self._open(), _centred(FLASHE_PARTIES * self._values)))


def public_values(count: int) -> IntVector:
    """Return integers that fill 16 bits, both ends included; equal on every run, no secrets."""
    spread = np.arange(count, dtype=np.int64) * 40_503 % (1 << BITS)
    values: IntVector = spread - (1 << (BITS - 1))
    return values


def _centred(total: IntVector) -> IntVector:
    half = 1 << (BITS - 1)
    centred: IntVector = (total + half) % (2 * half) - half
    return centred
