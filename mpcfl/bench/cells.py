"""From a grid to its cells: which processes to launch, and what each of them measures.

A cell is one launch of fresh processes: one point of a part's axes, one run of it. Cells come in
random order, so that a machine that warms up or slows down during an hour does not favor the
backend that stands first in the file.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from mpcfl.bench.grid import CUSTODIES, KEYED_PEERS, Grid, Part, assumed_colluding, resolve_choice
from mpcfl.bench.record import SHARED_MEMORY, Parameters, Record
from mpcfl.config import MASKED_BACKENDS, Custody
from mpcfl.errors import ConfigError

_INT32_BITS = 32


@dataclass(frozen=True, slots=True)
class Cell:
    """One process launch: what to run and how often.

    Attributes:
        interface: of every host, whose bytes the kernel counts; "" in shared memory. It,
            ``addresses`` and ``delay`` are filled in by the launcher, which makes the hosts.
        addresses: of the hosts, by rank.
        delay: what adds the round trip, see `record.MeasuredLink`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    grid: str
    parameters: Parameters
    run: int
    values: int
    warmups: int
    timeout_s: float
    comparable: bool
    interface: str = ""
    addresses: tuple[str, ...] = ()
    delay: str = ""

    @property
    def n_ranks(self) -> int:
        """MPI ranks to start: the parties, and where there is one, an aggregator without data."""
        return self.parameters.parties + (self.parameters.custody == Custody.CLIENTS)

    @property
    def needs_hosts(self) -> bool:
        """True if every rank needs a host of its own."""
        return self.parameters.link != SHARED_MEMORY

    def to_json(self) -> str:
        """Return the cell as JSON, for the ranks to read."""
        return _CELL.dump_json(self).decode()


_CELL: TypeAdapter[Cell] = TypeAdapter(Cell)


def parse_cell(text: str) -> Cell:
    """Read what `Cell.to_json` wrote."""
    return _CELL.validate_json(text)


def make_cells(grid: Grid) -> list[Cell]:
    """Return every launch of the grid, in random order.

    Raises:
        ConfigError: the caps of a part leave nothing to run.
    """
    parts: dict[Parameters, Part] = {}
    for part in grid.parts:
        found = points(part)
        if not found:
            raise ConfigError(
                f"grid {grid.name}: largest_dim and largest_total leave no cell; raise them or "
                "lower dims"
            )
        for parameters in found:
            parts.setdefault(parameters, part)
    cells = [
        Cell(
            grid=grid.name,
            parameters=parameters,
            run=run,
            values=part.values,
            warmups=part.warmups,
            timeout_s=part.timeout_s,
            comparable=grid.comparable,
        )
        for parameters, part in parts.items()
        for run in range(part.runs)
    ]
    secrets.SystemRandom().shuffle(cells)
    return cells


def points(part: Part) -> list[Parameters]:
    """Return the part's points, each once: where few parties need all others, auto is all."""
    axes = (_variants(part), part.parties, part.dims, part.modulus_bits, _networks(part))
    found = [
        Parameters(
            *(backend, parties, dim, modulus_bits, key_bits, custody, link),
            dtype=_dtype(dtype, modulus_bits),
            neighbors=neighbors,
            colluding=colluding,
            round_trip_ms=round_trip_ms,
        )
        for (
            (backend, key_bits, custody),
            parties,
            dim,
            modulus_bits,
            (link, round_trip_ms),
        ) in itertools.product(*axes)
        if dim <= part.largest_dim.get(backend, dim)
        and (part.largest_total is None or dim * parties <= part.largest_total)
        for dtype in part.dtypes
        for neighbors, colluding in _graphs(part, backend, parties)
    ]
    return list(dict.fromkeys(found))


def remaining(cells: Iterable[Cell], records: Iterable[Record]) -> list[Cell]:
    """Return the cells of which no record holds a measurement, in the given order."""
    measured = {(r.parameters, r.run) for r in records if r.measured is not None}
    return [cell for cell in cells if (cell.parameters, cell.run) not in measured]


def _variants(part: Part) -> list[tuple[str, int | None, str | None]]:
    """Return backends and peers with what only some vary: the key's size and its custody."""
    variants: list[tuple[str, int | None, str | None]] = []
    for backend in part.backends:
        if backend not in CUSTODIES:
            variants.append((backend, None, None))
            continue
        custody = [name for name in part.custody if name in CUSTODIES[backend]]
        variants += [(backend, *key) for key in itertools.product(part.key_bits, custody)]
    for name in part.peers:
        sizes: list[int | None] = [*part.key_bits] if name in KEYED_PEERS else [None]
        variants += [(name, key_bits, Custody.CLIENTS.value) for key_bits in sizes]
    return variants


def _networks(part: Part) -> Iterator[tuple[str, float]]:
    for link in part.links:
        if link == SHARED_MEMORY:
            yield link, 0.0
        else:
            yield from ((link, float(milliseconds)) for milliseconds in part.round_trip_ms)


def _graphs(part: Part, backend: str, parties: int) -> Iterator[tuple[int | None, int | None]]:
    """Yield neighbors, and the colluding parties that they are enough for."""
    if backend not in MASKED_BACKENDS:
        yield None, None
        return
    for choice in part.neighbors:
        neighbors = resolve_choice(choice, parties)
        yield neighbors, None if neighbors is None else assumed_colluding(parties)


def _dtype(choice: str, modulus_bits: int) -> str:
    if choice != "auto":
        return choice
    return "int32" if modulus_bits <= _INT32_BITS else "int64"
