"""Alarms over MPI: posted and forgotten, taken in order, also when the other end is dead."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from mpi4py import MPI
from mpcfl.net.mpi import MpiTransport

comm = MPI.COMM_WORLD
transport = MpiTransport(comm, 20.0, ["north", "south", "east"])
port, own = transport.port(), comm.rank


def taken(party, within_s=10.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        message = port.take(party)
        if message is not None:
            return message
        time.sleep(1e-3)
    return None


others = [party for party in range(3) if party != own]
# Nobody waits for anybody: all that is posted lies there, in order, beside the transport.
for number in range(20):
    for party in others:
        port.post(party, bytes([own, number]) * (1 + 100 * number))
assert transport.allgather(bytes([own])) == [b"\\0", b"\\1", b"\\2"]
for number in range(20):
    for party in others:
        assert taken(party) == bytes([party, number]) * (1 + 100 * number), number
assert all(port.take(party) is None for party in others), "nothing comes twice"
assert not any(port.is_dead(party) for party in others)
transport.allgather(b"")
if own == 1:
    port.post(0, b"last words")
    # Gone for good before this process is.
    Path("posted").touch()
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
# Whoever waits for alarms learns of deaths as well.
end, heard = time.monotonic() + 10.0, []
while not port.is_dead(1) and time.monotonic() < end:
    heard.append(port.take(1))
    time.sleep(1e-3)
assert port.is_dead(1)
assert not port.is_dead(2 - own)
said = [message for message in (*heard, taken(1, 0.2)) if message is not None]
assert said == ([b"last words"] if own == 0 else []), said
# No error, no wait: nobody is there to be told, and the others still are.
start = time.monotonic()
for _ in range(50):
    port.post(1, b"are you there?" * 1000)
    assert port.take(1) is None
assert time.monotonic() - start < 5.0
following = transport.successor([1])
port.post(2 - own, b"still here")
assert taken(2 - own) == b"still here"
assert following.allgather(bytes([own])) == [b"\\0", b"\\2"]
print("heard", own, flush=True)
Path(f"heard-{own}").touch()
end = time.monotonic() + 15.0
while len(list(Path().glob("heard-*"))) < 2 and time.monotonic() < end:
    time.sleep(0.02)
os._exit(0)
"""


@pytest.mark.mpi
@pytest.mark.open_mpi
def test_alarms_reach_the_living_and_never_wait_for_the_dead(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = mpirun(3, program, timeout_s=60)
    assert sorted(done.stdout.split()) == ["0", "2", "heard", "heard"], done.stderr
