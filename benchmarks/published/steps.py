"""Times single operations for the published tables, by the workers of `benchmarks/cases`.

Each library works in a process of its own on one and the same core, one at a time, in random
order; a figure is the median over rounds of the processor's seconds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "cases"))

from paillier_peers import Bench as Bench
from paillier_peers import measure
from paillier_without_kernel import has_kernel

from mpcfl.errors import MpcflError

# Median seconds by subject and operation.
Seconds = Mapping[str, Mapping[str, float]]


def time_steps(bench: Bench, *, smoke: bool) -> Seconds:
    """Return the median seconds of every operation of every subject that is there.

    Raises:
        MpcflError: a worker failed, or decrypted a wrong sum.
    """
    subjects = tuple(s for s in bench.subjects if has_kernel() or "kernel" not in s)
    chosen = replace(bench, subjects=subjects, needs_all=False)
    if smoke:
        chosen = replace(chosen, rounds=1, warmups=0, visit_s=0.0)
    record = measure(chosen)
    if record["failure"] is not None:
        raise MpcflError(record["failure"])
    return {
        subject: {
            name: statistics.median(seconds[chosen.warmups :]) for name, seconds in found.items()
        }
        for subject, found in record["measured"]["cpu_seconds"].items()
    }
