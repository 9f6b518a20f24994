"""Paillier: known answers, homomorphism, refusals, and both ways with `phe`."""

from __future__ import annotations

import copy
import json
import pickle  # noqa: TID251 - to see that it fails
from functools import cache
from pathlib import Path
from typing import Any

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcfl.errors import ConfigError, ProtocolError
from mpcfl.hazmat import paillier
from mpcfl.hazmat.bits import KEY_BYTES, raw_keyed_bits
from mpcfl.hazmat.paillier import (
    PrivateKey,
    PublicKey,
    add,
    are_far,
    check_ciphertexts,
    encrypt,
    generate_key,
    raw_generate_key,
    rerandomize,
)
from mpcfl.hazmat.primes import is_probable_prime
from mpcfl.hazmat.randomizers import Randomizers

VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "paillier_known_answers.json").read_text()
)
LIBRARIES = [VECTORS["phe"], VECTORS["pypaillier"]]


def number(text: str) -> int:
    return int(text, 16)


def key_of(vector: dict[str, Any], has_generator: bool | None = None) -> PrivateKey:
    flag = vector.get("has_generator", False) if has_generator is None else has_generator
    return PrivateKey(number(vector["p"]), number(vector["q"]), has_generator=flag)


@cache
def key() -> PrivateKey:
    return raw_generate_key(512)


def blind(private_key: PrivateKey, plaintexts: list[int]) -> list[int]:
    public_key = private_key.public_key
    randomizers = Randomizers(public_key, n_ahead=len(plaintexts)).draw(len(plaintexts))
    return encrypt(public_key, plaintexts, randomizers)


textbook = pytest.mark.parametrize("vector", VECTORS["textbook"], ids=lambda v: v["key_bits"])
libraries = pytest.mark.parametrize("vector", LIBRARIES, ids=lambda v: v["library"])


@textbook
def test_textbook_ciphertexts_are_remade_bit_for_bit(vector: dict[str, Any]) -> None:
    public_key = key_of(vector).public_key
    n = number(vector["n"])
    assert (public_key.modulus, public_key.key_bits) == (n, vector["key_bits"])
    for case in vector["ciphertexts"]:
        randomizer = pow(number(case["s"]), n, n * n)
        made = encrypt(public_key, [number(case["plaintext"])], [randomizer])
        assert made == [number(case["ciphertext"])]


@textbook
def test_textbook_ciphertexts_are_decrypted(vector: dict[str, Any]) -> None:
    private_key = key_of(vector)
    cases = [*vector["ciphertexts"], vector["product"], *vector.get("short_exponent", [])]
    plaintexts = private_key.decrypt([number(case["ciphertext"]) for case in cases])
    assert plaintexts == [number(case["plaintext"]) for case in cases]


@textbook
def test_textbook_product_is_the_sum(vector: dict[str, Any]) -> None:
    public_key = key_of(vector).public_key
    total = [1]
    for case in vector["ciphertexts"]:
        total = add(public_key, total, [number(case["ciphertext"])])
    assert total == [number(vector["product"]["ciphertext"])]


@textbook
def test_names_and_generators_of_keys_stay_what_they_are(vector: dict[str, Any]) -> None:
    """Another derivation would make parties of two versions disagree without a word."""
    public_key = key_of(vector).public_key
    assert public_key.fingerprint == vector["fingerprint"]
    if vector["has_generator"]:
        assert public_key.generator == number(vector["generator"])
        square = public_key.square
        for case in vector["short_exponent"]:
            randomizer = pow(public_key.generator, number(case["exponent"]), square)
            made = encrypt(public_key, [number(case["plaintext"])], [randomizer])
            assert made == [number(case["ciphertext"])]


@libraries
def test_ciphertexts_of_other_libraries_are_decrypted(vector: dict[str, Any]) -> None:
    private_key = key_of(vector)
    assert private_key.public_key.modulus == number(vector["n"])
    cases = [*vector["ciphertexts"], vector["product"]]
    cases += [vector["rerandomized"]] if "rerandomized" in vector else []
    plaintexts = private_key.decrypt([number(case["ciphertext"]) for case in cases])
    assert plaintexts == [number(case["plaintext"]) for case in cases]


def test_ciphertexts_of_phe_are_remade_bit_for_bit() -> None:
    vector = VECTORS["phe"]
    public_key = key_of(vector).public_key
    case = vector["ciphertexts"][-1]
    randomizer = gmpy2.powmod(number(case["s"]), public_key.modulus, public_key.square)
    made = encrypt(public_key, [number(case["plaintext"])], [randomizer])
    assert made == [number(case["ciphertext"])]


@pytest.mark.parametrize("bad", VECTORS["bad_ciphertexts"], ids=lambda bad: bad["case"])
def test_a_bad_ciphertext_is_refused_wherever_it_stands(bad: dict[str, Any]) -> None:
    private_key = key_of(VECTORS["textbook"][2])
    good = [number(case["ciphertext"]) for case in VECTORS["textbook"][2]["ciphertexts"]]
    check_ciphertexts(private_key.public_key, good)
    message = "not in" if "range" in bad["refused_by"] else "in common"
    for at in range(len(good) + 1):
        batch = [*good[:at], number(bad["ciphertext"]), *good[at:]]
        with pytest.raises(ProtocolError, match=message):
            check_ciphertexts(private_key.public_key, batch)
        with pytest.raises(ProtocolError, match=message):
            private_key.decrypt(batch)


@pytest.mark.parametrize("bad", VECTORS["bad_keys"], ids=lambda bad: bad["case"])
def test_a_bad_key_is_refused_and_not_shown(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=bad["refused_by"]) as caught:
        key_of(bad)
    digits = str(number(bad["q"]))
    assert len(digits) < 5 or digits not in str(caught.value)


def test_keys_that_only_lack_a_generator_are_taken_without_one() -> None:
    bad = [bad for bad in VECTORS["bad_keys"] if bad["has_generator"]]
    assert len(bad) == 2
    for vector in bad:
        assert not key_of(vector, has_generator=False).public_key.has_generator


@pytest.mark.parametrize("key_bits", [32, 34, 48, 64, 256, 1024])
def test_a_key_has_its_length_and_the_congruences(key_bits: int) -> None:
    for _ in range(20 if key_bits < 100 else 1):
        private_key = raw_generate_key(key_bits)
        p, q = private_key.raw_primes()
        assert p.bit_length() == q.bit_length() == key_bits // 2
        assert p * q == private_key.public_key.modulus
        assert private_key.public_key.key_bits == key_bits
        assert p % 4 == q % 4 == 3
        assert gmpy2.gcd(p - 1, q - 1) == 2
        assert private_key.public_key.has_generator
        assert is_probable_prime(p)
        assert is_probable_prime(q)


def test_a_key_comes_from_its_source_alone() -> None:
    first, again, other = (
        raw_generate_key(64, raw_keyed_bits(bytes([i]) * KEY_BYTES)).raw_primes() for i in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("key_bits", [0, 512, 1024, 2046, 2047])
def test_a_short_key_is_refused(key_bits: int) -> None:
    with pytest.raises(ConfigError, match="is not safe; take key_bits = 3072, or 2048"):
        generate_key(key_bits)


@pytest.mark.parametrize("key_bits", [2049, 3071])
def test_a_key_of_odd_length_is_refused(key_bits: int) -> None:
    with pytest.raises(ConfigError, match="not an even number"):
        generate_key(key_bits)


def test_a_key_of_2048_bits_works() -> None:
    private_key = generate_key(2048)
    public_key = private_key.public_key
    assert public_key.key_bits == 2048
    assert are_far(*private_key.raw_primes())
    plaintexts = [0, 1, public_key.modulus - 1]
    randomizers = Randomizers(public_key, n_ahead=3).draw(3)
    assert private_key.decrypt(encrypt(public_key, plaintexts, randomizers)) == plaintexts


def test_3072_bits_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(paillier, "raw_generate_key", lambda size, bits: asked.append(size))
    generate_key()
    assert asked == [3072]


@pytest.mark.parametrize("unfit", [(211, 211), (199, 223), (1439, 719)], ids=str)
def test_an_unfit_pair_of_primes_is_drawn_again(
    unfit: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal primes; a common factor of p - 1 and q - 1; q divides p - 1."""
    drawn = iter([*unfit, 211, 227])
    monkeypatch.setattr(paillier, "blum_prime", lambda size, bits: next(drawn))
    assert raw_generate_key(32).raw_primes() == (211, 227)


def test_primes_that_are_near_are_told() -> None:
    """Fermat's method factors n at once where p and q share their upper half."""
    p = gmpy2.next_prime(gmpy2.mpz(1) << 1023)
    assert not are_far(p, p)
    assert not are_far(p, p + (1 << 900))
    assert are_far(p, p + (1 << 925))
    assert are_far(p + (1 << 925), p)


def test_the_generator_has_jacobi_symbol_one_and_is_no_square() -> None:
    """-1 is no square mod p, so a square would be of half the order that is promised."""
    public_key = key().public_key
    p, q = key().raw_primes()
    assert gmpy2.legendre(public_key.generator, p) == -1
    assert gmpy2.legendre(public_key.generator, q) == -1
    assert key().decrypt([public_key.generator]) == [0]


def test_a_key_without_generator_says_so() -> None:
    with pytest.raises(ValueError, match="no generator"):
        _ = PublicKey(key().public_key.modulus, has_generator=False).generator


def test_a_modulus_that_shares_a_factor_with_its_own_hash_is_refused() -> None:
    """Forged moduli only; for this one y is a multiple of one of its small factors."""
    forged = PublicKey(3 * 5 * 7 * 11 * 13 * 17 * 31, has_generator=True)
    with pytest.raises(ConfigError, match="its own hash"):
        _ = forged.generator


@pytest.mark.parametrize("modulus", [-15, 0, 1, 15, 1 << 512, gmpy2.mpz(2) << 20])
def test_an_impossible_modulus_is_refused(modulus: int) -> None:
    with pytest.raises(ConfigError, match="no Paillier modulus"):
        PublicKey(modulus, has_generator=False)


def test_public_keys_are_equal_by_content_whatever_integers_they_came_as() -> None:
    modulus = key().public_key.modulus
    twin = PublicKey(gmpy2.mpz(modulus), has_generator=True)
    assert twin == key().public_key
    assert type(twin.modulus) is int
    assert hash(twin) == hash(key().public_key)
    assert twin.fingerprint != PublicKey(modulus, has_generator=False).fingerprint
    assert twin.fingerprint != PublicKey(modulus + 2, has_generator=True).fingerprint


small = st.integers(0, (1 << 511) - 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(small, max_size=4))
def test_plaintexts_come_back(plaintexts: list[int]) -> None:
    assert key().decrypt(blind(key(), plaintexts)) == plaintexts


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(small, small), min_size=1, max_size=4))
def test_products_decrypt_to_sums_mod_n(pairs: list[tuple[int, int]]) -> None:
    n = key().public_key.modulus
    left, right = (blind(key(), [n - 1 - pair[i] for pair in pairs]) for i in (0, 1))
    total = add(key().public_key, left, right)
    assert key().decrypt(total) == [(-2 - a - b) % n for a, b in pairs]


def test_rerandomized_ciphertexts_differ_and_decrypt_alike() -> None:
    public_key = key().public_key
    before = blind(key(), [5, 5, 7])
    after = rerandomize(public_key, before, Randomizers(public_key, n_ahead=3).draw(3))
    assert len({*before, *after}) == 6
    assert key().decrypt(after) == [5, 5, 7]


def test_results_lie_in_their_ranges() -> None:
    public_key = key().public_key
    ciphertexts = blind(key(), [0, public_key.modulus - 1])
    assert all(0 < c < public_key.square for c in ciphertexts)
    assert all(0 <= m < public_key.modulus for m in key().decrypt(ciphertexts))


@pytest.mark.parametrize("shift", [0, 1, 10])
def test_a_plaintext_out_of_range_is_refused_and_not_shown(shift: int) -> None:
    public_key = key().public_key
    for plaintext in (-1 - shift, public_key.modulus + shift):
        with pytest.raises(ValueError, match="outside") as caught:
            encrypt(public_key, [3, plaintext], [1, 1])
        assert str(plaintext) not in str(caught.value)


def test_too_few_randomizers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values can't be matched with 1"):
        encrypt(key().public_key, [1, 2], [1])
    with pytest.raises(ValueError, match="1 values can't be matched with 2"):
        add(key().public_key, [1], [1, 2])


def test_nothing_encrypts_decrypts_and_checks() -> None:
    assert encrypt(key().public_key, [], []) == []
    assert key().decrypt([]) == []
    check_ciphertexts(key().public_key, [])


def test_a_private_key_is_redacted_and_stays_in_its_process() -> None:
    secrets = [key(), Randomizers(key().public_key, key(), n_ahead=1), key()._halves[0]]
    p, q = key().raw_primes()
    for secret in secrets:
        for shown in (repr(secret), str(secret), f"{secret}"):
            assert not any(f"{prime:{form}}" in shown for prime in (p, q) for form in "dx")
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="must not leave"):
                leave(secret)
    with pytest.raises(TypeError, match="no truth value"):
        bool(key())
    p_q = PrivateKey(p, q, has_generator=True)
    assert p_q != key(), "comparison by content would leak through its time"
    assert not hasattr(key(), "__dict__")


@pytest.fixture(scope="module")
def phe() -> Any:
    return pytest.importorskip("phe")


def ours_and_theirs(phe: Any, maker: str) -> tuple[PrivateKey, Any]:
    """Return one 2048-bit key in both libraries, made by one of them."""
    if maker == "phe":
        theirs = phe.generate_paillier_keypair(n_length=2048)[1]
        return PrivateKey(theirs.p, theirs.q, has_generator=False), theirs
    ours = generate_key(2048)
    p, q = ours.raw_primes()
    return ours, phe.PaillierPrivateKey(phe.PaillierPublicKey(p * q), p, q)


@pytest.mark.parametrize("maker", ["phe", "mpcfl"])
@pytest.mark.parametrize("with_private_key", [False, True])
def test_phe_and_we_read_each_other_and_add_each_other(
    phe: Any, maker: str, with_private_key: bool
) -> None:
    ours, theirs = ours_and_theirs(phe, maker)
    public_key, n = ours.public_key, ours.public_key.modulus
    randomizers = Randomizers(public_key, ours if with_private_key else None, n_ahead=2)
    plaintexts = [123_456_789 << 900, n - 5]
    made = [int(c) for c in encrypt(public_key, plaintexts, randomizers.draw(2))]
    assert [theirs.raw_decrypt(c) for c in made] == plaintexts
    other = [theirs.public_key.raw_encrypt(m) for m in (17, 6)]
    assert ours.decrypt(other) == [17, 6]
    across = [int(c) for c in add(public_key, made, other)]
    expected = [plaintexts[0] + 17, 1]
    assert ours.decrypt(across) == expected
    assert [theirs.raw_decrypt(c) for c in across] == expected
    summed = phe.EncryptedNumber(theirs.public_key, made[0], 0) + phe.EncryptedNumber(
        theirs.public_key, other[1], 0
    )
    assert ours.decrypt([summed.ciphertext(be_secure=False)]) == [plaintexts[0] + 6]


def test_two_keys_are_different() -> None:
    assert raw_generate_key(64).raw_primes() != raw_generate_key(64).raw_primes()
