"""What the README says, typed as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def test_the_example_is_the_one_of_the_task_page(readme: str, repository: Path) -> None:
    page = (repository / "docs" / "tasks.md").read_text()
    assert blocks(readme, "python")[0] in blocks(page, "python")
    assert blocks(readme, "toml")[0] in blocks(page, "toml")
    assert len(blocks(readme, "python")[0].splitlines()) <= 32


@pytest.mark.mpi
def test_the_own_task_runs_as_printed(readme: str, mpcfl_command, tmp_path: Path) -> None:
    (tmp_path / "wine_task.py").write_text(blocks(readme, "python")[0])
    (tmp_path / "wine.toml").write_text(blocks(readme, "toml")[0])
    done = mpcfl_command("run", "wine.toml", "--json")
    assert done.code == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["parties"] == 3
    assert run["privacy"]["epsilon"] <= 8.0
    # 36 public test records, three classes: chance is a third.
    assert run["metrics"]["accuracy"] > 0.6


@pytest.mark.mpi
def test_the_python_interface_runs_as_printed(readme: str, mpirun, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    check = "\nassert np.array_equal(total, 2 * levels) and total.dtype == levels.dtype\n"
    program.write_text(blocks(readme, "python")[2] + check)
    done = mpirun(2, program)
    assert done.code == 0, done.stderr


def test_the_notebook_lines_run_as_printed(readme: str, tmp_path: Path) -> None:
    lines = blocks(readme, "python")[1]
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    epsilon, accuracy = map(float, done.stdout.splitlines()[-1].split())
    assert 3.9 < epsilon <= 4.0
    # Ten digits: chance is a tenth.
    assert accuracy > 0.8


def test_every_mpcfl_line_parses(readme: str, mpcfl_command) -> None:
    """Each command and option that the README types exists."""
    lines = [
        line.split("#")[0].strip()
        for block in blocks(readme, "")
        for line in block.splitlines()
        if line.startswith("mpcfl ")
    ]
    assert len(lines) >= 5
    for line in lines:
        command = shlex.split(line)[1:]
        words = [word for word in command if not word.startswith("-")]
        name = words[:2] if words[0] == "ledger" else words[:1]
        name += ["grid"] if name == ["bench"] else []
        done = mpcfl_command(*name, "--help")
        assert done.code == 0, line
        for option in (word for word in command if word.startswith("-")):
            assert option in done.stdout, line
