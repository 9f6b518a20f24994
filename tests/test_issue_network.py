"""The promises against a hostile network, tried from outside through the public interface alone.

The attacker owns the network between ranks that know nothing of him: he reads and rewrites what
`mpcfl.open_secure_sum` sends, with the protocol in his hands and no key. Masked words and sums
travel unsealed, so he does arithmetic on them.
"""

from __future__ import annotations

import ast
import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpcfl
from mpcfl.errors import CheckFailed, MpcflError, OutOfOrder
from mpcfl.net.identity import Identity
from mpcfl.net.memory import MemoryNetwork, MemoryTransport

N_RANKS, DIM, BITS = 3, 48, 32
Rewrite = Callable[["Attacker", int, int, str, bytes], bytes]


@dataclass
class Attacker:
    """Rewrites blocks on their way; those of the first sum pass, and are kept.

    Attributes:
        rewrite: what becomes of a block of the second sum, by source, target, lane and content.
        kept: blocks of the first sum, in order.
        changed: blocks that left him otherwise than they came.
    """

    rewrite: Rewrite | None = None
    is_on: bool = False
    kept: dict[tuple[int, int, str], list[bytes]] = field(default_factory=dict)
    changed: int = 0
    _now: dict[tuple[int, int, str], int] = field(default_factory=dict)

    def pass_on(self, source: int, target: int, lane: str, block: bytes) -> bytes:
        """Return what arrives."""
        way = (source, target, lane)
        if not self.is_on or self.rewrite is None:
            self.kept.setdefault(way, []).append(block)
            return block
        arriving = self.rewrite(self, source, target, lane, block)
        self._now[way] = self._now.get(way, 0) + 1
        self.changed += arriving != block
        return arriving

    def earlier(self, source: int, target: int, lane: str) -> bytes:
        """Return the block of the first sum that was in the place of the present one."""
        return self.kept[source, target, lane][self._now.get((source, target, lane), 0)]


class HostileNetwork(MemoryNetwork):
    """A network whose unsealed blocks pass an attacker."""

    def __init__(self, attacker: Attacker) -> None:
        super().__init__(N_RANKS, deadline_s=20.0)
        self._attacker = attacker
        self._lock = threading.Lock()

    def put(self, source: int, target: int, lane: Any, message: bytes) -> None:
        """Deliver what the attacker makes of a block."""
        if lane.name in ("SCATTER", "GATHER", "REDUCE"):
            with self._lock:
                message = self._attacker.pass_on(source, target, lane.name, bytes(message))
        super().put(source, target, lane, message)


def words(block: bytes, change: Callable[[Any], Any]) -> bytes:
    """Return a block with its words changed by a function: 16 of them, of whatever length."""
    kind = np.dtype(f"<i{len(block) // (DIM // N_RANKS)}")
    return bytes(change(np.frombuffer(block, dtype=kind).copy()).astype(kind).tobytes())


def plus(number: int, place: int = 0) -> Callable[[Any], Any]:
    def add(values: Any) -> Any:
        values[place : place + 1] += np.array([number], dtype=values.dtype)
        return values

    return add


def double(_: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """Rank 1 is added twice: its words, mask and all, are doubled."""
    return words(block, lambda v: v + v) if (source, lane) == (1, "SCATTER") else block


def drop(_: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """Nothing of rank 1 arrives but zeros."""
    return bytes(len(block)) if (source, lane) == (1, "SCATTER") else block


def replay(attacker: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """Rank 1's masked vector of the sum before comes again."""
    if (source, lane) != (1, "SCATTER"):
        return block
    return attacker.earlier(source, target, lane)


def replay_the_sum(attacker: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """All ranks are told the sum before, by all."""
    return attacker.earlier(source, target, lane) if lane == "GATHER" else block


def flip(_: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """One bit of one word, the lowest, on one link."""
    return words(block, plus(1)) if (source, target, lane) == (0, 2, "SCATTER") else block


def shift(_: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """Two changes that cancel in the sum of all coordinates."""
    if (source, target, lane) != (1, 0, "SCATTER"):
        return block
    return words(words(block, plus(5, 0)), plus(-5, 1))


def tell_one(_: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """One rank is told another sum than all others, by whom its part was right."""
    return words(block, plus(1)) if (source, target, lane) == (1, 2, "GATHER") else block


def tell_all(_: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """All ranks are told the same wrong part by rank 1, which alone knows better."""
    return words(block, plus(1 << 20)) if (source, lane) == (1, "GATHER") else block


def swap_parts(attacker: Attacker, source: int, target: int, lane: str, block: bytes) -> bytes:
    """The coordinates of a part come in another order: its sum of all words stays."""
    if (source, lane) != (2, "GATHER"):
        return block
    return words(block, lambda v: np.roll(v, 1))


ATTACKS: list[Rewrite] = [
    double,
    drop,
    replay,
    replay_the_sum,
    flip,
    shift,
    tell_one,
    tell_all,
    swap_parts,
]


def levels_of(rank: int, turn: int) -> Any:
    return (np.arange(DIM, dtype=np.int32) * 7919 + 31 * rank + 1013 * turn) % 65537 - 20011


def exact(turn: int) -> list[int]:
    return [int(value) for value in sum(levels_of(rank, turn) for rank in range(N_RANKS))]


@dataclass
class Told:
    """What the ranks were left with: sums, by rank, errors, and what a session said after one."""

    sums: dict[int, list[list[int]]] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    afterwards: dict[int, BaseException] = field(default_factory=dict)


def two_sums(backend: str, attacker: Attacker, **options: Any) -> Told:
    """Add twice; the attacker strikes at the second sum."""
    told, network = Told(), HostileNetwork(attacker)
    barrier = threading.Barrier(N_RANKS, action=lambda: setattr(attacker, "is_on", True))

    def party(rank: int) -> None:
        transport = MemoryTransport(network, rank)
        opened = told.sums.setdefault(rank, [])
        with mpcfl.open_secure_sum(
            comm=transport, backend=backend, dim=DIM, modulus_bits=BITS, **options
        ) as session:
            opened.append(session.sum(levels_of(rank, 0)).tolist())
            barrier.wait(20.0)
            try:
                opened.append(session.sum(levels_of(rank, 1)).tolist())
            except MpcflError as error:
                told.errors[rank] = error
                try:
                    session.sum(levels_of(rank, 1))
                except MpcflError as following:
                    told.afterwards[rank] = following

    threads = [threading.Thread(target=party, args=(rank,), daemon=True) for rank in range(N_RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)
    return told


@pytest.mark.parametrize("backend", ["ring", "crypten", "plain"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_rank_returns_a_sum_that_was_tampered_with(backend: str, attack: Rewrite) -> None:
    attacker = Attacker(attack)
    told = two_sums(backend, attacker)
    assert attacker.changed, "the attack met no message that it changes"
    assert {rank: sums for rank, sums in told.sums.items() if sums != [exact(0)]} == {}
    assert set(told.errors) == set(range(N_RANKS)), "a rank did not hear of it"
    for error in told.errors.values():
        assert isinstance(error, CheckFailed), repr(error)
        assert "in stage open" in str(error)
    # A session that was lied to has ended.
    assert all(isinstance(error, OutOfOrder) for error in told.afterwards.values())
    assert set(told.afterwards) == set(told.errors)


@pytest.mark.parametrize("attack", [double, replay, tell_all], ids=lambda attack: attack.__name__)
def test_the_same_attacks_go_through_where_nothing_is_checked(attack: Rewrite) -> None:
    """The control: the attacker is not harmless."""
    attacker = Attacker(attack)
    told = two_sums("ring", attacker, checked=False)
    assert attacker.changed
    assert not told.errors
    assert any(sums[1] != exact(1) for sums in told.sums.values())


def honest(backend: str, vectors: list[Any], bits: int, **options: Any) -> list[Any]:
    """Return what each rank gets for its vector: a sum, or an error."""
    network = MemoryNetwork(len(vectors), deadline_s=20.0)
    got: list[Any] = [None] * len(vectors)

    def party(rank: int) -> None:
        try:
            got[rank] = mpcfl.secure_sum(
                vectors[rank],
                comm=MemoryTransport(network, rank),
                backend=backend,
                modulus_bits=bits,
                **options,
            ).tolist()
        except MpcflError as error:
            got[rank] = error

    threads = [threading.Thread(target=party, args=(r,), daemon=True) for r in range(len(vectors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    return got


@pytest.mark.parametrize("backend", ["ring", "crypten"])
@pytest.mark.parametrize("bits", [8, 20, 32])
def test_a_sum_that_leaves_the_ring_is_an_error_unless_wraps_are_wanted(
    backend: str, bits: int
) -> None:
    top = 2 ** (bits - 1) - 1
    fits = [np.array([top - 2, -top, 0]), np.array([1, 0, 1]), np.array([1, -1, 2])]
    leaves = [np.array([top, 0, 0]), np.array([1, 0, 0]), np.array([0, 0, 0])]
    exact_sum = [top, -top - 1, 3]
    assert honest(backend, fits, bits) == [exact_sum] * 3
    refused = honest(backend, leaves, bits)
    assert all(isinstance(error, CheckFailed) for error in refused), refused
    # The reason that needs no enemy is told: so that a plan is mended, not the network.
    assert all("[-2^" in str(error) for error in refused), refused
    assert honest(backend, leaves, bits, checked=False) == [[-top - 1, 0, 0]] * 3


def test_an_identity_shows_itself_in_no_encoding(tmp_path: Path) -> None:
    identity = Identity.new()
    identity.save(tmp_path / "own.key")
    pem = (tmp_path / "own.key").read_text()
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    # PKCS #8 of Ed25519 ends with the 32 bytes of the seed (RFC 8410).
    seed = der[-32:]
    shown = f"{identity} {identity!r} {vars(type(identity))}"
    for form in (seed.hex(), base64.b64encode(seed).decode(), repr(seed), repr(list(seed))):
        assert form not in shown
    assert (tmp_path / "own.key").stat().st_mode & 0o777 == 0o600


REPOSITORY = Path(__file__).parents[1]
# What reads objects back and runs code that somebody sent.
_UNSAFE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def our_modules() -> Iterator[tuple[Path, ast.AST]]:
    for folder in ("mpcfl", "parties", "launch"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return set()


def test_none_of_our_modules_can_unpickle() -> None:
    modules = list(our_modules())
    assert len(modules) > 80
    found = [path for path, tree in modules for n in ast.walk(tree) if imported(n) & _UNSAFE]
    assert found == []
    allowing = [
        path
        for path, tree in modules
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for word in call.keywords
        if isinstance(word.value, ast.Constant)
        and (word.arg, word.value.value) in {("allow_pickle", True), ("weights_only", False)}
    ]
    assert allowing == []
