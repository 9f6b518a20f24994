"""Peers over the transport that our backends use: what they open, refuse and give away.

Each test skips where its package is not installed; the extra `peers` installs all.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from mpcfl.bench.measure import cell_levels, expected_sum, measure
from mpcfl.bench.peers import PEERS, PeerSettings, import_peer
from mpcfl.bench.peers.blobs import read_blobs, write_blobs
from mpcfl.bench.peers.ckks_noise import SUMS_ALONE, USUAL
from mpcfl.bench.peers.shared_key import join
from mpcfl.errors import (
    BackendUnavailable,
    ConfigError,
    OutOfOrder,
    ProtocolError,
    WrapDetected,
)
from mpcfl.net.memory import run_parties

MODULES = {"tenseal-ckks": "tenseal", "tenseal-ckks-sums": "tenseal", "heu-zpaillier": "heu"}
CKKS = {"tenseal-ckks": USUAL, "tenseal-ckks-sums": SUMS_ALONE}


@pytest.fixture(scope="module")
def heu_key():
    pytest.importorskip("heu")
    from mpcfl.bench.peers import heu

    encoded = heu.make_key(2048)
    return encoded, heu.load_kit(encoded[0])


@pytest.fixture
def one_heu_key(heu_key, monkeypatch):
    """Give all parties of all tests the same key: to make and to load one takes a second each."""
    from mpcfl.bench.peers import heu

    encoded, kit = heu_key
    monkeypatch.setattr(heu, "make_key", lambda key_bits: encoded)
    monkeypatch.setattr(heu, "load_kit", {encoded[0]: kit}.__getitem__)


def settings_of(dim, modulus_bits=32):
    return PeerSettings(dim, modulus_bits=modulus_bits, key_bits=2048, run_id="0123456789abcdef")


def run_session(name, vectors, modulus_bits=32):
    """Return what each rank opened and sent, the aggregator last; one vector for each party."""
    pytest.importorskip(MODULES[name])
    settings = settings_of(len(vectors[0]), modulus_bits)

    def rank_of(transport):
        session = PEERS[name].opens(transport, settings)
        sent_before = transport.meter.bytes_sent
        own = vectors[transport.rank] if transport.rank < len(vectors) else None
        opened = session.open(session.aggregate(session.protect(own)))
        session.close()
        return opened, transport.meter.bytes_sent - sent_before

    return run_parties(len(vectors) + 1, rank_of)


def public_levels(parameters, name, parties, dim):
    """Return the integers of a benchmark cell and their exact sum."""
    p = parameters(name, parties=parties, dim=dim, custody="clients")
    return [cell_levels(p, rank) for rank in range(parties)], expected_sum(p)


def test_every_peer_is_tested_and_says_what_it_protects():
    assert set(PEERS) == set(MODULES)
    for name, peer in PEERS.items():
        assert peer.name == name
        assert "bits" in peer.security
        assert len(peer.differences) >= 4
        assert all(text.endswith(".") for text in peer.differences)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_heu_opens_the_exact_sum_at_all_parties_and_not_at_the_aggregator(dtype, one_heu_key):
    # An odd number of values: the last ciphertext is half empty. The first two sums wrap mod 2^32.
    values = [-(1 << 31), (1 << 31) - 1, -(1 << 30), 0, -1, 1, 2]
    vectors = [np.array(values, dtype), np.array([*values[:2], 7, 1, -2, 1 << 30, -3], dtype)]
    *parties, (of_aggregator, _) = run_session("heu-zpaillier", vectors)
    for opened, _ in parties:
        assert opened.dtype == dtype
        assert opened.tolist() == [0, -2, -(1 << 30) + 7, 1, -3, (1 << 30) + 1, -1]
    assert of_aggregator.size == 0


def test_heu_sums_wrap_mod_2_to_the_64_as_those_of_our_backends_do(one_heu_key):
    low, high = -(1 << 63), (1 << 63) - 1
    vectors = [np.array([low, high, -1, high]), np.array([low, high, 0, low])]
    wrapped = run_session("heu-zpaillier", vectors, 64)[0][0]
    assert wrapped.tolist() == [0, -2, -1, -1]


@pytest.mark.parametrize("name", CKKS)
def test_ckks_is_off_by_something_and_by_less_than_its_bound(parameters, name):
    # More than one ciphertext, the last one partly filled, and a chunk for each of two parties.
    vectors, expected = public_levels(parameters, name, 2, 9_001)
    *parties, (of_aggregator, _) = run_session(name, vectors)
    error = np.abs(parties[0][0] - expected).max()
    assert parties[0][0].dtype == np.float64
    assert 0 < error <= PEERS[name].tolerance * 2
    # So rounding gives the exact sum, which the tolerance promises to many more parties.
    assert CKKS[name].most_rounded > 50
    assert (np.rint(parties[0][0]).astype(np.int64) == expected).all()
    # All parties know the very same numbers: each opened a part for all.
    assert (parties[0][0] == parties[1][0]).all()
    assert of_aggregator.size == 0


def test_a_cell_of_an_inexact_peer_says_how_far_its_sums_were_off(parameters, cell):
    pytest.importorskip("tenseal")
    p = parameters("tenseal-ckks-sums", dim=5_000, custody="clients")
    measured = run_parties(3, lambda transport: measure(cell(parameters=p, warmups=0), transport))
    assert 0 < measured[0].largest_error <= PEERS[p.backend].tolerance * 2
    # Ciphertexts of 128 KiB, two of each party to the aggregator and one of the sums back.
    sent = np.array(measured[0].bytes_sent["aggregate"]) / 3
    assert np.allclose(sent / (16 * SUMS_ALONE.degree), [2, 2, 2], rtol=0.01)


@pytest.mark.parametrize("name", CKKS)
def test_ckks_keeps_both_ends_of_32_bits(name):
    low, high = -(1 << 31), (1 << 31) - 1
    vectors = [np.array([low, high, low, 0], np.int32), np.array([0, 0, high, 0], np.int32)]
    opened = run_session(name, vectors)[0][0]
    assert np.rint(opened).tolist() == [low, high, -1, 0]


@pytest.mark.stat
def test_ckks_noise_is_what_its_bound_was_derived_from(parameters):
    """The mean square in a slot is N/24 times |s(z)|^2, 2N/3 on average, for each ciphertext.

    Over four ciphertexts with one key, its relative standard deviation is 2.2 %: the band of one
    third is 15 of these, and to leave it alone a slot would have to be 1,365 times its mean, which
    it is with a probability below exp(-100). So far fewer than 1e-9 of right runs fail. A scale
    that is off by one bit moves the mean by the factor 4, noise of one party instead of two by the
    factor 2; both are found as surely.
    """
    vectors, expected = public_levels(parameters, "tenseal-ckks-sums", 2, 4 * SUMS_ALONE.slots)
    error = run_session("tenseal-ckks-sums", vectors)[0][0] - expected
    n, parties = SUMS_ALONE.degree, 2
    predicted = parties * (n / 6 / SUMS_ALONE.scale) ** 2
    assert 2 / 3 < np.mean(error**2) / predicted < 4 / 3


def test_the_bound_is_the_sum_of_its_terms():
    # Known answers, by hand: 4096 + 136,673.6 units of 1 / 2^27, and twice 15 eta 64 2^31.
    transform = 15 * (4 + 4 * 2**0.5) * 2.0**-53 * 64 * 2.0**31
    units = 4096 + 10 * (8192 / 24 * (1 + 2 * 100 * 8192 / 3)) ** 0.5
    assert SUMS_ALONE.tolerance == pytest.approx(units / 2**27 + 2 * transform, rel=1e-9)
    assert USUAL.tolerance == pytest.approx(units / 2**40 + 2 * transform, rel=1e-9)
    assert (USUAL.modulus_bits, SUMS_ALONE.modulus_bits) == (200, 120)
    # A sum of 32 bits fits below half of the primes that carry it.
    for parameters in CKKS.values():
        assert parameters.scale_bits + 31 < sum(parameters.prime_bits[:-1]) - 1


def test_parameters_for_sums_alone_take_less_than_half_of_the_bytes(parameters):
    vectors, _ = public_levels(parameters, "plain", 2, SUMS_ALONE.slots)
    sent = {name: run_session(name, vectors)[1][1] for name in CKKS}
    # Rank 1 sends one ciphertext: N words of 8 bytes twice, and little else.
    assert 0 < sent["tenseal-ckks-sums"] - 16 * SUMS_ALONE.degree < 1024
    assert sent["tenseal-ckks"] > 2 * sent["tenseal-ckks-sums"]


@pytest.mark.parametrize(
    ("name", "other_count"),
    [("tenseal-ckks-sums", 3), ("tenseal-ckks-sums", 9_000), ("heu-zpaillier", 5)],
)
def test_the_aggregator_can_neither_encrypt_nor_decrypt(name, other_count, one_heu_key):
    pytest.importorskip(MODULES[name])
    settings = settings_of(4)

    def rank_of(transport):
        ops, ciphertexts = _ops(name, transport, settings), []
        if transport.rank == 0:
            ciphertexts = ops.encrypt(np.arange(4))
            transport.exchange({1: ops.write(ciphertexts)}, [])
            assert ops.decrypt(ciphertexts, 4, 1).size == 4
            ops.forget()
        else:
            message = transport.exchange({}, [0])[0]
            ciphertexts = ops.read(message, 4)
            # Neither another number of them nor something else is taken.
            with pytest.raises(ProtocolError):
                ops.read(message, other_count)
            with pytest.raises(ProtocolError):
                ops.read(b"\x00\x00\x00\x01\x00\x00\x00\x01x", 4)
        with pytest.raises(OutOfOrder, match="private key"):
            ops.decrypt(ciphertexts, 4, 1)
        with pytest.raises(OutOfOrder, match="closed"):
            ops.encrypt(np.arange(4))

    run_parties(2, rank_of)


def _ops(name, transport, settings):
    if name == "heu-zpaillier":
        from mpcfl.bench.peers import heu

        make, ops = (lambda: heu.make_key(settings.key_bits)), heu.HeuOps
        return ops(join(transport, settings, "test", make), settings)
    from mpcfl.bench.peers import ckks

    joined = join(transport, settings, "test", lambda: ckks.make_key(CKKS[name]))
    return ckks.CkksOps(joined, CKKS[name])


def test_what_a_peer_can_not_sum_is_refused():
    pytest.importorskip("tenseal")
    pytest.importorskip("heu")
    with pytest.raises(ConfigError, match="modulus_bits = 33"):
        run_session("tenseal-ckks", [np.zeros(3, np.int64)], 33)
    with pytest.raises(WrapDetected, match="ring of 8 bits"):
        run_session("tenseal-ckks", [np.full(3, 128)], 8)
    with pytest.raises(ConfigError, match="aggregator"):
        run_parties(1, lambda transport: PEERS["tenseal-ckks"].opens(transport, settings_of(3)))
    short = PeerSettings(3, key_bits=1024, run_id="00")
    with pytest.raises(ConfigError, match="key_bits = 1024"):
        run_parties(2, lambda transport: PEERS["heu-zpaillier"].opens(transport, short))


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_package_is_named_with_its_remedy(name, monkeypatch):
    # None in this table makes Python refuse the import, as if nothing were installed.
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    for module in ("ckks", "heu"):
        monkeypatch.delitem(sys.modules, f"mpcfl.bench.peers.{module}", raising=False)
    with pytest.raises(BackendUnavailable) as caught:
        PEERS[name].opens(None, settings_of(3))
    assert repr(PEERS[name].package) in str(caught.value)
    assert 'pip install "mpcfl[peers]"' in str(caught.value)


def test_a_module_that_is_not_there_is_no_other_error():
    with pytest.raises(
        BackendUnavailable, match=r"'no-such-package'.*pip install \"mpcfl\[peers\]\""
    ):
        import_peer("no_such_module", "no-such-package")


def test_byte_strings_come_back_and_nothing_else_is_taken_for_them():
    blobs = (b"", b"one", b"\x00" * 1000)
    message = write_blobs(blobs)
    assert read_blobs(message, 3) == blobs
    for wrong in (message + b"x", message[:-1], b"", message[:3]):
        with pytest.raises(ProtocolError):
            read_blobs(wrong, 3)
    with pytest.raises(ProtocolError, match="expected were 2"):
        read_blobs(message, 2)


def test_importing_the_peers_loads_none_of_their_packages():
    code = (
        "import sys, mpcfl.bench.peers as peers; "
        "found = {'tenseal', 'heu', 'torch', 'gmpy2'} & set(sys.modules); "
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_heu_computes_in_one_thread_where_it_is_told_to():
    """What `heu.py` says of YACL_NUM_THREADS: the library starts no thread for what it computes."""
    pytest.importorskip("heu")
    code = """
import os
from heu import numpy as heu_numpy, phe
kit = heu_numpy.setup(phe.SchemaType.ZPaillier, 1024)
before = len(os.listdir("/proc/self/task"))
kit.encryptor().encrypt(kit.array([[1], [2], [3], [4]]))
print(len(os.listdir("/proc/self/task")) - before)
"""
    told = {**os.environ, "YACL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "0"
