"""CrypTen's random words: from keystreams between all pairs, where they are in force."""

import numpy as np
import pytest
import torch

from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.net.channel import agree_pair_secrets
from mpcfl.net.memory import run_parties
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.base import SumId
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator
from mpcfl.secagg.crypten_streams import WordStreams, computing_generators

ArithmeticSharedTensor = crypten.mpc.primitives.ArithmeticSharedTensor
BinarySharedTensor = crypten.mpc.primitives.BinarySharedTensor
RUN_ID = "77" * 16
SIZE = (3, 40)
CPU = torch.device("cpu")


def keyed(*numbers):
    return [raw_keyed_bits(bytes([number]) * 32) for number in numbers]


def zero_shares(n_ranks, kind, peers=None):
    """Return every rank's share of CrypTen's zero, shape (n_ranks, 120), uint64."""

    def party(transport):
        chosen = None if peers is None else peers(transport.rank)
        secrets = agree_pair_secrets(transport, RUN_ID, peers=chosen)
        generators = computing_generators(transport.rank, secrets, RUN_ID, SumId(0))
        with crypten_bridge.speaking_through(TransportCommunicator(transport), generators):
            return kind.PRZS(SIZE).share.numpy().view(np.uint64).ravel()

    return np.array(run_parties(n_ranks, party))


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_zero_is_shared_by_all_pairs_and_cancels(n_ranks):
    arithmetic = zero_shares(n_ranks, ArithmeticSharedTensor)
    assert not arithmetic.sum(axis=0).any()
    binary = zero_shares(n_ranks, BinarySharedTensor)
    assert not np.bitwise_xor.reduce(binary).any()
    for shares in (arithmetic, binary):
        assert np.unique(shares).size > 100
        # No smaller group's shares cancel, in particular no two ring neighbors'.
        for rank in range(n_ranks):
            assert np.delete(shares, rank, axis=0).sum(axis=0).all()


def test_zero_is_shared_between_neighbors_of_a_sparse_graph():
    shares = zero_shares(5, ArithmeticSharedTensor, peers=lambda r: ((r - 1) % 5, (r + 1) % 5))
    assert not shares.sum(axis=0).any()
    assert shares.all()


def test_two_ring_neighbors_do_not_hold_all_streams_of_a_share():
    def party(transport):
        secrets = agree_pair_secrets(transport, RUN_ID)
        found = computing_generators(transport.rank, secrets, RUN_ID, SumId(0))
        return [len(found[name][CPU]._streams) for name in ("prev", "next", "local")]

    # One stream per other rank; CrypTen as shipped has two in all, one per ring neighbor.
    assert run_parties(5, party) == [[rank, 4 - rank, 1] for rank in range(5)]


def test_every_sum_has_streams_of_its_own():
    def party(transport):
        secrets = agree_pair_secrets(transport, RUN_ID)
        drawn = []
        for sum_id in (SumId(0), SumId(0, 1), SumId(1)):
            found = computing_generators(transport.rank, secrets, RUN_ID, sum_id)
            drawn += [found[name][CPU].ring_elements((50,)) for name in ("prev", "next")]
        return drawn[transport.rank == 0 :: 2]

    for words in run_parties(2, party):
        assert torch.cat(words).unique().numel() == 150


def test_public_generator_is_the_same_at_all_ranks():
    def party(transport):
        secrets = agree_pair_secrets(transport, RUN_ID)
        found = computing_generators(transport.rank, secrets, RUN_ID, SumId(3))
        return torch.rand(5, generator=found["global"][CPU]).tolist()

    first, *others = run_parties(3, party)
    assert all(other == first for other in others)


def test_streams_are_added_for_arithmetic_and_exclusive_ored_for_binary_shares():
    a, b = (stream.words(6) for stream in keyed(1, 2))
    total = WordStreams(keyed(1, 2)).ring_elements((2, 3))
    assert np.array_equal(total.numpy().view(np.uint64), (a + b).reshape(2, 3))
    bits = WordStreams(keyed(1, 2)).bit_strings((6,), 3)
    assert np.array_equal(bits.numpy().view(np.uint64), (a ^ b) & np.uint64(7))
    assert WordStreams([]).ring_elements(()).shape == ()
    assert WordStreams(keyed(1)).ring_elements((0, 4)).shape == (0, 4)
    assert "redacted" in repr(WordStreams([]))


def test_crypten_draws_from_what_is_in_force():
    """The functions that CrypTen's shares and triples draw from; without streams, as shipped."""
    provider = crypten.mpc.get_default_provider()
    local = raw_keyed_bits(b"\x05" * 32)
    streams = {name: {CPU: WordStreams([])} for name in crypten_bridge.GENERATOR_NAMES}
    streams["local"] = {CPU: WordStreams([raw_keyed_bits(b"\x05" * 32)])}
    twisters = {name: {CPU: torch.Generator()} for name in crypten_bridge.GENERATOR_NAMES}
    twisters["local"][CPU].set_state(torch.Generator().manual_seed(8).get_state())

    def party(transport):
        communicator = TransportCommunicator(transport)
        with crypten_bridge.speaking_through(communicator, streams):
            keyed_square = provider.square((4,))[0].share
            keyed_bits = BinarySharedTensor.rand(4, bits=5).share
        with crypten_bridge.speaking_through(communicator, twisters):
            shipped = provider.square((4,))[0].share
        return keyed_square, keyed_bits, shipped

    keyed_square, keyed_bits, shipped = run_parties(1, party)[0]
    assert np.array_equal(keyed_square.numpy().view(np.uint64), local.words(4))
    assert np.array_equal(keyed_bits.numpy().view(np.uint64), local.words(4) & np.uint64(31))
    twister = torch.Generator().manual_seed(8)
    expected = torch.randint(-(2**63), 2**63 - 1, (4,), generator=twister, dtype=torch.long)
    assert torch.equal(shipped, expected)
