"""The oracle of recovery: silent on runs that keep the rules, and each broken rule is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpcfl.audit.spent import read_spent
from mpcfl.audit.transcript import _check_ledger, audit_transcript, check_run
from mpcfl.config import parse_job
from mpcfl.dp import Budget, Ledger, NoisePlan, make_plan, planned_charge, realised_charge
from mpcfl.dp.attempts import AttemptLog, Failure, read_log
from mpcfl.dp.ledger import Token
from mpcfl.errors import ConfigError
from mpcfl.launch.audit_cli import audit_app

ALL, LEFT, RIGHT = [(0, 10)], [(0, 4)], [(4, 10)]
EVERYBODY = (0, 1, 2)
Line = dict[str, Any]


@pytest.fixture(scope="module")
def plan() -> NoisePlan:
    return make_plan(
        epsilon=8.0,
        delta=1e-5,
        rounds=2,
        parties=3,
        dim=10,
        clip_norm=1.0,
        modulus_bits=32,
        max_dropout=1,
        spare_attempts=2,
    )


@dataclass
class Run:
    """Three parties that write what parties write, into one folder."""

    folder: Path
    plan: NoisePlan
    logs: list[AttemptLog] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    tokens: dict[tuple[int, int, int], Token] = field(default_factory=dict)

    def __post_init__(self) -> None:
        document = {
            "task": "toy",
            "parties": {"count": 3, "max_dropout": 1},
            "privacy": {"unit": "party", "epsilon": 8.0, "delta": 1e-5, "spare_attempts": 2},
            "training": {"rounds": 2},
            "aggregation": {"backend": "ring"},
        }
        job = parse_job(document, "job").model_dump(mode="json")
        (self.folder / "job.json").write_text(json.dumps(job))
        (self.folder / "ledger").mkdir()
        for party in EVERYBODY:
            self.ledgers.append(
                Ledger.open(
                    self.folder / "ledger" / f"party-{party}.jsonl",
                    identity=f"toy/party-{party}",
                    budget=Budget(8.0, 1e-5),
                )
            )
        self.start(EVERYBODY, "s0")

    def start(self, roster: tuple[int, ...], name: str) -> None:
        self.logs = [AttemptLog(self.path(party), party) for party in EVERYBODY]
        self.view(0, roster, name)

    def path(self, party: int) -> Path:
        return self.folder / "transcript" / f"party-{party}.jsonl"

    def view(self, epoch: int, roster: tuple[int, ...], digest: str) -> None:
        for party in roster:
            self.logs[party].view(epoch, roster, digest)

    def charge(
        self, round_id: int, attempt: int, roster: tuple[int, ...], spans: list[tuple[int, int]]
    ) -> None:
        for party in roster:
            charge = planned_charge(self.plan, round_id, attempt)
            self.tokens[party, round_id, attempt] = self.ledgers[party].reserve(charge)
            self.logs[party].charge(round_id, attempt, roster, spans)

    def begin(self, round_id: int, attempt: int, roster: tuple[int, ...]) -> None:
        for party in roster:
            self.logs[party].begin(round_id, attempt)

    def commit(self, round_id: int, attempt: int, roster: tuple[int, ...], of: int) -> None:
        for party in roster:
            token, ledger = self.tokens[party, round_id, attempt], self.ledgers[party]
            ledger.opened(token)
            charge = planned_charge(self.plan, round_id, attempt)
            ledger.commit(token, realised_charge(self.plan, charge, of))

    def whole_round(
        self, round_id: int, attempt: int = 0, roster: tuple[int, ...] = EVERYBODY
    ) -> None:
        self.charge(round_id, attempt, roster, ALL)
        self.begin(round_id, attempt, roster)
        for party in roster:
            self.logs[party].open(round_id, attempt, ALL, f"sum {round_id}")
            self.logs[party].settle(round_id)
        self.commit(round_id, attempt, roster, len(roster))

    def lose_party_2(self) -> None:
        """Party 0 knows the left part of round 0 when party 2 dies; party 1 is told."""
        self.charge(0, 0, EVERYBODY, ALL)
        self.begin(0, 0, EVERYBODY)
        self.logs[0].open(0, 0, LEFT, "left")
        for party in (0, 1):
            self.logs[party].fail(0, 0, Failure.PARTY_LOST)
        self.view(1, (0, 1), "s0 e1")
        self.logs[1].open(0, 0, LEFT, "left", source=0)

    def retry(self) -> None:
        self.charge(0, 1, (0, 1), RIGHT)
        self.begin(0, 1, (0, 1))
        for party in (0, 1):
            self.logs[party].open(0, 1, RIGHT, "right")
            self.logs[party].settle(0)
        self.commit(0, 0, (0, 1), 3)
        self.commit(0, 1, (0, 1), 2)

    def close(self) -> None:
        for file in (*self.logs, *self.ledgers):
            file.close()

    def check(self) -> list[str]:
        self.close()
        return check_run(self.folder)

    def rewrite(
        self, party: int, change: Callable[[dict[str, Any]], dict[str, Any] | None]
    ) -> None:
        """Change the lines of a party's file; None leaves one out."""
        lines = [change(json.loads(line)) for line in self.path(party).read_text().splitlines()]
        text = "".join(json.dumps(line) + "\n" for line in lines if line is not None)
        self.path(party).write_text(text)


@pytest.fixture
def run(tmp_path: Path, plan: NoisePlan) -> Run:
    return Run(tmp_path, plan)


def test_a_run_that_came_through_is_fine(run: Run) -> None:
    run.whole_round(0)
    run.whole_round(1)
    assert run.check() == []


def test_a_run_that_lost_a_party_is_fine(run: Run) -> None:
    run.lose_party_2()
    run.retry()
    run.whole_round(1, roster=(0, 1))
    assert run.check() == []


def test_a_run_that_broke_off_is_fine_wherever_it_did(run: Run) -> None:
    assert check_run(run.folder) == []
    run.charge(0, 0, EVERYBODY, ALL)
    assert check_run(run.folder) == []
    run.begin(0, 0, (0, 2))
    assert check_run(run.folder) == []
    run.logs[0].open(0, 0, LEFT, "left")
    with run.path(2).open("ab") as stream:
        stream.write(b'{"schema":1,"kind":"ope')
    assert run.check() == []


def test_a_resumed_run_is_fine(run: Run) -> None:
    run.charge(0, 0, EVERYBODY, ALL)
    run.begin(0, 0, EVERYBODY)
    run.logs[1].open(0, 0, LEFT, "left")
    run.start((0, 1), "s1")
    run.whole_round(0, attempt=1, roster=(0, 1))
    assert run.check() == []


def test_a_dead_party_may_know_what_was_asked_for_again(run: Run) -> None:
    run.lose_party_2()
    run.logs[2].open(0, 0, RIGHT, "another value, of attempt 0")
    run.retry()
    assert run.check() == []


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="job"):
        check_run(tmp_path)


def changed(kind: str, **facts: Any) -> Callable[[Line], Line | None]:
    return lambda line: {**line, **facts} if line["kind"] == kind else line


def without(kind: str, attempt: int = 0) -> Callable[[Line], Line | None]:
    def change(line: Line) -> Line | None:
        matches = line["kind"] == kind and line.get("attempt", -1) in {attempt, -1}
        return None if matches else line

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (changed("start", party=2), "party 1: its file was written by party 2"),
        (without("start"), "party 1: its file does not begin with a start"),
        (changed("view", roster=[0, 1]), "epoch 0: two views of it were entered"),
        (changed("view", roster=[0, 2]), "party 1: epoch 0 is entered by a party that is not in"),
        (changed("view", roster=[1]), "epoch 0: 1 members are fewer than a quorum"),
        (without("charge"), "party 1: round 0, attempt 0 is begun, but was not charged"),
        (without("charge"), "round 0, attempt 0 began, but party 1 did not charge it so"),
        (changed("charge", roster=[0, 1]), "round 0, attempt 0 has two rosters"),
        (changed("charge", spans=[[0, 9]]), "round 0, attempt 0 has two rosters"),
        (changed("charge", epoch=1), "is begun in another epoch than it was charged in"),
        (without("begin"), "party 1: round 0, attempt 0 is opened, but was not begun"),
        (changed("open", spans=[[0, 11]]), "opened for coordinates that it was not charged for"),
        (changed("open", spans=[[0, 9]]), "round 0 is settled, but not all of it is known"),
        (changed("open", digest="other"), "two values for the same coordinates"),
    ],
)
def test_a_changed_file_is_named(
    run: Run, change: Callable[[Line], Line | None], found: str
) -> None:
    run.whole_round(0)
    run.rewrite(1, change)
    assert any(found in text for text in run.check())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (changed("view", epoch=0), "epoch 0 is entered after epoch 0"),
        (changed("charge", spans=[[0, 10]]), "begun for coordinates that the party knows"),
        (changed("charge", attempt=1), "round 0, attempt 1 is charged after a later attempt"),
        (changed("open", attempt=1), "round 0, attempt 1 is opened, but was not begun"),
        (changed("open", source=2), "party 2 told values that it had not opened"),
    ],
)
def test_a_changed_file_of_a_run_that_lost_a_party_is_named(
    run: Run, change: Callable[[Line], Line | None], found: str
) -> None:
    run.lose_party_2()
    run.retry()
    run.rewrite(1, change)
    assert any(found in text for text in run.check())


def test_two_attempts_that_open_one_coordinate_are_named(run: Run) -> None:
    run.lose_party_2()
    run.retry()
    run.rewrite(0, lambda line: {**line, "spans": [[0, 10]]} if line["kind"] == "open" else line)
    found = run.check()
    assert "party 0: round 0, attempt 1 opens coordinates that attempt 0 has opened" in found


def test_a_retry_of_what_another_member_held_is_named(run: Run) -> None:
    run.lose_party_2()
    run.retry()
    # Party 0 knew the right part too before the retry was charged, and kept it to itself.
    run.rewrite(
        0, lambda line: {**line, "spans": [[0, 10]]} if line.get("digest") == "left" else line
    )
    assert "round 0, attempt 1 is for coordinates that party 0 held" in run.check()


def test_a_lost_party_that_comes_back_is_named(run: Run) -> None:
    run.lose_party_2()
    run.close()
    run.rewrite(0, lambda line: {**line, "roster": [0, 1]} if line["kind"] == "view" else line)
    run.rewrite(
        0,
        lambda line: (
            {**line, "roster": [0, 1, 2]} if line["kind"] == "view" and line["epoch"] == 1 else line
        ),
    )
    assert "party 0: epoch 1 has a member that epoch 0 had not" in check_run(run.folder)


def test_an_attempt_that_began_twice_is_named(run: Run) -> None:
    run.whole_round(0)
    text = run.path(1).read_text().splitlines(keepends=True)
    begun = next(line for line in text if '"begin"' in line)
    run.path(1).write_text("".join([*text, begun]))
    found = run.check()
    assert "party 1: round 0, attempt 0 is begun twice" in found
    assert "party 1: round 0, attempt 0 is begun, but its round is settled" in found


def test_two_models_are_named(run: Run) -> None:
    run.lose_party_2()
    run.retry()
    run.rewrite(1, lambda line: {**line, "attempt": 1} if line["kind"] == "open" else line)
    assert "round 0: two parties settled it from different attempts" in run.check()


def test_a_ledger_that_did_not_pay_is_named(run: Run, plan: NoisePlan) -> None:
    run.lose_party_2()
    for party in (0, 1):
        run.logs[party].charge(0, 1, (0, 1), RIGHT)
    run.ledgers[0].reserve(planned_charge(plan, 0, 1))
    run.begin(0, 1, (0,))
    (found,) = run.check()
    assert "party-1.jsonl: round 0, attempt 1 began, but this ledger did not pay for it" in found


def test_a_ledger_that_paid_for_more_parties_than_there_were_is_named(run: Run) -> None:
    run.lose_party_2()
    run.charge(0, 1, (0, 1), RIGHT)
    run.begin(0, 1, (0, 1))
    run.commit(0, 1, (0,), 3)
    (found,) = run.check()
    assert "party-0.jsonl: round 0, attempt 1 is paid as if more parties" in found


def test_a_ledger_that_paid_for_nothing_is_named_where_nothing_failed(
    run: Run, plan: NoisePlan
) -> None:
    run.whole_round(0)
    run.ledgers[2].reserve(planned_charge(plan, 1, 0))
    (found,) = run.check()
    assert "party-2.jsonl: epsilon" in found
    assert "though no attempt failed" in found


def test_an_epsilon_below_that_of_what_began_is_named(run: Run) -> None:
    run.whole_round(0)
    run.close()
    spent = read_spent(run.folder / "ledger" / "party-0.jsonl")
    assert spent is not None
    assert spent.epsilon_of([(0, 0)]) == spent.epsilon > 0
    low = replace(spent, epsilon=spent.epsilon / 2)
    (found,) = _check_ledger(low, {(0, 0): EVERYBODY}, 3, unbroken=False)
    assert "is below" in found


def test_a_run_without_privacy_needs_no_ledger(run: Run) -> None:
    run.whole_round(0)
    for path in (run.folder / "ledger").iterdir():
        path.unlink()
    assert run.check() == []


def test_a_damaged_file_is_named(run: Run) -> None:
    run.whole_round(0)
    run.close()
    run.path(0).write_bytes(b"nonsense\n" + run.path(0).read_bytes())
    ledger = run.folder / "ledger" / "party-1.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-40] + b"\n")
    found = check_run(run.folder)
    assert any("party-0.jsonl: line 1 is not an event" in text for text in found)
    assert any(f"{ledger}" in text for text in found)


def test_the_command_says_what_it_found(run: Run) -> None:
    run.whole_round(0)
    run.close()
    fine = CliRunner().invoke(audit_app, ["transcript", str(run.folder)])
    assert fine.exit_code == 0
    assert "3 parties wrote nothing that contradicts it" in fine.output
    run.rewrite(1, changed("open", digest="other"))
    bad = CliRunner().invoke(audit_app, ["transcript", str(run.folder), "--json"])
    assert bad.exit_code == 1
    report = json.loads(bad.output)
    assert not report["passed"]
    assert "two values for the same coordinates" in report["findings"][0]["detail"]


def test_a_run_without_a_transcript_is_not_called_fine(run: Run) -> None:
    run.close()
    for path in (run.folder / "transcript").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="holds no transcript"):
        audit_transcript(run.folder)


def test_the_logs_of_the_tests_are_what_parties_write(run: Run) -> None:
    run.whole_round(0)
    run.close()
    assert [event.kind.value for event in read_log(run.path(0))] == [
        "start",
        "view",
        "charge",
        "begin",
        "open",
        "settle",
    ]
