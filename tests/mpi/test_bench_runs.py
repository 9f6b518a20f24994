"""`mpcfl bench` with real launches: on links between hosts, and after an interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.bench.record import SETUP, Record, load_records
from mpcfl.launch.hosts import obstacle

pytestmark = pytest.mark.mpi

_OBSTACLE = obstacle(delayed=True)
_DEADLINE_S = 60.0
LINKED = """
name = "linked"
comparable = false
runs = 1
values = 1
warmups = 0
backends = ["paillier"]
custody = ["clients"]
key_bits = [2048]
parties = [2]
dims = [60000]
links = ["100mbit"]
round_trip_ms = [6]
"""
LONG = """
name = "long"
comparable = false
runs = 3
values = 1
warmups = 0
backends = ["plain"]
parties = [2]
dims = [10]
"""
# IP's and TCP's in front of every packet, time stamps included; and Ethernet's, which a relay
# does without.
_IP_AND_TCP, _ETHERNET = 20 + 32, 14


@pytest.mark.skipif(bool(_OBSTACLE), reason=_OBSTACLE)
@pytest.mark.open_mpi("hosts are entered by Open MPI's remote agent")
def test_a_cell_on_links_knows_its_link_and_what_the_kernel_sent(
    mpcfl_command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "linked.toml").write_text(LINKED)
    done = mpcfl_command("bench", "linked.toml", "--out", "R")
    assert done.code == 0, done.stdout + done.stderr
    (record,) = load_records(tmp_path / "R")
    assert record.link is not None
    assert record.measured is not None
    assert record.link.delay in {"netem", "relay"}
    assert record.link.one_way_bit_per_s > 0
    # Nothing arrives before its time; how much later is no matter of tests.
    assert record.link.round_trip_s > 0.006
    # The aggregator has a host of its own.
    assert len(record.measured.interface_bytes) == 3
    _check_kernel_bytes(record)


def _check_kernel_bytes(record: Record) -> None:
    """Without the headers of its packets, the kernel sent what the transport counted."""
    assert record.measured is not None
    assert record.link is not None
    stages = [by_rank for stage, by_rank in record.measured.bytes_sent.items() if stage != SETUP]
    payload, sent = sum(map(sum, stages)), sum(record.measured.interface_bytes)
    packet = _IP_AND_TCP + (0 if record.link.delay == "relay" else _ETHERNET)
    carried = sent - packet * sum(record.measured.interface_packets)
    assert payload <= carried < 1.03 * payload


def test_an_interrupted_grid_is_gone_on_with(
    mpcfl_command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "long.toml").write_text(LONG)
    command = [sys.executable, "-m", "mpcfl.launch", "bench", "long.toml", "--out", "R"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as first:
        _wait_for_a_record(tmp_path / "R" / "records.jsonl")
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=_DEADLINE_S)
    assert first.returncode == 130
    assert "go on with: mpcfl bench --resume R" in said
    before = load_records(tmp_path / "R")
    assert 1 <= len(before) < 3
    done = mpcfl_command("bench", "--resume", "R")
    assert done.code == 0, done.stdout + done.stderr
    after = load_records(tmp_path / "R")
    assert after[: len(before)] == before
    assert sorted(record.run for record in after) == [0, 1, 2]
    assert all(record.failure is None for record in after)


def _wait_for_a_record(file: Path) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not file.exists() or b"\n" not in file.read_bytes():
        assert time.monotonic() < end, "no record came"
        time.sleep(0.02)
