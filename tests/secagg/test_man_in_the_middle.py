"""A man in the middle of whole sessions, from the handshake to the second sum: always detected."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcfl.config import Custody
from mpcfl.errors import AuthenticationError, CheckFailed, MpcflError, PartyLost
from mpcfl.net import reduction
from mpcfl.net.authenticated import AuthenticatedTransport
from mpcfl.net.handshake import HandshakeContext, authenticate
from mpcfl.net.identity import Identity
from mpcfl.secagg import paillier_ops, phe_sum
from mpcfl.secagg.base import SumSettings
from mpcfl.secagg.opening import open_sum
from mpcfl.secagg.registry import load_backend

sys.path.append(str(Path(__file__).parents[1] / "net"))

from man_in_the_middle import Attack, Meddler, run_meddled

pytestmark = pytest.mark.usefixtures("small_keys")

DIM = 24
NAMES = ("ada", "ben", "cyd")
STAGES = ("handshake", "open session", "protect", "aggregate", "open")
Link = tuple[int, int]
Party = Callable[[Any], list[list[int]]]


@dataclass(frozen=True)
class Case:
    """One way to run a backend; the aggregator, where there is one, is the last rank."""

    backend: str
    custody: Custody = Custody.HOLDER
    # From whom to whom somebody changes messages.
    links: tuple[Link, ...] = ((0, 1),)
    checked: bool = True
    bits: int = 20

    @property
    def data_ranks(self) -> range:
        return range(len(NAMES) - (self.custody is Custody.CLIENTS))

    def settings(self, run_id: str) -> SumSettings:
        return SumSettings(
            DIM, self.bits, key_bits=512, custody=self.custody, run_id=run_id, checked=self.checked
        )


CASES = {
    "ring": Case("ring"),
    # Words of 64 bits travel here, whatever b is; changes of those above b would not matter.
    "plain": Case("plain", bits=64),
    "crypten": Case("crypten", bits=64),
    "crypten-stock": Case("crypten-stock", bits=64),
    # Ciphertexts go along a chain that ends at rank 0, or by way of an aggregator.
    "phe-holder": Case("phe", links=((1, 0), (2, 1))),
    "phe-clients": Case("phe", Custody.CLIENTS, links=((0, 2), (2, 0))),
    "paillier-holder": Case("paillier", links=((1, 0), (2, 1))),
    "paillier-clients": Case("paillier", Custody.CLIENTS, links=((0, 2), (2, 0))),
    "paillier-threshold": Case("paillier", Custody.THRESHOLD),
}


def levels_of(rank: int, turn: int) -> np.ndarray[Any, Any]:
    return (np.arange(DIM, dtype=np.int64) * 4919 + 77 * rank + 1009 * turn) % 65521 - 30011


def exact(case: Case, turn: int) -> list[int]:
    total: list[int] = sum(levels_of(rank, turn) for rank in case.data_ranks).tolist()
    return total


def session(case: Case, identities: list[Identity]) -> Party:
    """Return one rank's program: handshake, session, two sums."""
    pins = {rank: identity.public_key for rank, identity in enumerate(identities)}

    def party(transport: Any) -> list[list[int]]:
        rank, meter = transport.rank, transport.meter
        with meter.stage("handshake"):
            context = HandshakeContext("job", NAMES, ("mpcfl 1",))
            agreed = authenticate(transport, identities[rank], pins, context)
        sealed = AuthenticatedTransport(transport, agreed.secrets, "job", NAMES)
        with meter.stage("open session"):
            secure = open_sum(load_backend(case.backend), sealed, case.settings(agreed.run_id))
        opened = []
        for turn in range(2):
            levels = levels_of(rank, turn) if rank in case.data_ranks else None
            with meter.stage("protect"):
                protected = secure.protect(levels)
            with meter.stage("aggregate"):
                aggregated = secure.aggregate(protected)
            with meter.stage("open"):
                opened.append(secure.open(aggregated).tolist())
        secure.close()
        return opened

    return party


@pytest.fixture(scope="module")
def identities() -> list[Identity]:
    return [Identity.new() for _ in NAMES]


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut vectors into several chunks, so that messages of one kind follow each other."""
    monkeypatch.setattr(reduction, "_CHUNK_BYTES", 32)
    monkeypatch.setattr(reduction, "_LEAST_SLICE_WORDS", 1)
    monkeypatch.setattr(paillier_ops, "chunk_ciphertexts", lambda key_bits: 1)
    monkeypatch.setattr(phe_sum, "CHUNK_VALUES", 12)


def count_messages(case: Case, party: Party, link: Link) -> int:
    """Run a session that nobody meddles with; return how many messages its link carries."""
    idle = Meddler(source=link[0], target=link[1])
    outcome = run_meddled(len(NAMES), party, idle)
    assert not outcome.errors, outcome.errors
    for rank in case.data_ranks:
        assert outcome.returned[rank] == [exact(case, 0), exact(case, 1)]
    assert outcome.unread == 0
    return idle.count


def assert_detected(case: Case, party: Party, meddler: Meddler) -> None:
    outcome = run_meddled(len(NAMES), party, meddler)
    assert meddler.met
    for rank, opened in outcome.returned.items():
        if rank in case.data_ranks:
            assert opened == [exact(case, 0), exact(case, 1)], f"rank {rank} returned a wrong sum"
    if not outcome.errors:
        # What comes twice at the very end lies there, and nobody takes it for anything.
        assert (meddler.attack, outcome.unread) == (Attack.REPEAT, 1)
        return
    assert all(isinstance(error, MpcflError) for error in outcome.errors.values())
    error = outcome.first_error()
    if isinstance(error, PartyLost):
        assert meddler.attack in (Attack.DROP, Attack.SWAP)
    else:
        assert names_stage(error), error


def names_stage(error: BaseException) -> bool:
    if isinstance(error, AuthenticationError):
        return error.stage in STAGES and f"in stage {error.stage}" in str(error)
    if isinstance(error, CheckFailed):
        return "in stage open" in str(error)
    return "in the handshake" in str(error) or " block of " in str(error)


# Bits are flipped in every message of the links that carry what this backend is about; every
# other attack comes by turns. For `ring` it is all of them, on every message.
@pytest.mark.parametrize("name", CASES)
def test_whatever_is_done_to_any_message_is_detected(
    name: str, identities: list[Identity], short_chunks: None
) -> None:
    case = CASES[name]
    party = session(case, identities)
    others = itertools.cycle(attack for attack in Attack if attack is not Attack.FLIP)
    for link in case.links:
        for number in range(count_messages(case, party, link)):
            attacks = Attack if name == "ring" else (Attack.FLIP, next(others))
            for attack in attacks:
                assert_detected(case, party, Meddler(attack, number, *link))


@pytest.mark.parametrize("name", ["plain", "ring"])
def test_without_the_check_a_flipped_bit_would_pass(name: str, identities: list[Identity]) -> None:
    """The control: these attacks reach the sum."""
    case = CASES[name]
    party = session(replace(case, checked=False), identities)
    wrong = 0
    for number in range(count_messages(case, party, (0, 1))):
        outcome = run_meddled(len(NAMES), party, Meddler(Attack.FLIP, number))
        right = [exact(case, 0), exact(case, 1)]
        wrong += any(opened != right for opened in outcome.returned.values())
    # One message of each sum, at least, is not sealed.
    assert wrong >= 2
