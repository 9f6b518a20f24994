import numpy as np
import phe
import pytest

from mpcfl.config import Custody
from mpcfl.errors import ConfigError, OutOfOrder, ProtocolError
from mpcfl.hazmat.bits import SystemBits
from mpcfl.net import channel
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg import phe_routes, phe_sum
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.phe_sum import PheOps, open_phe_sum

DIM = 5
KEY_BITS = 512
HOLDER, CLIENTS = Custody.HOLDER, Custody.CLIENTS

pytestmark = pytest.mark.usefixtures("small_keys")


def chosen(how, key_bits=KEY_BITS, dim=DIM):
    return SumSettings(dim, 32, key_bits=key_bits, custody=how, run_id="44" * 16)


class Tap(MemoryTransport):
    """Keeps every message that this rank sends or receives, as the network sees it."""

    def exchange(self, outgoing, sources):
        received = super().exchange(outgoing, sources)
        self.wire = [*getattr(self, "wire", []), *outgoing.values(), *received.values()]
        return received


@pytest.fixture
def record(monkeypatch):
    """Run a session; return inputs, results by rank, and (target, source, content) of messages."""
    monkeypatch.setattr("mpcfl.secagg.phe_routes.CHUNK_VALUES", 2)
    opened_messages = []
    plain_exchange = channel.SealedTransport.exchange

    def exchange(self, outgoing, sources):
        # Taken where they are sent: a message counts even if its target never asks for it.
        own = self._transport.rank
        opened_messages.extend((target, own, text) for target, text in outgoing.items())
        return plain_exchange(self, outgoing, sources)

    monkeypatch.setattr(channel.SealedTransport, "exchange", exchange)

    def run(how, n_ranks):
        n_data = n_ranks - (how is CLIENTS)
        words = SystemBits().words(n_data * DIM).view(np.int64)
        inputs = (words >> np.int64(40)).reshape(n_data, DIM)

        def party(transport):
            transport.__class__ = Tap
            session = open_phe_sum(transport, chosen(how))
            levels = inputs[transport.rank] if transport.rank < n_data else None
            total = session.open(session.aggregate(session.protect(levels)))
            return total, transport.wire, session._link.ops._private_key

        results = run_parties(n_ranks, party)
        return inputs, results, opened_messages

    return run


def plaintexts_in(message, key):
    """Decrypt whatever ciphertexts a message holds."""
    width = 2 * KEY_BITS // 8
    if len(message) % width:
        return []
    pieces = [message[i : i + width] for i in range(0, len(message), width)]
    return [key.raw_decrypt(int.from_bytes(piece, "big")) for piece in pieces]


@pytest.mark.parametrize(
    ("how", "n_ranks"), [(HOLDER, 3), (HOLDER, 4), (HOLDER, 5), (CLIENTS, 3), (CLIENTS, 5)]
)
def test_no_key_holder_ever_receives_the_ciphertext_of_a_single_party(record, how, n_ranks):
    inputs, results, messages = record(how, n_ranks)
    key = results[0][2]
    holders = {rank for rank, (_, _, private) in enumerate(results) if private is not None}
    assert holders == ({0} if how is HOLDER else set(range(n_ranks - 1)))
    single = {int(v) + 2**31 for v in inputs.ravel()}
    seen_at_holders = [
        p for rank, _, m in messages if rank in holders for p in plaintexts_in(m, key)
    ]
    n_summands = n_ranks - 1
    expected = inputs[1:] if how is HOLDER else inputs
    products = (expected.sum(axis=0) + n_summands * 2**31).tolist()
    products_seen = [p for p in seen_at_holders if p in products]
    assert len(products_seen) == DIM, "the test must see the products to mean anything"
    assert not single & set(seen_at_holders)


def test_test_above_would_notice_because_others_do_receive_single_ciphertexts(record):
    inputs, results, messages = record(CLIENTS, 4)
    at_aggregator = [
        p for rank, _, m in messages if rank == 3 for p in plaintexts_in(m, results[0][2])
    ]
    assert {int(v) + 2**31 for v in inputs.ravel()} <= set(at_aggregator)


def test_aggregator_gets_ciphertexts_from_data_parties_directly_and_no_sum(record):
    inputs, results, messages = record(CLIENTS, 4)
    total, _, private_key = results[3]
    assert private_key is None
    assert total.shape == (0,)
    key = results[0][2]
    secrets = [prime.to_bytes(KEY_BITS // 16, "big") for prime in (key.p, key.q)]
    at_aggregator = [message for rank, _, message in messages if rank == 3]
    opened = inputs.sum(axis=0)
    assert not any(secret in message for message in at_aggregator for secret in secrets)
    assert not any(v.tobytes() in message for message in at_aggregator for v in opened)
    # No data party hands a ciphertext to another data party.
    among_data = [m for rank, source, m in messages if 3 not in (rank, source)]
    single = {int(v) + 2**31 for v in inputs.ravel()}
    assert not single & {p for m in among_data for p in plaintexts_in(m, key)}


@pytest.mark.parametrize("how", [HOLDER, CLIENTS])
def test_network_sees_neither_key_nor_ciphertext_nor_sum(record, how):
    inputs, results, messages = record(how, 4)
    key = results[0][2]
    wire = b"".join(message for _, sent, _ in results for message in sent)
    assert key.public_key.n.to_bytes(KEY_BITS // 8, "big") not in wire
    assert key.p.to_bytes(KEY_BITS // 16, "big") not in wire
    assert not any(text in wire for _, _, text in messages if text)
    assert inputs.sum(axis=0)[:2].tobytes() not in wire


def test_holder_keeps_its_own_vector_out_of_every_ciphertext_when_there_are_three(record):
    inputs, results, messages = record(HOLDER, 3)
    everything = {p for _, _, m in messages for p in plaintexts_in(m, results[0][2])}
    assert not {int(v) + 2**31 for v in inputs[0]} & everything
    assert all(np.array_equal(total, inputs.sum(axis=0)) for total, _, _ in results)


def make_ops(largest_sum=1000):
    public_key, private_key = phe.generate_paillier_keypair(n_length=KEY_BITS)
    return PheOps(public_key.n, private_key, largest_sum), public_key, private_key


def test_phe_decrypts_what_we_encrypt_and_we_decrypt_what_phe_encrypts():
    ops, public_key, private_key = make_ops()
    ours = ops.encrypt(np.array([0, 7, 999], dtype=np.uint64))
    wrapped = [phe.EncryptedNumber(public_key, ciphertext) for ciphertext in ours]
    assert [private_key.decrypt(number) for number in wrapped] == [0, 7, 999]
    theirs = public_key.encrypt(41).ciphertext()
    assert ops.decrypt(ops.multiply([theirs], [ours[1]])).tolist() == [48]


def test_encryption_is_randomized():
    ops, *_ = make_ops()
    assert len(set(ops.encrypt(np.zeros(8, dtype=np.uint64)))) == 8


def test_plaintext_above_what_the_inputs_allow_is_refused():
    ops, *_ = make_ops(largest_sum=10)
    with pytest.raises(ProtocolError, match="larger"):
        ops.decrypt(ops.encrypt(np.array([11], dtype=np.uint64)))


def test_forgotten_key_decrypts_nothing():
    ops, *_ = make_ops()
    ciphertexts = ops.encrypt(np.array([1], dtype=np.uint64))
    ops.forget()
    with pytest.raises(OutOfOrder):
        ops.decrypt(ciphertexts)


@pytest.mark.parametrize("damage", [lambda m: m[:-1], lambda m: m + b"\x00", lambda m: m[:40]])
def test_damaged_key_message_is_refused(damage):
    _, public_key, private_key = make_ops()
    message = phe_sum.encode_public_key(public_key.n, KEY_BITS) + phe_sum.raw_encode_primes(
        private_key.p, private_key.q, KEY_BITS
    )
    assert phe_sum._read_keys(message, KEY_BITS, owner=True)[1] == private_key
    with pytest.raises(ProtocolError):
        phe_sum._read_keys(damage(message), KEY_BITS, owner=True)


def test_primes_of_another_key_are_refused():
    _, public_key, _ = make_ops()
    _, _, other = make_ops()
    message = phe_sum.encode_public_key(public_key.n, KEY_BITS) + phe_sum.raw_encode_primes(
        other.p, other.q, KEY_BITS
    )
    with pytest.raises(ProtocolError, match="does not fit"):
        phe_sum._read_keys(message, KEY_BITS, owner=True)


def test_chunk_takes_about_the_same_time_for_every_key_and_never_shrinks_to_nothing():
    sizes = {bits: phe_routes.chunk_values(bits) for bits in (512, 2048, 3072, 4096, 8192, 1 << 20)}
    assert sizes == {512: 512, 2048: 512, 3072: 151, 4096: 64, 8192: 8, 1 << 20: 1}


@pytest.mark.parametrize(("how", "n_owners"), [(HOLDER, 1), (CLIENTS, 2)])
def test_routes_cut_vectors_by_the_size_of_the_key(monkeypatch, how, n_owners):
    monkeypatch.setattr(phe_routes, "_CHUNK_KEY_BITS", KEY_BITS // 4)
    monkeypatch.setattr(phe_routes, "CHUNK_VALUES", 128)

    def party(transport):
        session = open_phe_sum(transport, chosen(how, dim=5))
        return [chunk.stop - chunk.start for chunk in session._chunks]

    assert run_parties(n_owners + 1, party) == [[2, 2, 1]] * (n_owners + 1)


def test_short_key_is_refused(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="1024"):
        run_parties(2, lambda transport: open_phe_sum(transport, chosen(HOLDER, 1024)))


def test_aggregator_with_data_is_refused():
    def party(transport):
        session = open_phe_sum(transport, chosen(CLIENTS))
        if transport.rank == 2:
            session.protect(np.zeros(DIM, np.int64))

    with pytest.raises(TypeError, match="no data"):
        run_parties(3, party)
