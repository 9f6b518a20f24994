"""What parties tell each other of their ledgers: whose fault a difference is, and who stops."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.dp.heads import Claim, SeenHeads, heads_path
from mpcfl.dp.ledger import Ledger, planned_charge, verify_ledger
from mpcfl.dp.ledger_key import LedgerKey, key_path
from mpcfl.errors import LedgerError, PartyNotReady, ProtocolError
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.parties.ledgers import (
    _LEDGER_MEMORY,
    _claims,
    _take,
    _told_memory,
    _written,
    head_statement,
    open_ledgers,
    remember_heads,
)
from mpcfl.parties.setup import Rank, make_rank
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RoundRecord, append_round

sys.path.append(str(Path(__file__).parent))

from parties_in_threads import connected

NAMES = ("bob", "alice")
JOB = {
    "task": "toy",
    "parties": {"count": 2, "names": list(NAMES)},
    "privacy": {"unit": "record", "epsilon": 8.0, "records": 4, "sample_rate": 0.5},
    "training": {"rounds": 4},
    "aggregation": {"backend": "crypten"},
}


@pytest.fixture(scope="module")
def job() -> Job:
    return parse_job(JOB, "inline")


@pytest.fixture
def make_ranks(job: Job) -> Callable[..., list[Rank]]:
    first = [make_rank(job, number) for number in range(2)]

    def make(*, resumed: bool, first_round: int = 0) -> list[Rank]:
        return [
            dataclasses.replace(rank, resumed=resumed, first_round=first_round) for rank in first
        ]

    return make


def opened(ranks: list[Rank], folder: RunFolder) -> list[Rank]:
    def party(transport: MemoryTransport) -> None:
        rank = ranks[transport.rank]
        with closing(connected(rank.public.job, transport)) as connection:
            open_ledgers(rank, connection, folder)

    try:
        run_parties(2, party)
    finally:
        close(ranks)
    return ranks


def close(ranks: list[Rank]) -> None:
    for rank in ranks:
        if rank.ledger is not None:
            rank.ledger.close()


def refusals(ranks: list[Rank], folder: RunFolder) -> set[str]:
    """Open all ledgers; both parties must refuse, and the reasons are returned."""

    def party(transport: MemoryTransport) -> str:
        rank = ranks[transport.rank]
        with closing(connected(rank.public.job, transport)) as connection:
            with pytest.raises(PartyNotReady) as caught:
                open_ledgers(rank, connection, folder)
            return str(caught.value)

    try:
        return set(run_parties(2, party))
    finally:
        close(ranks)


@pytest.fixture
def folder(tmp_path: Path, make_ranks: Callable[..., list[Rank]]) -> RunFolder:
    """A run that was stopped after a reserve of round 0 that only bob finished."""
    folder = RunFolder(tmp_path)
    ranks = make_ranks(resumed=False)

    def party(transport: MemoryTransport) -> None:
        rank = ranks[transport.rank]
        with closing(connected(rank.public.job, transport)) as connection:
            open_ledgers(rank, connection, folder)
            for attempt in range(2):
                if attempt == 1 and transport.rank == 1:
                    break
                rank.ledger.reserve(planned_charge(rank.public.plan, 0, attempt))
            heads = connection.transport.allgather(head_statement(rank).encode())
            remember_heads(rank, connection.members, [text.decode() for text in heads])

    run_parties(2, party)
    close(ranks)
    return folder


def test_all_remember_all_and_use_the_largest_attempt_of_any(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    for rank in opened(make_ranks(resumed=True), folder):
        assert (rank.next_attempt(0), rank.next_attempt(1)) == (2, 0)
        assert [head.identity for head in rank.seen.all()] == ["toy/bob", "toy/alice"]
        assert [head.length for head in rank.seen.all()] == [3, 2]
    report = verify_ledger(folder.ledger_jsonl(0))
    assert [seen.file for seen in report.heads_seen] == ["party-0.heads.json", "party-1.heads.json"]


def test_without_privacy_there_is_no_ledger(tmp_path: Path) -> None:
    document = {**JOB, "privacy": {"unit": "none"}}
    job = parse_job(document, "inline")
    ranks = opened([make_rank(job, number) for number in range(2)], RunFolder(tmp_path))
    assert all(rank.ledger is None and head_statement(rank) == "" for rank in ranks)
    assert not (tmp_path / "ledger").exists()


def test_a_ledger_put_back_with_its_own_memory_is_named_to_all(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]], tmp_path: Path
) -> None:
    path = folder.ledger_jsonl(0)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    heads_path(path).unlink()
    seen = SeenHeads.load(heads_path(folder.ledger_jsonl(1)))
    own = LedgerKey.load(key_path(path)).sign("toy/bob", (1, json.loads(lines[0])["hash"]))
    SeenHeads(heads_path(path)).remember([own, seen.of("toy/alice")])
    (reason,) = refusals(make_ranks(resumed=True), folder)
    assert reason.startswith("bob (rank 0): ")
    assert "party-0.jsonl: this ledger has 1 entries, not the 3 or more that alice saw" in reason
    assert path.read_bytes() == lines[0]


@pytest.mark.parametrize("missing", ["party-1.jsonl", "party-1.key", "party-1.heads.json"])
def test_whatever_is_missing_stops_all(
    missing: str, folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    (folder.path / "ledger" / missing).unlink()
    (reason,) = refusals(make_ranks(resumed=True), folder)
    assert reason.startswith("alice (rank 1): ")
    assert missing in reason
    assert not (folder.path / "ledger" / missing).exists()


def test_a_changed_memory_is_its_partys_fault(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    file = heads_path(folder.ledger_jsonl(1))
    file.write_text(file.read_text().replace('"length": 3', '"length": 2', 1))
    (reason,) = refusals(make_ranks(resumed=True), folder)
    assert reason.startswith("alice (rank 1): ")
    assert "party-1.heads.json" in reason


def test_a_claim_that_nobody_signed_is_the_fault_of_who_makes_it(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    rank = make_ranks(resumed=True)[0]
    seen = SeenHeads.load(heads_path(folder.ledger_jsonl(1)))
    honest = _told_memory(seen)
    heads = [_written(head) for head in seen.all()]
    heads[0]["length"] = 999
    forged = _LEDGER_MEMORY.encode(heads=heads)
    link: Any = SimpleNamespace(number=0, members=(0, 1), names=NAMES)
    assert [claim.witness for claim in _claims(rank, link, [honest, honest]) or ()] == list(NAMES)
    for memory, words in (
        (forged, "alice holds a ledger head that nobody signed"),
        (_told_memory(None), "alice no longer remembers the ledger of toy/bob"),
    ):
        with pytest.raises(LedgerError, match=f"{words}.*its file of heads was changed"):
            _claims(rank, link, [honest, memory])


@pytest.mark.parametrize("said", [b"", b"[]", 20_000 * b"["])
def test_a_party_that_tells_something_else_of_its_ledger_is_named(
    said: bytes, folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    rank = opened(make_ranks(resumed=True), folder)[0]
    honest = _told_memory(rank.seen)
    link: Any = SimpleNamespace(number=0, members=(0, 1), names=NAMES)
    with pytest.raises(ProtocolError, match=r"^a ledger-memory message from alice was expected"):
        _claims(rank, link, [honest, said])
    with pytest.raises(ProtocolError, match=r"^a ledger message from bob was expected"):
        _take(rank, link, [said, said])


def test_a_round_needs_every_partys_own_signed_head(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]], tmp_path: Path
) -> None:
    rank = make_ranks(resumed=True)[0]
    rank.seen = SeenHeads(tmp_path / "memory.heads.json")
    bob, alice = (
        json.dumps(dataclasses.asdict(head))
        for head in SeenHeads.load(heads_path(folder.ledger_jsonl(1))).all()
    )
    for statement, words in (
        ("", "alice stated no valid head"),
        (20_000 * "[", "alice stated no valid head"),
        (alice.replace('"length": 2', '"length": 3'), "alice stated no valid head"),
        (bob, "alice stated the head of another ledger"),
    ):
        with pytest.raises(LedgerError, match=words):
            remember_heads(rank, (0, 1), [bob, statement])
        assert not rank.seen.path.exists()
    remember_heads(rank, (0, 1), [bob, alice])
    assert len(SeenHeads.load(rank.seen.path).all()) == 2


def test_a_checkpoint_that_is_ahead_of_a_ledger_is_of_another_run(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    opened(make_ranks(resumed=True, first_round=1), folder)
    (reason,) = refusals(make_ranks(resumed=True, first_round=2), folder)
    assert "the checkpoint holds round 2, which this ledger never reserved" in reason


def note_rounds(folder: RunFolder, *parties: Sequence[str]) -> None:
    """Write who took part in the rounds from the first on."""
    folder.checkpoint.mkdir(exist_ok=True)
    for number, names in enumerate(parties, start=1):
        record = RoundRecord(number, 0, tuple(names), None, None, None, {}, 0, 0, 0)
        append_round(folder.rounds_jsonl, record)


def test_a_party_that_was_lost_comes_back_with_the_ledger_that_it_had(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]]
) -> None:
    """The checkpoint is two rounds ahead of alice, who took part in the first one only."""
    ranks = make_ranks(resumed=False)
    path = folder.ledger_jsonl(0)
    heads = SeenHeads.load(heads_path(path))
    with Ledger.open(
        path,
        identity="toy/bob",
        budget=ranks[0].budget,
        accountant=ranks[0].public.job.privacy.accountant,
        claims=[Claim("bob", heads.of("toy/bob"))],
    ) as ledger:
        for round_id in (1, 2):
            ledger.abandon(ledger.reserve(planned_charge(ranks[0].public.plan, round_id, 0)))
    note_rounds(folder, NAMES, ["bob"], ["bob"])
    for rank in opened(make_ranks(resumed=True, first_round=3), folder):
        assert [rank.next_attempt(round_id) for round_id in range(4)] == [2, 1, 1, 0]


@pytest.mark.parametrize(
    "parties",
    [
        (NAMES, NAMES),
        (NAMES,),
        ([], NAMES, []),
    ],
    ids=["took part", "last round is not recorded", "took part before it was lost"],
)
def test_a_party_that_took_part_must_have_reserved_that_round(
    folder: RunFolder, make_ranks: Callable[..., list[Rank]], parties: tuple[Sequence[str], ...]
) -> None:
    note_rounds(folder, *parties)
    ranks = make_ranks(resumed=True, first_round=max(2, len(parties)))
    (reason,) = refusals(ranks, folder)
    assert "alice" in reason or "bob" in reason
    assert "round 2, which this ledger never reserved" in reason


def test_ledgers_of_another_run_of_the_same_job_are_refused(
    folder: RunFolder,
    make_ranks: Callable[..., list[Rank]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    other = RunFolder(tmp_path_factory.mktemp("other"))
    opened(make_ranks(resumed=False), other)
    for beside in (Path, key_path, heads_path):
        shutil.copy(beside(other.ledger_jsonl(1)), beside(folder.ledger_jsonl(1)))
    (reason,) = refusals(make_ranks(resumed=True), folder)
    assert "signs with another key than the one that" in reason
