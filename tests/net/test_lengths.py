"""A block of another length than its buffer is an error, over threads and over MPI."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mpcfl.errors import PartyLost, ProtocolError
from mpcfl.net.memory import run_parties


@pytest.mark.parametrize("sent", [0, 1, 9, 11])
def test_threads_refuse_a_block_of_another_length(sent):
    def party(transport):
        other = 1 - transport.rank
        inbox = {other: np.empty(10, np.uint8)}
        own = np.zeros(10 if transport.rank else sent, np.uint8)
        transport.begin_gather(own, inbox).wait()

    with pytest.raises(ProtocolError, match=f"rank 0 sent a block of {sent} bytes, expected are 1"):
        run_parties(2, party, deadline_s=5)


PROGRAM = """
import numpy as np
from mpi4py import MPI
from mpcfl.errors import MpcflError
from mpcfl.net.mpi import MpiTransport
for sent in (9, 11):
    transport = MpiTransport(MPI.COMM_WORLD, 3.0, duplicate=True)
    own = np.zeros(10 if transport.rank else sent, np.uint8)
    try:
        pending = transport.begin_gather(own, {1 - transport.rank: np.empty(10, np.uint8)})
        pending.wait()
        print("RESULT", transport.rank, sent, "accepted", flush=True)
    except MpcflError as error:
        print("RESULT", transport.rank, sent, type(error).__name__, error, flush=True)
    MPI.COMM_WORLD.Barrier()
"""


@pytest.mark.mpi
def test_mpi_refuses_a_block_of_another_length(mpirun, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = mpirun(2, program)
    assert done.code == 0, done.stderr
    for sent in (9, 11):
        answers = re.findall(rf"RESULT 1 {sent} (\w+)(.*)", done.stdout)
        assert [name for name, _ in answers] == [ProtocolError.__name__], done.stdout
        assert "rank 0 sent a block of another length" in answers[0][1]
    # The sender of what doesn't fit may see nothing, or that the other one gave up.
    words = set(re.findall(r"RESULT 0 \d+ (\w+)", done.stdout))
    assert words <= {"accepted", PartyLost.__name__, ProtocolError.__name__}
