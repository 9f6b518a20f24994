"""A grid file: which cells to run. One TOML document, checked as strictly as a job file.

A cell is one process launch: one point of backends x parties x dims x bits x neighbors, one
run of it.
Cells come in random order, so that a machine that warms up or slows down during an hour
does not favor the backend that stands first in the file.
"""

from __future__ import annotations

import difflib
import itertools
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from mpcfl.bench.record import Parameters
from mpcfl.bench.summary import BASELINE
from mpcfl.config import MASKED_BACKENDS
from mpcfl.errors import ConfigError, PlanError
from mpcfl.secagg.neighbors import NeighborChoice, resolve_neighbors
from mpcfl.secagg.registry import backend_names

# Where every rank brings data; "clients" needs one that has none.
_Custody = Literal["holder", "threshold"]
_CUSTODIES: Mapping[str, frozenset[str]] = {
    "paillier": frozenset({"holder", "threshold"}),
    "phe": frozenset({"holder"}),
}
# A sparse graph in a grid is one that is enough for a third of the parties colluding.
_COLLUDING_SHARE = 3
_INT32_BITS = 32
_AXES = (
    "backends", "parties", "dims", "modulus_bits", "key_bits", "custody", "links", "dtypes",
    "neighbors",
)  # fmt: skip

_Count = Annotated[int, Field(ge=1)]


class Grid(BaseModel):
    """One grid; every list is crossed with every other one.

    Attributes:
        comparable: False labels all records as a trial that proves nothing.
        runs: process launches per point.
        values: timed sums per launch.
        warmups: untimed sums before them.
        custody: of a Paillier key: "holder", or "threshold" (more than half of the parties
            decrypt), which only `paillier` has; `phe` is then measured with the others.
        timeout_s: after which a launch counts as failed.
        dtypes: of the vectors in and out; "auto" is int32 where modulus_bits allow it.
        neighbors: ranks that each rank shares masks with: "all", "auto" (as few as are enough
            for a third of the parties colluding and none lost), or a number.
        largest_dim: by backend, where one is too slow for the longest vectors.
        largest_total: of dim x parties, where the machine is too small for both at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    comparable: bool = True
    runs: _Count = 5
    values: _Count = 3
    warmups: Annotated[int, Field(ge=0)] = 1
    timeout_s: Annotated[float, Field(gt=0, strict=False, allow_inf_nan=False)] = 300.0
    backends: Annotated[list[str], Field(min_length=1)]
    parties: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    dims: Annotated[list[_Count], Field(min_length=1)]
    modulus_bits: Annotated[list[Annotated[int, Field(ge=8, le=64)]], Field(min_length=1)] = [32]
    key_bits: Annotated[
        list[Annotated[int, Field(ge=2048, le=8192, multiple_of=256)]], Field(min_length=1)
    ] = [3072]
    custody: Annotated[list[_Custody], Field(min_length=1)] = ["holder"]
    links: Annotated[list[Literal["shared-memory"]], Field(min_length=1)] = ["shared-memory"]
    dtypes: Annotated[list[Literal["auto", "int32", "int64"]], Field(min_length=1)] = ["auto"]
    neighbors: Annotated[list[Literal["all", "auto"] | _Count], Field(min_length=1)] = ["all"]
    largest_dim: dict[str, _Count] = {}
    largest_total: _Count | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One process launch: what to run and how often."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    grid: str
    parameters: Parameters
    run: int
    values: int
    warmups: int
    timeout_s: float
    comparable: bool

    @property
    def n_ranks(self) -> int:
        """MPI ranks to start; with the custodies of a grid every rank brings data."""
        return self.parameters.parties

    def to_json(self) -> str:
        """Return the cell as JSON, for the ranks to read."""
        return _CELL.dump_json(self).decode()


_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)


def parse_cell(text: str) -> Cell:
    """Read what `Cell.to_json` wrote."""
    return _CELL.validate_json(text)


def load_grid(path: Path) -> Grid:
    """Read a grid file.

    Raises:
        ConfigError: the file can't be read, or a key is unknown, missing or out of range.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't read the grid file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return parse_grid(document, str(path))


def parse_grid(document: Mapping[str, Any], source: str) -> Grid:
    """Check a parsed grid document; ``source`` is named in every error.

    Raises:
        ConfigError: names the file, the key and the remedy.
    """
    try:
        grid = Grid.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error.errors(include_url=False)[0])}") from None
    _check_names(grid, source)
    _check_axes(grid, source)
    return grid


def make_cells(grid: Grid) -> list[Cell]:
    """Return every launch of the grid, in random order.

    Raises:
        ConfigError: the caps leave nothing to run.
    """
    cells = [
        Cell(
            grid=grid.name,
            parameters=parameters,
            run=run,
            values=grid.values,
            warmups=grid.warmups,
            timeout_s=grid.timeout_s,
            comparable=grid.comparable,
        )
        for parameters in _points(grid)
        for run in range(grid.runs)
    ]
    if not cells:
        raise ConfigError(
            f"grid {grid.name}: largest_dim and largest_total leave no cell; raise them or lower "
            "dims"
        )
    secrets.SystemRandom().shuffle(cells)
    return cells


def assumed_colluding(parties: int) -> int:
    """Return the colluding parties that a grid's sparse graphs are enough for; none is lost."""
    return parties // _COLLUDING_SHARE


def _check_names(grid: Grid, source: str) -> None:
    known = backend_names()
    for key, names in (("backends", grid.backends), ("largest_dim", list(grid.largest_dim))):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"{source}: {key} names {name!r}, which is no backend"
                    f"{_suggestion(name, list(known))}"
                )
    for name in grid.backends:
        if not _CUSTODIES.get(name, frozenset(grid.custody)).intersection(grid.custody):
            raise ConfigError(
                f"{source}: custody = {grid.custody} does not apply to backend {name!r}; add "
                f'"holder", or give {name} a grid of its own'
            )
    if grid.neighbors == ["all"]:
        return
    for name in grid.backends:
        # The baseline stands beside every graph.
        if name not in MASKED_BACKENDS | {BASELINE}:
            raise ConfigError(
                f"{source}: neighbors = {grid.neighbors} does not apply to backend {name!r}, which "
                f"shares no masks; give {name} a grid of its own, or leave neighbors out"
            )


def _check_axes(grid: Grid, source: str) -> None:
    for key in _AXES:
        entries = getattr(grid, key)
        if len(set(entries)) != len(entries):
            raise ConfigError(f"{source}: {key} has an entry twice; use runs to repeat a cell")
    if max(grid.parties) > 1 << (min(grid.modulus_bits) - 1):
        raise ConfigError(
            f"{source}: parties = {max(grid.parties)} is too many for modulus_bits = "
            f"{min(grid.modulus_bits)}; their sum would wrap"
        )
    if "int32" in grid.dtypes and max(grid.modulus_bits) > _INT32_BITS:
        raise ConfigError(
            f"{source}: dtypes names 'int32', which is too narrow for modulus_bits = "
            f"{max(grid.modulus_bits)}; use 'auto' or 'int64'"
        )
    for choice, parties in itertools.product(grid.neighbors, grid.parties):
        try:
            _resolve(choice, parties)
        except PlanError as error:
            raise ConfigError(f"{source}: neighbors = {choice!r}: {error}") from None


def _points(grid: Grid) -> list[Parameters]:
    """Return the grid's points, each once: where few parties need all others, auto is all."""
    axes = (grid.backends, grid.parties, grid.dims, grid.modulus_bits, grid.links, grid.dtypes)
    points = [
        Parameters(
            *(backend, parties, dim, modulus_bits, key_bits, custody, link),
            dtype=_dtype(dtype, modulus_bits),
            neighbors=neighbors,
            colluding=colluding,
        )
        for backend, parties, dim, modulus_bits, link, dtype in itertools.product(*axes)
        if dim <= grid.largest_dim.get(backend, dim)
        and (grid.largest_total is None or dim * parties <= grid.largest_total)
        for key_bits, custody in _keys(grid, backend)
        for neighbors, colluding in _graphs(grid, backend, parties)
    ]
    return list(dict.fromkeys(points))


def _keys(grid: Grid, backend: str) -> Iterator[tuple[int | None, str | None]]:
    # Only backends with a key vary with its size and its custody.
    if backend not in _CUSTODIES:
        return iter([(None, None)])
    custody = [name for name in grid.custody if name in _CUSTODIES[backend]]
    return itertools.product(grid.key_bits, custody)


def _graphs(grid: Grid, backend: str, parties: int) -> Iterator[tuple[int | None, int | None]]:
    """Yield neighbors, and the colluding parties that they are enough for."""
    if backend not in MASKED_BACKENDS:
        yield None, None
        return
    for choice in grid.neighbors:
        neighbors = _resolve(choice, parties)
        yield neighbors, None if neighbors is None else assumed_colluding(parties)


def _resolve(choice: NeighborChoice, parties: int) -> int | None:
    return resolve_neighbors(choice, parties, assumed_colluding(parties), 0)


def _dtype(choice: str, modulus_bits: int) -> str:
    if choice != "auto":
        return choice
    return "int32" if modulus_bits <= _INT32_BITS else "int64"


def _explain(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(key, sorted(Grid.model_fields))}"
    if error["type"] == "missing":
        return f"{key} is missing; add it"
    message = error["msg"]
    return f"{key} = {error['input']!r} is not valid: {message[:1].lower()}{message[1:]}"


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
