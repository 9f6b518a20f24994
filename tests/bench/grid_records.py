"""Records of a whole grid with known costs, made without running anything."""

import hashlib
import itertools

from mpcfl.bench.record import (
    SCHEMA,
    SHARED_MEMORY,
    Machine,
    MeasuredLink,
    Measurement,
    Parameters,
    Phase,
    Record,
    Value,
)

MACHINE = Machine("Test CPU", 2, 1 << 33, "6.1", "0123456789abcdef")
RATES = {SHARED_MEMORY: None, "1gbit": 1e9, "100mbit": 1e8, "20mbit": 2e7}
# Seconds at length 0 and per coordinate, bytes of the busiest rank per coordinate, waits, and
# the shares of the three stages.
COSTS = {
    ("plain", None, None): (2e-4, 2e-9, 6.0, 2, (0.0, 0.95, 0.05)),
    ("crypten-stock", None, None): (3e-3, 6e-8, 24.0, 6, (0.5, 0.4, 0.1)),
    ("crypten", None, None): (1e-3, 3e-8, 12.0, 3, (0.55, 0.4, 0.05)),
    ("ring", None, None): (5e-4, 1e-8, 6.0, 3, (0.6, 0.35, 0.05)),
    ("phe", 2048, "holder"): (2e-2, 2e-3, 520.0, 4, (0.9, 0.05, 0.05)),
    ("paillier", 2048, "holder"): (1e-2, 4e-6, 4.5, 4, (0.7, 0.05, 0.25)),
    ("paillier", 3072, "holder"): (2e-2, 9e-6, 4.6, 4, (0.7, 0.05, 0.25)),
    ("paillier", 2048, "clients"): (1e-2, 4e-6, 9.0, 2, (0.8, 0.02, 0.18)),
    ("paillier", 2048, "threshold"): (3e-2, 1.2e-5, 14.0, 3, (0.5, 0.1, 0.4)),
    ("tenseal-ckks", None, "clients"): (8e-3, 3e-6, 42.0, 2, (0.8, 0.05, 0.15)),
    ("heu-zpaillier", 2048, "clients"): (9e-3, 2.1e-5, 257.0, 2, (0.85, 0.02, 0.13)),
}
# Of a packet: what it holds of a message, and its headers; and what else is sent for the values.
_PAYLOAD_BYTES, _HEADER_BYTES, _BESIDE_BYTES = 1448, 66, 900


def grid_records(
    costs=COSTS, parties=(2, 4), dims=(1_000, 10_000, 100_000), links=tuple(RATES), trips=(0.0,),
    runs=5, values=3, noise=0.02,
):  # fmt: skip
    """Return the records of the product, in the order of their names."""
    records = []
    for (backend, key_bits, custody), n, dim, link in itertools.product(
        costs, parties, dims, links
    ):
        if backend == "phe" and dim > 10_000:
            continue
        cost = costs[backend, key_bits, custody]
        for trip_ms in (0.0,) if link == SHARED_MEMORY else trips:
            p = Parameters(
                *(backend, n, dim, 32, key_bits, custody, link),
                dtype="int32",
                neighbors=None,
                colluding=None,
                round_trip_ms=trip_ms,
            )
            records += [_record(p, run, values, cost, noise) for run in range(runs)]
    return records


def _record(p, run, values, cost, noise):
    start, per_coordinate, bytes_each, waits, shares = cost
    rate = RATES[p.link]
    busiest = round(bytes_each * p.dim)
    trip_s = 0.0 if rate is None else 1e-4 + p.round_trip_ms / 1e3
    seconds = start + per_coordinate * p.dim * p.parties / 2 + waits * trip_s
    seconds += 0.0 if rate is None else busiest * 8 / (0.95 * rate)
    ranks = p.parties + (p.custody == "clients")
    sent = tuple([busiest * values] * ranks)
    some, none = tuple([7] * ranks), tuple([0] * ranks)
    counts = {"setup": some, "protect": none, "aggregate": sent, "open": none}
    error = 2e-3 if p.backend.startswith("tenseal") else 0.0
    heavy = "crypten" in p.backend
    launch = 1 + noise * _luck(p.case, run)
    timed = tuple(
        _value(seconds * launch * (1 + noise * _luck(p.case, run, i)), shares, ranks)
        for i in range(values)
    )
    measured = Measurement(
        setup_s=tuple([0.3 * launch] * ranks),
        warmups=timed[:1],
        values=timed,
        bytes_sent=counts,
        bytes_received=counts,
        messages=counts,
        cpu_seconds=tuple([seconds * values] * ranks),
        peak_rss_bytes=tuple([(60 << 20) + 24 * p.dim + (300 << 20) * heavy] * ranks),
        interface_bytes=() if rate is None else tuple(map(_on_interface, sent)),
        interface_packets=() if rate is None else tuple(map(_packets, sent)),
        largest_error=error,
    )
    return Record(
        schema=SCHEMA, grid="synthetic", case=p.case, parameters=p, phase=Phase.SUM, run=run,
        comparable=True, started_at="2030-01-02T03:04:05+00:00", commit="0123abc",
        machine=MACHINE, versions={"python": "3.11.0", "mpcfl": "0.1.0"}, failure=None,
        measured=measured, link=None if rate is None else _link(p, run, rate),
    )  # fmt: skip


def _packets(sent):
    return 2 + round(1.5 * sent / _PAYLOAD_BYTES)


def _on_interface(sent):
    return sent + _HEADER_BYTES * _packets(sent) + _BESIDE_BYTES


def _link(p, run, rate):
    return MeasuredLink(
        shaping="tbf",
        delay="relay" if p.round_trip_ms else "none",
        one_way_bit_per_s=0.95 * rate,
        both_ways_bit_per_s=0.94 * rate,
        round_trip_s=1e-4 + p.round_trip_ms / 1e3,
        congestion_control="cubic",
    )


def _value(seconds, shares, ranks):
    """All ranks are as fast, but for the last one, which is the slowest."""
    early = [0.9] * (ranks - 1) + [1.0]
    protect, aggregate, opened = (tuple(seconds * s * e for e in early) for s in shares)
    return Value(protect, aggregate, opened, tuple(seconds * e for e in early))


def _luck(*names):
    """A number between -1 and 1 that depends on its names alone."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 47) - 1
