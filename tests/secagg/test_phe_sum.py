import numpy as np
import phe
import pytest

from mpcfl.config import Custody
from mpcfl.errors import ConfigError, OutOfOrder, ProtocolError
from mpcfl.net.memory import run_parties
from mpcfl.secagg import phe_sum
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.phe_sum import PheOps, open_phe_sum

DIM = 5
KEY_BITS = 512
MODULUS_BITS = 32
HOLDER, CLIENTS = Custody.HOLDER, Custody.CLIENTS

pytestmark = pytest.mark.usefixtures("small_keys")


def chosen(how, key_bits=KEY_BITS, dim=DIM):
    return SumSettings(dim, MODULUS_BITS, key_bits=key_bits, custody=how, run_id="44" * 16)


def make_ops():
    public_key, private_key = phe.generate_paillier_keypair(n_length=KEY_BITS)
    ops = PheOps(public_key.n, (private_key.p, private_key.q), MODULUS_BITS)
    return ops, public_key, private_key


def test_phe_decrypts_what_we_encrypt_and_we_decrypt_what_phe_encrypts():
    ops, public_key, private_key = make_ops()
    half = 1 << (MODULUS_BITS - 1)
    ours = ops.encrypt(np.array([0, 7, -half], dtype=np.int64))
    wrapped = [phe.EncryptedNumber(public_key, ciphertext) for ciphertext in ours]
    assert [private_key.decrypt(number) for number in wrapped] == [half, half + 7, 0]
    theirs = public_key.encrypt(half + 41).ciphertext()
    assert ops.decrypt(ops.multiply([theirs], [ours[1]]), 1, 2).tolist() == [48]


def test_encryption_is_randomized():
    ops, *_ = make_ops()
    assert len(set(ops.encrypt(np.zeros(8, dtype=np.int64)))) == 8


def test_plaintext_above_what_the_inputs_allow_is_refused():
    ops, public_key, _ = make_ops()
    largest = (1 << MODULUS_BITS) - 1
    assert ops.decrypt([public_key.raw_encrypt(2 * largest)], 1, 2).tolist() == [-2]
    for bad in ([2 * largest + 1], [1, 2]):
        with pytest.raises(ProtocolError, match="larger"):
            ops.decrypt([public_key.raw_encrypt(value) for value in bad], 1, 2)


def test_forgotten_key_decrypts_nothing():
    ops, *_ = make_ops()
    ciphertexts = ops.encrypt(np.array([1], dtype=np.int64))
    ops.forget()
    with pytest.raises(OutOfOrder):
        ops.decrypt(ciphertexts, 1, 1)
    assert ops.raw_decrypt(ciphertexts) == []


def test_primes_of_another_key_are_refused():
    _, public_key, _ = make_ops()
    _, _, other = make_ops()
    with pytest.raises(ProtocolError, match="does not fit"):
        PheOps(public_key.n, (other.p, other.q), MODULUS_BITS)


def test_chunk_takes_about_the_same_time_for_every_key_and_never_shrinks_to_nothing():
    sizes = {bits: phe_sum.chunk_values(bits) for bits in (512, 2048, 3072, 4096, 8192, 1 << 20)}
    assert sizes == {512: 512, 2048: 512, 3072: 151, 4096: 64, 8192: 8, 1 << 20: 1}


@pytest.mark.parametrize(("how", "n_owners"), [(HOLDER, 1), (CLIENTS, 2)])
def test_routes_cut_vectors_by_the_size_of_the_key(monkeypatch, how, n_owners):
    monkeypatch.setattr(phe_sum, "_CHUNK_KEY_BITS", KEY_BITS // 4)
    monkeypatch.setattr(phe_sum, "CHUNK_VALUES", 128)

    def party(transport):
        session = open_phe_sum(transport, chosen(how, dim=5))
        return [chunk.stop - chunk.start for chunk in session._link.chunks]

    assert run_parties(n_owners + 1, party) == [[2, 2, 1]] * (n_owners + 1)


def test_short_key_is_refused(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="1024"):
        run_parties(2, lambda transport: open_phe_sum(transport, chosen(HOLDER, 1024)))


def test_threshold_keys_are_paillier_s_only():
    with pytest.raises(ConfigError, match='take backend "paillier"'):
        run_parties(2, lambda transport: open_phe_sum(transport, chosen(Custody.THRESHOLD)))
