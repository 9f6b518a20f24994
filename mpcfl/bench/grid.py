"""A grid file: which cells to run. One TOML document, checked as strictly as a job file.

Its lists are axes that are crossed with each other. A file of several products has a table
``[[part]]`` for each, which overrides the keys above it; what stands in two parts is run once
(with the settings of the first).
"""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mpcfl.bench.link_speed import bit_per_s
from mpcfl.bench.peers import PEERS
from mpcfl.bench.record import SHARED_MEMORY
from mpcfl.bench.summary import BASELINE
from mpcfl.config import MASKED_BACKENDS
from mpcfl.errors import ConfigError, PlanError
from mpcfl.secagg.neighbors import NeighborChoice, resolve_neighbors
from mpcfl.secagg.registry import backend_names

# By backend with a key, who may hold it. Peers have the roles of custody "clients" always.
CUSTODIES: Mapping[str, frozenset[str]] = {
    "paillier": frozenset({"holder", "clients", "threshold"}),
    "phe": frozenset({"holder", "clients"}),
}
# Peers of which the size of the key is an axis.
KEYED_PEERS = frozenset({"heu-zpaillier"})
_Custody = Literal["holder", "clients", "threshold"]
# A sparse graph in a grid is one that is enough for a third of the parties colluding.
_COLLUDING_SHARE = 3
_INT32_BITS = 32
_AXES = (
    "backends", "peers", "parties", "dims", "modulus_bits", "key_bits", "custody", "links",
    "round_trip_ms", "dtypes", "neighbors",
)  # fmt: skip

_Count = Annotated[int, Field(ge=1)]
_Milliseconds = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]


class Part(BaseModel):
    """One product: every list is crossed with every other one.

    Attributes:
        runs: process launches per point.
        values: timed sums per launch.
        warmups: untimed sums before them.
        timeout_s: after which a launch counts as failed.
        backends: of this package, or of a package that registers one.
        peers: other packages that add vectors, see `mpcfl.bench.peers`.
        key_bits: sizes of a Paillier modulus, where a backend or peer has one.
        custody: of a Paillier key: "holder"; "clients" (every party, and one more rank that adds
            without it); "threshold" (more than half of the parties decrypt). A backend is measured
            with those that it has.
        links: "shared-memory", or the rate of each host's link, such as "100mbit".
        round_trip_ms: added between any two hosts; shared memory has none.
        dtypes: of the vectors in and out; "auto" is int32 where modulus_bits allow it.
        neighbors: ranks that each rank shares masks with: "all", "auto" (as few as are enough
            for a third of the parties colluding and none lost), or a number.
        largest_dim: by backend or peer, where one is too slow for the longest vectors.
        largest_total: of dim x parties, where the machine is too small for both at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    runs: _Count = 5
    values: _Count = 3
    warmups: Annotated[int, Field(ge=0)] = 1
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0
    backends: list[str]
    peers: list[str] = []
    parties: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    dims: Annotated[list[_Count], Field(min_length=1)]
    modulus_bits: Annotated[list[Annotated[int, Field(ge=8, le=64)]], Field(min_length=1)] = [32]
    key_bits: Annotated[
        list[Annotated[int, Field(ge=2048, le=8192, multiple_of=256)]], Field(min_length=1)
    ] = [3072]
    custody: Annotated[list[_Custody], Field(min_length=1)] = ["holder"]
    links: Annotated[list[str], Field(min_length=1)] = [SHARED_MEMORY]
    round_trip_ms: Annotated[list[_Milliseconds], Field(min_length=1)] = [0.0]
    dtypes: Annotated[list[Literal["auto", "int32", "int64"]], Field(min_length=1)] = ["auto"]
    neighbors: Annotated[list[Literal["all", "auto"] | _Count], Field(min_length=1)] = ["all"]
    largest_dim: dict[str, _Count] = {}
    largest_total: _Count | None = None


class _Heading(BaseModel):
    """What stands once in a file, above its parts."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    comparable: bool = True
    part: Annotated[list[dict[str, Any]], Field(min_length=1)] = [{}]


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid file.

    Attributes:
        comparable: False labels all records as a trial that proves nothing.
        parts: one where the file has no ``[[part]]``.
        text: of the file, so that results can keep it; "" if there was none.
    """

    name: str
    comparable: bool
    parts: tuple[Part, ...]
    text: str = field(default="", repr=False)


def load_grid(path: Path) -> Grid:
    """Read a grid file.

    Raises:
        ConfigError: the file can't be read, or a key is unknown, missing or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: can't read the grid file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return replace(parse_grid(document, str(path)), text=text)


def parse_grid(document: Mapping[str, Any], source: str) -> Grid:
    """Check a parsed grid document; ``source`` is named in every error.

    Raises:
        ConfigError: names the file, the part, the key and the remedy.
    """
    heading = _validate(_HEADING, document, source)
    shared = {key: value for key, value in document.items() if key not in _Heading.model_fields}
    parts = []
    for number, changes in enumerate(heading.part, start=1):
        where = f"{source}: part {number}" if "part" in document else source
        _refuse_headings(changes, where)
        part = _validate(_PART, {**shared, **changes}, where)
        _check_names(part, where)
        _check_axes(part, where)
        _check_links(part, where)
        parts.append(part)
    return Grid(heading.name, heading.comparable, tuple(parts))


def assumed_colluding(parties: int) -> int:
    """Return the colluding parties that a grid's sparse graphs are enough for; none is lost."""
    return parties // _COLLUDING_SHARE


def resolve_choice(choice: NeighborChoice, parties: int) -> int | None:
    """Return the neighbors that an entry of ``neighbors`` means; None for all others.

    Raises:
        PlanError: so few are not safe.
    """
    return resolve_neighbors(choice, parties, assumed_colluding(parties), 0)


_M = TypeVar("_M")
_HEADING, _PART = TypeAdapter(_Heading), TypeAdapter(Part)


def _validate(adapter: TypeAdapter[_M], document: Any, source: str) -> _M:
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error.errors(include_url=False)[0])}") from None


def _refuse_headings(changes: Mapping[str, Any], source: str) -> None:
    for key in _Heading.model_fields:
        if key in changes:
            raise ConfigError(
                f"{source}: {key} holds for the whole grid; write it above the first [[part]]"
            )


def _check_names(part: Part, source: str) -> None:
    backends, peers = list(backend_names()), list(PEERS)
    for key, names, known, kind in (
        ("backends", part.backends, backends, "backend"),
        ("peers", part.peers, peers, "peer"),
        ("largest_dim", list(part.largest_dim), backends + peers, "backend or peer"),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{source}: {key} names {name!r}, which is no {kind}{_suggestion(name, known)}"
                )
    if not part.backends and not part.peers:
        raise ConfigError(f"{source}: backends and peers are both empty; name at least one")
    for name in part.backends:
        if not CUSTODIES.get(name, frozenset(part.custody)).intersection(part.custody):
            raise ConfigError(
                f"{source}: custody = {part.custody} does not apply to backend {name!r}; add "
                f'"holder", or give {name} a part of its own'
            )
    _check_neighbors_apply(part, source)


def _check_neighbors_apply(part: Part, source: str) -> None:
    if part.neighbors == ["all"]:
        return
    for name in (*part.backends, *part.peers):
        # The baseline stands beside every graph.
        if name not in MASKED_BACKENDS | {BASELINE}:
            raise ConfigError(
                f"{source}: neighbors = {part.neighbors} does not apply to backend {name!r}, which "
                f"shares no masks; give {name} a part of its own, or leave neighbors out"
            )


def _check_axes(part: Part, source: str) -> None:
    for key in _AXES:
        entries = getattr(part, key)
        if len(set(entries)) != len(entries):
            raise ConfigError(f"{source}: {key} has an entry twice; use runs to repeat a cell")
    if max(part.parties) > 1 << (min(part.modulus_bits) - 1):
        raise ConfigError(
            f"{source}: parties = {max(part.parties)} is too many for modulus_bits = "
            f"{min(part.modulus_bits)}; their sum would wrap"
        )
    if "int32" in part.dtypes and max(part.modulus_bits) > _INT32_BITS:
        raise ConfigError(
            f"{source}: dtypes names 'int32', which is too narrow for modulus_bits = "
            f"{max(part.modulus_bits)}; use 'auto' or 'int64'"
        )
    for choice, parties in itertools.product(part.neighbors, part.parties):
        try:
            resolve_choice(choice, parties)
        except PlanError as error:
            raise ConfigError(f"{source}: neighbors = {choice!r}: {error}") from None


def _check_links(part: Part, source: str) -> None:
    hosted = [link for link in part.links if link != SHARED_MEMORY]
    for link in hosted:
        try:
            bit_per_s(link)
        except ConfigError as error:
            raise ConfigError(f'{source}: links: {error}, or "{SHARED_MEMORY}"') from None
    if not hosted and any(part.round_trip_ms):
        raise ConfigError(
            f"{source}: round_trip_ms = {part.round_trip_ms} does not apply to shared memory; add "
            'a link such as "100mbit", or leave round_trip_ms out'
        )


def _explain(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = sorted({*Part.model_fields, "name", "comparable"})
        return f"unknown key {key}{_suggestion(key, known)}"
    if error["type"] == "missing":
        return f"{key} is missing; add it"
    message = error["msg"]
    return f"{key} = {error['input']!r} is not valid: {message[:1].lower()}{message[1:]}"


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
