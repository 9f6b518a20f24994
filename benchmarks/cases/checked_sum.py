"""What the check of a sum costs: checked and unchecked sessions in turns, on one host.

    python benchmarks/cases/checked_sum.py                      # all cells; about a minute
    python benchmarks/cases/checked_sum.py --only million       # the one with the limit
    python benchmarks/cases/checked_sum.py --table FILE.jsonl   # runs nothing

The exit code is 1 if a launch failed or a limit was missed; figures of a busy machine say nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sum_case import INTERRUPTED, choose, make_parser, measure, read, report
from sum_cell import Cell, Variant, say
from sum_table import Figure, ratio

from mpcfl.errors import MpcflError

CASE = "checked_sum"
# A check may cost half of the sum that it checks.
LIMIT = 1.5


def pair(backend: str, bits: int = 32, dtype: str = "int32") -> tuple[Variant, ...]:
    """Return a backend without and with the check."""
    return tuple(
        Variant(f"{backend}{suffix}", backend, bits, dtype, {"checked": bool(suffix)})
        for suffix in ("", ", checked")
    )


def cells() -> list[Cell]:
    """Return every launch."""
    return [
        Cell("million", 4, 1_000_000, pair("ring")),
        Cell("ten-million", 4, 10_000_000, pair("ring")),
        Cell("short", 4, 10_000, pair("ring")),
        Cell("crypten", 4, 1_000_000, pair("crypten")),
        Cell("wide", 4, 1_000_000, pair("ring", 64, "int64")),
    ]


def figures() -> list[Figure]:
    """Return what is read off the records, with the limit."""
    return [
        Figure("million", "ring, checked / ring", ratio("ring, checked", "ring"), LIMIT),
        Figure("ten-million", "ring, checked / ring", ratio("ring, checked", "ring")),
        Figure("short", "ring, checked / ring", ratio("ring, checked", "ring")),
        Figure("crypten", "crypten, checked / crypten", ratio("crypten, checked", "crypten")),
        Figure("wide", "b = 64: ring, checked / ring", ratio("ring, checked", "ring")),
    ]


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
