"""The wire codec: one layout, exact lengths, one encoding per value, limits before anything."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest

from mpcfl.errors import ProtocolError
from mpcfl.net.wire import (
    F64,
    FLAG,
    U8,
    U32,
    U64,
    Field,
    Format,
    Kind,
    ascending,
    blob,
    cut,
    fixed,
    listing,
    optional,
    printable,
    record,
    text,
)

HEADER_BYTES = 10


def of(field: Field) -> Format:
    return Format(Kind.HELLO, value=field)


def with_body(body: bytes, kind: int = Kind.HELLO) -> bytes:
    return b"mpfl\x01" + bytes([kind]) + struct.pack(">I", len(body)) + body


def refusal(field: Field, message: bytes) -> str:
    with pytest.raises(ProtocolError) as refused:
        of(field).decode(message, "south")
    return str(refused.value)


def test_the_layout_is_the_one_of_version_1() -> None:
    form = Format(
        Kind.STATEMENT,
        number=U32,
        reason=optional(text(9)),
        roster=ascending(U8, 4),
        rows=listing(record(key=fixed(2), flag=FLAG), 2),
        real=F64,
        far=U64,
        content=blob(3),
    )
    values: dict[str, Any] = {
        "number": 258,
        "reason": "nö",
        "roster": (1, 3),
        "rows": ({"key": b"ab", "flag": True},),
        "real": 1.0,
        "far": 1 << 40,
        "content": b"\xff",
    }
    message = bytes.fromhex(
        "6d70666c 01 03 0000002e"  # magic, version, kind, 46 bytes of body
        "00000102 01 00000003 6ec3b6 00000002 01 03 00000001 6162 01"
        "3ff0000000000000 0000010000000000 00000001 ff"
    )
    assert form.encode(**values) == message
    assert form.decode(message) == values


def test_kinds_keep_their_numbers() -> None:
    assert {kind.name: int(kind) for kind in Kind} == {
        "HELLO": 1, "SIGNATURE": 2, "STATEMENT": 3, "RUN_NONCE": 4, "GO_ON": 5, "READY": 6,
        "HOST": 7, "FOLDER": 8, "FINISHED": 9, "LEDGER": 10, "LEDGER_MEMORY": 11, "TOTALS": 12,
        "ALARM": 14, "VIEW_SIGNATURE": 15, "HOLDINGS": 16, "SUM_OPTIONS": 17,
        "GRAPH_COMMITMENT": 18, "GRAPH_NONCE": 19, "SHARED_SUM": 20, "TAG_KEY": 21, "TAGS": 22,
        "NONCE": 23, "VERDICT": 24, "KEY_HELD": 25, "HELD_VALUES": 26,
        "PLACED": 27, "CHECKPOINT": 28, "CHECKPOINT_PART": 29, "WRITTEN": 30, "TOTAL_MEMORY": 31,
        "TOTAL_HEAD": 32,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (b"", "has 0 bytes, fewer than a header"),
        (with_body(b"\x07")[: HEADER_BYTES - 1], "has 9 bytes, fewer than a header"),
        (b"mpfk" + with_body(b"\x07")[4:], "is no message of mpcfl"),
        (b"mpfl\x02" + with_body(b"\x07")[5:], "is of version 2 of the wire format, not 1"),
        (with_body(b"\x07", Kind.READY), "is a message of another kind, ready"),
        (with_body(b"\x07", 250), "is a message of another kind, number 250"),
        (with_body(b"\x07") + b"\x00", "has 2 bytes of body and states 1"),
        (with_body(b"\x07")[:-1], "has 0 bytes of body and states 1"),
        (b"mpfl\x01\x01\xff\xff\xff\xff\x07", "has 1 bytes of body and states 4294967295"),
        (with_body(b"\x07\x07"), "has 2 bytes of body, above the limit of its kind"),
        (with_body(b""), "ends within a field"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_the_reason(message: bytes, found: str) -> None:
    assert refusal(U8, message).startswith(
        f"a hello message from south was expected, and what came {found}; "
    )


@pytest.mark.parametrize(
    ("field", "body", "found"),
    [
        (FLAG, b"\x02", "flag that is neither"),
        (optional(U8), b"\x02\x07", "flag that is neither"),
        (optional(U8), b"\x00\x07", "goes on after its last field"),
        (F64, bytes.fromhex("7ff8000000000001"), "NaN of another form"),
        (F64, bytes.fromhex("fff8000000000000"), "NaN of another form"),
        (F64, bytes.fromhex("7ff0000000000001"), "NaN of another form"),
        (text(9), b"\x00\x00\x00\x02\xc1\xa1", "not UTF-8"),  # "a", in a byte too many
        (text(9), b"\x00\x00\x00\x03\xed\xa0\x80", "not UTF-8"),  # half of a surrogate pair
        (text(9), b"\x00\x00\x00\x01\xc3", "not UTF-8"),
        (ascending(U8, 3), b"\x00\x00\x00\x02\x05\x05", "do not ascend"),
        (ascending(U8, 3), b"\x00\x00\x00\x02\x05\x04", "do not ascend"),
        (ascending(F64, 3), b"\x00\x00\x00\x02" + struct.pack(">dd", 1, math.nan), "not ascend"),
        (ascending(text(2), 3), b"\x00\x00\x00\x02" + 2 * b"\x00\x00\x00\x01b", "not ascend"),
        (blob(9), b"\x00\x00\x00\x02a", "ends within a field"),
        (blob(9), b"\x00\x00\x00\x01ab", "goes on after its last field"),
        (listing(U32, 9), b"\x00\x00\x00\x02" + bytes(7), "fewer items than it states"),
        (listing(optional(U8), 9), b"\x00\x00\x00\x01\x01", "ends within a field"),
    ],
)
def test_bytes_that_no_value_has_are_refused(field: Field, body: bytes, found: str) -> None:
    assert found in refusal(field, with_body(body))


@pytest.mark.parametrize(
    ("field", "body"),
    [
        (record(a=blob(2), b=blob(9)), b"\x00\x00\x00\x03abc" + b"\x00\x00\x00\x00"),
        (record(a=text(2), b=blob(9)), b"\x00\x00\x00\x03abc" + b"\x00\x00\x00\x00"),
        (record(a=listing(U8, 2), b=blob(9)), b"\x00\x00\x00\x03abc" + b"\x00\x00\x00\x00"),
        (record(a=ascending(U8, 2), b=blob(9)), b"\x00\x00\x00\x03abc" + b"\x00\x00\x00\x00"),
    ],
)
def test_what_is_complete_but_above_its_limit_is_refused(field: Field, body: bytes) -> None:
    assert "states a length of 3, above the limit of 2" in refusal(field, with_body(body))


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        (U8, 256, ValueError),
        (U8, -1, ValueError),
        (U32, 1 << 32, ValueError),
        (U64, 1 << 64, ValueError),
        (U64, 1.0, ValueError),
        (F64, "1", ValueError),
        (F64, 10**400, ValueError),
        (FLAG, 1, TypeError),
        (fixed(2), b"a", ValueError),
        (fixed(2), "ab", TypeError),
        (blob(2), b"abc", ValueError),
        (blob(2), "ab", TypeError),
        (text(2), "aß", ValueError),  # three bytes
        (text(2), b"ab", TypeError),
        (text(9), "\udc80", ValueError),  # from a file name that is not text
        (listing(U8, 2), (1, 2, 3), ValueError),
        (ascending(U8, 2), (2, 1), ValueError),
        (ascending(U8, 2), (1, 1), ValueError),
        (record(a=U8), {"b": 1}, TypeError),
        (record(a=U8), {}, TypeError),
        (record(a=U8), {"a": 1, "b": 1}, TypeError),
    ],
)
def test_a_value_that_could_not_be_read_is_not_written(
    field: Field, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        of(field).encode(value=value)


def test_a_format_takes_a_value_for_each_of_its_fields_and_no_other() -> None:
    form = Format(Kind.HELLO, one=U8, two=U8)
    with pytest.raises(TypeError, match="each of one, two"):
        form.encode(one=1)
    with pytest.raises(TypeError, match="each of one, two"):
        form.encode(one=1, two=2, three=3)


def test_a_nan_comes_back_whatever_its_form_was() -> None:
    odd = struct.unpack(">d", bytes.fromhex("fff8000000000005"))[0]
    messages = {of(F64).encode(value=value) for value in (math.nan, -math.nan, odd)}
    assert len(messages) == 1
    assert math.isnan(of(F64).decode(messages.pop())["value"])


def test_the_longest_message_has_the_length_that_the_format_states() -> None:
    form = Format(
        Kind.TAGS,
        words=optional(text(7)),
        rows=listing(record(key=fixed(3), held=ascending(U64, 2)), 3),
        rest=blob(11),
    )
    row = {"key": b"abc", "held": (1, 2)}
    assert len(form.encode(words="x" * 7, rows=[row] * 3, rest=b"y" * 11)) == form.max_bytes


def test_an_error_names_kind_and_sender_and_nothing_that_was_in_the_message() -> None:
    form = Format(Kind.TAG_KEY, words=text(20), flag=FLAG)
    changed = form.encode(words="canary", flag=True)[:-1] + b"\x02"
    for sender, origin in (("south", " from south"), ("", "")):
        with pytest.raises(ProtocolError, match=f"^a tag-key message{origin} was ") as refused:
            form.decode(changed, sender)
        assert "canary" not in str(refused.value)
        assert refused.value.__suppress_context__


def test_types_without_a_bound_or_an_order_are_refused_where_they_are_declared() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        listing(fixed(0), 5)
    with pytest.raises(ValueError, match="at least one byte"):
        ascending(fixed(0), 5)
    with pytest.raises(TypeError, match="order"):
        ascending(record(a=U8), 5)
    with pytest.raises(ValueError, match="4294967295 bytes"):
        of(listing(blob(1 << 20), 1 << 12))


@pytest.mark.parametrize(
    ("words", "max_bytes", "expected"),
    [
        ("", 0, ""),
        ("abc", 3, "abc"),
        ("abcd", 3, "..."),
        ("abcdef", 5, "ab..."),
        ("äöü", 6, "äöü"),
        ("äöüä", 7, "äö..."),
        ("äöüä", 6, "ä..."),  # not half of the second letter
        ("abcd", 2, ".."),
        ("a\udc80b", 3, "a?b"),
    ],
)
def test_a_text_is_cut_to_fit(words: str, max_bytes: int, expected: str) -> None:
    assert cut(words, max_bytes) == expected
    assert of(text(max_bytes)).decode(of(text(max_bytes)).encode(value=expected)) == {
        "value": expected
    }


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("", ""),
        ("no file 'a b' (ß€漢🙂)", "no file 'a b' (ß€漢🙂)"),
        ("bad\nrun: complete", "bad?run: complete"),
        ("\x1b[2K\rok\x07\x00", "?[2K?ok??"),
        ("\x9b31m\u2028\x85", "?31m??"),  # escape and line ends in one character
        ("a\u202eb\u200b", "a?b?"),  # turns the direction; has no width
        ("\udc80", "?"),
    ],
)
def test_what_a_peer_says_is_shown_without_what_moves_the_cursor(words: str, shown: str) -> None:
    assert printable(words) == shown
