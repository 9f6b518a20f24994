"""TenSEAL's CKKS behind the face of `paillier_libraries.Library`, for sums of FLASHE's setting.

Polynomials of 8192 coefficients, moduli of 60, 40, 40 and 60 bits, scale 2^40: what TenSEAL's own
examples take; 200 bits of modulus are within the 218 for which the homomorphic encryption
standard (2018, Table 1, ternary secrets) gives 128 bits of security.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from paillier_steps import FLASHE_PARTIES, public_values

_DEGREE = 8192
_SLOTS = _DEGREE // 2
_MODULI = [60, 40, 40, 60]
_SCALE = 2.0**40
# A sum of ten values of 16 bits is off by far less; half would round to another integer.
_TOLERANCE = 0.5


class Ckks:
    """Encryption at one party, nine additions, one decryption; one batch is one vector."""

    batch = 1

    def __init__(self, n_values: int) -> None:
        self._tenseal = importlib.import_module("tenseal")
        self._context = self._tenseal.context(
            self._tenseal.SCHEME_TYPE.CKKS, _DEGREE, coeff_mod_bit_sizes=_MODULI, n_threads=1
        )
        self._context.global_scale = _SCALE
        self._values = public_values(n_values)
        self.cipher = self._encrypt()
        total = self._add()
        self._open: Callable[[], Any] = lambda: np.concatenate([c.decrypt() for c in total])
        self.operations: dict[str, Callable[[], object]] = {
            "encrypt": self._encrypt,
            "add": self._add,
            "decrypt": self._open,
        }

    def _encrypt(self) -> list[Any]:
        parts = range(0, len(self._values), _SLOTS)
        return [
            self._tenseal.ckks_vector(self._context, self._values[first : first + _SLOTS])
            for first in parts
        ]

    def _add(self) -> list[Any]:
        total = self.cipher
        for _ in range(FLASHE_PARTIES - 1):
            total = [left + right for left, right in zip(total, self.cipher, strict=True)]
        return total

    def check(self) -> bool:
        """See `Library.check`; the sum is approximate."""
        return bool(np.max(np.abs(self._open() - FLASHE_PARTIES * self._values)) < _TOLERANCE)


def sent_bytes(n_values: int) -> int:
    """Return the bytes of one party's ciphertexts of so many values."""
    return sum(len(cipher.serialize()) for cipher in Ckks(n_values).cipher)
