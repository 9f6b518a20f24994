"""`mpcfl keygen`: the ceremony that deals a threshold key, one sealed share file per party."""

from __future__ import annotations

import getpass
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcfl.errors import ConfigError
from mpcfl.secagg.ceremony import (
    Ceremony,
    check_count,
    check_passphrase,
    default_names,
    hold_ceremony,
    read_passphrases,
)

_TRUST = (
    "This process dealt the key: whoever controlled this machine meanwhile can decrypt everything "
    "under it. The parties trust that nobody did."
)

_TRIES = 3


@dataclass(frozen=True, slots=True)
class KeygenOptions:
    """What `mpcfl keygen` is asked for.

    Attributes:
        out: folder for the files.
        parties: number of data parties.
        threshold: how many of them it takes to decrypt.
        key_bits: size of the modulus.
        names: names of the parties, separated by commas, as in the job.
        passphrases: file with a passphrase per line; asked for on the terminal by default.
        as_json: print one JSON document instead of text.
    """

    out: Path
    parties: int
    threshold: int
    key_bits: int
    names: str | None = None
    passphrases: Path | None = None
    as_json: bool = False


def run_keygen(options: KeygenOptions) -> None:
    """Hold the ceremony and say what to do with the files.

    Raises:
        ConfigError: an option or a passphrase is refused, or there is no terminal to ask on.
        KeyFileError: a file exists already, or can't be read or written; no file is left.
    """
    names = _names(options)
    ceremony = Ceremony(options.out, names, options.threshold, options.key_bits)
    if options.passphrases is None:
        passphrases = [_ask(name) for name in names]
    else:
        passphrases = read_passphrases(options.passphrases, ceremony)
    sys.stderr.write(
        f"making a key of {options.key_bits} bits: this takes seconds, minutes above 4096 bits\n"
    )
    key = hold_ceremony(ceremony, passphrases)
    if options.as_json:
        document = _document(ceremony, key.public_key.fingerprint, key.fingerprint)
        sys.stdout.write(json.dumps(document) + "\n")
        return
    sys.stdout.write("\n".join(_lines(ceremony, key.fingerprint, options.passphrases)) + "\n")


def _names(options: KeygenOptions) -> tuple[str, ...]:
    check_count(options.parties)
    if options.names is None:
        return default_names(options.parties)
    names = tuple(name.strip() for name in options.names.split(","))
    if len(names) != options.parties:
        raise ConfigError(
            f"--names lists {len(names)} parties, --parties says {options.parties}; make them agree"
        )
    return names


def _ask(party: str) -> str:
    """Ask a party for its passphrase, twice and without echo, until it is good.

    Raises:
        ConfigError: there is no terminal, or no good passphrase after some tries.
    """
    for _ in range(_TRIES):
        first = _read_hidden(f"passphrase of {party}: ")
        try:
            check_passphrase(party, first)
        except ConfigError as error:
            sys.stderr.write(f"{error}\n")
            continue
        if first == _read_hidden(f"passphrase of {party} again: "):
            return first
        sys.stderr.write("the two differ; type it again\n")
    raise ConfigError(f"{party} gave no passphrase in {_TRIES} tries; start the ceremony again")


def _read_hidden(prompt: str) -> str:
    try:
        with warnings.catch_warnings():
            # Without a terminal, getpass warns and shows what is typed.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(prompt)
    except (getpass.GetPassWarning, EOFError):
        raise ConfigError(
            "there is no terminal to ask for passphrases on; start the command on one, or use "
            "--passphrases FILE"
        ) from None


def _document(ceremony: Ceremony, public_key: str, key: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "public": str(ceremony.public_path),
        "shares": [
            {"party": name, "rank": rank, "index": rank + 1, "file": str(path)}
            for rank, (name, path) in enumerate(
                zip(ceremony.parties, ceremony.share_paths, strict=True)
            )
        ],
        "threshold": ceremony.threshold,
        "parties": len(ceremony.parties),
        "key_bits": ceremony.key_bits,
        "public_key_fingerprint": public_key,
        "key_fingerprint": key,
        "trust": _TRUST,
    }


def _lines(ceremony: Ceremony, fingerprint: str, leftover: Path | None) -> list[str]:
    """Return what a person wants to know, in words."""
    n_parties = len(ceremony.parties)
    rows = zip(range(1, n_parties + 1), ceremony.parties, ceremony.share_paths, strict=True)
    clean_up = "the shares" if leftover is None else f"the shares and {leftover}"
    return [
        *(f"{path}: share {index} of {n_parties}, for {name}" for index, name, path in rows),
        f"{ceremony.public_path}: the public part, for everybody",
        f"fingerprint: {fingerprint}",
        f"Any {ceremony.threshold} of the {n_parties} parties decrypt together; fewer can't.",
        "Next: hand each party its share and the public part, let all compare the fingerprint, "
        f"then delete {clean_up} on this machine.",
        _TRUST,
    ]
