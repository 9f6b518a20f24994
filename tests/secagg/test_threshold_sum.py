import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest

import mpcfl
from mpcfl.config import Custody
from mpcfl.errors import (
    AuthenticationError,
    ConfigError,
    KeyFileError,
    OutOfOrder,
    ProtocolError,
    TranscriptMismatch,
    WrongPartial,
)
from mpcfl.hazmat import threshold
from mpcfl.hazmat.threshold_key import raw_deal_key
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg import paillier_ops, threshold_sum
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.decryption_log import DecryptionLog
from mpcfl.secagg.key_holding import HeldShare, read_own_passphrase
from mpcfl.secagg.paillier_sum import open_paillier_sum

DIM = 40
KEY_BITS = 512

pytestmark = pytest.mark.usefixtures("small_keys", "short_chunks")


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(paillier_ops, "chunk_ciphertexts", lambda key_bits: 1)


@pytest.fixture(scope="module")
def dealt():
    """A key of five shares, three of which decrypt."""
    return raw_deal_key(KEY_BITS, 5, 3)


def chosen(threshold=3, dim=DIM):
    return SumSettings(dim, 20, KEY_BITS, Custody.THRESHOLD, run_id="66" * 16, threshold=threshold)


def levels_of(rank):
    return np.arange(DIM, dtype=np.int64) - 20 * rank


def total_of(ranks):
    return sum(levels_of(rank) for rank in ranks).tolist()


def with_shares(dealt, indices, program, settings=None):
    """Run one program per rank with the given key shares."""
    _, shares = dealt

    def party(transport):
        held = HeldShare(shares[indices[transport.rank] - 1])
        session = open_paillier_sum(transport, settings or chosen(), held=held)
        return program(transport, session)

    return run_parties(len(indices), party, deadline_s=10)


@pytest.mark.parametrize("indices", list(itertools.combinations(range(1, 6), 3)))
def test_any_three_of_five_open_the_sum(dealt, indices):
    def program(transport, session):
        return session.open(session.aggregate(session.protect(levels_of(transport.rank)))).tolist()

    assert with_shares(dealt, indices, program) == [total_of(range(3))] * 3


def test_two_of_five_are_refused_before_anything_is_sent(dealt):
    with pytest.raises(ConfigError, match="2 ranks are here, 3 key shares decrypt"):
        with_shares(dealt, (1, 4), lambda transport, session: None)


def test_wrong_partial_is_blamed_on_its_author_and_nothing_is_opened(dealt, monkeypatch):
    opened = []
    unpack = paillier_ops.unpack
    monkeypatch.setattr(
        paillier_ops, "unpack", lambda *arguments: opened.append(arguments) or unpack(*arguments)
    )
    right = threshold.partially_decrypt

    def wrong(share, ciphertexts, context):
        partial = right(share, ciphertexts, context)
        if share.index != 4:
            return partial
        square = share.key.public_key.square
        values = (partial.values[0] * 4 % square, *partial.values[1:])
        return type(partial)(partial.index, values, partial.proof)

    monkeypatch.setattr(threshold_sum, "partially_decrypt", wrong)

    def program(transport, session):
        session.open(session.aggregate(session.protect(levels_of(transport.rank))))

    with pytest.raises(WrongPartial, match=r"rank 2 .*key share 4") as caught:
        with_shares(dealt, (1, 2, 4), program)
    assert caught.value.index == 4
    # Rank 0 combines the first chunk, of which rank 2 is one of three.
    assert opened == []


def test_partial_of_the_wrong_length_is_blamed_too(dealt, monkeypatch):
    encode = threshold_sum.encode_partial
    monkeypatch.setattr(
        threshold_sum,
        "encode_partial",
        lambda key, partial: encode(key, partial)[: -1 if partial.index == 2 else None],
    )

    def program(transport, session):
        session.open(session.aggregate(session.protect(levels_of(transport.rank))))

    with pytest.raises(WrongPartial, match=r"rank 1 .*key share 2"):
        with_shares(dealt, (1, 2, 3), program)


def test_sum_is_opened_once(dealt):
    def program(transport, session):
        product = session.aggregate(session.protect(levels_of(transport.rank)))
        session.open(product)
        with pytest.raises(OutOfOrder, match="opened before"):
            session.open(product)

    with_shares(dealt, (1, 2, 3), program)


def test_those_who_are_left_open_what_all_have_summed(dealt):
    """Two of five are gone after the ciphertexts were multiplied; the other three go on."""
    products, sessions = {}, {}

    def program(transport, session):
        products[transport.rank] = session.aggregate(session.protect(levels_of(transport.rank)))
        sessions[transport.rank] = session

    with_shares(dealt, (1, 2, 3, 4, 5), program)
    left = (1, 2, 4)

    def opening(transport):
        rank = left[transport.rank]
        return sessions[rank].open_over(transport, products[rank]).tolist()

    assert run_parties(3, opening, deadline_s=10) == [total_of(range(5))] * 3


def test_two_who_are_left_of_three_that_it_takes_open_nothing(dealt):
    products, sessions = {}, {}

    def program(transport, session):
        products[transport.rank] = session.aggregate(session.protect(levels_of(transport.rank)))
        sessions[transport.rank] = session

    with_shares(dealt, (1, 2, 3, 4, 5), program)

    def opening(transport):
        sessions[transport.rank].open_over(transport, products[transport.rank])

    with pytest.raises(ConfigError, match="2 ranks are here"):
        run_parties(2, opening, deadline_s=10)


def test_rank_that_shows_other_ciphertexts_than_it_committed_to_is_named(dealt, monkeypatch):
    commit = threshold_sum._commit
    monkeypatch.setattr(
        threshold_sum,
        "_commit",
        lambda tag, rank, own: commit(tag, rank, own[:-1] if rank == 1 and lie(rank) else own),
    )
    told = []

    def lie(rank):
        # Once, where it commits; whoever checks it computes the right one.
        told.append(rank)
        return len(told) == 1

    def program(transport, session):
        if transport.rank != 1:
            # The first to ask is rank 1 itself.
            while not told:
                pass
        session.aggregate(session.protect(levels_of(transport.rank)))

    with pytest.raises(TranscriptMismatch, match="rank 1 showed other ciphertexts"):
        with_shares(dealt, (1, 2, 3), program)


def test_rank_that_shows_different_ciphertexts_to_different_ranks_is_found(dealt):
    """Each pair of commitment and ciphertexts is in order; before opening, all are compared."""

    def program(transport, session):
        link = session._link
        if transport.rank == 1:
            exchange = link.wires.exchange
            other = {2: link.ops.encrypt(levels_of(9)[link.chunks[0]])}
            message = link.ops.write(other[2])
            tag = threshold_sum.domain_tag("ciphertexts", 0, 0, 0)
            lies = [threshold_sum._commit(tag, 1, message), message]

            def two_faced(outgoing, sources):
                if lies and 2 in outgoing:
                    outgoing = {**outgoing, 2: lies.pop(0)}
                return exchange(outgoing, sources)

            link.wires.exchange = two_faced
        product = session.aggregate(session.protect(levels_of(transport.rank)))
        session.open(product)

    with pytest.raises(TranscriptMismatch, match="ciphertexts of this sum"):
        with_shares(dealt, (1, 2, 3), program)


def test_shares_of_different_ceremonies_are_refused(dealt):
    _, others = raw_deal_key(KEY_BITS, 5, 3)

    def party(transport):
        shares = others if transport.rank == 2 else dealt[1]
        open_paillier_sum(transport, chosen(), held=HeldShare(shares[transport.rank]))

    with pytest.raises((KeyFileError, ConfigError), match="rank 2 holds a share of another key"):
        run_parties(3, party, deadline_s=5)


def test_same_share_at_two_ranks_is_refused(dealt):
    with pytest.raises(KeyFileError, match="1, 2, 2; each must have its own"):
        with_shares(dealt, (1, 2, 2), lambda transport, session: None)


def test_threshold_that_is_not_the_key_s_is_refused(dealt):
    with pytest.raises(ConfigError, match="3 of these key shares decrypt, threshold is 2"):
        with_shares(dealt, (1, 2, 3), lambda transport, session: None, chosen(threshold=2))


def test_share_of_another_size_of_key_is_refused(dealt, monkeypatch):
    bigger = SumSettings(DIM, 20, 1024, Custody.THRESHOLD, run_id="66" * 16)
    with pytest.raises(ConfigError, match="of a key of 512 bits, key_bits is 1024"):
        with_shares(dealt, (1, 2, 3), lambda transport, session: None, bigger)


def test_key_share_is_of_no_use_with_another_custody(dealt):
    settings = SumSettings(DIM, 20, KEY_BITS, Custody.HOLDER, run_id="66" * 16)
    with pytest.raises(ConfigError, match='custody = "threshold"'):
        with_shares(dealt, (1, 2, 3), lambda transport, session: None, settings)


def test_log_is_written_before_each_partial_and_given_back(dealt, tmp_path, monkeypatch):
    seen = []
    right = threshold.partially_decrypt

    def watched(share, ciphertexts, context):
        log = tmp_path / f"{share.index}.decrypted"
        seen.append((share.index, len(log.read_text().splitlines())))
        return right(share, ciphertexts, context)

    monkeypatch.setattr(threshold_sum, "partially_decrypt", watched)

    def party(transport):
        share = dealt[1][transport.rank]
        log = DecryptionLog(tmp_path / f"{share.index}.decrypted")
        session = open_paillier_sum(transport, chosen(), held=HeldShare(share, log))
        total = session.open(session.aggregate(session.protect(levels_of(transport.rank))))
        session.close()
        log.close()
        return total.tolist()

    assert run_parties(3, party, deadline_s=10) == [total_of(range(3))] * 3
    for index in (1, 2, 3):
        counts = [lines for who, lines in seen if who == index]
        assert counts == list(range(1, len(counts) + 1))
        DecryptionLog(tmp_path / f"{index}.decrypted").close()  # no longer locked


def test_python_api_deals_shares_by_itself_and_takes_one_from_a_ceremony(dealt):
    def program(transport, **more):
        chosen = {"backend": "paillier", "dim": DIM, "key_bits": KEY_BITS, "modulus_bits": 20}
        with mpcfl.open_secure_sum(
            comm=transport, custody="threshold", threshold=3, **chosen, **more
        ) as secure:
            return [secure.sum(levels_of(transport.rank)).tolist() for _ in range(2)]

    expected = [[total_of(range(3))] * 2] * 3
    assert run_parties(3, program, deadline_s=20) == expected

    def with_file(transport):
        return program(transport, key_share=HeldShare(dealt[1][transport.rank]))

    assert run_parties(3, with_file, deadline_s=20) == expected


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"custody": "clients"}, ConfigError, "every rank brings data"),
        ({"custody": "threshold", "backend": "phe"}, ConfigError, "needs backend"),
        ({"threshold": 2}, ConfigError, "needs custody"),
        ({"custody": "threshold", "threshold": 4}, ConfigError, "no number of 3 key shares"),
        ({"custody": "threshold", "threshold": "2"}, TypeError, "integer"),
        ({"custody": "threshold", "key_share": "party-0.share"}, TypeError, "load_key_share"),
        ({"key_share": object()}, ConfigError, "leave it out"),
    ],
)
def test_python_api_names_what_is_wrong_with_its_options(options, error, text):
    def program(transport):
        arguments = {"backend": "paillier", "dim": 3, "key_bits": KEY_BITS, **options}
        mpcfl.open_secure_sum(comm=transport, **arguments)

    with pytest.raises(error, match=text):
        run_parties(3, program, deadline_s=5)


def test_ranks_that_disagree_on_the_threshold_stop():
    def program(transport):
        mpcfl.open_secure_sum(
            comm=transport, backend="paillier", dim=3, key_bits=KEY_BITS,
            custody="threshold", threshold=2 + (transport.rank == 2),
        )  # fmt: skip

    with pytest.raises(TranscriptMismatch, match="rank 2 wants threshold=3, rank 0 wants"):
        run_parties(3, program, deadline_s=5)


def test_partial_of_another_sum_does_not_open_this_one(dealt, monkeypatch):
    """The context of the proof names run, round, attempt, chunk and what all have seen."""
    context = threshold_sum.ThresholdSum._context

    def other(self, product, number):
        made = context(self, product, number)
        return made + b"x" if self._held.share.index == 3 and number == 0 else made

    monkeypatch.setattr(threshold_sum.ThresholdSum, "_context", other)

    def program(transport, session):
        session.open(session.aggregate(session.protect(levels_of(transport.rank))))

    with pytest.raises((WrongPartial, ProtocolError, AuthenticationError)):
        with_shares(dealt, (1, 2, 3), program)


@pytest.mark.parametrize(("text", "rank", "expected"), [("only\n", 3, "only"), ("a\nb\n", 1, "b")])
def test_passphrase_is_alone_in_its_file_or_in_the_line_of_its_rank(tmp_path, text, rank, expected):
    path = tmp_path / "passphrases"
    path.touch(mode=0o600)
    path.write_text(text)
    assert read_own_passphrase(path, rank) == expected


def test_passphrase_file_without_a_line_for_a_rank_is_refused(tmp_path):
    path = tmp_path / "passphrases"
    path.touch(mode=0o600)
    path.write_text("a\nb\n")
    with pytest.raises(KeyFileError, match="2 lines, and none for rank 2"):
        read_own_passphrase(path, 2)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_own_passphrase(path, 0)


def test_refused_opening_leaves_nothing_working_in_the_background(dealt):
    settings = replace(chosen(), precompute=True, dim=DIM * 1000)
    with pytest.raises(KeyFileError, match="each must have its own"):
        with_shares(dealt, (1, 2, 2), lambda transport, session: None, settings)
    assert not [thread for thread in threading.enumerate() if thread.name == "randomizers"]


def test_numbers_of_shares_are_sealed_on_their_way(dealt):
    """Who could change them on the wire could have an honest rank blamed."""
    seen = []

    class Tap(MemoryTransport):
        def allgather(self, message):
            seen.append(message)
            return super().allgather(message)

        def exchange(self, outgoing, sources):
            seen.extend(outgoing.values())
            return super().exchange(outgoing, sources)

    def party(transport):
        transport.__class__ = Tap
        open_paillier_sum(transport, chosen(), held=HeldShare(dealt[1][transport.rank]))

    run_parties(3, party, deadline_s=10)
    assert seen
    assert not any(dealt[0].fingerprint.encode() in message for message in seen)
