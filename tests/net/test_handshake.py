"""Authenticated key agreement: honest runs, and every way to be in the middle of one."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from mpcfl.errors import (
    AuthenticationError,
    ConfigError,
    MpcflError,
    PartyLost,
    PartyNotReady,
    ProtocolError,
    TranscriptMismatch,
)
from mpcfl.net import handshake, hello
from mpcfl.net.authenticated import AuthenticatedTransport
from mpcfl.net.handshake import Authenticated, HandshakeContext, authenticate
from mpcfl.net.identity import Identity
from mpcfl.net.memory import MemoryTransport, run_parties

NAMES = ("north", "south", "east", "west", "center")
IDENTITIES = tuple(Identity.new() for _ in NAMES)
KEYS = {rank: identity.public_key for rank, identity in enumerate(IDENTITIES)}
STRANGER = Identity.new()
HELLO, SIGNATURE = 0, 1

Outcome = Authenticated | MpcflError


def context_of(n_ranks: int) -> HandshakeContext:
    return HandshakeContext("job digest", NAMES[:n_ranks], ("numpy==2.1", "torch==2.6"))


def pins_of(rank: int, n_ranks: int) -> dict[int, bytes]:
    return {other: KEYS[other] for other in range(n_ranks) if other != rank}


class InTheMiddle(MemoryTransport):
    """Delivers what ``change(receiver, sender, number of the message, message)`` returns."""

    change: Callable[[int, int, int, bytes], bytes]
    number = 0

    def exchange(self, outgoing, sources):
        received = super().exchange(outgoing, sources)
        if not sources:
            return received
        self.number += 1
        return {
            sender: self.change(self.rank, sender, self.number - 1, message)
            for sender, message in received.items()
        }


def shake(
    n_ranks: int,
    change: Callable[[int, int, int, bytes], bytes] = lambda *call: call[-1],
    arguments: Callable[[int], Mapping[str, Any]] = lambda _: {},
    deadline_s: float = 20.0,
) -> list[Outcome]:
    """Run the handshake over a network that changes messages; return what each rank got of it."""

    def party(transport: MemoryTransport) -> Outcome:
        transport.__class__ = InTheMiddle
        transport.change = change
        rank = transport.rank
        given = {
            "identity": IDENTITIES[rank],
            "pins": pins_of(rank, n_ranks),
            "context": context_of(n_ranks),
        }
        try:
            return authenticate(transport, **(given | dict(arguments(rank))))
        except MpcflError as error:
            return error

    return run_parties(n_ranks, party, deadline_s)


def is_refused(outcome: Outcome) -> bool:
    return isinstance(outcome, ProtocolError)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "throw-away"])
def test_all_ranks_agree_on_the_run_and_each_pair_on_a_secret(n: int, pinned: bool) -> None:
    done = shake(n, arguments=lambda _: {} if pinned else {"pins": None})
    assert all(isinstance(outcome, Authenticated) for outcome in done), done
    assert len({outcome.run_id for outcome in done}) == 1
    assert len({outcome.transcript for outcome in done}) == 1
    assert len(bytes.fromhex(done[0].run_id)) == 16
    assert len(done[0].transcript) == 32
    assert {outcome.public_keys for outcome in done} == {tuple(KEYS[rank] for rank in range(n))}
    keys = set()
    for one in range(n):
        assert done[one].secrets.peers == tuple(r for r in range(n) if r != one)
        for other in done[one].secrets.peers:
            key = done[one].secrets.key(other, "mask", 1)
            assert key == done[other].secrets.key(one, "mask", 1)
            keys.add(key)
    assert len(keys) == n * (n - 1) // 2


def test_its_secrets_carry_an_authenticated_transport() -> None:
    def party(transport: MemoryTransport) -> list[bytes]:
        rank = transport.rank
        done = authenticate(transport, IDENTITIES[rank], pins_of(rank, 3), context_of(3))
        sealed = AuthenticatedTransport(transport, done.secrets, "run", NAMES)
        return sealed.allgather(bytes([rank]))

    assert run_parties(3, party) == [[b"\0", b"\1", b"\2"]] * 3


def test_every_run_has_keys_and_a_name_of_its_own() -> None:
    one, other = shake(2)[0], shake(2)[0]
    assert one.run_id != other.run_id
    assert one.transcript != other.transcript
    assert one.secrets.key(1, "mask") != other.secrets.key(1, "mask")


LENGTHS: dict[int, int] = {}


def note_lengths(_receiver: int, _sender: int, number: int, message: bytes) -> bytes:
    LENGTHS[number] = len(message)
    return message


@pytest.mark.parametrize("number", [HELLO, SIGNATURE], ids=["hello", "signature"])
def test_every_changed_byte_of_every_message_is_refused(number: int) -> None:
    shake(2, note_lengths)
    for position in range(LENGTHS[number]):

        def flip(receiver, _sender, current, message, position=position):
            if (receiver, current) != (0, number):
                return message
            changed = bytearray(message)
            changed[position] ^= 1 << (position % 8)
            return bytes(changed)

        done = shake(2, flip)
        assert is_refused(done[0]), f"byte {position} of message {number}"
        assert "south" in str(done[0]), done[0]
        assert "handshake" in str(done[0]), done[0]
        # The sender hears of a changed hello; of a changed signature it can't.
        assert number == SIGNATURE or is_refused(done[1])


@pytest.mark.parametrize("number", [HELLO, SIGNATURE], ids=["hello", "signature"])
@pytest.mark.parametrize(
    "change",
    [lambda m: m[:-1], lambda m: m + b"\0", lambda _: b"", lambda m: m + m],
    ids=["cut", "longer", "empty", "twice"],
)
def test_every_other_length_is_refused(number: int, change: Callable[[bytes], bytes]) -> None:
    done = shake(2, lambda r, _, n, m: change(m) if (r, n) == (0, number) else m)
    assert is_refused(done[0])
    assert "south" in str(done[0])


def test_a_message_that_does_not_come_is_waited_for_until_the_deadline() -> None:
    def party(transport: MemoryTransport) -> None:
        if transport.rank == 0:
            authenticate(transport, IDENTITIES[0], None, context_of(2))

    with pytest.raises(PartyLost, match="party 1 sent nothing"):
        run_parties(2, party, deadline_s=0.1)


@pytest.mark.parametrize(
    "replayed", [{HELLO}, {SIGNATURE}, {HELLO, SIGNATURE}], ids=["hello", "signature", "both"]
)
def test_messages_of_an_old_run_are_refused(replayed: set[int]) -> None:
    recorded = {}

    def record(receiver, sender, number, message):
        recorded[receiver, sender, number] = message
        return message

    def replay(receiver, sender, number, message):
        is_old = (receiver, sender) == (0, 1) and number in replayed
        return recorded[receiver, sender, number] if is_old else message

    shake(2, record)
    assert is_refused(shake(2, replay)[0])


def test_messages_of_two_runs_at_once_can_not_be_mixed() -> None:
    """North is in one run with south, and east in another: their signatures fit their own only."""
    recorded = {}

    def record(receiver, sender, number, message):
        recorded[receiver, sender, number] = message
        return message

    shake(3, record)

    def mix(receiver, sender, number, message):
        # Rank 0 is shown the other run of rank 1, from its hello to its signature.
        return recorded[2, 1, number] if (receiver, sender) == (0, 1) else message

    done = shake(3, mix)
    assert all(is_refused(outcome) for outcome in (done[0], done[2]))


@pytest.mark.parametrize("numbers", [{HELLO}, {SIGNATURE}, {HELLO, SIGNATURE}])
def test_two_ranks_can_not_be_swapped(numbers: set[int]) -> None:
    sent = {}

    class Swapping(MemoryTransport):
        number = 0

        def exchange(self, outgoing, sources):
            received = super().exchange(outgoing, sources)
            sent[self.rank, self.number] = received
            if self.rank == 0 and self.number in numbers and sources:
                received = {1: received[2], 2: received[1]}
            self.number += 1
            return received

    def party(transport: MemoryTransport) -> Outcome:
        transport.__class__ = Swapping
        rank = transport.rank
        try:
            return authenticate(transport, IDENTITIES[rank], pins_of(rank, 3), context_of(3))
        except MpcflError as error:
            return error

    assert is_refused(run_parties(3, party)[0])


def test_a_rank_under_the_number_of_another_is_refused_before_anything_is_signed() -> None:
    def renumber(receiver, _sender, number, message):
        if (receiver, number) != (0, HELLO):
            return message
        return hello.HELLO.encode(**hello.HELLO.decode(message) | {"rank": 7})

    done = shake(2, renumber)
    assert isinstance(done[0], AuthenticationError)
    assert isinstance(done[1], PartyNotReady)
    assert handshake._signed_words(0, b"") != handshake._signed_words(1, b"")


def test_a_rank_whose_own_words_came_back_otherwise_refuses() -> None:
    class Forgetful(MemoryTransport):
        def allgather(self, message):
            spoken = super().allgather(message)
            spoken[self.rank] = spoken[self.rank][:-1] + b"\0"
            return spoken

    def party(transport: MemoryTransport) -> bool:
        if transport.rank == 0:
            transport.__class__ = Forgetful
        refusal = AuthenticationError if transport.rank == 0 else PartyNotReady
        with pytest.raises(refusal, match="north"):
            authenticate(transport, IDENTITIES[transport.rank], None, context_of(2))
        return True

    assert run_parties(2, party) == [True, True]


def test_why_a_rank_refuses_is_reported_even_if_nobody_is_left_to_tell() -> None:
    class Alone(MemoryTransport):
        def exchange(self, outgoing, sources):
            if not sources:
                raise PartyLost("nobody is left", (1,))
            return super().exchange(outgoing, sources)

    def party(transport: MemoryTransport) -> None:
        transport.__class__ = Alone
        identity, wrong = IDENTITIES[transport.rank], {1 - transport.rank: STRANGER.public_key}
        with pytest.raises(TranscriptMismatch, match="shows another identity"):
            authenticate(transport, identity, wrong, context_of(2))

    run_parties(2, party)


def test_secrets_are_bound_to_the_transcript_and_to_the_pair() -> None:
    key = handshake._EphemeralKey(handshake.SystemBits())
    peer = handshake._EphemeralKey(handshake.SystemBits())
    hellos = [{"ephemeral": key.public_key}, *[{"ephemeral": peer.public_key}] * 2]
    one, other = (key.agree(0, hellos, text * 32, context_of(3)) for text in (b"a", b"b"))
    keys = {one.key(1, "mask"), one.key(2, "mask"), other.key(1, "mask")}
    assert len(keys) == 3


def test_a_rank_that_is_shown_itself_refuses() -> None:
    own = {}

    class Mirror(MemoryTransport):
        def exchange(self, outgoing, sources):
            own[self.rank] = outgoing.get(1, b"")
            return dict.fromkeys(super().exchange(outgoing, sources), own[0])

    def party(transport: MemoryTransport) -> None:
        if transport.rank == 0:
            transport.__class__ = Mirror
        authenticate(transport, IDENTITIES[transport.rank], None, context_of(2))

    with pytest.raises(ProtocolError):
        run_parties(2, party)


@pytest.mark.parametrize("field", ["ephemeral", "nonce", "identity"])
@pytest.mark.parametrize("victim", [0, 1])
def test_what_appears_twice_is_refused(field: str, victim: int) -> None:
    """The middle puts the victim's own key into the hello that it gets."""
    hellos = {}

    def copied(receiver, sender, number, message):
        if number != HELLO:
            return message
        hellos[sender] = hello.HELLO.decode(message)
        if receiver != victim:
            return message
        own = own_values[victim]
        return hello.HELLO.encode(**(hellos[sender] | {field: own[field]}))

    own_values = {}
    encode = hello.HELLO.encode

    class Noting:
        decode = staticmethod(hello.HELLO.decode)

        @staticmethod
        def encode(**values):
            own_values.setdefault(values["rank"], values)
            return encode(**values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "HELLO", Noting)
        done = shake(2, copied, lambda _: {"pins": None})
    # At the hello: the other one gets no signature to make use of.
    assert isinstance(done[1 - victim], PartyNotReady)
    if field == "identity":
        assert "show the same identity" in str(done[victim])
    else:
        assert isinstance(done[victim], AuthenticationError)
        assert done[victim].peer == NAMES[1 - victim]


def test_the_same_source_of_bits_at_two_ranks_is_refused() -> None:
    class Fixed:
        def words(self, count):
            return np.arange(1, count + 1, dtype=np.uint64)

    done = shake(2, arguments=lambda _: {"bits": Fixed()})
    assert all(isinstance(outcome, AuthenticationError) for outcome in done)


def test_a_man_in_the_middle_with_keys_of_his_own_is_kept_out_by_pins() -> None:
    """He talks to each side as the other one would, with his identity under their names."""
    kept = {}

    def speak_as(rank: int, peer_hello: bytes) -> None:
        """Make what he says to the other side in the name of ``rank``."""
        values = hello.HELLO.decode(peer_hello)
        key = handshake._EphemeralKey(handshake.SystemBits())
        kept[rank] = hello.HELLO.encode(
            **values | {"identity": STRANGER.public_key, "ephemeral": key.public_key}
        )

    def relay(receiver, sender, number, message):
        if number == HELLO:
            speak_as(sender, message)
            kept["own", sender] = message
            return kept[sender]
        views = [kept["own", rank] if rank == receiver else kept[rank] for rank in (0, 1)]
        transcript = hello.transcript_of(views, context_of(2))
        words = handshake._signed_words(sender, transcript)
        return handshake._SIGNATURE.encode(signature=STRANGER.sign(words))

    done = shake(2, relay)
    assert all("shows another identity" in str(outcome) for outcome in done)
    # Without pins nobody can tell; throw-away identities keep out listeners only.
    done = shake(2, relay, lambda _: {"pins": None})
    assert all(isinstance(outcome, Authenticated) for outcome in done)
    assert done[0].run_id != done[1].run_id


def test_an_own_key_under_a_pinned_identity_needs_its_signature() -> None:
    """He keeps the identity, which all know, and puts in his key: the signature does not follow."""

    def relay(receiver, _sender, number, message):
        if number != HELLO or receiver != 0:
            return message
        key = handshake._EphemeralKey(handshake.SystemBits())
        values = hello.HELLO.decode(message)
        return hello.HELLO.encode(**values | {"ephemeral": key.public_key})

    done = shake(2, relay)
    assert isinstance(done[0], AuthenticationError)
    assert (done[0].peer, done[0].stage) == ("south", "handshake")
    assert isinstance(done[1], AuthenticationError)


def test_ranks_that_were_told_different_hellos_notice() -> None:
    """Rank 2 gives each of the others another nonce, and signs what each of them saw."""
    hellos = {}

    def two_faced(receiver, sender, number, message):
        if number == HELLO:
            if (receiver, sender) == (0, 2):
                values = hello.HELLO.decode(message)
                message = hello.HELLO.encode(**values | {"nonce": bytes(32)})
            hellos[receiver, sender] = message
            return message
        if (receiver, sender) != (0, 2):
            return message
        seen = [hellos[1, 0], hellos[0, 1], hellos[0, 2]]
        words = handshake._signed_words(2, hello.transcript_of(seen, context_of(3)))
        return handshake._SIGNATURE.encode(signature=IDENTITIES[2].sign(words))

    done = shake(3, two_faced)
    assert all(isinstance(outcome, AuthenticationError) for outcome in done)
    # Rank 2's own signature holds: it is rank 1 whose view differs.
    assert done[0].peer == "south"


def test_a_stranger_is_named_to_himself_and_to_all() -> None:
    done = shake(3, arguments=lambda rank: {"identity": STRANGER} if rank == 1 else {})
    for outcome in (done[0], done[2]):
        assert isinstance(outcome, TranscriptMismatch)
        assert "south shows another identity" in str(outcome)
        assert "mpcfl identity show" in str(outcome)
    assert isinstance(done[1], PartyNotReady)
    assert "north refused the handshake" in str(done[1])


def test_a_wrong_pin_at_one_rank_stops_all_of_them_at_once() -> None:
    wrong = pins_of(2, 3) | {0: STRANGER.public_key}
    done = shake(3, arguments=lambda rank: {"pins": wrong} if rank == 2 else {})
    assert "north shows another identity" in str(done[2])
    for outcome in done[:2]:
        assert isinstance(outcome, PartyNotReady)
        assert outcome.rank == 2
        assert str(outcome) == "east refused the handshake; its own message says why"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job": "another"}, "another job than"),
        ({"names": ("north", "south", "far east")}, "another list of parties than"),
        ({"versions": ("numpy==2.1",)}, "another list of versions than"),
    ],
    ids=["job", "names", "versions"],
)
def test_a_rank_that_goes_by_something_else_is_named(change: dict[str, Any], words: str) -> None:
    other = dataclasses.replace(context_of(3), **change)
    done = shake(3, arguments=lambda rank: {"context": other} if rank == 2 else {})
    assert all(isinstance(outcome, TranscriptMismatch) for outcome in done)
    assert words in str(done[0])
    assert str(done[0]).startswith("east goes by" if "names" not in change else "east")


def test_another_version_of_the_handshake_is_refused_by_name() -> None:
    def newer(receiver, _sender, number, message):
        if (receiver, number) != (0, HELLO):
            return message
        return hello.HELLO.encode(**hello.HELLO.decode(message) | {"version": 2})

    done = shake(2, newer)
    assert isinstance(done[0], TranscriptMismatch)
    assert "install the same version of mpcfl" in str(done[0])


def test_another_context_is_refused_even_if_the_middle_hides_it() -> None:
    """Its digests are put right on the way; what each rank signs covers the context itself."""
    other = dataclasses.replace(context_of(2), job="another")
    good = context_of(2).facts(), other.facts()

    def hide(receiver, _sender, number, message):
        if number != HELLO:
            return message
        return hello.HELLO.encode(**hello.HELLO.decode(message) | good[receiver])

    done = shake(2, hide, lambda rank: {"context": other} if rank == 1 else {})
    assert all(isinstance(outcome, AuthenticationError) for outcome in done)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("j", ("a", "b"), ()), ("j", ("a",), ("b",))),
        (("j", ("a",), ()), ("ja", (), ())),
        (("j", (), ("a",)), ("j", (), ())),
        (("j", (), ()), ("k", (), ())),
        (("j", (), ("a",)), ("j", (), ("b",))),
        (("j", ("a",), ()), ("j", ("b",), ())),
    ],
)
def test_no_two_contexts_have_one_transcript(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    digests = [hello.transcript_of([b"x"], HandshakeContext(*c)) for c in (one, other)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({}, "no identity is pinned for south"),
        ({1: KEYS[0]}, "pinned for south is this party's own"),
        ({0: KEYS[1], 1: KEYS[1]}, "pinned for north is not this party's own"),
    ],
)
def test_pins_that_can_not_be_right_are_refused_before_anything_is_sent(
    pins: dict[int, bytes], words: str
) -> None:
    def party(transport: MemoryTransport) -> None:
        if transport.rank == 0:
            with pytest.raises(ConfigError, match=words):
                authenticate(transport, IDENTITIES[0], pins, context_of(2))
            assert transport.meter.messages_sent == 0

    run_parties(2, party)


def test_a_pin_of_ones_own_is_welcome_and_so_are_ranks_that_are_not_there() -> None:
    done = shake(2, arguments=lambda _: {"pins": KEYS})
    assert all(isinstance(outcome, Authenticated) for outcome in done)


@pytest.mark.parametrize("weak", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
def test_a_key_in_the_small_subgroup_is_refused_even_if_it_is_signed(weak: bytes) -> None:
    class WeakKey(handshake._EphemeralKey):
        __slots__ = ()

        def __init__(self, bits):
            super().__init__(handshake.SystemBits() if bits == "weak" else bits)
            if bits == "weak":
                self.public_key = weak

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handshake, "_EphemeralKey", WeakKey)
        done = shake(2, arguments=lambda rank: {"bits": "weak"} if rank == 1 else {})
    assert isinstance(done[0], AuthenticationError)
    assert (done[0].peer, done[0].stage) == ("south", "handshake")


@pytest.mark.parametrize("fails", [False, True])
def test_the_key_of_a_run_does_not_outlive_its_handshake(monkeypatch, fails: bool) -> None:
    alive = []
    make = handshake.raw_ephemeral_key

    class Watched:
        def __init__(self, key):
            self.key = key
            self.public_key, self.exchange = key.public_key, key.exchange
            alive.append(weakref.ref(self))

    monkeypatch.setattr(handshake, "raw_ephemeral_key", lambda bits: Watched(make(bits)))
    change = (lambda *call: b"") if fails else (lambda *call: call[-1])
    done = shake(2, change)
    assert all(is_refused(outcome) is fails for outcome in done)
    # The outcomes, errors with their traces among them, are still there.
    assert [reference() for reference in alive] == [None, None]


def test_what_it_gives_shows_no_secret() -> None:
    done = shake(2)[0]
    assert "PairSecrets(<redacted>)" in repr(done)
    assert "redacted" in repr(handshake._EphemeralKey(handshake.SystemBits()))
