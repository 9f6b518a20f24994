"""What a shell offers, asked for by its own protocol."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpcfl.config import Job
from mpcfl.launch.completion import complete_job, complete_key
from mpcfl.launch.jobs import packaged_jobs
from mpcfl.secagg.registry import backend_names

MPCFL = Path(sys.executable).parent / "mpcfl"
BASH = shutil.which("bash")
HEAVY = {"torch", "numpy", "scipy", "mpi4py", "crypten", "matplotlib", "sklearn"}


def offered(line: str, folder: Path) -> list[str]:
    """Return what bash would offer at the end of a line."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    asked = {
        "_MPCFL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [MPCFL], capture_output=True, text=True, check=True, cwd=folder, env=os.environ | asked
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "north.toml").touch()
    (tmp_path / ".hidden.toml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("mpcfl run ", {*packaged_jobs(), "mine.toml", "jobs/"}),
        ("mpcfl plan jobs/n", {"jobs/north.toml"}),
        ("mpcfl run digits --backend ", set(backend_names())),
        ("mpcfl bench s", {"scaling", "smoke"}),
        (
            "mpcfl bench ",
            {"grid", "compare", "report", "scaling", "smoke", "laptop", "paper"}
            | {"mine.toml", "jobs/"},
        ),
        ("mpcfl bench scaling sc", {"scaling"}),
        ("mpcfl run digits --set privacy.ep", {"privacy.epsilon="}),
        ("mpcfl pl", {"plan"}),
    ],
)
def test_a_shell_is_offered_what_fits(line: str, offers: set[str], folder: Path) -> None:
    found = offered(line, folder)
    assert set(found) == offers
    assert len(found) == len(offers)


def test_keys_are_all_those_of_a_job() -> None:
    keys = complete_key("")
    assert {"task=", "privacy.unit=", "training.rounds=", "aggregation.backend="} <= set(keys)
    tables = [name for name, field in Job.model_fields.items() if name != "task_options"]
    assert {key.partition(".")[0].rstrip("=") for key in keys} == set(tables)


def test_files_are_offered_from_the_folder_that_was_typed(folder: Path) -> None:
    assert complete_job(f"{folder}/") == [f"{folder}/jobs/", f"{folder}/mine.toml"]
    assert complete_job(f"{folder}/.") == [f"{folder}/.hidden.toml"]
    assert complete_job(f"{folder}/nowhere/") == []


def test_to_complete_is_quick() -> None:
    """It runs at every press of a key: nothing heavy may be loaded for it."""
    code = (
        "import sys; from mpcfl.launch import cli, completion as c; "
        "c.complete_job(''), c.complete_grid(''), c.complete_backend(''), c.complete_key(''); "
        f"print(*({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_completion_is_installed_for_bash_and_works_there(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    there = os.environ | {"HOME": str(home), "PATH": f"{MPCFL.parent}:{os.environ['PATH']}"}

    def bash(script: str) -> str:
        assert BASH is not None
        done = subprocess.run(
            [BASH, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env=there,
        )
        return done.stdout

    # Which shell it is for, it learns from the process that called it.
    bash("mpcfl --install-completion; exit $?")
    assert (home / ".bashrc").exists()
    asked = (
        'COMP_WORDS=(mpcfl run dig); COMP_CWORD=2; _mpcfl_completion mpcfl; echo "${COMPREPLY[@]}"'
    )
    assert bash(f". ~/.bashrc; {asked}") == "digits\n"
    assert "complete" in bash("mpcfl --show-completion; exit $?")
