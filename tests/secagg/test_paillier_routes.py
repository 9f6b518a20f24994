"""Which ciphertexts reach whom, for both Paillier backends."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpcfl.config import Custody
from mpcfl.errors import AuthenticationError, ProtocolError
from mpcfl.hazmat.bits import SystemBits
from mpcfl.hazmat.packing import SlotLayout, pack, unpack
from mpcfl.hazmat.paillier import PrivateKey, encrypt, raw_generate_key
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.net import channel
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.registry import load_backend

DIM = 25
KEY_BITS = 512
HOLDER, CLIENTS = Custody.HOLDER, Custody.CLIENTS
BACKENDS = ("phe", "paillier")

pytestmark = pytest.mark.usefixtures("small_keys")


def chosen(how, dim=DIM):
    return SumSettings(dim, 32, key_bits=KEY_BITS, custody=how, run_id="44" * 16)


class Tap(MemoryTransport):
    """Keeps every message that this rank sends or receives, as the network sees it."""

    def exchange(self, outgoing, sources):
        received = super().exchange(outgoing, sources)
        self.wire = [*getattr(self, "wire", []), *outgoing.values(), *received.values()]
        return received


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


class Recorded:
    """One sum: inputs, what each rank got, and (target, source, content) of sealed messages."""

    def __init__(self, backend, how, n_ranks, messages):
        self.backend, self.messages = backend, messages
        self.n_data = n_ranks - (how is CLIENTS)
        words = SystemBits().words(self.n_data * DIM).view(np.int64)
        self.inputs = (words >> np.int64(40)).reshape(self.n_data, DIM)
        results = run_parties(n_ranks, lambda transport: self._party(transport, how))
        self.totals, self.wire, primes = zip(*results, strict=True)
        self.owners = {rank for rank, pair in enumerate(primes) if pair is not None}
        self.p, self.q = primes[0]
        self.key = PrivateKey(self.p, self.q, has_generator=False)
        self.layout = SlotLayout(32, self.n_data, KEY_BITS - 1)

    def _party(self, transport, how):
        transport.__class__ = Tap
        session = load_backend(self.backend)(transport, chosen(how))
        levels = self.inputs[transport.rank] if transport.rank < self.n_data else None
        total = session.open(session.aggregate(session.protect(levels)))
        private = session._link.ops._private_key
        if self.backend == "phe":
            return total, transport.wire, None if private is None else (private.p, private.q)
        return total, transport.wire, None if private is None else private.raw_primes()

    def plaintexts_in(self, message):
        """Decrypt whatever ciphertexts a message holds."""
        width = 2 * KEY_BITS // 8
        if not message or len(message) % width:
            return []
        pieces = [message[i : i + width] for i in range(0, len(message), width)]
        try:
            return self.key.decrypt([int.from_bytes(piece, "big") for piece in pieces])
        except ProtocolError:  # a message of that length that holds something else
            return []

    def plaintexts_at(self, *ranks):
        seen = [m for target, _, m in self.messages if target in ranks]
        return [plain for message in seen for plain in self.plaintexts_in(message)]

    def plaintexts_of(self, vector, n_inputs=1):
        """Return what a vector, or a sum of some, looks like under this backend's encryption."""
        if self.backend == "phe":
            return [int(value) + n_inputs * 2**31 for value in vector]
        own = np.array([pack(row.copy(), self.layout) for row in np.atleast_2d(vector)], object)
        return own.sum(axis=0).tolist()

    def single(self):
        return {plain for row in self.inputs for plain in self.plaintexts_of(row)}


@pytest.fixture
def record(monkeypatch, backend):
    """Return a function that runs one sum of a session and tells who saw what."""
    monkeypatch.setattr("mpcfl.secagg.phe_sum.CHUNK_VALUES", 2)
    monkeypatch.setattr("mpcfl.secagg.paillier_ops.chunk_ciphertexts", lambda key_bits: 1)
    messages = []
    plain_exchange = channel.SealedTransport.exchange

    def exchange(self, outgoing, sources):
        # Taken where they are sent: a message counts even if its target never asks for it.
        own = self._transport.rank
        messages.extend((target, own, text) for target, text in outgoing.items())
        return plain_exchange(self, outgoing, sources)

    monkeypatch.setattr(channel.SealedTransport, "exchange", exchange)
    return lambda how, n_ranks: Recorded(backend, how, n_ranks, messages)


@pytest.mark.parametrize(
    ("how", "n_ranks"), [(HOLDER, 3), (HOLDER, 4), (HOLDER, 5), (CLIENTS, 3), (CLIENTS, 5)]
)
def test_no_key_holder_ever_receives_the_ciphertext_of_a_single_party(record, how, n_ranks):
    seen = record(how, n_ranks)
    assert seen.owners == ({0} if how is HOLDER else set(range(n_ranks - 1)))
    summed = seen.inputs[1:] if how is HOLDER else seen.inputs
    if seen.backend == "phe":
        products = seen.plaintexts_of(summed.sum(axis=0), n_ranks - 1)
    else:
        products = seen.plaintexts_of(summed)
    at_owners = seen.plaintexts_at(*seen.owners)
    assert set(products) <= set(at_owners), "the test must see the products to mean anything"
    assert not seen.single() & set(at_owners)


def test_test_above_would_notice_because_others_do_receive_single_ciphertexts(record):
    seen = record(CLIENTS, 4)
    assert seen.single() <= set(seen.plaintexts_at(3))


def test_aggregator_gets_ciphertexts_from_data_parties_directly_and_no_sum(record):
    seen = record(CLIENTS, 4)
    assert 3 not in seen.owners
    assert seen.totals[3].shape == (0,)
    secrets = [prime.to_bytes(KEY_BITS // 16, "big") for prime in (seen.p, seen.q)]
    at_aggregator = [message for target, _, message in seen.messages if target == 3]
    assert not any(secret in message for message in at_aggregator for secret in secrets)
    opened = seen.inputs.sum(axis=0).astype("<i4")
    assert not any(v.tobytes() in message for message in at_aggregator for v in opened)
    # No data party hands a ciphertext to another data party.
    among_data = [m for target, source, m in seen.messages if 3 not in (target, source)]
    assert not seen.single() & {p for m in among_data for p in seen.plaintexts_in(m)}


@pytest.mark.parametrize("how", [HOLDER, CLIENTS])
def test_network_sees_neither_key_nor_ciphertext_nor_sum(record, how):
    seen = record(how, 4)
    wire = b"".join(message for sent in seen.wire for message in sent)
    assert (seen.p * seen.q).to_bytes(KEY_BITS // 8, "big") not in wire
    assert seen.p.to_bytes(KEY_BITS // 16, "big") not in wire
    assert not any(text in wire for _, _, text in seen.messages if text)
    assert seen.inputs.sum(axis=0)[:2].astype("<i4").tobytes() not in wire


def test_holder_keeps_its_own_vector_out_of_every_ciphertext_when_there_are_three(record):
    seen = record(HOLDER, 3)
    everything = set(seen.plaintexts_at(0, 1, 2))
    assert not set(seen.plaintexts_of(seen.inputs[0])) & everything
    assert all(np.array_equal(total, seen.inputs.sum(axis=0)) for total in seen.totals)


def test_aggregator_with_data_is_refused(backend):
    def party(transport):
        session = load_backend(backend)(transport, chosen(CLIENTS))
        if transport.rank == 2:
            session.protect(np.zeros(DIM, np.int64))

    with pytest.raises(TypeError, match="no data"):
        run_parties(3, party)


def sum_with(backend, how, n_ranks, tamper):
    """Run a sum in which one rank, chosen by ``tamper``, sends other ciphertexts than it should."""

    def party(transport):
        session = load_backend(backend)(transport, chosen(how))
        tamper(transport.rank, session._link)
        levels = np.zeros(DIM, np.int64) if how is HOLDER or transport.rank < n_ranks - 1 else None
        return session.open(session.aggregate(session.protect(levels)))

    return run_parties(n_ranks, party, deadline_s=5.0)


BAD = {
    "zero": lambda n, c: 0,
    "modulus": lambda n, c: n,
    "square": lambda n, c: n * n,
    "too-large": lambda n, c: n * n + 5,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("how", [HOLDER, CLIENTS])
def test_bad_ciphertext_is_refused_with_its_author_before_anything_is_decrypted(
    monkeypatch, bad, how
):
    decrypted = []
    decrypt = PrivateKey.decrypt
    monkeypatch.setattr(
        PrivateKey, "decrypt", lambda self, c: decrypted.append(c) or decrypt(self, c)
    )

    def tamper(rank, link):
        if rank == 1:
            modulus, write = link.ops.public_key.modulus, link.ops.write
            width = link.ops.width_bytes
            link.ops.write = lambda c: bad(modulus, c[0]).to_bytes(width, "big") + write(c)[width:]

    with pytest.raises(ProtocolError, match="rank 1 sent what can't be summed"):
        sum_with("paillier", how, 4, tamper)
    assert decrypted == []


@pytest.mark.parametrize("cut", [lambda m: m[:-1], lambda m: m + m[:128], lambda m: b""])
def test_ciphertexts_of_the_wrong_length_are_refused_with_their_author(backend, cut):
    def tamper(rank, link):
        if rank == 1:
            write = link.ops.write
            link.ops.write = lambda c: cut(write(c))

    with pytest.raises(ProtocolError, match="rank 1 sent what can't be summed"):
        sum_with(backend, CLIENTS, 4, tamper)


def test_ciphertext_of_another_key_opens_no_sum():
    """It looks like any other; what comes out fits no slot."""
    other = raw_generate_key(KEY_BITS)
    randomizers = Randomizers(other.public_key, None, n_ahead=1)

    def tamper(rank, link):
        def encrypt_otherwise(levels):
            plaintexts = pack(levels, link.ops.layout)
            made = encrypt(other.public_key, plaintexts, randomizers.draw(len(plaintexts)))
            return [ciphertext % link.ops.public_key.square for ciphertext in made]

        if rank == 1:
            link.ops.encrypt = encrypt_otherwise

    with pytest.raises(ProtocolError):
        sum_with("paillier", CLIENTS, 4, tamper)


def test_replayed_ciphertexts_are_refused():
    def replaying(seal):
        first = []

        def again(message):
            first.extend([] if first else [seal(message)])
            return first[0]

        return again

    def party(transport):
        session = load_backend("paillier")(transport, chosen(CLIENTS))
        if transport.rank == 1:
            channels = session._link.wires._channels
            channels[3] = SimpleNamespace(seal=replaying(channels[3].seal), open=channels[3].open)
        for _ in range(2):
            levels = np.zeros(DIM, np.int64) if transport.rank < 3 else None
            session.open(session.aggregate(session.protect(levels)))

    with pytest.raises(AuthenticationError):
        run_parties(4, party, deadline_s=5.0)


def test_data_party_sends_one_ciphertext_per_hundred_values():
    """16-bit values at 8 parties, 2048 bits: 102 slots of 20 bits in 512 bytes."""
    layout = SlotLayout(16, 8, 2047)
    assert layout.slots == 102
    dim = 102 * 50

    def party(transport):
        settings = SumSettings(dim, 16, key_bits=2048, custody=CLIENTS, run_id="44" * 16)
        session = load_backend("paillier")(transport, settings)
        before = transport.meter.bytes_sent
        levels = np.zeros(dim, np.int64) if transport.rank < 8 else None
        held = session.aggregate(session.protect(levels))
        return (transport.meter.bytes_sent - before) / dim, session.open(held)

    per_coordinate = [sent for sent, _ in run_parties(9, party)]
    assert all(5.0 <= sent <= 5.1 for sent in per_coordinate[:8])


def test_unpacked_sum_of_packed_inputs_is_what_an_owner_sees(record):
    seen = record(CLIENTS, 4)
    if seen.backend == "phe":
        return
    total = seen.inputs.sum(axis=0)
    products = seen.plaintexts_of(seen.inputs)
    assert unpack(products, seen.layout, DIM, 3).tolist() == total.tolist()
