"""What a reader of a comparison has to know beside its numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mpcfl.bench.change import ALARM, CaseChange
from mpcfl.bench.record import Parameters, Record
from mpcfl.bench.sides import Sides

# That so many cases lean to one side by luck; a remark is no verdict, so it may be rare.
_LEANING = 0.001
_IN_TURNS = "run them in turns (see `benchmarks/README.md`) to tell the code from the hour"


def remarks(sides: Sides, cases: Sequence[CaseChange]) -> tuple[str, ...]:
    """Return sentences for people; none of them changes a verdict."""
    judged = [c for c in cases if c.ratio is not None and not c.obstacle]
    return (
        *_left_out(sides),
        *_mixed_commits(sides),
        *_other_versions(sides),
        *_hours(sides),
        *_leaning([c.ratio for c in judged if c.ratio is not None]),
        *_power(judged),
    )


def _left_out(sides: Sides) -> Iterator[str]:
    for here, there, name in ((sides.a, sides.b, "A"), (sides.b, sides.a, "B")):
        missing = sorted(parameters.case for parameters in here if parameters not in there)
        if missing:
            yield f"{len(missing)} cases are only in {name}, such as: {missing[0]}"


def _mixed_commits(sides: Sides) -> Iterator[str]:
    for name, side in (("A", sides.a), ("B", sides.b)):
        commits = sorted({str(record.commit) for record in _all(side)})
        if len(commits) > 1:
            yield f"{name} holds records of {len(commits)} commits: {', '.join(commits)}"


def _other_versions(sides: Sides) -> Iterator[str]:
    versions_a, versions_b = (_versions(side) for side in (sides.a, sides.b))
    differing = [
        f"{name} {versions_a[name]} in A, {versions_b[name]} in B"
        for name in sorted(versions_a.keys() & versions_b.keys())
        if versions_a[name] != versions_b[name]
    ]
    if differing:
        yield f"other packages than ours changed too: {'; '.join(differing)}"


def _versions(side: Mapping[Parameters, Sequence[Record]]) -> dict[str, str]:
    """Return every package with all its versions; that of our own is what is compared."""
    found: dict[str, set[str]] = {}
    for record in _all(side):
        for name, version in record.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(v)) for name, v in found.items() if name != "mpcfl"}


def _hours(sides: Sides) -> Iterator[str]:
    """Say so if one side was over before the other began."""
    first, second = ([r.started_at for r in _all(side)] for side in (sides.a, sides.b))
    if max(first) < min(second) or max(second) < min(first):
        yield (
            "one side was over before the other began, so what the machine did meanwhile counts "
            f"as a difference too; {_IN_TURNS}"
        )


def _leaning(ratios: Sequence[float]) -> Iterator[str]:
    """Say so if the cases lean to one side all together; the sign test is exact."""
    more, n = sum(r > 1 for r in ratios), sum(r != 1 for r in ratios)
    side = max(more, n - more)
    chance = 2 * sum(math.comb(n, k) for k in range(side, n + 1)) / 2**n
    if n and chance <= _LEANING:
        word = "slower" if more == side else "faster"
        yield (
            f"{side} of {n} cases are {word} in B, with a median ratio of "
            f"{statistics.median(ratios):.3f}; where cases that share no changed code are among "
            f"them, it was the machine: {_IN_TURNS}"
        )


def _power(judged: Sequence[CaseChange]) -> Iterator[str]:
    """Say so if no single case could have raised an alarm, and how many launches would do."""
    if not judged:
        return
    most = max(judged, key=lambda c: math.comb(sum(c.n_runs), c.n_runs[0])).n_runs
    if len(judged) <= ALARM * math.comb(sum(most), most[0]):
        return
    enough = max(most)
    while len(judged) > ALARM * math.comb(2 * enough, enough):
        enough += 1
    yield (
        f"with {most[0]} and {most[1]} launches no single one of {len(judged)} cases can be shown "
        f"to be slower, whatever its times; {enough} launches a side would do. Backends are judged "
        "by all their cases together"
    )


def _all(side: Mapping[Parameters, Sequence[Record]]) -> Iterable[Record]:
    return (record for group in side.values() for record in group)
