"""Signed heads: a ledger that was cut, swapped or written again is refused, with the reason."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mpcfl.dp import Budget, Charge, Ledger, verify_ledger
from mpcfl.dp.heads import Claim, SeenHeads, SignedHead, heads_path, read_head
from mpcfl.dp.ledger_key import LedgerKey, key_path
from mpcfl.errors import LedgerError

BUDGET = Budget(epsilon=80.0, delta=1e-5)
NAMES = ("north", "south")


def opened(path: Path, claims: list[Claim] | None = None, name: str | None = None) -> Ledger:
    identity = f"digits/{name or NAMES[int(path.stem[-1])]}"
    return Ledger.open(path, identity=identity, budget=BUDGET, claims=claims)


def play(folder: Path, charge: Charge, rounds: range, *, resumed: bool = False) -> None:
    """What two parties do in some rounds: reserve, tell each other, use the sum."""
    paths = [folder / f"party-{number}.jsonl" for number in (0, 1)]
    claims = [peer_claims(path) if resumed else None for path in paths]
    ledgers = [opened(path, claim) for path, claim in zip(paths, claims, strict=True)]
    seen = [memory_of(path) for path in paths]
    exchange(ledgers, seen)
    for round_id in rounds:
        attempt = max(ledger.next_attempt(round_id) for ledger in ledgers)
        named = dataclasses.replace(charge, round_id=round_id, attempt=attempt)
        tokens = [ledger.reserve(named) for ledger in ledgers]
        exchange(ledgers, seen)
        for ledger, token in zip(ledgers, tokens, strict=True):
            ledger.opened(token)
            ledger.commit(token)
    for ledger in ledgers:
        ledger.close()


def memory_of(path: Path) -> SeenHeads:
    file = heads_path(path)
    return SeenHeads.load(file) if file.exists() else SeenHeads(file)


def exchange(ledgers: list[Ledger], seen: list[SeenHeads]) -> None:
    heads = [read_head(json.loads(ledger.signed_head().to_json())) for ledger in ledgers]
    for memory in seen:
        memory.remember(heads)


def peer_claims(path: Path) -> list[Claim]:
    """What the other party remembers of a ledger."""
    number = int(path.stem[-1])
    other = path.with_name(f"party-{1 - number}.jsonl")
    head = memory_of(other).of(f"digits/{NAMES[number]}")
    assert head is not None
    return [Claim(NAMES[1 - number], head)]


@pytest.fixture
def folder(tmp_path: Path, charge: Charge) -> Path:
    """Two parties' ledgers after two rounds: a header and 2 x 3 entries each."""
    play(tmp_path, charge, range(2))
    return tmp_path


@pytest.fixture
def elsewhere(tmp_path: Path, charge: Charge) -> Path:
    """The same two parties in another, longer run."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    play(other, charge, range(4))
    return other


def forget_own(path: Path) -> None:
    """Let a party lose its own memory, so that only its peer's is left."""
    heads_path(path).unlink()


def cut(path: Path, kept: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))


def regrow(path: Path, charge: Charge, entries: int) -> None:
    """Go on from a cut as its owner could, who has the key and forgets its own memory."""
    forget_own(path)
    with opened(path) as ledger:
        for attempt in range(entries):
            ledger.reserve(dataclasses.replace(charge, round_id=1, attempt=attempt + 5))


def assert_refused(path: Path, *words: str) -> None:
    """Opening and verifying both fail with file and reason; nothing is changed by either."""
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    for act in (lambda: opened(path, peer_claims(path)), lambda: verify_ledger(path)):
        with pytest.raises(LedgerError) as caught:
            act()
        assert path.stem in str(caught.value)
        for word in words:
            assert word in str(caught.value)
    assert before == {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}


def test_an_intact_ledger_goes_on_and_names_who_remembers_it(folder: Path, charge: Charge) -> None:
    play(folder, charge, range(2, 4), resumed=True)
    report = verify_ledger(folder / "party-1.jsonl")
    assert (report.rounds, report.attempts, report.unresolved) == (4, 4, 0)
    assert [seen.file for seen in report.heads_seen] == ["party-0.heads.json", "party-1.heads.json"]
    # The last reserve is in the heads; its opening and commit come after them.
    assert {seen.entries for seen in report.heads_seen} == {report.entries - 2}


@pytest.mark.parametrize("kept", [1, 4])
def test_a_ledger_cut_at_an_entrys_end_is_refused(kept: int, folder: Path) -> None:
    path = folder / "party-0.jsonl"
    cut(path, kept)
    assert_refused(path, f"has {kept} entries, not the 5 or more", "restore the ledger from a copy")
    forget_own(path)
    with pytest.raises(LedgerError, match="that south saw"):
        opened(path, peer_claims(path))
    with pytest.raises(LedgerError, match=r"party-1\.heads\.json saw"):
        verify_ledger(path)


def test_what_is_cut_after_the_last_head_costs_nothing(folder: Path) -> None:
    path = folder / "party-0.jsonl"
    before = verify_ledger(path).epsilon
    cut(path, 5)
    assert verify_ledger(path).epsilon == before
    opened(path, peer_claims(path)).close()


@pytest.mark.parametrize("entries", [1, 4])
def test_a_ledger_cut_and_grown_again_is_refused(
    entries: int, folder: Path, charge: Charge
) -> None:
    path = folder / "party-0.jsonl"
    cut(path, 4)
    regrow(path, charge, entries)
    assert verify_alone(path) == 4 + entries
    assert_refused(path, "has another entry 5 than the one", "what was spent stays spent")


def verify_alone(path: Path) -> int:
    """Return the number of entries of a chain that is intact by itself."""
    alone = path.parent / "alone"
    alone.mkdir()
    shutil.copy(path, alone)
    entries = verify_ledger(alone / path.name).entries
    shutil.rmtree(alone)
    return entries


def test_swapped_ledgers_are_refused(folder: Path) -> None:
    first, second = folder / "party-0.jsonl", folder / "party-1.jsonl"
    for a, b in ((first, second), (key_path(first), key_path(second))):
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)
        with pytest.raises(LedgerError, match=r"identity 'digits/south', the run 'digits/north'"):
            opened(first, [])


@pytest.mark.parametrize("with_key", [False, True])
def test_the_ledger_of_another_run_is_refused(
    with_key: bool, folder: Path, elsewhere: Path
) -> None:
    path = folder / "party-0.jsonl"
    shutil.copy(elsewhere / path.name, path)
    if not with_key:
        with pytest.raises(LedgerError, match=r"party-0\.key: this is the key of another ledger"):
            opened(path, peer_claims(path))
        return
    shutil.copy(key_path(elsewhere / path.name), key_path(path))
    assert_refused(path, "signs with another key than the one")
    shutil.copy(heads_path(elsewhere / path.name), heads_path(path))
    with pytest.raises(LedgerError, match="another key than the one that south saw"):
        opened(path, peer_claims(path))


@pytest.mark.parametrize("also", [(), (key_path,), (key_path, heads_path)])
def test_a_deleted_ledger_is_not_begun_anew(
    also: tuple[Callable[[Path], Path], ...], folder: Path
) -> None:
    path = folder / "party-0.jsonl"
    claims = peer_claims(path)
    path.unlink()
    for beside in also:
        beside(path).unlink()
    with pytest.raises(LedgerError, match=r"party-0\.jsonl: the ledger is missing; restore it"):
        opened(path, claims)
    assert not path.exists()


@pytest.mark.parametrize("left", [key_path, heads_path])
def test_what_a_deleted_ledger_left_behind_tells(
    left: Callable[[Path], Path], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = tmp_path_factory.mktemp("alone") / "party-0.jsonl"
    shutil.copy(left(folder / "party-0.jsonl"), left(alone))
    with pytest.raises(LedgerError, match="missing"):
        opened(alone)


def test_an_emptied_ledger_is_refused(folder: Path) -> None:
    path = folder / "party-0.jsonl"
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="the ledger is empty; restore it"):
        opened(path, peer_claims(path))
    with pytest.raises(LedgerError, match="another key than the one"):
        opened(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("content", [None, b"", b"garbage", "another"])
def test_a_deleted_or_replaced_key_is_refused(content: bytes | str | None, folder: Path) -> None:
    path = folder / "party-0.jsonl"
    key = key_path(path)
    if content == "another":
        shutil.copy(key_path(folder / "party-1.jsonl"), key)
    elif isinstance(content, bytes):
        key.write_bytes(content)
    else:
        key.unlink()
    with pytest.raises(LedgerError, match=r"party-0\.key: .*from a copy"):
        opened(path, peer_claims(path))
    with pytest.raises(LedgerError, match=r"party-0\.key: .*from a copy"):
        opened(path)


def test_a_tampered_line_is_refused(folder: Path) -> None:
    path = folder / "party-0.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"attempt":0', '"attempt":1', 1))
    assert path.read_text() != text
    assert_refused(path, "line 2", "the hash does not match the content")


def heads_document(path: Path) -> dict[str, object]:
    return json.loads(heads_path(path).read_text())


TAMPERINGS: dict[str, Callable[[dict], object]] = {
    "a shorter length": lambda d: d["heads"][1].update(length=1),
    "another hash": lambda d: d["heads"][1].update(hash="0" * 64),
    "another party's name": lambda d: d["heads"][1].update(identity="digits/west"),
    "another signature": lambda d: d["heads"][1].update(signature=d["heads"][0]["signature"]),
    "a signature in capitals": lambda d: d["heads"][1].update(
        signature=d["heads"][1]["signature"].upper()
    ),
    "a length that is text": lambda d: d["heads"][1].update(length="5"),
    "a further field": lambda d: d["heads"][1].update(note="x"),
    "a missing field": lambda d: d["heads"][1].pop("hash"),
    "a head that is a list": lambda d: d["heads"].append([]),
    "another schema": lambda d: d.update(schema=2),
    "no heads": lambda d: d.pop("heads"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_file_of_heads_is_refused_by_its_name(name: str, folder: Path) -> None:
    path = folder / "party-0.jsonl"
    document = heads_document(path)
    TAMPERINGS[name](document)
    heads_path(path).write_text(json.dumps(document))
    for act in (
        lambda: SeenHeads.load(heads_path(path)),
        lambda: verify_ledger(folder / "party-1.jsonl"),
        lambda: opened(path),
    ):
        with pytest.raises(LedgerError, match=r"party-0\.heads\.json: .*restore it from a copy"):
            act()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"'])
def test_a_file_that_holds_no_heads_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "party-0.heads.json"
    file.write_text(content)
    with pytest.raises(LedgerError, match=r"party-0\.heads\.json"):
        SeenHeads.load(file)
    file.unlink()
    with pytest.raises(LedgerError, match="can't read"):
        SeenHeads.load(file)


def test_a_torn_last_line_is_allowed_and_charged(folder: Path, charge: Charge) -> None:
    path = folder / "party-0.jsonl"
    with opened(path) as ledger:
        ledger.reserve(dataclasses.replace(charge, round_id=2))
        after = ledger.epsilon()
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    report = verify_ledger(path)
    assert (report.torn_last_line, report.epsilon, report.attempts) == (True, after, 3)
    with opened(path, peer_claims(path)) as ledger:
        assert (ledger.epsilon(), ledger.charges) == (after, 3)


def test_a_line_that_peers_saw_is_no_torn_one(folder: Path) -> None:
    path = folder / "party-0.jsonl"
    cut(path, 5)
    path.write_bytes(path.read_bytes()[:-40])
    assert_refused(path, "has 4 entries, not the 5 or more")


def test_a_memory_only_grows(folder: Path, elsewhere: Path) -> None:
    path = folder / "party-1.jsonl"
    seen = memory_of(path)
    known = seen.of("digits/north")
    assert known is not None
    key = LedgerKey.load(key_path(folder / "party-0.jsonl"))
    other = memory_of(elsewhere / path.name).of("digits/north")
    before = heads_path(path).read_bytes()
    for head, reason in (
        (key.sign("digits/north", (4, "ab" * 32)), "has 4 entries where there were 5"),
        (key.sign("digits/north", (5, "ab" * 32)), "has another entry 5 than before"),
        (other, "signs with another key than before"),
    ):
        with pytest.raises(LedgerError, match=f"the ledger of digits/north {reason}"):
            seen.remember([head])
    assert heads_path(path).read_bytes() == before
    seen.remember([key.sign("digits/north", (6, "ab" * 32))])
    assert SeenHeads.load(heads_path(path)).of("digits/north") == seen.of("digits/north") != known


def test_a_head_that_nobody_signed_is_none(folder: Path) -> None:
    with opened(folder / "party-0.jsonl") as ledger:
        head = ledger.signed_head()
        assert (head.length, head.hash) == ledger.head
    for change in ({"length": 99}, {"identity": "x"}, {"signature": "00" * 64}):
        with pytest.raises(LedgerError, match="signature"):
            dataclasses.replace(head, **change)
    with pytest.raises(LedgerError, match="not a signed head"):
        SignedHead("x", head.public_key, True, head.hash, head.signature)


def test_files_of_keys_and_heads_are_private(folder: Path) -> None:
    for beside in (key_path, heads_path):
        assert stat.S_IMODE(beside(folder / "party-0.jsonl").stat().st_mode) == 0o600
    assert [file for file in folder.iterdir() if file.suffix == ".tmp"] == []


def test_a_key_does_not_leave_its_process(folder: Path) -> None:
    key = LedgerKey.load(key_path(folder / "party-0.jsonl"))
    assert repr(key) == "LedgerKey(<redacted>)"
    with pytest.raises(TypeError, match="leave its process"):
        copy.copy(key)
    other = LedgerKey.load(key_path(folder / "party-1.jsonl"))
    assert key.public_key != other.public_key


def test_a_ledger_from_before_there_were_keys_gets_one(folder: Path, charge: Charge) -> None:
    from mpcfl.dp.chain import ChainFile

    path = folder / "old" / "party-0.jsonl"
    path.parent.mkdir()
    chain = ChainFile(path)
    budget = dataclasses.asdict(BUDGET)
    chain.append("header", {"identity": "digits/north", "budget": budget, "accountant": "pld"})
    old_charge = dataclasses.asdict(charge)
    del old_charge["times"], old_charge["mechanism"]
    chain.append("reserve", {"charge": old_charge})
    chain.close()
    before = verify_ledger(path)
    assert (before.rounds, before.unresolved) == (1, 1)
    with opened(path) as ledger:
        assert ledger.epsilon() == before.epsilon > 0
        first = ledger.signed_head()
    with opened(path, [Claim("south", first)]) as ledger:
        assert ledger.signed_head().public_key == first.public_key
        assert ledger.head[0] == 3
    key_path(path).unlink()
    with pytest.raises(LedgerError, match="key"):
        opened(path)


def test_verify_refuses_a_ledger_in_the_place_of_another(tmp_path: Path) -> None:
    for name in ("party-0", "party-1"):
        with Ledger.open(tmp_path / f"{name}.jsonl", identity=name, budget=Budget(4.0, 1e-5)):
            pass
    verify_ledger(tmp_path / "party-0.jsonl")
    (tmp_path / "party-0.jsonl").write_bytes((tmp_path / "party-1.jsonl").read_bytes())
    with pytest.raises(LedgerError, match=r"party-0\.key signs for"):
        verify_ledger(tmp_path / "party-0.jsonl")
    (tmp_path / "party-0.key").write_text("junk")
    with pytest.raises(LedgerError, match="not a ledger's key"):
        verify_ledger(tmp_path / "party-0.jsonl")
