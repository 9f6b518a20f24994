"""What a sum costs as a function of the link, fitted to the networks that a variant ran on.

On hosts of their own, with links of one rate in each direction, a sum costs

    seconds = compute                              at any rate; shared memory shows it alone
            + factor * bytes * 8 / rate            the busiest direction of the busiest host
            + round_trips * round_trip             waits that follow one another

``bytes`` is counted, ``rate`` and ``round_trip`` are what TCP was measured to have, and the other
three are fitted to the medians of all networks: least squares on the relative errors, none below
zero, and the factor not below one, since no link carries its bytes faster than its rate. It
exceeds one where transfers of several hosts follow one another.

Replicates are models of resampled launches (Efron and Tibshirani 1993, chapter 13): each launch
counts once, by its median. The draws come from SHAKE-128 of their names, so the same records
give the same models. With few launches their spread is somewhat too narrow.

Assumes: computing and sending do not overlap; where they do, the model is too slow at rates at
which both take as long. Its largest relative error says how far it may be trusted.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from mpcfl.bench.record import Parameters

REPLICATES = 400
_LABEL = "mpcfl/bench/v1 crossover"
_WORD_BYTES = 8

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class LinkCell:
    """What one variant measured on one network.

    Attributes:
        rate_bit_per_s: that TCP had, one way; infinite in shared memory.
        round_trip_s: of the empty link, measured; 0 in shared memory.
        round_trip_ms: that was asked for.
        busiest_bytes: payload of one sum that the busiest host sent, or received.
        launch_s: median seconds of one sum, launch by launch.
    """

    rate_bit_per_s: float
    round_trip_s: float
    round_trip_ms: float
    busiest_bytes: float
    launch_s: tuple[float, ...]

    @property
    def transfer_s(self) -> float:
        """Seconds that the busiest direction takes at least."""
        return self.busiest_bytes * 8 / self.rate_bit_per_s


@dataclass(frozen=True, slots=True)
class LinkModel:
    """Seconds of one sum as a function of the link.

    Attributes:
        link_bytes: bytes that follow one another over a link: factor times the counted ones.
    """

    compute_s: float
    link_bytes: float
    round_trips: float

    def seconds(self, rate_bit_per_s: float, round_trip_s: float) -> float:
        """Return the seconds of one sum; an infinite rate costs nothing."""
        return self.fixed_s(round_trip_s) + self.link_bytes * 8 / rate_bit_per_s

    def fixed_s(self, round_trip_s: float) -> float:
        """Return the seconds that no faster link saves."""
        return self.compute_s + self.round_trips * round_trip_s


@dataclass(frozen=True, slots=True)
class FittedVariant:
    """One variant's model of one workload.

    Attributes:
        parameters: in shared memory, whatever was measured.
        replicates: models of resampled launches; empty if any network had one launch only.
        largest_error: of the model at a measured network, relative.
    """

    parameters: Parameters
    cells: tuple[LinkCell, ...]
    model: LinkModel
    replicates: tuple[LinkModel, ...]
    largest_error: float

    def tells(self, round_trip_ms: float) -> bool:
        """Return whether the model was fitted to anything like this round trip."""
        return round_trip_ms == 0 or any(cell.round_trip_ms > 0 for cell in self.cells)


def fit_variant(parameters: Parameters, cells: Sequence[LinkCell]) -> FittedVariant:
    """Fit one variant's model to its networks, and again to resampled launches."""
    medians = np.array([statistics.median(cell.launch_s) for cell in cells])
    model = fit_link_model(cells, medians)
    replicates: tuple[LinkModel, ...] = ()
    if min(len(cell.launch_s) for cell in cells) > 1:
        drawn = zip(*(_resampled(parameters, i, c) for i, c in enumerate(cells)), strict=True)
        replicates = tuple(fit_link_model(cells, np.array(seconds)) for seconds in drawn)
    errors = [
        abs(model.seconds(cell.rate_bit_per_s, cell.round_trip_s) / median - 1)
        for cell, median in zip(cells, medians, strict=True)
    ]
    return FittedVariant(parameters, tuple(cells), model, replicates, float(max(errors)))


def fit_link_model(cells: Sequence[LinkCell], seconds: _Array) -> LinkModel:
    """Return the model that misses ``seconds``, shape (cells,), by the least relative squares.

    The round trip is left out where it can't be told from the other terms: with two networks.
    """
    transfer_s = np.array([cell.transfer_s for cell in cells])
    trips_s = np.array([cell.round_trip_s for cell in cells])
    columns = [np.ones(len(cells)), transfer_s]
    if len(cells) > len(columns):
        columns.append(trips_s)
    relative = np.stack(columns, axis=1) / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1
    # What is fitted of the transfer is what it costs beyond the least that it can.
    solution, _ = nnls(relative / scale, 1 - transfer_s / seconds)
    compute_s, excess, *trips = (float(value) for value in solution / scale)
    link_bytes = (1 + excess) * statistics.median(cell.busiest_bytes for cell in cells)
    return LinkModel(compute_s, link_bytes, trips[0] if trips else 0.0)


def crossing(a: LinkModel, b: LinkModel, round_trip_s: float) -> tuple[bool, float]:
    """Return whether `a` is the faster one on slow links, and the rate up to which it stays so."""
    more_bytes = b.link_bytes - a.link_bytes
    more_fixed_s = b.fixed_s(round_trip_s) - a.fixed_s(round_trip_s)
    a_below = more_bytes > 0 or (more_bytes == 0 and more_fixed_s >= 0)
    if more_bytes == 0 or (more_bytes > 0) == (more_fixed_s >= 0):
        return a_below, math.inf
    return a_below, 8 * abs(more_bytes) / abs(more_fixed_s) if more_fixed_s else math.inf


def _resampled(parameters: Parameters, number: int, cell: LinkCell) -> list[float]:
    """Return the median of as many launches, drawn with replacement, for each replicate."""
    n = len(cell.launch_s)
    name = f"{_LABEL}/{parameters.case}/{number}"
    stream = hashlib.shake_128(name.encode()).digest(_WORD_BYTES * REPLICATES * n)
    # The remainder of 64 bits favors no launch by more than 2^-60.
    drawn = np.frombuffer(stream, dtype="<u8").reshape(REPLICATES, n) % np.uint64(n)
    medians = np.median(np.array(cell.launch_s)[drawn.astype(np.int64)], axis=1)
    return [float(median) for median in medians]
