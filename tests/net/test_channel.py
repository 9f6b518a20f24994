import copy
import pickle  # noqa: TID251 - to see that secrets refuse it

import numpy as np
import pytest

from mpcfl.errors import AuthenticationError, OutOfOrder, TranscriptMismatch
from mpcfl.net import channel
from mpcfl.net.channel import PairSecrets, SealedTransport, agree_pair_secrets
from mpcfl.net.memory import MemoryTransport, run_parties


def agree(n_ranks, run_id="run"):
    return run_parties(n_ranks, lambda transport: agree_pair_secrets(transport, run_id))


def ring_of(rank, n_ranks):
    return ((rank - 1) % n_ranks, (rank + 1) % n_ranks)


def test_neighbors_share_secrets_and_nobody_else_does():
    def party(transport):
        return agree_pair_secrets(transport, "run", peers=ring_of(transport.rank, 5))

    secrets = run_parties(5, party)
    for rank in range(5):
        assert secrets[rank].peers == tuple(sorted(ring_of(rank, 5)))
        for peer in ring_of(rank, 5):
            assert secrets[rank].key(peer, "mask", 1) == secrets[peer].key(rank, "mask", 1)
        with pytest.raises(OutOfOrder):
            secrets[rank].key((rank + 2) % 5, "mask", 1)
    assert len({secrets[rank].key((rank + 1) % 5, "mask", 1) for rank in range(5)}) == 5


@pytest.mark.parametrize("n_ranks", [5, 9])
def test_key_agreement_takes_as_many_exchanges_as_there_are_neighbors(n_ranks, monkeypatch):
    done = []
    original = channel.raw_shared_secret
    monkeypatch.setattr(channel, "raw_shared_secret", lambda *a: done.append(1) or original(*a))
    run_parties(n_ranks, lambda t: agree_pair_secrets(t, "run", peers=ring_of(t.rank, n_ranks)))
    assert len(done) == 2 * n_ranks


class OtherView(MemoryTransport):
    """Shows its rank another public key of rank 2; what comes later goes through as it is."""

    def allgather(self, message):
        seen = super().allgather(message)
        if getattr(self, "is_changed", False):
            return seen
        self.is_changed = True
        return [*seen[:2], b"\x09" + bytes(31)]


@pytest.mark.parametrize("peers", [None, ()], ids=["all pairs", "no neighbors"])
def test_ranks_that_saw_different_keys_stop_all_of_them(peers):
    errors = {}

    def party(transport):
        if transport.rank == 1:
            transport.__class__ = OtherView
        try:
            agree_pair_secrets(transport, "run", peers=peers)
        except TranscriptMismatch as error:
            errors[transport.rank] = str(error)

    run_parties(3, party)
    assert set(errors) == {0, 1, 2}
    assert all("rank 1 saw the exchange of public keys otherwise" in e for e in errors.values())


def test_ranks_that_name_the_run_differently_are_stopped():
    def party(transport):
        agree_pair_secrets(transport, "run" if transport.rank else "other")

    with pytest.raises(TranscriptMismatch):
        run_parties(2, party)


@pytest.fixture
def unconfirmed(monkeypatch):
    """Leave out the comparison, to see what secrets are worth without it."""
    monkeypatch.setattr(channel, "require_same", lambda *_: None)


@pytest.mark.usefixtures("unconfirmed")
def test_secrets_of_neighbors_cover_the_public_keys_of_all():
    # Rank 2 is no neighbor of 0 and 1; a view of its key that differs still parts them.
    def party(transport, changed):
        if changed and transport.rank == 0:
            transport.__class__ = OtherView
        peers = {0: [1], 1: [0], 2: []}[transport.rank]
        return agree_pair_secrets(transport, "run", peers=peers)

    for changed in (False, True):
        left, right, _ = run_parties(3, lambda t, c=changed: party(t, c))
        assert (left.key(1, "mask") == right.key(0, "mask")) is not changed


@pytest.mark.parametrize("peers", [[0, 1], [1, 3], [-1]])
def test_a_peer_that_is_oneself_or_nobody_is_refused(peers):
    def party(transport):
        if transport.rank == 0:
            agree_pair_secrets(transport, "run", peers=peers)

    with pytest.raises(ValueError, match=r"only \[1, 2\]"):
        run_parties(3, party)


def channels(purpose="test"):
    left, right = agree(2)
    return left.channel(1, purpose), right.channel(0, purpose)


def test_both_sides_of_every_pair_derive_the_same_key():
    secrets = agree(4)
    for one in range(4):
        for other in secrets[one].peers:
            assert secrets[one].key(other, "mask", 1) == secrets[other].key(one, "mask", 1)


def test_keys_differ_by_pair_purpose_and_context():
    secrets = agree(3)[0]
    keys = {
        secrets.key(1, "mask", 1),
        secrets.key(1, "mask", 2),
        secrets.key(1, "other", 1),
        secrets.key(2, "mask", 1),
    }
    assert len(keys) == 4


class FixedBits:
    def __init__(self, rank):
        self.rank = rank

    def words(self, count):
        return np.arange(1, count + 1, dtype=np.uint64) + np.uint64(100 * self.rank)


@pytest.mark.parametrize(("run_a", "run_b", "equal"), [("a", "a", True), ("a", "b", False)])
def test_run_id_is_bound_into_every_key(run_a, run_b, equal):
    def keys(run_id):
        def party(transport):
            return agree_pair_secrets(transport, run_id, FixedBits(transport.rank))

        return run_parties(2, party)[0].key(1, "mask")

    assert (keys(run_a) == keys(run_b)) is equal


@pytest.mark.usefixtures("unconfirmed")
def test_ranks_with_different_views_of_the_key_exchange_share_no_key():
    # Rank 2's public key is shown to rank 0 only in a changed form: even ranks 0 and 1 differ.
    def party(transport):
        if transport.rank == 0:
            transport.__class__ = OtherView
        return agree_pair_secrets(transport, "run")

    left, right, _ = run_parties(3, party)
    assert left.key(1, "mask") != right.key(0, "mask")


@pytest.mark.parametrize(
    "bad_key", [bytes(32), b"\x01" + bytes(31), b"short", b"\x07" * 33], ids=len
)
def test_weak_or_malformed_public_key_is_refused(bad_key):
    class Liar(MemoryTransport):
        def allgather(self, message):
            return [message, bad_key]

    def party(transport):
        if transport.rank == 0:
            transport.__class__ = Liar
            agree_pair_secrets(transport, "run")

    with pytest.raises(AuthenticationError):
        run_parties(2, party)


@pytest.mark.usefixtures("unconfirmed")
def test_a_malformed_public_key_of_a_rank_without_shared_secrets_is_refused_too():
    class Liar(MemoryTransport):
        def allgather(self, message):
            return [*super().allgather(message)[:2], b"\x09" * 33]

    def party(transport):
        transport.__class__ = Liar if transport.rank == 0 else MemoryTransport
        agree_pair_secrets(transport, "run", peers={0: [1], 1: [0], 2: []}[transport.rank])

    with pytest.raises(AuthenticationError):
        run_parties(3, party)


def test_reflected_public_key_is_refused():
    class Mirror(MemoryTransport):
        def allgather(self, message):
            return [message, message]

    def party(transport):
        if transport.rank == 0:
            transport.__class__ = Mirror
            agree_pair_secrets(transport, "run")

    with pytest.raises(AuthenticationError):
        run_parties(2, party)


def test_messages_open_in_order_in_both_directions():
    left, right = channels()
    for message in (b"", b"one", b"two" * 1000):
        assert right.open(left.seal(message)) == message
        assert left.open(right.seal(message)) == message


def flip(sealed):
    return bytes([sealed[0] ^ 1]) + sealed[1:]


@pytest.mark.parametrize("change", [flip, lambda s: s[:-1], lambda s: s + b"\x00", lambda _: b""])
def test_changed_or_cut_message_does_not_open(change):
    left, right = channels()
    with pytest.raises(AuthenticationError):
        right.open(change(left.seal(b"message")))


def test_replayed_reordered_and_reflected_messages_do_not_open():
    left, right = channels()
    first, second = left.seal(b"1"), left.seal(b"2")
    with pytest.raises(AuthenticationError):
        right.open(second)
    right.open(first)
    with pytest.raises(AuthenticationError):
        right.open(first)
    # Left expects message 0 of right; its own message 0 has the same number but another key.
    with pytest.raises(AuthenticationError):
        left.open(first)


def test_channels_of_different_purposes_do_not_open_each_other():
    left, right = agree(2)
    sealed = left.channel(1, "one").seal(b"message")
    with pytest.raises(AuthenticationError):
        right.channel(0, "two").open(sealed)


def test_second_channel_for_one_purpose_is_refused_because_nonces_would_repeat():
    left, _ = agree(2)
    left.channel(1, "one")
    with pytest.raises(OutOfOrder):
        left.channel(1, "one")


def test_forgotten_secrets_give_no_more_keys():
    left, _ = agree(2)
    left.forget()
    with pytest.raises(OutOfOrder):
        left.key(1, "mask")


def test_survivors_share_fresh_secrets_under_new_numbers():
    everybody = agree(4)
    members = (0, 2, 3)
    left = {rank: everybody[rank].restrict(members, "epoch", 1) for rank in members}
    assert [left[rank].peers for rank in members] == [(1, 2), (0, 2), (0, 1)]
    keys = set()
    for place, one in enumerate(members):
        for other_place in left[one].peers:
            other = members[other_place]
            key = left[one].key(other_place, "mask")
            assert key == left[other].key(place, "mask")
            assert key != everybody[one].key(other, "mask")
            keys.add(key)
    assert len(keys) == 3
    first, third = left[0].channel(2, "test"), left[3].channel(0, "test")
    assert third.open(first.seal(b"message")) == b"message"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((0, 1), "epoch", 1), ((0, 1), "epoch", 2)),
        (((0, 1), 2), ((0, 1, 2),)),
        (((0, 1), "1"), ((0, 1), 1)),
        (((0, 1, 2), "epoch"), ((0, 1), "epoch")),
        (((0, 1, 2), "epoch"), ((0, 1, 3), "epoch")),
    ],
)
def test_secrets_for_other_members_or_another_context_differ(one, other):
    secrets = agree(4)[0]
    assert secrets.restrict(*one).key(1, "mask") != secrets.restrict(*other).key(1, "mask")


def test_members_who_see_each_other_otherwise_share_nothing():
    left, right, _ = agree(3)
    assert left.restrict((0, 1, 2), 1).key(1, "mask") != right.restrict((0, 1), 1).key(0, "mask")


def test_secrets_for_the_same_members_are_made_once():
    secrets = agree(3)[0]
    secrets.restrict((0, 1), "epoch", 1)
    with pytest.raises(OutOfOrder, match="made before"):
        secrets.restrict((0, 1), "epoch", 1)


@pytest.mark.parametrize("members", [(1, 2), (1, 0), (0, 0, 1), (), (0, 1, 3)])
def test_members_that_can_not_be_are_refused(members):
    with pytest.raises((ValueError, OutOfOrder)):
        agree(3)[0].restrict(members)


def test_what_is_kept_outlives_what_is_dropped_and_children_outlive_both():
    secrets = agree(3)[0]
    child = secrets.restrict((0, 1, 2))
    kept = secrets.key(1, "mask")
    secrets.keep([1])
    assert secrets.peers == (1,)
    assert secrets.key(1, "mask") == kept
    with pytest.raises(OutOfOrder):
        secrets.restrict((0, 1, 2), "later")
    secrets.forget()
    with pytest.raises(OutOfOrder):
        secrets.restrict((0, 1), "later")
    assert child.peers == (1, 2)


@pytest.mark.parametrize("kind", ["secrets", "channel"])
def test_secrets_are_not_shown_pickled_copied_or_used_as_condition(kind):
    secrets = PairSecrets(0, {1: b"\xab" * 32})
    secret = secrets if kind == "secrets" else secrets.channel(1, "test")
    assert repr(secret) == f"{type(secret).__name__}(<redacted>)"
    for leak in (pickle.dumps, copy.copy, bool):
        with pytest.raises(TypeError):
            leak(secret)


def test_sealed_transport_delivers_and_hides_and_closes():
    seen = []

    class Tap(MemoryTransport):
        def exchange(self, outgoing, sources):
            seen.extend(outgoing.values())
            return super().exchange(outgoing, sources)

    def party(transport):
        transport.__class__ = Tap
        wires = SealedTransport(transport, agree_pair_secrets(transport, "run"), "test")
        peer = 1 - transport.rank
        got = wires.exchange({peer: b"hidden words"}, [peer])
        wires.close()
        with pytest.raises(OutOfOrder):
            wires.exchange({peer: b""}, [])
        return got[peer]

    assert run_parties(2, party) == [b"hidden words"] * 2
    assert not any(b"hidden" in message for message in seen)


def test_sealed_transport_names_the_rank_and_the_stage_of_a_message_that_does_not_open():
    class Cutting(MemoryTransport):
        def exchange(self, outgoing, sources):
            return {r: text[:-1] for r, text in super().exchange(outgoing, sources).items()}

    def party(transport):
        wires = SealedTransport(transport, agree_pair_secrets(transport, "run"), "test")
        peer = 1 - transport.rank
        if transport.rank == 1:
            transport.__class__ = Cutting
        transport.meter.current = "aggregate"
        try:
            wires.exchange({peer: b"text"}, [peer])
        except AuthenticationError as error:
            return error.peer, error.stage
        return None

    assert run_parties(2, party) == [None, ("rank 0", "aggregate")]
