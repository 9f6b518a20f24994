"""What is built installs and runs where there is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import mpcfl

pytestmark = pytest.mark.mpi

ROOT = Path(__file__).parent.parent
# Where each of the top folders lies in the package.
HOMES = {
    "mpcfl": "mpcfl",
    "parties": "mpcfl/parties",
    "launch": "mpcfl/launch",
    "benchmarks/grids": "mpcfl/grids",
}
KINDS = {".py", ".pyi", ".toml", ".typed"}
TOP = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")


@dataclass(frozen=True)
class Built:
    """What `python -m build` makes: the wheel is built from the sdist."""

    sdist: Path
    wheel: Path


def packaged_files() -> set[str]:
    """Return the paths in the wheel of all files of the packages."""
    found = set()
    for top, home in HOMES.items():
        for path in (ROOT / top).rglob("*"):
            if path.suffix in KINDS and "__pycache__" not in path.parts:
                found.add(f"{home}/{path.relative_to(ROOT / top)}")
    return found


def call(command: Sequence[object], **more: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build in a copy, so that nothing is left in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for top in HOMES:
        shutil.copytree(
            ROOT / top, tree / top, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in (*TOP, "constraints.txt"):
        shutil.copy(ROOT / name, tree / name)
    call([sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", tree])
    (sdist,), (wheel,) = (tree / "dist").glob("*.tar.gz"), (tree / "dist").glob("*.whl")
    return Built(sdist, wheel)


def test_the_wheel_has_every_file_of_the_packages_and_no_other(built: Built) -> None:
    names = {n for n in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in n}
    kernels = {name for name in names if name.endswith(sysconfig.get_config_var("EXT_SUFFIX"))}
    assert names - kernels == packaged_files()
    for needed in ("mpcfl/py.typed", "mpcfl/launch/jobs/digits.toml", "mpcfl/grids/smoke.toml"):
        assert needed in names
    if shutil.which("cc") or shutil.which("gcc"):
        assert {Path(name).name.partition(".")[0] for name in kernels} == {"_dot", "_ifma"}


def test_the_sdist_has_what_it_is_built_from(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kernels = {f"mpcfl/hazmat/{name}.c" for name in ("dot", "ifma")}
    assert names >= {*TOP, "constraints.txt"} | kernels
    assert not {name for name in names if name.startswith(("tests/", "docs/"))}


@pytest.fixture
def installed(built: Built, tmp_path: Path) -> Path:
    """Return the folder of programs of an environment that has the wheel, and no checkout.

    What the wheel needs it finds where the tests do; hooks of that place, by which the checkout
    is found there, are not read.
    """
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    call([*pip, "--quiet", "--no-index", "--no-deps", built.wheel])
    (site,) = (home / "lib").glob("python*/site-packages")
    needs = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "needs.pth").write_text("".join(f"{folder}\n" for folder in sorted(needs)))
    return home / "bin"


def test_an_installed_wheel_runs_a_packaged_job_from_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    path = os.pathsep.join([str(installed), sysconfig.get_path("scripts"), os.environ["PATH"]])
    there = {"cwd": empty, "env": os.environ | {"PATH": path}}
    where = [installed / "python", "-c", "import mpcfl.launch; print(mpcfl.launch.__file__)"]
    assert Path(call(where, **there).stdout).is_relative_to(installed.parent)
    version = call([installed / "mpcfl", "--version"], **there)
    assert version.stdout == f"mpcfl {mpcfl.__version__}\n"
    changes = ["--set", "training.rounds=2", "--backend", "ring"]
    done = call([installed / "mpcfl", "run", "digits", "-n", "2", *changes, "--json"], **there)
    run = json.loads(done.stdout)
    assert run["parties"] == 2
    assert len(run["rounds"]) == 2
    (folder,) = (empty / "runs").iterdir()
    assert (folder / "model.pt").exists()
