"""The accuracy table: its rows, what each should reach, and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

# What an early study of these tasks reached (softmax regression, ten parties, constants tuned on
# its test records), to be remade within TOLERANCE or better: task, placement, epsilon.
REFERENCE = {
    ("digits", "none", 0.0): 0.944,
    ("digits", "distributed", 1.0): 0.900,
    ("digits", "distributed", 2.0): 0.923,
    ("digits", "distributed", 4.0): 0.937,
    ("digits", "distributed", 8.0): 0.943,
    ("digits", "local", 2.0): 0.851,
    ("digits", "local", 8.0): 0.894,
    ("mnist5k", "none", 0.0): 0.867,
    ("mnist5k", "distributed", 1.0): 0.852,
    ("mnist5k", "distributed", 2.0): 0.861,
    ("mnist5k", "distributed", 4.0): 0.866,
    ("mnist5k", "distributed", 8.0): 0.869,
    ("mnist5k", "local", 2.0): 0.790,
    ("mnist5k", "local", 8.0): 0.809,
}
TOLERANCE = 0.015

Setting = Mapping[str, Any]
Key = tuple[str, str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the table.

    Attributes:
        epsilon: planned; 0 without privacy.
        std: over the runs; 0 with fewer than two.
        validation: what the same constants reached on held-out training records, on average;
            None if they were not chosen that way.
        reference: None where the early study has no figure.
    """

    task: str
    placement: str
    epsilon: float
    runs: int
    accuracy: float
    std: float
    validation: float | None
    reference: float | None

    @property
    def limit(self) -> float | None:
        """The least mean that is within the tolerance of the reference."""
        return None if self.reference is None else round(self.reference - TOLERANCE, 6)

    @property
    def reached(self) -> bool | None:
        """True if the mean is within the tolerance of the reference, or above."""
        return None if self.limit is None else self.accuracy >= self.limit


def key_of(setting: Setting) -> Key:
    """Return which cell of the table a setting or a result belongs to."""
    return setting["task"], setting["placement"], float(setting["epsilon"])


def rows(
    records: Iterable[Mapping[str, Any]],
    settings: Iterable[Setting] = (),
    reference: Mapping[Key, float] = REFERENCE,
) -> list[Row]:
    """Return the table, by task, placement and epsilon."""
    validation: dict[Key, list[float]] = {}
    for setting in settings:
        validation.setdefault(key_of(setting), []).append(setting["validation_accuracy"])
    by_cell: dict[Key, list[float]] = {}
    for record in records:
        by_cell.setdefault(key_of(record), []).append(record["accuracy"])
    return [
        Row(
            *key,
            runs=len(values),
            accuracy=fmean(values),
            std=stdev(values) if len(values) > 1 else 0.0,
            validation=fmean(validation[key]) if key in validation else None,
            reference=reference.get(key),
        )
        for key, values in sorted(by_cell.items())
    ]


def table(lines: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = ("task", "noise", "epsilon", "runs", "test accuracy: mean", "std", "validation")
    out = ["| " + " | ".join((*head, "reference", "limit", "reached")) + " |", "|---" * 10 + "|"]
    for row in lines:
        epsilon = "none" if row.placement == "none" else f"{row.epsilon:g}"
        validation, reference, limit = (
            "" if figure is None else f"{figure:.3f}"
            for figure in (row.validation, row.reference, row.limit)
        )
        reached = {None: "", True: "yes", False: "no"}[row.reached]
        out.append(
            f"| {row.task} | {row.placement} | {epsilon} | {row.runs} | {row.accuracy:.3f} "
            f"| {row.std:.3f} | {validation} | {reference} | {limit} | {reached} |"
        )
    return "\n".join(out)


def as_json(lines: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table and every run behind it as one JSON document."""
    cells = [
        {
            **{name: getattr(row, name) for name in Row.__slots__},
            "limit": row.limit,
            "reached": row.reached,
        }
        for row in lines
    ]
    return json.dumps({"schema": 1, "cells": cells, "runs": list(records)}, indent=1)
