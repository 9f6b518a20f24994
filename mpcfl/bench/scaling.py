"""From the records of a scaling grid to a table of errors and predictions beyond the machine.

Per measured cell there are two predictions: by the model fitted to all cells, and by the one
that has not seen the cell. Only the second says how far the model can be trusted. Predictions
for more parties than were measured are extrapolations; their range is that of all models
with one cell left out, and it covers neither a wrong form of the model nor another machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mpcfl.bench.cost_model import (
    Fit,
    Link,
    MeasuredCell,
    Workload,
    count,
    fit,
    least_cells,
)
from mpcfl.bench.grid import assumed_colluding
from mpcfl.bench.record import SETUP, Parameters, Record
from mpcfl.bench.summary import group_by_case, summarize
from mpcfl.config import MASKED_BACKENDS
from mpcfl.errors import ConfigError
from mpcfl.secagg.neighbors import least_neighbors

# What is asked of the model beyond the measured cells; every party has one core and one link.
FAR_PARTIES = (1_000, 10_000)
FAR_DIMS = (10**6, 10**9)
FAR_BITS = 32
LINKS = (
    Link("data center: 10 Gbit/s, 0.1 ms", 1e10, 1e-4),
    Link("campus: 1 Gbit/s, 1 ms", 1e9, 1e-3),
    Link("wide area: 100 Mbit/s, 20 ms", 1e8, 2e-2),
)


@dataclass(frozen=True, slots=True)
class CellRow:
    """One measured cell beside what the model says.

    Attributes:
        n_values: timed sums.
        predicted_s: by the model of all cells; None without a model.
        unseen_s: by the model of all other cells; None without a model.
        traffic: None, or how the meter contradicts the model's counts.
    """

    parameters: Parameters
    n_values: int
    median_s: float
    predicted_s: float | None
    unseen_s: float | None
    traffic: str | None

    @property
    def error(self) -> float | None:
        """Prediction over measurement, minus 1."""
        return None if self.predicted_s is None else self.predicted_s / self.median_s - 1

    @property
    def unseen_error(self) -> float | None:
        """The same for the model that has not seen the cell."""
        return None if self.unseen_s is None else self.unseen_s / self.median_s - 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """One extrapolation: a sum of more parties than were measured, one core each.

    Attributes:
        colluding: the colluding parties that the neighbors are enough for; None for all others.
        low_s: least seconds by any model with one cell left out.
        high_s: most.
        parts_s: seconds by rate, and by ``latency`` and ``bandwidth`` of the link.
    """

    workload: Workload
    colluding: int | None
    link: Link
    seconds: float
    low_s: float
    high_s: float
    parts_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Study:
    """What a scaling grid shows.

    Attributes:
        rates: seconds per unit, see `cost_model.SHARED_RATES`; None without a model.
        no_model: why there is none.
    """

    cells: tuple[CellRow, ...]
    rates: dict[str, float] | None
    predictions: tuple[Prediction, ...]
    failures: tuple[tuple[str, str], ...]
    no_model: str | None

    @property
    def is_complete(self) -> bool:
        """True if every cell ran, there is a model, and it counts what the transport counts."""
        quiet = all(row.traffic is None for row in self.cells)
        return not self.failures and self.no_model is None and quiet


def require_model(points: Iterable[Parameters]) -> None:
    """Refuse, before anything runs, a grid that no model could be fitted to.

    Raises:
        ConfigError: a backend that the model does not know, or too few cells.
    """
    workloads = {workload_of(parameters) for parameters in points}
    least = least_cells({workload.backend for workload in workloads})
    if len(workloads) < least:
        raise ConfigError(
            f"the grid has {len(workloads)} cells, the cost model needs {least}; add dims or "
            "parties"
        )


def study(records: Sequence[Record]) -> Study:
    """Fit the model to what was measured and look beyond it.

    Raises:
        ConfigError: the records come from different machines, or from a backend that the
            model does not know.
    """
    groups = group_by_case(records)
    measured = [(r.parameters, r.numbers) for r in summarize(records) if r.numbers is not None]
    cores = records[0].machine.cores
    cells = [MeasuredCell(workload_of(p), cores, numbers.median_s) for p, numbers in measured]
    fitted, reason = _try_fit(cells)
    rows = (
        CellRow(
            parameters=parameters,
            n_values=numbers.n_values,
            median_s=numbers.median_s,
            predicted_s=None if fitted is None else fitted.model.predict(cell.workload, cores),
            unseen_s=None if fitted is None else fitted.without[i].predict(cell.workload, cores),
            traffic=_contradiction(cell.workload, groups[parameters]),
        )
        for i, ((parameters, numbers), cell) in enumerate(zip(measured, cells, strict=True))
    )
    return Study(
        cells=tuple(rows),
        rates=None if fitted is None else dict(fitted.model.rates),
        predictions=() if fitted is None else tuple(_predictions(fitted, cells)),
        failures=tuple((r.case, r.failure) for r in records if r.failure is not None),
        no_model=reason,
    )


def workload_of(parameters: Parameters) -> Workload:
    """Return what the model needs to know of a cell."""
    others = parameters.parties - 1 if parameters.backend in MASKED_BACKENDS else 0
    return Workload(
        backend=parameters.backend,
        parties=parameters.parties,
        dim=parameters.dim,
        modulus_bits=parameters.modulus_bits,
        neighbors=others if parameters.neighbors is None else parameters.neighbors,
    )


def _try_fit(cells: Sequence[MeasuredCell]) -> tuple[Fit | None, str | None]:
    """Return a model, or why there is none: so many cells may have failed."""
    try:
        return fit(cells), None
    except ConfigError as error:
        return None, str(error)


def _contradiction(workload: Workload, records: Iterable[Record]) -> str | None:
    """Compare the model's counts with what the meters of all ranks counted for one sum."""
    expected = count(workload).metered
    for measured in (r.measured for r in records if r.measured is not None):
        found = tuple(
            sum(sum(by_rank) for stage, by_rank in counts.items() if stage != SETUP)
            / len(measured.values)
            for counts in (measured.messages, measured.bytes_sent)
        )
        if found != expected:
            return (
                f"the model counts {expected[0]} messages and {expected[1]} bytes, the transport "
                f"{found[0]:.10g} and {found[1]:.10g}"
            )
    return None


def _predictions(fitted: Fit, cells: Sequence[MeasuredCell]) -> Iterator[Prediction]:
    backends = sorted({cell.workload.backend for cell in cells})
    for link, parties, dim in itertools.product(LINKS, FAR_PARTIES, FAR_DIMS):
        for backend in backends:
            for workload, colluding in _graphs(backend, parties, dim):
                low_s, high_s = fitted.interval(workload, link)
                parts_s = fitted.model.parts(workload, parties, link)
                seconds = sum(parts_s.values())
                yield Prediction(workload, colluding, link, seconds, low_s, high_s, parts_s)


def _graphs(backend: str, parties: int, dim: int) -> Iterator[tuple[Workload, int | None]]:
    """Yield the workload with all neighbors, and with as few as a grid's "auto" takes."""
    if backend not in MASKED_BACKENDS:
        yield Workload(backend, parties, dim, FAR_BITS, 0), None
        return
    yield Workload(backend, parties, dim, FAR_BITS, parties - 1), None
    colluding = assumed_colluding(parties)
    few = least_neighbors(parties, colluding, 0)
    yield Workload(backend, parties, dim, FAR_BITS, few), colluding
