"""`mpcfl keygen`: a real ceremony, the passphrases it asks for, and its errors."""

from __future__ import annotations

import getpass
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpcfl.errors import BackendUnavailable, ConfigError, KeyFileError
from mpcfl.hazmat.paillier import encrypt
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.hazmat.threshold import check_partials, combine, partially_decrypt
from mpcfl.hazmat.threshold_key import raw_deal_key
from mpcfl.launch.cli import app
from mpcfl.secagg import ceremony, custody, key_files
from mpcfl.secagg.key_files import ScryptCost, load_key_share, read_public_file

PASSPHRASES = ("north wind and the sun", "south by southwest", "east of the eden")


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["keygen", *map(str, arguments)])


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.write_text("\n".join(PASSPHRASES) + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def cheap(monkeypatch) -> None:
    """Make small keys, and passphrases that cost nothing to guess."""
    monkeypatch.setattr(ceremony, "deal_key", lambda _, n, t: raw_deal_key(512, n, t))
    monkeypatch.setattr(custody, "MIN_KEY_BITS", 512)
    monkeypatch.setattr(key_files, "_COST", ScryptCost(n=2, r=1, p=1))


def test_two_parties_of_a_real_ceremony_decrypt(words: Path, tmp_path: Path) -> None:
    """2048 bits and the real price of a guess; the third share stays sealed."""
    out = tmp_path / "keys"
    sizes = ("--parties", 3, "--threshold", 2, "--key-bits", 2048)
    result = invoke("--out", out, *sizes, "--names", "a,b,c", "--passphrases", words, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["shares"][1] == {
        "party": "b",
        "rank": 1,
        "index": 2,
        "file": str(out / "b.share"),
    }
    key = read_public_file(out / "public.json").key
    assert document["key_fingerprint"] == key.fingerprint
    assert document["public_key_fingerprint"] == key.public_key.fingerprint
    assert key.public_key.key_bits == document["key_bits"] == 2048
    written = [out / f"{name}.share" for name in "abc"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written)
    assert json.loads(written[0].read_text())["scrypt"]["n"] >= 1 << 15

    randomizers = Randomizers(key.public_key, n_ahead=1).draw(1)
    ciphertexts = encrypt(key.public_key, [424_242], randomizers)
    partials = [
        partially_decrypt(load_key_share(written[i], PASSPHRASES[i], key), ciphertexts, b"test")
        for i in (0, 2)
    ]
    assert combine(key, check_partials(key, ciphertexts, partials, b"test")) == [424_242]


@pytest.mark.usefixtures("cheap")
def test_the_text_names_every_file_the_next_step_and_whom_to_trust(
    words: Path, tmp_path: Path
) -> None:
    sizes = ("--parties", 3, "--threshold", 2, "--key-bits", 512)
    result = invoke("--out", tmp_path / "keys", *sizes, "--passphrases", words)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for rank in range(3):
        path = tmp_path / "keys" / f"party-{rank}.share"
        assert lines[rank] == f"{path}: share {rank + 1} of 3, for party-{rank}"
    assert lines[3].startswith(f"{tmp_path / 'keys' / 'public.json'}: ")
    assert read_public_file(tmp_path / "keys" / "public.json").key.fingerprint in lines[4]
    assert "Any 2 of the 3 parties" in result.stdout
    assert f"delete the shares and {words}" in result.stdout
    assert "trust" in lines[-1]
    assert not any(passphrase in result.output for passphrase in PASSPHRASES)


@pytest.fixture
def typed(monkeypatch) -> list[str]:
    """What the parties type, in order; nothing is echoed, as getpass reads it."""
    answers: list[str] = []
    waiting: Iterator[str] = iter(answers)
    monkeypatch.setattr(getpass, "getpass", lambda _: next(waiting))
    return answers


@pytest.mark.usefixtures("cheap")
def test_every_party_types_its_passphrase_twice(typed: list[str], tmp_path: Path) -> None:
    first, second = PASSPHRASES[:2]
    # Too short; a slip of the finger; then as it should be.
    typed += ["short", first, first + "x", first, first, second, second]
    sizes = ("--parties", 2, "--threshold", 2, "--key-bits", 512)
    result = invoke("--out", tmp_path / "keys", *sizes)
    assert result.exit_code == 0, result.output
    assert "shorter than 12 characters" in result.stderr
    assert "the two differ" in result.stderr
    assert "delete the shares on this machine" in result.stdout
    for rank, passphrase in enumerate((first, second)):
        path = tmp_path / "keys" / f"party-{rank}.share"
        assert load_key_share(path, passphrase).index == rank + 1


@pytest.mark.usefixtures("cheap")
def test_no_good_passphrase_ends_the_ceremony(typed: list[str], tmp_path: Path) -> None:
    typed += [""] * 3
    sizes = ("--parties", 2, "--threshold", 2, "--key-bits", 512)
    result = invoke("--out", tmp_path / "keys", *sizes)
    assert isinstance(result.exception, ConfigError)
    assert "party-0 gave no passphrase in 3 tries" in str(result.exception)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--parties", 3, "--threshold", 1), "threshold 1"),
        (("--parties", 3, "--threshold", 4), "threshold 4"),
        (("--parties", 3, "--threshold", 2, "--key-bits", 1024), "key_bits = 1024"),
        (("--parties", 3, "--threshold", 2, "--names", "a,b"), "--names lists 2 parties"),
        (("--parties", 3, "--threshold", 2, "--names", "a,b,b"), "same name"),
        (("--parties", 2, "--threshold", 2), "3 lines, expected one for each of 2"),
    ],
)
def test_wrong_options_are_refused_before_a_key_is_made(
    arguments: tuple[object, ...], found: str, words: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(ceremony, "deal_key", lambda *_: pytest.fail("a key was made"))
    result = invoke("--out", tmp_path / "keys", *arguments, "--passphrases", words)
    assert isinstance(result.exception, ConfigError)
    assert found in str(result.exception)
    assert not (tmp_path / "keys").exists()


def test_a_readable_file_of_passphrases_is_refused(words: Path, tmp_path: Path) -> None:
    words.chmod(0o640)
    sizes = ("--parties", 3, "--threshold", 2)
    result = invoke("--out", tmp_path / "keys", *sizes, "--passphrases", words)
    assert isinstance(result.exception, KeyFileError)
    assert "chmod 600" in str(result.exception)


def test_without_a_terminal_it_says_so_in_one_sentence(mpcfl_command, tmp_path: Path) -> None:
    done = mpcfl_command("keygen", "--out", "keys", "--parties", 2, "--threshold", 2, "--json")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("mpcfl: error: there is no terminal to ask for passphrases on")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_gmpy2_it_names_the_remedy(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delitem(__import__("sys").modules, "mpcfl.launch.keygen_command", raising=False)
    missing = ModuleNotFoundError("No module named 'gmpy2'", name="gmpy2")
    real = __import__

    def without(name: str, *others: object, **named: object) -> object:
        if name == "mpcfl.launch.keygen_command":
            raise missing
        return real(name, *others, **named)

    monkeypatch.setattr("builtins.__import__", without)
    result = invoke("--out", tmp_path / "keys", "--parties", 2, "--threshold", 2)
    assert isinstance(result.exception, BackendUnavailable)
    assert "pip install 'mpcfl[paillier]'" in str(result.exception)
