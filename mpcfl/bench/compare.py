"""Did B get slower than A? Ratios with intervals, and one answer for the whole table.

Values of one launch share its memory layout and its luck, so a launch counts once, by its
median. All tests are exact (`mann_whitney.py`): they assume no distribution of the times, only that
launches are independent and that A's and B's differ by a factor. What is said:

- per case the ratio of B over A with its interval, each missing the true factor with a chance of
  at most 5 %. Of many intervals some exclude 1 by luck; no verdict rests on them.
- a case is called slower or faster if it stands out among all cases of the table: the chance that
  any case is called so by luck is at most 5 %, however many there are (Holm).
- the answer for a build: some case, or some backend in all its cases together, is slower by more
  than the tolerance of 5 %. The chance that this is false is at most 5 % for the whole table,
  half of it for cases and half for backends. Since times that did not change are away from the
  tolerance, it is far less unless launches differ by as much as that.

What no test can know: A and B made at different hours differ by the machine's mood as well as by
the code. `remarks` says where that shows; runs made in turns, A, B, A, B, share it.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mpcfl.bench.change import SIGNIFICANCE, TOLERANCE, BackendChange, CaseChange, Comparison
from mpcfl.bench.compare_remarks import remarks
from mpcfl.bench.mann_whitney import Sample, holm, p_different, p_larger, ratio_interval
from mpcfl.bench.record import Parameters, Record, require_one_machine
from mpcfl.bench.sides import Sides, link_obstacle
from mpcfl.bench.summary import group_by_case
from mpcfl.errors import ConfigError


def compare(records_a: Sequence[Record], records_b: Sequence[Record]) -> Comparison:
    """Compare the cases that both sets have.

    Raises:
        ConfigError: different machines, records of a trial grid, no case in common, or none
            over the same links.
    """
    require_one_machine([*records_a, *records_b])
    if not all(record.comparable for record in (*records_a, *records_b)):
        raise ConfigError(
            "the records are of a trial grid, which is labeled not comparable; run both sides "
            "with a grid that has comparable = true"
        )
    sides = Sides(group_by_case(records_a), group_by_case(records_b))
    changes = [_change(p, sides.a[p], sides.b[p]) for p in sides.common]
    if not changes:
        raise ConfigError("the two sets of records have no case in common; run the same grid twice")
    if all(change.obstacle for change in changes):
        raise ConfigError(
            f"no case can be compared: {changes[0].obstacle}; run both sides over the same links"
        )
    samples = {
        change.parameters: _sample(sides, change.parameters)
        for change in changes
        if change.ratio is not None and not change.obstacle
    }
    cases = sorted(_judged(changes, samples), key=lambda change: change.parameters.case)
    return Comparison(tuple(cases), _backends(cases, samples), remarks(sides, cases))


def any_regression(comparison: Comparison) -> bool:
    """Return True if a build should fail."""
    return any(case.regressed for case in comparison.cases) or any(
        backend.regressed for backend in comparison.backends
    )


def table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells as text, a row per case, for a terminal."""
    rows: list[tuple[str, ...]] = [
        (
            change.parameters.case,
            f"{change.n_runs[0]} / {change.n_runs[1]}",
            "-" if change.ratio is None else f"{change.ratio:.3f}",
            "-" if change.low == 0 else f"{change.low:.3f} to {change.high:.3f}",
            change.verdict,
        )
        for change in comparison.cases
    ]
    return ("case", "runs A / B", "B over A", f"{1 - SIGNIFICANCE:.0%} interval", "verdict"), rows


def backend_table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells as text, a row per backend, for a terminal."""
    rows: list[tuple[str, ...]] = [
        (change.variant, str(change.n_cases), f"{change.ratio:.3f}", change.verdict)
        for change in comparison.backends
    ]
    return ("backend, all cases together", "cases", "B over A", "verdict"), rows


def document(comparison: Comparison) -> dict[str, Any]:
    """Return everything as plain data, for JSON; an interval without an end has None there."""
    return {
        "regressed": any_regression(comparison),
        "cases": [
            {
                **asdict(case),
                "high": None if math.isinf(case.high) else case.high,
                "case": case.parameters.case,
                "verdict": case.verdict,
                "regressed": case.regressed,
            }
            for case in comparison.cases
        ],
        "backends": [
            {**asdict(backend), "verdict": backend.verdict, "regressed": backend.regressed}
            for backend in comparison.backends
        ],
        "remarks": list(comparison.remarks),
    }


def _change(parameters: Parameters, a: Sequence[Record], b: Sequence[Record]) -> CaseChange:
    medians_a, medians_b = _run_medians(a), _run_medians(b)
    failed_a, failed_b = (any(r.failure is not None for r in side) for side in (a, b))
    change = CaseChange(
        parameters=parameters,
        n_runs=(len(medians_a), len(medians_b)),
        newly_failed=failed_b and not failed_a,
        obstacle=link_obstacle(a, b),
    )
    if not medians_a or not medians_b:
        return change
    ratio, low, high = ratio_interval(Sample(medians_a, medians_b), SIGNIFICANCE)
    return replace(change, ratio=ratio, low=low, high=high)


def _run_medians(records: Iterable[Record]) -> tuple[float, ...]:
    return tuple(
        statistics.median(value.seconds for value in record.measured.values)
        for record in records
        if record.measured is not None
    )


def _sample(sides: Sides, parameters: Parameters) -> Sample:
    return Sample(_run_medians(sides.a[parameters]), _run_medians(sides.b[parameters]))


def _judged(
    changes: Iterable[CaseChange], samples: Mapping[Parameters, Sample]
) -> list[CaseChange]:
    """Give the cases that can be compared the p-values that hold for all of them together."""
    different = holm([p_different(sample) for sample in samples.values()])
    slower = holm([p_larger([sample], 1 + TOLERANCE) for sample in samples.values()])
    found = dict(zip(samples, zip(different, slower, strict=True), strict=True))
    return [
        replace(change, p_different=p[0], p_slower=p[1])
        if (p := found.get(change.parameters)) is not None
        else change
        for change in changes
    ]


def _backends(
    cases: Sequence[CaseChange], samples: Mapping[Parameters, Sample]
) -> tuple[BackendChange, ...]:
    by_variant: dict[str, list[CaseChange]] = defaultdict(list)
    for change in cases:
        if change.parameters in samples:
            by_variant[change.parameters.variant].append(change)
    together = [[samples[c.parameters] for c in group] for group in by_variant.values()]
    slower = holm([p_larger(group, 1 + TOLERANCE) for group in together])
    faster = holm([p_larger([s.swapped for s in group], 1 + TOLERANCE) for group in together])
    return tuple(
        BackendChange(
            variant=variant,
            n_cases=len(group),
            ratio=statistics.median(c.ratio for c in group if c.ratio is not None),
            p_slower=p_slower,
            p_faster=p_faster,
        )
        for (variant, group), p_slower, p_faster in zip(
            by_variant.items(), slower, faster, strict=True
        )
    )
