"""The command line without MPI: help, plan, ledger, doctor, bench with a fake launch."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mpcfl.bench.record import load_records
from mpcfl.config import load_job
from mpcfl.dp.ledger import Budget, Ledger, planned_charge
from mpcfl.dp.plan import make_plan
from mpcfl.errors import BackendUnavailable, ConfigError, LedgerError
from mpcfl.launch import bench_command, doctor
from mpcfl.launch.cli import app
from mpcfl.launch.jobs import find_job, packaged_jobs
from mpcfl.launch.live import live_view
from mpcfl.launch.mpirun import Outcome
from mpcfl.parties.events import Ended, Failed, Preparing, RoundDone, Started, Stopped

COMMANDS = (
    *("run", "plan", "doctor", "keygen", "watch", "serve"),
    *("identity", "bench", "ledger", "audit"),
)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_command_with_one_line() -> None:
    text = invoke("--help").output
    listed = text[text.index("Commands") :].splitlines()[1:]
    rows = [line.split(maxsplit=1) for line in listed if line.strip()]
    assert [row[0] for row in rows] == list(COMMANDS)
    assert all(row[1].endswith(".") and not row[1].endswith("...") for row in rows)


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *(
            "bench grid",
            "bench scaling",
            "bench compare",
            "bench report",
            "ledger verify",
            "audit dp",
        ),
        *("identity new", "identity show"),
    ],
)
def test_every_command_has_help_json_and_debug(command: str) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    if command not in {"bench", "ledger", "audit", "identity"}:
        assert "--json" in result.output
        assert "--debug" in result.output


@pytest.mark.parametrize("name", packaged_jobs())
def test_packaged_jobs_are_valid_and_plan(name: str) -> None:
    job = load_job(find_job(name))
    assert name == job.task or name.startswith(f"{job.task}-")
    result = invoke("plan", name, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    if job.privacy.epsilon is not None:
        assert plan["epsilons"]["coalition"] <= job.privacy.epsilon
        assert plan["epsilons"]["outsider"] < plan["epsilons"]["own-share"]


def test_the_plan_page_reads_as_sentences() -> None:
    text = invoke("plan", "digits").output
    assert "whether one record took part is hidden with epsilon 4 at delta 1e-05" in text
    for words in ("coalition", "own-share", "fingerprint"):
        assert words in text
    assert "no privacy is asked for" in invoke("plan", "toy").output


def test_the_plan_page_warns_of_a_ring_that_spoils_the_model() -> None:
    warning = "use more modulus_bits"
    assert warning not in invoke("plan", "digits").output
    assert warning in invoke("plan", "digits", "--set", "aggregation.modulus_bits=16").output


def test_the_plan_page_says_how_far_a_budget_goes() -> None:
    assert "stops after" not in invoke("plan", "digits").output
    text = invoke("plan", "digits", "--set", "privacy.noise_multiplier=3.0").output
    assert "stops after" in text
    assert "of 60: the budget" in text


def test_a_job_that_is_not_there_is_named_with_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"digts: no such job file.*did you mean digits\?"):
        find_job("digts")
    with pytest.raises(ConfigError, match="packaged jobs are breast-cancer, digits"):
        find_job("zzz")


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    plan = make_plan(
        epsilon=2.0, delta=1e-5, rounds=3, parties=3, dim=10, clip_norm=1.0, modulus_bits=32
    )
    path = tmp_path / "party-0.jsonl"
    with Ledger.open(path, identity="t/p", budget=Budget(2.0, 1e-5)) as ledger:
        for round_id in range(2):
            token = ledger.reserve(planned_charge(plan, round_id))
            ledger.opened(token)
            ledger.commit(token)
        ledger.reserve(planned_charge(plan, 2))
    return path


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_an_intact_ledger_passes_with_its_unresolved_charge(verb: str, ledger_file: Path) -> None:
    result = invoke("ledger", verb, ledger_file)
    assert result.exit_code == 0
    assert "unresolved" in result.output
    document = json.loads(invoke("ledger", verb, ledger_file, "--json").stdout)
    assert document["unresolved"] == 1
    assert 1.9 < document["epsilon"] <= 2.0


def test_a_changed_ledger_is_refused(ledger_file: Path) -> None:
    text = ledger_file.read_text()
    ledger_file.write_text(text.replace('"round_id":1', '"round_id":7', 1))
    assert text != ledger_file.read_text()
    error = invoke("ledger", "verify", ledger_file).exception
    assert isinstance(error, LedgerError)
    assert "party-0.jsonl" in str(error)


def test_doctor_finds_all_of_the_development_environment() -> None:
    result = invoke("doctor", "--json")
    assert result.exit_code == 0, result.output
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert findings["mpirun"]["good"]
    assert findings["backend crypten"]["good"]


def test_doctor_names_the_remedy_and_fails(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise BackendUnavailable(f"backend {name!r} needs a package; run: pip install it")

    monkeypatch.setattr(doctor, "load_backend", missing)
    monkeypatch.setattr(doctor, "supervise", lambda *_, **__: Outcome(213, ()))
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "pip install it" in result.output
    assert "exit code 213" in result.output


def fake_start(cell, cell_file, out_file) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], 7, stderr="it broke")


def test_a_failed_cell_is_shown_and_fails_the_bench(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_command, "start_cell", fake_start)
    result = invoke("bench", "--smoke", "--out", tmp_path / "R")
    assert result.exit_code == 1
    assert "failed: exit code 7: it broke" in result.output
    assert (tmp_path / "R" / "report.html").exists()
    assert all(record.failure for record in load_records(tmp_path / "R"))
    rows = json.loads((tmp_path / "R" / "summary.json").read_text())
    assert len(rows) == 15


def test_an_unknown_grid_is_named(tmp_path: Path) -> None:
    error = invoke("bench", "nope", "--out", tmp_path / "R").exception
    assert isinstance(error, ConfigError)
    assert "known: laptop, paper, scaling, smoke" in str(error)


EVENTS = [
    Started("digits", "crypten", "record", ("a", "b"), 2, 650, 4.0, False, 1e-5, "out"),
    RoundDone(1, 2, 2, 0.5, 4.0, {"accuracy": 0.25}, {"train": 0.1, "open": 0.2}, 4096),
    Stopped("enough"),
    Ended(1, 0.5, 4.0, 1e-5, {"accuracy": 0.25}, "out"),
    Failed("not shown here"),
]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_shown_live_in_a_terminal_and_as_lines_elsewhere(terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160)
    with live_view(console) as show:
        for event in EVENTS:
            show(event)
    text = stream.getvalue()
    for words in (
        "2 parties (a, b)",
        "0.5000",
        "0.2500",
        "stopped early: enough",
        "done: 1 rounds",
    ):
        assert words in text
    assert "not shown here" not in text
    assert ("\x1b[" in text) == terminal


MEASURED_NOW_AND_THEN = [
    RoundDone(1, 3, 2, 0.5, 4.0, {}, {"train": 0.1}, 4096),
    RoundDone(2, 3, 2, 0.6, 4.0, {"loss": 1.5, "accuracy": 0.25}, {"train": 0.1}, 4096),
    RoundDone(3, 3, 2, 0.7, 4.0, {}, {"train": 0.1}, 4096),
]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("events", [MEASURED_NOW_AND_THEN, MEASURED_NOW_AND_THEN[:1]])
def test_rounds_that_are_not_measured_are_shown_without_figures(
    terminal: bool, events: list[RoundDone]
) -> None:
    stream = io.StringIO()
    with live_view(Console(file=stream, force_terminal=terminal, width=160)) as show:
        for event in events:
            show(event)
    text = stream.getvalue()
    assert ("accuracy" in text) is ("0.2500" in text) is (len(events) > 1)
    for event in events:
        assert f"{event.epsilon:.4f}" in text
    assert "None" not in text
    assert "not finite" not in text
    if terminal and len(events) > 1:
        # The figures stand in their own columns, whichever round is the last.
        table = [line.split() for line in text.splitlines() if "1.5000" in line][-1]
        assert table[:6] == ["2", "2", "0.6000", "4", "1.5000", "0.2500"]


def test_what_is_made_ready_is_told_before_the_run() -> None:
    for terminal in (False, True):
        stream = io.StringIO()
        with live_view(Console(file=stream, force_terminal=terminal, width=160)) as show:
            show(Preparing("features of the texts", 3, 10))
        assert "preparing features of the texts: 3 of 10" in stream.getvalue()
