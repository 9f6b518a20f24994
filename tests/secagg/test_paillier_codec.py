import numpy as np
import pytest

from mpcfl.errors import ProtocolError
from mpcfl.secagg import paillier_codec
from mpcfl.secagg.paillier_codec import CiphertextCodec

# The codec looks at sizes only: any odd number of 512 bits is a modulus to it.
MODULUS = (1 << 512) - 569
CODEC = CiphertextCodec(MODULUS)


def test_ciphertexts_round_trip_at_fixed_width():
    ciphertexts = [1, 255, MODULUS, MODULUS**2 - 1]
    message = CODEC.encode(ciphertexts)
    assert len(message) == 4 * CODEC.width_bytes == 4 * 128
    assert CODEC.decode(message, 4) == ciphertexts


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bytes_left_over_or_missing_are_refused(count):
    message = CODEC.encode([5, 6])
    with pytest.raises(ProtocolError, match="bytes of ciphertext"):
        CODEC.decode(message, count)
    with pytest.raises(ProtocolError):
        CODEC.decode(message + b"\x00", 2)


@pytest.mark.parametrize("bad", [0, MODULUS**2, MODULUS**2 + 1])
def test_integer_that_is_no_ciphertext_is_refused(bad):
    with pytest.raises(ProtocolError, match="outside"):
        CODEC.decode(bad.to_bytes(CODEC.width_bytes, "big"), 1)


def test_public_key_round_trips():
    assert (
        paillier_codec.decode_public_key(paillier_codec.encode_public_key(MODULUS, 512), 512)
        == MODULUS
    )


@pytest.mark.parametrize("bad", [MODULUS - 1, MODULUS >> 1, 3])
def test_public_key_of_wrong_size_or_parity_is_refused(bad):
    with pytest.raises(ProtocolError, match="public key"):
        paillier_codec.decode_public_key(bad.to_bytes(64, "big"), 512)


def test_opened_sums_round_trip_and_need_the_exact_length():
    values = np.array([-(2**63), -1, 0, 2**63 - 1], dtype=np.int64)
    message = paillier_codec.encode_opened(values, 64)
    assert np.array_equal(paillier_codec.decode_opened(message, 4, 64), values)
    for count, bits in ((5, 64), (4, 63), (3, 64)):
        with pytest.raises(ProtocolError, match="bytes of sum"):
            paillier_codec.decode_opened(message, count, bits)


@pytest.mark.parametrize("bits", [8, 16, 20, 31, 32, 33, 63, 64])
def test_opened_sums_travel_at_b_bits_each(bits):
    half = 1 << (bits - 1)
    values = np.array([-half, half - 1, 0, -1, 1] * 8, dtype=np.int64)
    message = paillier_codec.encode_opened(values, bits)
    assert len(message) == len(values) * bits // 8
    assert np.array_equal(paillier_codec.decode_opened(message, len(values), bits), values)
