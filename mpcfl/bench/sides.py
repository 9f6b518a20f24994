"""The two sides of a comparison: reading their records, and whether their links are the same."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpcfl.bench.record import MeasuredLink, Parameters, Record, load_records

# Links that differ by more are two links.
_LINK_TOLERANCE = 0.05
# Round trips of microseconds are those of the machine, which vary.
_ROUND_TRIP_S = 0.001


@dataclass(frozen=True, slots=True)
class Sides:
    """The records of A, the older results, and of B, by case."""

    a: Mapping[Parameters, Sequence[Record]]
    b: Mapping[Parameters, Sequence[Record]]

    @property
    def common(self) -> list[Parameters]:
        """The cases that both have."""
        return [parameters for parameters in self.a if parameters in self.b]


def load_side(path: Path) -> list[Record]:
    """Read one side: a records file, a result folder, or a folder of result folders.

    The last is what runs in turns leave: ``A/1``, ``A/2`` and so on, whose launches count
    together.

    Raises:
        ConfigError: nothing can be read, or a line is no record.
    """
    folders = sorted(file.parent for file in path.glob("*/records.jsonl"))
    if (path / "records.jsonl").exists() or not folders:
        return load_records(path)
    records: list[Record] = []
    for folder in folders:
        # A number of its own for every launch: each folder counts its launches from 0.
        first = max((record.run for record in records), default=-1) + 1
        records += (replace(record, run=first + record.run) for record in load_records(folder))
    return records


def link_obstacle(a: Iterable[Record], b: Iterable[Record]) -> str:
    """Return how the links of the two sides differ, measured before the launches; or nothing."""
    links_a, links_b = ([r.link for r in side if r.link is not None] for side in (a, b))
    if not links_a or not links_b:
        return ""
    if _kinds(links_a) != _kinds(links_b):
        return "the link differs in what shapes or delays it"
    for name, least in (
        ("one_way_bit_per_s", 0.0),
        ("both_ways_bit_per_s", 0.0),
        ("round_trip_s", _ROUND_TRIP_S),
    ):
        middle_a, middle_b = (_middle(links, name) for links in (links_a, links_b))
        if abs(middle_b - middle_a) > max(_LINK_TOLERANCE * middle_a, least):
            return f"the link differs, {name} {middle_a:.4g} in A, {middle_b:.4g} in B"
    return ""


def _middle(links: Sequence[MeasuredLink], name: str) -> float:
    values: list[float] = [getattr(link, name) for link in links]
    return statistics.median(values)


def _kinds(links: Iterable[MeasuredLink]) -> set[tuple[str, str, str]]:
    return {(link.shaping, link.delay, link.congestion_control) for link in links}
