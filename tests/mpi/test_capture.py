"""All traffic of a run, searched for what must not be in it: updates, metrics, records, keys.

Every job runs on a host of its own whose loopback interface carries all messages and is recorded
packet by packet. Each party notes what it computes and every key that it comes to hold
(`watched_rank.py`), and the recorded bytes are searched for all of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from canaries import SHORT_BYTES, Haystack, of_integers, of_key, of_numbers
from hosts import NEEDS_NAMESPACES, Capture, lone_host, over_loopback
from jobs import TASK, WarmServer, run_job

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.open_mpi("hosts are entered by Open MPI's remote agent"),
    NEEDS_NAMESPACES,
]

_WATCHED_RANK = Path(__file__).parent / "watched_rank.py"
_N_PARTIES = 4
_BITS = 32
_JOB = f"""
task = "small_task:SmallTask"

[parties]
count = {_N_PARTIES}
names = ["ada", "ben", "cyd", "dan"]
max_dropout = 1

[privacy]
unit = "record"
epsilon = 12.0
records = 80
sample_rate = 0.5
spare_attempts = 1

[training]
rounds = 2

[aggregation]
backend = "ring"
modulus_bits = {_BITS}
key_bits = 2048
deadline_s = 30
"""
# What a party computes from its data; the sums of it, and what is made of them, are public.
_INTEGERS = ("levels", "noise", "noised")
_NUMBERS = ("records", "gradients", "losses")
# So that what is said only after a loss is said too.
_NOBODY_DIES: dict[str, Any] = {"ranks": []}
_DEATH = {
    "ranks": [3],
    "stage": "aggregate",
    "round": 2,
    "event": "message",
    "count": 5,
    "signal": 9,
}
# Every kind of message of a job.
_SPOKEN = {
    *("HELLO", "SIGNATURE", "STATEMENT", "GO_ON", "TAG_KEY", "TAGS", "NONCE", "VERDICT", "TOTALS"),
    *("ALARM", "VIEW_SIGNATURE", "HOLDINGS"),
}


@dataclass(frozen=True)
class Recorded:
    """What went over the wire in one job, and what its parties noted."""

    traffic: Haystack
    notes: Path

    def arrays(self, name: str, rank: int) -> list[np.ndarray[Any, Any]]:
        found = [np.load(path) for path in self.notes.glob(f"{name}-{rank}-*.npy")]
        assert found, f"party {rank} noted no {name}"
        return found

    def spoken(self) -> set[str]:
        return {line.decode() for rank in range(_N_PARTIES) for line in self.lines("kinds", rank)}

    def lines(self, name: str, rank: int) -> set[bytes]:
        return {
            bytes.fromhex(line) for line in (self.notes / f"{name}-{rank}.txt").read_text().split()
        }


@pytest.fixture
def record(tmp_path: Path, warm: WarmServer) -> Any:
    """Return what runs a job and records it."""
    (tmp_path / "small_task.py").write_text(TASK)
    (tmp_path / "job.toml").write_text(_JOB)

    def run(backend: str, fate: dict[str, Any]) -> Recorded:
        notes = tmp_path / "notes"
        notes.mkdir()
        job = ("job.toml", "--insecure", "--set", f'aggregation.backend="{backend}"')
        arguments = (_WATCHED_RANK, notes, json.dumps(fate), *job, "--out", "out")
        with lone_host() as host, Capture(host) as capture:
            done = run_job(
                warm,
                _N_PARTIES,
                arguments,
                tmp_path,
                command=functools.partial(over_loopback, host),
            )
        assert "done: " in done.stdout, done.stdout + done.stderr
        return Recorded(Haystack(capture.streams()), notes)

    return run


def test_the_search_finds_a_vector_and_a_key_in_every_encoding() -> None:
    def drawn(name: bytes, n_bytes: int) -> bytes:
        return hashlib.shake_256(name).digest(n_bytes)

    values = np.frombuffer(drawn(b"values", 480), "<i8") >> 33
    before, after = drawn(b"before", 999), drawn(b"after", 999)
    encodings = [*of_integers(values, 20), *of_numbers(values / 3e5), *of_key(drawn(b"key", 32))]
    bare = Haystack([before, after])
    for encoding in encodings:
        assert Haystack([after, before + encoding + after]).holds([encoding], SHORT_BYTES)
        assert bare.share(encoding, SHORT_BYTES) == 0
    assert len(encodings) > 150


def test_what_a_plain_sum_sends_is_found(record: Any) -> None:
    """The control: this search, this capture and these notes do find what is there."""
    plain: Recorded = record("plain", _NOBODY_DIES)
    for rank in range(_N_PARTIES):
        # A party sends all but its own slice of the vector.
        for noised in plain.arrays("noised", rank):
            best = max(plain.traffic.share(encoding) for encoding in of_integers(noised, _BITS))
            assert best > 0.5
        assert_nothing_else_shows(plain, rank, [name for name in _INTEGERS if name != "noised"])


@pytest.mark.parametrize("backend", ["ring", "crypten", "paillier"])
def test_no_update_no_metric_and_no_key_is_on_the_wire(backend: str, record: Any) -> None:
    recorded: Recorded = record(backend, _DEATH)
    assert recorded.spoken() >= _SPOKEN
    for rank in range(_N_PARTIES):
        sent = recorded.lines("sent", rank)
        assert any(recorded.traffic.holds([key]) for key in sent), "no public key was found"
        assert_nothing_else_shows(recorded, rank, _INTEGERS)


def assert_nothing_else_shows(recorded: Recorded, rank: int, integers: Sequence[str]) -> None:
    for name in integers:
        for values in recorded.arrays(name, rank):
            assert not recorded.traffic.holds(of_integers(values, _BITS)), name
    for name in _NUMBERS:
        for values in recorded.arrays(name, rank):
            assert not recorded.traffic.holds(of_numbers(values)), name
    assert not recorded.traffic.holds(_single_metrics(recorded, rank), SHORT_BYTES)
    keys = recorded.lines("keys", rank)
    assert len(keys) > 8
    for key in keys:
        assert not recorded.traffic.holds(of_key(key)), "a key"


def _single_metrics(recorded: Recorded, rank: int) -> Iterator[bytes]:
    """Yield each metric by itself, where that is long enough not to be met by chance."""
    for values in recorded.arrays("metrics", rank):
        for value in values.tolist():
            encodings = of_numbers(np.array([value]))
            yield from (encoding for encoding in encodings if len(encoding) >= SHORT_BYTES)
