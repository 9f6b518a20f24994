"""`mpcfl run`: check a job here, run it under mpirun, show it, and say how it ended."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mpcfl.config import Job
from mpcfl.errors import MpcflError, PartyLost
from mpcfl.launch.jobs import find_job
from mpcfl.launch.live import live_view
from mpcfl.launch.mpirun import Outcome, compose, supervise
from mpcfl.parties.events import Ended, Event, Failed, Started, from_json
from mpcfl.parties.key_share import KeyFiles
from mpcfl.parties.resume import Request
from mpcfl.parties.rules import check_job
from mpcfl.report.run_folder import fresh_run_path, require_vacant


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `mpcfl run` was asked for; `None` leaves it to the job file."""

    job: str | None
    parties: int | None = None
    backend: str | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    insecure: bool = False
    as_json: bool = False
    debug: bool = False
    resume: Path | None = None
    keys: Path | None = None
    passphrases: Path | None = None
    party: Path | None = None
    party_files: Path | None = None
    without: tuple[str, ...] = ()

    def all_overrides(self) -> list[str]:
        """Return the ``--set`` options, ``--backend`` included."""
        backend = [] if self.backend is None else [f'aggregation.backend="{self.backend}"']
        return [*self.overrides, *backend]

    def job_file(self) -> Path | None:
        """Return the path of the job file, if a job was named."""
        return None if self.job is None else find_job(self.job)

    def load(self) -> Job:
        """Read the job as these options change it, or that of the run to be resumed."""
        request = Request(
            self.job_file(), self.all_overrides(), self.parties, self.resume, self.out
        )
        return request.load()


def run(options: RunOptions) -> None:
    """Run a job to its end.

    Raises:
        MpcflError: the job is refused here, or a rank says why it can't go on.
    """
    # Standard output is for one JSON document, if it was asked for; progress goes elsewhere.
    console = Console(stderr=options.as_json)
    job = options.load()
    check_job(job, options.insecure)
    KeyFiles(options.keys, options.passphrases)
    out = options.resume or options.out or fresh_run_path(job.task)
    if options.resume is None:
        require_vacant(out)
    console.print(f"output: {out}", highlight=False, soft_wrap=True)
    command = compose(job.n_ranks - len(options.without), _program(options, out))
    console.print(shlex.join(command), highlight=False, markup=False, soft_wrap=True)
    failures: list[Failed] = []
    failed, left = threading.Event(), threading.Event()
    began, ended = threading.Event(), threading.Event()
    with live_view(console) as show:

        def on_line(line: str) -> None:
            event = _parse(line)
            if event is None:
                sys.stderr.write(line + "\n")
            elif isinstance(event, Failed):
                failures.append(event)
                if event.alone:
                    sys.stderr.write(f"{event.line()}\n")
                (left if event.alone else failed).set()
            else:
                show(event)
                if isinstance(event, Started):
                    began.set()
                if isinstance(event, Ended):
                    ended.set()

        outcome = supervise(command, on_line, failed=failed, done=ended, left=left)
    if options.debug and outcome.exit_code:
        sys.stderr.write("\n".join(outcome.stderr_tail) + "\n")
    remedy = _resume_command(options, out) if began.is_set() else None
    _raise_failure(outcome, failures, remedy, ended=ended.is_set())
    if options.as_json:
        sys.stdout.write((out / "run.json").read_text(encoding="utf-8"))


def _program(options: RunOptions, out: Path) -> list[str]:
    job_file = options.job_file()
    program = ["-m", "mpcfl.parties", *([] if job_file is None else [str(job_file)])]
    program += ["--out" if options.resume is None else "--resume", str(out)]
    if options.parties is not None:
        program += ["-n", str(options.parties)]
    for override in options.all_overrides():
        program += ["--set", override]
    program += _private_options(options)
    for name in options.without:
        program += ["--without", name]
    flags = {"--insecure": options.insecure, "--debug": options.debug}
    return [*program, *(flag for flag, given in flags.items() if given), "--events"]


def _parse(line: str) -> Event | None:
    try:
        return from_json(line)
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def _resume_command(options: RunOptions, out: Path) -> str:
    insecure = ["--insecure"] if options.insecure else []
    return shlex.join(["mpcfl", "run", "--resume", str(out), *_private_options(options), *insecure])


def _private_options(options: RunOptions) -> list[str]:
    paths = (
        ("--keys", options.keys),
        ("--passphrases", options.passphrases),
        ("--party", options.party),
        ("--party-files", options.party_files),
    )
    return [part for option, path in paths if path is not None for part in (option, str(path))]


def _raise_failure(
    outcome: Outcome, failures: list[Failed], resume: str | None, *, ended: bool
) -> None:
    """Raise what went wrong; mpirun's word is not enough, it ends well if all ranks are killed.

    Nor does it say that anything did: it may end badly for a party that the others did without.
    """
    # A run that began has a checkpoint; one that was refused has another remedy.
    remedy = "" if resume is None else f"; continue it with: {resume}"
    if ended and all(failure.alone for failure in failures):
        return
    if failures:
        raise MpcflError(failures[0].message + remedy)
    raise PartyLost(
        f"the run ended with exit code {outcome.exit_code} and no reason given; add --debug "
        f"to see what MPI and the parties wrote{remedy}"
    )
