"""Tables on disk: private, whole, verified, few; a wrong one is refused and named."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mpcfl.errors import KeyFileError
from mpcfl.hazmat import table_cache
from mpcfl.hazmat.bits import KEY_BYTES, raw_keyed_bits
from mpcfl.hazmat.modular import FixedBase, Modulus
from mpcfl.hazmat.paillier import PublicKey, raw_generate_key
from mpcfl.hazmat.table_cache import MAX_TABLES, TableSpec, cached_table

WINDOW = 5
ROW = 1 << WINDOW
DIGEST = 32


def spec_of(public_key: PublicKey, window_bits: int = WINDOW) -> TableSpec:
    return TableSpec(
        name=public_key.fingerprint,
        modulus=Modulus(public_key.square),
        base=public_key.generator,
        exponent_bits=public_key.exponent_bits,
        window_bits=window_bits,
    )


@cache
def spec() -> TableSpec:
    return spec_of(raw_generate_key(256).public_key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tables"


def kept(folder: Path) -> Path:
    """Keep the table in the folder and return its file."""
    cached_table(folder, spec())
    return folder / spec().file_name


def rewrite(path: Path, entries: dict[int, int]) -> None:
    """Change entries, numbered from row 0, and make the digest right again."""
    width = 8 * -(-spec().modulus.value.bit_length() // 64)
    content = path.read_bytes()
    n_entries = -(-spec().exponent_bits // WINDOW) * ROW
    head, body = content[: -n_entries * width - DIGEST], bytearray(content[-n_entries * width :])
    assert content == head + hashlib.sha256(body).digest() + body
    for at, value in entries.items():
        body[at * width : (at + 1) * width] = int(value).to_bytes(width, "little")
    path.write_bytes(head + hashlib.sha256(body).digest() + body)


def test_folder_and_file_are_ours_alone_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0)
    try:
        path = kept(folder)
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(folder.iterdir()) == [path]


def test_the_second_time_the_table_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_table(folder, spec())
    monkeypatch.setattr(TableSpec, "make", lambda self: pytest.fail("it was made again"))
    second = cached_table(folder, spec())
    assert first.to_bytes() == second.to_bytes()
    assert second.power([12345]) == [pow(spec().base, 12345, spec().modulus.value)]


def test_each_window_has_its_own_file(folder: Path) -> None:
    public_key = raw_generate_key(64).public_key
    for window in (2, 3, 2, 3):
        table = cached_table(folder, spec_of(public_key, window))
        assert table.power([77]) == [pow(public_key.generator, 77, public_key.square)]
    assert len(list(folder.iterdir())) == 2


def test_a_table_of_one_row_is_loaded(folder: Path) -> None:
    public_key = raw_generate_key(32, raw_keyed_bits(bytes(KEY_BYTES))).public_key
    for _ in range(2):
        table = cached_table(folder, spec_of(public_key, 16))
    assert table.power([40_000]) == [pow(public_key.generator, 40_000, public_key.square)]


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o704, 0o740, 0o702, 0o720, 0o777])
def test_a_folder_open_to_others_is_refused_and_left_alone(folder: Path, mode: int) -> None:
    kept(folder)
    folder.chmod(mode)
    with pytest.raises(KeyFileError, match=r"tables: its mode is .*delete its files, then `chmod"):
        cached_table(folder, spec())
    assert folder.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o666])
def test_a_file_open_to_others_is_refused_and_left_alone(folder: Path, mode: int) -> None:
    path = kept(folder)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=r"\.table: its mode is .*delete the file"):
        cached_table(folder, spec())
    assert path.stat().st_mode & 0o777 == mode


def test_what_belongs_to_another_user_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(folder)
    monkeypatch.setattr(table_cache.os, "geteuid", lambda: 54321)
    with pytest.raises(KeyFileError, match="not to us; choose another"):
        cached_table(folder, spec())


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    path = kept(folder)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(KeyFileError, match="can't read it"):
        cached_table(folder, spec())
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(KeyFileError, match="link or of another kind"):
        cached_table(link, spec())


def test_a_pipe_in_the_place_of_a_file_is_refused_without_waiting(folder: Path) -> None:
    path = kept(folder)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileError, match="another kind"):
        cached_table(folder, spec())


@pytest.mark.parametrize("at", [0, 20, 60, 100, -1])
def test_a_damaged_file_is_refused_and_not_replaced(folder: Path, at: int) -> None:
    path = kept(folder)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=r"\.table: this is not the table .*delete the file"):
        cached_table(folder, spec())
    assert path.read_bytes() == content


@pytest.mark.parametrize("length", [0, 10, 200, -1])
def test_a_cut_file_is_refused(folder: Path, length: int) -> None:
    path = kept(folder)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(KeyFileError, match="this is not the table"):
        cached_table(folder, spec())


def test_the_table_of_another_key_is_refused(folder: Path) -> None:
    path = kept(folder)
    other = spec_of(raw_generate_key(256).public_key)
    path.rename(folder / other.file_name)
    with pytest.raises(KeyFileError, match="another base, modulus or width"):
        cached_table(folder, other)


def test_a_forged_table_of_known_powers_is_refused(folder: Path) -> None:
    """All digests are right, but the base is one whose powers its author knows."""
    path = kept(folder)
    forged = FixedBase(spec().modulus, 1, spec().exponent_bits, WINDOW)
    n_rows = forged.n_rows
    rewrite(path, {r * ROW + d: forged.entry(r, d) for r in range(n_rows) for d in range(ROW)})
    with pytest.raises(KeyFileError, match="somebody may have changed it"):
        cached_table(folder, spec())


@pytest.mark.parametrize("row", [0, 1, 13, 25])
def test_a_row_of_another_base_is_found_for_certain(folder: Path, row: int) -> None:
    """The row is right in itself: 1, 1, 1, ... So only its base betrays it."""
    path = kept(folder)
    rewrite(path, {row * ROW + digit: 1 for digit in range(ROW)})
    with pytest.raises(KeyFileError, match="somebody may have changed it"):
        cached_table(folder, spec())


def test_every_row_is_probed_at_random_places(folder: Path) -> None:
    """A quarter of every row changed, its base not: missed with (3/4)^(4 * 26) = 2^-43."""
    path = kept(folder)
    rewrite(path, {r * ROW + d: 1 for r in range(26) for d in range(ROW - ROW // 4, ROW)})
    with pytest.raises(KeyFileError, match="somebody may have changed it"):
        cached_table(folder, spec())


def test_the_probed_places_come_from_the_source(folder: Path) -> None:
    """One changed entry is found where the source points, and only there."""

    class Pointing:
        def __init__(self, digit: int) -> None:
            self.digit = digit

        def words(self, count: int) -> np.ndarray:
            return np.full(count, self.digit, dtype=np.uint64)

    path = kept(folder)
    rewrite(path, {7 * ROW + 19: 5})
    cached_table(folder, spec(), Pointing(18))
    with pytest.raises(KeyFileError, match="somebody may have changed it"):
        cached_table(folder, spec(), Pointing(19))


def test_the_number_of_tables_is_bounded_and_the_oldest_goes(folder: Path) -> None:
    specs = [spec_of(raw_generate_key(64).public_key, 2) for _ in range(MAX_TABLES + 2)]
    for age, each in enumerate(specs):
        cached_table(folder, each)
        os.utime(folder / each.file_name, ns=(0, age))
    names = {path.name for path in folder.iterdir()}
    assert names == {each.file_name for each in specs[-MAX_TABLES:]}


def test_leftovers_of_a_crash_are_cleared_away_too(folder: Path) -> None:
    kept(folder)
    for n in range(6):
        leftover = folder / f".{n:016x}.table"
        leftover.touch(0o600)
        os.utime(leftover, ns=(0, n))
    kept_files = cached_table(folder, spec_of(raw_generate_key(64).public_key, 2))
    assert kept_files.power([0]) == [1]
    assert len(list(folder.iterdir())) == MAX_TABLES


def test_a_folder_that_cannot_be_made_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    table = cached_table(tmp_path / "file" / "tables", spec())
    assert table.power([3]) == [pow(spec().base, 3, spec().modulus.value)]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tables").touch(0o600)
    with pytest.raises(KeyFileError, match="another kind"):
        cached_table(tmp_path / "tables", spec())


def test_a_full_disk_leaves_no_piece_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    table = cached_table(folder, spec(), raw_keyed_bits(bytes(KEY_BYTES)))
    assert table.power([0, 1]) == [1, spec().base]
    assert list(folder.iterdir()) == []
