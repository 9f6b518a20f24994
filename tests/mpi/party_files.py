"""Identities and party files for the parties of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpcfl.net.identity import Identity, public_key_text


def write_party_files(folder: Path, names: Sequence[str]) -> None:
    """Give every party an identity, and pin those of all others."""
    folder.mkdir()
    keys = {}
    for name in names:
        identity = Identity.new()
        identity.save(folder / f"{name}.key")
        keys[name] = public_key_text(identity.public_key)
    for name in names:
        peers = "".join(f'{peer} = "{key}"\n' for peer, key in keys.items() if peer != name)
        file = folder / f"{name}.toml"
        file.touch(mode=0o600)
        file.write_text(f'name = "{name}"\nidentity = "{name}.key"\n\n[peers]\n{peers}')
