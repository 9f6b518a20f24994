"""Stores of trackers as their own readers see them: by name of a figure, its value per round."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpcfl.report.run_record import RoundRecord, RunRecord
from mpcfl.report.tracker import RunFacts, parameters_of

Figures = dict[str, list[tuple[int, float]]]

JOB: dict[str, Any] = {
    "task": "digits",
    "task_options": {"a key: with signs": 1},
    "parties": {"count": 2, "names": ["northampton", "southampton"]},
    "privacy": {"epsilon": 4.0, "unit": "record"},
    "training": {"rounds": 5},
}


def facts(folder: Path) -> RunFacts:
    folder.mkdir(exist_ok=True)
    return RunFacts("digits", folder, parameters_of(JOB), 4.0)


def record(number: int, **changes: Any) -> RoundRecord:
    fields: dict[str, Any] = {
        "round": number,
        "attempt": 0,
        "parties": ("northampton", "southampton"),
        "epsilon": 0.3 * number,
        "accuracy": 1 - 0.7 / number,
        "loss": 1 / number,
        "seconds": {"train": 0.25 * number, "open": 0.125},
        "bytes_sent": 1000 + number,
        "bytes_received": 2000 + number,
        "peak_rss_bytes": 7 << 20,
    }
    return RoundRecord(**(fields | changes))


def tensorboard_figures(folder: Path) -> Figures:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    names = reader.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in names}


def mlflow_client(folder: Path) -> Any:
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        # SQLAlchemy warns of what MLflow still uses.
        warnings.simplefilter("ignore")
        return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def mlflow_runs(folder: Path) -> list[Any]:
    """Return the runs that are not in the bin."""
    client = mlflow_client(folder)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments))


def mlflow_figures(folder: Path) -> Figures:
    """Return the figures of the only run."""
    (run,) = mlflow_runs(folder)
    client = mlflow_client(folder)
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: sorted((metric.step, metric.value) for metric in metrics)
        for name, metrics in history.items()
    }


def expected(
    rounds: Sequence[RoundRecord], budget: float | None = 4.0, run: RunRecord | None = None
) -> Figures:
    """Return what a store has to hold, written down once more and plainly."""
    figures: Figures = {} if budget is None else {"epsilon_planned": [(0, budget)]}

    def put(name: str, number: int, value: float | None) -> None:
        if value is not None:
            figures.setdefault(name, []).append((number, float(value)))

    for one in rounds:
        put("epsilon", one.round, one.epsilon)
        put("accuracy", one.round, one.accuracy)
        put("loss", one.round, one.loss)
        put("parties", one.round, len(one.parties))
        put("bytes/sent", one.round, one.bytes_sent)
        put("bytes/received", one.round, one.bytes_received)
        put("seconds/all", one.round, sum(one.seconds.values()))
        for stage, seconds in one.seconds.items():
            put(f"seconds/{stage}", one.round, seconds)
    if run is not None:
        for name, value in run.metrics.items():
            put(f"final/{name}", rounds[-1].round, value)
        put("final/epsilon", rounds[-1].round, run.privacy.epsilon)
    return figures


def as_tensorboard_keeps(figures: Figures) -> Figures:
    """Return the figures as 32-bit floats."""
    return {
        name: [(number, struct.unpack("f", struct.pack("f", value))[0]) for number, value in points]
        for name, points in figures.items()
    }
