"""What a secure sum costs beside MPI.Allreduce, on one host.

    python benchmarks/cases/ring_speed.py                          # all cells; under five minutes
    python benchmarks/cases/ring_speed.py --only four,eight        # some of them
    python benchmarks/cases/ring_speed.py --table FILE.jsonl       # runs nothing

The baseline is what people run without any protection: MPI.Allreduce of float32 vectors of the
same length, into a vector of its own, as a secure sum returns one. Within a launch all variants
take turns. The exit code is 1 if a launch failed or a limit was missed; figures of a busy
machine say nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import sum_table
from sum_case import INTERRUPTED, choose, make_parser, measure, read, report
from sum_cell import ALLREDUCE, Cell, Record, Variant, say
from sum_table import Figure, Spread, cpu_seconds, memory, ratio

from mpcfl.errors import MpcflError
from mpcfl.secagg.neighbors import least_neighbors

CASE = "ring_speed"
MODULUS_BITS = (8, 16, 20, 24, 32, 48, 64)
SPARSE_PARTIES = (16, 32, 64)
# Where only processor seconds count, which turns and waiting hardly change.
_SPARSE_DIM = 400_000
# Time for 64 processes on a few cores to start and to agree keys with each other.
_DEADLINE_S = 600.0
_FEWEST = 2
# Waiting ranks poll, which takes some processor time of its own.
_WORK_TOLERANCE = 1.2


def ring(name: str, *, bits: int = 32, dtype: str = "int32", **options: Any) -> Variant:
    """Return a variant of the `ring` backend."""
    return Variant(name, "ring", bits, dtype, {"checked": False, **options})


def cells() -> list[Cell]:
    """Return every launch."""
    plain = Variant(ALLREDUCE, ALLREDUCE)
    at_four = (plain, ring("ring"), ring("prepared", precompute=True), ring("int64", dtype="int64"))
    unchecked = {"checked": False}
    crypten = tuple(Variant(n, n, options=unchecked) for n in ("crypten", "crypten-stock"))
    return [
        Cell("four", 4, 10_000_000, at_four),
        Cell("eight", 8, 10_000_000, (plain, ring("ring"))),
        Cell("crypten", 4, 1_000_000, (plain, ring("ring"), *crypten)),
        *(Cell(f"sparse-{n}", n, _SPARSE_DIM, _sparse(n), warmups=1) for n in SPARSE_PARTIES),
        Cell("widths", 64, 10_000, _widths(64)),
    ]


def _sparse(parties: int) -> tuple[Variant, ...]:
    # Against one colluder the fewest neighbors that there can be are enough.
    fewest = ring("two", neighbors=_FEWEST, colluding=1, deadline_s=_DEADLINE_S)
    return fewest, ring("auto", **_auto(parties)), ring("all", deadline_s=_DEADLINE_S)


def _auto(parties: int) -> dict[str, Any]:
    return {"neighbors": "auto", "colluding": parties // 3, "deadline_s": _DEADLINE_S}


def _widths(parties: int) -> tuple[Variant, ...]:
    untimed = partial(replace, timed=False)
    return tuple(
        untimed(ring(f"b={bits}", bits=bits, dtype="int64", **_auto(parties)))
        for bits in MODULUS_BITS
    )


def figures() -> list[Figure]:
    """Return what is read off the records, with the limits."""
    return [
        Figure("four", "ring / Allreduce", ratio("ring", ALLREDUCE), 2.7),
        Figure("four", "ring, prepared / Allreduce", ratio("prepared", ALLREDUCE), 1.4),
        Figure("four", "ring, int64 / Allreduce", ratio("int64", ALLREDUCE), 3.8),
        *(
            Figure("four", f"{name}: memory besides the input, in vectors", memory(name), 3.0)
            for name in ("ring", "prepared", "int64")
        ),
        Figure("eight", "ring / Allreduce", ratio("ring", ALLREDUCE), 3.8),
        Figure("eight", "ring: memory besides the input, in vectors", memory("ring"), 3.0),
        Figure("crypten", "ring / CrypTen as shipped", ratio("ring", "crypten-stock"), 1 / 8),
        Figure("crypten", "crypten / CrypTen as shipped", ratio("crypten", "crypten-stock"), 1.0),
        Figure("crypten", "ring / Allreduce", ratio("ring", ALLREDUCE)),
        *(figure for parties in SPARSE_PARTIES for figure in _sparse_figures(parties)),
        Figure("widths", f"of rings with b in {MODULUS_BITS}, those with a wrong sum", _wrong, 0.0),
    ]


def _sparse_figures(parties: int) -> list[Figure]:
    cell, neighbors = f"sparse-{parties}", least_neighbors(parties, parties // 3, 0)
    share = neighbors / (parties - 1)
    due = (neighbors - _FEWEST) / (parties - 1 - _FEWEST)
    return [
        Figure(cell, f"mask bytes, k = {neighbors} / all neighbors", lambda _: _just(share)),
        Figure(
            cell,
            f"processor time, k = {neighbors} / all neighbors; k = {_FEWEST} taken off",
            _mask_work,
            round(due * _WORK_TOLERANCE, 3),
        ),
    ]


def _mask_work(records: Sequence[Record]) -> Spread:
    """Return the processor seconds of masks with a sparse graph over those with all pairs.

    Without those of the smallest graph, and so without all that a sum takes besides masks.
    """
    shares = []
    for record in records:
        columns = (cpu_seconds(record, name) for name in ("auto", "all", "two"))
        for auto, complete, least in zip(*columns, strict=True):
            masks = complete - least
            shares.append((auto - least) / masks if masks > 0 else math.inf)
    return sum_table.spread(shares)


def _wrong(records: Sequence[Record]) -> Spread:
    # A wrong sum ends its launch, and what comes after it is not checked any more.
    return _just(max(len(r["variants"]) - len(r["measured"]["exact"]) for r in records))


def _just(value: float) -> Spread:
    return Spread(value, value, value, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read, and print; see `sum_case.report` for the exit code."""
    options = make_parser(__doc__).parse_args(arguments)
    try:
        if options.table is None:
            records = measure(CASE, choose(cells(), options), options.record)
        else:
            records = read(CASE, options.table)
    except MpcflError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return report(records, figures(), options)


if __name__ == "__main__":
    sys.exit(main())
