"""Randomizers: the right group, the right distribution, never twice, and the size of tables."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import gmpy2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import KEY_BYTES, KeystreamBits, raw_keyed_bits
from mpcfl.hazmat.modular import MAX_WINDOW_BITS
from mpcfl.hazmat.paillier import PrivateKey, PublicKey, encrypt, raw_generate_key
from mpcfl.hazmat.randomizers import MAX_TABLE_BYTES, Randomizers, choose_window


class Counting:
    """0, 1, 2, ...: every value of a small range in turn."""

    def __init__(self) -> None:
        self.next = 0

    def words(self, count: int) -> np.ndarray:
        self.next += count
        return np.arange(self.next - count, self.next, dtype=np.uint64)


class Ones:
    """All bits set: the largest exponent."""

    def words(self, count: int) -> np.ndarray:
        return np.full(count, (1 << 64) - 1, dtype=np.uint64)


def keyed() -> KeystreamBits:
    return raw_keyed_bits(bytes(KEY_BYTES))


@cache
def made() -> PrivateKey:
    return raw_generate_key(512)


def key(has_generator: bool = True) -> PrivateKey:
    if has_generator:
        return made()
    return PrivateKey(*made().raw_primes(), has_generator=False)


def owned(has_generator: bool, by_owner: bool) -> tuple[PublicKey, PrivateKey | None]:
    private_key = key(has_generator)
    return private_key.public_key, private_key if by_owner else None


ways = pytest.mark.parametrize(
    ("has_generator", "by_owner"),
    [(True, False), (True, True), (False, False), (False, True)],
    ids=["table", "owner's table", "full", "owner's full"],
)


@ways
def test_randomizers_encrypt_zero_and_nothing_else(has_generator: bool, by_owner: bool) -> None:
    drawn = Randomizers(*owned(has_generator, by_owner), n_ahead=20).draw(20)
    assert key().decrypt(drawn) == [0] * 20
    assert all(0 < r < key().public_key.square for r in drawn)


@ways
def test_no_randomizer_is_drawn_twice(has_generator: bool, by_owner: bool) -> None:
    randomizers = Randomizers(*owned(has_generator, by_owner), n_ahead=300)
    drawn = [r for count in (1, 0, 150, 149) for r in randomizers.draw(count)]
    another = Randomizers(*owned(has_generator, by_owner), n_ahead=300).draw(100)
    assert len({*drawn, *another}) == 400


@ways
def test_ciphertexts_made_with_them_decrypt(has_generator: bool, by_owner: bool) -> None:
    public_key, private_key = owned(has_generator, by_owner)
    plaintexts = [0, 1, public_key.modulus - 1]
    drawn = Randomizers(public_key, private_key, n_ahead=1).draw(3)
    assert key(has_generator).decrypt(encrypt(public_key, plaintexts, drawn)) == plaintexts


@pytest.mark.parametrize("by_owner", [False, True])
def test_short_powers_lie_in_the_group_of_the_generator(by_owner: bool) -> None:
    """Jacobi symbol 1, squares and non-squares both: the group that DJN's proof speaks of."""
    drawn = Randomizers(*owned(True, by_owner), n_ahead=100).draw(100)
    p, q = key().raw_primes()
    symbols = {(gmpy2.legendre(r, p), gmpy2.legendre(r, q)) for r in drawn}
    # One of the two is missing with a probability of 2^-99.
    assert symbols == {(1, 1), (-1, -1)}


@pytest.mark.parametrize("by_owner", [False, True])
def test_full_powers_cover_all_symbols(by_owner: bool) -> None:
    drawn = Randomizers(*owned(False, by_owner), n_ahead=200).draw(200)
    p, q = key().raw_primes()
    # One of the four is missing with a probability of at most 4 (3/4)^200 = 2^-81.
    assert len({(gmpy2.legendre(r, p), gmpy2.legendre(r, q)) for r in drawn}) == 4


@pytest.mark.parametrize("n_ahead", [1, 50, 5000])
def test_short_powers_are_powers_of_the_generator_with_half_as_many_bits(n_ahead: int) -> None:
    public_key = key().public_key
    (exponent,) = (int.from_bytes(keyed().words(4).tobytes(), "little"),)
    assert exponent.bit_length() <= public_key.exponent_bits == 256
    drawn = Randomizers(public_key, n_ahead=n_ahead, bits=keyed()).draw(1)
    assert drawn == [pow(public_key.generator, exponent, public_key.square)]


def test_the_owner_draws_what_everybody_would_draw() -> None:
    public, owner = (
        Randomizers(*owned(True, by_owner), n_ahead=30, bits=keyed()) for by_owner in (False, True)
    )
    assert public.draw(30) == owner.draw(30)


@pytest.mark.parametrize("key_bits", [32, 34, 46, 512])
def test_the_longest_exponent_is_within_the_table(key_bits: int) -> None:
    # Fixed keys: a random one of 32 bits shares a factor with its hash once in 2^15.
    private_key = raw_generate_key(key_bits, keyed())
    public_key = private_key.public_key
    longest = (1 << key_bits // 2) - 1
    for owner in (None, private_key):
        drawn = Randomizers(public_key, owner, n_ahead=100, bits=Ones()).draw(2)
        assert drawn == [pow(public_key.generator, longest, public_key.square)] * 2


@pytest.mark.parametrize("by_owner", [False, True])
def test_full_powers_are_uniform_among_all_n_th_powers(by_owner: bool) -> None:
    """Every base in turn gives every n-th power once; multiples of p and q are left out."""
    private_key = PrivateKey(131, 137, has_generator=False)
    public_key = private_key.public_key
    n, n_units = public_key.modulus, 130 * 136
    owner = private_key if by_owner else None
    drawn = Randomizers(public_key, owner, n_ahead=1, bits=Counting()).draw(n_units)
    assert sorted(drawn) == sorted(pow(s, n, n * n) for s in range(n) if math.gcd(s, n) == 1)
    assert len(set(drawn)) == n_units


def test_the_key_of_somebody_else_is_refused() -> None:
    other = raw_generate_key(64)
    with pytest.raises(ConfigError, match="does not belong"):
        Randomizers(key().public_key, other, n_ahead=1)
    with pytest.raises(ConfigError, match="does not belong"):
        Randomizers(key().public_key, key(has_generator=False), n_ahead=1)


@pytest.mark.parametrize(
    ("has_generator", "by_owner"), [(True, True), (False, False), (False, True)]
)
def test_only_tables_of_public_keys_are_kept(
    has_generator: bool, by_owner: bool, tmp_path: Path
) -> None:
    Randomizers(*owned(has_generator, by_owner), n_ahead=10, cache=tmp_path / "tables").draw(1)
    assert not (tmp_path / "tables").exists()


def test_a_kept_table_gives_the_same_powers(tmp_path: Path) -> None:
    made, loaded, without = (
        Randomizers(key().public_key, n_ahead=100, cache=cache, bits=keyed()).draw(10)
        for cache in (tmp_path / "t", tmp_path / "t", None)
    )
    assert len(list((tmp_path / "t").iterdir())) == 1
    assert made == loaded == without


sizes = st.sampled_from([(256, 128), (1024, 512), (1536, 768), (2048, 1024), (4096, 2048)])
counts = st.integers(0, 10_000_000)


@given(counts, counts, sizes)
def test_the_window_never_shrinks_with_more_work(a: int, b: int, size: tuple[int, int]) -> None:
    fewer, more = sorted((a, b))
    assert choose_window(fewer, *size) <= choose_window(more, *size)


@given(counts, sizes)
def test_the_window_costs_least_within_memory(n_ahead: int, size: tuple[int, int]) -> None:
    exponent_bits, entry_bytes = size

    def cost(window: int) -> int:
        return math.ceil(exponent_bits / window) * (2**window + n_ahead)

    def memory(window: int) -> float:
        return math.ceil(exponent_bits / window) * 2**window * entry_bytes * 64 / 52

    chosen = choose_window(n_ahead, *size)
    fitting = [w for w in range(2, MAX_WINDOW_BITS + 1) if memory(w) <= MAX_TABLE_BYTES]
    assert chosen in fitting
    assert cost(chosen) == min(cost(window) for window in fitting)


def test_windows_at_the_sizes_in_use() -> None:
    """1,000,000 coordinates of 16 bits: 9,804 ciphertexts at 2048 bits, 6,536 at 3072."""
    assert choose_window(9804, 1024, 512) == 10
    assert choose_window(6536, 1536, 768) == 9
    assert choose_window(1, 1024, 512) == 2
