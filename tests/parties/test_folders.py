"""Hosts without a common file system: every one ends with all of the results, and goes on alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError, PartyNotReady
from mpcfl.net.transport import Transport
from mpcfl.parties import checkpoints, folders
from mpcfl.parties.events import Ended, Lost, RoundDone, Started
from mpcfl.parties.party_file import PartyFile
from mpcfl.report.checkpoint import load_checkpoint
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RunRecord, is_complete, read_rounds

sys.path.append(str(Path(__file__).parent))
from hosts_in_threads import run_on_hosts

NAMES = ("ada", "ben", "cat", "dan")


@pytest.fixture(autouse=True)
def _quick_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the page for people would be most of the time."""
    monkeypatch.setattr("mpcfl.report.html.write_run_report", lambda _, path: path.write_text(""))


def make_job(**tables: object) -> Job:
    return parse_job(
        {
            "task": "parties_in_threads:Line",
            "parties": {"count": 4, "names": list(NAMES), "max_dropout": 1},
            "privacy": {
                "unit": "record",
                "epsilon": 8.0,
                "records": 16,
                "sample_rate": 0.5,
                "spare_attempts": 2,
            },
            "training": {"rounds": 4},
            "aggregation": {"backend": "ring", "deadline_s": 20.0},
            **tables,
        },
        "inline",
    )


def own_paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name / "run" for name in NAMES]


def test_every_host_has_the_model_the_record_and_its_own_ledger_only(tmp_path: Path) -> None:
    paths = own_paths(tmp_path)
    hosts = run_on_hosts(make_job(), paths)
    assert hosts.errors == {}
    records = [RunRecord.load(path / "run.json") for path in paths]
    assert len({record.model_sha256 for record in records}) == 1
    models = [torch.load(path / "model.pt", weights_only=True) for path in paths]
    assert all(torch.equal(model["weight"], models[0]["weight"]) for model in models)
    for number, (path, record) in enumerate(zip(paths, records, strict=True)):
        assert [entry.round for entry in record.rounds] == [1, 2, 3, 4]
        assert record.privacy.epsilon == records[0].privacy.epsilon
        assert (path / "report.html").is_file()
        assert json.loads((path / "job.json").read_text())["parties"]["names"] == list(NAMES)
        ledgers = [file.name for file in (path / "ledger").glob("*.jsonl")]
        assert ledgers == [f"party-{number}.jsonl"]
        local = {file.name for file in (path / "local").iterdir()}
        assert local == {f"party-{number}.log", f"party-{number}.ledger"}
        # Nothing that only served to find out who sees what.
        assert not [file for file in path.iterdir() if file.name.startswith(".")]


def test_one_party_tells_people_and_the_end_is_told_once_all_hosts_have_written(
    tmp_path: Path,
) -> None:
    hosts = run_on_hosts(make_job(), own_paths(tmp_path))
    kinds = [type(event) for event in hosts.told[0]]
    assert kinds == [Started, *[RoundDone] * 4, Ended]
    # Times of one party stay on its host; whoever started the run may be on another.
    assert all(event.seconds == {} for event in hosts.told[0] if isinstance(event, RoundDone))
    assert [hosts.told[seat] for seat in (1, 2, 3)] == [[], [], []]


def test_parties_that_see_the_same_folder_share_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    hosts = run_on_hosts(make_job(), [one, other, one, other])
    assert hosts.errors == {}
    assert [hosts.places[seat].sharers for seat in range(4)] == [(0, 2), (1, 3), (0, 2), (1, 3)]
    assert {hosts.places[seat].keepers for seat in range(4)} == {(0, 1)}
    assert sorted(file.name for file in (other / "ledger").glob("*.jsonl")) == [
        "party-1.jsonl",
        "party-3.jsonl",
    ]


def test_who_asked_for_no_folder_uses_the_first_partys_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hosts = run_on_hosts(make_job(), [None, None, tmp_path / "own", None])
    assert hosts.errors == {}
    assert hosts.places[0].sharers == (0, 1, 3)
    assert hosts.places[2].folder.path == tmp_path / "own"
    assert hosts.places[1].folder.path == hosts.places[0].folder.path.resolve()
    assert hosts.places[0].folder.path.parent == Path("runs")


def test_a_folder_on_one_host_that_is_not_empty_stops_all_before_the_first_round(
    tmp_path: Path,
) -> None:
    paths = own_paths(tmp_path)
    paths[2].mkdir(parents=True)
    (paths[2] / "precious").touch()
    hosts = run_on_hosts(make_job(), paths)
    assert sorted(hosts.errors) == [0, 1, 2, 3]
    for error in hosts.errors.values():
        assert isinstance(error, PartyNotReady)
        assert "cat" in str(error)
        assert "is not empty" in str(error)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc", "a/b", "/etc", "a\0b"])
def test_a_name_that_another_party_told_leads_nowhere_else(name: str) -> None:
    with pytest.raises(ConfigError, match="leads out of the run's folder"):
        folders._plain(name)


def test_others_go_on_when_the_first_host_dies_and_another_tells(tmp_path: Path) -> None:
    paths = own_paths(tmp_path)
    hosts = run_on_hosts(make_job(), paths, dies_at={0: 60})
    assert sorted(hosts.errors) == [0]
    assert any(isinstance(event, Lost) for event in hosts.told[1])
    assert isinstance(hosts.told[1][-1], Ended)
    records = [RunRecord.load(path / "run.json") for path in paths[1:]]
    assert all(record.model_sha256 == records[0].model_sha256 != "" for record in records)
    assert records[0].rounds[-1].parties == NAMES[1:]
    assert not is_complete(paths[0] / "run.json")


def test_a_host_that_was_lost_is_brought_up_to_date_when_the_run_is_resumed(tmp_path: Path) -> None:
    paths, job = own_paths(tmp_path), make_job()
    before = run_on_hosts(job, paths, dies_at={0: 60})
    assert sorted(before.errors) == [0]
    behind = load_checkpoint(RunFolder(paths[0]).checkpoint).facts.next_round
    assert behind < 4
    after = run_on_hosts(job, paths, resume=True)
    assert after.errors == {}
    records = [RunRecord.load(path / "run.json") for path in paths]
    assert len({record.model_sha256 for record in records}) == 1
    assert [entry.round for entry in records[0].rounds] == [1, 2, 3, 4]
    # What other hosts measured of themselves did not travel.
    missed = [entry for entry in records[0].rounds if entry.round > behind]
    assert missed
    assert all(not entry.seconds and not entry.peak_rss_bytes for entry in missed)
    assert all(entry.parties == NAMES[1:] for entry in missed[1:])


def test_a_run_that_is_over_everywhere_is_left_as_it_is(tmp_path: Path) -> None:
    paths, job = own_paths(tmp_path), make_job()
    run_on_hosts(job, paths)
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    again = run_on_hosts(job, paths, resume=True)
    assert again.errors == {}
    assert [type(event) for event in again.told[0]] == [Ended]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == written


def test_a_damaged_checkpoint_on_one_host_stops_all_and_is_named(tmp_path: Path) -> None:
    paths, job = own_paths(tmp_path), make_job()
    run_on_hosts(job, paths, dies_at={0: 60})
    (paths[2] / "checkpoint" / "checkpoint.json").write_text("{}")
    hosts = run_on_hosts(job, paths, resume=True)
    assert all("cat" in str(error) and "damaged" in str(error) for error in hosts.errors.values())
    assert len(hosts.errors) == 4


def test_a_checkpoint_that_another_host_gives_is_checked_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, job = own_paths(tmp_path), make_job()
    run_on_hosts(job, paths, dies_at={0: 60})
    newest = RunFolder(paths[1]).checkpoint
    facts = load_checkpoint(newest).facts
    # A giver whose vectors are not those of its facts; the copies of the others are as they were.
    sent = checkpoints._send

    def lying(transport: Transport, takers: tuple[int, ...], parts: object) -> None:
        changed = [bytes(len(part)) if part[:2] == b"PK" else part for part in parts]  # type: ignore[attr-defined]
        sent(transport, takers, iter(changed))

    monkeypatch.setattr(checkpoints, "_send", lying)
    hosts = run_on_hosts(job, paths, resume=True)
    assert len(hosts.errors) == 4
    assert all("ada" in str(error) and "damaged" in str(error) for error in hosts.errors.values())
    assert read_rounds(RunFolder(paths[1]).rounds_jsonl, facts.next_round)


def test_a_host_whose_folder_is_gone_says_so(tmp_path: Path) -> None:
    paths, job = own_paths(tmp_path), make_job()
    run_on_hosts(job, paths, dies_at={0: 60})
    shutil.rmtree(paths[3] / "ledger")
    hosts = run_on_hosts(job, paths, resume=True)
    assert len(hosts.errors) == 4
    assert all("dan" in str(error) for error in hosts.errors.values())


def test_two_runs_of_one_job_are_not_mixed_and_neither_is_changed(tmp_path: Path) -> None:
    one, other, job = own_paths(tmp_path / "one"), own_paths(tmp_path / "other"), make_job()
    run_on_hosts(job, one, dies_at={0: 40})
    run_on_hosts(job, other, dies_at={0: 70})
    files = [path for path in tmp_path.rglob("checkpoint/*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    mixed = run_on_hosts(job, [other[0], *one[1:]], resume=True)
    assert len(mixed.errors) == 4
    assert all("the same copy of the run's folder" in str(e) for e in mixed.errors.values())
    assert {path: path.read_bytes() for path in files} == before


def test_a_folder_that_this_party_may_not_look_into_is_not_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = os.stat

    def forbidden(path: Any, *more: Any, **named: Any) -> os.stat_result:
        if "secret" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *more, **named)

    monkeypatch.setattr(os, "stat", forbidden)
    told = {"path": os.fsencode(tmp_path / "secret"), "mark": ".1"}
    assert folders._found(told, None) is None


def test_an_error_while_a_checkpoint_travels_is_told_alike_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, job = own_paths(tmp_path), make_job()
    run_on_hosts(job, paths, dies_at={0: 60})

    def full(*_: object) -> None:
        raise ConfigError("there is no space left; free space, then resume")

    monkeypatch.setattr(checkpoints, "incoming_checkpoint", full)
    hosts = run_on_hosts(job, paths, resume=True)
    assert len(hosts.errors) == 4
    assert all("ada" in str(e) and "free space" in str(e) for e in hosts.errors.values())


def test_a_run_that_was_begun_with_party_files_is_not_resumed_without(tmp_path: Path) -> None:
    paths, job = own_paths(tmp_path), make_job()
    owns = [PartyFile(name, tmp_path / "key", {}, f"{name}.toml") for name in NAMES]
    run_on_hosts(job, paths, dies_at={0: 60}, owns=owns)
    without = run_on_hosts(job, paths, resume=True)
    assert len(without.errors) == 4
    for error in without.errors.values():
        assert isinstance(error, PartyNotReady)
        assert "begun with party files; bring them again with --party-files" in str(error)
    assert run_on_hosts(job, paths, resume=True, owns=owns).errors == {}
