"""`mpcfl identity new` and `show`, as a person or a script uses them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpcfl.errors import KeyFileError
from mpcfl.launch.cli import app
from mpcfl.net.identity import Identity, public_key_text


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["identity", *map(str, arguments)])


def secret_of(path: Path) -> str:
    return path.read_text().splitlines()[1]


def test_a_new_identity_is_private_and_shows_its_public_key(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    made = invoke("new", path)
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public_key = public_key_text(Identity.load(path).public_key)
    assert f"public key: {public_key}" in made.stdout
    assert "give the public key to the other parties" in made.stdout
    shown = invoke("show", path)
    assert shown.stdout == public_key + "\n"
    assert secret_of(path) not in made.output + shown.output


def test_json_has_the_same_for_both(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    made, shown = invoke("new", path, "--json"), invoke("show", path, "--json")
    public_key = public_key_text(Identity.load(path).public_key)
    want = {"schema": 1, "file": str(path), "public_key": public_key}
    assert json.loads(made.stdout) == json.loads(shown.stdout) == want
    assert secret_of(path) not in made.output + shown.output


def test_an_identity_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    invoke("new", path)
    before = path.read_bytes()
    again = invoke("new", path)
    assert isinstance(again.exception, KeyFileError)
    assert "exists already" in str(again.exception)
    assert again.stdout == ""
    assert path.read_bytes() == before


def test_a_file_that_others_can_read_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    invoke("new", path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        raise invoke("show", path).exception


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"north\.key: can't read"):
        raise invoke("show", tmp_path / "north.key").exception


def test_the_lines_of_the_documentation_work_in_order(
    repository: Path, tmp_path: Path, monkeypatch
) -> None:
    page = (repository / "docs" / "parties.md").read_text()
    lines = [line.split()[2:] for line in page.splitlines() if line.startswith("mpcfl identity ")]
    assert [line[0] for line in lines] == ["new", "show"]
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert invoke(*line).exit_code == 0
