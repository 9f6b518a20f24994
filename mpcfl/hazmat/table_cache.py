"""Fixed-base tables of public keys, kept in a folder that nobody else can read or write.

A table holds powers of a public base, so it is no secret; but whoever *writes* one chooses the
randomizers, and with them reads the plaintexts. Hence:

- the folder has mode 0700 and belongs to us, files have mode 0600 and belong to us; anything else
  is refused and not repaired, as its content may have been changed meanwhile;
- a file names key and widths and carries digests, which find accidents;
- on loading, the base of every row is recomputed from the row before, from h_s on, and `PROBES`
  entries of every row, at random places, from the base of their row.

Somebody who can write as us could still change a share f of all entries unnoticed, with a
probability of (1 - f)^(PROBES rows), but could then read our memory as well. A table that fails
is never used, and stops the run: that it was changed should be known.

A folder that can't be written only costs time: the table is then made anew in each process.
That is slow by gmpy2; the kernel makes a table about as fast as one is loaded and verified.
Tables of a private key (mod p^2, q^2) are secret and never come here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpcfl.errors import KeyFileError
from mpcfl.hazmat.bits import BitSource, SystemBits
from mpcfl.hazmat.modular import FixedBase, Modulus
from mpcfl.hazmat.primes import draw_bits

# Entries checked in each row, beside its base.
PROBES = 4
# Tables kept in one folder, the oldest makes room; each is up to the bound of `randomizers.py`.
MAX_TABLES = 4
_SUFFIX = ".table"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_TAG_BITS = 64


@dataclass(frozen=True, slots=True)
class TableSpec:
    """Which table; public.

    Attributes:
        name: fingerprint of the public key.
        modulus: n^2.
        base: h_s.
        exponent_bits: of the powers to come.
        window_bits: bits of an exponent per look-up.
    """

    name: str
    modulus: Modulus
    base: int
    exponent_bits: int
    window_bits: int

    @property
    def file_name(self) -> str:
        """Return the name of its file; one per key, width and window."""
        return f"{self.name}-{self.exponent_bits}-{self.window_bits}{_SUFFIX}"

    def make(self) -> FixedBase:
        """Compute the table."""
        return FixedBase(self.modulus, self.base, self.exponent_bits, self.window_bits)


def cached_table(folder: Path, spec: TableSpec, bits: BitSource | None = None) -> FixedBase:
    """Return the table from the folder if it is there and right, else make and keep it.

    Args:
        folder: made with mode 0700 if it is missing.
        spec: which table.
        bits: source of the places that are checked; the system's by default.

    Raises:
        KeyFileError: the folder or the file is open to others or not ours, or the content is
            not the table of this key; the message names the path and the remedy.
    """
    if not _open_folder(folder):
        return spec.make()
    path = folder / spec.file_name
    content = _read_private(path)
    if content is None:
        table = spec.make()
        _write_private(path, table.to_bytes())
        _make_room(folder, keep=path)
        return table
    return _load(path, content, spec, SystemBits() if bits is None else bits)


def _load(path: Path, content: bytes, spec: TableSpec, bits: BitSource) -> FixedBase:
    """Read and check a table; a wrong one is refused."""
    try:
        table = FixedBase.from_bytes(
            spec.modulus, spec.base, spec.exponent_bits, spec.window_bits, content
        )
    except ValueError as error:
        raise KeyFileError(
            f"{path}: this is not the table of this key ({error}); delete the file"
        ) from None
    if not _is_right(table, spec, bits):
        raise KeyFileError(
            f"{path}: the table does not hold the powers of this key's generator; somebody may "
            "have changed it; find out who can write there, then delete the file"
        )
    return table


def _is_right(table: FixedBase, spec: TableSpec, bits: BitSource) -> bool:
    """Recompute the base of every row, and a few entries of each from it."""
    bases = [table.entry(row, 1) for row in range(table.n_rows)]
    followers = spec.modulus.power(bases[:-1], 1 << spec.window_bits)
    if bases != [spec.base, *followers]:
        return False
    return all(_probe(table, bases, spec, bits) for _ in range(PROBES))


def _probe(table: FixedBase, bases: list[int], spec: TableSpec, bits: BitSource) -> bool:
    """Check one random entry of every row."""
    digits = draw_bits(bits, spec.window_bits, table.n_rows)
    entries = [table.entry(row, digit) for row, digit in enumerate(digits)]
    return entries == spec.modulus.powers(bases, digits)


def _open_folder(folder: Path) -> bool:
    """Make the folder or check it; False where it can't be made.

    Raises:
        KeyFileError: it is open to others, not ours, or no folder.
    """
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The mode holds whatever the umask, which can only take away.
        folder.mkdir(mode=0o700, exist_ok=True)
    try:
        found = folder.lstat()
    except OSError:
        return False
    _check_private(folder, found, stat.S_ISDIR, "delete its files, then `chmod 700` it")
    return True


def _check_private(
    path: Path, found: os.stat_result, is_kind: Callable[[int], bool], remedy: str
) -> None:
    """Refuse what is a link, of another kind, of another owner, or open to others.

    Raises:
        KeyFileError: the message says which.
    """
    if not is_kind(found.st_mode):
        raise KeyFileError(f"{path}: this is a link or of another kind; move it away")
    if found.st_uid != os.geteuid():
        raise KeyFileError(
            f"{path}: this belongs to user {found.st_uid}, not to us; choose another cache folder"
        )
    if found.st_mode & _OTHERS:
        raise KeyFileError(
            f"{path}: its mode is {stat.S_IMODE(found.st_mode):04o}, so others may have changed "
            f"what is in it; {remedy}"
        )


def _read_private(path: Path) -> bytes | None:
    """Return the content of a file that is only ours; None if there is none.

    Raises:
        KeyFileError: it is open to others, not ours, or no plain file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{path}: can't read it: {error.strerror}; delete the file") from None
    with os.fdopen(descriptor, "rb") as stream:
        # What was opened is what is checked.
        _check_private(path, os.fstat(descriptor), stat.S_ISREG, "delete the file")
        return stream.read()


def _write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all; a full disk costs only the file."""
    (tag,) = draw_bits(SystemBits(), _TAG_BITS)
    temporary = path.with_name(f".{tag:016x}{_SUFFIX}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
            stream.write(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _make_room(folder: Path, keep: Path) -> None:
    """Delete the oldest tables beyond `MAX_TABLES`, left-over temporary files included."""
    ages = {}
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            ages[path] = path.stat().st_mtime_ns
    ages.pop(keep, None)
    for path in sorted(ages, key=ages.__getitem__, reverse=True)[MAX_TABLES - 1 :]:
        with contextlib.suppress(OSError):
            path.unlink()
