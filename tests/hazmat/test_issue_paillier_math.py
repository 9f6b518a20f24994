"""Paillier's arithmetic from outside: packed sums, threshold keys, phe, and what is refused.

Oracles are Python integers and phe; nothing here is taken from the code under test.
"""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import math
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpcfl.errors import (
    ConfigError,
    KeyFileError,
    MpcflError,
    ProtocolError,
    WrapDetected,
    WrongPartial,
)
from mpcfl.hazmat import paillier
from mpcfl.hazmat.bits import SystemBits
from mpcfl.hazmat.modular import Modulus, kernel_name
from mpcfl.hazmat.packing import SlotLayout, pack, unpack
from mpcfl.hazmat.paillier import PrivateKey, PublicKey, generate_key, raw_generate_key
from mpcfl.hazmat.primes import draw_below, draw_bits
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.hazmat.threshold import (
    check_partials,
    combine,
    decode_partial,
    encode_partial,
    partially_decrypt,
    raw_combine,
)
from mpcfl.hazmat.threshold_key import deal_key, raw_deal_key_from_primes

phe = pytest.importorskip("phe")

KEY_BITS = 512
CONTEXT = b"run 1, round 2, attempt 0, chunk 3"
VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "threshold_paillier.json").read_text()
)
SAFE = tuple(int(VECTORS["primes"][name], 16) for name in ("p256", "q256"))


@pytest.fixture(scope="module")
def key():
    return raw_generate_key(KEY_BITS)


@pytest.fixture(scope="module")
def dealt():
    """A key of 3 of 5, of two public safe primes."""
    return raw_deal_key_from_primes(*SAFE, 5, 3)


def ends(bits):
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def seal(public_key, plaintexts, private_key=None):
    randomizers = Randomizers(public_key, private_key, n_ahead=8).draw(len(plaintexts))
    return paillier.encrypt(public_key, plaintexts, randomizers)


def ring(total, bits):
    half = 1 << (bits - 1)
    return (int(total) + half) % (1 << bits) - half


# Packed sums.


def vectors_at_the_ends(bits, n_parties, n_values):
    """All least; all greatest; and neighbors at opposite ends, where a carry would show."""
    low, high = ends(bits)
    alternating = np.resize(np.array([low, high]), n_values)
    columns = [np.full(n_values, low), np.full(n_values, high), alternating, alternating[::-1]]
    return [[column.astype(np.int64)] * n_parties for column in columns]


@pytest.mark.parametrize("n_parties", [1, 2, 3, 8, 9, 1000])
def test_no_sum_carries_into_the_next_slot_in_any_ring(n_parties):
    for bits in range(8, 65):
        layout = SlotLayout(bits, n_parties, KEY_BITS - 1)
        n_values = 2 * layout.slots + 1
        for vectors in vectors_at_the_ends(bits, n_parties, n_values):
            # What n parties add up to, as plain integers; no party wraps its plaintext mod n.
            sums = [n_parties * plaintext for plaintext in pack(vectors[0], layout)]
            assert all(plaintext < 1 << (KEY_BITS - 1) for plaintext in sums)
            offset, width = 1 << (bits - 1), layout.slot_bits
            for number, plaintext in enumerate(sums):
                values = vectors[0][number * layout.slots :][: layout.slots].tolist()
                slots = [n_parties * (value + offset) for value in values]
                assert all(slot < 1 << width for slot in slots)
                assert plaintext == sum(slot << i * width for i, slot in enumerate(slots))
            opened = unpack(sums, layout, n_values, n_parties)
            expected = [ring(n_parties * int(v), bits) for v in vectors[0]]
            assert opened.tolist() == expected, (bits, n_parties)


@pytest.mark.parametrize("bits", [8, 16, 31, 32, 33, 63, 64])
def test_sums_of_ciphertexts_are_exact_at_sizes_around_whole_ciphertexts(key, bits):
    layout = SlotLayout(bits, 5, KEY_BITS - 1)
    public_key, slots = key.public_key, layout.slots
    low, high = ends(bits)
    for n_values in {1, slots - 1, slots, slots + 1, 2 * slots, 2 * slots + 1} - {0}:
        words = SystemBits().words(5 * n_values).view(np.int64) >> np.int64(64 - bits)
        vectors = words.reshape(5, n_values)
        vectors[:, 0], vectors[:, -1] = low, high
        product = seal(public_key, pack(vectors[0], layout))
        for vector in vectors[1:]:
            product = paillier.add(public_key, product, seal(public_key, pack(vector, layout), key))
        opened = unpack(key.decrypt(product), layout, n_values, 5)
        total = vectors.astype(object).sum(axis=0)
        assert opened.tolist() == [ring(v, bits) for v in total]


def test_long_vector_is_summed_exactly_whatever_pieces_it_is_worked_in():
    layout = SlotLayout(20, 8, 2047)
    n_values = 3 * layout.slots * 1400 + 5
    vectors = SystemBits().words(2 * n_values).view(np.int64).reshape(2, n_values) >> np.int64(44)
    first, second = (pack(vector, layout) for vector in vectors)
    opened = unpack([a + b for a, b in zip(first, second, strict=True)], layout, n_values, 2)
    assert np.array_equal(opened, (vectors.sum(axis=0) << 44) >> 44)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_value_outside_the_ring_is_refused_and_not_wrapped(dtype):
    layout = SlotLayout(20, 3, KEY_BITS - 1)
    low, high = ends(20)
    for bad in (low - 1, high + 1):
        with pytest.raises(WrapDetected):
            pack(np.array([0, bad, 0], dtype), layout)


def test_slots_too_narrow_for_the_parties_are_refused():
    narrow = SlotLayout(16, 4, KEY_BITS - 1)
    plaintexts = pack(np.full(3, 7, np.int64), narrow)
    with pytest.raises(ProtocolError, match="1 to 4"):
        unpack(plaintexts, narrow, 3, 5)
    with pytest.raises(ConfigError, match="key_bits"):
        SlotLayout(64, 1 << 32, 96)
    # Five parties in slots for four overflow at the upper end, and that is found.
    full = pack(np.full(narrow.slots, ends(16)[1], np.int64), narrow)
    with pytest.raises(ProtocolError):
        unpack([5 * plaintext for plaintext in full], narrow, narrow.slots, 4)


# What is no ciphertext.


def bad_ciphertexts(n, p):
    return {
        "zero": 0, "modulus": n, "square": n * n, "above": n * n + 1, "negative": -1,
        "prime": p, "multiple": p * 12345678901, "many": n * (p + 2),
    }  # fmt: skip


def test_nothing_is_decrypted_where_one_ciphertext_of_a_batch_is_none(key, monkeypatch):
    worked = []
    plain = paillier._Half.logarithms
    monkeypatch.setattr(
        paillier._Half, "logarithms", lambda self, c: (worked.append(len(c)), plain(self, c))[1]
    )
    good = seal(key.public_key, list(range(9)))
    p, _ = key.raw_primes()
    for name, bad in bad_ciphertexts(key.public_key.modulus, p).items():
        for place in (0, 5, 9):
            batch = [*good[:place], bad, *good[place:]]
            with pytest.raises(ProtocolError):
                key.decrypt(batch)
            assert worked == [], name
    assert key.decrypt(good) == list(range(9))
    assert worked == [9, 9]


def test_nothing_is_decrypted_in_part_where_one_ciphertext_is_none(dealt, monkeypatch):
    threshold_key, shares = dealt
    good = seal(threshold_key.public_key, [3, 4])
    partials = [partially_decrypt(share, good, CONTEXT) for share in shares[:3]]
    used = []
    plain = Modulus.power_secret
    monkeypatch.setattr(Modulus, "power_secret", lambda *args: (used.append(args), plain(*args))[1])
    for name, bad in bad_ciphertexts(threshold_key.public_key.modulus, SAFE[0]).items():
        with pytest.raises(ProtocolError):
            partially_decrypt(shares[0], [good[0], bad], CONTEXT)
        assert used == [], name
        with pytest.raises(ProtocolError):
            check_partials(threshold_key, [good[0], bad], partials, CONTEXT)
        forged = replace(partials[1], values=(partials[1].values[0], bad))
        with pytest.raises(WrongPartial) as caught:
            check_partials(threshold_key, good, [partials[0], forged], CONTEXT)
        assert caught.value.index == 2


# Threshold.


def partials_of(shares, ciphertexts, context=CONTEXT):
    return {share.index: partially_decrypt(share, ciphertexts, context) for share in shares}


def test_any_three_of_five_decrypt_and_no_two_do(dealt):
    threshold_key, shares = dealt
    n = threshold_key.public_key.modulus
    plaintexts = [0, 1, n - 1, n // 2, 1 << 300]
    ciphertexts = seal(threshold_key.public_key, plaintexts)
    partials = partials_of(shares, ciphertexts)
    checked = {
        p.index: p
        for p in check_partials(threshold_key, ciphertexts, [*partials.values()], CONTEXT)
    }
    for three in itertools.combinations(range(1, 6), 3):
        assert combine(threshold_key, [checked[i] for i in three]) == plaintexts
        assert combine(threshold_key, [checked[i] for i in three[::-1]]) == plaintexts
    assert combine(threshold_key, [*checked.values()]) == plaintexts
    for two in itertools.combinations(range(1, 6), 2):
        with pytest.raises(ProtocolError, match="of the 3"):
            combine(threshold_key, [checked[i] for i in two])
        # One share given twice is still one share.
        with pytest.raises(ProtocolError, match="of the 3"):
            combine(threshold_key, [checked[i] for i in (*two, two[0])])
        try:
            opened = raw_combine(threshold_key, {i: partials[i].values for i in two})
        except ProtocolError:
            continue
        assert not set(opened[1:]) & set(plaintexts[1:])


@pytest.mark.parametrize(("n_shares", "threshold"), [(2, 2), (3, 2), (5, 5), (7, 4), (20, 11)])
def test_other_sizes_decrypt_with_exactly_the_threshold(n_shares, threshold):
    threshold_key, shares = raw_deal_key_from_primes(*SAFE, n_shares, threshold)
    ciphertexts = seal(threshold_key.public_key, [123456789])
    partials = [*partials_of(shares[-threshold:], ciphertexts).values()]
    checked = check_partials(threshold_key, ciphertexts, partials, CONTEXT)
    assert combine(threshold_key, checked) == [123456789]
    with pytest.raises(ProtocolError):
        combine(threshold_key, checked[:-1])


def wrong_partials(dealt, ciphertexts):
    """Return partials of share 2 that are wrong, each in another way."""
    threshold_key, shares = dealt
    n = threshold_key.public_key.modulus
    right = partially_decrypt(shares[1], ciphertexts, CONTEXT)
    other_key, others = raw_deal_key_from_primes(*SAFE, 5, 3)
    assert other_key != threshold_key
    foreign = partially_decrypt(others[1], ciphertexts, CONTEXT)
    first, last = right.values[0], right.values[-1]
    n2 = n * n
    return {
        "value shifted by a plaintext": replace(right, values=(first * (1 + n) % n2, last)),
        "last value shifted": replace(right, values=(first, last * (1 + n) % n2)),
        "values swapped": replace(right, values=right.values[::-1]),
        "value doubled": replace(right, values=(first, first)),
        "value squared": replace(right, values=(first, last * last % n2)),
        "ones": replace(right, values=(1, 1)),
        "too few": replace(right, values=right.values[:1]),
        "too many": replace(right, values=(*right.values, last)),
        "none": replace(right, values=()),
        "shifted in opposite ways": replace(
            right, values=(first * (1 + n) % n2, last * (1 - n) % n2)
        ),
        "another context": partially_decrypt(shares[1], ciphertexts, b"another round"),
        "other ciphertexts": partially_decrypt(shares[1], ciphertexts[::-1], CONTEXT),
        "another ceremony": foreign,
        "another ceremony's values": replace(foreign, proof=right.proof),
        "another share": replace(partially_decrypt(shares[2], ciphertexts, CONTEXT), index=2),
        "challenge changed": replace(
            right, proof=replace(right.proof, challenge=right.proof.challenge ^ 1)
        ),
        "response changed": replace(
            right, proof=replace(right.proof, response=right.proof.response + 1)
        ),
        "response shifted by the order": replace(
            right,
            proof=replace(
                right.proof, response=right.proof.response + n2 * (1 << 600)
            ),
        ),
        "negative": replace(right, proof=replace(right.proof, response=-right.proof.response)),
        "zero proof": replace(right, proof=replace(right.proof, challenge=0, response=0)),
    }  # fmt: skip


def test_every_wrong_partial_is_blamed_on_its_share_and_the_others_still_decrypt(dealt):
    threshold_key, shares = dealt
    ciphertexts = seal(threshold_key.public_key, [41, 1 << 200])
    right = partials_of(shares, ciphertexts)
    for name, wrong in wrong_partials(dealt, ciphertexts).items():
        batch = [right[1], wrong, right[4]]
        with pytest.raises(WrongPartial, match="share 2") as caught:
            check_partials(threshold_key, ciphertexts, batch, CONTEXT)
        assert caught.value.index == 2, name
    for index in (0, 6, -1, 1 << 31):
        with pytest.raises((WrongPartial, ProtocolError)):
            check_partials(threshold_key, ciphertexts, [replace(right[1], index=index)], CONTEXT)
    rest = check_partials(threshold_key, ciphertexts, [right[i] for i in (1, 3, 5)], CONTEXT)
    assert combine(threshold_key, rest) == [41, 1 << 200]


def test_unchecked_partials_do_not_combine_and_openings_do_not_mix(dealt):
    threshold_key, shares = dealt
    ciphertexts = seal(threshold_key.public_key, [41])
    partials = [*partials_of(shares, ciphertexts).values()]
    checked = check_partials(threshold_key, ciphertexts, partials[:2], CONTEXT)
    elsewhere = partially_decrypt(shares[2], ciphertexts, b"another round")
    third = check_partials(threshold_key, ciphertexts, [elsewhere], b"another round")
    with pytest.raises(ProtocolError, match="different"):
        combine(threshold_key, [*checked, *third])
    with pytest.raises((AttributeError, TypeError, ProtocolError)):
        combine(threshold_key, partials[:3])


def test_partials_of_the_wrong_length_are_refused_and_every_flipped_byte_is_found(dealt):
    threshold_key, shares = dealt
    ciphertexts = seal(threshold_key.public_key, [5])
    message = encode_partial(threshold_key, partially_decrypt(shares[3], ciphertexts, CONTEXT))
    for cut in (message[:-1], message + b"\0", b"", message[1:], message * 2):
        with pytest.raises(ProtocolError):
            decode_partial(threshold_key, cut, 1)
    for place in range(0, len(message), 7):
        changed = bytearray(message)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            check_partials(
                threshold_key,
                ciphertexts,
                [decode_partial(threshold_key, bytes(changed), 1)],
                CONTEXT,
            )


def test_threshold_sums_of_packed_values_are_what_phe_sees_as_plain_integers(dealt):
    threshold_key, shares = dealt
    public_key = threshold_key.public_key
    layout = SlotLayout(16, 3, public_key.key_bits - 1)
    vectors = SystemBits().words(3 * 40).view(np.int64).reshape(3, 40) >> np.int64(48)
    theirs = phe.PaillierPublicKey(public_key.modulus)
    product = [theirs.raw_encrypt(p) for p in pack(vectors[0], layout)]
    for vector in vectors[1:]:
        product = paillier.add(public_key, product, seal(public_key, pack(vector, layout)))
    partials = [*partials_of(shares[2:], product).values()]
    opened = combine(threshold_key, check_partials(threshold_key, product, partials, CONTEXT))
    private = phe.PaillierPrivateKey(theirs, *SAFE)
    assert opened == [private.raw_decrypt(int(c)) for c in product]
    assert unpack(opened, layout, 40, 3).tolist() == [ring(v, 16) for v in vectors.sum(axis=0)]


# phe.


def phe_pair(private_key):
    n = private_key.public_key.modulus
    public = phe.PaillierPublicKey(n)
    return public, phe.PaillierPrivateKey(public, *private_key.raw_primes())


@pytest.mark.parametrize("maker", ["ours", "phe"])
def test_phe_and_we_decrypt_each_other_and_each_other_s_sums(maker):
    if maker == "ours":
        key = raw_generate_key(KEY_BITS)
        public, private = phe_pair(key)
    else:
        public, private = phe.generate_paillier_keypair(n_length=KEY_BITS)
        key = PrivateKey(private.p, private.q, has_generator=False)
    n = key.public_key.modulus
    plaintexts = [0, 1, 2, n - 1, n // 3, (1 << 400) + 1]
    for owner in (None, key):
        ours = seal(key.public_key, plaintexts, owner)
        assert [private.raw_decrypt(int(c)) for c in ours] == plaintexts
        theirs = [public.raw_encrypt(p) for p in plaintexts]
        assert key.decrypt(theirs) == plaintexts
        both = paillier.add(key.public_key, ours, theirs)
        assert key.decrypt(both) == [2 * p % n for p in plaintexts]
        number = phe.EncryptedNumber(public, int(ours[1])) + public.encrypt(41)
        assert private.decrypt(number) == 42
        assert key.decrypt([number.ciphertext()]) == [42]
        fresh = paillier.rerandomize(
            key.public_key, theirs, Randomizers(key.public_key, owner, n_ahead=8).draw(6)
        )
        assert not set(fresh) & {*theirs}
        assert [private.raw_decrypt(int(c)) for c in fresh] == plaintexts


def test_key_of_phe_has_no_generator_and_gets_full_powers():
    _, private = phe.generate_paillier_keypair(n_length=KEY_BITS)
    key = PrivateKey(private.p, private.q, has_generator=False)
    public_key = key.public_key
    assert not public_key.has_generator
    with pytest.raises(ValueError, match="generator"):
        _ = public_key.generator
    for owner in (None, key):
        drawn = Randomizers(public_key, owner, n_ahead=64).draw(64)
        # All are encryptions of zero; and with symbols of either sign, as short powers of
        # one generator never have. False alarm: 2^-63.
        assert key.decrypt(drawn) == [0] * 64
        assert {jacobi(int(r), public_key.modulus) for r in drawn} == {1, -1}


def test_key_of_phe_that_claims_a_generator_is_refused():
    refused = 0
    for _ in range(24):
        _, private = phe.generate_paillier_keypair(n_length=256)
        if private.p % 4 == private.q % 4 == 3 and math.gcd(private.p - 1, private.q - 1) == 2:
            continue
        with pytest.raises(ConfigError):
            PrivateKey(private.p, private.q, has_generator=True)
        refused += 1
    # Three of four keys have the wrong residues: none in 24 would be 2^-48.
    assert refused


def jacobi(a, n):
    """Return the Jacobi symbol, by the law of quadratic reciprocity."""
    a, result = a % n, 1
    while a:
        while a % 2 == 0:
            a //= 2
            if n % 8 in (3, 5):
                result = -result
        a, n = n, a
        if a % 4 == n % 4 == 3:
            result = -result
        a %= n
    return result if n == 1 else 0


def test_generator_is_bound_to_the_modulus(key):
    public_key = key.public_key
    n, p_q = public_key.modulus, key.raw_primes()
    again = PublicKey(n, has_generator=True)
    assert again.generator == public_key.generator
    assert raw_generate_key(KEY_BITS).public_key.generator != public_key.generator
    # h_s = h^n with h of symbol 1 and no square: of even order, and an encryption of zero.
    h_s = int(public_key.generator)
    assert key.decrypt([h_s]) == [0]
    assert jacobi(h_s, n) == 1
    assert [jacobi(h_s, int(prime)) for prime in p_q] == [-1, -1]
    assert public_key.fingerprint != replace(public_key, has_generator=False).fingerprint


@pytest.fixture
def pheutil(monkeypatch):
    """phe's command line, called as functions: click, which it needs, does nothing here."""

    def decorator(*args, **kwargs):
        return lambda function: function

    def group(*args, **kwargs):
        def wrap(function):
            function.command = decorator
            return function

        return wrap

    click = types.SimpleNamespace(
        group=group, argument=decorator, option=decorator, version_option=decorator,
        File=lambda mode: None, echo=lambda *args, **kwargs: None, style=lambda m, fg: m,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "click", click)
    monkeypatch.delitem(sys.modules, "phe.command_line", raising=False)
    import phe.command_line as commands

    yield commands
    sys.modules.pop("phe.command_line", None)


class Named(io.StringIO):
    name = "file"


def test_pheutil_reads_our_keys_and_we_read_its_own(pheutil, tmp_path):
    from mpcfl.secagg import phe_key_files

    made = Named()
    pheutil.generate_keypair(2048, None, made)
    theirs, public_path = tmp_path / "theirs.json", tmp_path / "public.json"
    theirs.touch(mode=0o600)
    theirs.write_text(made.getvalue())
    with theirs.open() as source, public_path.open("w") as target:
        pheutil.extract(source, target)
    key = phe_key_files.read_private_key(theirs)
    assert key.public_key == phe_key_files.read_public_key(public_path)
    assert not key.public_key.has_generator
    assert key.public_key.key_bits == 2048
    ours, ours_public = tmp_path / "ours.json", tmp_path / "ours-public.json"
    own = generate_key(2048)
    phe_key_files.write_private_key(ours, own)
    phe_key_files.write_public_key(ours_public, own.public_key)
    assert ours.stat().st_mode & 0o777 == 0o600
    assert phe_key_files.read_private_key(ours).public_key == own.public_key
    assert phe_key_files.read_public_key(ours_public) == own.public_key
    for path, public, mine in ((theirs, public_path, key), (ours, ours_public, own)):
        # pheutil encrypts with the public file, and decrypts what we encrypted.
        sealed, opened = io.StringIO(), io.StringIO()
        with public.open() as source:
            pheutil.encrypt(source, "5", sealed)
        number = json.loads(sealed.getvalue())
        assert mine.decrypt([int(number["v"])]) == [5 * 16 ** -number["e"]]
        (ciphertext,) = seal(mine.public_key, [77], mine)
        written = io.StringIO(json.dumps({"v": str(ciphertext), "e": 0}))
        with path.open() as source:
            pheutil.decrypt(source, written, opened)
        assert opened.getvalue().strip() == "77"


# Randomizers.


def test_no_randomizer_is_ever_drawn_twice(key):
    public_key = key.public_key
    sources = [Randomizers(public_key, owner, n_ahead=n) for owner in (None, key) for n in (1, 999)]
    drawn = [r for source in sources for _ in range(5) for r in source.draw(100)]
    assert len(set(map(int, drawn))) == 2000
    assert key.decrypt(drawn) == [0] * 2000


def test_a_forked_process_never_draws_what_its_parent_draws(key):
    source = Randomizers(key.public_key, n_ahead=8)
    source.draw(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = " ".join(str(r) for r in source.draw(3))
        except BaseException:  # noqa: BLE001 - a child must not run on as pytest
            text = "refused"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    assert not {str(r) for r in source.draw(3)} & set(text.split())


def test_short_exponents_are_short_and_spread(monkeypatch):
    # |x| = |n| / 2 bits, all of them used. Of 400 draws, the top and the low bit are each
    # set in some and not in all: a false alarm has 2^-398.
    key = raw_generate_key(KEY_BITS)
    seen = []
    monkeypatch.setattr(
        "mpcfl.hazmat.randomizers.draw_bits",
        lambda *args: (drawn := draw_bits(*args), seen.extend(drawn))[0],
    )
    for owner in (None, key):
        seen.clear()
        drawn = Randomizers(key.public_key, owner, n_ahead=400).draw(400)
        assert max(x.bit_length() for x in seen) == KEY_BITS // 2
        assert {x & 1 for x in seen} == {x >> (KEY_BITS // 2 - 1) & 1 for x in seen} == {0, 1}
        square = key.public_key.square
        assert [int(r) for r in drawn[:20]] == [
            pow(int(key.public_key.generator), int(x), square) for x in seen[:20]
        ]


# Tables that are kept.


def forged(content, body):
    """Return a table file with another content, and the digest that goes with it."""
    start = len(content) - len(body)
    digest = hashlib.sha256(body).digest()
    old = hashlib.sha256(content[start:]).digest()
    assert content.count(old) == 1, "the file has a digest of its content"
    return content[:start].replace(old, digest) + body


def test_kept_table_is_private_checked_and_never_used_once_it_is_wrong(key, tmp_path):
    public_key, folder = key.public_key, tmp_path / "tables"
    assert key.decrypt(Randomizers(public_key, n_ahead=99, cache=folder).draw(3)) == [0] * 3
    (path,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_bytes()
    again = Randomizers(public_key, n_ahead=99, cache=folder)
    assert key.decrypt(again.draw(3)) == [0] * 3
    assert path.read_bytes() == content
    # The attacker's aim: powers that it knows, so that it can take them off.
    width = 2 * KEY_BITS // 8
    n_numbers = len(content) // width
    ones = (1).to_bytes(width, "little") * n_numbers
    body = bytearray(content[len(content) - n_numbers * width :])
    wrong = {
        "ones": forged(content, ones),
        "shifted": forged(content, bytes(body[width:] + body[:width])),
        "torn": content[:-1],
        "empty": b"",
        "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
    }
    for name, text in wrong.items():
        path.write_bytes(text)
        with pytest.raises(KeyFileError, match=path.name):
            Randomizers(public_key, n_ahead=99, cache=folder)
        assert path.read_bytes() == text, f"{name}: what was found must stay to be looked at"
    path.write_bytes(content)
    for what, mode in ((path, 0o640), (path, 0o602), (folder, 0o750), (folder, 0o701)):
        usual = what.stat().st_mode
        what.chmod(mode)
        with pytest.raises(KeyFileError, match=what.name):
            Randomizers(public_key, n_ahead=99, cache=folder)
        what.chmod(usual)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match=path.name):
        Randomizers(public_key, n_ahead=99, cache=folder)


def test_tables_of_the_owner_which_are_secret_are_never_kept(key, tmp_path):
    Randomizers(key.public_key, key, n_ahead=99, cache=tmp_path / "tables").draw(1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# The kernel.


@pytest.mark.skipif(kernel_name() == "gmpy2", reason="no AVX-512 IFMA here, or no compiler")
@pytest.mark.parametrize("bits", [52, 64, 104, 511, 512, 1023, 2048, 4096])
def test_kernel_gives_the_same_bits_as_python_integers(bits):
    source = SystemBits()
    value = draw_bits(source, bits)[0] | 1 | 1 << (bits - 1)
    kernel, gmp = Modulus(value, kernel=True), Modulus(value, kernel=False)
    assert kernel.uses_kernel
    assert not gmp.uses_kernel
    edges = [0, 1, value - 1, value, 2 * value + 3, -1]
    for count in (1, 2, 7, 8, 9, 17):
        left = [*edges, *(draw_below(source, value) for _ in range(count))][-count:]
        right = [*(draw_below(source, value) for _ in range(count)), *edges][:count]
        products = [a * b % value for a, b in zip(left, right, strict=True)]
        assert kernel.multiply(left, right) == gmp.multiply(left, right) == products
        for exponent in (0, 1, 2, 31, 32, 33, draw_bits(source, 70)[0]):
            powers = [pow(a, exponent, value) for a in left]
            assert kernel.power(left, exponent) == gmp.power(left, exponent) == powers
            secret = [m.power_secret(left, exponent, 70) for m in (kernel, gmp)]
            assert secret == [powers, powers]
        exponents = [draw_bits(source, 40)[0] for _ in range(count)]
        powers = [pow(a, e, value) for a, e in zip(left, exponents, strict=True)]
        assert kernel.powers(left, exponents) == gmp.powers(left, exponents) == powers


# Sizes, and secrets.


@pytest.mark.parametrize("bits", [0, -2048, 512, 1024, 2046, 2047, 2049])
def test_unsafe_sizes_are_refused(bits):
    with pytest.raises(ConfigError):
        generate_key(bits)
    with pytest.raises(ConfigError):
        deal_key(bits, 3, 2)


@pytest.mark.parametrize(
    ("n_shares", "threshold"), [(5, 1), (5, 0), (5, 6), (1, 1), (0, 0), (5, -1)]
)
def test_thresholds_that_protect_nothing_are_refused(n_shares, threshold):
    with pytest.raises(ConfigError):
        raw_deal_key_from_primes(*SAFE, n_shares, threshold)


def secrets_of(key, shares):
    numbers = [*key.raw_primes(), *SAFE]
    numbers += [share.raw_value() for share in shares] + [s.raw_exponent() for s in shares]
    return {form for n in numbers for form in (str(n), f"{int(n):x}", f"{int(n):X}")}


def test_private_things_show_nothing_and_are_not_copied_or_pickled(key, dealt):
    _, shares = dealt
    ours = seal(key.public_key, [1])
    randomizers = Randomizers(key.public_key, key, n_ahead=8)
    private = [key, *shares, randomizers, *key._halves]
    text = "".join(f"{thing!r} {thing!s} {thing:}" for thing in private)
    text += repr({"key": key, "shares": shares})
    assert not any(secret in text for secret in secrets_of(key, shares))
    for thing in private:
        for take in (copy.deepcopy, copy.copy):
            with pytest.raises(TypeError):
                take(thing)
        with pytest.raises(TypeError):
            thing.__reduce_ex__(4)
    for thing in (key, *shares):
        with pytest.raises(TypeError):
            bool(thing)
    other = PrivateKey(*key.raw_primes(), has_generator=True)
    assert key != other, "private keys are not compared"
    assert key.decrypt(ours) == other.decrypt(ours)


def test_errors_tell_no_secret(key, dealt):
    threshold_key, shares = dealt
    p, q = key.raw_primes()
    calls = [
        lambda: PrivateKey(p, p, has_generator=True),
        lambda: PrivateKey(p, q + 2, has_generator=True),
        lambda: PrivateKey(p, q * 3, has_generator=False),
        lambda: raw_deal_key_from_primes(p, q, 5, 3),
        lambda: raw_deal_key_from_primes(SAFE[0], SAFE[0], 5, 3),
        lambda: key.decrypt([p]),
        lambda: key.decrypt([p * q * p]),
        lambda: type(shares[0])(threshold_key, 2, shares[0].raw_value()).check(),
        lambda: type(shares[0])(threshold_key, 9, shares[0].raw_value()),
        lambda: type(shares[0])(threshold_key, 1, -shares[0].raw_value()),
        lambda: Randomizers(threshold_key.public_key, key, n_ahead=1),
    ]
    secrets = secrets_of(key, shares)
    for call in calls:
        with pytest.raises(MpcflError) as caught:
            call()
        shown = f"{caught.value} {caught.value!r} {caught.value.__cause__}"
        assert not any(secret in shown for secret in secrets)


def test_composite_that_fools_weak_tests_makes_no_private_key():
    # Strong pseudoprimes to the first 4, 9 and 12 primes (OEIS A014233), and Carmichael's first.
    prime = int(raw_generate_key(64).raw_primes()[0])
    for composite in (3215031751, 3825123056546413051, 318665857834031151167461, 561):
        with pytest.raises(ConfigError):
            PrivateKey(composite, prime, has_generator=False)
