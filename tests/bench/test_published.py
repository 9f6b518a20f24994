"""What the benchmarks' README names is there; figures of others stand beside ours as they are."""

from __future__ import annotations

import importlib
import json
import math
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from mpcfl.bench.grid import Part, parse_grid
from mpcfl.launch.cli import app

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
PROGRAMS = sorted(set(re.findall(r"python (benchmarks/[\w/]+\.py)", README)))
COMMANDS = sorted({found.strip() for found in re.findall(r"mpcfl (bench [^`#|()\n]+)", README)})
SOURCES = ("dordis", "flashe", "heu")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    # A program finds the modules beside it, and those of the cases.
    beside = [str(BENCHMARKS / name) for name in ("published", "cases")]
    monkeypatch.setattr(sys, "path", [*beside, *sys.path])
    return importlib.import_module


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_that_the_readme_names_says_what_it_takes(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / program
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_readme_names_every_program_that_measures() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in (BENCHMARKS, BENCHMARKS / "cases", BENCHMARKS / "published")
        for path in folder.glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    # Programs of one rank, or one worker, are started by others.
    started = {f"benchmarks/cases/{n}.py" for n in ("sum_rank", "paillier_rank", "paillier_worker")}
    assert set(PROGRAMS) == found - started


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_the_readme_names_is_there(command: str) -> None:
    words = command.split()
    named = [word for word in words[1:] if not word.startswith("-")]
    grids = {file.name.removesuffix(".toml") for file in files("mpcfl.grids").iterdir()}
    others = {"scaling", "compare", "report"}
    assert named[0] in grids | others | {"my-grid.toml", "../one-run.toml", "R"}
    sub = words[1] if words[1] in others else "grid"
    said = CliRunner().invoke(app, ["bench", sub, "--help"])
    assert said.exit_code == 0
    assert all(word in said.output for word in words if word.startswith("--"))


def test_the_grid_file_of_the_readme_is_one() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    first, second = parse_grid(tomllib.loads(text), "README").parts
    assert (first.links, second.links) == (["shared-memory"], ["100mbit", "20mbit"])
    assert set(Part.model_fields) <= set(re.findall(r"^\[?(\w+)", text, flags=re.MULTILINE))


def test_the_readme_names_every_results_file_and_no_other() -> None:
    assert (BENCHMARKS / "results" / "laptop" / "report.html").is_file()
    linked = set(re.findall(r"\(results/([\w.-]+)\)", README))
    assert linked == {path.name for path in (BENCHMARKS / "results").glob("*.md")}
    for name in set(re.findall(r"results/([\w-]+\.\w+)", README)):
        assert (BENCHMARKS / "results" / name).is_file()


@pytest.mark.parametrize("name", SOURCES)
def test_published_figures_have_a_source_and_a_reference(
    published: Callable[[str], ModuleType], name: str
) -> None:
    reported = published("beside").load_reported(name)
    assert reported.source
    assert reported.machine
    for figures in reported.figures.values():
        assert {reported.reference, *reported.references.values()} <= set(figures)
        assert all(value > 0 for row in figures.values() for value in row.values())
        assert all(subject.startswith("theirs: ") for subject in figures)


def test_epsilon_is_that_of_dordis(
    published: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert published("dordis").main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["ours"]) == list(said["reported"]["figures"])
    for setting, ours in said["ours"].items():
        (theirs,) = said["reported"]["figures"][setting].values()
        # 0.01 for two roundings to two digits.
        found = ours["mpcfl, noise planned for all"]["epsilon"]
        assert found == pytest.approx(theirs["epsilon"], abs=0.01)
        assert 5.99 < ours["mpcfl, noise planned for the loss"]["epsilon"] <= 6.0


def test_ours_stand_beside_theirs_with_the_ratio(
    published: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flashe = published("flashe")
    steps = {"encrypt": 0.5, "add": 0.25, "decrypt": 2.0}

    def timed(bench: object, *, smoke: bool) -> dict[str, dict[str, float]]:
        assert not smoke
        return {
            "FLASHE's setting, kernel, 65536 values": {**steps, "encrypt, by the owner": 0.125},
            "CKKS by TenSEAL, 65536 values": steps,
        }

    monkeypatch.setattr(flashe, "time_steps", timed)
    monkeypatch.setattr(flashe, "ckks_bytes", lambda count: 27_677_623 * 2)
    assert flashe.main([]) == 0
    rows = capsys.readouterr().out.split("262,144 values")[1].splitlines()
    # Slots have 16 + 4 bits and one more; theirs is 4.0186 s, 1.0146 s, 2.4442 s, 1,579,536 bytes.
    sent = 512 * math.ceil(262_144 / (2047 // 21))
    times = "0.5 (0.124) | 0.25 (0.246) | 2 (0.818)"
    size = f"{sent:,} ({sent / 1_579_536:.3g})"
    assert f"| mpcfl, paillier with kernel | {times} | {size} |" in rows
    assert "| theirs: Paillier, packed | 4.019 | 1.015 | 2.444 | 1,579,536 |" in rows
    owner = "mpcfl, paillier with kernel, by an owner of the key"
    assert f"| {owner} | 0.125 (0.0311) |  |  |  |" in rows
    times = "0.5 (1.72) | 0.25 (0.288) | 2 (10.1)"
    assert f"| TenSEAL's CKKS, here | {times} | 55,355,246 (2) |" in rows
    said = "\n".join(rows)
    assert "their machine: a computer that is not named" in said
    assert "our machine: " in said


def test_heu_is_shown_by_operation(
    published: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heu = published("heu_paillier")
    found = {"encrypt": 814.1e-6, "add": 7.09e-6, "decrypt": 869.84e-6}
    monkeypatch.setattr(heu, "time_steps", lambda *_, **__: {"HEU ZPaillier": found})
    assert heu.main([]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "| HEU ZPaillier, here | 814.1 (1) | 7.09 (1) | 869.8 (0.1) |" in rows
    assert "| theirs: OU | 27.8 | 1.81 | 245.8 |" in rows


def test_what_fails_is_said_and_is_no_table(
    published: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    heu, steps = published("heu_paillier"), published("steps")
    broken = steps.Bench("any", ("no such subject",), 2048)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heu, "BENCH", broken)
        assert heu.main(["--smoke"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no such subject ended" in said.err


@pytest.mark.mpi  # beside the others: it starts two workers
def test_real_workers_time_vectors_of_any_length(
    published: Callable[[str], ModuleType],
) -> None:
    pytest.importorskip("tenseal")
    steps = published("steps")
    subjects = ("FLASHE's setting, gmpy2, 500 values", "CKKS by TenSEAL, 5000 values")
    found = steps.time_steps(steps.Bench("any", subjects, 2048), smoke=True)
    assert set(found) == set(subjects)
    assert {"encrypt", "add", "decrypt"} <= set.intersection(*map(set, found.values()))
    assert published("ckks_steps").sent_bytes(5000) > published("ckks_steps").sent_bytes(4000) > 0
