"""A run record with known numbers."""

import pytest

from mpcfl.report.run_record import SCHEMA, PrivacyRecord, RoundRecord, RunRecord


@pytest.fixture
def privacy():
    def make(**changes):
        fields = {
            "unit": "record",
            "epsilon": 3.87654321,
            "epsilon_planned": 4.0,
            "epsilon_single": 3.5,
            "epsilon_outsider": 3.0,
            "epsilon_own_share": 9.25,
            "delta": 1e-5,
            "mechanism": "discrete-gaussian",
            "accountant": "pld",
            "neighboring_relation": "add-or-remove-one",
        }
        return PrivacyRecord(**{**fields, **changes})

    return make


@pytest.fixture
def rounds():
    def make(count=3, **changes):
        return tuple(
            RoundRecord(
                **{
                    "round": i,
                    "attempt": 0,
                    "parties": ("north", "south"),
                    "epsilon": 1.0 + i,
                    "accuracy": 0.5 + i / 10,
                    "loss": 1.0 / (1 + i),
                    "seconds": {"train": 0.25, "protect": 0.5, "open": 0.25},
                    "bytes_sent": 1 << 20,
                    "bytes_received": 1 << 20,
                    "peak_rss_bytes": 200 << 20,
                    **changes,
                }
            )
            for i in range(count)
        )

    return make


@pytest.fixture
def run_record(privacy, rounds):
    def make(**changes):
        fields = {
            "schema": SCHEMA,
            "job": {"task": "digits", "aggregation": {"backend": "phe", "custody": "holder"}},
            "backend": "phe",
            "parties": 2,
            "dim": 650,
            "privacy": privacy(),
            "metrics": {"accuracy": 0.9375},
            "rounds": rounds(),
            "model_sha256": "ab" * 32,
            "versions": {"python": "3.11.0", "mpcfl": "0.1.0"},
            "stopped_early": None,
            "plan": {"sigma": 512.0, "clip_norm": 1.0},
        }
        return RunRecord(**{**fields, **changes})

    return make
