"""The ceremony: every party gets its own sealed share, or nobody gets anything."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.threshold_key import KeyShare, ThresholdKey, raw_deal_key
from mpcfl.secagg import ceremony, key_files
from mpcfl.secagg.ceremony import (
    Ceremony,
    default_names,
    hold_ceremony,
    read_passphrases,
)
from mpcfl.secagg.key_files import ScryptCost, load_key_share, read_public_file

NAMES = ("north", "south", "east")
PASSPHRASES = ("north wind and the sun", "south by southwest", "east of the eden")

pytestmark = pytest.mark.usefixtures("small_keys")


@pytest.fixture(autouse=True)
def dealt(monkeypatch) -> list[tuple[ThresholdKey, list[KeyShare]]]:
    """Small keys and passphrases that cost nothing to guess; remembers what was dealt."""
    remembered: list[tuple[ThresholdKey, list[KeyShare]]] = []

    def deal(key_bits: int, n_shares: int, threshold: int) -> tuple[ThresholdKey, list[KeyShare]]:
        remembered.append(raw_deal_key(key_bits, n_shares, threshold))
        return remembered[-1]

    monkeypatch.setattr(ceremony, "deal_key", deal)
    monkeypatch.setattr(key_files, "_COST", ScryptCost(n=2, r=1, p=1))
    return remembered


def prepared(folder: Path) -> Ceremony:
    return Ceremony(folder, NAMES, threshold=2, key_bits=512)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_party_gets_its_own_share_and_all_get_the_public_part(
    tmp_path: Path, dealt: list[tuple[ThresholdKey, list[KeyShare]]]
) -> None:
    folder = tmp_path / "deep" / "keys"
    key = hold_ceremony(prepared(folder), list(PASSPHRASES))
    assert names_in(folder) == ["east.share", "north.share", "public.json", "south.share"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    named = read_public_file(folder / "public.json")
    assert (named.key, named.parties) == (key, NAMES)
    assert (key.threshold, key.n_shares) == (2, 3)
    for index, (name, passphrase) in enumerate(zip(NAMES, PASSPHRASES, strict=True), 1):
        share = load_key_share(folder / f"{name}.share", passphrase, key)
        assert share.index == index
        assert stat.S_IMODE((folder / f"{name}.share").stat().st_mode) == 0o600
    with pytest.raises(KeyFileError, match="passphrase is wrong"):
        load_key_share(folder / "north.share", PASSPHRASES[1])


def test_shares_and_passphrases_are_forgotten(
    tmp_path: Path, dealt: list[tuple[ThresholdKey, list[KeyShare]]]
) -> None:
    passphrases = list(PASSPHRASES)
    hold_ceremony(prepared(tmp_path), passphrases)
    assert passphrases == []
    assert dealt[0][1] == []


def test_nothing_secret_is_on_the_disk_in_the_clear(tmp_path: Path, monkeypatch) -> None:
    """Every byte that is ever written is looked at, temporary files included."""
    written: list[bytes] = []
    values: list[int] = []

    def watch(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        if path.is_file():
            written.append(path.read_bytes())

    def deal(*arguments: Any) -> tuple[ThresholdKey, list[KeyShare]]:
        key, shares = raw_deal_key(*arguments)
        values.extend(share.raw_value() for share in shares)
        return key, shares

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(ceremony, "deal_key", deal)
    hold_ceremony(prepared(tmp_path), list(PASSPHRASES))
    assert len(written) == 4
    text = b"".join(written).decode()
    for value in values:
        assert f"{value:x}"[:16] not in text
        assert str(value)[:16] not in text
    assert not any(passphrase in text for passphrase in PASSPHRASES)


@pytest.mark.parametrize("error", [KeyFileError("full"), KeyboardInterrupt(), RuntimeError()])
@pytest.mark.parametrize("when", ["before", "after"])
def test_half_a_ceremony_leaves_nothing(
    error: BaseException, when: str, tmp_path: Path, monkeypatch
) -> None:
    """Wherever it stops: also between a file's name and the next statement."""
    real = ceremony.write_key_share

    def write(path: Path, share: KeyShare, *others: Any) -> None:
        if share.index == 3 and when == "before":
            raise error
        real(path, share, *others)
        if share.index == 3 and not isinstance(error, KeyFileError):
            raise error

    monkeypatch.setattr(ceremony, "write_key_share", write)
    if when == "after":
        monkeypatch.setattr(ceremony, "write_public_file", raising(error))
    with pytest.raises(type(error)):
        hold_ceremony(prepared(tmp_path / "keys"), list(PASSPHRASES))
    assert names_in(tmp_path) == []


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_a_folder_that_was_there_stays_with_what_is_in_it(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "notes").write_text("mine")
    monkeypatch.setattr(ceremony, "write_public_file", raising(RuntimeError()))
    with pytest.raises(RuntimeError):
        hold_ceremony(prepared(tmp_path), list(PASSPHRASES))
    assert names_in(tmp_path) == ["notes"]


@pytest.mark.parametrize("name", ["public.json", "south.share"])
def test_a_file_that_is_there_is_never_touched(name: str, tmp_path: Path) -> None:
    """Whether it was there before the ceremony, or came while the key was made."""
    planned = prepared(tmp_path)
    (tmp_path / name).write_text("older")
    with pytest.raises(KeyFileError, match=rf"{name}: exists already"):
        prepared(tmp_path)
    with pytest.raises(KeyFileError, match=rf"{name}: exists already"):
        hold_ceremony(planned, list(PASSPHRASES))
    assert names_in(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "older"


def test_a_folder_that_can_not_be_is_refused_before_a_key_is_made(
    tmp_path: Path, dealt: list[tuple[ThresholdKey, list[KeyShare]]]
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KeyFileError, match="choose another --out"):
            hold_ceremony(prepared(folder), list(PASSPHRASES))
    assert dealt == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"threshold": 1}, "threshold 1 is not from 2 to the number of parties, 3"),
        ({"threshold": 4}, "threshold 4"),
        ({"parties": ("north",)}, "1 parties can't share a key"),
        ({"parties": default_names(1001)}, "1001 parties"),
        ({"parties": ("north", "south", "north")}, "same name"),
        ({"parties": ("north", "south", "../east")}, "no name of a party"),
        ({"parties": ("north", "south", "")}, "no name of a party"),
        ({"parties": ("north", "south", "east\n")}, "no name of a party"),
        ({"key_bits": 256}, "key_bits = 256"),
        ({"key_bits": 513}, "key_bits = 513"),
    ],
)
def test_numbers_and_names_that_can_not_work_are_refused(
    changes: dict[str, Any], found: str, tmp_path: Path
) -> None:
    arguments = {"folder": tmp_path, "parties": NAMES, "threshold": 2, "key_bits": 512}
    with pytest.raises(ConfigError, match=found):
        Ceremony(**{**arguments, **changes})


def test_keys_below_2048_bits_are_refused_outside_tests(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"key_bits = 1024 .*from 2048"):
        Ceremony(tmp_path, NAMES, threshold=2, key_bits=1024)


@pytest.mark.parametrize("weak", ["", "short", "eleven char", " " * 40])
def test_weak_passphrases_are_refused_before_a_key_is_made(
    weak: str, tmp_path: Path, dealt: list[tuple[ThresholdKey, list[KeyShare]]]
) -> None:
    with pytest.raises(ConfigError, match="passphrase of south is shorter than 12 characters"):
        hold_ceremony(prepared(tmp_path / "keys"), [PASSPHRASES[0], weak, PASSPHRASES[2]])
    with pytest.raises(ConfigError, match="2 passphrases came"):
        hold_ceremony(prepared(tmp_path / "keys"), list(PASSPHRASES[:2]))
    assert dealt == []
    assert names_in(tmp_path) == []


def passphrase_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "words"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_a_file_of_passphrases_has_one_line_per_party(end: str, last: str, tmp_path: Path) -> None:
    content = end.join(PASSPHRASES) + (end if last else "")
    words = read_passphrases(passphrase_file(tmp_path, content), prepared(tmp_path))
    assert words == list(PASSPHRASES)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "1 lines, expected one for each of 3"),
        ("\n".join(PASSPHRASES[:2]), "2 lines"),
        ("\n".join((*PASSPHRASES, "")) + "\n", "4 lines"),
        ("\n".join((PASSPHRASES[0], "short", PASSPHRASES[2])), "passphrase of south is shorter"),
        (b"\xff\n\xff\n\xff\n", "not a text"),
    ],
)
def test_a_bad_file_of_passphrases_is_refused(
    content: str | bytes, found: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=found) as caught:
        read_passphrases(passphrase_file(tmp_path, content), prepared(tmp_path))
    assert not any(passphrase in str(caught.value) for passphrase in PASSPHRASES)


def test_a_file_of_passphrases_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = passphrase_file(tmp_path, "\n".join(PASSPHRASES))
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"words: others .*chmod 600"):
        read_passphrases(path, prepared(tmp_path))
