"""What one sum costs: a model with few rates, fitted to measured cells, to look beyond them.

With n parties on c cores, each core has the work of ``t = n / min(n, c)`` parties in turn:

    seconds = sum                                     once per sum
            + exchange    * exchanges * t             waits in sequence, each of all ranks
            + message     * messages * t              sent by one party
            + wire_byte   * bytes * t                 sent by one party, and received by it
            + mask_key    * k * chunks * t            streams begun, one per neighbor and chunk
            + mask_byte   * k * dim * container * t   keystream made and added, in bytes
            + coordinate  * dim * t                   all other passes, one rate per backend
            + on a link: exchanges * latency + link_bytes / bandwidth

The counts are the protocol's: for each chunk a party sends one slice to each other party and
gets theirs, then the same with the sums, ``2 (n-1)`` messages and ``2 (n-1)/n`` of the chunk's
packed words. Chunks overlap, so ``chunks + 1`` waits follow one another. Where MPI's own
reduction replaces that, it is Open MPI's binomial tree, up and down again: ``2 ceil(log2 n)``
waits, in each of which the root's link carries a whole vector. A container is the 1, 2, 4 or 8
bytes that hold a word of b bits.

Rates are seconds per unit, none below zero: non-negative least squares (Lawson and Hanson
1974, chapter 23) on the relative errors, since cells span orders of magnitude.

Assumes: rates depend neither on size, although caches do, nor on b, although packing is work;
nothing overlaps, although mask and message of different chunks do; the fitted rates come
from one host, where a wait and a byte are work of a core. What a link adds is an input, not
fitted: it was not measured. Left out: a party's own network stack, its memory, and the set-up of
a session, in which keys are agreed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import nnls

from mpcfl.bench.summary import BASELINE
from mpcfl.config import MASKED_BACKENDS
from mpcfl.errors import ConfigError
from mpcfl.net.codec import WordCodec
from mpcfl.net.reduction import Chunks, uses_tree

# All others add up in Z_2^64, whatever b is.
_PACKING_BACKEND = "ring"
_WIDE_BITS = 64
MODELED_BACKENDS = MASKED_BACKENDS | {BASELINE}
_COORDINATE = "coordinate_"
# Rates that every backend shares, and what one unit of each is.
SHARED_RATES = {
    "sum": "sum",
    "exchange": "wait for all ranks",
    "message": "message",
    "wire_byte": "byte sent",
    "mask_key": "mask stream begun",
    "mask_byte": "byte of mask stream",
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One sum.

    Attributes:
        neighbors: k, the ranks that each rank shares masks with; 0 for a backend without masks.
    """

    backend: str
    parties: int
    dim: int
    modulus_bits: int
    neighbors: int

    def __post_init__(self) -> None:
        if self.backend not in MODELED_BACKENDS:
            raise ConfigError(
                f"the cost model does not know backend {self.backend!r}, only "
                f"{', '.join(sorted(MODELED_BACKENDS))}; leave it out of a scaling grid"
            )


@dataclass(frozen=True, slots=True)
class Counts:
    """What one party does for one sum, all parties' mean.

    Attributes:
        exchanges: waits that follow one another.
        messages: sent.
        bytes: sent; as many are received.
        link_bytes: that the busiest party's link carries one after another.
        mask_keys: streams begun.
        mask_bytes: of keystream made.
        metered: messages and bytes sent by all parties together, as the transport counts them:
            a tree is one message of one vector.
    """

    exchanges: int
    messages: float
    bytes: float
    link_bytes: float
    mask_keys: int
    mask_bytes: int
    metered: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Link:
    """What joins parties that each have a host of their own: inputs of a prediction, assumed.

    Attributes:
        bits_per_s: in each direction at once, at every party.
        latency_s: one way.
    """

    name: str
    bits_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class CostModel:
    """Fitted rates by name, in seconds per unit; see `SHARED_RATES`."""

    rates: Mapping[str, float]

    def predict(self, workload: Workload, cores: int) -> float:
        """Return the seconds of a sum on one host with so many cores."""
        return sum(self.parts(workload, cores).values())

    def parts(self, workload: Workload, cores: int, link: Link | None = None) -> dict[str, float]:
        """Return the seconds by rate, and by ``latency`` and ``bandwidth`` of a link.

        Args:
            workload: the sum.
            cores: that all parties together have; with a link, one each is what is meant.
            link: None where the parties share a host.

        Raises:
            ConfigError: no cell with this backend was fitted.
        """
        used = amounts(workload, cores)
        missing = used.keys() - self.rates.keys()
        if missing:
            raise ConfigError(f"no cell with backend {workload.backend!r} was measured; add some")
        seconds = {name: self.rates[name] * amount for name, amount in used.items()}
        if link is not None:
            work = count(workload)
            seconds["latency"] = work.exchanges * link.latency_s
            seconds["bandwidth"] = work.link_bytes * 8 / link.bits_per_s
        return seconds


@dataclass(frozen=True, slots=True)
class Fit:
    """A model of all cells, and one per cell that has not seen it, in the cells' order."""

    model: CostModel
    without: tuple[CostModel, ...]

    def interval(self, workload: Workload, link: Link) -> tuple[float, float]:
        """Return the least and the most seconds that any of the models predicts, a core each."""
        models = (self.model, *self.without)
        cores = workload.parties
        seconds = [sum(model.parts(workload, cores, link).values()) for model in models]
        return min(seconds), max(seconds)


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """A workload on a host with so many cores, and the median seconds of its sums."""

    workload: Workload
    cores: int
    seconds: float


def word_bits(workload: Workload) -> int:
    """Return the bits that travel per coordinate."""
    return workload.modulus_bits if workload.backend == _PACKING_BACKEND else _WIDE_BITS


@lru_cache(maxsize=1024)
def count(workload: Workload) -> Counts:
    """Return what the protocol does; exact, as `net/reduction.py` and `secagg/masks.py` do it."""
    n, dim, codec = workload.parties, workload.dim, WordCodec(word_bits(workload))
    chunks = Chunks.of(dim, n, codec.dtype.itemsize)
    hops, vector = math.ceil(math.log2(n)), dim * codec.dtype.itemsize
    tree = uses_tree(chunks, codec)
    # All chunks but the last are alike.
    first, last = (
        sum(codec.packed_bytes(part.stop - part.start) for part in chunks.slices(number))
        for number in (0, len(chunks) - 1)
    )
    packed = vector if tree else (len(chunks) - 1) * first + last
    # Of all parties, in the tree too: n - 1 vectors up and n - 1 down.
    all_messages = 2 * (n - 1) * (1 if tree else n * len(chunks))
    all_bytes = 2 * (n - 1) * packed
    return Counts(
        exchanges=2 * hops if tree else len(chunks) + 1,
        messages=all_messages / n,
        bytes=all_bytes / n,
        link_bytes=2 * hops * vector if tree else all_bytes / n,
        mask_keys=workload.neighbors * len(chunks),
        mask_bytes=workload.neighbors * vector,
        metered=(n, n * vector) if tree else (all_messages, all_bytes),
    )


def amounts(workload: Workload, cores: int) -> dict[str, float]:
    """Return the units of each rate that the busiest core does, one after another."""
    work = count(workload)
    turns = workload.parties / min(workload.parties, cores)
    units = {
        "exchange": work.exchanges * turns,
        "message": work.messages * turns,
        "wire_byte": work.bytes * turns,
        "mask_key": work.mask_keys * turns,
        "mask_byte": work.mask_bytes * turns,
        coordinate_rate(workload.backend): workload.dim * turns,
    }
    return {"sum": 1.0, **units}


def coordinate_rate(backend: str) -> str:
    """Return the name of a backend's rate per coordinate."""
    return f"{_COORDINATE}{backend}"


def fit(cells: Sequence[MeasuredCell]) -> Fit:
    """Fit the rates to all cells, and again without each of them.

    Raises:
        ConfigError: there are not more cells than rates, so errors would mean nothing.
    """
    names = _rate_names(cell.workload.backend for cell in cells)
    if len(cells) <= len(names):
        raise ConfigError(
            f"the cost model has {len(names)} rates and needs more cells than that, found "
            f"{len(cells)}; add dims or parties to the grid"
        )
    units = [amounts(cell.workload, cell.cores) for cell in cells]
    table = np.array([[row.get(name, 0.0) for name in names] for row in units])
    seconds = np.array([cell.seconds for cell in cells])
    everything = np.ones(len(cells), dtype=bool)
    models = []
    for left_out in (None, *range(len(cells))):
        kept = everything.copy()
        if left_out is not None:
            kept[left_out] = False
        # A row over its measured seconds: the residual is the relative error.
        rates = _solve(table[kept] / seconds[kept, None])
        models.append(CostModel(dict(zip(names, rates, strict=True))))
    return Fit(models[0], tuple(models[1:]))


def least_cells(backends: Iterable[str]) -> int:
    """Return how many cells a fit needs at least: one more than there are rates."""
    return len(_rate_names(backends)) + 1


def _rate_names(backends: Iterable[str]) -> list[str]:
    return [*SHARED_RATES, *map(coordinate_rate, sorted(set(backends)))]


def _solve(relative: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[float]:
    """Return rates >= 0 for which each row's predicted share of its measurement is near 1."""
    # The units span twelve orders of magnitude; columns of length 1 are judged alike.
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1
    solution, _ = nnls(relative / scale, np.ones(len(relative)))
    return [float(rate) for rate in solution / scale]
