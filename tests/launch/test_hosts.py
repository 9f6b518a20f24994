"""Hosts on one machine: what they reach, what their links are told, and that nothing is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mpcfl.errors import ConfigError, MpcflError
from mpcfl.launch import links
from mpcfl.launch.hosts import INTERFACE, Host, LinkedHosts, LinkSettings, linked_hosts, obstacle
from mpcfl.launch.mpirun import supervise
from mpcfl.launch.namespaces import members

_OBSTACLE = obstacle(delayed=True)
NEEDS_HOSTS = pytest.mark.skipif(bool(_OBSTACLE), reason=_OBSTACLE)
HALF_MS = 10
_GREET = """
import socket, sys
with socket.create_server(("0.0.0.0", 7)) as server:
    print("ready", flush=True)
    with server.accept()[0] as peer:
        peer.sendall(peer.recv(1))
"""
_CALL = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 7), 10) as peer:
    start = time.perf_counter()
    peer.sendall(b"a")
    peer.recv(1)
    print(time.perf_counter() - start)
"""


def said_on(host: Host, *command: str) -> str:
    """Return what a command prints on a host."""
    line = [*host.enter(), *command]
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=20).stdout


@NEEDS_HOSTS
@pytest.mark.parametrize("round_trip_ms", [0, 2 * HALF_MS])
def test_hosts_reach_each_other_after_the_round_trip_and_nothing_else(round_trip_ms: int) -> None:
    python = (sys.executable, "-S", "-E", "-c")
    with linked_hosts(3, LinkSettings("100mbit", round_trip_ms)) as linked:
        assert (linked.delay == "none") == (round_trip_ms == 0)
        assert linked.addresses == ("198.18.0.1", "198.18.0.2", "198.18.0.3")
        first, _, last = linked.hosts
        greeter = [*last.enter(), *python, _GREET]
        with subprocess.Popen(greeter, stdout=subprocess.PIPE, text=True) as greeting:
            assert greeting.stdout is not None
            assert greeting.stdout.readline() == "ready\n"
            seconds = float(said_on(first, *python, _CALL, last.address))
        # Never sooner; how much later is a matter of the machine.
        assert seconds >= round_trip_ms / 1e3
        for host in linked.hosts:
            found = said_on(host, "ip", "-o", "link").splitlines()
            assert [re.split("[ :@]+", line)[1] for line in found] == ["lo", INTERFACE]
            assert said_on(host, "ip", "route").split()[:3] == ["198.18.0.0/24", "dev", INTERFACE]
            assert len(said_on(host, "ip", "route").splitlines()) == 1
        assert len({said_on(host, "hostname") for host in linked.hosts}) == 3


@NEEDS_HOSTS
@pytest.mark.parametrize("round_trip_ms", [0, 2 * HALF_MS])
def test_what_a_host_sends_is_limited_by_a_bucket(round_trip_ms: int) -> None:
    with linked_hosts(2, LinkSettings("20mbit", round_trip_ms)) as linked:
        for host in linked.hosts:
            found = said_on(host, "tc", "qdisc", "show", "dev", INTERFACE)
            assert found.startswith("qdisc tbf ")
            assert " rate 20Mbit " in found


class System:
    """Keeps the commands of the system instead of running them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, command: Sequence[str]) -> None:
        self.lines.append(" ".join(command))


@pytest.fixture
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[LinkSettings], list[str]]:
    """Return a function that tells which buckets and delays one host's link is given."""

    def plug_in(link: LinkSettings) -> list[str]:
        system = System()
        monkeypatch.setattr(links, "system", system)
        links._plug_in(Host("a", "198.18.0.1", 7), Host("switch", "", 8), "port0", link)
        mark = "tc qdisc add dev "
        return [line.partition(mark)[2] for line in system.lines if mark in line]

    return plug_in


def test_both_ends_of_a_link_have_the_bucket_of_its_rate(
    plugged_in: Callable[[LinkSettings], list[str]],
) -> None:
    bucket = "root tbf rate 1000000000bit burst 250000 latency 20000us"
    assert plugged_in(LinkSettings("1gbit")) == [f"port0 {bucket}", f"{INTERFACE} {bucket}"]


def test_where_the_kernel_has_netem_half_the_round_trip_is_added_on_the_way_to_each_host(
    plugged_in: Callable[[LinkSettings], list[str]],
) -> None:
    bucket = "tbf rate 100000000bit burst 25000 latency 60000us"
    assert plugged_in(LinkSettings("100mbit", 40)) == [
        "port0 root handle 1: netem delay 20000us limit 1000000",
        f"port0 parent 1:1 {bucket}",
        f"{INTERFACE} root {bucket}",
    ]


def test_slow_links_let_two_frames_through_and_have_the_queue_of_a_small_switch() -> None:
    link = LinkSettings("1mbit")
    assert link.burst_bytes == 2 * 1514
    assert link.queue_s == pytest.approx(8 * (1 << 17) / 1e6)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All that hosts need is there, until a test takes something of it away."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(links, "_try_alone", lambda script: None)
    monkeypatch.setattr(links, "has_netem", lambda: False)
    monkeypatch.setattr(links, "_TUN", Path("/dev/null"))
    return monkeypatch


def test_where_all_is_there_nothing_is_in_the_way(as_root: pytest.MonkeyPatch) -> None:
    assert obstacle() == obstacle(delayed=True) == ""


def test_without_root_hosts_are_refused_in_one_sentence(as_root: pytest.MonkeyPatch) -> None:
    as_root.setattr(os, "geteuid", lambda: 1000)
    with (
        pytest.raises(MpcflError, match=r"^making network namespaces needs root; run this"),
        linked_hosts(2, LinkSettings("1gbit")),
    ):
        pytest.fail("there are no hosts")


@pytest.mark.parametrize(("program", "package"), [("tc", "iproute2"), ("nsenter", "util-linux")])
def test_a_program_that_is_missing_is_named_with_its_package(
    as_root: pytest.MonkeyPatch, program: str, package: str
) -> None:
    as_root.setattr(shutil, "which", lambda name: None if name == program else name)
    assert obstacle() == (f"the program {program} is not installed; run: apt-get install {package}")


def test_a_system_without_namespaces_says_so(as_root: pytest.MonkeyPatch) -> None:
    as_root.setattr(links, "_try_alone", lambda script: "unshare failed: not permitted")
    assert obstacle().startswith(
        "this system makes no namespaces (unshare failed: not permitted); in a container, "
    )


def test_a_kernel_without_buckets_says_so(as_root: pytest.MonkeyPatch) -> None:
    as_root.setattr(links, "_try_alone", lambda script: "no tbf" if "tbf" in script else None)
    assert obstacle() == "this kernel has no veth or no tbf (no tbf); use a kernel with both"


def test_without_netem_and_tun_only_a_round_trip_is_refused(as_root: pytest.MonkeyPatch) -> None:
    as_root.setattr(links, "_TUN", Path("/dev/null/tun"))
    assert obstacle() == ""
    assert obstacle(delayed=True) == (
        "a round trip needs a kernel with netem, or /dev/null/tun (Not a directory); load the "
        "kernel's module sch_netem, or tun"
    )
    as_root.setattr(links, "has_netem", lambda: True)
    assert obstacle(delayed=True) == ""


@pytest.mark.parametrize("count", [0, 251])
def test_a_number_of_hosts_that_has_no_addresses_is_refused(count: int) -> None:
    with (
        pytest.raises(ConfigError, match=rf"^{count} hosts can't be made; use 1 to 250$"),
        linked_hosts(count, LinkSettings("1gbit")),
    ):
        pytest.fail("there are no hosts")


def are_gone(pids: Sequence[int]) -> bool:
    """Tell whether processes end within five seconds, or have."""
    end = time.monotonic() + 5.0
    while any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def _no_trace() -> Iterator[None]:
    """After the test no interface is left where the tests run."""
    yield
    listed = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)  # noqa: S607
    assert INTERFACE not in listed.stdout


@NEEDS_HOSTS
@pytest.mark.usefixtures("_no_trace")
def test_hosts_are_taken_away_after_an_error_with_all_that_runs_on_them() -> None:
    holders: list[int] = []
    left: list[subprocess.Popen[bytes]] = []

    def fail() -> None:
        with linked_hosts(2, LinkSettings("1gbit")) as linked:
            first = linked.hosts[0]
            left.append(subprocess.Popen([*first.enter(), "sleep", "60"], start_new_session=True))
            holders.extend(host.holder for host in linked.hosts)
            while left[0].pid not in members(first.holder):
                time.sleep(0.01)
            raise MpcflError("something went wrong")

    with pytest.raises(MpcflError, match="something went wrong"):
        fail()
    assert left[0].wait(timeout=5) == -signal.SIGKILL
    assert are_gone(holders)


# A signal that comes just before a long sleep would be acted on after it, hence many short ones.
_LASTING = """
import os, subprocess, sys, time
from pathlib import Path
from mpcfl.launch.hosts import LinkSettings, linked_hosts
from mpcfl.launch.namespaces import members

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()

with linked_hosts(2, LinkSettings("1gbit", float(sys.argv[1]))) as linked:
    made = children()
    left = subprocess.Popen([*linked.hosts[0].enter(), "sleep", "20"], start_new_session=True)
    while left.pid not in members(linked.hosts[0].holder):
        time.sleep(0.01)
    print(made, left.pid, flush=True)
    for _ in range(3000):
        time.sleep(0.02)
"""


@NEEDS_HOSTS
@pytest.mark.usefixtures("_no_trace")
@pytest.mark.parametrize(
    ("number", "round_trip_ms"),
    [
        (signal.SIGINT, 0),
        (signal.SIGTERM, 10),
        (signal.SIGHUP, 0),
        (signal.SIGKILL, 0),
        (signal.SIGKILL, 10),
    ],
)
def test_hosts_switch_and_relay_are_gone_when_a_signal_ends_the_program(
    listening: Callable[[], None], tmp_path: Path, number: signal.Signals, round_trip_ms: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _LASTING, str(round_trip_ms)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=listening,
    ) as process:
        assert process.stdout is not None
        *made, left = (int(word) for word in process.stdout.readline().split())
        # Two hosts, and their switch or the relay.
        assert len(made) == 3
        process.send_signal(number)
        assert process.wait(timeout=10) != 0
    assert are_gone(made)
    if number == signal.SIGKILL:
        # Nobody was left to end it.
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)
    assert are_gone([left])
    assert list(tmp_path.iterdir()) == []


@NEEDS_HOSTS
@pytest.mark.usefixtures("_no_trace")
def test_a_step_that_the_system_refuses_is_told_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LinkSettings, "bucket", lambda self, overhead=0: ["tbf", "rate", "fast"])
    with (
        pytest.raises(MpcflError, match=r"`nsenter .* tc qdisc .* fast` failed: .*fast"),
        linked_hosts(2, LinkSettings("1gbit")),
    ):
        pytest.fail("the link has no rate")


def test_links_without_a_rate_or_with_a_negative_round_trip_are_refused() -> None:
    with pytest.raises(ConfigError, match="'fast' is no rate of a link"):
        LinkSettings("fast")
    with pytest.raises(ConfigError, match="round trip of -1 ms; use 0 or more"):
        LinkSettings("1gbit", -1)


_RANK = """
import json, os, socket, sys
import numpy as np
from mpi4py import MPI
from mpcfl.bench.link_speed import measure_link, transmitted_bytes

comm = MPI.COMM_WORLD
interface, addresses = sys.argv[1], json.loads(sys.argv[2])
found = measure_link(comm, addresses, 1e8)
assert (found is None) == (comm.Get_rank() != 0)
before = transmitted_bytes(interface)
own, total = np.full(100_000, comm.Get_rank(), dtype=np.int64), np.empty(100_000, dtype=np.int64)
comm.Barrier()
comm.Allreduce(own, total)
comm.Barrier()
print(json.dumps({
    "rank": comm.Get_rank(),
    "name": socket.gethostname(),
    "gloo": os.environ["GLOO_SOCKET_IFNAME"],
    "sum": sorted(set(total.tolist())),
    "sent": transmitted_bytes(interface) - before,
    "round_trip_s": found and found.round_trip_s,
}), flush=True)
"""


@NEEDS_HOSTS
@pytest.mark.mpi
@pytest.mark.open_mpi("hosts are entered by Open MPI's remote agent")
def test_mpi_runs_one_rank_on_each_host_and_its_messages_are_on_the_interface() -> None:
    lines: list[str] = []
    with linked_hosts(3, LinkSettings("100mbit", 2 * HALF_MS)) as linked:
        program = ["-c", _RANK, linked.interface, json.dumps(linked.addresses)]
        outcome = supervise(linked.mpi(3, program), lines.append, timeout_s=60)
        assert outcome.exit_code == 0, outcome.stderr_tail
        assert_all_is_over(linked)
    found = sorted((json.loads(line) for line in lines), key=lambda said: said["rank"])
    assert [said["name"] for said in found] == [host.name for host in linked.hosts]
    for said in found:
        assert said["sum"] == [3]
        assert said["gloo"] == INTERFACE
        # Every rank sends at least what it has, all of it once.
        assert said["sent"] >= 800_000
    assert found[0]["round_trip_s"] >= 2 * HALF_MS / 1e3


def assert_all_is_over(linked: LinkedHosts) -> None:
    """Nothing but the holders runs on the hosts soon after a job."""
    left = [pid for host in linked.hosts for pid in members(host.holder) if pid != host.holder]
    assert are_gone(left)
