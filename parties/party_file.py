"""The party file: who this party is, and by which identities it knows the others.

One TOML document per party, its own and not part of the job:

    name = "north"
    identity = "north.key"

    [peers]
    south = "ed25519:..."
    east = "ed25519:..."

A party with real data keeps a ledger over all of its runs, and may say where its data lie:

    data = "/srv/patients.csv"

    [ledger]
    folder = "ledgers"
    data_set = "admissions-2025"
    epsilon = 10.0
    delta = 1e-5

Nothing in it is secret, but whoever can change it decides whom this party trusts: a file that
others may write is refused. Assumes: its owner compared the public keys with their owners.
Unknown keys and wrong values are errors that name the file and the key.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from mpcfl.config import Name
from mpcfl.dp.charge import Budget
from mpcfl.errors import ConfigError
from mpcfl.net.identity import read_public_key
from mpcfl.net.private_file import read_trusted_file


def _file_name(text: str) -> str:
    # What is pasted here by mistake may be the key itself, and errors show file names.
    if not text.strip() or not text.isprintable():
        raise ValueError("write the name of the file that mpcfl identity new made")
    return text


def _key_text(text: str) -> str:
    read_public_key(text)
    return text


class _Ledger(BaseModel):
    """The table [ledger]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    folder: Annotated[str, AfterValidator(_file_name)]
    data_set: Name
    epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]


class _Document(BaseModel):
    """What the file says, before it is tied to its place."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    name: Name
    identity: Annotated[str, AfterValidator(_file_name)]
    peers: dict[Name, Annotated[str, AfterValidator(_key_text)]]
    data: Annotated[str, AfterValidator(_file_name)] | None = None
    ledger: _Ledger | None = None


@dataclass(frozen=True, slots=True)
class OwnLedger:
    """Where a party counts what it has spent on one data set, over all of its runs.

    Attributes:
        folder: of such ledgers.
        data_set: its name; other parties learn it.
        budget: what may be spent on it in total.
    """

    folder: Path
    data_set: str
    budget: Budget


@dataclass(frozen=True, slots=True)
class PartyFile:
    """One party's name, and whom it knows.

    Attributes:
        name: of this party, as in the job.
        identity: file of its identity.
        peers: public keys of other parties by name, 32 bytes each.
        source: the file itself, for errors.
        data: where its data lie; None leaves it to the task.
        ledger: over all of its runs; None where it keeps none.
    """

    name: str
    identity: Path
    peers: Mapping[str, bytes]
    source: str
    data: Path | None = None
    ledger: OwnLedger | None = None

    def pins(self, names: Sequence[str]) -> dict[int, bytes]:
        """Return the identity of every other party of a job, by rank.

        An entry for this party itself is passed on too, to be held against its identity; entries
        for parties that are not in the job are left out.

        Args:
            names: of all parties of the job, in order of rank.

        Raises:
            ConfigError: this party is not one of them, or one of them is not in ``[peers]``.
        """
        if self.name not in names:
            raise ConfigError(
                f"{self.source}: this party is {self.name}, and the job's parties are "
                f"{', '.join(names)}; mend name, or take the job's own file"
            )
        missing = [name for name in names if name != self.name and name not in self.peers]
        if missing:
            raise ConfigError(
                f"{self.source}: peers has no public key of {', '.join(missing)}; ask for it "
                "(mpcfl identity show) and add it"
            )
        return {rank: self.peers[name] for rank, name in enumerate(names) if name in self.peers}


def load_party_file(path: Path) -> PartyFile:
    """Read a party file; the identity itself is not read.

    Raises:
        KeyFileError: it can't be read, or others than its owner may change it.
        ConfigError: a key is unknown, missing or wrong.
    """
    content = read_trusted_file(path, "party file")
    try:
        raw = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    try:
        document = _Document.model_validate(raw)
    except ValidationError as error:
        # A misspelt key is also a missing one; what stands in the file is what to mend.
        errors = error.errors(include_url=False, include_input=False)
        first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(f"{path}: {_explain(first)}") from None
    peers = {name: read_public_key(text) for name, text in document.peers.items()}
    _refuse_repetition(path, peers)
    home = path.absolute().parent
    return PartyFile(
        document.name,
        path.parent / document.identity,
        peers,
        str(path),
        None if document.data is None else home / document.data,
        None if document.ledger is None else _own_ledger(document.ledger, home),
    )


def _own_ledger(table: _Ledger, home: Path) -> OwnLedger:
    return OwnLedger(home / table.folder, table.data_set, Budget(table.epsilon, table.delta))


def _refuse_repetition(path: Path, peers: Mapping[str, bytes]) -> None:
    owners: dict[bytes, str] = {}
    for name, key in peers.items():
        other = owners.setdefault(key, name)
        if other != name:
            raise ConfigError(
                f"{path}: peers has one public key for {other} and {name}; each party has its own"
            )


def _explain(error: ErrorDetails) -> str:
    """Return what is wrong in one sentence, without the value."""
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        table = _Ledger if error["loc"][0] == "ledger" else _Document
        known = sorted(table.model_fields)
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
        return f"unknown key {key}; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} is not valid: {message[:1].lower()}{message[1:]}"
