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


def test_shared_sum_can_be_used_by_crypten_unopened():
    def party(transport):
        import numpy as np

        from mpcfl.secagg.base import SumSettings
        from mpcfl.secagg.crypten_sum import open_crypten_sum

        session = open_crypten_sum(transport, SumSettings(2, 32, run_id="55" * 16))
        shared = session.protect(np.array([transport.rank, 3], dtype=np.int64))
        with crypten_bridge.speaking_through(session._communicator, session._generators):
            doubled = (shared + shared).reveal()
        return (doubled - 2 * 2 * 2**31).tolist()

    assert run_parties(2, party) == [[2, 12]] * 2
