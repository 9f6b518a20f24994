"""What a secure sum costs beside MPI.Allreduce over a network of 1 Gbit/s.

    python benchmarks/cases/ring_network.py                        # as root; two minutes
    python benchmarks/cases/ring_network.py --table FILE.jsonl     # runs nothing

Two hosts on this machine, joined by a link of 1 Gbit/s in each direction (`launch/links.py`);
what TCP makes of the link is measured first. Half of the ranks are on either host. The exit code
is 1 if a launch failed or a limit was missed.

By default Open MPI has one connection per pair of ranks. A few bytes that ask for a long message
then queue behind another one that goes the other way, and both directions take turns instead of
overlapping: any sum, MPI_Allreduce included, takes up to half as long again, at random. So
the cells with limits give all variants two connections (``btl_tcp_links``), which makes
MPI_Allreduce faster too; those named "default" show the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sum_case import INTERRUPTED, choose, make_parser, measure, read, report
from sum_cell import ALLREDUCE, Cell, Record, Variant, say
from sum_table import Figure, Spread, bytes_sent, kernel_bytes, ratio, spread

from mpcfl.errors import MpcflError
from mpcfl.launch.hosts import INTERFACE, LinkSettings, host_addresses, linked_hosts

CASE = "ring_network"
RATE = "1gbit"
_HOSTS = 2
_DIM = 10_000_000
_BYTE_BITS = 8
# One percent for what is not the vectors: keys, agreement, framing.
_BYTES_TOLERANCE = 0.01
_TWO_CONNECTIONS = ("--mca", "btl_tcp_links", "2")


def cells() -> list[Cell]:
    """Return every launch; those of four ranks and with one connection are for information."""
    variants = (
        Variant(ALLREDUCE, ALLREDUCE),
        *(Variant(f"b={bits}", "ring", bits, options={"checked": False}) for bits in (32, 20)),
    )
    over_link = partial(
        Cell,
        dim=_DIM,
        variants=variants,
        interface=INTERFACE,
        addresses=host_addresses(_HOSTS),
        rate=RATE,
    )
    return [
        over_link("two", 2, mpi_options=_TWO_CONNECTIONS),
        over_link("four", 4, mpi_options=_TWO_CONNECTIONS),
        over_link("two-default", 2),
        over_link("four-default", 4),
    ]


def figures() -> list[Figure]:
    """Return what is read off the records, with the limits."""
    found = [
        Figure("two", "ring b=32 / Allreduce", ratio("b=32", ALLREDUCE), 1.10),
        Figure("two", "ring b=20 / Allreduce", ratio("b=20", ALLREDUCE), 0.75),
    ]
    found += [
        Figure(cell, f"ring {name} / Allreduce", ratio(name, ALLREDUCE))
        for cell in ("four", "two-default", "four-default")
        for name in ("b=32", "b=20")
    ]
    for bits in (32, 20):
        text = f"ring b={bits}: bytes at the transport, off from {bits / _BYTE_BITS:g} a coordinate"
        found.append(Figure("two", text, _bytes_off(bits), _BYTES_TOLERANCE))
        by_kernel = ratio(f"b={bits}", ALLREDUCE, kernel_bytes)
        found.append(Figure("two", f"ring b={bits} / Allreduce: bytes on the link", by_kernel))
    for text, key in (("one way", "one_way_bit_per_s"), ("both ways", "both_ways_bit_per_s")):
        found.append(Figure("two", f"link, {text}: Mbit/s", _link(key, 1e-6)))
    found.append(Figure("two", "link, round trip: us", _link("round_trip_s", 1e6)))
    return found


def _bytes_off(bits: int) -> Callable[[Sequence[Record]], Spread]:
    """Return by which share a rank's bytes differ from ``bits`` per coordinate that must leave."""

    def measure_bytes(records: Sequence[Record]) -> Spread:
        shares = []
        for record in records:
            vectors = 2 * (record["parties"] - 1) / record["parties"]
            due = vectors * record["dim"] * bits / _BYTE_BITS
            shares += [abs(sent / due - 1) for sent in bytes_sent(record, f"b={bits}")]
        return spread(shares)

    return measure_bytes


def _link(key: str, unit: float) -> Callable[[Sequence[Record]], Spread]:
    return lambda records: spread([record["measured"]["link"][key] * unit for record in records])


def run(options: Any) -> list[Record]:
    """Make the two hosts, run the cells, take the hosts away again."""
    chosen = choose(cells(), options)
    with linked_hosts(_HOSTS, LinkSettings(RATE)) as hosts:
        return measure(CASE, chosen, options.record, hosts.mpi)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read, and print; see `sum_case.report` for the exit code."""
    parser = make_parser(__doc__)
    parser.set_defaults(values=11)
    options = parser.parse_args(arguments)
    try:
        records = run(options) if options.table is None else read(CASE, options.table)
    except MpcflError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return report(records, figures(), options)


if __name__ == "__main__":
    sys.exit(main())
