"""Bits and derived keys: known answers, independence, and what must never happen to a source."""

from __future__ import annotations

import copy
import os
import pickle  # noqa: TID251 - to see that it fails

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.hazmat.bits import (
    KEY_BYTES,
    SystemBits,
    derive_key,
    domain_tag,
    raw_keyed_bits,
)


def test_keystream_is_aes_256_ctr() -> None:
    """AES-256 of the zero block under the zero key, NIST AESAVS (also in SP 800-38A tooling)."""
    first = raw_keyed_bits(bytes(KEY_BYTES)).words(2).tobytes()
    assert first.hex() == "dc95c078a2408989ad48a21492842087"


@given(st.lists(st.integers(0, 70_000), max_size=6))
def test_reading_in_pieces_gives_the_same_stream(pieces: list[int]) -> None:
    key = bytes(range(KEY_BYTES))
    bits = raw_keyed_bits(key)
    read = [bits.words(count) for count in pieces]
    whole = raw_keyed_bits(key).words(sum(pieces))
    assert np.array_equal(np.concatenate([*read, np.empty(0, np.uint64)]), whole)


@given(
    st.lists(
        st.tuples(st.sampled_from(["u1", "<u2", "<u4", "<u8", "<i8"]), st.integers(0, 50_000)),
        max_size=6,
    )
)
def test_stream_is_one_of_bytes_whatever_words_are_filled(fills: list[tuple[str, int]]) -> None:
    key = bytes(range(KEY_BYTES))
    bits = raw_keyed_bits(key)
    read = b""
    for dtype, count in fills:
        out = np.zeros(count, dtype=dtype)
        bits.fill(out)
        read += out.tobytes()
    assert raw_keyed_bits(key).words(len(read) // 8 + 1).tobytes()[: len(read)] == read


def test_memory_that_is_not_contiguous_is_refused_and_not_half_filled() -> None:
    out = np.zeros(10, dtype=np.uint64)
    with pytest.raises((TypeError, BufferError, ValueError)):
        raw_keyed_bits(bytes(KEY_BYTES)).fill(out[::2])
    assert not out.any()


def test_two_system_sources_share_nothing() -> None:
    first, second = SystemBits().words(1000), SystemBits().words(1000)
    assert not np.intersect1d(first, second).size


def test_a_child_process_may_not_repeat_the_stream() -> None:
    bits = SystemBits()
    child = os.fork()
    if child == 0:
        try:
            bits.words(1)
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_source_is_redacted_and_stays_in_its_process() -> None:
    bits = raw_keyed_bits(b"k" * KEY_BYTES)
    assert "6b" not in repr(bits)
    assert "kk" not in repr(bits)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="must not leave"):
            leave(bits)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        raw_keyed_bits(bytes(length))


parts = st.lists(st.one_of(st.integers(0, 300), st.text(max_size=4)), max_size=4)


@given(parts, parts)
def test_tags_of_different_uses_never_meet(first: list[int | str], second: list[int | str]) -> None:
    assert (domain_tag("p", *first) == domain_tag("p", *second)) == (first == second)


def test_derived_keys_depend_on_secret_and_tag() -> None:
    keys = {derive_key(s, domain_tag(p, r)) for s in (b"a", b"b") for p in "xy" for r in (1, 2)}
    assert len(keys) == 8
    assert all(len(key) == KEY_BYTES for key in keys)


def test_hkdf_known_answer() -> None:
    """RFC 5869, test case 3: SHA-256, no salt, no info."""
    assert derive_key(b"\x0b" * 22, b"").hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )
