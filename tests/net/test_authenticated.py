"""Sealed messages over any transport: the transport's contract, changes on the way, fresh keys."""

from __future__ import annotations

import copy
import importlib.util
import pickle  # noqa: TID251 - to see that it is refused
from pathlib import Path

import numpy as np
import pytest

from mpcfl.errors import AuthenticationError, OutOfOrder, PartyLost, ProtocolError
from mpcfl.net import channel
from mpcfl.net.authenticated import AuthenticatedTransport
from mpcfl.net.channel import PairSecrets, SealedTransport, agree_pair_secrets
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.registry import load_backend

_path = Path(__file__).parent.parent / "contract" / "test_transport.py"
_spec = importlib.util.spec_from_file_location("transport_contract", _path)
contract = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

NAMES = ("north", "south", "east", "west", "center")
OVERHEAD_BYTES = 16


def pair_secrets(rank: int, n_ranks: int, salt: int = 0) -> PairSecrets:
    """Return what a handshake would give: a secret per pair, for tests only."""
    pairs = {other: bytes([1 + min(rank, other), 1 + max(rank, other), salt]) + bytes(29)
             for other in range(n_ranks) if other != rank}  # fmt: skip
    return PairSecrets(rank, pairs)


def wrap(transport: MemoryTransport, purpose: str = "test") -> AuthenticatedTransport:
    secrets = pair_secrets(transport.rank, transport.n_ranks)
    return AuthenticatedTransport(transport, secrets, purpose, NAMES)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_contract_of_a_transport_holds(n: int) -> None:
    def party(inner: MemoryTransport) -> None:
        transport = wrap(inner)
        rank = transport.rank
        others = [r for r in range(n) if r != rank]
        for size in (0, 1, 1000, 300_001):
            before = transport.meter.bytes_sent
            assert transport.allgather(bytes([rank]) * size) == [
                bytes([r]) * size for r in range(n)
            ]
            assert transport.meter.bytes_sent - before == (size + OVERHEAD_BYTES) * len(others)
        for number in range(5):
            text = bytes([number]) * (5 - number)
            assert transport.exchange(dict.fromkeys(others, text), others) == dict.fromkeys(
                others, text
            )
        following, previous = (rank + 1) % n, (rank - 1) % n
        if n > 1:
            assert transport.exchange({following: b"on"}, [previous]) == {previous: b"on"}
        # The first gather of all exchanges keys, which are counted too.
        transport.begin_gather(
            np.zeros(0, np.uint8), {r: np.zeros(0, np.uint8) for r in others}
        ).wait()
        contract.check_blocks(transport, seal_bytes=OVERHEAD_BYTES)
        contract.check_several_at_once(transport)
        contract.check_reductions(transport)
        contract.check_rings(transport)

    run_parties(n, party)


class Hostile(MemoryTransport):
    """Delivers to its rank what ``change`` makes of the messages from rank 1, in order."""

    def exchange(self, outgoing, sources):
        received = super().exchange(outgoing, sources)
        if 1 in received:
            self.seen = [*getattr(self, "seen", []), received[1]]
            received[1] = self.change(self.seen)
        return received


CHANGES = {
    "first bit": lambda seen: bytes([seen[-1][0] ^ 1]) + seen[-1][1:],
    "last bit": lambda seen: seen[-1][:-1] + bytes([seen[-1][-1] ^ 128]),
    "cut": lambda seen: seen[-1][:-1],
    "longer": lambda seen: seen[-1] + b"\0",
    "empty": lambda _: b"",
    "replayed": lambda seen: seen[0],
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("named", [True, False], ids=["named", "numbered"])
def test_a_change_on_the_way_names_the_sender_and_the_stage(how: str, named: bool) -> None:
    def party(inner: MemoryTransport) -> tuple[str, str, bool] | None:
        if inner.rank == 0:
            inner.__class__ = Hostile
            inner.change = lambda seen: seen[-1] if len(seen) == 1 else CHANGES[how](seen)
        secrets = pair_secrets(inner.rank, 3)
        transport = AuthenticatedTransport(inner, secrets, "test", NAMES if named else ())
        transport.meter.current = "open"
        transport.allgather(b"first, unchanged")
        try:
            transport.allgather(b"second, of another length")
        except AuthenticationError as error:
            return error.peer, error.stage, "in stage open" in str(error)
        return None

    caught = run_parties(3, party)
    assert caught == [("south" if named else "rank 1", "open", True), None, None]


def test_a_message_of_another_sender_receiver_or_purpose_does_not_open() -> None:
    class Swapped(MemoryTransport):
        def exchange(self, outgoing, sources):
            received = super().exchange(outgoing, sources)
            return {1: received[2], 2: received[1]}

    def swapped(inner: MemoryTransport) -> None:
        if inner.rank == 0:
            inner.__class__ = Swapped
        wrap(inner).allgather(b"equal text")

    with pytest.raises(AuthenticationError):
        run_parties(3, swapped)

    class Mirror(MemoryTransport):
        def exchange(self, outgoing, sources):
            super().exchange(outgoing, sources)
            return {1: outgoing[1]}

    def reflected(inner: MemoryTransport) -> None:
        if inner.rank == 0:
            inner.__class__ = Mirror
        wrap(inner).allgather(b"equal text")

    with pytest.raises(AuthenticationError):
        run_parties(2, reflected)
    with pytest.raises(AuthenticationError):
        run_parties(2, lambda inner: wrap(inner, f"purpose {inner.rank}").allgather(b""))


def test_nothing_that_is_said_shows_and_equal_texts_travel_differently() -> None:
    seen = []

    class Tap(MemoryTransport):
        def exchange(self, outgoing, sources):
            seen.extend(outgoing.values())
            return super().exchange(outgoing, sources)

    def party(inner: MemoryTransport) -> None:
        inner.__class__ = Tap
        transport = wrap(inner)
        for _ in range(2):
            transport.allgather(b"hidden words")

    run_parties(3, party)
    assert not any(b"hidden" in message for message in seen)
    assert len(set(seen)) == len(seen) == 3 * 2 * 2


def test_a_transport_that_was_closed_says_and_derives_nothing_more() -> None:
    def party(inner: MemoryTransport) -> None:
        transport = wrap(inner)
        transport.allgather(b"")
        transport.close()
        transport.close()
        for use in (
            lambda: transport.allgather(b""),
            lambda: transport.exchange({}, []),
            lambda: agree_pair_secrets(transport, "run"),
        ):
            with pytest.raises(OutOfOrder):
                use()
        # What carried it is not its own.
        assert inner.allgather(b"still") == [b"still"] * 2

    run_parties(2, party)


def test_an_owned_transport_is_closed_too() -> None:
    closed = []

    class Noting(MemoryTransport):
        def close(self):
            closed.append(self.rank)

    def party(inner: MemoryTransport) -> None:
        inner.__class__ = Noting
        secrets = pair_secrets(inner.rank, 2)
        owned = inner.rank == 1
        AuthenticatedTransport(inner, secrets, "test", owned=owned).close()

    run_parties(2, party)
    assert closed == [1]


def test_errors_of_the_transport_below_pass_through() -> None:
    def party(inner: MemoryTransport) -> None:
        if inner.rank == 0:
            wrap(inner).allgather(b"")

    with pytest.raises(PartyLost, match="party 1 sent nothing"):
        run_parties(2, party, deadline_s=0.1)


def test_secrets_with_too_few_and_second_uses_are_refused() -> None:
    def party(inner: MemoryTransport) -> None:
        few = PairSecrets(inner.rank, {(inner.rank + 1) % 3: bytes(32)})
        with pytest.raises(ValueError, match="needs one with each other rank"):
            AuthenticatedTransport(inner, few, "test")
        secrets = pair_secrets(inner.rank, 3)
        AuthenticatedTransport(inner, secrets, "test")
        with pytest.raises(OutOfOrder):
            AuthenticatedTransport(inner, secrets, "test")
        with pytest.raises(OutOfOrder, match="no channel to rank"):
            wrap(inner).exchange({inner.rank: b""}, [])

    run_parties(3, party)


def test_it_is_not_shown_pickled_or_copied() -> None:
    def party(inner: MemoryTransport) -> None:
        transport = wrap(inner)
        assert repr(transport) == f"AuthenticatedTransport(rank {inner.rank} of 2, <redacted>)"
        for leak in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError):
                leak(transport)

    run_parties(2, party)


def sessions(n_ranks: int, agree) -> list[list[PairSecrets]]:
    """Return what every rank gets from ``agree(transport)``, which makes several sessions."""
    return run_parties(n_ranks, lambda inner: agree(wrap(inner)))


def test_pair_secrets_of_a_session_come_from_the_handshake_without_a_message() -> None:
    def agree(transport: AuthenticatedTransport) -> list[PairSecrets]:
        before = transport.meter.messages_sent
        made = [agree_pair_secrets(transport, "run")]
        assert transport.meter.messages_sent == before
        return made

    secrets = [made[0] for made in sessions(4, agree)]
    keys = set()
    for one in range(4):
        assert secrets[one].peers == tuple(r for r in range(4) if r != one)
        for other in secrets[one].peers:
            assert secrets[one].key(other, "mask", 1) == secrets[other].key(one, "mask", 1)
            keys.add(secrets[one].key(other, "mask", 1))
    assert len(keys) == 6


def test_no_two_sessions_share_a_key_nor_do_other_secrets_or_purposes() -> None:
    def agree(transport: AuthenticatedTransport) -> list[PairSecrets]:
        # Twice the same name: the second one's channels would repeat the first one's nonces.
        return [agree_pair_secrets(transport, run) for run in ("run", "run", "other")]

    made = sessions(2, agree)[0]
    first_of_other = sessions(2, lambda t: agree_pair_secrets(t, "other"))[0]
    other_purpose = run_parties(2, lambda t: agree_pair_secrets(wrap(t, "else"), "run"))[0]
    all_keys = [s.key(1, "mask") for s in (*made, first_of_other, other_purpose)]
    assert len(set(all_keys)) == len(all_keys)


def test_neighbors_get_secrets_and_nobody_else() -> None:
    def agree(transport: AuthenticatedTransport) -> list[PairSecrets]:
        ring = [(transport.rank + step) % 5 for step in (1, -1)]
        return [agree_pair_secrets(transport, "run", peers=ring)]

    secrets = [made[0] for made in sessions(5, agree)]
    for rank in range(5):
        assert secrets[rank].peers == tuple(sorted(((rank + 1) % 5, (rank - 1) % 5)))
        right = (rank + 1) % 5
        assert secrets[rank].key(right, "mask") == secrets[right].key(rank, "mask")
        with pytest.raises(OutOfOrder):
            secrets[rank].key((rank + 2) % 5, "mask")

    with pytest.raises(ValueError, match=r"only \[1, 2\]"):
        sessions(3, lambda t: agree_pair_secrets(t, "run", peers=[0] if t.rank == 0 else None))


def test_no_key_is_agreed_in_the_clear_over_an_authenticated_transport(monkeypatch) -> None:
    monkeypatch.setattr(channel, "raw_shared_secret", None)
    monkeypatch.setattr(channel, "raw_ephemeral_key", None)

    def agree(transport: AuthenticatedTransport) -> bytes:
        wires = SealedTransport(transport, agree_pair_secrets(transport, "run"), "wires")
        peer = 1 - transport.rank
        return wires.exchange({peer: bytes([transport.rank])}, [peer])[peer]

    assert sessions(2, agree) == [b"\1", b"\0"]


@pytest.mark.parametrize("backend", ["plain", "ring"])
def test_backends_sum_over_it(backend: str) -> None:
    def party(inner: MemoryTransport) -> list[int]:
        secure = load_backend(backend)(wrap(inner), SumSettings(3, run_id="00" * 16))
        levels = np.array([1, -2, 3], dtype=np.int64) * (inner.rank + 1)
        total = secure.open(secure.aggregate(secure.protect(levels)))
        secure.close()
        return total.tolist()

    assert run_parties(3, party) == [[6, -12, 18]] * 3


def test_an_attacker_without_the_secrets_makes_no_message_that_opens() -> None:
    def party(inner: MemoryTransport) -> None:
        secrets = pair_secrets(inner.rank, 2, salt=inner.rank)
        AuthenticatedTransport(inner, secrets, "test").allgather(b"")

    with pytest.raises(ProtocolError, match="failed authentication"):
        run_parties(2, party)


def test_opened_slices_are_sealed_and_a_changed_one_is_refused() -> None:
    secret_sum = np.arange(1000, 1960, dtype=np.uint32).view(np.uint8)
    seen: list[bytes] = []

    class Listening(MemoryTransport):
        flips = False

        def begin_gather(self, own, inbox):
            seen.append(own.tobytes())
            if self.flips:
                own = own.copy()
                own[7] ^= 1
            return super().begin_gather(own, inbox)

    def party(inner: MemoryTransport) -> str:
        inner.__class__ = Listening
        transport = wrap(inner)
        inbox = {r: np.empty_like(secret_sum) for r in range(3) if r != inner.rank}
        transport.begin_gather(secret_sum, inbox).wait()
        assert all(np.array_equal(block, secret_sum) for block in inbox.values())
        inner.flips = inner.rank == 2
        pending = transport.begin_gather(secret_sum, inbox)
        try:
            pending.wait()
        except AuthenticationError as error:
            # What is right is known all the same, and what is not is not.
            assert pending.arrived() == {0, 1} - {inner.rank}
            return error.peer
        return ""

    assert run_parties(3, party) == ["east", "east", ""]
    assert len(seen) == 6
    assert len(set(seen)) == 6, "no two blocks travel alike"
    assert not any(secret_sum.tobytes()[:64] in message for message in seen)


def test_a_reduction_never_carries_the_sum() -> None:
    inputs = [np.full(20, 3 + 5 * rank, dtype=np.uint64) for rank in range(3)]
    total = sum(inputs).tobytes()
    seen: list[bytes] = []

    class Listening(MemoryTransport):
        def begin_gather(self, own, inbox):
            seen.append(own.tobytes())
            return super().begin_gather(own, inbox)

    def party(inner: MemoryTransport) -> bytes:
        inner.__class__ = Listening
        words = inputs[inner.rank].copy()
        wrap(inner).begin_allreduce(words).wait()
        return words.tobytes()

    assert run_parties(3, party) == [total] * 3
    assert sorted(seen) == sorted(vector.tobytes() for vector in inputs)
