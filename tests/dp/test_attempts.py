"""The guard of one party: what it lets pass, what it refuses, and what its file then holds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcfl.dp.attempt_events import canonical_spans, overlap, union
from mpcfl.dp.attempts import AttemptLog, EventKind, Failure, opened_digest, read_log
from mpcfl.errors import LedgerError, OutOfOrder

ALL = [(0, 10)]
LEFT, RIGHT = [(0, 4)], [(4, 10)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "transcript" / "party-1.jsonl"


@pytest.fixture
def log(path: Path) -> AttemptLog:
    """Return party 1 of three, in the first view."""
    log = AttemptLog(path, 1)
    log.view(0, (0, 1, 2), "v0")
    return log


def charge_and_begin(log: AttemptLog, round_id: int = 0, attempt: int = 0) -> None:
    log.charge(round_id, attempt, (0, 1, 2), ALL)
    log.begin(round_id, attempt)


def lose_a_party(log: AttemptLog) -> None:
    """Begin a round, learn its left part, lose party 2, and enter the next view."""
    charge_and_begin(log)
    log.open(0, 0, LEFT, "left")
    log.fail(0, 0, Failure.PARTY_LOST)
    log.view(1, (0, 1), "v1")


def test_a_round_that_comes_through_is_written_in_its_order(log: AttemptLog, path: Path) -> None:
    charge_and_begin(log)
    log.open(0, 0, RIGHT, "right")
    log.open(0, 0, LEFT, "left", source=2)
    log.settle(0)
    charge_and_begin(log, round_id=1)
    log.close()
    events = read_log(path)
    assert [event.kind.value for event in events] == (
        ["start", "view", "charge", "begin", "open", "open", "settle", "charge", "begin"]
    )
    assert events[0].party == 1
    assert events[2].roster == (0, 1, 2)
    assert events[5].source == 2
    assert {event.epoch for event in events[1:]} == {0}


def test_a_retry_is_for_what_is_not_known(log: AttemptLog) -> None:
    lose_a_party(log)
    log.charge(0, 1, (0, 1), RIGHT)
    log.begin(0, 1)
    log.open(0, 1, RIGHT, "right")
    log.settle(0)
    assert log.known(0) == ((0, 10),)


def test_what_a_peer_held_is_taken_before_the_retry(log: AttemptLog) -> None:
    lose_a_party(log)
    log.open(0, 0, [(4, 7)], "middle", source=0)
    with pytest.raises(OutOfOrder, match="asks for coordinates that are known"):
        log.charge(0, 1, (0, 1), RIGHT)
    log.charge(0, 1, (0, 1), [(7, 10)])


def begin_before_charge(log: AttemptLog) -> None:
    log.begin(0, 0)


def begin_twice(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.begin(0, 0)


def begin_in_a_later_view(log: AttemptLog) -> None:
    log.charge(0, 0, (0, 1, 2), ALL)
    # The same members: the keys are others all the same.
    log.view(1, (0, 1, 2), "v1")
    log.begin(0, 0)


def begin_after_the_end(log: AttemptLog) -> None:
    log.charge(0, 0, (0, 1, 2), ALL)
    log.fail(0, 0, Failure.REFUSED)
    log.begin(0, 0)


def begin_what_became_known(log: AttemptLog) -> None:
    lose_a_party(log)
    log.charge(0, 1, (0, 1), RIGHT)
    log._attempts[0, 0].known = ((0, 10),)
    log.begin(0, 1)


def charge_before_a_view(log: AttemptLog) -> None:
    AttemptLog(None, 1).charge(0, 0, (0, 1, 2), ALL)


def charge_another_roster(log: AttemptLog) -> None:
    log.charge(0, 0, (0, 1), ALL)


def charge_nothing(log: AttemptLog) -> None:
    log.charge(0, 0, (0, 1, 2), [])


def charge_a_number_again(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.fail(0, 0, Failure.CHECK_FAILED)
    log.charge(0, 0, (0, 1, 2), ALL)


def charge_beside_another_attempt(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.charge(0, 1, (0, 1, 2), ALL)


def charge_beside_another_round(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.fail(0, 0, Failure.STOPPED)
    log.charge(1, 0, (0, 1, 2), ALL)


def charge_an_earlier_round(log: AttemptLog) -> None:
    log.charge(3, 0, (0, 1, 2), ALL)
    log.fail(3, 0, Failure.STOPPED)
    log.charge(2, 0, (0, 1, 2), ALL)


def charge_a_settled_round(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.open(0, 0, ALL, "all")
    log.settle(0)
    log.charge(0, 1, (0, 1, 2), ALL)


def charge_more_than_there_is(log: AttemptLog) -> None:
    lose_a_party(log)
    log.charge(0, 1, (0, 1), [(4, 11)])


def open_what_was_not_begun(log: AttemptLog) -> None:
    log.charge(0, 0, (0, 1, 2), ALL)
    log.open(0, 0, LEFT, "left", source=0)


def open_other_coordinates(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.open(0, 0, [(4, 11)], "more")


def open_another_value(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.open(0, 0, LEFT, "left")
    log.open(0, 0, LEFT, "other", source=0)


def open_from_two_attempts(log: AttemptLog) -> None:
    lose_a_party(log)
    log.charge(0, 1, (0, 1), RIGHT)
    log.begin(0, 1)
    log._attempts[0, 0].known = ((0, 10),)
    log.open(0, 1, RIGHT, "right")


def open_late(log: AttemptLog) -> None:
    lose_a_party(log)
    log.charge(0, 1, (0, 1), RIGHT)
    log.open(0, 0, RIGHT, "late")


def open_for_a_stranger(log: AttemptLog) -> None:
    lose_a_party(log)
    log.open(0, 0, RIGHT, "right", source=2)


def settle_a_half(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.open(0, 0, LEFT, "left")
    log.settle(0)


def settle_twice(log: AttemptLog) -> None:
    charge_and_begin(log)
    log.open(0, 0, ALL, "all")
    log.settle(0)
    log.settle(0)


def settle_nothing(log: AttemptLog) -> None:
    log.settle(0)


def fail_twice(log: AttemptLog) -> None:
    log.charge(0, 0, (0, 1, 2), ALL)
    log.fail(0, 0, Failure.STOPPED)
    log.fail(0, 0, Failure.STOPPED)


def enter_two_views_of_one_epoch(log: AttemptLog) -> None:
    log.view(1, (0, 1), "v1")
    log.view(1, (1, 2), "w1")


def enter_a_view_without_oneself(log: AttemptLog) -> None:
    log.view(1, (0, 2), "v1")


def enter_a_view_with_a_lost_party(log: AttemptLog) -> None:
    log.view(1, (0, 1), "v1")
    log.view(2, (0, 1, 2), "v2")


def enter_a_view_without_order(log: AttemptLog) -> None:
    log.view(1, (1, 0), "v1")


REFUSED = {
    begin_before_charge: "never charged",
    begin_twice: "begun before",
    begin_in_a_later_view: "another view",
    begin_after_the_end: "has ended",
    begin_what_became_known: "would open coordinates that are known",
    charge_before_a_view: "before any view",
    charge_another_roster: "another roster",
    charge_nothing: "no coordinate",
    charge_a_number_again: "that number was used before",
    charge_beside_another_attempt: "goes on",
    charge_beside_another_round: "goes on",
    charge_an_earlier_round: "after a later round",
    charge_a_settled_round: "its round is settled",
    charge_more_than_there_is: "asks for more",
    open_what_was_not_begun: "never begun",
    open_other_coordinates: "not for these coordinates",
    open_another_value: "two different values",
    open_from_two_attempts: "that attempt 0 has opened",
    open_late: "a later attempt is charged",
    open_for_a_stranger: "told by a stranger",
    settle_a_half: "not all of it is known",
    settle_twice: "settled twice",
    settle_nothing: "not all of it is known",
    fail_twice: "ended before",
    enter_two_views_of_one_epoch: "comes after epoch 1",
    enter_a_view_without_oneself: "without this party",
    enter_a_view_with_a_lost_party: "had not",
    enter_a_view_without_order: "ascending",
}


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_refused_and_not_written(
    mistake: Callable[[AttemptLog], None], log: AttemptLog, path: Path
) -> None:
    written: list[bytes] = []
    append = log._write

    def watched(event: object) -> None:
        append(event)  # type: ignore[arg-type]
        written.append(path.read_bytes())

    log._write = watched  # type: ignore[method-assign]
    with pytest.raises(OutOfOrder, match=REFUSED[mistake]) as caught:
        mistake(log)
    assert "sends nothing more" in str(caught.value)
    assert not written or path.read_bytes() == written[-1]


def test_the_same_value_told_again_is_written_once(log: AttemptLog, path: Path) -> None:
    charge_and_begin(log)
    for source in (None, 0, 2):
        log.open(0, 0, [(0, 2), (2, 4)], "left", source)
    assert [event.kind for event in read_log(path)].count(EventKind.OPEN) == 1


def test_a_resumed_process_takes_no_number_again(log: AttemptLog, path: Path) -> None:
    charge_and_begin(log)
    # The process dies here, without closing.
    later = AttemptLog(path, 1)
    later.view(0, (0, 1), "w0")
    with pytest.raises(OutOfOrder, match="number was used before"):
        later.charge(0, 0, (0, 1), ALL)
    assert (log.next_attempt(0), later.next_attempt(0), later.next_attempt(1)) == (1, 1, 0)
    later.charge(0, 1, (0, 1), ALL)
    assert [event.kind for event in read_log(path)].count(EventKind.START) == 2


def test_a_torn_last_line_is_left_out_and_cut_off(log: AttemptLog, path: Path) -> None:
    charge_and_begin(log)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema":1,"kind":"op')
    assert read_log(path)[-1].kind is EventKind.BEGIN
    AttemptLog(path, 1).close()
    assert path.read_bytes().startswith(whole + b'{"schema":1,"kind":"start"')


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b"not json",
        b'{"schema":1}',
        b'{"schema":2,"kind":"begin","epoch":0}',
        b'{"schema":1,"kind":"steal","epoch":0}',
        b'{"schema":1,"kind":"begin","epoch":true}',
        b'{"schema":1,"kind":"begin","epoch":0,"round_id":"0"}',
        b'{"schema":1,"kind":"begin","epoch":0,"extra":0}',
        b'{"schema":1,"kind":"view","epoch":0,"roster":["0"]}',
        b'{"schema":1,"kind":"open","epoch":0,"spans":[[3,3]]}',
        b'{"schema":1,"kind":"open","epoch":0,"spans":[[0,3],[2,4]]}',
        b'{"schema":1,"kind":"open","epoch":0,"digest":7}',
    ],
)
def test_a_finished_line_that_nobody_wrote_is_named(
    log: AttemptLog, path: Path, line: bytes
) -> None:
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(LedgerError, match=r"party-1.jsonl: line 3 is not an event"):
        read_log(path)
    with pytest.raises(LedgerError, match="line 3"):
        AttemptLog(path, 1)


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="can't keep the transcript"):
        AttemptLog(tmp_path / "file" / "party-0.jsonl", 0)
    with pytest.raises(LedgerError, match="can't read the transcript"):
        read_log(tmp_path / "none.jsonl")


@pytest.mark.parametrize("written", [None, 3])
def test_a_full_disk_stops_the_party(
    log: AttemptLog, path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    """The disk refuses a line, or takes a few bytes of it; the party must not go on then."""

    def write(_descriptor: int, _content: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", write)
        with pytest.raises(LedgerError, match="space"):
            log.charge(0, 0, (0, 1, 2), ALL)
    with pytest.raises(OutOfOrder, match="never charged"):
        log.begin(0, 0)
    assert [event.kind for event in read_log(path)] == [EventKind.START, EventKind.VIEW]


def test_the_file_holds_no_value(log: AttemptLog, path: Path) -> None:
    values = np.array([1234567891, -987654321], dtype=np.int32)
    charge_and_begin(log)
    log.open(0, 0, [(0, 2)], opened_digest(values))
    text = path.read_text()
    assert "1234567891" not in text
    assert "987654321" not in text
    allowed = {"schema", "kind", "epoch", "round_id", "attempt", "roster", "spans", "digest"}
    assert all(set(json.loads(line)) <= allowed | {"party"} for line in text.splitlines())


def test_digest_is_of_values_and_not_of_their_type() -> None:
    values = np.array([5, -6], dtype=np.int32)
    tag = b"\0\0\0\x08mpcfl/v1\0\0\0\x0aopened-sum"
    expected = hashlib.sha256(tag + values.astype("<i8").tobytes()).hexdigest()
    assert opened_digest(values) == opened_digest(values.astype(np.int64)) == expected
    assert opened_digest(values[::-1]) != expected


@given(st.lists(st.booleans(), max_size=12), st.lists(st.booleans(), max_size=12))
def test_spans_are_sets_of_coordinates(left: list[bool], right: list[bool]) -> None:
    def spans(bits: list[bool]) -> tuple[tuple[int, int], ...]:
        return canonical_spans((i, i + 1) for i, bit in enumerate(bits) if bit)

    def members(of: tuple[tuple[int, int], ...]) -> set[int]:
        return {i for start, stop in of for i in range(start, stop)}

    one, two = spans(left), spans(right)
    assert members(one) == {i for i, bit in enumerate(left) if bit}
    assert overlap(one, two) == canonical_spans((i, i + 1) for i in members(one) & members(two))
    assert union(one, two) == canonical_spans((i, i + 1) for i in members(one) | members(two))
