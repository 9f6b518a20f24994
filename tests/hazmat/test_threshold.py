"""Threshold Paillier: known answers of two implementations, any t of n, and what t - 1 get."""

from __future__ import annotations

import copy
import json
import math
import pickle  # noqa: TID251 - to see that it fails
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcfl.errors import ConfigError, ProtocolError, WrongPartial
from mpcfl.hazmat import threshold_key
from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.hazmat.paillier import PublicKey, add, encrypt
from mpcfl.hazmat.threshold import (
    CheckedPartial,
    check_partial,
    check_partials,
    combine,
    decode_partial,
    encode_partial,
    partially_decrypt,
    raw_combine,
)
from mpcfl.hazmat.threshold_key import (
    KeyShare,
    ThresholdKey,
    deal_key,
    raw_deal_key,
    raw_deal_key_from_primes,
)

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "threshold_paillier.json").read_text()
)
CASES = VECTORS["cases"]
PRIMES = {name: int(text, 16) for name, text in VECTORS["primes"].items() if name != "comment"}
P, Q = PRIMES["p256"], PRIMES["q256"]
N, HALVES = P * Q, (P // 2) * (Q // 2)
ORDER = N * HALVES
CONTEXT = b"round 7"


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


KEY, SHARES = raw_deal_key_from_primes(P, Q, 5, 3)


def sealed(plaintexts: list[int], key: ThresholdKey = KEY) -> list[int]:
    """Encrypt with n-th powers that are good enough for a test."""
    n, square = key.public_key.modulus, key.public_key.square
    randomizers = [pow(11 + 2 * i, n, square) for i in range(len(plaintexts))]
    return encrypt(key.public_key, plaintexts, randomizers)


def opened(
    ciphertexts: list[int], shares: list[KeyShare], context: bytes = CONTEXT
) -> list[CheckedPartial]:
    """Let the holders of ``shares`` send their partials, and check what arrives."""
    key = shares[0].key
    sent = [encode_partial(key, partially_decrypt(s, ciphertexts, context)) for s in shares]
    arrived = [decode_partial(key, message, len(ciphertexts)) for message in sent]
    return check_partials(key, ciphertexts, arrived, context)


def interpolate(points: dict[int, int], at: int) -> int:
    """Return the value at ``at`` of the polynomial through ``points``, mod n m, by inverses."""
    total = 0
    for i, value in points.items():
        others = [j for j in points if j != i]
        above, below = math.prod(at - j for j in others), math.prod(i - j for j in others)
        total += value * above * pow(below, -1, ORDER)
    return total % ORDER


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_shares_partials_and_plaintexts_are_the_known_ones(case: dict[str, Any]) -> None:
    key, shares = known_key(case)
    ciphertexts, values = numbers(case["ciphertexts"]), {}
    for share, known in zip(shares, case["partials"], strict=True):
        share.check()
        partial = partially_decrypt(share, ciphertexts, CONTEXT)
        assert list(partial.values) == numbers(known)
        check_partial(key, ciphertexts, partial, CONTEXT)
        values[share.index] = partial.values
    subsets = list(combinations(values, key.threshold))
    for indices in subsets[:: 1 + len(subsets) // 20]:
        chosen = {i: values[i] for i in reversed(indices)}
        assert raw_combine(key, chosen) == numbers(case["plaintexts"])


def test_partials_and_plaintexts_of_another_library_are_ours() -> None:
    """Its key has no verification keys; we make those of the three shares that it gave out."""
    known = VECTORS["library"]
    modulus, delta = int(known["modulus"], 16), math.factorial(known["n_shares"])
    exponents = dict(zip(known["indices"], numbers(known["shares"]), strict=True))
    keys = (pow(4, delta * exponents.get(i, 1), modulus * modulus) for i in range(1, 6))
    public_key = PublicKey(modulus, has_generator=True)
    key = ThresholdKey(public_key, known["threshold"], known["n_shares"], 4, tuple(keys))
    ciphertexts, checked = numbers(known["ciphertexts"]), []
    for (index, exponent), values in zip(exponents.items(), known["partials"], strict=True):
        partial = partially_decrypt(KeyShare(key, index, exponent), ciphertexts, CONTEXT)
        assert list(partial.values) == numbers(values)
        checked.append(check_partial(key, ciphertexts, partial, CONTEXT))
    assert combine(key, checked) == numbers(known["plaintexts"])


def test_any_three_of_five_decrypt_the_sum() -> None:
    first, second = [0, 1, N - 1, 2**200], [0, N - 1, N - 1, 5]
    ciphertexts = add(KEY.public_key, sealed(first), sealed(second))
    checked = opened(ciphertexts, SHARES)
    expected = [(a + b) % N for a, b in zip(first, second, strict=True)]
    for chosen in combinations(checked, 3):
        assert combine(KEY, chosen) == expected
        assert combine(KEY, chosen[::-1]) == expected


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, N - 1), min_size=1, max_size=3),
    st.permutations(range(5)),
    st.integers(3, 5),
)
def test_who_answers_and_in_which_order_does_not_matter(
    plaintexts: list[int], order: list[int], count: int
) -> None:
    checked = opened(sealed(plaintexts), [SHARES[i] for i in order[:count]])
    assert combine(KEY, checked) == plaintexts


@pytest.mark.parametrize(("n_shares", "threshold"), [(2, 2), (3, 2), (4, 4), (9, 5), (30, 7)])
def test_other_numbers_of_shares_work(n_shares: int, threshold: int) -> None:
    key, shares = raw_deal_key_from_primes(P, Q, n_shares, threshold)
    assert len(shares) == n_shares
    last = shares[n_shares - threshold :]
    assert combine(key, opened(sealed([41, 0], key), last)) == [41, 0]


def test_exactly_the_threshold_of_lowest_indices_is_used() -> None:
    """So that all parties compute with the same ones."""
    checked = opened(sealed([6]), SHARES)
    odd = [replace(one, values=(1,)) if one.index > 3 else one for one in checked]
    assert combine(KEY, odd[::-1]) == [6]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_the_threshold_are_refused_and_the_gap_is_named(count: int) -> None:
    checked = opened(sealed([6]), SHARES)[:count]
    with pytest.raises(ProtocolError, match=f"{3 - count} of the 3 partial decryptions"):
        combine(KEY, checked)


def test_one_holder_counts_once() -> None:
    first, second, _ = opened(sealed([6]), SHARES[:3])
    with pytest.raises(ProtocolError, match="1 of the 3"):
        combine(KEY, [first, second, first])


def test_fewer_shares_open_nothing() -> None:
    """Neither do they give the plaintext, nor anything that looks like one."""
    values = {one.index: one.values for one in opened(sealed([6]), SHARES)}
    for size in (1, 2):
        for indices in combinations(values, size):
            with pytest.raises(ProtocolError, match="wrong or missing"):
                raw_combine(KEY, {i: values[i] for i in indices})


@given(st.integers(0, ORDER - 1), st.sampled_from(list(combinations(range(1, 6), 2))))
def test_two_shares_go_with_every_secret(secret: int, indices: tuple[int, int]) -> None:
    """Of 3 of 5: one polynomial of degree 2 runs through both and any f(0), and no other does."""
    points = {i: SHARES[i - 1].raw_value() for i in indices} | {0: secret}
    # Its coefficients, by solving for them: c0 is the secret, two equations give c1 and c2.
    i, j = indices
    a, b = (points[k] - secret for k in indices)
    determinant = i * j * (j - i)
    inverse = pow(determinant, -1, ORDER)
    linear, square = (a * j * j - b * i * i) * inverse, (b * i - a * j) * inverse
    for at in range(6):
        value = (secret + linear * at + square * at * at) % ORDER
        assert value == interpolate(points, at)
    assert math.gcd(determinant, ORDER) == 1


def test_three_shares_give_the_secret_that_the_scheme_asks_for() -> None:
    for indices in combinations(range(1, 6), 3):
        secret = interpolate({i: SHARES[i - 1].raw_value() for i in indices}, 0)
        assert secret % HALVES == 0
        assert secret % N == 1


def test_shares_of_one_key_differ_from_dealing_to_dealing() -> None:
    _, again = raw_deal_key_from_primes(P, Q, 5, 3)
    values = {share.raw_value() for share in [*SHARES, *again]}
    assert len(values) == 10
    assert KEY.fingerprint != again[0].key.fingerprint


def test_verification_base_generates_all_squares() -> None:
    base, square = KEY.verification_base, KEY.public_key.square
    assert pow(base, ORDER, square) == 1
    for factor in (P, Q, P // 2, Q // 2):
        assert pow(base, ORDER // factor, square) != 1


def test_verification_base_generates_all_squares_where_many_squares_do_not() -> None:
    """With p = 23 (p' = 11) one square in eleven generates too little."""
    for seed in range(60):
        bits = raw_keyed_bits(seed.to_bytes(32, "big"))
        key, _ = raw_deal_key_from_primes(2027, 23, 4, 2, bits)
        order = 2027 * 23 * 1013 * 11
        for factor in (2027, 23, 1013, 11):
            assert pow(key.verification_base, order // factor, key.public_key.square) != 1


def test_two_holders_may_be_lost_and_a_third_not() -> None:
    ciphertexts = sealed([1, 2, 3])
    alive = opened(ciphertexts, [SHARES[0], SHARES[2], SHARES[4]])
    assert combine(KEY, alive) == [1, 2, 3]
    with pytest.raises(ProtocolError, match="1 of the 3"):
        combine(KEY, alive[1:])


def test_partials_of_different_openings_do_not_mix() -> None:
    ciphertexts = sealed([1, 2])
    mixed = [
        *opened(ciphertexts, SHARES[:2]),
        *opened(ciphertexts, SHARES[2:3], context=b"round 8"),
    ]
    with pytest.raises(ProtocolError, match="different keys"):
        combine(KEY, mixed)
    with pytest.raises(ProtocolError, match="different keys"):
        combine(KEY, [*opened(ciphertexts, SHARES[:2]), *opened(sealed([1, 3]), SHARES[2:3])])


def test_partials_of_another_key_are_not_combined() -> None:
    key, shares = raw_deal_key_from_primes(P, Q, 5, 3)
    with pytest.raises(ProtocolError, match="different keys"):
        combine(KEY, opened(sealed([1], key), shares[:3]))


def test_unchecked_partials_can_not_be_passed_off_as_checked() -> None:
    partial = partially_decrypt(SHARES[0], sealed([1]), CONTEXT)
    with pytest.raises(TypeError, match="check_partials"):
        CheckedPartial(KEY, 1, partial.values, b"", object())


def test_wrong_values_do_not_combine_to_a_plaintext() -> None:
    """The last line of defense, behind the proofs: what is not a power of 1 + n is refused."""
    values = {one.index: list(one.values) for one in opened(sealed([6]), SHARES[:3])}
    values[2][0] = values[2][0] * pow(5, N, N * N) % (N * N)
    with pytest.raises(ProtocolError, match="wrong or missing"):
        raw_combine(KEY, values)


@pytest.mark.parametrize("ciphertext", [0, -1, N * N, N * N + 1, P, N, Q * P * P])
def test_ciphertext_outside_the_group_is_refused_before_a_share_touches_it(
    ciphertext: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyShare, "raw_exponent", lambda _: pytest.fail("the share was used"))
    with pytest.raises(ProtocolError):
        partially_decrypt(SHARES[0], [*sealed([1]), ciphertext], CONTEXT)


def test_ciphertext_outside_the_group_is_refused_by_the_check() -> None:
    partial = partially_decrypt(SHARES[0], sealed([1]), CONTEXT)
    with pytest.raises(ProtocolError, match="ciphertext") as caught:
        check_partial(KEY, [P], partial, CONTEXT)
    assert not isinstance(caught.value, WrongPartial)  # the holder is not to blame


def test_share_of_another_dealing_is_found_before_it_is_used() -> None:
    _, others = raw_deal_key_from_primes(P, Q, 5, 3)
    for share in SHARES:
        share.check()
    with pytest.raises(ConfigError, match="key share 2 does not belong"):
        KeyShare(KEY, 2, others[1].raw_value()).check()
    with pytest.raises(ConfigError, match="key share 2 does not belong"):
        KeyShare(KEY, 2, SHARES[0].raw_value()).check()


@pytest.mark.parametrize(("index", "value"), [(0, 1), (6, 1), (-1, 1), (1, -1), (1, N * N)])
def test_share_out_of_range_is_refused(index: int, value: int) -> None:
    with pytest.raises(ConfigError, match="out of range") as caught:
        KeyShare(KEY, index, value)
    assert str(N * N) not in str(caught.value)


def test_share_is_redacted_and_stays_in_its_process() -> None:
    share = SHARES[1]
    secret = str(share.raw_value())
    assert secret not in repr(share) + str(share)
    assert secret[:12] not in f"{share!r}{share}"
    for escape in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="key share"):
            escape(share)
    with pytest.raises(TypeError, match="is None"):
        bool(share)
    assert share != KeyShare(KEY, 2, share.raw_value())


@pytest.mark.parametrize(("n_shares", "threshold"), [(1, 1), (3, 1), (3, 0), (3, 4), (1001, 3)])
def test_numbers_of_shares_that_make_no_sense_are_refused(n_shares: int, threshold: int) -> None:
    with pytest.raises(ConfigError, match="key shares"):
        raw_deal_key_from_primes(P, Q, n_shares, threshold)
    with pytest.raises(ConfigError, match="key shares"):
        raw_deal_key(64, n_shares, threshold)


@pytest.mark.parametrize("bad", VECTORS["bad_primes"], ids=lambda bad: str(bad["name"]))
def test_bad_primes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prime") as caught:
        raw_deal_key_from_primes(int(bad["p"], 16), int(bad["q"], 16), 3, 2)
    assert str(int(bad["p"], 16)) not in str(caught.value)


def test_more_shares_than_a_prime_factor_of_the_order_are_refused() -> None:
    raw_deal_key_from_primes(2027, 23, 10, 2)
    with pytest.raises(ConfigError, match="too small for 11 shares"):
        raw_deal_key_from_primes(2027, 23, 11, 2)


def test_short_and_odd_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="below 2048"):
        deal_key(2046, 3, 2)
    with pytest.raises(ConfigError, match="odd"):
        raw_deal_key(255, 3, 2)


def test_two_primes_that_are_too_near_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [P, P, Q]
    monkeypatch.setattr(threshold_key, "safe_prime", lambda *_: drawn.pop(0))
    key, _ = raw_deal_key(512, 3, 2)
    assert key.public_key.modulus == N


def test_key_of_the_dealer_has_its_length_and_works() -> None:
    key, shares = raw_deal_key(192, 3, 2)
    assert key.public_key.key_bits == 192
    assert key.public_key.has_generator
    assert combine(key, opened(sealed([3, 4], key), shares[1:])) == [3, 4]


def test_damaged_public_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 verification keys"):
        replace(KEY, verification_keys=KEY.verification_keys[:-1])
    for broken in (0, -1, P, N, N * N):
        with pytest.raises(ConfigError, match="invertible"):
            replace(KEY, verification_base=broken)
        with pytest.raises(ConfigError, match="invertible"):
            replace(KEY, verification_keys=(*KEY.verification_keys[:-1], broken))
    with pytest.raises(ConfigError, match="key shares"):
        replace(KEY, threshold=6)


def test_fingerprint_names_every_part_of_the_key() -> None:
    base, keys = KEY.verification_base, KEY.verification_keys
    others = [
        replace(KEY, threshold=2),
        replace(KEY, verification_base=base * base % (N * N)),
        replace(KEY, verification_keys=(*keys[:-1], keys[0])),
        replace(KEY, public_key=PublicKey(N, has_generator=False)),
        replace(KEY, public_key=PublicKey(P * int(gmpy2.next_prime(Q)), has_generator=True)),
        replace(KEY, n_shares=6, verification_keys=(*keys, keys[0])),
        replace(KEY, n_shares=4, verification_keys=keys[:-1]),
    ]
    assert len({KEY.fingerprint, *(other.fingerprint for other in others)}) == 8
    assert replace(KEY).fingerprint == KEY.fingerprint


def test_two_of_three_decrypt_at_2048_bits() -> None:
    key, shares = raw_deal_key_from_primes(PRIMES["p1024"], PRIMES["q1024"], 3, 2)
    assert key.public_key.key_bits == 2048
    plaintexts = [0, (1 << 2040) + 9]
    assert combine(key, opened(sealed(plaintexts, key), shares[1:])) == plaintexts
