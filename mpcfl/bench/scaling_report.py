"""A scaling study as tables for a terminal and as a document for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mpcfl.bench.cost_model import SHARED_RATES, coordinate_rate
from mpcfl.bench.record import Record
from mpcfl.bench.scaling import CellRow, Prediction, Study
from mpcfl.report.units import seconds_text

SCHEMA = "mpcfl.bench.scaling/1"
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
FORMULA = (
    "seconds = sum + t (exchange exchanges + message messages + wire_byte bytes + "
    "mask_key k chunks + mask_byte k dim container + coordinate_<backend> dim), "
    "t = n / min(n, cores); on a link also exchanges latency + link_bytes / bandwidth"
)
ASSUMPTIONS = (
    "Every party has one core like those of the measured host, and a link of its own. Latency and "
    "bandwidth of the link are inputs: they were not measured, and no party's network stack was.",
    "Everything beyond the measured parties and dims is an extrapolation. Its range is that of all "
    "models fitted without one of the cells; it does not cover a wrong form of the model.",
    "Nothing overlaps in the model. Masks and messages of different chunks do overlap when run. "
    "Memory, and the set-up in which keys are agreed, are left out.",
    "Few neighbors are as few as are enough for a third of the parties colluding and none lost.",
)
# How the parts of a far prediction are put together for people.
_GROUPS = {
    "masks": ("mask_key", "mask_byte"),
    "messages": ("exchange", "message", "wire_byte"),
    "latency": ("latency",),
    "bandwidth": ("bandwidth",),
}


def tables(study: Study) -> list[Table]:
    """Return (title, headings, rows) of what was measured, the rates, and the predictions."""
    found = [_cell_table(study.cells)]
    if study.rates is not None:
        found += [_rate_table(study.rates), _prediction_table(study.predictions)]
    return found


def remarks(study: Study) -> list[str]:
    """Return what a reader should know before citing the tables."""
    notes = [f"failed: {case}: {reason}" for case, reason in study.failures]
    if study.no_model is not None:
        return [*notes, f"no model: {study.no_model}"]
    seen, unseen = _errors(study)
    return [
        *notes,
        f"error of the cells it was fitted to: median {_median(seen):.0%}, largest {max(seen):.0%}",
        f"error of a cell it has not seen: median {_median(unseen):.0%}, largest {max(unseen):.0%}",
        *ASSUMPTIONS,
    ]


def document(study: Study, records: Sequence[Record]) -> dict[str, Any]:
    """Return the study as plain data, with where it was made."""
    first = records[0]
    return {
        "schema": SCHEMA,
        "grid": first.grid,
        "comparable": all(record.comparable for record in records),
        "started_at": min(record.started_at for record in records),
        "commit": first.commit,
        "machine": asdict(first.machine),
        "versions": dict(first.versions),
        "complete": study.is_complete,
        "formula": FORMULA,
        "assumptions": list(ASSUMPTIONS),
        "rates_seconds_per_unit": study.rates,
        "no_model": study.no_model,
        "failures": [{"case": case, "reason": reason} for case, reason in study.failures],
        "cells": [_cell_document(row) for row in study.cells],
        "predictions": [asdict(prediction) for prediction in study.predictions],
    }


def _cell_document(row: CellRow) -> dict[str, Any]:
    return {
        **asdict(row),
        "error_percent": _percent(row.error),
        "unseen_error_percent": _percent(row.unseen_error),
    }


def _percent(error: float | None) -> float | None:
    return None if error is None else 100 * error


def _errors(study: Study) -> tuple[list[float], list[float]]:
    seen = [abs(row.error) for row in study.cells if row.error is not None]
    unseen = [abs(row.unseen_error) for row in study.cells if row.unseen_error is not None]
    return seen, unseen


def _median(errors: Sequence[float]) -> float:
    return statistics.median(errors)


def _cell_table(cells: Sequence[CellRow]) -> Table:
    headings = (
        "backend", "parties", "dim", "bits", "values", "measured", "predicted", "error",
        "unseen, predicted", "error", "remark",
    )  # fmt: skip
    return "Measured cells", headings, [_cell_row(row) for row in cells]


def _cell_row(row: CellRow) -> tuple[str, ...]:
    p = row.parameters
    return (
        *(p.variant, str(p.parties), str(p.dim), str(p.modulus_bits), str(row.n_values)),
        seconds_text(row.median_s),
        *(_seconds(row.predicted_s), _signed(row.error)),
        *(_seconds(row.unseen_s), _signed(row.unseen_error)),
        row.traffic or "",
    )


def _rate_table(rates: dict[str, float]) -> Table:
    units = {name: SHARED_RATES.get(name, "coordinate, all other passes") for name in rates}
    rows: list[tuple[str, ...]] = [
        (name, units[name], f"{rate:.3g} s", "-" if rate == 0 else f"{1 / rate:.3g}")
        for name, rate in rates.items()
    ]
    return "Fitted rates of one core", ("rate", "unit", "per unit", "units per second"), rows


def _prediction_table(predictions: Sequence[Prediction]) -> Table:
    headings = (
        "link of each party (assumed)", "parties", "dim", "backend", "neighbors", "seconds",
        "range", *_GROUPS, "other",
    )  # fmt: skip
    title = "Predictions, extrapolated: one core per party"
    return title, headings, [_prediction_row(prediction) for prediction in predictions]


def _prediction_row(prediction: Prediction) -> tuple[str, ...]:
    w, parts = prediction.workload, prediction.parts_s
    groups = [sum(parts[name] for name in names) for names in _GROUPS.values()]
    other = parts["sum"] + parts[coordinate_rate(w.backend)]
    return (
        *(prediction.link.name, str(w.parties), f"{w.dim:.0e}", w.backend),
        str(w.neighbors) if w.neighbors else "-",
        seconds_text(prediction.seconds),
        f"{seconds_text(prediction.low_s)} to {seconds_text(prediction.high_s)}",
        *(seconds_text(seconds) for seconds in (*groups, other)),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else seconds_text(value)


def _signed(error: float | None) -> str:
    return "-" if error is None else f"{error:+.0%}"
