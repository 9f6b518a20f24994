"""Who this party is, and by which keys it knows the others: from its party file, or for one run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpcfl.errors import ConfigError
from mpcfl.net.identity import Identity
from mpcfl.parties.party_file import PartyFile, load_party_file


def read_credentials(
    options: Namespace, names: Sequence[str], seat: int
) -> tuple[Identity, Mapping[int, bytes] | None]:
    """Return this party's identity, and the pinned ones of the others by seat.

    Args:
        options: `party`, one party's own file; or `party_files`, a folder with NAME.toml.
        names: of all parties, by seat.
        seat: of this one.

    Returns:
        A throw-away identity and no pins where no party file was given.

    Raises:
        ConfigError: both were given, or the file is wrong, of another party, or lacks a pin.
        KeyFileError: the identity can't be read.
    """
    own = read_own_file(options, names[seat])
    return (Identity.new(), None) if own is None else (Identity.load(own.identity), own.pins(names))


def read_own_file(options: Namespace, name: str) -> PartyFile | None:
    """Return the file of the party of this name; None where no party file was given.

    Raises:
        ConfigError: two were given, or it is wrong, or another party's.
        KeyFileError: it can't be read, or others than its owner may change it.
    """
    if options.party is not None and options.party_files is not None:
        raise ConfigError("--party FILE and --party-files DIR don't go together; give one")
    path: Path | None = options.party
    if options.party_files is not None:
        path = options.party_files / f"{name}.toml"
    if path is None:
        return None
    own = load_party_file(path)
    if own.name != name:
        raise ConfigError(
            f"{path}: this file is {own.name}'s, and this rank is {name}; give each rank its own "
            "party file"
        )
    return own
