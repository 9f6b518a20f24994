"""Identities: signatures, files that only their owner reads, public keys as text."""

from __future__ import annotations

import copy
import os
import pickle  # noqa: TID251 - to see that it is refused
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mpcfl.errors import AuthenticationError, KeyFileError
from mpcfl.net import private_file
from mpcfl.net.identity import Identity, public_key_text, read_public_key, verify
from mpcfl.net.private_file import read_trusted_file

PEM, PKCS8, PLAIN = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "north.key"
    Identity.new().save(path)
    return path


def test_a_signature_holds_for_its_maker_and_its_message_only() -> None:
    identity, other = Identity.new(), Identity.new()
    signature = identity.sign(b"words")
    assert len(identity.public_key) == 32
    assert len(signature) == 64
    verify(identity.public_key, b"words", signature)
    for key, message, signed in (
        (other.public_key, b"words", signature),
        (identity.public_key, b"Words", signature),
        (identity.public_key, b"words", signature[:-1] + bytes([signature[-1] ^ 1])),
        (identity.public_key, b"words", signature[:-1]),
        (identity.public_key, b"words", b""),
        (identity.public_key[:-1], b"words", signature),
    ):
        with pytest.raises(AuthenticationError):
            verify(key, message, signed)


def test_no_two_identities_are_alike() -> None:
    assert len({Identity.new().public_key for _ in range(20)}) == 20


def test_an_identity_survives_on_the_disk_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "north.key"
    identity = Identity.new()
    before = os.umask(0)
    try:
        identity.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = Identity.load(path)
    assert loaded.public_key == identity.public_key
    verify(identity.public_key, b"words", loaded.sign(b"words"))
    assert [file.name for file in tmp_path.iterdir()] == ["north.key"]


def test_the_file_is_pkcs_8_for_any_other_program(key_file: Path) -> None:
    text = key_file.read_bytes()
    assert text.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    key = serialization.load_pem_private_key(text, None)
    assert key.public_key().public_bytes_raw() == Identity.load(key_file).public_key


def test_a_file_is_never_replaced(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(KeyFileError, match=r"north\.key: exists already and is not overwritten"):
        Identity.new().save(key_file)
    assert key_file.read_bytes() == before
    link = key_file.with_name("link.key")
    link.symlink_to("nowhere.key")
    with pytest.raises(KeyFileError, match="exists already"):
        Identity.new().save(link)
    assert not key_file.with_name("nowhere.key").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none/north\.key: can't write the key file"):
        Identity.new().save(tmp_path / "none" / "north.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_a_file_that_is_open_to_others_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}.*run: chmod 600 .*north\.key"):
        Identity.load(key_file)


def test_a_file_of_another_user_is_refused(key_file: Path, monkeypatch) -> None:
    monkeypatch.setattr(private_file.os, "geteuid", lambda: key_file.stat().st_uid + 1)
    with pytest.raises(KeyFileError, match="belongs to another user"):
        Identity.load(key_file)


def other_kind() -> bytes:
    return X25519PrivateKey.generate().private_bytes(PEM, PKCS8, PLAIN)


def with_passphrase() -> bytes:
    key = serialization.load_pem_private_key(good(), None)
    return key.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"passphrase"))


def public_half() -> bytes:
    key = serialization.load_pem_private_key(good(), None).public_key()
    return key.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def good() -> bytes:
    return Identity.new()._private_key.private_bytes(PEM, PKCS8, PLAIN)


@pytest.mark.parametrize(
    "content",
    [lambda: b"", lambda: b"\x00" * 100, lambda: good()[:-40], with_passphrase, other_kind,
     public_half],
    ids=["empty", "zeros", "cut", "with a passphrase", "another kind", "public"],
)  # fmt: skip
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content) -> None:
    path = tmp_path / "north.key"
    path.write_bytes(content())
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"north\.key: this is no identity; .*identity new"):
        Identity.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"north\.key: can't read the key file: No such file"):
        Identity.load(tmp_path / "north.key")


def test_a_public_key_as_text_comes_back() -> None:
    key = Identity.new().public_key
    text = public_key_text(key)
    assert text == f"ed25519:{key.hex()}"
    assert read_public_key(text) == key


@pytest.mark.parametrize(
    "text",
    ["", "ed25519:", "{}", "ed25519:{}0", "ed25519: {}", " ed25519:{}", "ed25519:{}\n",
     "ED25519:{}", "x25519:{}", "ed25519:{upper}", "ed25519:{wide}"],
)  # fmt: skip
def test_a_public_key_has_one_spelling(text: str) -> None:
    digits = "ab" * 32
    wide = "\N{ARABIC-INDIC DIGIT ONE}" * 64
    with pytest.raises(ValueError, match="64 hex digits"):
        read_public_key(text.format(digits, upper=digits.upper(), wide=wide))


def test_it_is_not_shown_pickled_copied_or_used_as_condition() -> None:
    identity = Identity.new()
    assert repr(identity) == "Identity(<redacted>)"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, bool):
        with pytest.raises(TypeError):
            leak(identity)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o400])
def test_a_trusted_file_may_be_read_by_all(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "north.toml"
    path.write_text("text")
    path.chmod(mode)
    assert read_trusted_file(path, "party file") == b"text"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
def test_a_trusted_file_that_others_may_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "north.toml"
    path.write_text("text")
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=r"may change it .* run: chmod go-w .*north\.toml"):
        read_trusted_file(path, "party file")


@pytest.mark.parametrize(("owner", "user", "good"), [(7, 7, True), (0, 7, True), (7, 8, False),
                                                     (7, 0, False)])  # fmt: skip
def test_a_trusted_file_is_its_readers_or_roots(owner: int, user: int, good: bool, monkeypatch):
    status = os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    monkeypatch.setattr(private_file.os, "geteuid", lambda: user)
    if good:
        private_file._check_trusted(Path("north.toml"), status)
        return
    with pytest.raises(KeyFileError, match="belongs to another user"):
        private_file._check_trusted(Path("north.toml"), status)


def test_a_pipe_is_no_party_file_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "north.toml"
    os.mkfifo(path)
    with pytest.raises(KeyFileError, match="not a file; name the party file itself"):
        read_trusted_file(path, "party file")
