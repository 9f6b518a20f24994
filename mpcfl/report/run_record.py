"""`run.json`: what one training run did, spent and measured, as frozen data.

The keys are a stable interface. Everything here is public to all parties: it holds no
value of a single party but wall-clock seconds and bytes of the whole round.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mpcfl.errors import ConfigError
from mpcfl.report.atomic import write_atomically as write_atomically

# History: /1 the first.
SCHEMA = "mpcfl.run/1"
_EXACT_KEYS = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class PrivacyRecord:
    """What the run spent, by who looks; null (None) is "no guarantee", never zero.

    Attributes:
        unit: ``record``, ``party`` or ``none``.
        epsilon: spent at the end, in the planned coalition's view; the maximum over the parties.
        epsilon_planned: the budget.
        epsilon_single: spent in the view of any single party.
        epsilon_outsider: spent in the view of somebody who sees the opened sums only.
        epsilon_own_share: what a party's own noise alone gives if the aggregation fails.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    unit: str
    epsilon: float | None
    epsilon_planned: float | None
    epsilon_single: float | None
    epsilon_outsider: float | None
    epsilon_own_share: float | None
    delta: float | None
    mechanism: str | None
    accountant: str | None
    neighboring_relation: str | None


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One attempt at one round.

    A run that was killed between a round and its record leaves a round whose seconds are empty
    and whose bytes are 0: nobody counted them.

    Attributes:
        attempt: 0, or how many times the round had to be tried again after a stop; the ledgers
            count, so it is 0 where there is no privacy.
        parties: names of the live parties.
        epsilon: spent so far, this round included.
        accuracy: on public test data.
        loss: on public test data.
        seconds: wall clock by stage, of the party that wrote the record.
        bytes_sent: payload bytes at the transport, all ranks together.
        bytes_received: the same, received.
        peak_rss_bytes: the largest resident set so far of the party that wrote the record.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    round: int
    attempt: int
    parties: tuple[str, ...]
    epsilon: float | None
    accuracy: float | None
    loss: float | None
    seconds: Mapping[str, float]
    bytes_sent: int
    bytes_received: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What is trained, and so travels in the sum; everything else is public and stays.

    Attributes:
        trained: number of values of each trained parameter, by name, in the order of the sum.
        frozen: values of the model that are not trained.
        about: what the task says of the model.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    trained: Mapping[str, int]
    frozen: int
    about: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, from its job to the hash of its model.

    Attributes:
        job: the job as every party saw it, defaults included.
        parties: number of data parties.
        metrics: ``accuracy`` and others, of the last model on public test data.
        stopped_early: None, or why the run ended before its last round.
        plan: the noise plan's fields; empty without privacy.
        epsilon_by_party: what each party's ledger says, by name, after the last round.
        model: what of the model is trained; None in records of earlier versions.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _EXACT_KEYS

    schema: str
    job: Mapping[str, Any]
    backend: str
    parties: int
    dim: int
    privacy: PrivacyRecord
    metrics: Mapping[str, float | None]
    rounds: tuple[RoundRecord, ...]
    model_sha256: str
    versions: Mapping[str, str]
    stopped_early: str | None
    plan: Mapping[str, Any]
    epsilon_by_party: Mapping[str, float] = field(default_factory=dict)
    model: ModelRecord | None = None

    def to_json(self) -> str:
        """Return the record as JSON; infinite and undefined numbers become null."""
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    def save(self, path: Path) -> None:
        """Write the record, or leave the old file as it was."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            ConfigError: the file can't be read, has another schema, or other keys.
        """
        text = _read(path)
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: not a JSON file: {error}") from None
        found = document.get("schema") if isinstance(document, dict) else None
        if found != SCHEMA:
            raise ConfigError(
                f"{path}: schema {found!r} is not known, this version reads {SCHEMA!r}; "
                "read it with the version of mpcfl that wrote it"
            )
        try:
            record: Self = _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{path}: {key}: {first['msg']}; remake the file") from None
        return record


def is_complete(path: Path) -> bool:
    """Tell whether a run's record is that of a run that came to its end."""
    try:
        return bool(RunRecord.load(path).model_sha256)
    except ConfigError:
        return False


def append_round(path: Path, record: RoundRecord) -> None:
    """Add a round to the file of rounds; it is on the disk when this returns."""
    with path.open("ab") as stream:
        stream.write(_ROUND_ADAPTER.dump_json(record) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def replace_rounds(path: Path, records: Iterable[RoundRecord]) -> None:
    """Write the file of rounds anew, or leave the old file as it was."""
    write_atomically(path, round_lines(records))


def round_lines(records: Iterable[RoundRecord]) -> str:
    """Return rounds as the file of rounds holds them."""
    return "".join(_ROUND_ADAPTER.dump_json(record).decode() + "\n" for record in records)


def read_rounds(path: Path, last: int) -> list[RoundRecord]:
    """Read the rounds up to ``last``, from 1; a missing file is none, a torn last line is not read.

    Raises:
        ConfigError: the file can't be read, or holds something else.
    """
    text = _read(path) if path.exists() else ""
    records = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            record: RoundRecord = _ROUND_ADAPTER.validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(f"{path}: line {number}: {first['msg']}; remove the file") from None
        if record.round <= last:
            records.append(record)
    return records


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't read the run record: {error.strerror}") from None


_ADAPTER: TypeAdapter[Any] = TypeAdapter(RunRecord)
_ROUND_ADAPTER: TypeAdapter[Any] = TypeAdapter(RoundRecord)
