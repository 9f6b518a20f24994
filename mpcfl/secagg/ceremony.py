"""The ceremony that deals a threshold key: one process makes all shares, seals them and forgets.

The dealer is trusted: until it ends, this process knows the whole key, and whoever reads its
memory then, or makes it run other code, can decrypt everything that is ever encrypted under the
key. Hold the ceremony on a machine that all parties trust, without swap, and off the network.

Nothing secret reaches the disk unsealed. References to secrets are dropped as soon as they are not
needed, but Python can't wipe them: copies may stay in freed memory until the process ends.

Key generation without a dealer would take the place of `hold_ceremony` alone: files, shares and
all that uses them stay as they are.

Source: Damgard, Jurik 2001, section 4.1 (the dealer's part).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mpcfl.errors import ConfigError, KeyFileError
from mpcfl.hazmat.threshold_key import MAX_SHARES, KeyShare, ThresholdKey, deal_key
from mpcfl.net.private_file import read_key_file, remove_files, sync_folder
from mpcfl.secagg.custody import DEFAULT_KEY_BITS, check_key_bits
from mpcfl.secagg.key_documents import NamedKey
from mpcfl.secagg.key_files import (
    PUBLIC_NAME,
    share_path,
    write_key_share,
    write_public_file,
)

MIN_PASSPHRASE_CHARACTERS = 12
# As in a job's parties.names; also safe as the name of a file.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What is to be dealt, and where to.

    Attributes:
        folder: gets the files; made with mode 0700 if it is not there.
        parties: names of the holders, in the order of their ranks.
        threshold: t, how many of them it takes to decrypt.
        key_bits: size of the modulus.

    Raises:
        ConfigError: a number or a name is out of range.
        KeyFileError: one of the files exists already.
    """

    folder: Path
    parties: tuple[str, ...]
    threshold: int
    key_bits: int = DEFAULT_KEY_BITS

    def __post_init__(self) -> None:
        check_key_bits(self.key_bits)
        _check_names(self.parties)
        if not 2 <= self.threshold <= len(self.parties):
            raise ConfigError(
                f"threshold {self.threshold} is not from 2 to the number of parties, "
                f"{len(self.parties)}; with colluding parties c and max_dropout m, choose one "
                "from c + 1 to the number of parties less m"
            )
        for path in (self.public_path, *self.share_paths):
            if path.exists() or path.is_symlink():
                raise KeyFileError(
                    f"{path}: exists already and is not overwritten; choose another folder"
                )

    @property
    def public_path(self) -> Path:
        """The public part, for everybody."""
        return self.folder / PUBLIC_NAME

    @property
    def share_paths(self) -> tuple[Path, ...]:
        """The share of each party, for that party alone."""
        return tuple(share_path(self.folder, name) for name in self.parties)


def default_names(n_parties: int) -> tuple[str, ...]:
    """Return the names that a job without names gives its parties."""
    return tuple(f"party-{rank}" for rank in range(n_parties))


def hold_ceremony(ceremony: Ceremony, passphrases: list[str]) -> ThresholdKey:
    """Deal a key, write all files, forget all shares; if anything fails, no file is left.

    Args:
        ceremony: what to deal and where to.
        passphrases: one per party, in their order. Emptied.

    Returns:
        The public part.

    Raises:
        ConfigError: a passphrase is missing or too short.
        KeyFileError: the disk refuses, or a file has appeared meanwhile.
    """
    if len(passphrases) != len(ceremony.parties):
        raise ConfigError(
            f"{len(passphrases)} passphrases came, expected one for each of "
            f"{len(ceremony.parties)} parties"
        )
    for name, passphrase in zip(ceremony.parties, passphrases, strict=True):
        check_passphrase(name, passphrase)
    made_folder = _make_folder(ceremony.folder)
    written: list[Path] = []
    try:
        key, shares = deal_key(ceremony.key_bits, len(ceremony.parties), ceremony.threshold)
        _write_all(ceremony, shares, passphrases, written)
    # An interrupt as well: half a ceremony must not look like a whole one.
    except BaseException:
        remove_files(written)
        if made_folder:
            with suppress(OSError):
                ceremony.folder.rmdir()
        raise
    return key


def _write_all(
    ceremony: Ceremony, shares: list[KeyShare], passphrases: list[str], written: list[Path]
) -> None:
    """Write every file; ``written`` names those that there may be, also when this is left early.

    Shares and passphrases are taken out of their lists one by one.
    """
    named = NamedKey(shares[0].key, ceremony.parties)
    for path in ceremony.share_paths:
        with _listed(path, written):
            write_key_share(path, shares.pop(0), named.parties, passphrases.pop(0))
    with _listed(ceremony.public_path, written):
        write_public_file(ceremony.public_path, named)


@contextmanager
def _listed(path: Path, written: list[Path]) -> Iterator[None]:
    """List a file before it is there, so that an interrupt can't come between."""
    written.append(path)
    try:
        yield
    except KeyFileError:
        # Nothing was written, and what may bear the name now is not ours.
        written.remove(path)
        raise


def _make_folder(folder: Path) -> bool:
    """Make the folder unless it is there; tell whether it was made."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise KeyFileError(f"{folder}: not a folder; choose another --out") from None
        return False
    except OSError as error:
        raise KeyFileError(
            f"{folder}: can't make the folder: {error.strerror}; choose another --out"
        ) from None
    sync_folder(folder.parent)
    return True


def check_passphrase(party: str, passphrase: str) -> None:
    """Refuse a passphrase that is too short to protect a share.

    Raises:
        ConfigError: it has fewer than 12 characters, spaces at its ends not counted.
    """
    if len(passphrase.strip()) < MIN_PASSPHRASE_CHARACTERS:
        raise ConfigError(
            f"the passphrase of {party} is shorter than {MIN_PASSPHRASE_CHARACTERS} characters; "
            "choose a longer one, for example six words drawn by dice"
        )


def read_passphrases(path: Path, ceremony: Ceremony) -> list[str]:
    """Read one passphrase per line, in the order of the parties.

    Raises:
        ConfigError: another number of lines than parties, or one is too short.
        KeyFileError: the file can't be read, is not text, or others may read it.
    """
    lines = passphrase_lines(path)
    if len(lines) != len(ceremony.parties):
        raise ConfigError(
            f"{path}: {len(lines)} lines, expected one for each of {len(ceremony.parties)} "
            "parties, in the order of their ranks"
        )
    for name, passphrase in zip(ceremony.parties, lines, strict=True):
        check_passphrase(name, passphrase)
    return lines


def passphrase_lines(path: Path) -> list[str]:
    """Return the passphrases in a file, one per line, as they are.

    Raises:
        KeyFileError: the file can't be read, is not text, or others may read it.
    """
    try:
        text = read_key_file(path, secret=True).decode()
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: not a text in UTF-8; write one passphrase per line") from None
    # Other separators than these may be part of a passphrase.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def check_count(n_parties: int) -> None:
    """Refuse a number of parties that can't share a key.

    Raises:
        ConfigError: it is not from 2 to 1,000.
    """
    if not 2 <= n_parties <= MAX_SHARES:
        raise ConfigError(f"{n_parties} parties can't share a key; choose from 2 to {MAX_SHARES}")


def _check_names(parties: tuple[str, ...]) -> None:
    check_count(len(parties))
    for name in parties:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name of a party; use letters, digits, - and _, a letter first, "
                "32 characters at most"
            )
    if len(set(parties)) != len(parties):
        raise ConfigError("two parties have the same name; give each its own")
