import pytest

from mpcfl.config import Custody
from mpcfl.errors import ProtocolError
from mpcfl.hazmat.paillier import raw_generate_key
from mpcfl.net.memory import run_parties
from mpcfl.secagg import key_dealing
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.custody import assign_roles
from mpcfl.secagg.key_dealing import deal_primes, open_wires
from mpcfl.secagg.paillier_codec import encode_public_key, raw_encode_primes

KEY_BITS = 512


def make(key_bits):
    return raw_generate_key(key_bits).raw_primes()


def dealt(custody, n_ranks):
    def party(transport):
        settings = SumSettings(1, custody=custody, run_id="55" * 16)
        wires = open_wires(transport, settings, "test")
        return deal_primes(transport.rank, wires, KEY_BITS, assign_roles(custody, n_ranks), make)

    return run_parties(n_ranks, party)


@pytest.mark.parametrize(("custody", "n_owners"), [(Custody.HOLDER, 1), (Custody.CLIENTS, 3)])
def test_modulus_goes_to_all_and_primes_to_owners_only(custody, n_owners):
    keys = dealt(custody, 4)
    assert len({key.modulus for key in keys}) == 1
    assert keys[0].modulus.bit_length() == KEY_BITS
    owners = [key for key in keys if key.primes is not None]
    assert keys[:n_owners] == owners
    assert all(key.primes[0] * key.primes[1] == key.modulus for key in owners)


def test_dealt_key_shows_nothing():
    key = dealt(Custody.HOLDER, 2)[0]
    assert str(key.primes[0]) not in repr(key)
    assert str(key.modulus) not in repr(key)


@pytest.mark.parametrize("damage", [lambda m: m[:-1], lambda m: m + b"\x00", lambda m: m[:40]])
def test_damaged_key_message_is_refused(damage):
    p, q = make(KEY_BITS)
    message = encode_public_key(p * q, KEY_BITS) + raw_encode_primes(p, q, KEY_BITS)
    assert key_dealing._read_key(message, KEY_BITS, owner=True).primes == (p, q)
    with pytest.raises(ProtocolError):
        key_dealing._read_key(damage(message), KEY_BITS, owner=True)
