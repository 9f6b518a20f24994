"""Hostfiles: what is read of them, which party runs where, and the line of mpirun that follows."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import ConfigError, PartyLost
from mpcfl.launch import hostfile
from mpcfl.launch.hostfile import (
    Host,
    compose_on_hosts,
    place_parties,
    read_hostfile,
    refuse_unreached,
)
from mpcfl.launch.mpi_line import MpiKind
from mpcfl.launch.mpirun import compose
from mpcfl.launch.run_command import RunOptions


def write(folder: Path, text: str) -> Path:
    path = folder / "hosts.txt"
    path.write_text(text)
    return path


def test_hosts_are_read_as_open_mpi_and_mpich_write_them(tmp_path: Path) -> None:
    text = "# ours\n\nnorth.example.org\n10.0.0.2   slots=2  # two\neast:3\nwest slots = 1\n"
    assert read_hostfile(write(tmp_path, text)) == (
        Host("north.example.org", 1),
        Host("10.0.0.2", 2),
        Host("east", 3),
        Host("west", 1),
    )


@pytest.mark.parametrize(
    "line",
    [
        "two words",
        "north slots=0",
        "north slots=x",
        "north slots=1 max_slots=2",
        "north:0",
        # A remote shell would take them for its own.
        "-oProxyCommand=id",
        "north;id",
        "$(id)",
        "a@b",
    ],
)
def test_a_line_that_names_no_host_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"good\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 2: .* is not a host; write NAME, or NAME slots=2"):
        read_hostfile(path)


def test_a_host_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 3: north is there twice; give it slots=2 instead"):
        read_hostfile(write(tmp_path, "north\nsouth\nnorth\n"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_hostfile_that_can_not_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "hosts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"hosts\.txt: can't read the hostfile"):
        read_hostfile(path)


def test_parties_take_the_hosts_from_the_top(tmp_path: Path) -> None:
    one, two, spare = Host("one", 1), Host("two", 2), Host("spare", 4)
    places = place_parties(("a", "b", "c"), (one, two, spare), tmp_path)
    assert places == {"a": one, "b": two, "c": two}


def test_parties_without_a_slot_are_named(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    with pytest.raises(
        ConfigError, match=r"hosts\.txt: 2 slots for 4 parties, none is left for c, d; add their"
    ):
        place_parties(("a", "b", "c", "d"), (Host("one", 2),), path)


def parts_of(line: list[str]) -> list[list[str]]:
    """Return the parts of an MPMD line."""
    parts: list[list[str]] = [[]]
    for word in line[1:]:
        if word == ":":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def test_each_party_is_a_program_of_its_own_on_its_host() -> None:
    one, two = Host("one", 1), Host("two", 2)
    programs = {"a": ["-m", "p", "--party", "a.toml"], "b": ["-m", "p"], "c": ["-m", "q"]}
    first, second, third = parts_of(compose_on_hosts(programs, {"a": one, "b": two, "c": two}))
    assert first[:4] == ["-n", "1", "--host", "one:1"]
    assert first[-5:] == [sys.executable, "-m", "p", "--party", "a.toml"]
    assert second == ["-n", "1", "--host", "two:2", sys.executable, "-m", "p"]
    assert third == ["-n", "1", "--host", "two:2", sys.executable, "-m", "q"]
    # What every rank is told is what one host's line has, once.
    alone = compose(1, ["x"])
    assert first[4:-5] == alone[3:-2]


def test_a_host_with_more_parties_than_cores_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    names = ("a", "b", "c")
    programs = {name: ["x"] for name in names}
    spread = [Host(name, 1) for name in names]
    assert "--oversubscribe" not in compose_on_hosts(
        programs, dict(zip(names, spread, strict=True))
    )
    line = compose_on_hosts(programs, dict.fromkeys(names, Host("one", 3)))
    assert line.count("--oversubscribe") == 1


def test_mpich_is_told_hosts_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfile, "kind_of", lambda _: MpiKind.MPICH)
    line = compose_on_hosts({"a": ["x"], "b": ["y"]}, {"a": Host("one", 1), "b": Host("two", 1)})
    first, second = parts_of(line)
    assert first[:4] == ["-n", "1", "-host", "one"]
    assert second == ["-n", "1", "-host", "two", sys.executable, "y"]
    assert "--with-ft" not in line


_SAID = ["A daemon failed to report back.", "  Local host:    here", "  Remote host:   far-away  "]


def test_a_host_that_was_never_reached_is_named_with_what_to_try() -> None:
    with pytest.raises(PartyLost, match=r"daemon on far-away; from here `ssh far-away true` must"):
        refuse_unreached(_SAID, began=False, remedy=None)


def test_a_host_that_was_lost_is_named_with_how_to_go_on() -> None:
    with pytest.raises(PartyLost, match=r"lost its daemon on far-away .* continue it with: go on$"):
        refuse_unreached(_SAID, began=True, remedy="go on")


def test_other_words_of_mpirun_name_no_host() -> None:
    refuse_unreached(["all is well"], began=False, remedy=None)


@pytest.mark.parametrize(
    ("hosts", "more", "words"),
    [
        ("one\ntwo\n", [], "names several hosts, whose parties would not know each other; add"),
        ("one\n", ["--insecure"], "1 slots for 2 parties, none is left for alice"),
        ("one\n", ["--party", "a.toml"], "--hostfile starts every party; give it --party-files"),
        (None, [], "can't read the hostfile"),
    ],
)
def test_what_can_not_be_run_on_hosts_is_refused_before_anything_is_started(
    mpcfl_command: Callable[..., Any],
    tmp_path: Path,
    hosts: str | None,
    more: list[str],
    words: str,
) -> None:
    if hosts is not None:
        write(tmp_path, hosts)
    done = mpcfl_command("run", "toy", "--hostfile", "hosts.txt", *more)
    assert done.code == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, shlex.join(more)
    assert "mpirun" not in done.stdout


def test_what_parties_are_given_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").touch()
    asked = RunOptions("job.toml", party_files=Path("parties"), track=("mlflow=all", "tensorboard"))
    given = asked.with_absolute_paths()
    assert given.job == str(tmp_path / "job.toml")
    assert given.track == (f"mlflow={tmp_path}/all", "tensorboard")
    one = given.for_party("north")
    assert (one.party, one.party_files) == (tmp_path / "parties" / "north.toml", None)
