"""A party's own ledger: what it spent on its data in all runs, whatever folder they went to."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mpcfl.config import Job, parse_job
from mpcfl.dp.charge import Budget
from mpcfl.dp.heads import heads_path
from mpcfl.dp.ledger import Ledger, verify_ledger
from mpcfl.dp.ledger_key import key_path
from mpcfl.errors import ConfigError, PartyNotReady
from mpcfl.parties.events import RoundDone, Stopped
from mpcfl.parties.party_file import OwnLedger, PartyFile
from mpcfl.parties.setup import located_task
from mpcfl.parties.total_ledger import _remembered
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RunRecord

sys.path.append(str(Path(__file__).parent))
from hosts_in_threads import Hosts, run_on_hosts
from parties_in_threads import Line

NAMES = ("ada", "ben", "cat")
DELTA = 1e-5

pytestmark = pytest.mark.usefixtures("no_page")


def make_job(rounds: int = 3, unit: str = "record") -> Job:
    privacy: dict[str, object] = {"unit": unit}
    if unit != "none":
        privacy |= {"epsilon": 4.0, "delta": DELTA}
    if unit == "record":
        privacy |= {"records": 12, "sample_rate": 0.5}
    return parse_job(
        {
            "task": "parties_in_threads:Line",
            "parties": {"count": 3, "names": list(NAMES)},
            "privacy": privacy,
            "training": {"rounds": rounds},
            "aggregation": {"backend": "ring", "deadline_s": 20.0},
        },
        "inline",
    )


def own_file(folder: Path, name: str, epsilon: float) -> PartyFile:
    ledger = OwnLedger(folder / name, "wards", Budget(epsilon, DELTA))
    return PartyFile(name, folder / "key", {}, str(folder / f"{name}.toml"), ledger=ledger)


class Clinics:
    """Parties with ledgers of their own, and as many runs as one likes."""

    def __init__(self, folder: Path, budgets: tuple[float | None, ...]) -> None:
        self._folder = folder
        self.owns = [
            None if epsilon is None else own_file(folder, name, epsilon)
            for name, epsilon in zip(NAMES, budgets, strict=True)
        ]

    def run(self, out: str, job: Job | None = None) -> Hosts:
        path = self._folder / out
        return run_on_hosts(job or make_job(), [path] * 3, owns=self.owns)

    def ledger(self, name: str, unit: str = "record") -> Path:
        return self._folder / name / f"wards-{unit}.jsonl"

    def spent(self, name: str) -> float:
        return verify_ledger(self.ledger(name)).epsilon

    def record(self, out: str) -> RunRecord:
        return RunRecord.load(RunFolder(self._folder / out).run_json)


def test_runs_in_new_folders_add_up_and_the_own_budget_stops_the_one_that_would_pass_it(
    tmp_path: Path,
) -> None:
    clinics = Clinics(tmp_path, (100.0, 5.0, None))
    assert clinics.run("one").errors == {}
    first = clinics.record("one").privacy.epsilon
    assert first == pytest.approx(clinics.spent("ada"))
    second = clinics.run("two")
    assert second.errors == {}
    # Two runs of epsilon 4 are no more than 5 together only if the second is cut short.
    stops = [event for event in second.told[0] if isinstance(event, Stopped)]
    assert len(stops) == 1
    assert "what a party allows for its data set over all of its runs" in stops[0].line()
    # How much that is, and what is spent of it, is nobody else's affair.
    assert "5" not in stops[0].line()
    done = [event for event in second.told[0] if isinstance(event, RoundDone)]
    assert 0 < len(done) < 3
    assert first < clinics.spent("ben") <= 5.0
    attempts = [verify_ledger(clinics.ledger(name)).attempts for name in ("ada", "ben")]
    # ada had paid for the round that ben then refused.
    assert attempts == [3 + len(done) + 1, 3 + len(done)]
    third = clinics.run("three")
    assert not [event for event in third.told[0] if isinstance(event, RoundDone)]
    assert not (tmp_path / "cat").exists()


def test_the_own_ledger_is_charged_before_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, order = Ledger._append, []

    def noted(self: Ledger, kind: str, body: dict[str, object]) -> int:
        if "ada" in str(self.path) or "party-0" in str(self.path):
            order.append((kind, "own" if "wards" in self.path.name else "run"))
        return append(self, kind, body)

    monkeypatch.setattr(Ledger, "_append", noted)
    clinics = Clinics(tmp_path, (100.0, None, None))
    assert clinics.run("one", make_job(rounds=2)).errors == {}
    kinds = ("reserve", "open", "commit")
    assert [step for step in order if step[0] in kinds] == [
        ("reserve", "own"),
        ("reserve", "run"),
        ("open", "own"),
        ("open", "run"),
        ("commit", "run"),
        ("commit", "own"),
    ] * 2


def test_a_ledger_that_was_cut_is_refused_by_who_remembers_more(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (100.0, 100.0, None))
    clinics.run("one")
    path = clinics.ledger("ada")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    # Its own memory is gone too; ben's is not.
    heads_path(path).unlink()
    errors = clinics.run("two").errors
    assert len(errors) == 3
    for error in errors.values():
        assert isinstance(error, PartyNotReady)
        assert "that ben saw" in str(error)
        assert "restore the ledger from a copy" in str(error)
    assert not (tmp_path / "two" / "run.json").exists()


def test_a_ledger_that_is_gone_is_missed_by_who_remembers_it(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (100.0, 100.0, None))
    clinics.run("one")
    path = clinics.ledger("ada")
    for file in (path, heads_path(path), key_path(path)):
        file.unlink()
    errors = clinics.run("two").errors
    assert len(errors) == 3
    assert all("the ledger is missing" in str(error) for error in errors.values())


def test_a_total_budget_that_was_raised_is_refused(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (5.0, None, None))
    clinics.run("one")
    clinics.owns[0] = own_file(tmp_path, "ada", 50.0)
    errors = clinics.run("two").errors
    assert len(errors) == 3
    for error in errors.values():
        assert "begun with another budget than [ledger] of the party file has now" in str(error)
        assert "50" not in str(error)


def test_one_budget_is_not_spent_again_under_another_privacy_unit(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (100.0, None, None))
    clinics.run("one")
    errors = clinics.run("two", make_job(unit="party")).errors
    assert len(errors) == 3
    assert all("was charged per record before" in str(error) for error in errors.values())
    assert not clinics.ledger("ada", "party").exists()


def test_a_job_without_privacy_is_refused_where_a_party_counts_what_it_spends(
    tmp_path: Path,
) -> None:
    clinics = Clinics(tmp_path, (100.0, None, None))
    errors = clinics.run("one", make_job(unit="none")).errors
    assert len(errors) == 3
    assert all("asks for no privacy: it would spend" in str(e) for e in errors.values())


@pytest.mark.parametrize("later", ["none", "another"])
def test_a_run_goes_on_in_the_ledger_that_it_was_begun_with(tmp_path: Path, later: str) -> None:
    clinics, paths = Clinics(tmp_path, (100.0, None, None)), [tmp_path / "one"] * 3
    run_on_hosts(make_job(), paths, owns=clinics.owns, dies_at={1: 60})
    other = OwnLedger(tmp_path / "ada", "other", Budget(100.0, DELTA))
    own = own_file(tmp_path, "ada", 100.0)
    clinics.owns[0] = replace(own, ledger=None if later == "none" else other)
    errors = run_on_hosts(make_job(), paths, owns=clinics.owns, resume=True).errors
    assert len(errors) == 3
    assert all("begun with another [ledger]" in str(error) for error in errors.values())


def test_a_peer_remembers_a_ledger_also_when_it_trains_on_other_data(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (100.0, 100.0, None))
    clinics.run("one")
    path = clinics.ledger("ada")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    heads_path(path).unlink()
    beds = OwnLedger(tmp_path / "ben", "beds", Budget(100.0, DELTA))
    clinics.owns[1] = replace(own_file(tmp_path, "ben", 1.0), ledger=beds)
    errors = clinics.run("two").errors
    assert len(errors) == 3
    assert all("that ben saw" in str(error) for error in errors.values())


def test_what_was_seen_in_runs_with_others_is_not_told(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (100.0, 100.0, None))
    clinics.run("one")
    told = _remembered(tmp_path / "ben", ("ben", "eve"))
    assert {head.identity for head in told} == {"ben/wards/record"}
    everything = _remembered(tmp_path / "ben", NAMES)
    assert {head.identity for head in everything} == {"ada/wards/record", "ben/wards/record"}


def test_a_party_learns_from_its_own_log_what_it_has_spent(tmp_path: Path) -> None:
    clinics = Clinics(tmp_path, (100.0, None, None))
    clinics.run("one")
    log = (tmp_path / "one" / "local" / "party-0.log").read_text()
    assert f"{clinics.spent('ada'):.4f} epsilon spent on this data set in all runs" in log
    assert "all runs" not in (tmp_path / "one" / "local" / "party-1.log").read_text()


class Located(Line):
    """Notes where its party's data lie."""

    def locate(self, path: Path) -> None:
        self.path = path


def test_a_task_is_told_where_its_partys_data_lie(tmp_path: Path) -> None:
    job = make_job().model_copy(update={"task": f"{__name__}:Located"})
    assert located_task(job, tmp_path / "a.csv").path == tmp_path / "a.csv"  # type: ignore[attr-defined]  # as above
    assert not hasattr(located_task(job, None), "path")


def test_a_task_that_can_not_be_told_where_the_data_lie_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no method locate\(path\) to take it; add one"):
        located_task(make_job(), tmp_path / "a.csv")
