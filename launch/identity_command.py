"""`mpcfl identity`: a party's key pair on its disk, and the public key that the others pin."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mpcfl.net.identity import Identity, public_key_text


def new_identity(file: Path, *, as_json: bool) -> None:
    """Make an identity and say what to do with it.

    Raises:
        KeyFileError: the file exists already, or the disk refuses.
    """
    identity = Identity.new()
    identity.save(file)
    if as_json:
        _print_document(file, identity)
        return
    sys.stdout.write(
        f"{file}: a new identity; keep it to yourself, and keep a copy\n"
        f"public key: {public_key_text(identity.public_key)}\n"
        "Next: give the public key to the other parties in person, by phone or by another way "
        "that nobody can change. Each writes it into the [peers] of its party file.\n"
    )


def show_identity(file: Path, *, as_json: bool) -> None:
    """Print the public key of an identity.

    Raises:
        KeyFileError: the file can't be read, is no identity, or others could read it.
    """
    identity = Identity.load(file)
    if as_json:
        _print_document(file, identity)
        return
    sys.stdout.write(public_key_text(identity.public_key) + "\n")


def _print_document(file: Path, identity: Identity) -> None:
    public_key = public_key_text(identity.public_key)
    document = {"schema": 1, "file": str(file), "public_key": public_key}
    sys.stdout.write(json.dumps(document) + "\n")
