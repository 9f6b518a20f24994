"""`mpcfl.Federation`: a whole job from a notebook, all parties in this process.

What `mpcfl run` does with a process per party, this does with a thread per party: the same
handshake, ledgers, rounds, model and report. It is for trying things out and for research on data
that lie on one machine; parties that don't trust each other run `mpcfl run`.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mpcfl.config import Job, load_job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.launch.jobs import find_job
from mpcfl.learn.registry import make_task, require_methods
from mpcfl.learn.task import Task
from mpcfl.parties.events import Ended, Event, RoundDone
from mpcfl.parties.in_one_process import InProcess, MakeTask, run_in_process
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RunRecord

_FRAME = '<iframe srcdoc="{}" style="width: 100%; height: 40em; border: 0"></iframe>'


@dataclass(frozen=True, slots=True, eq=False)
class FederationResult:
    """What came of a run: all of it public.

    Attributes:
        model: the final one.
        rounds: what every round told: its number, epsilon so far, metrics, seconds by stage, bytes.
        epsilon: spent at the end, as the planned coalition sees it; None without privacy.
        metrics: of the final model, on public data.
        record: what `run.json` holds.
        report: the page `report.html`, whole.
        folder: of the run's files, where ``out`` named one.
    """

    model: nn.Module = field(repr=False)
    rounds: tuple[RoundDone, ...] = field(repr=False)
    epsilon: float | None
    metrics: dict[str, float | None]
    record: RunRecord = field(repr=False)
    report: str = field(repr=False)
    folder: Path | None = None

    def _repr_html_(self) -> str:
        """Return the report as a notebook shows it."""
        return _FRAME.format(html.escape(self.report))


class Federation:
    """A job with all its parties in this process.

    Nothing is remembered from one run to the next: a ledger of what was spent is kept for one run
    only, in its folder, and is gone with it where ``out`` names none. Training again on the same
    data spends again. The parties share this process's memory; nothing here protects one from
    another, so it is no way to train on data of people who don't trust this machine.

    Args:
        task: a task, its class, a function that returns one, or its name; None for the one that
            the job names. A class or function is called with the job's ``task_options``, once per
            party; one object serves all parties, in several threads at a time.
        job: a job file, the name of a packaged job, a dict of its tables, or a `Job`.
        overrides: changes to a job file, as ``--set`` takes them: ``["training.rounds=5"]``.
        out: a new or empty folder that keeps what `mpcfl run` leaves: ledgers, checkpoint, report.
        insecure: allow comparison backends although the job asks for privacy.

    Raises:
        ConfigError: the job or the task is wrong.
    """

    def __init__(
        self,
        task: Any,
        job: Job | Mapping[str, Any] | Path | str,
        *,
        overrides: Sequence[str] = (),
        out: Path | str | None = None,
        insecure: bool = False,
    ) -> None:
        name = task if task is None or isinstance(task, str) else _name_of(task)
        self.job = _read(job, name, overrides)
        self._make_task = None if task is None or isinstance(task, str) else _maker(task, self.job)
        self._out = None if out is None else Path(out)
        self._insecure = insecure

    def run(self, on_round: Callable[[RoundDone], None] | None = None) -> FederationResult:
        """Run the job from its beginning to its end; once with ``out``, else as often as asked.

        Args:
            on_round: is called after every round, here in this thread. Without it the lines that
                `mpcfl run` writes are printed. What it raises ends the run.

        Raises:
            MpcflError: the job is refused, or the run can't go on, as under `mpcfl run`.
            Exception: whatever the task's code raises, where that ends a run.
        """
        rounds: list[RoundDone] = []

        def tell(event: Event) -> None:
            if isinstance(event, RoundDone):
                rounds.append(event)
                if on_round is not None:
                    on_round(event)
            if on_round is None:
                print(_line(event, self._out), flush=True)  # noqa: T201 - what was asked for

        with _folder(self._out) as path:
            what = InProcess(self.job, path, self._make_task, insecure=self._insecure)
            rank = run_in_process(what, tell)
            folder = RunFolder(path)
            record = RunRecord.load(folder.run_json)
            report = folder.report_html.read_text(encoding="utf-8")
        return FederationResult(
            model=rank.public.model,
            rounds=tuple(rounds),
            epsilon=record.privacy.epsilon,
            metrics=dict(record.metrics),
            record=record,
            report=report,
            folder=self._out,
        )


def _line(event: Event, out: Path | None) -> str:
    """Return an event as text, without a folder that is gone before anybody can look."""
    if isinstance(event, Ended) and out is None:
        return event.line().removesuffix(f"; see {event.folder}/report.html")
    return event.line()


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Give a folder for the results; one that nobody asked for is gone afterwards."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="mpcfl-") as parent:
        yield Path(parent) / "run"


def _read(
    job: Job | Mapping[str, Any] | Path | str, task: str | None, overrides: Sequence[str]
) -> Job:
    """Return the job with a task's name in the place of its own, where there is one."""
    if isinstance(job, str | Path):
        own = [] if task is None else [f"task='{task}'"]
        return load_job(find_job(str(job)), [*overrides, *own])
    if overrides:
        raise ConfigError("overrides change a job file; change the dict or the Job itself")
    document = job.model_dump(mode="json") if isinstance(job, Job) else dict(job)
    return parse_job(document if task is None else document | {"task": task}, "job")


def _name_of(task: Any) -> str:
    """Return what a job calls a task that was given as it is."""
    made_by = task.func if isinstance(task, partial) else task
    named = made_by if hasattr(made_by, "__qualname__") else type(made_by)
    return f"{named.__module__}:{named.__qualname__}"


def _maker(task: Any, job: Job) -> MakeTask:
    """Return what makes each party's task."""
    is_made = not isinstance(task, type) and (isinstance(task, Task) or not callable(task))
    if not is_made:
        return partial(make_task, job.task, task, job.task_options)
    require_methods(job.task, task)
    if job.task_options:
        raise ConfigError(
            "task_options are given to a class, and the task is an object already; give its "
            "class, or leave task_options out"
        )
    return lambda: task
