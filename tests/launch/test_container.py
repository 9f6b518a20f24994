"""The Containerfile as far as it can be read without an engine, which nothing here has.

A parser splits it; what it copies has to be there, its shell lines have to be shell, and what it
leaves in the image has to be nobody's secret. That it builds is not shown.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch/container"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Return the instructions, in order, with what stands behind each."""
    parser = DockerfileParser(fileobj=BytesIO((FOLDER / "Containerfile").read_bytes()))
    parsed = [(step["instruction"], step["value"]) for step in parser.structure]
    return [step for step in parsed if step[0] != "COMMENT"]


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


def copied(steps: list[tuple[str, str]]) -> Iterator[str]:
    """Yield what is copied from the repository."""
    for value in values(steps, "COPY"):
        if not value.startswith("--from="):
            yield from value.split()[:-1]


def is_sent(path: str) -> bool:
    """Tell whether a build sees a file of the repository, by the same rules as its engine."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        anywhere = parts if "**/" in line else []
        if any(fnmatch(each, pattern) for each in (*heads, *anywhere)):
            sent = line.startswith("!")
    return sent


def test_all_that_is_copied_is_there_and_is_sent(steps) -> None:
    sources = list(copied(steps))
    assert {"mpcfl", "parties", "launch", "pyproject.toml", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source


@pytest.mark.parametrize(
    "path",
    [
        *("north.toml", "north.key", "runs/digits/run.json", "keys/ada.share", ".git/config"),
        *(".venv/bin/python", "tests/conftest.py", "launch/__pycache__/cli.cpython-311.pyc"),
    ],
)
def test_what_lies_about_is_never_sent_to_a_build(path: str) -> None:
    assert not is_sent(path)


def test_the_wheel_is_built_from_all_its_packages(steps) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert folders <= set(copied(steps))
    (extras,) = re.findall(r"EXTRAS=(\S+)", " ".join(values(steps, "ARG")))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_every_pinned_line_that_is_looked_up_is_there(steps) -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    patterns = re.findall(r"grep '([^']+)' constraints.txt", " ".join(values(steps, "RUN")))
    assert sorted(patterns) == ["^crypten==", "^torch=="]
    for pattern in patterns:
        assert len(re.findall(pattern, constraints, re.MULTILINE)) == 1


def test_every_run_line_is_shell(steps) -> None:
    for line in values(steps, "RUN"):
        checked = subprocess.run(
            ["/bin/sh", "-n"], input=line, text=True, capture_output=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_it_ends_as_an_ordinary_user_with_the_command_of_the_package(steps) -> None:
    last = len(steps) - 1 - [name for name, _ in reversed(steps)].index("FROM")
    final = steps[last:]
    (user,) = values(final, "USER")
    assert user.split(":")[0] == "1000"
    # Nothing is run as root after that.
    assert "RUN" not in [name for name, _ in final[final.index(("USER", user)) :]]
    assert values(final, "ENTRYPOINT") == ['["mpcfl"]']
    (environment,) = values(final, "ENV")
    assert "PATH=/opt/mpcfl/bin:" in environment


def test_images_have_a_version_and_nothing_is_fetched_by_name(steps) -> None:
    for image in values(steps, "FROM"):
        assert re.match(r"\S+/python:3\.\d+-slim-\w+( AS \w+)?$", image), image
    assert not values(steps, "ADD")


def test_no_key_is_left_in_the_image(steps) -> None:
    """The ssh server's package makes host keys, which every copy of an image would share."""
    (installs,) = [line for line in values(steps, "RUN") if "openssh-server" in line]
    assert "rm -rf" in installs
    assert "/etc/ssh/ssh_host_*" in installs
    assert not re.search(r"(?i)password|secret|token", " ".join(value for _, value in steps))


def test_the_ssh_server_takes_nobody_but_the_user_of_the_image(steps) -> None:
    words = dict(
        line.split(maxsplit=1)
        for line in (FOLDER / "sshd_config").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert words["Port"] in values(steps, "EXPOSE")
    assert words["AllowUsers"] == "mpcfl"
    assert any(f"useradd --create-home --uid 1000 {words['AllowUsers']}" in s[1] for s in steps)
    assert words["AuthenticationMethods"] == "publickey"
    assert words["HostKey"] == "/home/mpcfl/.ssh/id_rsa"
