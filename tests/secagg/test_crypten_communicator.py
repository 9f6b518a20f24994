import pytest
import torch
from torch.distributed import ReduceOp

from mpcfl.errors import ProtocolError
from mpcfl.net.memory import run_parties
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator


def each(n_ranks, work):
    return run_parties(n_ranks, lambda transport: work(TransportCommunicator(transport)))


def own(comm):
    return torch.tensor([comm.get_rank(), 10])


def test_reductions_sum_and_leave_their_input():
    def work(comm):
        tensor = own(comm)
        return comm.all_reduce(tensor).tolist(), tensor.tolist(), comm.reduce(tensor, 1)

    results = each(3, work)
    assert [total for total, _, _ in results] == [[3, 30]] * 3
    assert [tensor for _, tensor, _ in results] == [[0, 10], [1, 10], [2, 10]]
    assert results[1][2].tolist() == [3, 30]
    assert results[0][2] is results[2][2] is None


def test_batched_and_bitwise_reductions():
    def work(comm):
        batch = [own(comm), own(comm).double()]
        xor = comm.all_reduce(own(comm), op=ReduceOp.BXOR)
        return comm.all_reduce(batch, batched=True), comm.reduce(batch, 0, batched=True), xor

    for totals, _, xor in each(3, work):
        assert [total.tolist() for total in totals] == [[3, 30], [3.0, 30.0]]
        assert xor.tolist() == [3, 10]


def test_gather_scatter_broadcast_send_and_barrier():
    def work(comm):
        rank = comm.get_rank()
        gathered = comm.gather(own(comm), 0)
        parts = [torch.tensor([k]) for k in range(3)] if rank == 1 else None
        part = comm.scatter(parts, 1, size=(1,))
        spread = comm.broadcast(own(comm), 2)
        request = comm.irecv(box := torch.zeros(2, dtype=torch.long), (rank - 1) % 3)
        comm.isend(own(comm), (rank + 1) % 3).wait()
        request.wait()
        comm.barrier()
        everybody = comm.all_gather(own(comm))
        return gathered, part, spread, box, everybody

    results = each(3, work)
    assert [one.tolist() for one in results[0][0]] == [[0, 10], [1, 10], [2, 10]]
    assert results[1][0] == [None]
    for rank, (_, part, spread, box, everybody) in enumerate(results):
        assert part.tolist() == [rank]
        assert spread.tolist() == [2, 10]
        assert box.tolist() == [(rank - 1) % 3, 10]
        assert [one.tolist() for one in everybody] == [[0, 10], [1, 10], [2, 10]]


def test_tensor_of_another_size_is_refused():
    def work(comm):
        comm.all_gather(torch.zeros(1 + comm.get_rank(), dtype=torch.long))

    with pytest.raises(ProtocolError, match="bytes"):
        each(2, work)


def test_objects_are_refused_because_crypten_pickles_them():
    for name in ("send_obj", "recv_obj", "broadcast_obj"):
        with pytest.raises(ProtocolError, match="pickle"):
            each(1, lambda comm, name=name: getattr(comm, name)({}, 0))


def test_unknown_reduction_is_refused():
    with pytest.raises(ProtocolError, match="not offered"):
        each(2, lambda comm: comm.all_reduce(own(comm), op=ReduceOp.MAX))


def test_each_thread_speaks_through_its_own_communicator_and_gets_the_old_one_back():
    def work(comm):
        inner = TransportCommunicator(comm._transport)
        found = crypten.communicator.get
        mine, other = crypten_bridge.fresh_generators(), crypten_bridge.fresh_generators()
        with crypten_bridge.speaking_through(comm, mine):
            assert found() is comm
            assert crypten.is_initialized()
            with crypten_bridge.speaking_through(inner, other):
                assert found() is inner
                assert crypten.generators["prev"] is other["prev"]
            assert found() is comm
            assert crypten.generators["prev"] is mine["prev"]
            assert set(crypten.generators) == {"prev", "next", "local", "global"}
            assert len(crypten.generators) == 4
            comm.set_name("alice")
        return comm.get_name(), found

    assert [name for name, _ in each(2, work)] == ["alice"] * 2
    assert not crypten.is_initialized()


def long_tensors(rank, dtype=torch.int64):
    """More than goes to all at once, in several shapes."""
    whole = torch.arange(20_000, dtype=dtype) * (rank + 1) + rank
    return whole.reshape(40, 500)


@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.BXOR, ReduceOp.PRODUCT])
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
def test_long_tensors_are_reduced_in_slices_and_leave_their_input(monkeypatch, op, n_ranks):
    monkeypatch.setattr("mpcfl.net.reduction._CHUNK_BYTES", 1 << 15)
    monkeypatch.setattr("mpcfl.net.reduction._LEAST_SLICE_WORDS", 8)

    def work(comm):
        tensor = long_tensors(comm.get_rank())
        meter = comm._transport.meter
        before = meter.bytes_sent
        total = comm.all_reduce(tensor, op=op)
        assert total.data_ptr() != tensor.data_ptr()
        sent = meter.bytes_sent - before
        again = comm.all_reduce([tensor[1], tensor[2:].T], op=op, batched=True)
        assert torch.equal(tensor, long_tensors(comm.get_rank()))
        return total, again, sent / (tensor.numel() * 8)

    fold = {ReduceOp.SUM: torch.add, ReduceOp.BXOR: torch.bitwise_xor, ReduceOp.PRODUCT: torch.mul}
    expected = long_tensors(0)
    for rank in range(1, n_ranks):
        expected = fold[op](expected, long_tensors(rank))
    for total, again, vectors_sent in each(n_ranks, work):
        assert torch.equal(total, expected)
        assert torch.equal(again[0], expected[1])
        assert torch.equal(again[1], expected[2:].T)
        # Chunks are cut at whole groups of words: 1 % more at most.
        assert vectors_sent <= 2 * (n_ranks - 1) / n_ranks * 1.01


def test_short_batch_goes_to_each_other_rank_in_one_message():
    def work(comm):
        before = comm._transport.meter.messages_sent
        comm.all_reduce([own(comm), own(comm)], op=ReduceOp.BXOR, batched=True)
        return comm._transport.meter.messages_sent - before

    assert each(3, work) == [2, 2, 2]


def test_long_tensor_is_reduced_at_one_rank_piece_by_piece(monkeypatch):
    monkeypatch.setattr("mpcfl.secagg.crypten_communicator._PIECE_BYTES", 1 << 12)

    def work(comm):
        messages = comm._transport.meter.messages_sent
        total = comm.reduce(long_tensors(comm.get_rank()), 2)
        empty = comm.reduce(torch.zeros((0, 3), dtype=torch.int64), 2)
        return total, empty, comm._transport.meter.messages_sent - messages

    results = each(3, work)
    assert torch.equal(results[2][0], sum(long_tensors(rank) for rank in range(3)))
    assert results[2][1].shape == (0, 3)
    assert [messages for _, _, messages in results] == [41, 41, 0]
    assert results[0][0] is results[1][0] is None


def test_all_ranks_may_send_before_any_receives():
    """As CrypTen's replicated shares do; a send that waited for its receiver would never end."""

    class Rendezvous:
        """A transport whose sends wait for their receiver, as those of long messages do."""

        def __init__(self, transport):
            self.transport = transport
            self.rank, self.n_ranks = transport.rank, transport.n_ranks

        def exchange(self, outgoing, sources):
            assert not outgoing or sources, "a lone send would wait for ever"
            return self.transport.exchange(outgoing, sources)

    def work(comm):
        comm._transport = Rendezvous(comm._transport)
        rank, n_ranks = comm.get_rank(), comm.get_world_size()
        tensor = own(comm)
        request = comm.isend(tensor, (rank + 1) % n_ranks)
        tensor += 100  # the message is a copy
        arriving = comm.irecv(box := torch.zeros(2, dtype=torch.long), (rank - 1) % n_ranks)
        request.wait()
        arriving.wait()
        return box.tolist()

    assert each(3, work) == [[2, 10], [0, 10], [1, 10]]


def test_messages_to_one_rank_arrive_in_their_order():
    def work(comm):
        if comm.get_rank() == 0:
            for number in range(3):
                comm.isend(torch.tensor([number]), 1)
            comm.flush()
            comm.flush()
            comm.isend(torch.tensor([3]), 1)
            comm.send(torch.tensor([4]), 1)
            comm.isend(torch.tensor([5]), 1)
            comm.barrier()
            return None
        got = [int(comm.recv(torch.zeros(1, dtype=torch.long), 0)) for _ in range(6)]
        comm.barrier()
        return got

    assert each(2, work)[1] == [0, 1, 2, 3, 4, 5]
