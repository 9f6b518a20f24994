"""Time of exact noise: our samplers and OpenDP's, in one run, in alternating order.

    python benchmarks/cases/sampler.py            # 1,000,000 draws at sigma 1000, five times each
    python benchmarks/cases/sampler.py --json

OpenDP is called as fast as it can be: one `make_gaussian` on a vector of integer zeros. All are
exact and use a cryptographic generator. Every timing is a whole call; one call of each goes first
and is not counted. The comparison needs `pip install 'opendp>=0.16'` (0.14.1 and before are
biased at small sigma: opendp issue 2638); with `--ours-only` it is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcfl.dp import sample_discrete_gaussian, sample_skellam

_OPENDP_MISSING = (
    "OpenDP is not installed, so there is nothing to compare with; pip install 'opendp>=0.16', "
    "or pass --ours-only"
)


@dataclass(frozen=True, slots=True)
class Timing:
    """All timed calls of one sampler, in seconds, in the order in which they ran."""

    sampler: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median time of a call."""
        return statistics.median(self.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON document; 1 if OpenDP was wanted and is not there."""
    options = _parser().parse_args(arguments)
    sigma, draws = options.sigma, options.draws
    samplers: dict[str, Callable[[], Any]] = {
        "discrete Gaussian": lambda: sample_discrete_gaussian(sigma=sigma, size=draws),
        "Skellam": lambda: sample_skellam(variance=sigma**2, size=draws),
    }
    if not options.ours_only:
        try:
            samplers["OpenDP discrete Gaussian"] = opendp_sampler(sigma, draws)
        except ImportError:
            print(_OPENDP_MISSING, file=sys.stderr)
            return 1
    timings = timed(samplers, options.repetitions)
    if options.json:
        print(json.dumps(record(timings, options)))
    else:
        print(table(timings))
    return 0


def opendp_sampler(sigma: int, draws: int) -> Callable[[], Any]:
    """Return a call that adds discrete Gaussian noise to a vector of zeros.

    Raises:
        ImportError: OpenDP is not installed.
    """
    import opendp.prelude as dp

    dp.enable_features("contrib")
    domain = dp.vector_domain(dp.atom_domain(T="i64"), size=draws)
    measurement = dp.m.make_gaussian(domain, dp.l2_distance(T="i64"), scale=float(sigma))
    zeros = np.zeros(draws, dtype=np.int64)
    return lambda: measurement(zeros)


def timed(samplers: dict[str, Callable[[], Any]], repetitions: int) -> list[Timing]:
    """Time every sampler ``repetitions`` times, in turns, forwards and backwards."""
    for sample in samplers.values():
        sample()
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for repetition in range(repetitions):
        order = list(samplers) if repetition % 2 == 0 else list(samplers)[::-1]
        for name in order:
            start = time.perf_counter()
            samplers[name]()
            seconds[name].append(time.perf_counter() - start)
    return [Timing(name, tuple(values)) for name, values in seconds.items()]


def table(timings: Sequence[Timing]) -> str:
    """Return medians, extremes and the ratio to our discrete Gaussian as text."""
    first = timings[0].median
    rows = [
        f"{timing.sampler:<26} {timing.median:>9.4f} {min(timing.seconds):>9.4f} "
        f"{max(timing.seconds):>9.4f} {timing.median / first:>8.1f}"
        for timing in timings
    ]
    head = f"{'sampler':<26} {'median s':>9} {'least s':>9} {'most s':>9} {'ratio':>8}"
    return "\n".join([head, *rows])


def record(timings: Sequence[Timing], options: argparse.Namespace) -> dict[str, Any]:
    """Return every raw value and what it was measured with."""
    first = timings[0].median
    return {
        "case": "sampler",
        "sigma": options.sigma,
        "draws": options.draws,
        "timings": [
            {"sampler": t.sampler, "seconds": t.seconds, "ratio_of_medians": t.median / first}
            for t in timings
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sigma", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ours-only", action="store_true", help="leave OpenDP out")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
