"""Threshold Paillier: any t holders of key shares decrypt together, fewer learn nothing.

With the names of `threshold_key.py`, for a ciphertext c = (1 + n)^M r^n:

- partial decryption by holder i: w_i = c^(2 Delta s_i) mod n^2, with a proof that it is that
  (`partial_proof.py`);
- combination over a set S of t indices: prod w_i^(2 lambda_i) with the integers lambda_i = Delta
  prod_{j in S, j != i} j / (j - i). As sum lambda_i s_i = Delta d mod n m, and w_i^2 lies in the
  group of squares, of order n m, this is c^(4 Delta^2 d). The order of r^n divides 4 m, so r
  goes; (1 + n)^(4 Delta^2 M) = 1 + 4 Delta^2 M n is left.

Sources: Fouque, Poupard, Stern 2000, "Sharing decryption in the context of voting or lotteries"
(the threshold version of Paillier and its security theorem); Damgard, Jurik 2001 (PKC),
section 4.1, the threshold variant, with s = 1. What up to t - 1 holders see of the others' partials
can be simulated from the plaintexts (random oracle model, decisional composite residuosity).

Assumes: an honest dealer; at most t - 1 holders, fixed beforehand (a static adversary), that may
deviate in any way. Does not protect against: t holders together; parties that fall silent;
a wish to open what should stay closed: `partially_decrypt` opens whatever it is given, and its
caller answers for that.

Constant time: powers by a share and by a nonce. Checking and combining see public numbers only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import gmpy2

from mpcfl.errors import ProtocolError, WrongPartial
from mpcfl.hazmat.bits import BitSource, SystemBits, domain_tag
from mpcfl.hazmat.modular import Modulus
from mpcfl.hazmat.paillier import check_ciphertexts
from mpcfl.hazmat.partial_message import PartialDecryption, decode_partial, encode_partial
from mpcfl.hazmat.partial_proof import PartialClaim, check_proofs, encode_integers, prove, width_of
from mpcfl.hazmat.threshold_key import KeyShare, ThresholdKey

# What holders of shares need, in one place; keys are made and loaded elsewhere.
__all__ = [
    "CheckedPartial",
    "KeyShare",
    "PartialDecryption",
    "ThresholdKey",
    "check_partial",
    "check_partials",
    "combine",
    "decode_partial",
    "encode_partial",
    "partially_decrypt",
    "raw_combine",
]

_SEAL = object()


@dataclass(frozen=True, slots=True)
class CheckedPartial:
    """Partial decryptions whose proof holds; only `check_partials` makes one.

    Attributes:
        key: the threshold key that they were checked under.
        index: number of the key share, from 1 on.
        values: one per ciphertext.
        subject: hash of the key, the context and the ciphertexts that they are of.
    """

    key: ThresholdKey
    index: int
    values: tuple[int, ...]
    subject: bytes
    seal: object = field(repr=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("a CheckedPartial comes from check_partials, which checks the proof")


def partially_decrypt(
    share: KeyShare, ciphertexts: Sequence[int], context: bytes, bits: BitSource | None = None
) -> PartialDecryption:
    """Decrypt a batch in part, with one proof for all of it.

    The caller has made sure that exactly these ciphertexts may be opened, and only once.

    Args:
        share: the holder's own.
        ciphertexts: of the share's public key.
        context: what this opening is: run, round, attempt, chunk, roster. Bound by the proof.
        bits: source of the proof's nonce; the system's by default.

    Returns:
        One value mod n^2 per ciphertext and a proof, for all parties to see.

    Raises:
        ProtocolError: a ciphertext is not in Z*_{n^2}.
    """
    key = share.key
    check_ciphertexts(key.public_key, ciphertexts)
    modulus, exponent = Modulus(key.public_key.square), share.raw_exponent()
    values = tuple(modulus.power_secret(ciphertexts, 2 * exponent, key.exponent_bits + 1))
    subject = _subject(key, ciphertexts, context)
    claim = _claim(key, modulus, ciphertexts, (share.index, values), subject)
    source = SystemBits() if bits is None else bits
    return PartialDecryption(share.index, values, prove(claim, exponent, source))


def check_partial(
    key: ThresholdKey, ciphertexts: Sequence[int], partial: PartialDecryption, context: bytes
) -> CheckedPartial:
    """Check one holder's partial decryptions; see `check_partials`, faster for several."""
    return check_partials(key, ciphertexts, [partial], context)[0]


def check_partials(
    key: ThresholdKey,
    ciphertexts: Sequence[int],
    partials: Sequence[PartialDecryption],
    context: bytes,
) -> list[CheckedPartial]:
    """Return several holders' partial decryptions as ones that `combine` takes.

    The caller compares ``index`` with the sender: a proof shows which share was used, not
    who sent it.

    Raises:
        WrongPartial: a holder's values are too many or few, not in Z*_{n^2}, or not what its
            share gives for these ciphertexts in this context. It names the first such holder.
        ProtocolError: a ciphertext is not in Z*_{n^2}.
    """
    check_ciphertexts(key.public_key, ciphertexts)
    for partial in partials:
        _check_form(key, partial, len(ciphertexts))
    modulus, subject = Modulus(key.public_key.square), _subject(key, ciphertexts, context)
    claims = [_claim(key, modulus, ciphertexts, (p.index, p.values), subject) for p in partials]
    check_proofs(claims, [partial.proof for partial in partials])
    return [CheckedPartial(key, p.index, p.values, subject, _SEAL) for p in partials]


def combine(key: ThresholdKey, partials: Sequence[CheckedPartial]) -> list[int]:
    """Return the plaintexts, in [0, n), from the t partial decryptions of lowest index.

    Raises:
        ProtocolError: there are fewer than t holders, or the partials are of different keys,
            ciphertexts or contexts.
    """
    distinct = {partial.index: partial for partial in partials}
    missing = key.threshold - len(distinct)
    if missing > 0:
        raise ProtocolError(
            f"{missing} of the {key.threshold} partial decryptions that are needed are missing; "
            "wait for those of more holders of key shares"
        )
    if any(p.key != key or p.subject != partials[0].subject for p in partials):
        raise ProtocolError(
            "partial decryptions of different keys, ciphertexts or contexts can't be combined; "
            "combine those of one opening"
        )
    return raw_combine(key, {i: distinct[i].values for i in sorted(distinct)[: key.threshold]})


def raw_combine(key: ThresholdKey, values: Mapping[int, Sequence[int]]) -> list[int]:
    """Combine all given partials, by index of the share; unsafe, as nothing is checked.

    All coefficients lambda_i are divided by their common factor g. It divides Delta (they add
    up to Delta: interpolate the constant 1), so that c^(4 Delta (Delta / g) d) comes out.

    Raises:
        ProtocolError: the result is not a power of 1 + n: a partial is wrong, or some are missing.
    """
    n, modulus = key.public_key.modulus, Modulus(key.public_key.square)
    coefficients = _lagrange(key.delta, list(values))
    common = math.gcd(*coefficients)
    # Two products, as coefficients have signs and one division is cheaper than many.
    above = below = [1] * len(next(iter(values.values())))
    for partial, coefficient in zip(values.values(), coefficients, strict=True):
        powers = modulus.power(partial, 2 * abs(coefficient) // common)
        if coefficient > 0:
            above = modulus.multiply(above, powers)
        else:
            below = modulus.multiply(below, powers)
    unlock = gmpy2.invert(4 * key.delta * (key.delta // common), n)
    return [int(_logarithm(n, a, b) * unlock % n) for a, b in zip(above, below, strict=True)]


def _subject(key: ThresholdKey, ciphertexts: Sequence[int], context: bytes) -> bytes:
    """Hash what all holders' partials of one opening have in common."""
    tag = domain_tag("threshold-subject", key.fingerprint, len(context), len(ciphertexts))
    encoded = encode_integers(ciphertexts, width_of(key.public_key.square))
    return hashlib.sha256(tag + context + encoded).digest()


def _claim(
    key: ThresholdKey,
    modulus: Modulus,
    ciphertexts: Sequence[int],
    partial: tuple[int, Sequence[int]],
    subject: bytes,
) -> PartialClaim:
    """Say what the holder of share ``partial[0]`` claims of the values ``partial[1]``."""
    index, values = partial
    verification_key = key.verification_keys[index - 1]
    return PartialClaim(
        modulus=modulus,
        index=index,
        base=key.verification_base,
        key=verification_key,
        ciphertexts=ciphertexts,
        values=values,
        subject=subject,
        exponent_bits=key.exponent_bits,
    )


def _check_form(key: ThresholdKey, partial: PartialDecryption, count: int) -> None:
    """Refuse an unknown index, a wrong number of values and values outside Z*_{n^2}."""
    reason = ""
    if not 1 <= partial.index <= key.n_shares:
        reason = f"the key has {key.n_shares} shares"
    elif len(partial.values) != count:
        reason = f"there are {len(partial.values)} of them for {count} ciphertexts"
    else:
        try:
            check_ciphertexts(key.public_key, partial.values)
        except ProtocolError:
            reason = "one of them is not in Z*_{n^2}"
    if reason:
        raise WrongPartial(
            f"the partial decryptions of key share {partial.index} are refused: {reason}; leave "
            "that share out, combine others, and ask its holder",
            partial.index,
        )


def _lagrange(delta: int, indices: list[int]) -> list[int]:
    """Return the integers Delta prod_{j != i} j / (j - i), which interpolate Delta f(0)."""
    coefficients = []
    for i in indices:
        others = [j for j in indices if j != i]
        divisor = math.prod(j - i for j in others)
        coefficients.append(delta * math.prod(others) // divisor)
    return coefficients


def _logarithm(n: int, above: int, below: int) -> int:
    """Return k with above / below = 1 + k n mod n^2.

    above - below = below k n, so that one inverse mod n is enough.
    """
    quotient, remainder = divmod(above - below, n)
    if remainder:
        raise ProtocolError(
            "the partial decryptions do not combine to a plaintext: one is wrong or missing; "
            "check each, and combine as many as the threshold says"
        )
    return int(quotient * gmpy2.invert(below, n) % n)
