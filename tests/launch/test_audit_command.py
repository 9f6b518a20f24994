"""`mpcfl audit`: words, options, exit codes, and reports as text and as JSON.

The two real audits here pass a healthy build but for a probability below 1e-8.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpcfl import round as thread
from mpcfl.audit import inversion, inversion_report, masks
from mpcfl.audit.masks import MaskProbe
from mpcfl.audit.verdict import CAVEAT, AuditReport, Finding
from mpcfl.dp.noise import draw_noise_share
from mpcfl.errors import ConfigError
from mpcfl.launch.audit_cli import audit_app

COMMANDS = ("dp", "noise", "masks", "inversion")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(audit_app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The commands put the working folder on the path of imports.
    monkeypatch.setattr(sys, "path", list(sys.path))


def report_of(*, passed: bool) -> AuditReport:
    return AuditReport("a thing", (Finding("a-check", passed, "a figure and its bound"),))


def test_help_names_every_audit() -> None:
    text = invoke("--help").output
    assert all(command in text for command in COMMANDS)
    assert "proves nothing" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_audit_has_help_json_debug_and_out(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert all(option in result.output for option in ("--json", "--debug", "--out"))


def test_the_words_load_nothing_heavy() -> None:
    code = (
        "import sys, mpcfl.launch.audit_cli; "
        "bad = {'torch', 'numpy', 'crypten', 'mpi4py'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.stat
def test_dp_prints_the_bound_beside_the_promise_as_one_document() -> None:
    result = invoke("dp", "digits", "--canaries", 800, "--backend", "plain", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"]
    assert report["settings"]["canaries"] == 800
    for finding in report["findings"]:
        figures = finding["figures"]
        assert 0.0 <= figures["epsilon_lower_bound"] <= figures["epsilon_claimed"]


@pytest.mark.stat
def test_dp_ends_with_code_one_if_the_noise_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(plan: Any, bits: object = None) -> Any:
        # sigma/sqrt(n) with the four parties of the job.
        return draw_noise_share(replace(plan, local_sigma=plan.local_sigma // 2))

    monkeypatch.setattr(thread, "draw_noise_share", weak)
    result = invoke("dp", "--backend", "plain")
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert CAVEAT in result.stdout


@pytest.mark.stat
def test_noise_is_printed_as_text_and_kept_as_json(tmp_path: Path) -> None:
    kept = tmp_path / "new" / "noise.json"
    result = invoke("noise", "digits", "--backend", "plain", "--out", kept)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("ok  ") == 7
    assert CAVEAT in result.stdout
    report = json.loads(kept.read_text())
    assert report["passed"]
    assert len(report["findings"]) == 7


def test_masks_of_a_sparse_graph_are_not_passed_off_as_audited():
    result = invoke("masks", "digits", "--backend", "ring", "--set", "aggregation.neighbors=2")
    assert result.exit_code == 1
    assert "no graph of neighbors" in str(result.exception)


@pytest.mark.parametrize(("asked", "probed"), [(3, 3), (20, 8)])
def test_masks_are_audited_as_the_job_uses_them(
    asked: int, probed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, MaskProbe]] = []

    def fake(backend: str, probe: MaskProbe) -> AuditReport:
        seen.append((backend, probe))
        return report_of(passed=True)

    monkeypatch.setattr(masks, "audit_masks", fake)
    changes = ("--set", "aggregation.key_bits=2048", "--set", "aggregation.modulus_bits=40")
    result = invoke("masks", "digits", "-n", asked, "--backend", "phe", *changes)
    assert result.exit_code == 0, result.output
    [(backend, probe)] = seen
    assert backend == "phe"
    assert (probe.n_parties, probe.key_bits, probe.modulus_bits) == (probed, 2048, 40)


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_code_is_the_verdict(passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "audit_masks", lambda *_: report_of(passed=passed))
    result = invoke("masks", "--json")
    assert result.exit_code == (0 if passed else 1)
    assert json.loads(result.stdout)["passed"] is passed


@pytest.mark.parametrize("as_json", [True, False])
def test_inversion_writes_its_page_and_says_where(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fake(settings: Any) -> AuditReport:
        asked.append(settings.batch)
        return report_of(passed=True)

    monkeypatch.setattr(inversion, "audit_inversion", fake)
    monkeypatch.setattr(
        inversion_report, "write_inversion_report", lambda _, path: path.write_text("page")
    )
    result = invoke("inversion", "--batch", 2, *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    assert asked == [2]
    [page] = (tmp_path / "runs").glob("inversion-*.html")
    where = result.stderr if as_json else result.stdout
    assert f"output: runs/{page.name}" in where
    if as_json:
        assert json.loads(result.stdout)["passed"] is True


def test_a_job_without_a_promise_is_refused() -> None:
    result = invoke("dp", "--set", "privacy.unit=party", "--set", "privacy.sample_rate=1.0")
    assert isinstance(result.exception, ConfigError)
    assert 'set unit = "record"' in str(result.exception)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_overwrites_nothing(command: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    result = invoke(command, "--out", kept)
    assert isinstance(result.exception, ConfigError)
    assert "nothing is overwritten" in str(result.exception)
    assert kept.read_text() == "mine"
