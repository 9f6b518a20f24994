"""Records with known numbers, made without running anything."""

import pytest

from mpcfl.bench.cells import Cell
from mpcfl.bench.record import SCHEMA, Machine, Measurement, Parameters, Phase, Record, Value

MACHINE = Machine("Test CPU", 2, 1 << 33, "6.1", "0123456789abcdef")


def _value(seconds):
    """Rank 1 is the slowest; it spends half in protect, a quarter in each other stage."""
    return Value(
        protect=(seconds / 4, seconds / 2),
        aggregate=(seconds / 8, seconds / 4),
        open=(seconds / 8, seconds / 4),
        total=(seconds / 2, seconds),
    )


def _measurement(seconds):
    counts = {"setup": (7, 7), "protect": (0, 0), "aggregate": (300, 300), "open": (0, 0)}
    return Measurement(
        setup_s=(0.5, 0.75),
        warmups=(_value(9.0),),
        values=tuple(_value(s) for s in seconds),
        bytes_sent=counts,
        bytes_received=counts,
        messages=counts,
        cpu_seconds=(0.25, 0.5),
        peak_rss_bytes=(1 << 20, 3 << 20),
    )


@pytest.fixture
def parameters():
    def make(backend="plain", parties=2, dim=10, **changes):
        fields = {
            "modulus_bits": 32,
            "key_bits": None,
            "custody": None,
            "link": "shared-memory",
            "dtype": "int64",
            "neighbors": None,
            "colluding": None,
        }
        return Parameters(backend, parties, dim, **{**fields, **changes})

    return make


@pytest.fixture
def record(parameters):
    def make(seconds=(1.0, 2.0, 3.0), backend="plain", run=0, failure=None, **changes):
        p = parameters(backend)
        fields = {
            "schema": SCHEMA,
            "grid": "test",
            "case": p.case,
            "parameters": p,
            "phase": Phase.SUM,
            "run": run,
            "comparable": True,
            "started_at": "2030-01-02T03:04:05+00:00",
            "commit": None,
            "machine": MACHINE,
            "versions": {"python": "3.11.0", "mpcfl": "0.1.0"},
            "failure": failure,
            "measured": None if failure is not None else _measurement(seconds),
        }
        return Record(**{**fields, **changes})

    return make


@pytest.fixture
def measurement():
    return _measurement


@pytest.fixture
def cell(parameters):
    def make(backend="plain", run=0, **changes):
        fields = {
            "grid": "test",
            "parameters": parameters(backend),
            "run": run,
            "values": 3,
            "warmups": 1,
            "timeout_s": 30.0,
            "comparable": False,
        }
        return Cell(**{**fields, **changes})

    return make
