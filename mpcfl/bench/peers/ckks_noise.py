"""How far a sum of CKKS ciphertexts can be off: parameters, and a bound that is not tuned.

N is the degree of the ring, s the ternary secret, Delta the scale. A slot of a ciphertext is its
polynomial at a root z of X^N + 1, of which the real part is decoded and divided by Delta. Each
ciphertext is off by:

1. Rounding the coefficients of the encoded values: at most 1/2 in each, N / 2 in a slot.
2. The noise u e + e_0 + e_1 s of encryption by the public key, which SEAL makes modulo q P and
   divides by its last prime P: u and s are ternary, and SEAL's binomial noise is at most 21, so
   at most N 21 (2 N + 1) / P in a slot. That is nearly nothing.
3. Rounding both halves in that division: r_0 + r_1 s. Ciphertexts look uniform, as the scheme
   assumes anyway, hence so do the coefficients of r_0 and r_1 on [-1/2, 1/2], independently.
4. Float64. A transform of N words is off by at most (log2 N) eta of the 2-norm, to first order,
   with eta = (4 + 4 sqrt 2) 2^-53 where weights are off by at most four units (Higham, Accuracy
   and Stability of Numerical Algorithms, 2nd edition, theorem 24.2); turning coefficients to
   integers and back adds 2 more. In a slot that is (2 + log2 N) eta sqrt(N / 2) 2^(b-1) at most:
   for each summand as it is encoded, and once for the sum as it is decoded.

For 3: uniform variables on [-1/2, 1/2] and ternary ones are sub-Gaussian with their variances, 1/12
and 2/3, as variance proxies, and the squares of cos(i arg z + c) add up to N / 2 over i < N. So
Re s(z) and Im s(z) each exceed k sqrt(N / 3) with a probability of at most 2 exp(-k^2 / 2); unless
they do, |s(z)|^2 <= 2 k^2 N / 3. Given s, the real part of r_0 + r_1 s in a slot has the proxy
N / 24 (1 + |s(z)|^2). With k = 10 a coordinate passes the bound with a probability below
6 exp(-50) = 1.2e-21: among a million sums of a million coordinates, with 1.2e-9. Summands' errors
are independent; bounds are added here, not variances, which errs on the safe side.

Directions: whatever is rounded or left out is far less than what adding bounds gives away. Values
and sums are assumed to have at most `MAX_MODULUS_BITS` bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_MODULUS_BITS = 32
# k: standard deviations that nothing is off by.
_TAIL = 10.0
_UNIT_ROUNDOFF = 2.0**-53
# Of SEAL: the difference of 21 bits and 21 others.
_LARGEST_NOISE = 21
# Rounding to the nearest integer is right below this.
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class CkksParameters:
    """Public parameters of CKKS as SEAL takes them.

    Attributes:
        degree: N, of the ring.
        prime_bits: sizes of the primes; the last is used for keys, the others carry values.
        scale_bits: log2 of Delta.
    """

    degree: int
    prime_bits: tuple[int, ...]
    scale_bits: int

    @property
    def slots(self) -> int:
        """Values in one ciphertext."""
        return self.degree // 2

    @property
    def modulus_bits(self) -> int:
        """Bits of all primes together, which security is counted by."""
        return sum(self.prime_bits)

    @property
    def scale(self) -> float:
        """Delta: what values are multiplied by before they are rounded."""
        return 2.0**self.scale_bits

    @property
    def tolerance(self) -> float:
        """How far a coordinate of a sum can be off, per summand; see the top of the module."""
        n = self.degree
        secret_square = 2 * _TAIL**2 * n / 3
        encoding = n / 2
        # A prime of so many bits is at least half of the power of two.
        encryption = n * _LARGEST_NOISE * (2 * n + 1) / 2.0 ** (self.prime_bits[-1] - 1)
        division = _TAIL * math.sqrt(n / 24 * (1 + secret_square))
        eta = (4 + 4 * math.sqrt(2)) * _UNIT_ROUNDOFF
        largest = 2.0 ** (MAX_MODULUS_BITS - 1)
        transform = (2 + math.log2(n)) * eta * math.sqrt(n / 2) * largest
        return (encoding + encryption + division) / self.scale + 2 * transform

    @property
    def most_rounded(self) -> int:
        """Of how many summands the rounded sum is exact."""
        return math.ceil(_HALF / self.tolerance) - 1


# Of TenSEAL's own tutorials, and of the papers that compare with it.
USUAL = CkksParameters(8192, (60, 40, 40, 60), 40)
# Without multiplications one prime is enough: 2^27 times a sum of 32 bits with its sign stays below
# half of 2^60. SEAL advises a last prime as large as any other.
SUMS_ALONE = CkksParameters(8192, (60, 60), 27)
