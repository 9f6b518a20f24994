"""What the page of a benchmark says in words: the method, who can learn what, and equal results.

The sentences promise no more than the code does; a change of how is measured changes them in the
same commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpcfl.bench.case_numbers import (
    ETHERNET_HEADER_BYTES,
    PACKET_HEADER_BYTES,
    CaseNumbers,
)
from mpcfl.bench.record import Parameters
from mpcfl.config import Custody
from mpcfl.report.threat_model import backend_words
from mpcfl.secagg.custody import resolve_threshold

METHOD: Mapping[str, tuple[str, ...]] = {
    "What is timed": (
        "A value is the wall clock from a barrier until the slowest rank knows the sum, in an open "
        "session. Opening the session (loading libraries, making and agreeing keys) is the set-up, "
        "shown apart. Training, clipping, noise and rounding are not part of a sum and not timed.",
        "The stages of a sum are protect (what a party does alone to its integers), aggregate "
        "(messages and adding up) and open (turning the result into integers). Stages in a bar are "
        "those of the slowest rank; medians of stages need not add up to the median of the total.",
        "All backends sum the same integers, the same on every machine and in every run. Before "
        "anything is timed, every rank compares the opened sum with the exact one, and every timed "
        "sum is compared too, outside the clock; a backend that is wrong fails.",
    ),
    "Launches and order": (
        "Every run is a fresh start of one process per rank under mpirun, with one thread each: "
        "numpy, torch and OpenMP are held to one, although a backend may send or prepare in a "
        "thread of its own. Only a backend that needs torch or CrypTen loads it.",
        "Cells run one after another in random order, so that a machine that warms up or slows "
        "down favors nobody. All ranks share one machine, also where each has a network namespace "
        "of its own: with more ranks than cores, computing takes turns.",
    ),
    "Statistics": (
        "Medians and quartiles are over all values of all runs; error bars are quartiles. A ratio "
        "is the median over that of the plain baseline at the same workload and network. Fewer "
        "than five runs of three values, a wide spread, and trial grids are named in the remarks.",
        "Models are fitted by least squares on relative errors, without negative terms. The "
        "interval of a cross-over is a percentile bootstrap over launches (95 %); with few of them "
        "it is somewhat too narrow.",
    ),
    "Links": (
        "In shared memory, all ranks are on one host. On a link, each rank has a host of its own: "
        "a network namespace with one interface whose rate is limited in both directions by "
        "token buckets (the kernel's tbf). Before every run the link itself is measured with TCP "
        "alone, and figures are placed at that measured rate, not at the one that was asked for.",
        'Round trips are added by the kernel ("netem"), or, where it can\'t, by a program that '
        'holds every packet back ("relay"); the table of links says which. The relay takes '
        "processor time of the same machine.",
    ),
    "Bytes and memory": (
        "Bytes are payload counted at the transport, sent by all ranks, without headers. The "
        "traffic of crypten-stock does not pass our transport: it is computed from the lengths of "
        "its vectors.",
        "Peak memory is the largest resident set of any process: Python, libraries, and a few "
        "vectors that the check of the sum holds included.",
    ),
    "Not measured": (
        "Real networks with loss, jitter and other traffic; parties that fail during a sum; "
        "machines with faster network cards than memory; energy. The noise and the learning are "
        "the same for all backends and have benchmarks of their own.",
    ),
}
KERNEL_BYTES = (
    "The kernel counts on each interface what a link really carries, in bytes and in packets. A "
    f"packet has {PACKET_HEADER_BYTES + ETHERNET_HEADER_BYTES} bytes of headers (Ethernet "
    f"{ETHERNET_HEADER_BYTES}, IP 20, TCP 20 and 12 of options), acknowledgements too, which have "
    "nothing else; on a relayed link there is no Ethernet header. What the kernel counts beyond "
    "payload and headers are MPI's own headers, what was sent twice, and a barrier before each "
    "value, which weighs more where messages are short."
)
CROSSOVERS = (
    "Seconds on a link = computing + factor x bytes of the busiest direction x 8 / rate + waits x "
    "round trip, fitted to each backend's measured networks. Two such curves meet at one "
    "rate or at none: below it, who sends less is faster; above it, who computes less. The model "
    'error is the largest relative one of both backends at any measured network; "extrapolated" '
    "marks a rate outside of the measured ones."
)
EQUALITY = (
    "The noise is added to the integers before a backend sees them, and an exact backend opens "
    "nothing but their sum. Same integers in, same integers out: for the same plan, every exact "
    "backend gives the same model bit for bit, hence the same accuracy and the same epsilon. What "
    "differs is what an attacker must break to see single inputs; that is in the table below."
)
EQUALITY_TESTS = (
    "Tested for every registered backend and any number of parties in "
    "tests/contract/test_secure_sum.py, and here on the vectors of this benchmark:"
)


def protection_words(parameters: Parameters) -> str:
    """Return who can learn an honest party's input, for one of our own backends."""
    threshold = None
    if parameters.custody == Custody.THRESHOLD:
        threshold = resolve_threshold(None, parameters.parties), parameters.parties
    return backend_words(parameters.backend, parameters.custody, parameters.neighbors, threshold)


def peer_words(backend: str) -> tuple[str, tuple[str, ...]] | None:
    """Return a peer's security level, and what tells it from our backends; None if it is none."""
    from mpcfl.bench.peers import PEERS  # loads what a page without peers does not need

    peer = PEERS.get(backend)
    return None if peer is None else (peer.security, peer.differences)


def protection_rows(cases: Iterable[Parameters]) -> list[tuple[str, str]]:
    """Return who can learn what, by the largest number of parties, for our own backends.

    Variants of which the same is true share a row.
    """
    largest: dict[str, Parameters] = {}
    for parameters in sorted(cases, key=lambda p: (p.variant, p.parties)):
        if peer_words(parameters.backend) is None:
            largest[parameters.variant] = parameters
    rows: dict[str, list[str]] = {}
    for variant, parameters in largest.items():
        rows.setdefault(protection_words(parameters), []).append(variant)
    return [("; ".join(variants), protection) for protection, variants in rows.items()]


def equality_rows(cases: Iterable[CaseNumbers]) -> list[tuple[str, str, str]]:
    """Return each variant with the sums that were compared and the largest error in them."""
    by_variant: dict[str, list[CaseNumbers]] = {}
    for case in sorted(cases, key=lambda case: case.parameters.variant):
        by_variant.setdefault(case.parameters.variant, []).append(case)
    rows = []
    for variant, same in by_variant.items():
        error = max(case.largest_error for case in same)
        words = "none: every coordinate equal" if error == 0 else f"{error:.3g} per coordinate"
        rows.append((variant, f"{sum(case.sums_compared for case in same):,}", words))
    return rows
