"""The `paillier` backend from its users' side: exact sums, who sees what, and what is refused."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import mpcfl
from mpcfl.config import Custody
from mpcfl.errors import (
    AuthenticationError,
    ConfigError,
    KeyFileError,
    MpcflError,
    OutOfOrder,
    PartyLost,
    ProtocolError,
    TranscriptMismatch,
    WrapDetected,
    WrongPartial,
)
from mpcfl.hazmat import paillier
from mpcfl.hazmat.bits import SystemBits
from mpcfl.hazmat.packing import SlotLayout, pack
from mpcfl.hazmat.paillier import PrivateKey, raw_generate_key
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.hazmat.threshold_key import KeyShare, raw_deal_key_from_primes
from mpcfl.net import channel
from mpcfl.net.memory import MemoryNetwork, MemoryTransport, run_parties
from mpcfl.secagg import key_files, threshold_sum
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.ceremony import Ceremony, read_passphrases
from mpcfl.secagg.decryption_log import DecryptionLog
from mpcfl.secagg.key_files import (
    NamedKey,
    load_key_share,
    share_path,
    write_key_share,
    write_public_file,
)
from mpcfl.secagg.key_holding import HeldShare, read_own_passphrase
from mpcfl.secagg.paillier_ops import PackedOps
from mpcfl.secagg.paillier_sum import open_paillier_sum

KEY_BITS = 512
RUN_ID = "5a" * 16
HOLDER, CLIENTS, THRESHOLD = Custody.HOLDER, Custody.CLIENTS, Custody.THRESHOLD
VECTORS = json.loads(
    (Path(__file__).parent.parent / "vectors" / "threshold_paillier.json").read_text()
)
# Safe primes, and so fit for every custody. Public.
P, Q = (int(VECTORS["primes"][name], 16) for name in ("p256", "q256"))
N = P * Q
PASSPHRASE = "a long enough passphrase"  # noqa: S105 - of files that a test makes

pytestmark = pytest.mark.usefixtures("small_keys")


def chosen(how, dim, bits=16, **more):
    return SumSettings(dim, bits, key_bits=KEY_BITS, custody=how, run_id=RUN_ID, **more)


def slots_of(bits, n_parties):
    return SlotLayout(bits, n_parties, KEY_BITS - 1).slots


def draw(n_parties, dim, bits):
    """Uniform vectors of the whole range; everybody is at one of its ends at both ends."""
    words = SystemBits().words(n_parties * dim).view(np.int64) >> np.int64(64 - bits)
    vectors = words.reshape(n_parties, dim)
    vectors[:, -1], vectors[:, 0] = (1 << (bits - 1)) - 1, -(1 << (bits - 1))
    return vectors


def exact(vectors, bits):
    half = 1 << (bits - 1)
    total = np.asarray(vectors).astype(object).sum(axis=0)
    return [(int(v) + half) % (1 << bits) - half for v in total]


def go_through(session, levels, sum_id=None):
    return session.open(session.aggregate(session.protect(levels, sum_id)))


@pytest.fixture
def known_key(monkeypatch):
    """Let sessions use the key of P and Q, so that a test can decrypt what it sees."""
    monkeypatch.setattr("mpcfl.secagg.paillier_sum._make_primes", lambda key_bits: (P, Q))

    def deal(key_bits, n_shares, threshold):
        return raw_deal_key_from_primes(P, Q, n_shares, threshold)

    monkeypatch.setattr("mpcfl.secagg.key_holding.raw_deal_key", deal)
    return PrivateKey(P, Q, has_generator=True)


@pytest.fixture
def short_chunks(monkeypatch):
    """Two ciphertexts per chunk; one under custody `threshold`."""
    monkeypatch.setattr("mpcfl.secagg.paillier_ops.chunk_ciphertexts", lambda key_bits: 2)


@pytest.fixture
def decrypted(monkeypatch):
    """Return a list of all ciphertexts that any rank starts to decrypt, in part or as a whole."""
    seen = []
    whole, in_part = PrivateKey.decrypt, threshold_sum.partially_decrypt

    def decrypt(self, ciphertexts):
        seen.extend(ciphertexts)
        return whole(self, ciphertexts)

    def partially(share, ciphertexts, context, *rest):
        seen.extend(ciphertexts)
        return in_part(share, ciphertexts, context, *rest)

    monkeypatch.setattr(PackedOps, "raw_decrypt", None)
    monkeypatch.setattr(PrivateKey, "decrypt", decrypt)
    monkeypatch.setattr(threshold_sum, "partially_decrypt", partially)
    return seen


def outcomes(n_ranks, party):
    """Run a party per rank; return what each one returned or raised."""

    def shielded(transport):
        try:
            return party(transport)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            transport._network.failed.set()
            return error

    return run_parties(n_ranks, shielded, deadline_s=20)


def n_ranks_of(how, n_data):
    return n_data + (how is CLIENTS)


# Sums.


@pytest.mark.parametrize("custody", ["holder", "threshold"])
@pytest.mark.parametrize("precompute", [False, True])
def test_python_sums_are_exact_in_every_ring_and_at_every_size(custody, precompute):
    """Uniform over the ring, so that sums wrap, which a check would refuse."""
    for n_ranks, bits in [(2, 8), (4, 20), (5, 32), (3, 33), (3, 64)]:
        slots = slots_of(bits, n_ranks)
        for dim in (slots - 1, slots, 2 * slots + 1):
            dtype = np.int32 if bits <= 32 and dim % 2 else np.int64
            rounds = [draw(n_ranks, dim, bits).astype(dtype) for _ in range(2)]
            options = {"threshold": 2} if custody == "threshold" else {}

            def party(transport, rounds=rounds, options=options, dim=dim, bits=bits):
                with mpcfl.open_secure_sum(
                    comm=transport, backend="paillier", dim=dim, modulus_bits=bits,
                    key_bits=KEY_BITS, custody=custody, precompute=precompute, checked=False,
                    **options,
                ) as session:  # fmt: skip
                    opened = []
                    for vectors in rounds:
                        opened.append(session.sum(vectors[transport.rank]))
                        session.prepare()
                    return opened

            for opened in run_parties(n_ranks, party, deadline_s=20):
                for total, vectors in zip(opened, rounds, strict=True):
                    assert total.dtype == dtype
                    assert total.tolist() == exact(vectors, bits), (n_ranks, bits, dim)


@pytest.mark.parametrize("how", list(Custody))
@pytest.mark.parametrize("n_data", [2, 3, 5])
def test_sums_in_many_chunks_are_exact(short_chunks, how, n_data):
    bits = 20
    dim = 9 * slots_of(bits, n_data) + 3
    rounds = [draw(n_data, dim, bits) for _ in range(2)]

    def party(transport):
        is_data = transport.rank < n_data
        with_pool = {"precompute": transport.rank != 1}
        session = open_paillier_sum(transport, chosen(how, dim, bits, **with_pool))
        opened = [go_through(session, v[transport.rank] if is_data else None) for v in rounds]
        session.close()
        return opened

    results = run_parties(n_ranks_of(how, n_data), party, deadline_s=20)
    for opened in results[:n_data]:
        assert [v.tolist() for v in opened] == [exact(vectors, bits) for vectors in rounds]
    assert all(v.shape == (0,) for opened in results[n_data:] for v in opened)


@pytest.mark.parametrize("custody", ["holder", "threshold"])
@pytest.mark.parametrize(("n_ranks", "dim"), [(1, 3), (1, 0), (3, 0)])
def test_programs_tried_alone_and_empty_vectors_work(custody, n_ranks, dim):
    def party(transport):
        with mpcfl.open_secure_sum(
            comm=transport, backend="paillier", dim=dim, key_bits=KEY_BITS, custody=custody,
            precompute=True,
        ) as session:  # fmt: skip
            return [session.sum(np.full(dim, -7, np.int32)).tolist() for _ in range(2)]

    results = run_parties(n_ranks, party, deadline_s=20)
    assert results == [[[-7 * n_ranks] * dim] * 2] * n_ranks


def test_python_ranks_that_want_other_thresholds_or_custody_are_told():
    def party_with(options):
        def party(transport):
            return mpcfl.open_secure_sum(
                comm=transport, backend="paillier", dim=2, key_bits=KEY_BITS,
                **options[transport.rank == 2],
            )  # fmt: skip

        return party

    held = {"custody": "threshold", "threshold": 2}
    for other in ({"custody": "threshold", "threshold": 3}, {}):
        with pytest.raises(TranscriptMismatch, match="rank 2"):
            run_parties(3, party_with((held, other)), deadline_s=20)


@pytest.mark.parametrize("threshold", [-1, 0, 1, 4, 2.5, True, "2"])
def test_python_thresholds_out_of_range_are_refused_at_every_rank(threshold):
    def party(transport):
        return mpcfl.open_secure_sum(
            comm=transport, backend="paillier", dim=2, key_bits=KEY_BITS, custody="threshold",
            threshold=threshold,
        )  # fmt: skip

    for error in outcomes(3, party):
        assert isinstance(error, MpcflError | TypeError), repr(error)
        assert not isinstance(error, PartyLost), "the others must not wait in vain"


def test_python_custody_that_does_not_fit_is_refused():
    for options in (
        {"backend": "paillier", "custody": "clients"},
        {"backend": "paillier", "custody": "threshhold"},
        {"backend": "ring", "custody": "threshold"},
        {"backend": "phe", "custody": "threshold"},
        {"backend": "paillier", "threshold": 2},
        {"backend": "paillier", "key_bits": 256},
        {"backend": "paillier", "key_bits": 513},
    ):
        known = {"key_bits": KEY_BITS} | options
        for error in outcomes(3, lambda t, k=known: mpcfl.open_secure_sum(comm=t, dim=2, **k)):
            assert isinstance(error, ConfigError | ProtocolError), (options, error)


def test_value_outside_the_ring_is_refused_and_the_session_goes_on():
    def party(transport):
        with mpcfl.open_secure_sum(
            comm=transport, backend="paillier", dim=2, modulus_bits=16, key_bits=KEY_BITS
        ) as session:
            own = np.array([1, 1 << 15 if transport.rank == 1 else 0])
            with pytest.raises(WrapDetected if transport.rank == 1 else ProtocolError):
                session.sum(own)
            return session.sum(np.full(2, transport.rank)).tolist()

    assert run_parties(3, party, deadline_s=20) == [[3, 3]] * 3


# Who sees what.


@pytest.fixture
def messages(monkeypatch):
    """Return (target, source, content) of every sealed message, opened."""
    seen = []
    plain_exchange = channel.SealedTransport.exchange

    def exchange(self, outgoing, sources):
        own = self._transport.rank
        seen.extend((target, own, text) for target, text in outgoing.items())
        return plain_exchange(self, outgoing, sources)

    monkeypatch.setattr(channel.SealedTransport, "exchange", exchange)
    return seen


def plaintexts_in(text, key):
    """Decrypt whatever ciphertexts a message could hold, at any place."""
    width = 2 * KEY_BITS // 8
    pieces = [text[i : i + width] for i in range(0, len(text) - width + 1, width)]
    numbers = [int.from_bytes(piece, "big") for piece in pieces]
    numbers = [c for c in numbers if 0 < c < N * N and c % P and c % Q]
    return PLAIN_DECRYPT(key, numbers)


PLAIN_DECRYPT = PrivateKey.decrypt


def sums_of_some(vectors, layout):
    """Return the packed plaintexts of every sum of some parties, by the set of them."""
    packed = [pack(vector, layout) for vector in vectors]
    return {
        group: {sum(column) for column in zip(*(packed[i] for i in group), strict=True)}
        for size in range(1, len(vectors) + 1)
        for group in itertools.combinations(range(len(vectors)), size)
    }


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize(
    ("how", "n_data"), [(HOLDER, 3), (HOLDER, 4), (HOLDER, 5), (CLIENTS, 2), (CLIENTS, 4)]
)
def test_owner_of_the_whole_key_receives_nothing_but_the_product_of_all_others(
    known_key, short_chunks, messages, how, n_data, precompute
):
    layout = SlotLayout(16, n_data, KEY_BITS - 1)
    dim = 5 * layout.slots + 9
    rounds = [draw(n_data, dim, 16) for _ in range(2)]

    def party(transport):
        settings = chosen(how, dim, precompute=precompute)
        session = open_paillier_sum(transport, settings)
        is_data = transport.rank < n_data
        return [go_through(session, v[transport.rank] if is_data else None) for v in rounds]

    run_parties(n_ranks_of(how, n_data), party, deadline_s=20)
    owners = [0] if how is HOLDER else list(range(n_data))
    at_owners = {
        plaintext
        for target, _, text in messages
        if target in owners
        for plaintext in plaintexts_in(text, known_key)
    }
    at_others = {p for t, _, m in messages if t not in owners for p in plaintexts_in(m, known_key)}
    everybody = tuple(range(n_data))
    allowed = everybody[1:] if how is HOLDER else everybody
    for vectors in rounds:
        for group, sums in sums_of_some(vectors, layout).items():
            if group == allowed:
                assert sums <= at_owners, "the products must be seen for this to say anything"
            else:
                assert not sums & at_owners, f"an owner of the key can read the sum of {group}"
            if len(group) == 1 and (how is CLIENTS or group == (1,)):
                assert sums <= at_others, "single ciphertexts must be seen where they may go"
            if how is HOLDER and 0 in group:
                assert not sums & at_others


def test_only_the_product_of_all_is_ever_decrypted_in_part_and_once_by_each(
    known_key, short_chunks, decrypted, messages
):
    layout = SlotLayout(16, 4, KEY_BITS - 1)
    dim = 5 * layout.slots + 9
    vectors = draw(4, dim, 16)

    def party(transport):
        session = open_paillier_sum(transport, chosen(THRESHOLD, dim, threshold=3))
        return go_through(session, vectors[transport.rank])

    for total in run_parties(4, party, deadline_s=20):
        assert total.tolist() == exact(vectors, 16)
    opened = PLAIN_DECRYPT(known_key, decrypted)
    sums = sums_of_some(vectors, layout)
    assert set(opened) == sums[0, 1, 2, 3]
    # Three of four do each of six chunks.
    assert len(opened) == 3 * 6
    # Nobody was ever told the primes.
    secrets = [int(x).to_bytes(KEY_BITS // 16, "big") for x in (P, Q)]
    assert not any(secret in text for _, _, text in messages for secret in secrets)


@pytest.mark.parametrize("how", list(Custody))
def test_network_sees_no_ciphertext_no_key_and_no_sum(known_key, messages, how):
    dim = 3
    vectors = draw(3, dim, 32)
    wire = []

    class Tap(MemoryTransport):
        def exchange(self, outgoing, sources):
            wire.extend(outgoing.values())
            return super().exchange(outgoing, sources)

    def party(transport):
        transport.__class__ = Tap
        session = open_paillier_sum(transport, chosen(how, dim, 32))
        return go_through(session, vectors[transport.rank] if transport.rank < 3 else None)

    run_parties(n_ranks_of(how, 3), party, deadline_s=20)
    seen = b"".join(wire)
    assert not any(text in seen for _, _, text in messages if text)
    assert N.to_bytes(KEY_BITS // 8, "big") not in seen
    total = np.array(exact(vectors, 32))
    assert total[:2].astype(np.int32).tobytes() not in seen


def test_data_party_sends_at_most_five_bytes_and_a_tenth_per_coordinate(small_keys, messages):
    # 16-bit values of 8 parties at the comparison's 2048 bits: slots of 20 bits, 102 of them.
    n_data, dim = 8, 102 * 24
    vectors = draw(n_data, dim, 16)

    def party(transport):
        settings = SumSettings(dim, 16, key_bits=2048, custody=CLIENTS, run_id=RUN_ID)
        session = open_paillier_sum(transport, settings)
        is_data = transport.rank < n_data
        before = transport.meter.bytes_sent
        protected = session.protect(vectors[transport.rank] if is_data else None)
        aggregated = session.aggregate(protected)
        sent = transport.meter.bytes_sent - before
        return sent, session.open(aggregated)

    results = run_parties(n_data + 1, party, deadline_s=30)
    for sent, total in results[:n_data]:
        assert total.tolist() == exact(vectors, 16)
        assert 5.0 * dim < sent <= 5.1 * dim
    # Opened parts are shorter than that; all else is ciphertexts.
    targets = {target for target, source, text in messages if source == 3 and len(text) >= 1024}
    assert targets == {n_data}


def test_no_randomizer_is_used_twice_by_any_rank_sum_or_attempt(known_key, monkeypatch):
    dim = 3 * slots_of(16, 3)
    used, ready, lock = [], [], threading.Lock()
    plain = paillier.encrypt

    def encrypt(public_key, plaintexts, randomizers):
        with lock:
            used.extend(map(int, randomizers))
        return plain(public_key, plaintexts, randomizers)

    monkeypatch.setattr(paillier, "encrypt", encrypt)
    # A failed attempt, its retry, the next round; the same again without anything made ahead.
    numbers = [SumId(0), SumId(1), SumId(1, 1), SumId(1, 2), SumId(2)]

    def party(transport, how, precompute):
        session = open_paillier_sum(transport, chosen(how, dim, precompute=precompute))
        own = np.full(dim, transport.rank)
        for number in numbers:
            session.prepare()
            pool = session._link.ops._pool  # none where a holder encrypts nothing
            ahead = set() if pool is None else {int(r) for r in pool._ready}
            session.protect(own, number) if number == SumId(1) else None
            if number == SumId(1):  # It breaks off after it has begun.
                continue
            assert go_through(session, own, number).tolist() == [3] * dim
            if number.attempt > 0:
                ready.append(ahead)
        session.close()

    n_sums = len(numbers) - 1
    n_expected = 0
    for how, n_encrypting in ((HOLDER, 2), (THRESHOLD, 3)):
        for precompute in (False, True):
            run_parties(3, lambda t, h=how, p=precompute: party(t, h, p), deadline_s=20)
            n_expected += n_sums * n_encrypting * 3
    assert len(used) == n_expected
    assert len(set(used)) == len(used)
    assert any(ready), "something was made ahead"
    assert not set().union(*ready) & set(used), "what a failed attempt left was used"


# Bad ciphertexts.


def foreign_ciphertext():
    """An encryption under another key that is no number below n^2 of ours."""
    while True:
        public_key = raw_generate_key(KEY_BITS).public_key
        if public_key.modulus <= N:
            continue
        for _ in range(64):
            randomizers = Randomizers(public_key, n_ahead=1).draw(1)
            (ciphertext,) = paillier.encrypt(public_key, [1], randomizers)
            if ciphertext >= N * N:
                return int(ciphertext)


BAD = {
    "zero": lambda: 0,
    "modulus": lambda: N,
    "multiple of a prime": lambda: P * 1234567891011,
    "square": lambda: N * N,
    "another key": foreign_ciphertext,
}


def misbehave(session, change):
    """Let a session send what ``change`` makes of its ciphertexts."""
    ops = session._link.ops
    plain = ops.write
    ops.write = lambda ciphertexts: change([int(c) for c in ciphertexts], plain)


def replaced(name):
    return lambda ciphertexts, write: write([*ciphertexts[:-1], BAD[name]()])


CHANGES = {name: replaced(name) for name in BAD} | {
    "too short": lambda ciphertexts, write: write(ciphertexts)[:-1],
    "too long": lambda ciphertexts, write: write(ciphertexts) + b"\0",
    "one too few": lambda ciphertexts, write: write(ciphertexts[1:]),
    "nothing": lambda ciphertexts, write: b"",
}


@pytest.mark.parametrize(
    ("how", "author"),
    [(HOLDER, 1), (HOLDER, 2), (CLIENTS, 0), (CLIENTS, 2), (CLIENTS, 3), (THRESHOLD, 0),
     (THRESHOLD, 2)],
)  # fmt: skip
def test_bad_ciphertext_is_refused_with_its_author_before_anything_is_decrypted(
    known_key, decrypted, how, author
):
    dim = 2 * slots_of(16, 3)
    for name, change in CHANGES.items():
        opened = []

        def party(transport, change=change, opened=opened):
            session = open_paillier_sum(transport, chosen(how, dim))
            if transport.rank == author:
                misbehave(session, change)
            own = None if transport.rank == 3 else np.ones(dim, np.int64)
            opened.append(go_through(session, own))

        with pytest.raises(ProtocolError, match=f"rank {author}") as caught:
            run_parties(n_ranks_of(how, 3), party, deadline_s=20)
        assert not isinstance(caught.value, PartyLost), name
        assert not opened, name
        assert not decrypted, name


@pytest.mark.parametrize("how", list(Custody))
def test_ciphertext_of_another_key_that_looks_like_one_never_gives_a_sum(known_key, how):
    other = raw_generate_key(KEY_BITS).public_key
    dim = slots_of(16, 3)

    def change(ciphertexts, write):
        drawn = Randomizers(other, n_ahead=1).draw(len(ciphertexts))
        foreign = paillier.encrypt(other, [5] * len(ciphertexts), drawn)
        return write([int(c) % (N * N) for c in foreign])

    def party(transport):
        session = open_paillier_sum(transport, chosen(how, dim))
        if transport.rank == 2:
            misbehave(session, change)
        return go_through(session, None if transport.rank == 3 else np.ones(dim, np.int64))

    assert all(isinstance(end, MpcflError) for end in outcomes(n_ranks_of(how, 3), party))


@pytest.mark.parametrize("how", list(Custody))
def test_replayed_message_is_refused_before_anything_is_decrypted(known_key, decrypted, how):
    dim = 2 * slots_of(16, 3)
    target = {HOLDER: 2, CLIENTS: 3, THRESHOLD: 2}[how]

    class Replay(MemoryTransport):
        """The network repeats at the second sum what rank 1 sent at the first."""

        turn = 1
        kept = None

        def exchange(self, outgoing, sources):
            if self.rank == 1 and len(outgoing.get(target, b"")) > KEY_BITS // 8:
                if self.turn == 2:
                    outgoing = {**outgoing, target: self.kept}
                self.kept = outgoing[target]
            return super().exchange(outgoing, sources)

    def party(transport):
        transport.__class__ = Replay
        session = open_paillier_sum(transport, chosen(how, dim))
        own = None if transport.rank == 3 else np.ones(dim, np.int64)
        go_through(session, own)
        transport.allgather(b"")
        decrypted.clear()
        transport.allgather(b"")
        transport.turn = 2
        go_through(session, own)

    ends = outcomes(n_ranks_of(how, 3), party)
    assert all(isinstance(end, MpcflError) for end in ends), ends
    assert any(isinstance(end, AuthenticationError) for end in ends)
    assert not decrypted


def test_two_faced_party_is_found_before_anything_is_decrypted(known_key, decrypted):
    dim = slots_of(16, 3)

    class TwoFaced(channel.SealedTransport):
        """Commits and shows one thing to rank 0 and another to rank 2, each consistently."""

        commits = True

        def exchange(self, outgoing, sources):
            if 2 in outgoing and len(outgoing[2]) == 32 and self.commits:
                own = outgoing[2]
                self.second = paillier_bytes(known_key, 9)
                tag = threshold_sum.domain_tag("ciphertexts", 0, 0, 0)
                outgoing = {**outgoing, 2: threshold_sum._commit(tag, 1, self.second)}
                assert own != outgoing[2]
            elif 2 in outgoing and len(outgoing[2]) == 2 * KEY_BITS // 8:
                outgoing = {**outgoing, 2: paillier_bytes(known_key, 9)}
                outgoing[2] = getattr(self, "second", outgoing[2])
            return super().exchange(outgoing, sources)

    def party_with(commits):
        def party(transport):
            session = open_paillier_sum(transport, chosen(THRESHOLD, dim, threshold=2))
            if transport.rank == 1:
                session._link.wires.__class__ = TwoFaced
                session._link.wires.commits = commits
            return go_through(session, np.ones(dim, np.int64))

        return party

    for commits in (False, True):
        with pytest.raises(TranscriptMismatch, match="rank 1" if not commits else None):
            run_parties(3, party_with(commits), deadline_s=20)
        assert not decrypted


def paillier_bytes(key, plaintext):
    randomizers = Randomizers(key.public_key, n_ahead=1).draw(1)
    (ciphertext,) = paillier.encrypt(key.public_key, [plaintext], randomizers)
    return int(ciphertext).to_bytes(2 * KEY_BITS // 8, "big")


@pytest.mark.parametrize("how", list(Custody))
def test_slot_that_was_filled_beyond_its_bounds_gives_an_error_and_no_sum(known_key, how):
    layout = SlotLayout(16, 3, KEY_BITS - 1)
    dim = layout.slots
    full = sum(((1 << layout.slot_bits) - 1) << i * layout.slot_bits for i in range(dim))

    def party(transport):
        session = open_paillier_sum(transport, chosen(how, dim))
        if transport.rank == 1:
            ops = session._link.ops
            ops.encrypt = lambda levels: [
                int.from_bytes(paillier_bytes(known_key, full), "big")
            ]  # fmt: skip
        return go_through(session, None if transport.rank == 3 else np.ones(dim, np.int64))

    assert all(isinstance(end, MpcflError) for end in outcomes(n_ranks_of(how, 3), party))


# Threshold: shares, partials, openings.


@pytest.fixture(scope="module")
def dealt():
    return raw_deal_key_from_primes(P, Q, 5, 3)


def held_sum(shares, dim, *, act=go_through, **more):
    """Return a party that opens a session with its own share and acts on it."""

    def party(transport):
        held = HeldShare(shares[transport.rank])
        session = open_paillier_sum(transport, chosen(THRESHOLD, dim, **more), held=held)
        return act(session, np.full(dim, transport.rank + 1))

    return party


def test_all_groups_of_three_of_five_open_and_no_group_of_two_does(dealt):
    _, shares = dealt
    for three in itertools.combinations(shares, 3):
        for total in run_parties(3, held_sum(three, 2), deadline_s=20):
            assert total.tolist() == [6, 6]
    for two in itertools.combinations(shares, 2):
        with pytest.raises(ConfigError, match="3 key shares"):
            run_parties(2, held_sum(two, 2), deadline_s=20)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_share_of_another_ceremony_is_refused_by_all_and_its_rank_is_named(dealt, odd, decrypted):
    _, shares = dealt
    _, others = raw_deal_key_from_primes(P, Q, 5, 3)
    mixed = [*shares[:3]]
    mixed[odd] = others[odd]
    for error in outcomes(3, held_sum(mixed, 2)):
        assert isinstance(error, KeyFileError)
        assert f"rank {odd}" in str(error) or odd == 0
    assert not decrypted


def test_same_share_at_two_ranks_is_refused(dealt):
    _, shares = dealt
    for error in outcomes(3, held_sum([shares[0], shares[1], shares[1]], 2)):
        assert isinstance(error, KeyFileError)


def test_share_that_is_not_its_keys_own_is_blamed_for_its_partial(dealt):
    # The right key on paper, and the value of another ceremony.
    key, shares = dealt
    _, others = raw_deal_key_from_primes(P, Q, 5, 3)
    wrong = KeyShare(key, 2, others[1].raw_value())
    mixed = [shares[0], wrong, shares[2]]
    ends = outcomes(3, held_sum(mixed, 2))
    assert all(isinstance(end, MpcflError) for end in ends), "somebody got a sum"
    blamed = [end for end in ends if isinstance(end, WrongPartial)]
    assert {end.index for end in blamed} == {2}
    assert all("rank 1" in str(end) for end in blamed)


def tampered(kind):
    """Return what makes of a right partial message a wrong one."""
    return {
        "flipped": lambda text, old: text[:-1] + bytes([text[-1] ^ 1]),
        "short": lambda text, old: text[:-1],
        "empty": lambda text, old: b"",
        "of another round": lambda text, old: old,
        "of another share": lambda text, old: text[:3] + bytes([text[3] ^ 1]) + text[4:],
        "of no share": lambda text, old: b"\xff" * 4 + text[4:],
        "zero": lambda text, old: text[:4] + bytes(len(text) - 4),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["flipped", "short", "empty", "of another round", "of another share", "of no share",
             "zero"],
)  # fmt: skip
def test_wrong_partial_is_blamed_on_its_author_and_gives_no_sum(dealt, monkeypatch, kind):
    _, shares = dealt
    plain = threshold_sum.encode_partial
    made = []

    def encode(key, partial):
        text = plain(key, partial)
        if partial.index != 5:
            return text
        made.append(text)
        return text if len(made) == 1 else tampered(kind)(text, made[0])

    monkeypatch.setattr(threshold_sum, "encode_partial", encode)

    def act(session, own):
        assert go_through(session, own).tolist() == [6, 6]
        return go_through(session, own)

    # Its owner is rank 2, which combines no chunk here.
    ends = outcomes(3, held_sum([shares[0], shares[2], shares[4]], 2, act=act))
    assert all(isinstance(end, MpcflError) for end in ends)
    (blamed,) = [end for end in ends if isinstance(end, WrongPartial)]
    assert blamed.index == 5
    assert "rank 2" in str(blamed)
    assert "share 5" in str(blamed)


def test_product_is_opened_once(dealt):
    _, shares = dealt

    def act(session, own):
        product = session.aggregate(session.protect(own))
        assert session.open(product).tolist() == [6, 6]
        transport = session._link.transport
        with pytest.raises(OutOfOrder):
            session.open(product)
        transport.allgather(b"")
        # Who has the sum may help others to it, by the partials that it made before.
        assert session.open_over(transport, product).tolist() == [6, 6]
        session.protect(own)
        with pytest.raises(OutOfOrder):
            session.open_over(transport, product)
        return True

    assert run_parties(3, held_sum(shares[:3], 2, act=act), deadline_s=20) == [True] * 3


@pytest.mark.parametrize("way", ["open", "open_over"])
def test_closed_session_decrypts_nothing(dealt, decrypted, way):
    _, shares = dealt

    def act(session, own):
        transport = session._link.transport
        product = session.aggregate(session.protect(own))
        transport.allgather(b"")
        session.close()
        return session.open(product) if way == "open" else session.open_over(transport, product)

    ends = outcomes(3, held_sum(shares[:3], 2, act=act))
    assert not decrypted
    assert all(isinstance(end, OutOfOrder) for end in ends), ends


def over(network_of, session, product):
    """Open over the survivors' network, where this rank is one of them."""
    return session.open_over(network_of[session._link.rank], product)


@pytest.mark.parametrize("dead", list(itertools.combinations(range(5), 2)))
def test_survivors_of_any_two_deaths_open_the_product_and_nobody_else_does(
    dealt, short_chunks, dead
):
    _, shares = dealt
    dim = 4 * slots_of(16, 5)
    living = [rank for rank in range(5) if rank not in dead]
    network = MemoryNetwork(3, 20.0)
    ends = {rank: MemoryTransport(network, place) for place, rank in enumerate(living)}

    def act(session, own):
        product = session.aggregate(session.protect(own))
        return over(ends, session, product) if session._link.rank in ends else None

    results = run_parties(5, held_sum(shares, dim, act=act), deadline_s=20)
    for rank in living:
        assert results[rank].tolist() == [15] * dim


@pytest.mark.parametrize("dead", [(3, 4), (0, 1), (1, 3)])
def test_survivors_whose_opening_broke_off_still_get_the_sum_with_one_partial_per_chunk(
    dealt, short_chunks, monkeypatch, dead
):
    # They learn of the deaths as MPI tells them: from a stage that fails.
    _, shares = dealt
    dim = 5 * slots_of(16, 5)
    living = [rank for rank in range(5) if rank not in dead]
    network = MemoryNetwork(3, 20.0)
    ends = {rank: MemoryTransport(network, place) for place, rank in enumerate(living)}
    made = []
    plain = threshold_sum.partially_decrypt

    def partially(share, ciphertexts, *rest):
        made.append((share.index, tuple(ciphertexts)))
        return plain(share, ciphertexts, *rest)

    monkeypatch.setattr(threshold_sum, "partially_decrypt", partially)

    class Mortal(MemoryTransport):
        died = False

        def exchange(self, outgoing, sources):
            lost = {*outgoing, *sources} & {*dead} if self.died else set()
            alive = {rank: text for rank, text in outgoing.items() if rank not in lost}
            received = super().exchange(alive, [] if lost else sources)
            if lost:
                raise PartyLost("a rank died", tuple(lost))
            return received

    def act(session, own):
        transport = session._link.transport
        product = session.aggregate(session.protect(own))
        transport.allgather(b"")
        if session._link.rank in dead:
            return None
        transport.__class__ = Mortal
        transport.died = True
        with pytest.raises(PartyLost):
            session.open(product)
        return over(ends, session, product)

    results = run_parties(5, held_sum(shares, dim, act=act), deadline_s=20)
    for rank in living:
        assert results[rank].tolist() == [15] * dim
    assert len(made) == len(set(made))


def test_two_survivors_of_five_open_nothing(dealt, decrypted):
    _, shares = dealt
    network = MemoryNetwork(2, 5.0)
    ends = {rank: MemoryTransport(network, place) for place, rank in enumerate((1, 4))}

    def act(session, own):
        product = session.aggregate(session.protect(own))
        if session._link.rank not in ends:
            return True
        with pytest.raises(ConfigError, match="3 key shares"):
            over(ends, session, product)
        return True

    assert run_parties(5, held_sum(shares, 2, act=act), deadline_s=20) == [True] * 5
    assert not decrypted


def test_survivors_with_products_of_different_sums_open_nothing(dealt, decrypted):
    _, shares = dealt
    network = MemoryNetwork(3, 20.0)
    ends = {rank: MemoryTransport(network, rank) for rank in range(3)}

    def act(session, own):
        products = [session.aggregate(session.protect(own)) for _ in range(2)]
        if session._link.rank not in ends:
            return None
        return over(ends, session, products[session._link.rank == 2])

    with pytest.raises((TranscriptMismatch, OutOfOrder)):
        run_parties(5, held_sum(shares, 2, act=act), deadline_s=20)
    assert not decrypted


# The log.


def spend(log, chunk=0, round_id=1, attempt=0, run=RUN_ID):
    log.spend(run, SumId(round_id, attempt), chunk, "ab" * 32)


def test_log_survives_a_restart_and_tells_sums_apart(tmp_path):
    path = tmp_path / "party.log"
    log = DecryptionLog(path)
    assert path.stat().st_mode & 0o777 == 0o600
    names = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    for name in names:
        spend(log, *name)
    spend(log, run="6b" * 16)
    log.close()
    again = DecryptionLog(path)
    for name in names:
        with pytest.raises(OutOfOrder):
            spend(again, *name)
    spend(again, 2)
    again.close()


def test_closed_log_lets_nothing_through(tmp_path):
    path = tmp_path / "party.log"
    log = DecryptionLog(path)
    log.close()
    with pytest.raises((OutOfOrder, OSError)):
        spend(log)
    assert path.read_bytes() == b""


def test_log_with_any_torn_last_line_opens_and_keeps_the_rest(tmp_path):
    path = tmp_path / "party.log"
    log = DecryptionLog(path)
    for chunk in range(3):
        spend(log, chunk)
    log.close()
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in (start, *range(start + 1, len(whole), 9), len(whole) - 1):
        path.write_bytes(whole[:cut])
        log = DecryptionLog(path)
        for chunk in (0, 1):
            with pytest.raises(OutOfOrder):
                spend(log, chunk)
        spend(log, 2)
        log.close()
        again = DecryptionLog(path)
        with pytest.raises(OutOfOrder):
            spend(again, 2)
        again.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], b"garbage", lines[2]],
        lambda lines: [lines[0], b"", lines[2]],
        lambda lines: [lines[0], lines[1][:-9], lines[2]],
        lambda lines: [lines[0], lines[1][9:], lines[2]],
        lambda lines: [lines[0], b"\0" * len(lines[1]), lines[2]],
        lambda lines: [lines[0], lines[1].replace(b'"chunk": 1', b'"chunk": "1"'), lines[2]],
        lambda lines: [lines[0], lines[1].replace(b'"chunk": 1', b'"chunk": 9'), lines[2]],
        lambda lines: [lines[0], lines[1].replace(b"5a5a", b"5a5b", 1), lines[2]],
        lambda lines: [lines[0], lines[2]],
    ],
    ids=["garbage", "empty", "cut", "cut before", "zeros", "type", "one digit", "one letter",
         "line lost"],
)  # fmt: skip
def test_log_that_is_damaged_in_the_middle_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "party.log"
    log = DecryptionLog(path)
    for chunk in range(3):
        spend(log, chunk)
    log.close()
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(damage(lines)) + b"\n")
    with pytest.raises(KeyFileError, match=r"party\.log"):
        DecryptionLog(path)


def test_full_disk_stops_the_partial_and_leaves_a_log_that_opens(tmp_path, monkeypatch):
    path = tmp_path / "party.log"
    log = DecryptionLog(path)
    spend(log, 0)
    plain = os.write
    calls = []

    def half(file, content):
        calls.append(file)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(file, content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises((OSError, KeyFileError), match="space"):
            spend(log, 1)
    # Somebody makes room, and the next chunk's partial is made.
    written = True
    try:
        spend(log, 2)
    except (OSError, MpcflError):
        written = False
    log.close()
    again = DecryptionLog(path)
    for chunk in (0, 2) if written else (0,):
        with pytest.raises(OutOfOrder):
            spend(again, chunk)
    again.close()


def test_log_that_others_may_read_or_write_is_refused(tmp_path):
    path = tmp_path / "party.log"
    DecryptionLog(path).close()
    for mode in (0o644, 0o660, 0o602):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="chmod 600"):
            DecryptionLog(path)


CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mpcfl.config import Custody
from mpcfl.errors import KeyFileError
from mpcfl.hazmat.threshold_key import raw_deal_key_from_primes
from mpcfl.net.memory import run_parties
from mpcfl.secagg import custody, threshold_sum
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.decryption_log import DecryptionLog
from mpcfl.secagg.key_holding import HeldShare, read_own_passphrase
from mpcfl.secagg.paillier_sum import open_paillier_sum

path, p, q = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
try:
    log = DecryptionLog(path)
except KeyFileError as error:
    print(error)
    sys.exit(3)
custody.MIN_KEY_BITS = 512
_, shares = raw_deal_key_from_primes(p, q, 3, 3)
plain = threshold_sum.partially_decrypt

def die(share, *rest):
    if share.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(share, *rest)

threshold_sum.partially_decrypt = die

def party(transport):
    held = HeldShare(shares[transport.rank], *([log] if transport.rank == 1 else []))
    settings = SumSettings(3, 16, key_bits=512, custody=Custody.THRESHOLD, run_id="5a" * 16)
    session = open_paillier_sum(transport, settings, held=held)
    session.open(session.aggregate(session.protect(np.ones(3, np.int64))))

run_parties(3, party)
"""


def test_log_is_on_the_disk_before_the_partial_and_has_one_owner(tmp_path):
    path = tmp_path / "party.log"
    command = [sys.executable, "-c", CHILD, str(path), str(P), str(Q)]
    log = DecryptionLog(path)
    busy = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert busy.returncode == 3, busy.stderr
    assert str(path) in busy.stdout
    log.close()
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -9, killed.stderr
    assert path.read_bytes().endswith(b"\n")
    again = DecryptionLog(path)
    with pytest.raises(OutOfOrder):
        spend(again, 0, round_id=0)
    spend(again, 1, round_id=0)
    again.close()


# Key files.


@pytest.fixture
def files(tmp_path, dealt, monkeypatch):
    """Share files of five parties, whose passphrases are cheap to try."""
    monkeypatch.setattr(key_files, "_COST", key_files.ScryptCost(n=1 << 10, r=8, p=1))
    key, shares = dealt
    names = ("ann", "bob", "cyd", "dan", "eve")
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    for share in shares:
        write_key_share(
            folder / f"{names[share.index - 1]}.share", share, names, PASSPHRASE + str(share.index)
        )
    write_public_file(folder / "public.json", NamedKey(key, names))
    return folder


def test_shares_from_files_open_sums_with_their_logs(files, tmp_path):
    names = ["eve", "bob", "dan"]
    secrets = {"eve": 5, "bob": 2, "dan": 4}

    def party(transport):
        name = names[transport.rank]
        share = load_key_share(share_path(files, name), PASSPHRASE + str(secrets[name]))
        log = DecryptionLog(tmp_path / f"{name}.log")
        session = open_paillier_sum(
            transport, chosen(THRESHOLD, 2, threshold=3), held=HeldShare(share, log)
        )
        try:
            return go_through(session, np.full(2, 5)).tolist()
        finally:
            session.close()

    assert run_parties(3, party, deadline_s=20) == [[15, 15]] * 3
    # The same run, round, attempt and chunk again, by processes that were started anew.
    ends = outcomes(3, party)
    assert all(isinstance(end, MpcflError) for end in ends)
    assert any(isinstance(end, OutOfOrder) for end in ends)


def test_two_sessions_with_one_loaded_share_are_both_logged(files):
    names = ["ann", "bob", "cyd"]

    def party(transport):
        number = transport.rank + 1
        path = files / f"{names[transport.rank]}.share"
        held = mpcfl.load_key_share(path, PASSPHRASE + str(number))
        totals = []
        for _ in range(2):
            with mpcfl.open_secure_sum(
                comm=transport, backend="paillier", dim=2, key_bits=KEY_BITS,
                custody="threshold", key_share=held,
            ) as session:  # fmt: skip
                totals += [session.sum(np.full(2, number)).tolist() for _ in range(2)]
        return totals

    assert run_parties(3, party, deadline_s=20) == [[[6, 6]] * 4] * 3
    for name in names:
        (log,) = (p for p in files.iterdir() if p.stem == name and p.suffix != ".share")
        assert len(log.read_text().splitlines()) == 4
        assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "separator", ["", "\u2028", "\x0b", "\x0c", "\x85", "\x1c", "\t", "\ufeff"]
)
def test_passphrase_file_of_the_ceremony_serves_the_parties(tmp_path, separator):
    phrases = [f"a phrase {separator} of {name} here" for name in ("ann", "bob", "cyd")]
    path = tmp_path / "passphrases"
    path.touch(mode=0o600)
    path.write_bytes("".join(f"{phrase}\n" for phrase in phrases).encode())
    ceremony = Ceremony(tmp_path / "keys", ("ann", "bob", "cyd"), 2)
    assert read_passphrases(path, ceremony) == phrases
    assert [read_own_passphrase(path, rank) for rank in range(3)] == phrases


def test_share_file_tells_no_secret_and_only_its_passphrase_opens_it(files, dealt):
    _, shares = dealt
    path = files / "bob.share"
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text().lower()
    for secret in (shares[1].raw_value(), shares[1].raw_exponent(), P, Q):
        assert f"{secret:x}" not in text
        assert str(secret) not in text
    assert PASSPHRASE not in text
    assert load_key_share(path, PASSPHRASE + "2").raw_value() == shares[1].raw_value()
    for wrong in ("", PASSPHRASE, PASSPHRASE + "3", PASSPHRASE + "2 ", "\ud7ff" * 9):
        with pytest.raises(KeyFileError, match=r"bob\.share.*passphrase") as caught:
            load_key_share(path, wrong)
        assert PASSPHRASE not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_share_file_that_others_may_touch_is_refused(files, mode):
    path = files / "bob.share"
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=r"bob\.share.*chmod 600"):
        load_key_share(path, PASSPHRASE + "2")


def test_every_changed_field_of_a_share_file_is_found(files):
    path = files / "bob.share"
    whole = json.loads(path.read_text())
    places = []

    def walk(value, place):
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for step, part in pairs:
                walk(part, (*place, step))
        else:
            places.append(place)

    walk(whole, ())
    assert len(places) > 12
    for place in places:
        document = copy.deepcopy(whole)
        part = document
        for step in place[:-1]:
            part = part[step]
        value = part[place[-1]]
        if isinstance(value, bool):
            changes = [not value, None]
        elif isinstance(value, int):
            changes = [value + 1, -value, str(value), None]
        else:
            swapped = value[:-1] + ("0" if value[-1] != "0" else "1")
            changes = [swapped, value[:-1], value + "11", "", None, 7]
        for change in changes:
            part[place[-1]] = change
            path.write_text(json.dumps(document))
            with pytest.raises(KeyFileError, match=r"bob\.share"):
                load_key_share(path, PASSPHRASE + "2")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"kind": "mpcfl-key-share"}'],
    ids=["empty", "cut", "list", "null", "binary", "deep", "bare"],
)  # fmt: skip
def test_damaged_share_file_is_refused_by_name(files, content):
    path = files / "bob.share"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=r"bob\.share"):
        load_key_share(path, PASSPHRASE + "2")


def test_things_that_are_no_share_file_are_refused_by_name(files):
    os.mkfifo(files / "fifo.share", 0o600)
    (files / "folder.share").mkdir()
    (files / "huge.share").touch(mode=0o600)
    os.truncate(files / "huge.share", 1 << 30)
    (files / "public.json").chmod(0o600)
    for name in ("fifo.share", "folder.share", "huge.share", "none.share", "public.json"):
        with pytest.raises(KeyFileError, match=name):
            load_key_share(files / name, PASSPHRASE)


def test_share_of_another_key_or_under_another_name_is_refused(files, dealt, tmp_path):
    key, _ = dealt
    other, _ = raw_deal_key_from_primes(P, Q, 5, 3)
    with pytest.raises(KeyFileError, match=r"bob\.share"):
        load_key_share(files / "bob.share", PASSPHRASE + "2", expected=other)
    bob, cyd = (json.loads((files / f"{name}.share").read_text()) for name in ("bob", "cyd"))
    # Bob's sealed part in cyd's file, and the other way about.
    for field in ("sealed", "nonce", "scrypt", "index", "party"):
        mixed = bob | {field: cyd[field]}
        (files / "bob.share").write_text(json.dumps(mixed))
        with pytest.raises(KeyFileError, match=r"bob\.share"):
            load_key_share(files / "bob.share", PASSPHRASE + "2", expected=key)


def test_private_things_of_a_session_show_nothing(dealt, known_key):
    _, shares = dealt
    seen = []

    def act(session, own):
        held = session._held
        things = [session, held, held.share, session._link.ops._pool, session._link.ops]
        seen.extend(f"{thing!r} {thing}" for thing in things)
        for thing in (held, session._link.ops._pool, session):
            with pytest.raises(TypeError):
                copy.deepcopy(thing)
        return True

    run_parties(3, held_sum(shares[:3], 2, act=act), deadline_s=20)
    secrets = [P, Q, *(s.raw_value() for s in shares), *(s.raw_exponent() for s in shares)]
    text = " ".join(seen).lower()
    assert not any(str(s) in text or f"{s:x}" in text for s in secrets)
