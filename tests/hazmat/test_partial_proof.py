"""Proofs of partial decryptions: known answers, what each binds, and every way to cheat we know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpcfl.errors import ProtocolError, WrongPartial
from mpcfl.hazmat import partial_proof, threshold
from mpcfl.hazmat.bits import SystemBits
from mpcfl.hazmat.modular import Modulus
from mpcfl.hazmat.paillier import PublicKey
from mpcfl.hazmat.threshold import (
    KeyShare,
    PartialDecryption,
    ThresholdKey,
    check_partial,
    check_partials,
    combine,
    decode_partial,
    encode_partial,
    partially_decrypt,
)
from mpcfl.hazmat.threshold_key import raw_deal_key_from_primes

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "threshold_paillier.json").read_text()
)
CASES = {case["name"]: case for case in VECTORS["cases"]}
MEDIUM = CASES["256-bit"]
P, Q = int(MEDIUM["p"], 16), int(MEDIUM["q"], 16)
ORDER = P * Q * (P // 2) * (Q // 2)
CONTEXT = b"run 1, round 2, attempt 0, chunk 3"


class FixedBits:
    """A source that gives one integer, little end first, and remembers how much was read."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.n_bits = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        self.n_bits += 64 * count
        return np.frombuffer(self.value.to_bytes(8 * count, "little"), dtype=np.uint64)


def numbers(texts: list[str]) -> list[int]:
    return [int(text, 16) for text in texts]


def known_key(case: dict[str, Any]) -> tuple[ThresholdKey, list[KeyShare]]:
    key = ThresholdKey(
        PublicKey(int(case["p"], 16) * int(case["q"], 16), has_generator=True),
        case["threshold"],
        case["n_shares"],
        int(case["verification_base"], 16),
        tuple(numbers(case["verification_keys"])),
    )
    return key, [KeyShare(key, i, value) for i, value in enumerate(numbers(case["shares"]), 1)]


KEY, SHARES = known_key(MEDIUM)
SQUARE = KEY.public_key.square
CIPHERTEXTS = numbers(MEDIUM["ciphertexts"])


@pytest.fixture(scope="module")
def honest() -> PartialDecryption:
    return partially_decrypt(SHARES[3], CIPHERTEXTS, CONTEXT)


def refused(
    partial: PartialDecryption,
    ciphertexts: list[int] = CIPHERTEXTS,
    context: bytes = CONTEXT,
    key: ThresholdKey = KEY,
) -> int:
    """Return whom the refusal of ``partial`` names."""
    with pytest.raises(WrongPartial) as caught:
        check_partial(key, ciphertexts, partial, context)
    return caught.value.index


def with_value(partial: PartialDecryption, position: int, value: int) -> PartialDecryption:
    values = list(partial.values)
    values[position] = value
    return replace(partial, values=tuple(values))


@pytest.mark.parametrize("known", VECTORS["proofs"], ids=lambda known: str(known["index"]))
def test_proof_and_message_are_the_known_ones(known: dict[str, Any]) -> None:
    bits, context = FixedBits(int(known["nonce"], 16)), bytes.fromhex(known["context"])
    partial = partially_decrypt(SHARES[known["index"] - 1], CIPHERTEXTS, context, bits)
    assert partial.proof.challenge == int(known["challenge"], 16)
    assert partial.proof.response == int(known["response"], 16)
    assert encode_partial(KEY, partial).hex() == known["message"]
    assert check_partial(KEY, CIPHERTEXTS, partial, context).index == known["index"]


@pytest.mark.parametrize("bad", VECTORS["bad_messages"], ids=lambda bad: str(bad["name"]))
def test_bad_message_is_refused_at_the_step_that_must(bad: dict[str, Any]) -> None:
    message, context = bytes.fromhex(bad["message"]), bytes.fromhex(bad["context"])
    if bad["step"] == "decode":
        with pytest.raises(ProtocolError, match="partial decryption"):
            decode_partial(KEY, message, len(CIPHERTEXTS))
    else:
        partial = decode_partial(KEY, message, len(CIPHERTEXTS))
        assert refused(partial, context=context) == 4


def changes() -> Iterator[tuple[str, int, int]]:
    """Name, factor and power: what a single value is turned into."""
    n = KEY.public_key.modulus
    yield "plaintext shifted", 1 + n, 1
    yield "plaintext shifted back", pow(1 + n, -1, SQUARE), 1
    yield "n-th residue", pow(3, n, SQUARE), 1
    yield "inverse", 1, -1
    yield "one more power", 1, 3


@pytest.mark.parametrize("change", list(changes()), ids=lambda change: change[0])
@pytest.mark.parametrize("position", [0, 4])
def test_one_changed_value_is_blamed_on_its_author(
    change: tuple[str, int, int], position: int, honest: PartialDecryption
) -> None:
    _, factor, power = change
    value = int(honest.values[position])
    changed = pow(value, power, SQUARE) * factor % SQUARE
    assert refused(with_value(honest, position, changed)) == 4


def test_errors_that_cancel_in_the_plain_product_are_found(honest: PartialDecryption) -> None:
    """The weights are there for that; without them the batch would look right."""
    shift = 1 + KEY.public_key.modulus
    up = int(honest.values[0]) * shift % SQUARE
    down = int(honest.values[1]) * pow(shift, -1, SQUARE) % SQUARE
    assert refused(prove_values((up, down, *honest.values[2:]))) == 4


def test_values_chosen_for_the_weights_get_other_weights(honest: PartialDecryption) -> None:
    """Whoever proves first and fits the values to the proof's weights is found, too."""
    wrong = with_value(honest, 0, int(honest.values[0]) * (1 + KEY.public_key.modulus) % SQUARE)
    again = partially_decrypt(SHARES[3], CIPHERTEXTS, CONTEXT)
    assert refused(replace(wrong, proof=again.proof)) == 4


@pytest.mark.parametrize("value", [0, -1, -5, SQUARE, SQUARE + 1, P, P * Q, Q * Q, 1 << 4096])
def test_value_outside_the_group_is_blamed_on_its_author(
    value: int, honest: PartialDecryption
) -> None:
    assert refused(with_value(honest, 2, value)) == 4


def test_value_plus_the_modulus_is_refused(honest: PartialDecryption) -> None:
    assert refused(with_value(honest, 2, int(honest.values[2]) + SQUARE)) == 4
    assert refused(with_value(honest, 2, int(honest.values[2]) - SQUARE)) == 4


def test_wrong_number_of_values_is_refused(honest: PartialDecryption) -> None:
    assert refused(replace(honest, values=honest.values[:-1])) == 4
    assert refused(replace(honest, values=(*honest.values, 1))) == 4
    assert refused(replace(honest, values=())) == 4


@pytest.mark.parametrize("first", range(len(CIPHERTEXTS) - 1))
def test_swapped_values_are_refused(first: int, honest: PartialDecryption) -> None:
    values = list(honest.values)
    values[first : first + 2] = values[first + 1], values[first]
    assert refused(replace(honest, values=tuple(values))) == 4


@pytest.mark.parametrize("turns", [1, 1 << 600, -1, -(1 << 300)])
def test_response_is_refused_where_only_its_range_is_wrong(
    turns: int, honest: PartialDecryption
) -> None:
    """Adding the group's order keeps both equations true; only the length gives it away."""
    bits = KEY.exponent_bits + 257
    wanted = turns if abs(turns) > 1 else turns * (1 + (1 << bits) // ORDER)
    response = int(honest.proof.response) + wanted * ORDER
    assert refused(replace(honest, proof=replace(honest.proof, response=response))) == 4


def test_challenge_out_of_range_is_refused(honest: PartialDecryption) -> None:
    for challenge in (-1, 1 << 128, int(honest.proof.challenge) + (1 << 128)):
        assert refused(replace(honest, proof=replace(honest.proof, challenge=challenge))) == 4


@pytest.mark.parametrize("offset", [-1, 1, 1 << 100])
def test_response_off_by_something_is_refused(offset: int, honest: PartialDecryption) -> None:
    response = int(honest.proof.response) + offset
    assert refused(replace(honest, proof=replace(honest.proof, response=response))) == 4


def test_proof_holds_in_its_own_context_only(honest: PartialDecryption) -> None:
    for context in (b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT[:-1] + b"4"):
        assert refused(honest, context=context) == 4


def test_proof_holds_for_its_own_index_only(honest: PartialDecryption) -> None:
    for index in (1, 2, 3, 5):
        assert refused(replace(honest, index=index)) == index


@pytest.mark.parametrize("index", [0, -1, 6, 1 << 40])
def test_index_that_the_key_does_not_have_is_refused(index: int, honest: PartialDecryption) -> None:
    assert refused(replace(honest, index=index)) == index


def test_index_is_hashed_and_not_only_the_verification_key() -> None:
    """Two shares of one value: nothing but the index tells their proofs apart."""
    keys = list(KEY.verification_keys)
    keys[0] = keys[3]
    twin = ThresholdKey(KEY.public_key, 3, 5, KEY.verification_base, tuple(keys))
    partial = partially_decrypt(KeyShare(twin, 4, SHARES[3].raw_value()), CIPHERTEXTS, CONTEXT)
    check_partial(twin, CIPHERTEXTS, partial, CONTEXT)
    assert refused(replace(partial, index=1), key=twin) == 1


@pytest.mark.parametrize("change", ["threshold", "another share's verification key"])
def test_proof_holds_under_its_own_key_only(change: str, honest: PartialDecryption) -> None:
    if change == "threshold":
        other = replace(KEY, threshold=4)
    else:
        verification_keys = (KEY.verification_keys[1], *KEY.verification_keys[1:])
        other = replace(KEY, verification_keys=verification_keys)
    assert refused(honest, key=other) == 4


def test_proof_holds_for_its_own_ciphertexts_only(honest: PartialDecryption) -> None:
    """Not for another chunk, one changed by what the fourth power forgets, or another order."""
    replayed = [c * pow(7, KEY.public_key.modulus, SQUARE) % SQUARE for c in CIPHERTEXTS]
    assert refused(honest, ciphertexts=replayed) == 4
    assert refused(honest, ciphertexts=[SQUARE - CIPHERTEXTS[0], *CIPHERTEXTS[1:]]) == 4
    assert refused(honest, ciphertexts=CIPHERTEXTS[::-1]) == 4


def test_boundary_between_context_and_ciphertexts_is_hashed() -> None:
    first = CIPHERTEXTS[0].to_bytes((SQUARE.bit_length() + 7) // 8, "big")
    moved = threshold._subject(KEY, CIPHERTEXTS[1:], CONTEXT + first)
    assert moved != threshold._subject(KEY, CIPHERTEXTS, CONTEXT)


def test_a_share_of_another_dealing_does_not_pass() -> None:
    _, others = raw_deal_key_from_primes(P, Q, 5, 3)
    share = KeyShare(KEY, 2, others[1].raw_value())
    assert refused(partially_decrypt(share, CIPHERTEXTS, CONTEXT)) == 2


def test_factor_of_order_two_passes_and_changes_nothing(honest: PartialDecryption) -> None:
    """The proof squares it away, and so does `combine`."""
    p2, q2 = P * P, Q * Q
    root = (p2 * pow(p2, -1, q2) - q2 * pow(q2, -1, p2)) % SQUARE
    assert root * root % SQUARE == 1
    assert root not in (1, SQUARE - 1)
    others = [
        check_partial(KEY, CIPHERTEXTS, partially_decrypt(SHARES[i], CIPHERTEXTS, CONTEXT), CONTEXT)
        for i in (0, 2)
    ]
    for factor in (SQUARE - 1, root):
        values = tuple(int(value) * factor % SQUARE for value in honest.values)
        partial = partially_decrypt(SHARES[3], CIPHERTEXTS, CONTEXT)
        assert refused(replace(partial, values=values)) == 4  # the old proof is of other values
        checked = check_partial(KEY, CIPHERTEXTS, prove_values(values), CONTEXT)
        assert combine(KEY, [*others, checked]) == numbers(MEDIUM["plaintexts"])


def prove_values(values: tuple[int, ...]) -> PartialDecryption:
    """Return share 4's proof for values of the caller's choice, as a cheating holder would."""
    modulus = Modulus(SQUARE)
    subject = threshold._subject(KEY, CIPHERTEXTS, CONTEXT)
    claim = threshold._claim(KEY, modulus, CIPHERTEXTS, (4, values), subject)
    proof = partial_proof.prove(claim, SHARES[3].raw_exponent(), SystemBits())
    return PartialDecryption(4, values, proof)


def test_a_fresh_proof_for_wrong_values_does_not_hold(honest: PartialDecryption) -> None:
    wrong = [int(value) for value in honest.values]
    wrong[3] = wrong[3] * (1 + KEY.public_key.modulus) % SQUARE
    assert refused(prove_values(tuple(wrong))) == 4


def test_several_holders_are_checked_together_and_the_wrong_one_is_named() -> None:
    partials = [partially_decrypt(share, CIPHERTEXTS, CONTEXT) for share in SHARES]
    checked = check_partials(KEY, CIPHERTEXTS, partials, CONTEXT)
    assert [one.index for one in checked] == [1, 2, 3, 4, 5]
    for wrong in range(5):
        value = int(partials[wrong].values[0]) * (1 + KEY.public_key.modulus) % SQUARE
        spoiled = [*partials]
        spoiled[wrong] = with_value(partials[wrong], 0, value)
        with pytest.raises(WrongPartial, match=f"share {wrong + 1} ") as caught:
            check_partials(KEY, CIPHERTEXTS, spoiled[::-1], CONTEXT)
        assert caught.value.index == wrong + 1
    assert check_partials(KEY, CIPHERTEXTS, [], CONTEXT) == []


def test_nonce_is_fresh_and_long_enough_to_hide_the_exponent() -> None:
    """|exponent| + |challenge| + 128 bits: a statistical distance of 2^-128."""
    bits = FixedBits((1 << (KEY.exponent_bits + 256)) - 1)
    proof = partially_decrypt(SHARES[0], CIPHERTEXTS, CONTEXT, bits).proof
    assert bits.n_bits >= KEY.exponent_bits + 128 + 128
    nonce = proof.response - proof.challenge * SHARES[0].raw_exponent()
    assert nonce == bits.value
    twice = [partially_decrypt(SHARES[0], CIPHERTEXTS, CONTEXT).proof for _ in range(2)]
    assert twice[0].challenge != twice[1].challenge
    assert twice[0].response != twice[1].response


def test_secrets_go_through_the_constant_time_power_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And with a length that is the same for all shares, small ones too."""
    secret, public = [], []
    hidden, shown, many = Modulus.power_secret, Modulus.power, Modulus.powers

    def power_secret(self: Modulus, bases: Any, exponent: int, exponent_bits: int) -> list[int]:
        secret.append(exponent_bits)
        return hidden(self, bases, exponent, exponent_bits)

    def power(self: Modulus, bases: Any, exponent: int) -> list[int]:
        public.append(int(exponent))
        return shown(self, bases, exponent)

    def powers(self: Modulus, bases: Any, exponents: Any) -> list[int]:
        public.extend(int(exponent) for exponent in exponents)
        return many(self, bases, exponents)

    monkeypatch.setattr(Modulus, "power_secret", power_secret)
    monkeypatch.setattr(Modulus, "power", power)
    monkeypatch.setattr(Modulus, "powers", powers)
    partially_decrypt(SHARES[0], CIPHERTEXTS, CONTEXT)
    partially_decrypt(KeyShare(KEY, 2, 1), CIPHERTEXTS, CONTEXT)
    bits = KEY.exponent_bits
    assert secret == [bits + 1, bits + 256] * 2
    assert max(public) < 1 << 128


def test_messages_of_all_holders_have_one_length() -> None:
    lengths = set()
    for share in [*SHARES, KeyShare(KEY, 1, 0)]:
        for _ in range(3):
            partial = partially_decrypt(share, CIPHERTEXTS, CONTEXT)
            message = encode_partial(KEY, partial)
            assert decode_partial(KEY, message, len(CIPHERTEXTS)) == partial
            lengths.add(len(message))
    assert len(lengths) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_any_changed_byte_of_a_message_is_refused(position: int, change: int) -> None:
    known = next(one for one in VECTORS["proofs"] if one["index"] == 4)
    message = bytearray.fromhex(known["message"])
    message[position % len(message)] ^= change
    with pytest.raises(ProtocolError):
        check_partial(
            KEY,
            CIPHERTEXTS,
            decode_partial(KEY, bytes(message), len(CIPHERTEXTS)),
            bytes.fromhex(known["context"]),
        )


def test_empty_batch_is_a_batch() -> None:
    partial = partially_decrypt(SHARES[0], [], CONTEXT)
    message = encode_partial(KEY, partial)
    assert check_partial(KEY, [], decode_partial(KEY, message, 0), CONTEXT).values == ()
    assert refused(partial, ciphertexts=[], context=b"") == 1
