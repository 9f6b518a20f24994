"""Random integers and primes: ranges, rejection, primality, the sieve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcfl.hazmat.bits import KEY_BYTES, KeystreamBits, SystemBits, raw_keyed_bits
from mpcfl.hazmat.primes import (
    ROUNDS,
    _pairs,
    blum_prime,
    draw_below,
    draw_bits,
    is_probable_prime,
    safe_prime,
)


class Given:
    """Hands out the words it was given, and counts them."""

    def __init__(self, *words: int) -> None:
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count, "more words were read than expected"
        return np.array(taken, dtype=np.uint64)


def keyed(key: int = 1) -> KeystreamBits:
    return raw_keyed_bits(bytes([key]) * KEY_BYTES)


def primes_below(bound: int) -> list[int]:
    return [n for n in range(2, bound) if all(n % d for d in range(2, math.isqrt(n) + 1))]


def test_bits_are_those_of_the_source_cut_to_length() -> None:
    ones = (1 << 64) - 1
    assert draw_bits(Given(ones, ones, 5, 6), 66, 2) == [(3 << 64) | ones, (2 << 64) | 5]
    assert draw_bits(Given(ones), 1) == [1]
    assert draw_bits(Given(), 10, 0) == []


@given(st.integers(1, 200), st.integers(0, 20))
def test_bits_cover_their_range(n_bits: int, count: int) -> None:
    drawn = draw_bits(SystemBits(), n_bits, count)
    assert len(drawn) == count
    assert all(0 <= number < 1 << n_bits for number in drawn)


def test_a_draw_beyond_the_bound_is_rejected_not_folded() -> None:
    """Folding 7 and 5 to 2 and 0 would make small numbers likelier."""
    source = Given(7, 5, 6, 4, 99)
    assert draw_below(source, 5) == 4
    assert source.left == [99]


def test_a_range_of_one_number_needs_no_bits_and_an_empty_one_is_refused() -> None:
    assert draw_below(Given(), 1) == 0
    with pytest.raises(ValueError, match="empty"):
        draw_below(Given(), 0)


def test_small_numbers_are_told_apart() -> None:
    primes = set(primes_below(3000))
    assert {n for n in range(-5, 3000) if is_probable_prime(n)} == primes


@pytest.mark.parametrize("exponent", [61, 89, 127, 521, 607])
def test_mersenne_primes_are_prime_and_their_products_are_not(exponent: int) -> None:
    prime = (1 << exponent) - 1
    assert is_probable_prime(prime)
    assert not is_probable_prime(prime * ((1 << 127) - 1))
    assert not is_probable_prime(prime * prime)


@pytest.mark.parametrize(
    "number",
    [
        561,
        3215031751,
        3825123056546413051,
        318665857834031151167461,
        3317044064679887385961981,
    ],
)
def test_numbers_that_deceive_fixed_bases_are_composite(number: int) -> None:
    """A Carmichael number, and strong pseudoprimes to the first 4, 9, 12 and 13 primes."""
    assert not is_probable_prime(number)


def test_a_long_number_is_tested_with_fresh_random_bases() -> None:
    """Known bases could be deceived by somebody who builds the number for them."""
    prime = (1 << 127) - 1
    words = list(range(3, 3 + 3 * ROUNDS))
    source = Given(*words, 77)
    assert is_probable_prime(prime, source)
    assert source.left == [77]


@pytest.mark.parametrize("n_bits", [8, 9, 16, 33, 64, 128, 256])
def test_a_blum_prime_has_its_length_and_congruence(n_bits: int) -> None:
    for _ in range(5):
        prime = blum_prime(n_bits, SystemBits())
        assert is_probable_prime(prime)
        assert prime.bit_length() == n_bits
        assert prime >> (n_bits - 2) == 3
        assert prime % 4 == 3
        small = primes_below(min(1 << 12, 1 << n_bits // 4))
        assert not [d for d in small if prime // 2 % d == 0 and d < prime // 2]


@pytest.mark.parametrize("n_bits", [8, 16, 64, 128, 256])
def test_a_safe_prime_has_its_length_and_a_prime_half(n_bits: int) -> None:
    for _ in range(3):
        prime = safe_prime(n_bits, SystemBits())
        assert is_probable_prime(prime)
        assert is_probable_prime(prime // 2)
        assert prime.bit_length() == n_bits
        assert prime >> (n_bits - 2) == 3


@pytest.mark.parametrize("make", [blum_prime, safe_prime])
def test_primes_come_from_the_source_alone(make) -> None:
    first, again, other = (make(64, keyed(key)) for key in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("make", [blum_prime, safe_prime])
def test_a_prime_of_seven_bits_is_refused(make) -> None:
    with pytest.raises(ValueError, match="at least 8 bits, not 7"):
        make(7, SystemBits())


@settings(max_examples=25)
@given(st.integers(24, 200), st.integers(1, 400), st.integers(3, 60), st.integers(0, 255))
def test_the_sieve_strikes_out_what_has_a_small_factor_and_no_more(
    n_bits: int, count: int, bound: int, key: int
) -> None:
    start = draw_bits(keyed(key), n_bits - 3)[0] | 3 << (n_bits - 3) | 1
    odds = [start + 2 * i for i in range(count) if (start + 2 * i).bit_length() < n_bits]
    small = primes_below(bound)[1:]
    rough = [h for h in odds if all(h % d and (2 * h + 1) % d for d in small)]
    assert list(_pairs(n_bits, count, bound, keyed(key))) == rough


def test_large_sieving_primes_are_struck_out_too() -> None:
    """Above 2^12 they are struck out together, which is other code."""
    bound = 1 << 14
    small = primes_below(bound)[1:]
    left = list(_pairs(64, 60_000, bound, keyed()))
    assert 200 < len(left) < 1500
    assert all(h % d and (2 * h + 1) % d for h in left[:100] for d in small)
    start = draw_bits(keyed(), 61)[0] | 3 << 61 | 1
    block = [start + 2 * i for i in range(2000)]
    rough = [h for h in block if all(h % d and (2 * h + 1) % d for d in small)]
    assert [h for h in left if h <= block[-1]] == rough


def test_the_sieve_leaves_few_pairs_to_test() -> None:
    """Theory: 0.832 / ln(bound)^2 = 0.43 % of 262,144, that is 1,135 +- 34; 1,573 is 13 sigma."""
    count = 1 << 18
    left = sum(1 for _ in _pairs(1024, count, 1 << 20, SystemBits()))
    assert left < 0.006 * count
