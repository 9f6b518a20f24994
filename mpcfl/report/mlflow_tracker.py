"""An MLflow run in a database file, which needs no server.

The database is SQLite: MLflow refuses its older stores of plain files, which it no longer keeps
up. Nothing is sent anywhere: MLflow's reports of how it is used are switched off in this process.

The run folder keeps the number of the MLflow run, so that a run that is resumed goes on in it.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client
from mlflow.tracking import MlflowClient

from mpcfl.report.atomic import write_atomically
from mpcfl.report.tracker import Outcome, Point, RunFacts
from mpcfl.report.tracker_choice import TrackerChoice

DATABASE = "mlflow.db"
RUN_FILE = "mlflow-run.json"
# Of one call; MLflow takes no more.
_MOST_METRICS = 1000
_MOST_CHARACTERS = 500
_STATUS = {Outcome.FINISHED: "FINISHED", Outcome.FAILED: "FAILED"}


class MlflowTracker:
    """One MLflow run, in the experiment of the task's name.

    Args:
        choice: where the database is.
        facts: of the run.
    """

    def __init__(self, choice: TrackerChoice, facts: RunFacts) -> None:
        self._facts = facts
        self._place = choice.store_folder(facts)
        # What is inside the run folder is found again where that has been moved.
        self._place_text = "" if choice.place is None else str(choice.place)
        self._place.mkdir(parents=True, exist_ok=True)
        self._client = _open_client(self._place)
        self._run = self._run_before() or self._new_run()

    def known(self) -> Mapping[str, set[int]]:
        """Return the rounds of each figure of the run."""
        names = self._client.get_run(self._run).data.metrics
        return {
            name: {metric.step for metric in self._client.get_metric_history(self._run, name)}
            for name in names
        }

    def start_over(self) -> None:
        """Put the run into MLflow's bin, and begin a new one."""
        self._client.delete_run(self._run)
        self._run = self._new_run()

    def write(self, points: Sequence[Point]) -> None:
        """Add figures; all of a call are there, or none."""
        now = int(time.time() * 1000)
        metrics = [Metric(point.name, point.value, now, point.round) for point in points]
        for at in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[at : at + _MOST_METRICS])

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, _STATUS[outcome])

    def _run_before(self) -> str | None:
        """Return the run that an earlier writer began here, as one that goes on."""
        try:
            kept = json.loads(self._run_file.read_text(encoding="utf-8"))
            run = self._client.get_run(kept["run_id"])
        except (OSError, ValueError, KeyError, TypeError, MlflowException):
            # None, or one of another store.
            return None
        if kept.get("place") != self._place_text or run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def _new_run(self) -> str:
        run = self._client.create_run(self._experiment(), run_name=self._facts.folder.name)
        identifier = str(run.info.run_id)
        kept = {"place": self._place_text, "run_id": identifier}
        write_atomically(self._run_file, json.dumps(kept) + "\n")
        items = self._facts.parameters.items()
        parameters = [Param(name, str(value)[:_MOST_CHARACTERS]) for name, value in items]
        self._client.log_batch(identifier, params=parameters)
        return identifier

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._facts.task)
        if found is not None:
            return str(found.experiment_id)
        artifacts = (self._place / "artifacts").as_uri()
        return str(self._client.create_experiment(self._facts.task, artifact_location=artifacts))

    @property
    def _run_file(self) -> Path:
        return self._facts.folder / RUN_FILE


def _open_client(place: Path) -> MlflowClient:
    """Open the database, or make it; nothing is written to the screen."""
    MLFLOW_DISABLE_TELEMETRY.set(True)
    set_telemetry_client()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # SQLAlchemy warns of what MLflow still uses.
        warnings.simplefilter("ignore")
        return MlflowClient(tracking_uri=f"sqlite:///{(place / DATABASE).absolute()}")
