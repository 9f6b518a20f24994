"""Key files: phe reads ours and we read phe's; shares are sealed; what is unsafe is refused."""

from __future__ import annotations

import copy
import json
import os
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.packing import SlotLayout, unpack
from mpcfl.hazmat.paillier import PrivateKey, encrypt, raw_generate_key
from mpcfl.hazmat.randomizers import Randomizers
from mpcfl.hazmat.threshold_key import KeyShare, raw_deal_key
from mpcfl.net import private_file
from mpcfl.net.private_file import read_key_file, write_key_file
from mpcfl.secagg import key_files
from mpcfl.secagg.key_documents import NamedKey
from mpcfl.secagg.key_files import (
    ScryptCost,
    load_key_share,
    read_public_file,
    write_key_share,
    write_public_file,
)
from mpcfl.secagg.phe_key_files import (
    read_private_key,
    read_public_key,
    write_private_key,
    write_public_key,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "phe_keys.json").read_text())
PASSPHRASE = "correct horse battery"  # noqa: S105 - of files that live for one test
DEFAULT_COST = key_files._COST
PARTIES = ("north", "south", "east")


def write_private(path: Path, content: str | dict[str, Any]) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o600)
    return path


# --- the disk ---


def test_a_secret_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_key_file(tmp_path / "secret", b"s", secret=True)
    write_key_file(tmp_path / "public", b"p", secret=False)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) & 0o600 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["public", "secret"]


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o610, 0o777])
def test_a_secret_file_that_others_can_touch_is_refused(mode: int, tmp_path: Path) -> None:
    path = write_private(tmp_path / "key", "x")
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"key: others .*{mode:04o}.*chmod 600"):
        read_key_file(path, secret=True)
    assert read_key_file(path, secret=False) == b"x"


def test_a_secret_file_of_another_user_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = write_private(tmp_path / "key", "x")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(KeyFileError, match="key: belongs to another user"):
        read_key_file(path, secret=True)


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    path = write_private(tmp_path / "key", "x")
    (tmp_path / "link").symlink_to(path)
    assert read_key_file(tmp_path / "link", secret=True) == b"x"
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="others"):
        read_key_file(tmp_path / "link", secret=True)


def test_what_is_no_file_or_too_large_is_refused(tmp_path: Path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(KeyFileError, match=r"not a file|directory"):
            read_key_file(path, secret=True)
    with pytest.raises(KeyFileError, match=r"none: can't read .*No such file"):
        read_key_file(tmp_path / "none", secret=False)
    monkeypatch.setattr(private_file, "MAX_KEY_FILE_BYTES", 3)
    with pytest.raises(KeyFileError, match="larger than 3 bytes"):
        read_key_file(write_private(tmp_path / "large", "1234"), secret=True)


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key_file(path, b"first", secret=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(KeyFileError, match="exists already and is not overwritten"):
            write_key_file(taken, b"second", secret=True)
    assert path.read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "link"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_disk_that_refuses_leaves_no_file(fails_at: int, tmp_path: Path, monkeypatch) -> None:
    """Whether the content or the name can't be put on the disk."""
    calls = []

    def refuse(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KeyFileError, match="key: can't write the key file: No space left"):
        write_key_file(tmp_path / "key", b"content", secret=True)
    assert list(tmp_path.iterdir()) == []


# --- keys of phe ---


@pytest.fixture(scope="module")
def own_key() -> PrivateKey:
    return raw_generate_key(2048)


@pytest.fixture
def pheutil(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs phe's own command line."""
    pytest.importorskip("phe", exc_type=ImportError)
    # Needed by phe's command line and left out of its requirements.
    pytest.importorskip("click", exc_type=ImportError)

    def run(*arguments: object) -> str:
        command = [str(Path(sys.executable).parent / "pheutil"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_pheutil_uses_our_files(own_key: PrivateKey, pheutil, tmp_path: Path) -> None:
    public, private = tmp_path / "public.json", tmp_path / "private.json"
    write_public_key(public, own_key.public_key)
    write_private_key(private, own_key)
    encrypted = json.loads(pheutil("encrypt", public, "1.5"))
    (plaintext,) = own_key.decrypt([int(encrypted["v"])])
    assert plaintext == 1.5 * 16**32
    randomizers = Randomizers(own_key.public_key, own_key, n_ahead=1).draw(1)
    (ciphertext,) = encrypt(own_key.public_key, [123_456_789], randomizers)
    write_private(tmp_path / "ours", {"v": str(ciphertext), "e": 0})
    assert float(pheutil("decrypt", private, tmp_path / "ours")) == 123_456_789


def test_we_use_the_files_of_pheutil(pheutil, tmp_path: Path) -> None:
    private, public = tmp_path / "private.json", tmp_path / "public.json"
    pheutil("genpkey", "--keysize", 2048, private)
    pheutil("extract", private, public)
    private.chmod(0o600)
    key = read_private_key(private)
    assert read_public_key(public) == key.public_key
    assert not key.public_key.has_generator
    encrypted = json.loads(pheutil("encrypt", public, "0.25"))
    assert key.decrypt([int(encrypted["v"])]) == [16**32 // 4]


def test_the_generator_survives_our_own_files(own_key: PrivateKey, tmp_path: Path) -> None:
    write_public_key(tmp_path / "public", own_key.public_key)
    write_private_key(tmp_path / "private", own_key)
    assert read_public_key(tmp_path / "public") == own_key.public_key
    again = read_private_key(tmp_path / "private")
    assert again.public_key == own_key.public_key
    assert again.public_key.has_generator
    assert again.raw_primes() == own_key.raw_primes()


def test_phe_keys_are_written_without_a_generator(tmp_path: Path) -> None:
    key = vector_key(tmp_path)
    write_private_key(tmp_path / "again", key)
    assert "mpcfl" not in json.loads((tmp_path / "again").read_text())["pub"]
    assert not read_private_key(tmp_path / "again").public_key.has_generator


def vector_key(folder: Path) -> PrivateKey:
    return read_private_key(write_private(folder / "phe.json", VECTORS["private"]))


def test_vectors_of_phe_decrypt(tmp_path: Path) -> None:
    key = vector_key(tmp_path)
    assert read_public_key(write_private(tmp_path / "public", VECTORS["public"])) == key.public_key
    for case in VECTORS["ciphertexts"]:
        plaintext = int(case["plaintext"], 16) % key.public_key.modulus
        ciphertext = int(case["ciphertext"], 16)
        assert key.decrypt([ciphertext]) == [plaintext], case["comment"]
        if "r" in case:
            randomizer = pow(int(case["r"], 16), key.public_key.modulus, key.public_key.square)
            assert encrypt(key.public_key, [plaintext], [randomizer]) == [ciphertext]


def test_packed_slots_in_ciphertexts_of_phe(tmp_path: Path) -> None:
    packed = VECTORS["packed"]
    plaintexts = vector_key(tmp_path).decrypt([int(packed["ciphertext"], 16)])
    layout = SlotLayout(packed["modulus_bits"], packed["n_inputs"], 2047)
    sums = unpack(plaintexts, layout, len(packed["sums"]), packed["n_inputs"])
    assert sums.tolist() == packed["sums"]


@pytest.mark.parametrize("case", VECTORS["bad_private"], ids=lambda case: case["comment"])
def test_bad_private_keys_are_refused(case: dict[str, Any], tmp_path: Path) -> None:
    document = changed(VECTORS["private"], case["changes"])
    path = write_private(tmp_path / "bad.json", document)
    with pytest.raises(KeyFileError, match=f"bad.json: .*{case['refused_for']}") as caught:
        read_private_key(path)
    assert VECTORS["private"]["p"] not in str(caught.value)
    assert VECTORS["private"]["q"] not in str(caught.value)


@pytest.mark.parametrize("case", VECTORS["bad_public"], ids=lambda case: case["comment"])
def test_bad_public_keys_are_refused(case: dict[str, Any], tmp_path: Path) -> None:
    path = write_private(tmp_path / "bad.json", changed(VECTORS["public"], case["changes"]))
    with pytest.raises(KeyFileError, match=f"bad.json: .*{case['refused_for']}"):
        read_public_key(path)


def changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change fields by dotted name; None removes one."""
    document = copy.deepcopy(document)
    for name, value in changes.items():
        *outer, last = name.split(".")
        table = document
        for part in outer:
            table = table[part]
        if value is None:
            del table[last]
        else:
            table[last] = value
    return document


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, "\xff", '{"kty": "RSA"}'])
def test_what_is_no_key_file_of_phe_is_refused(text: str, tmp_path: Path) -> None:
    path = write_private(tmp_path / "x.json", "")
    path.write_bytes(text.encode("latin-1"))
    for read in (read_public_key, read_private_key):
        with pytest.raises(KeyFileError, match=r"x.json: not a whole key file"):
            read(path)


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write_private(tmp_path / "key.json", VECTORS["private"])
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match=r"key.json: others"):
        read_private_key(path)


# --- shares of a threshold key ---


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch) -> None:
    """Passphrases that cost nothing to guess, for tests."""
    monkeypatch.setattr(key_files, "_COST", ScryptCost(n=2, r=1, p=1))


@pytest.fixture(scope="module")
def dealt() -> list[KeyShare]:
    return raw_deal_key(512, 3, 2)[1]


@pytest.fixture
def share_file(dealt: list[KeyShare], small_keys: int, tmp_path: Path) -> Path:
    path = tmp_path / "south.share"
    write_key_share(path, dealt[1], PARTIES, PASSPHRASE)
    return path


def edited(path: Path, changes: dict[str, Any]) -> Path:
    return write_private(path, changed(json.loads(path.read_text()), changes))


def test_a_share_comes_back_whole(share_file: Path, dealt: list[KeyShare]) -> None:
    share = load_key_share(share_file, PASSPHRASE)
    assert (share.index, share.key) == (2, dealt[1].key)
    assert share.raw_value() == dealt[1].raw_value()
    assert load_key_share(share_file, PASSPHRASE, dealt[0].key).index == 2


def test_the_share_is_not_in_its_file_in_the_clear(share_file: Path, dealt: list[KeyShare]) -> None:
    text = share_file.read_text()
    value = dealt[1].raw_value()
    assert f"{value:x}"[:16] not in text
    assert str(value)[:16] not in text
    assert PASSPHRASE not in text
    assert stat.S_IMODE(share_file.stat().st_mode) == 0o600


def test_two_sealings_of_one_share_have_nothing_in_common(
    share_file: Path, dealt: list[KeyShare]
) -> None:
    write_key_share(share_file.with_name("again"), dealt[1], PARTIES, PASSPHRASE)
    first, second = (
        json.loads(path.read_text()) for path in (share_file, share_file.with_name("again"))
    )
    assert first["scrypt"]["salt"] != second["scrypt"]["salt"]
    assert first["nonce"] != second["nonce"]
    assert first["sealed"] != second["sealed"]


def test_the_length_of_a_share_does_not_show(
    dealt: list[KeyShare], small_keys: int, tmp_path: Path
) -> None:
    lengths = []
    for name, value in (("short", 1), ("long", dealt[0].raw_value())):
        write_key_share(tmp_path / name, KeyShare(dealt[0].key, 1, value), PARTIES, PASSPHRASE)
        lengths.append(len(json.loads((tmp_path / name).read_text())["sealed"]))
    # In hex: 1,024 bits of n^2 and a tag of 128 bits.
    assert lengths == [2 * (128 + 16)] * 2


def test_a_guess_is_made_expensive() -> None:
    """By default; the cheap one above is for tests alone."""
    assert DEFAULT_COST.n >= 1 << 15
    assert 128 * DEFAULT_COST.n * DEFAULT_COST.r >= 128 << 20


def test_a_passphrase_is_what_is_read_not_how_it_is_coded(
    dealt: list[KeyShare], small_keys: int, tmp_path: Path
) -> None:
    typed = "Grüße aus der Zürcher Straße"
    write_key_share(tmp_path / "s", dealt[0], PARTIES, unicodedata.normalize("NFC", typed))
    assert load_key_share(tmp_path / "s", unicodedata.normalize("NFD", typed)).index == 1


REFUSED = "the passphrase is wrong, or the file was changed"


@pytest.mark.parametrize("passphrase", ["", "correct horse batterx", PASSPHRASE + " ", "\udcff"])
def test_a_wrong_passphrase_is_refused(passphrase: str, share_file: Path) -> None:
    with pytest.raises(KeyFileError, match=f"south.share: {REFUSED}") as caught:
        load_key_share(share_file, passphrase)
    assert PASSPHRASE not in str(caught.value)


def test_every_change_reads_like_a_wrong_passphrase(
    share_file: Path, dealt: list[KeyShare]
) -> None:
    document = json.loads(share_file.read_text())
    other = f"{dealt[0].key.verification_keys[0]:x}"
    flipped = "0" if document["sealed"][-1] != "0" else "1"
    for changes in (
        {"public.threshold": 3},
        {"public.has_generator": False},
        {"public.parties": ["north", "south", "west"]},
        {"public.verification_base": other},
        {"public.verification_keys": [other] * 3},
        {"index": 1, "party": "north"},
        {"scrypt.n": 4},
        {"scrypt.r": 2},
        {"scrypt.p": 2},
        {"scrypt.salt": "00" * 16},
        {"nonce": "00" * 12},
        {"nonce": "00"},
        {"nonce": "00" * 500},
        {"sealed": document["sealed"][:-1] + flipped},
        {"sealed": document["sealed"][:-2]},
        {"sealed": "00"},
    ):
        path = edited(write_private(share_file, document), changes)
        with pytest.raises(KeyFileError, match=REFUSED):
            load_key_share(path, PASSPHRASE)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"schema": 2}, "schema 2, this version reads 1; use the version"),
        ({"schema": "1"}, "no whole JSON document of mpcfl"),
        ({"kind": "mpcfl-threshold-key"}, "kind 'mpcfl-threshold-key', expected 'mpcfl-key-share'"),
        ({"sealed": None}, "sealed"),
        ({"sealed": "0"}, "sealed"),
        ({"extra": 1}, "extra"),
        ({"scrypt.n": True}, "scrypt.n"),
        ({"scrypt.n": 3}, "memory"),
        ({"scrypt.n": 1 << 40}, "memory"),
        ({"scrypt.n": 1 << 17, "scrypt.r": 32}, "memory"),
        ({"scrypt.p": 5}, "scrypt.p"),
        ({"party": "north"}, "its index is not its party's"),
        ({"index": 4}, "its index is not its party's"),
        ({"index": 0}, "index"),
        ({"public.modulus": "07"}, "public.modulus"),
        ({"public.modulus": "7" * 20}, "no key"),
        ({"public.threshold": 4}, "no key"),
        ({"public.threshold": "2"}, "public.threshold"),
        ({"public.threshold": 1}, "no key"),
        ({"public.verification_keys": ["2"]}, "no key"),
        ({"public.parties": ["south", "south"]}, "its party's|no key"),
        ({"public.parties": ["south", "south", "west"]}, "no key"),
        ({"public.parties": ["../south", "south", "west"]}, "public.parties.0"),
    ],
)
def test_damage_is_named_before_anything_is_derived(
    changes: dict[str, Any], found: str, share_file: Path, monkeypatch
) -> None:
    monkeypatch.setattr(key_files, "Scrypt", lambda **_: pytest.fail("a key was derived"))
    with pytest.raises(KeyFileError, match=found) as caught:
        load_key_share(edited(share_file, changes), PASSPHRASE)
    assert "south.share: " in str(caught.value)


def test_a_truncated_file_is_refused(share_file: Path) -> None:
    content = share_file.read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 4):
        share_file.write_bytes(content[:length])
        with pytest.raises(KeyFileError, match=r"south.share: the key file is damaged"):
            load_key_share(share_file, PASSPHRASE)


def test_a_share_that_others_can_read_is_refused(share_file: Path) -> None:
    share_file.chmod(0o644)
    with pytest.raises(KeyFileError, match=r"south.share: others"):
        load_key_share(share_file, PASSPHRASE)


def test_a_share_of_another_ceremony_is_refused_before_it_is_opened(share_file: Path) -> None:
    other = raw_deal_key(512, 3, 2)[0]
    with pytest.raises(KeyFileError, match=r"south.share: a share of another key .*one ceremony"):
        load_key_share(share_file, "a wrong passphrase", other)


def test_a_share_that_its_key_does_not_fit_is_refused(
    dealt: list[KeyShare], small_keys: int, tmp_path: Path
) -> None:
    """A dealer that sealed the wrong number."""
    wrong = KeyShare(dealt[0].key, 1, dealt[0].raw_value() + 1)
    write_key_share(tmp_path / "wrong.share", wrong, PARTIES, PASSPHRASE)
    with pytest.raises(KeyFileError, match=r"wrong.share: .*does not belong"):
        load_key_share(tmp_path / "wrong.share", PASSPHRASE)


def test_short_keys_are_refused_outside_tests(
    dealt: list[KeyShare], share_file: Path, monkeypatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(KeyFileError, match=r"south.share: .*key_bits = 512"):
        load_key_share(share_file, PASSPHRASE)


def test_the_public_part_comes_back(dealt: list[KeyShare], small_keys: int, tmp_path: Path) -> None:
    named = NamedKey(dealt[0].key, PARTIES)
    write_public_file(tmp_path / "public.json", named)
    assert read_public_file(tmp_path / "public.json") == named
    path = edited(tmp_path / "public.json", {"public.parties": ["a"]})
    with pytest.raises(KeyFileError, match=r"public.json: .*no key"):
        read_public_file(path)
    assert "sealed" not in path.read_text()


def test_every_share_has_a_name_of_its_own(dealt: list[KeyShare]) -> None:
    for parties in (("a", "b"), ("a", "b", "b")):
        with pytest.raises(ConfigError, match="as many names"):
            NamedKey(dealt[0].key, parties)
