"""The job file: one TOML document, public and equal at all parties, as frozen models.

Unknown keys, wrong types and values out of range are errors that name the file and the
key. `Job.digest()` is what the parties compare before round 0.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mpcfl.errors import ConfigError


class Unit(StrEnum):
    """Whose presence the guarantee hides."""

    RECORD = "record"
    PARTY = "party"
    NONE = "none"


class Optimizer(StrEnum):
    """How the server step turns the opened mean into a new model."""

    FEDAVG = "fedavg"
    FEDADAM = "fedadam"


class Custody(StrEnum):
    """Who holds the Paillier private key."""

    HOLDER = "holder"
    CLIENTS = "clients"


# TOML writes 1 and 1.0 apart, people do not; everything else is strict.
Real = Annotated[float, Field(strict=False, allow_inf_nan=False)]
PositiveReal = Annotated[Real, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]
# TOML has no enums, so a closed set is written as its string.
UnitName = Annotated[Unit, Field(strict=False)]
OptimizerName = Annotated[Optimizer, Field(strict=False)]
CustodyName = Annotated[Custody, Field(strict=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_enum_values=False)


class PartiesTable(_Table):
    """`[parties]`: how many hold data, and what the plan assumes of them."""

    count: PositiveInt
    colluding: PositiveInt = 1
    max_dropout: Annotated[int, Field(ge=0)] = 0
    names: tuple[Name, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.names and len(self.names) != self.count:
            raise ValueError(f"names lists {len(self.names)} parties, count says {self.count}")
        if len(set(self.names)) != len(self.names):
            raise ValueError("names has a name twice")
        return self

    def all_names(self) -> tuple[str, ...]:
        """Return a name for every data party, made up where the job gives none."""
        return self.names or tuple(f"party-{rank}" for rank in range(self.count))


class PrivacyTable(_Table):
    """`[privacy]`: the guarantee, and what its noise is sized by."""

    unit: UnitName
    placement: Literal["distributed"] = "distributed"
    epsilon: PositiveReal | None = None
    delta: Annotated[Real, Field(gt=0, lt=1)] = 1e-5
    clip_norm: PositiveReal = 1.0
    sample_rate: Annotated[Real, Field(gt=0, le=1)] = 1.0
    records: PositiveInt | None = None
    mechanism: Literal["discrete-gaussian"] = "discrete-gaussian"
    accountant: Literal["pld", "rdp"] = "pld"
    noise_multiplier: PositiveReal | None = None
    spare_attempts: Annotated[int, Field(ge=0)] = 0
    max_parties_per_person: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.unit is not Unit.NONE and self.epsilon is None:
            raise ValueError('epsilon is missing; set it, or set unit = "none" for no privacy')
        if self.unit is Unit.RECORD and self.records is None:
            raise ValueError(
                "records is missing; at record level set it to the public total of training "
                "records at all parties"
            )
        if self.unit is Unit.PARTY and self.sample_rate != 1.0:
            raise ValueError(
                "sample_rate must be 1 at party level: the participants are known, so sampling "
                "parties amplifies nothing"
            )
        return self


class TrainingTable(_Table):
    """`[training]`: what a party does before it shares anything."""

    rounds: PositiveInt
    local_steps: PositiveInt = 1
    batch_size: PositiveInt = 32
    learning_rate: PositiveReal = 0.1
    microbatch: PositiveInt = 256
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class ServerTable(_Table):
    """`[server]`: the step that every party takes alike with the opened mean."""

    optimizer: OptimizerName = Optimizer.FEDAVG
    learning_rate: PositiveReal = 1.0
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.99
    adaptivity: PositiveReal = 1e-3


class AggregationTable(_Table):
    """`[aggregation]`: how the sum is protected."""

    backend: str
    modulus_bits: Annotated[int, Field(ge=8, le=64)] = 32
    key_bits: Annotated[int, Field(ge=2048, le=8192, multiple_of=256)] = 3072
    custody: CustodyName = Custody.HOLDER
    deadline_s: PositiveReal = 120.0


class Job(_Table):
    """One run, as every party sees it. Public."""

    task: Annotated[str, Field(min_length=1)]
    parties: PartiesTable
    privacy: PrivacyTable
    training: TrainingTable
    server: ServerTable = ServerTable()
    aggregation: AggregationTable

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.privacy.unit is Unit.RECORD and self.training.local_steps != 1:
            raise ValueError(
                "training.local_steps must be 1 at record level: each record may touch only one "
                "clipped gradient per round"
            )
        if self.privacy.unit is not Unit.NONE and self.aggregation.modulus_bits < 16:
            raise ValueError('aggregation.modulus_bits below 16 needs privacy.unit = "none"')
        return self

    def digest(self) -> bytes:
        """Return the SHA-256 digest of the whole job, defaults included."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    @property
    def needs_aggregator(self) -> bool:
        """True if one more rank, without data and without key, does the sum."""
        return self.aggregation.backend == "phe" and self.aggregation.custody is Custody.CLIENTS

    @property
    def n_ranks(self) -> int:
        """Number of MPI ranks: the data parties and, where custody needs one, an aggregator."""
        return self.parties.count + (1 if self.needs_aggregator else 0)


def load_job(path: Path, overrides: Sequence[str] = (), parties: int | None = None) -> Job:
    """Read a job file, apply ``table.key=TOML-value`` overrides, and check the result.

    Args:
        path: the TOML file.
        overrides: as given to ``--set``; a value that is no TOML is taken as a string.
        parties: number of data parties (``-n``); names are cut, or made up, to fit.

    Raises:
        ConfigError: the file can't be read, or a key is unknown, missing or out of range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't read the job file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    for override in overrides:
        _apply_override(document, override)
    if parties is not None:
        _set_party_count(document, parties)
    return parse_job(document, str(path))


def parse_job(document: Mapping[str, Any], source: str) -> Job:
    """Check a parsed job document; ``source`` is named in every error."""
    try:
        return Job.model_validate(document)
    except ValidationError as error:
        # A misspelt key is also a missing one; what stands in the file is what to mend.
        errors = error.errors(include_url=False)
        first = min(errors, key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(f"{source}: {_explain(first)}") from None


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override!r}: write table.key=value, as privacy.epsilon=2.0")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = document
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a table")
    table[names[-1]] = value


def _set_party_count(document: dict[str, Any], count: int) -> None:
    table = document.setdefault("parties", {})
    if not isinstance(table, dict):
        raise ConfigError("parties must be a table, written [parties]")
    names = table.get("names")
    if isinstance(names, list):
        made_up = (f"party-{rank}" for rank in range(len(names), count))
        table["names"] = [*names[:count], *made_up]
    table["count"] = count


def _explain(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"unknown key {key}{_suggestion(error['loc'])}"
    if kind == "missing":
        return f"{key} is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {error['input']!r} is not valid: {message[:1].lower()}{message[1:]}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = Job
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known keys are {', '.join(known)}"
