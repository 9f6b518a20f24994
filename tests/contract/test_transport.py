"""What every transport promises, over threads here and over real MPI processes below."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mpcfl.errors import PartyLost, ProtocolError
from mpcfl.net import reduction
from mpcfl.net.memory import MemoryNetwork, MemoryTransport, run_parties
from mpcfl.net.reduction import allreduce
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.ring_sum import open_ring_sum


def check_contract(transport) -> None:
    """Run at every rank; shared with the MPI program by import."""
    rank, n = transport.rank, transport.n_ranks
    others = [r for r in range(n) if r != rank]

    for size in (0, 1, 1000, 300_001):
        gathered = transport.allgather(bytes([rank]) * size)
        assert gathered == [bytes([r]) * size for r in range(n)]

    # Messages of one pair keep their order, whatever the sizes.
    for number in range(5):
        received = transport.exchange({r: bytes([number]) * (5 - number) for r in others}, others)
        assert received == {r: bytes([number]) * (5 - number) for r in others}

    # One-way traffic: only the next rank is told.
    following, previous = (rank + 1) % n, (rank - 1) % n
    if n > 1:
        received = transport.exchange({following: b"on"}, [previous])
        assert received == {previous: b"on"}

    for dim in (0, 1, 2, 7, 10_000):
        vectors = [
            np.arange(dim, dtype=np.uint64) * np.uint64(r + 1) - np.uint64(5) for r in range(n)
        ]
        assert np.array_equal(allreduce(transport, vectors[rank].copy()), sum(vectors)), dim

    check_blocks(transport)
    check_several_at_once(transport)
    check_reductions(transport)

    before = transport.meter.bytes_sent
    transport.allgather(b"x" * 100)
    assert transport.meter.bytes_sent - before == 100 * len(others)


def block(sender: int, receiver: int, salt: int = 0) -> np.ndarray:
    """Bytes that only this pair and direction has; of another length for each, one of them 0."""
    length = 0 if sender > receiver == 0 else 1000 * sender + 77 * receiver + 1 + salt
    return (np.arange(length) * (sender + 3) + receiver + salt).astype(np.uint8)


def check_blocks(transport, seal_bytes: int = 0) -> None:
    """Every rank gets the block that is meant for it, whatever its length."""
    rank, n = transport.rank, transport.n_ranks
    others = [r for r in range(n) if r != rank]
    before = (transport.meter.bytes_sent, transport.meter.bytes_received)

    outgoing = [block(rank, r) for r in range(n)]
    inbox = {r: np.full_like(block(r, rank), 255) for r in others}
    pending = transport.begin_scatter(outgoing, inbox)
    pending.wait()
    assert all(np.array_equal(inbox[r], block(r, rank)) for r in others)
    assert pending.poll(), "what has arrived stays arrived"
    pending.wait()
    # This rank's own block stays, and no byte is counted twice.
    sent = sum(len(outgoing[r]) for r in others)
    got = sum(len(inbox[r]) for r in others)

    own = block(rank, 99)
    inbox = {r: np.empty_like(block(r, 99)) for r in others}
    transport.begin_gather(own, inbox).wait()
    assert all(np.array_equal(inbox[r], block(r, 99)) for r in others)
    sent += (len(own) + seal_bytes) * len(others)
    got += sum(len(inbox[r]) + seal_bytes for r in others)
    meter = transport.meter
    assert (meter.bytes_sent, meter.bytes_received) == (before[0] + sent, before[1] + got)


def check_several_at_once(transport) -> None:
    """Blocks of one kind arrive in the order in which they were begun, however one waits."""
    rank, n = transport.rank, transport.n_ranks
    others = [r for r in range(n) if r != rank]
    scattered, gathered = [], []
    for salt in range(3):
        inbox = {r: np.empty_like(block(r, rank, salt)) for r in others}
        blocks = [block(rank, r, salt) for r in range(n)]
        scattered.append((transport.begin_scatter(blocks, inbox), inbox))
        inbox = {r: np.empty_like(block(r, 50, salt)) for r in others}
        gathered.append((transport.begin_gather(block(rank, 50, salt), inbox), inbox))
    words = np.full(9, rank, dtype=np.uint32)
    reduced = transport.begin_allreduce(words)
    # A message meanwhile disturbs nothing.
    assert transport.allgather(bytes([rank])) == [bytes([r]) for r in range(n)]
    for pending, _ in (*gathered, *scattered):
        pending.wait()
    reduced.wait()
    for salt in range(3):
        assert all(np.array_equal(scattered[salt][1][r], block(r, rank, salt)) for r in others)
        assert all(np.array_equal(gathered[salt][1][r], block(r, 50, salt)) for r in others)
    assert words.tolist() == [sum(range(n))] * 9


def check_reductions(transport) -> None:
    """Sums wrap in long vectors too; shorter words, which MPI would not wrap, are refused."""
    rank, n = transport.rank, transport.n_ranks
    for dtype in (np.uint8, np.uint16, np.int32, np.float64):
        with pytest.raises(TypeError):
            transport.begin_allreduce(np.zeros(2, dtype=dtype))
    for dtype in (np.uint32, np.uint64):
        for dim in (0, 1, 300):
            top = np.iinfo(dtype).max
            vectors = [np.full(dim, top - 7 * r, dtype=dtype) for r in range(n)]
            words = vectors[rank].copy()
            pending = transport.begin_allreduce(words)
            pending.wait()
            assert words.tolist() == [sum(top - 7 * r for r in range(n)) % (top + 1)] * dim
            assert pending.poll()


def leave_behind(transport) -> list[object]:
    """Begin all that can be begun and end nothing; the others may find it, but not as a part of
    what follows."""
    others = [r for r in range(transport.n_ranks) if r != transport.rank]
    transport.exchange(dict.fromkeys(others, b"of another time"), ())
    blocks = [np.full(50, 99, np.uint8)] * transport.n_ranks
    inbox = {r: np.empty(50, np.uint8) for r in others}
    return [
        transport.begin_scatter(blocks, inbox),
        transport.begin_gather(blocks[0], {r: np.empty(50, np.uint8) for r in others}),
    ]


def check_successor(transport, lost: tuple[int, ...]) -> None:
    """Those who are left keep the whole contract among themselves, whatever was under way."""
    left = [r for r in range(transport.n_ranks) if r not in lost]
    transport.watch = watch = lambda: None
    kept = leave_behind(transport)
    following = transport.successor(lost)
    assert following.epoch == transport.epoch + 1
    assert following.members == tuple(transport.members[r] for r in left)
    assert following.names == tuple(transport.names[r] for r in left)
    assert (following.rank, following.n_ranks) == (left.index(transport.rank), len(left))
    assert following.meter is transport.meter
    assert following.watch is watch
    assert following.deadline_s == transport.deadline_s
    check_contract(following)
    check_rings(following)
    del kept


# One chunk, many chunks, and MPI's own reduction.
PATHS = (
    {"_TREE_RANKS": 1 << 20},
    {"_CHUNK_BYTES": 512, "_LEAST_SLICE_WORDS": 1},
    {"_TREE_RANKS": 2, "_TREE_SLICE_BYTES": 1 << 20},
)


def check_rings(transport) -> None:
    """A ring sum is right, wrapping as often as not."""
    dim = 1001
    for bits in (8, 13, 16, 20, 32, 64):
        modulus = 1 << bits
        steps = [(r + 77) ** 9 for r in range(transport.n_ranks)]
        vectors = [np.arange(dim, dtype=object) * step % modulus for step in steps]
        want = sum(vectors) % modulus
        levels, centred = (
            np.where(v >= modulus // 2, v - modulus, v).astype(np.int64)
            for v in (vectors[transport.rank], want)
        )
        session = open_ring_sum(transport, SumSettings(dim, bits, run_id="00" * 16))
        total = session.open(session.aggregate(session.protect(levels)))
        session.close()
        assert np.array_equal(total, centred), bits


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_threads_make_right_sums_over_every_path(n: int) -> None:
    for path in PATHS:
        with mock.patch.multiple(reduction, **path):
            run_parties(n, check_rings)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_threads_keep_the_contract(n: int) -> None:
    run_parties(n, check_contract)


@pytest.mark.parametrize("lost", [(), (0,), (2,), (1, 3)])
def test_threads_that_are_left_keep_the_contract(lost: tuple[int, ...]) -> None:
    def party(transport: MemoryTransport) -> None:
        transport.names = ("north", "south", "east", "west")
        transport.allgather(b"all here")
        if transport.rank in lost:
            leave_behind(transport)
        else:
            check_successor(transport, lost)

    run_parties(4, party)


def test_threads_can_be_left_more_than_once() -> None:
    def party(transport: MemoryTransport) -> None:
        transport.names = ("north", "south", "east", "west")
        if transport.rank == 1:
            return
        second = transport.successor([1])
        if transport.rank == 3:
            leave_behind(second)
            return
        # Ranks are places among those who are left: that of the last one is 2 now.
        check_successor(second, (2,))
        assert second.successor([2]).members == (0, 2)
        assert second.successor([2]).epoch == 2

    run_parties(4, party)


def test_threads_take_what_was_sent_before_a_death_and_then_name_the_dead() -> None:
    network = MemoryNetwork(3, deadline_s=20.0)
    ada, cyd = (MemoryTransport(network, seat, members=(0, 2), epoch=4) for seat in (0, 2))
    cyd.exchange({0: b"last words"}, ())
    network.dead.add(2)
    assert ada.exchange({}, [1]) == {1: b"last words"}
    start = time.monotonic()
    with pytest.raises(PartyLost) as caught:
        ada.exchange({}, [1])
    assert caught.value.ranks == (1,)
    assert time.monotonic() - start < 5.0


def test_threads_that_wait_are_interrupted_by_their_watch() -> None:
    network = MemoryNetwork(2, deadline_s=20.0)
    transport = MemoryTransport(network, 0)

    def raise_alarm() -> None:
        raise PartyLost("heard of it", (1,))

    transport.watch = raise_alarm
    start = time.monotonic()
    with pytest.raises(PartyLost, match="heard of it"):
        transport.exchange({}, [1])
    assert time.monotonic() - start < 5.0


def test_threads_notice_a_buffer_that_is_changed_on_its_way() -> None:
    """Over MPI the others would get something else, now and then; here it is an error."""

    def party(transport: MemoryTransport) -> None:
        words = np.zeros(4, dtype=np.uint8)
        pending = transport.begin_gather(words, {1 - transport.rank: np.empty(4, np.uint8)})
        words[transport.rank] = 1
        pending.wait()

    with pytest.raises(ProtocolError, match="before its bytes had left"):
        run_parties(2, party)


def test_a_failure_reaches_all_threads_and_is_the_one_reported() -> None:
    def party(transport: MemoryTransport) -> None:
        if transport.rank == 1:
            raise KeyError("the cause")
        transport.allgather(b"")

    with pytest.raises(KeyError, match="the cause"):
        run_parties(3, party)


def test_silence_ends_at_the_deadline_and_names_the_party() -> None:
    def party(transport: MemoryTransport) -> None:
        if transport.rank == 0:
            transport.exchange({}, [1])

    with pytest.raises(PartyLost, match="party 1 sent nothing") as caught:
        run_parties(2, party, deadline_s=0.1)
    assert caught.value.ranks == (1,)


PROGRAM = """
import importlib.util, sys
from unittest import mock
from mpi4py import MPI
from mpcfl.net import mpi, mpi_requests, reduction
spec = importlib.util.spec_from_file_location("contract", {contract!r})
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)
transport = mpi.MpiTransport(MPI.COMM_WORLD, 20.0, duplicate={duplicate})
contract.check_contract(transport)
for path in contract.PATHS if {duplicate} else ():
    with mock.patch.multiple(reduction, **path):
        contract.check_rings(transport)
# The same with messages in many pieces, as above 256 MiB.
mpi_requests.PIECE_BYTES = 64
contract.check_contract(transport)
transport.close()
transport.close()
MPI.COMM_WORLD.Barrier()
print("kept", transport.rank)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("duplicate", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_mpi_keeps_the_contract(mpirun, tmp_path: Path, n: int, duplicate: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(contract=__file__, duplicate=duplicate))
    done = mpirun(n, program, timeout_s=60)
    assert done.code == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == sorted(["", *(f"kept {r}" for r in range(n))])


LEFT = """
import importlib.util, os, time
from pathlib import Path
from mpi4py import MPI
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
spec = importlib.util.spec_from_file_location("contract", {contract!r})
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)
transport = MpiTransport(MPI.COMM_WORLD, 20.0, ["north", "south", "east", "west"])
transport.allgather(b"all here")
if transport.rank == 1:
    kept = contract.leave_behind(transport)
    os.kill(os.getpid(), 9)
lost = ()
while lost != (1,):
    # The last words of the dead rank may still be taken.
    try:
        transport.exchange({{}}, [1])
    except PartyLost as error:
        lost = error.ranks
own = MPI.COMM_WORLD.rank
contract.check_successor(transport, lost)
second = transport.successor(lost).successor([])
assert second.members == (0, 2, 3) and second.epoch == 2
assert second.allgather(bytes([own])) == [bytes([0]), bytes([2]), bytes([3])]
print("kept", own, flush=True)
Path(f"kept-{{own}}").touch()
end = time.monotonic() + 15.0
while len(list(Path().glob("kept-*"))) < 3 and time.monotonic() < end:
    time.sleep(0.02)
os._exit(0)
"""


@pytest.mark.mpi
@pytest.mark.open_mpi
def test_mpi_ranks_that_are_left_keep_the_contract(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LEFT.format(contract=__file__))
    done = mpirun(4, program, timeout_s=60)
    assert sorted(done.stdout.split()) == ["0", "2", "3", "kept", "kept", "kept"], done.stderr


LOSS = """
import os, sys, time
from mpi4py import MPI
import numpy as np
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.reduction import allreduce
transport = MpiTransport(MPI.COMM_WORLD, 1.0, ["north", "south", "east"])
transport.allgather(b"")
if transport.rank == 1:
    {fate}
others = [rank for rank in range(3) if rank != transport.rank]
block = np.zeros(100_000, np.uint8)
calls = {{
    "message": lambda: transport.allgather(b"x"),
    "sum": lambda: allreduce(transport, np.zeros(100_000, np.uint64)),
    "blocks": lambda: transport.begin_scatter(
        [block] * 3, {{rank: block.copy() for rank in others}}
    ).wait(),
    "tree": lambda: transport.begin_allreduce(np.zeros(100, np.uint64)).wait(),
}}
for name in {calls}:
    start = time.monotonic()
    try:
        while True:
            calls[name]()
    except PartyLost as error:
        waited = time.monotonic() - start
        print(f"{{transport.rank}}|{{waited:.1f}}|{{error}}|{{error.ranks}}", flush=True)
# One after the other: mpirun may hang when two ranks abort in the same moment.
time.sleep(1.0 + transport.rank)
MPI.COMM_WORLD.Abort(9)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("calls", [["message"], ["sum", "blocks"]], ids="-".join)
@pytest.mark.parametrize(
    ("fate", "words", "at_most_s"),
    [
        pytest.param(
            *("os.kill(os.getpid(), 9)", "south (rank 1) died", 2.0),
            marks=pytest.mark.open_mpi,
            id="dead",
        ),
        pytest.param(
            *("time.sleep(60)", "south (rank 1) did not answer within 1 s", 3.0), id="silent"
        ),
    ],
)
def test_mpi_names_a_dead_and_a_silent_party(
    mpirun, tmp_path: Path, calls: list[str], fate: str, words: str, at_most_s: float
) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOSS.format(fate=fate, calls=calls))
    done = mpirun(3, program, timeout_s=60)
    assert done.code != 0
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert sorted(line[0] for line in told) == sorted("02" * len(calls)), done.stdout + done.stderr
    for _, seconds, text, ranks in told:
        assert words in text
        assert ranks == "(1,)"
        assert float(seconds) < at_most_s


@pytest.mark.mpi
@pytest.mark.parametrize(
    "fate",
    [
        pytest.param("os.kill(os.getpid(), 9)", marks=pytest.mark.open_mpi, id="dead"),
        pytest.param("time.sleep(60)", id="silent"),
    ],
)
def test_mpi_reduction_that_a_party_is_missing_from_ends_at_the_deadline(
    mpirun, tmp_path: Path, fate: str
) -> None:
    """Within a reduction MPI does not tell who is missing, so all others are named."""
    program = tmp_path / "program.py"
    program.write_text(LOSS.format(fate=fate, calls=["tree"]))
    done = mpirun(3, program, timeout_s=60)
    told = [line.split("|") for line in done.stdout.splitlines()]
    assert sorted(line[0] for line in told) == ["0", "2"], done.stdout + done.stderr
    for _, seconds, text, ranks in told:
        assert "south (rank 1)" in text
        assert "1" in ranks
        assert float(seconds) < 3.0


BORROWED = """
from mpi4py import MPI
from mpcfl.net.mpi import MpiTransport

class Watched(MPI.Intracomm):
    made = []
    def Dup(self, *arguments):
        raise AssertionError("a blocking call")
    def Idup(self, *arguments):
        self.made.append("a duplicate")
        return super().Idup(*arguments)
    def Set_errhandler(self, *arguments):
        self.made.append("a handler")
        return super().Set_errhandler(*arguments)

comm = Watched(MPI.COMM_WORLD)
MpiTransport(comm).close()
assert not comm.made, comm.made
comm.Set_errhandler(MPI.ERRORS_ARE_FATAL)
MpiTransport(comm, duplicate=True).close()
assert comm.Get_errhandler() == MPI.ERRORS_ARE_FATAL, "the user's handler was changed"
MpiTransport(comm)
assert comm.Get_errhandler() == MPI.ERRORS_RETURN
comm.Barrier()
print("as it was", flush=True)
"""


@pytest.mark.mpi
def test_mpi_borrows_the_communicator_unless_told_to_duplicate_it(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BORROWED)
    done = mpirun(2, program, timeout_s=60)
    assert done.code == 0, done.stderr
    assert done.stdout.split("\n") == ["as it was", "as it was", ""]


ALONE = """
import time
from mpi4py import MPI
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
if MPI.COMM_WORLD.rank == 1:
    time.sleep(60)
start = time.monotonic()
try:
    MpiTransport(MPI.COMM_WORLD, 1.0, ["north", "south"], duplicate=True)
except PartyLost as error:
    print(f"{time.monotonic() - start:.1f}|{error}|{error.ranks}", flush=True)
    MPI.COMM_WORLD.Abort(9)
"""


@pytest.mark.mpi
def test_mpi_duplicate_has_a_deadline(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(ALONE)
    done = mpirun(2, program, timeout_s=30)
    assert done.stdout, done.stderr
    seconds, text, ranks = done.stdout.splitlines()[0].split("|")
    assert 1.0 <= float(seconds) < 3.0
    assert "south (rank 1) did not answer within 1 s" in text
    assert ranks == "(1,)"


LATE = """
import gc, time, weakref
from mpi4py import MPI
import numpy as np
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
comm = MPI.COMM_WORLD
# Not a duplicate, which would be given up for all ranks.
transport = MpiTransport(comm, 0.5)
comm.Barrier()
size = 8_000_000  # far above what MPI sends without asking the receiver
other = 1 - comm.rank
outgoing = [np.full(size, comm.rank + 7 + number, np.uint8) for number in range(2)]
incoming = [np.zeros(size, np.uint8) for number in range(2)]

def begin(number):
    return transport.begin_scatter([outgoing[number]] * 2, {other: incoming[number]})

if comm.rank == 1:
    comm.Barrier()  # the other rank has given up and forgotten all
    transport.deadline_s = 20.0
    for pending in [begin(0), begin(1)]:
        pending.wait()
    assert [set(np.unique(array).tolist()) for array in incoming] == [{7}, {8}]
else:
    watched = [weakref.ref(array) for array in (*outgoing, *incoming)]
    under_way = [begin(0), begin(1)]
    try:
        # The second one fails with the first: nobody waits for it any more.
        under_way[0].wait()
    except PartyLost:
        transport.close()
    del outgoing, incoming, under_way, transport
    gc.collect()
    kept = [array() is not None for array in watched]
    assert all(kept), f"MPI writes into freed memory: {kept}"
    comm.Barrier()
print("done", flush=True)
comm.Barrier()
"""


@pytest.mark.mpi
def test_mpi_keeps_what_a_failed_exchange_left_open(mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LATE)
    done = mpirun(2, program, timeout_s=60)
    assert done.code == 0, done.stderr
    assert done.stdout.split("\n") == ["done", "done", ""]


KILLED = """
import os, sys, time
from pathlib import Path
from mpi4py import MPI
import numpy as np
import mpcfl.net.reduction as reduction
from mpcfl.errors import PartyLost
from mpcfl.net.mpi import MpiTransport
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.masks import MaskedSource
from mpcfl.secagg.ring_sum import open_ring_sum
reduction._CHUNK_BYTES, reduction._LEAST_SLICE_WORDS = 1 << 14, 1
transport = MpiTransport(MPI.COMM_WORLD, 20.0, ["north", "south", "east", "west"])
session = open_ring_sum(transport, SumSettings(200_000, 20, run_id="00" * 16))
levels = np.full(200_000, transport.rank, dtype=np.int32)
assert set(session.open(session.aggregate(session.protect(levels))).tolist()) == {6}
make = MaskedSource.__call__

def die_half_way(self, number, out):
    if transport.rank == 2 and number == 20:
        os.kill(os.getpid(), 9)
    make(self, number, out)

MaskedSource.__call__ = die_half_way
start = time.monotonic()
try:
    session.aggregate(session.protect(levels))
except PartyLost as error:
    session.close()
    waited = time.monotonic() - start
    print(f"{transport.rank}|{waited:.1f}|{error}|{error.ranks}", flush=True)
# Whoever comes last ends the job, so that nobody is ended before it has told.
Path(f"told-{transport.rank}").touch()
end = time.monotonic() + 15.0
while len(list(Path().glob("told-*"))) < 3 and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(0.2 * transport.rank)
MPI.COMM_WORLD.Abort(9)
"""


@pytest.mark.mpi
@pytest.mark.open_mpi
def test_mpi_rank_that_dies_within_a_ring_sum_is_named_at_all_others(mpirun, tmp_path) -> None:
    """Half of its chunks have left; more than one is under way, and one is being masked."""
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    done = mpirun(4, program, timeout_s=60)
    assert done.code != 0
    told = sorted(line.split("|") for line in done.stdout.splitlines())
    assert [line[0] for line in told] == ["0", "1", "3"], done.stdout + done.stderr
    for _, seconds, text, ranks in told:
        assert "east (rank 2) died" in text
        assert ranks == "(2,)"
        assert float(seconds) < 5.0
