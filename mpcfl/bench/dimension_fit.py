"""Seconds of one sum as a function of the vector's length, fitted to measured lengths.

Where enough cells of the plain baseline and the masked backends are there, the model is that
of `cost_model.py`, one for all of them. Otherwise it is a line per variant, workload and
network: seconds = start + per_coordinate * dim, both not negative, least squares on the
relative errors, since lengths span orders of magnitude. A line needs three lengths: through
two of them there always is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from mpcfl.bench import cost_model
from mpcfl.bench.case_numbers import CaseNumbers
from mpcfl.bench.record import SHARED_MEMORY, Parameters
from mpcfl.bench.scaling import workload_of
from mpcfl.errors import ConfigError

FEWEST_DIMS = 3
LINE, COST_MODEL = "line", "cost model"


@dataclass(frozen=True, slots=True)
class DimensionFit:
    """A fitted model of one variant, number of parties and network.

    Attributes:
        parameters: with the largest length that was fitted.
        start_s: seconds at length 0; None where the cost model is not one line.
        per_coordinate_s: seconds per coordinate; None likewise.
        largest_error: at a measured length, relative.
        seconds: length to seconds.
    """

    model: str
    parameters: Parameters
    dims: tuple[int, ...]
    start_s: float | None
    per_coordinate_s: float | None
    largest_error: float
    seconds: Callable[[float], float]


def fit_dimensions(cases: Sequence[CaseNumbers], cores: int) -> list[DimensionFit]:
    """Return one fit per variant, number of parties and network that has enough lengths."""
    groups: dict[Parameters, list[CaseNumbers]] = {}
    for case in cases:
        groups.setdefault(replace(case.parameters, dim=0), []).append(case)
    model = fit_cost_model(cases, cores)
    fits = []
    for same in groups.values():
        ordered = sorted(same, key=lambda case: case.parameters.dim)
        if model is not None and modeled(ordered[0].parameters):
            fits.append(_by_cost_model(ordered, model, cores))
        elif len(ordered) >= FEWEST_DIMS:
            fits.append(_line(ordered))
    return fits


def fit_cost_model(cases: Sequence[CaseNumbers], cores: int) -> cost_model.CostModel | None:
    """Return the model of all cells that it knows; None where these are too few."""
    cells = [
        cost_model.MeasuredCell(workload_of(case.parameters), cores, case.seconds.median)
        for case in cases
        if modeled(case.parameters)
    ]
    try:
        return cost_model.fit(cells).model if cells else None
    except ConfigError:
        return None


def modeled(parameters: Parameters) -> bool:
    """Tell whether the cost model speaks of this case: of some backends, in one host."""
    return parameters.link == SHARED_MEMORY and parameters.backend in cost_model.MODELED_BACKENDS


def model_seconds(
    parameters: Parameters, model: cost_model.CostModel, cores: int
) -> Callable[[float], float]:
    """Return length to seconds by the cost model."""

    def seconds(dim: float) -> float:
        return model.predict(workload_of(replace(parameters, dim=max(1, round(dim)))), cores)

    return seconds


def _by_cost_model(
    cases: Sequence[CaseNumbers], model: cost_model.CostModel, cores: int
) -> DimensionFit:
    seconds = model_seconds(cases[-1].parameters, model, cores)
    return _fit(COST_MODEL, cases, None, seconds)


def _line(cases: Sequence[CaseNumbers]) -> DimensionFit:
    dims = np.array([float(case.parameters.dim) for case in cases])
    medians = np.array([case.seconds.median for case in cases])
    relative = np.stack([np.ones(len(cases)), dims], axis=1) / medians[:, None]
    scale = np.linalg.norm(relative, axis=0)
    solution, _ = nnls(relative / scale, np.ones(len(cases)))
    start_s, slope_s = (float(value) for value in solution / scale)
    return _fit(LINE, cases, (start_s, slope_s), lambda dim: start_s + slope_s * dim)


def _fit(
    model: str,
    cases: Sequence[CaseNumbers],
    line: tuple[float, float] | None,
    seconds: Callable[[float], float],
) -> DimensionFit:
    return DimensionFit(
        model=model,
        parameters=cases[-1].parameters,
        dims=tuple(case.parameters.dim for case in cases),
        start_s=None if line is None else line[0],
        per_coordinate_s=None if line is None else line[1],
        largest_error=max(
            abs(seconds(case.parameters.dim) / case.seconds.median - 1) for case in cases
        ),
        seconds=seconds,
    )
