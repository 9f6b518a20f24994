"""The proof that a batch of partial decryptions is what one key share gives.

A share x_i = Delta s_i is fixed in public by v_i = v^(x_i) mod n^2. Its holder hands out w_j for
ciphertexts c_j, and proves that w_j^2 = (c_j^4)^(x_i) for all j at once:

1. Weights rho_j of 128 bits are hashed from everything that is claimed (key, index, context,
   all c_j and w_j), so they can't be chosen before the w_j are.
2. One non-interactive proof that two discrete logarithms are equal, in the bases v and
   G = prod c_j^(4 rho_j), of the powers v_i and W = prod w_j^(2 rho_j).

Sound, against provers of any power: fourth powers and squares lie in the group of squares
mod n^2. For n = (2p' + 1)(2q' + 1) it is cyclic of order n p' q', and every prime factor of that
is longer than 1,000 bits from 2048-bit keys on. If some w_j^2 is off by u_j != 1, the order of
u_j has a prime factor l > 2^128. Whatever the other weights, at most one value of rho_j below
2^128 makes prod u_j^(rho_j) vanish in the subgroup of order l: 2^-128 for each hash tried. A W
that is off by u of such an order, and two accepted answers z, z' to challenges e != e' below
2^128, would give u^(e - e') = 1 (v generates the group, so its equation fixes z - z'), thus
l | e - e', which is impossible: again 2^-128 for each hash tried. In a group with small factors
the weights would prove nothing; that is why primes have to be safe.

The squares forget w_j's factor of order two. That is harmless: so does `combine`, which squares.

Zero-knowledge, in the random oracle model: the nonce is 128 bits longer than challenge times
exponent, so that the response hides x_i up to a statistical distance of 2^-128.

Sources: Damgard, Jurik 2001 (PKC), section 4.1 (equality of logarithms in the group of squares;
after Shoup 2000, "Practical threshold signatures", the proof that a signature share is right);
Fouque, Poupard, Stern 2000, the proof of a decryption share; Bellare, Garay, Rabin 1998, "Fast
batch verification", the small exponents test. Assumes a dealer that chose safe primes and a
generator v. Does not say that a ciphertext is one that should be opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import gmpy2

from mpcfl.errors import WrongPartial
from mpcfl.hazmat.bits import BitSource, domain_tag
from mpcfl.hazmat.modular import Modulus
from mpcfl.hazmat.primes import draw_bits

CHALLENGE_BITS = 128
_WEIGHT_BYTES = 16
# By how much the nonce outgrows what it hides.
_HIDING_BITS = 128


@dataclass(frozen=True, slots=True)
class PartialProof:
    """Challenge e and response z = nonce + e x_i, an integer that is not reduced; public."""

    challenge: int
    response: int


@dataclass(frozen=True, slots=True)
class PartialClaim:
    """What is proven: values[j]^2 = ciphertexts[j]^(4 x) and key = base^x mod n^2; public.

    Attributes:
        modulus: arithmetic mod n^2.
        index: number of the key share.
        base: v, generator of the group of squares.
        key: v_i, the share's verification key.
        ciphertexts: all in Z*_{n^2}.
        values: the partial decryptions, one per ciphertext, all in Z*_{n^2}.
        subject: 32 bytes, hash of the threshold key, the context and the ciphertexts.
        exponent_bits: the share's exponent x is below 2^exponent_bits.
    """

    modulus: Modulus
    index: int
    base: int
    key: int
    ciphertexts: Sequence[int]
    values: Sequence[int]
    subject: bytes
    exponent_bits: int

    @property
    def nonce_bits(self) -> int:
        """Return the length of the nonce."""
        return self.exponent_bits + CHALLENGE_BITS + _HIDING_BITS


def response_bits(exponent_bits: int) -> int:
    """Return the length that no honest response passes: one bit more than the nonce's."""
    return exponent_bits + CHALLENGE_BITS + _HIDING_BITS + 1


def prove(claim: PartialClaim, exponent: int, bits: BitSource) -> PartialProof:
    """Prove ``claim`` with the share's exponent x = Delta s_i.

    The nonce is secret and never used twice: two responses with one nonce give x away.
    Both powers of it take a time that does not depend on it; the response is one
    multiplication and one addition of fixed sizes.
    """
    digest = _claim_digest(claim)
    base = _weighted(claim.modulus, claim.ciphertexts, _weights(digest, claim), 4)
    nonce = draw_bits(bits, claim.nonce_bits)[0]
    commitments = claim.modulus.power_secret([base, claim.base], nonce, claim.nonce_bits)
    challenge = _challenge(digest, claim, commitments)
    return PartialProof(challenge, nonce + challenge * exponent)


def check_proofs(claims: Sequence[PartialClaim], proofs: Sequence[PartialProof]) -> None:
    """Return if every proof holds for its claim; one modulus and base, so that lanes are filled.

    Raises:
        WrongPartial: one does not; names the key share of the first.
    """
    for claim, proof in zip(claims, proofs, strict=True):
        _check_range(claim, proof)
    digests = [_claim_digest(claim) for claim in claims]
    commitments = _commitments(claims, proofs, digests)
    for number, claim in enumerate(claims):
        found = _challenge(digests[number], claim, commitments[2 * number : 2 * number + 2])
        if found != proofs[number].challenge:
            raise _refusal(claim)


def _check_range(claim: PartialClaim, proof: PartialProof) -> None:
    """Refuse a challenge or a response that is negative or longer than an honest one."""
    response_end = 1 << response_bits(claim.exponent_bits)
    if not (0 <= proof.challenge < 1 << CHALLENGE_BITS and 0 <= proof.response < response_end):
        raise _refusal(claim)


def _commitments(
    claims: Sequence[PartialClaim], proofs: Sequence[PartialProof], digests: Sequence[bytes]
) -> list[int]:
    """Return what each prover must have committed to: G^z / W^e and v^z / v_i^e, in turn."""
    if not claims:
        return []
    modulus = claims[0].modulus
    bases, powers = [], []
    for claim, digest in zip(claims, digests, strict=True):
        weights = _weights(digest, claim)
        bases += [_weighted(modulus, claim.ciphertexts, weights, 4), claim.base]
        powers += [_weighted(modulus, claim.values, weights, 2), claim.key]
    raised = modulus.powers(bases, [proof.response for proof in proofs for _ in range(2)])
    divisors = modulus.powers(powers, [proof.challenge for proof in proofs for _ in range(2)])
    inverses = [gmpy2.invert(divisor, modulus.value) for divisor in divisors]
    return modulus.multiply(raised, inverses)


def encode_integers(values: Sequence[int], width_bytes: int) -> bytes:
    """Encode integers in ``width_bytes`` bytes each, big end first."""
    return b"".join(int(value).to_bytes(width_bytes, "big") for value in values)


def width_of(modulus: int) -> int:
    """Return the number of bytes that hold every residue of ``modulus``."""
    return (int(modulus).bit_length() + 7) // 8


def _refusal(claim: PartialClaim) -> WrongPartial:
    """Return the one error for every way in which a proof can fail."""
    return WrongPartial(
        f"the partial decryptions made with key share {claim.index} come with a proof that does "
        "not hold; leave that share out, combine others, and ask its holder",
        claim.index,
    )


def _claim_digest(claim: PartialClaim) -> bytes:
    """Hash everything that is claimed; the subject stands for key, context and ciphertexts."""
    tag = domain_tag("threshold-partial-claim", claim.index, len(claim.values))
    values = encode_integers(claim.values, width_of(claim.modulus.value))
    return hashlib.sha256(tag + claim.subject + values).digest()


def _weights(digest: bytes, claim: PartialClaim) -> list[int]:
    """Expand the claim's digest to one weight of 128 bits per ciphertext."""
    n_bytes = _WEIGHT_BYTES * len(claim.values)
    stream = hashlib.shake_256(domain_tag("threshold-partial-weights") + digest).digest(n_bytes)
    starts = range(0, n_bytes, _WEIGHT_BYTES)
    return [int.from_bytes(stream[start : start + _WEIGHT_BYTES], "big") for start in starts]


def _challenge(digest: bytes, claim: PartialClaim, commitments: Sequence[int]) -> int:
    """Hash the claim and the two commitments to the challenge."""
    tag = domain_tag("threshold-partial-challenge")
    encoded = encode_integers(commitments, width_of(claim.modulus.value))
    hashed = hashlib.sha256(tag + digest + encoded).digest()
    return int.from_bytes(hashed[: CHALLENGE_BITS // 8], "big")


def _weighted(
    modulus: Modulus, elements: Sequence[int], weights: Sequence[int], exponent: int
) -> int:
    """Return the product of all ``elements[j] ** (exponent * weights[j])``."""
    factors = modulus.powers(elements, weights)
    while len(factors) > 1:
        if len(factors) % 2:
            factors.append(1)
        factors = modulus.multiply(factors[::2], factors[1::2])
    return modulus.power(factors or [1], exponent)[0]
