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
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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

    What the wheel says that it needs, without any extra, is linked from where the tests run;
    nothing else is there.
    """
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    call([*pip, "--quiet", "--no-index", "--no-deps", built.wheel])
    (site,) = (home / "lib").glob("python*/site-packages")
    for name in needed(built.wheel):
        for file in distribution(name).files or ():
            link = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(distribution(name).locate_file(file.parts[0]))))
    return home / "bin"


def needed(wheel: Path) -> set[str]:
    """Return the names of all distributions that a wheel needs, directly or not."""
    (metadata,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    waiting = [Requirement(line) for line in message_from_string(text).get_all("Requires-Dist", [])]
    found: set[str] = set()
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not is_wanted or str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found.add(requirement.name)
        for line in distribution(requirement.name).requires or ():
            below = Requirement(line)
            extras = {"", *requirement.extras}
            if below.marker is None or any(below.marker.evaluate({"extra": e}) for e in extras):
                below.marker = None
                waiting.append(below)
    return found


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
    done = call([installed / "mpcfl", "run", "digits", "-n", "2", "--json"], **there)
    run = json.loads(done.stdout)
    assert run["parties"] == 2
    assert len(run["rounds"]) == 60
    # Ten digits: chance is a tenth.
    assert run["metrics"]["accuracy"] > 0.8
    (folder,) = (empty / "runs").iterdir()
    assert (folder / "model.pt").exists()
