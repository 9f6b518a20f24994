"""Tags are exact, add up, and are missed by a changed sum as rarely as the lemma says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scipy import stats

from mpcfl.hazmat import linear_tag
from mpcfl.hazmat.bits import SystemBits, raw_keyed_bits
from mpcfl.hazmat.linear_tag import (
    LONG_PRIME,
    SHORT_PRIME,
    Coefficients,
    n_columns,
    raw_coefficients,
    raw_linear_tag,
    raw_residues,
    raw_vector_digest,
    tag_prime,
)
from mpcfl.hazmat.primes import is_probable_prime

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "linear_tag.json").read_text())
BITS = (8, 16, 20, 31, 32, 33, 48, 63, 64)
FALSE_POSITIVE_RATE = 1e-9
needs_kernel = pytest.mark.skipif(
    not linear_tag._HAS_KERNEL, reason="the kernel is not built: no compiler, or one of 32 bits"
)


@pytest.fixture(params=[pytest.param("kernel", marks=needs_kernel), "products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compute by the kernel, for which b = 64 is too long, or by matrix products."""
    monkeypatch.setattr(linear_tag, "_HAS_KERNEL", request.param == "kernel")
    name: str = request.param
    return name


def assert_went(way: str, r: Coefficients) -> None:
    assert (r.limbs is None) is (way == "kernel" and r.modulus_bits < 64)


def integers(words: np.ndarray[Any, Any]) -> list[int]:
    return [sum(int(w) << (64 * place) for place, w in enumerate(row)) for row in words]


def tag_by_integers(values: Sequence[int], r: Coefficients, number: int) -> int:
    columns, rows = integers(r.columns), integers(r.rows)[r.starts[number] :]
    width = len(columns)
    return sum(x * rows[i // width] * columns[i % width] for i, x in enumerate(values)) % r.prime


def uniform(count: int, bits: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return SystemBits().words(count).view(np.int64) >> np.int64(64 - bits)


@pytest.mark.parametrize(
    "case", VECTORS["cases"], ids=lambda case: f"{case['modulus_bits']}-{case['name']}"
)
def test_known_answers_of_an_independent_computation(way: str, case: dict[str, Any]) -> None:
    bits = case["modulus_bits"]
    parts = [np.array([int(x) for x in part], dtype=np.int64) for part in case["parts"]]
    stream = raw_keyed_bits(bytes.fromhex(case["key"]))
    r = raw_coefficients(stream, [part.size for part in parts], bits)
    assert_went(way, r)
    assert len(r.columns) == case["columns"]
    tags = [raw_linear_tag(part, r, number) for number, part in enumerate(parts)]
    assert tags == [int(tag) for tag in case["tags"]]


def test_moduli_are_prime_and_longer_than_any_difference() -> None:
    assert is_probable_prime(SHORT_PRIME)
    assert is_probable_prime(LONG_PRIME)
    assert all(2**bits <= tag_prime(bits) for bits in range(8, 65))


@pytest.mark.parametrize("bits", BITS)
def test_tags_are_exact_for_any_values_at_both_ends_and_for_any_length(way: str, bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    # Rows of 512, in pairs and alone, whole and short.
    lengths = (16 * 512 + 77, 3 * 512, 3 * 512 + 1, 1024, 512, 0, 1)
    r = raw_coefficients(SystemBits(), lengths, bits)
    assert len(r.columns) == 512
    assert_went(way, r)
    for number, length in enumerate(lengths):
        for values in (uniform(length, bits), np.full(length, low), np.full(length, high)):
            expected = tag_by_integers(values.tolist(), r, number)
            assert raw_linear_tag(values, r, number) == expected
            if bits <= 32:
                assert raw_linear_tag(values.astype(np.int32), r, number) == expected


@pytest.mark.parametrize("bits", [8, 32, 33, 63, 64])
@pytest.mark.parametrize("value", ["low", "high"])
def test_the_longest_sums_of_products_are_exact(way: str, bits: int, value: str) -> None:
    """Everything at its largest: every limb of a and b all ones, every value at one end."""
    end = -(1 << (bits - 1)) if value == "low" else (1 << (bits - 1)) - 1
    prime = tag_prime(bits)

    class Ones:
        """Words just below the prime: nearly all of their bits are ones."""

        def words(self, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
            largest = np.uint64((prime - 1) & ((1 << 64) - 1))
            return np.full(count, largest if prime == SHORT_PRIME else ~np.uint64(1), np.uint64)

    # Rows for two blocks of the second product, and a short one.
    length = 1024 * 1024 + 1024 * 3 + 5
    r = raw_coefficients(Ones(), [length], bits)
    columns, rows = integers(r.columns), integers(r.rows)
    assert len(columns) == 1024
    whole, rest = divmod(length, 1024)
    total = sum(columns) * sum(rows[:whole]) + sum(columns[:rest]) * rows[whole]
    assert_went(way, r)
    types = (np.int32, np.int64) if bits <= 32 else (np.int64,)
    for dtype in types:
        assert raw_linear_tag(np.full(length, end, dtype), r, 0) == total * end % prime


@pytest.mark.parametrize("bits", [20, 32, 64])
def test_tags_add_up_as_vectors_do(way: str, bits: int) -> None:
    r = raw_coefficients(SystemBits(), [300], bits)
    one, other = uniform(300, bits - 1), uniform(300, bits - 1)
    tags = [raw_linear_tag(x, r, 0) for x in (one, other, one + other)]
    assert (tags[0] + tags[1] - tags[2]) % r.prime == 0


def test_equal_bits_give_equal_coefficients_and_parts_have_rows_of_their_own(way: str) -> None:
    values = np.arange(50)
    one, again = (raw_coefficients(raw_keyed_bits(bytes(32)), [50, 50], 32) for _ in range(2))
    tags = [raw_linear_tag(values, one, number) for number in range(2)]
    assert tags == [raw_linear_tag(values, again, number) for number in range(2)]
    assert tags[0] != tags[1]


def test_secrets_do_not_show(way: str) -> None:
    r = raw_coefficients(SystemBits(), [3], 32)
    assert str(integers(r.columns)[0]) not in repr(r) + repr(r.limbs)


@needs_kernel
def test_a_vector_may_be_read_only_and_begin_anywhere() -> None:
    r = raw_coefficients(SystemBits(), [300], 32)
    for dtype in (np.int32, np.int64):
        whole = uniform(310, 32).astype(dtype)
        part = np.frombuffer(whole.tobytes(), dtype)[7:307]
        assert raw_linear_tag(part, r, 0) == tag_by_integers(part.tolist(), r, 0)


WORDS = np.ones(3, np.uint64)
REFUSED = {
    "floats": (np.zeros(3), WORDS[:1], WORDS, 1, TypeError),
    "short-integers": (np.zeros(3, np.int16), WORDS[:1], WORDS, 1, TypeError),
    "no-sign": (WORDS, WORDS[:1], WORDS, 1, TypeError),
    "other-byte-order": (np.zeros(3, ">i8"), WORDS[:1], WORDS, 1, TypeError),
    "a-matrix": (np.zeros((3, 1), np.int64), WORDS[:1], WORDS, 1, TypeError),
    "not-aligned": (memoryview(bytes(25))[1:].cast("q"), WORDS[:1], WORDS, 1, TypeError),
    "gaps": (np.zeros(6, np.int64)[::2], WORDS[:1], WORDS, 1, ValueError),
    "columns-with-a-sign": (np.zeros(3, np.int64), np.ones(1, int), WORDS, 1, TypeError),
    "rows-with-a-sign": (np.zeros(3, np.int64), WORDS[:1], np.ones(3, int), 1, TypeError),
    "too-few-rows": (np.zeros(3, np.int64), WORDS[:1], WORDS[:2], 1, ValueError),
    "too-many-rows": (np.zeros(3, np.int64), WORDS[:2], WORDS, 1, ValueError),
    "no-columns": (np.zeros(3, np.int64), WORDS[:0], WORDS, 1, ValueError),
    "too-many-columns": (np.zeros(3, int), np.ones(1025, np.uint64), WORDS[:1], 1, ValueError),
    "three-halves": (np.zeros(3, np.int64), WORDS[:1], WORDS, 3, ValueError),
    "no-buffer": (3, WORDS[:1], WORDS, 1, TypeError),
}


@needs_kernel
@pytest.mark.parametrize("what", REFUSED)
def test_the_kernel_refuses_what_is_no_form(what: str) -> None:
    from mpcfl.hazmat import _dot

    *arguments, error = REFUSED[what]
    assert _dot.bilinear_form(np.zeros(3, np.int64), WORDS[:1], WORDS, 1) == bytes(32)
    with pytest.raises(error):
        _dot.bilinear_form(*arguments)


@pytest.mark.parametrize("length", [0, 1, 2, 10, 1000, 10**6, 10**8])
def test_rows_are_a_power_of_two_and_bounded(length: int) -> None:
    width = n_columns([length, 0])
    assert width == 1 << (width - 1).bit_length() <= 1024


class Recorded:
    """Words that were chosen, in order."""

    def __init__(self, *words: int) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        taken, self.left = self.left[:count], self.left[count:]
        return np.array(taken, dtype=np.uint64)


def test_what_is_not_below_the_prime_is_drawn_again() -> None:
    top = (1 << 64) - 1
    source = Recorded(SHORT_PRIME, 5, top, SHORT_PRIME - 1, SHORT_PRIME + 1, 7)
    assert raw_residues(source, 3, SHORT_PRIME) == [SHORT_PRIME - 1, 5, 7]
    # Two words for each; the top bit of the upper one does not count.
    source = Recorded(top, top, 3, 1 << 63, top - 1, top >> 1)
    assert raw_residues(source, 2, LONG_PRIME) == [LONG_PRIME - 1, 3]
    # Three bits of each word count.
    source = Recorded(0b11_101, 0b111, 0b110, 0b1_000, 0b011)
    assert raw_residues(source, 2, 5) == [3, 0]


@pytest.mark.stat
@pytest.mark.parametrize("prime", [5, 11, 251])
def test_residues_are_uniform(prime: int) -> None:
    """A chi-squared test; it sees one residue that is a fifth too frequent with near certainty."""
    counts = np.bincount(raw_residues(SystemBits(), 200_000, prime), minlength=prime)
    assert counts.size == prime
    assert stats.chisquare(counts).pvalue > FALSE_POSITIVE_RATE


@pytest.mark.stat
def test_a_changed_sum_passes_as_often_as_the_lemma_says_and_never_at_the_real_prime() -> None:
    """20,000 trials with p = 31, where a change passes with probability 2/p - 1/p^2 = 0.0635.

    Two-sided; rates of 1/p and 3/p, as with one factor or with three, are eighteen standard
    deviations away and more.
    """
    prime, trials = 31, 20_000
    honest, changed = np.array([3, -7, 60, 1]), np.array([3, -6, 60, 1])
    source = SystemBits()

    def passing(count: int, modulus: int | None) -> int:
        drawn = (raw_coefficients(source, [4], 8, modulus) for _ in range(count))
        return sum(raw_linear_tag(honest, r, 0) == raw_linear_tag(changed, r, 0) for r in drawn)

    rate = 2 / prime - 1 / prime**2
    assert stats.binomtest(passing(trials, prime), trials, rate).pvalue > FALSE_POSITIVE_RATE
    assert passing(trials // 4, None) == 0


def test_a_change_of_any_form_passes_at_most_as_often_as_the_lemma_says() -> None:
    """Exactly, over all a and b mod 5, two rows of two: differences in one place, row or all."""
    prime = 5
    for difference in ([1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 2, 2, 4], [1, 2, 3, 4]):
        d = np.array(difference).reshape(2, 2)
        grid = np.stack(np.meshgrid(*[np.arange(prime)] * 4, indexing="ij"), -1).reshape(-1, 4)
        forms = np.einsum("ni,ij,nj->n", grid[:, :2], d, grid[:, 2:]) % prime
        passing = int((forms == 0).sum())
        assert passing <= (2 / prime - 1 / prime**2) * len(grid) + 1e-9, difference


def test_a_digest_is_gmac_and_sees_every_bit() -> None:
    key, vector = bytes(range(32)), np.arange(10_000, dtype=np.int32)
    digest = raw_vector_digest(key, vector)
    assert digest == AESGCM(key).encrypt(bytes(12), b"", vector.tobytes())
    for place in (0, 5000, 9999):
        changed = vector.copy()
        changed[place] ^= 1
        assert raw_vector_digest(key, changed) != digest
    assert raw_vector_digest(bytes(32), vector) != digest


def test_a_long_digest_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = np.arange(1000)
    at_once = raw_vector_digest(bytes(32), vector)
    monkeypatch.setattr("mpcfl.hazmat.linear_tag._DIGEST_PIECE_BYTES", 48)
    assert raw_vector_digest(bytes(32), vector) == at_once
