"""`mpcfl run`: check a job here, run it under mpirun, show it, and say how it ended."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from mpcfl.config import Job
from mpcfl.errors import ConfigError, MpcflError, PartyLost
from mpcfl.launch.hostfile import (
    compose_on_hosts,
    place_parties,
    read_hostfile,
    refuse_unreached,
)
from mpcfl.launch.jobs import find_job
from mpcfl.launch.live import Show, live_view
from mpcfl.launch.mpirun import Outcome, compose, supervise
from mpcfl.parties.events import Ended, Event, Failed, Started, from_json
from mpcfl.parties.key_share import KeyFiles
from mpcfl.parties.resume import Request
from mpcfl.parties.rules import check_job, rank_names
from mpcfl.report.run_folder import fresh_run_path, require_vacant
from mpcfl.report.tracker_choice import read_choices

# Of what mpirun itself prints.
_OTHER_LINES = 200


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
    hostfile: Path | None = None
    track: tuple[str, ...] = ()

    def all_overrides(self) -> list[str]:
        """Return the ``--set`` options, ``--backend`` included."""
        backend = [] if self.backend is None else [f'aggregation.backend="{self.backend}"']
        return [*self.overrides, *backend]

    def job_file(self) -> Path | None:
        """Return the path of the job file, if a job was named."""
        return None if self.job is None else find_job(self.job)

    def with_absolute_paths(self) -> RunOptions:
        """Return the same options, whatever folder they are read in."""
        job = self.job_file()
        return replace(
            self,
            job=None if job is None else str(job.absolute()),
            resume=_absolute(self.resume),
            keys=_absolute(self.keys),
            passphrases=_absolute(self.passphrases),
            party_files=_absolute(self.party_files),
            track=tuple(_absolute_track(choice) for choice in self.track),
        )

    def for_party(self, name: str) -> RunOptions:
        """Return the options of one party, which reads its own party file and no other."""
        if self.party_files is None:
            return self
        return replace(self, party=self.party_files / f"{name}.toml", party_files=None)

    def load(self) -> Job:
        """Read the job as these options change it, or that of the run to be resumed."""
        request = Request(
            self.job_file(), self.all_overrides(), self.parties, self.resume, self.out
        )
        return request.load()


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _absolute_track(choice: str) -> str:
    name, has_place, place = choice.partition("=")
    return f"{name}={Path(place).absolute()}" if has_place else choice


def run(options: RunOptions) -> None:
    """Run a job to its end.

    Raises:
        MpcflError: the job is refused here, or a rank says why it can't go on.
    """
    # Standard output is for one JSON document, if it was asked for; progress goes elsewhere.
    console = Console(stderr=options.as_json)
    job = options.load()
    check_job(job, options.insecure)
    read_choices(options.track)
    KeyFiles(options.keys, options.passphrases)
    out = options.resume or options.out or fresh_run_path(job.task)
    if options.party is not None and options.hostfile is not None:
        raise ConfigError("--hostfile starts every party; give it --party-files, not --party")
    if options.resume is None:
        require_vacant(out)
    console.print(f"output: {out}", highlight=False, soft_wrap=True)
    command = _command(options, job, out)
    console.print(shlex.join(command), highlight=False, markup=False, soft_wrap=True)
    with live_view(console) as show:
        heard = _Heard(show)
        outcome = supervise(
            command, heard.line, failed=heard.failed, done=heard.ended, left=heard.left
        )
    if options.debug and outcome.exit_code:
        sys.stderr.write("\n".join(outcome.stderr_tail) + "\n")
    remedy = _resume_command(options, out) if heard.began.is_set() else None
    if options.hostfile is not None and not heard.failures and not heard.ended.is_set():
        refuse_unreached(
            [*heard.others, *outcome.stderr_tail], began=heard.began.is_set(), remedy=remedy
        )
    _raise_failure(outcome, heard.failures, remedy, ended=heard.ended.is_set())
    if options.as_json:
        _write_record(out, options.hostfile)


class _Heard:
    """What ranks and mpirun have printed so far, and what follows from it.

    Attributes:
        failures: in the order in which they were told.
        others: the last lines that are no event: mpirun's own.
        failed: the run can't go on.
        left: somebody has left whom the others may do without.
        began: the first round is about to begin; there is a checkpoint.
        ended: the run came to its end.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self.failures: list[Failed] = []
        self.others: deque[str] = deque(maxlen=_OTHER_LINES)
        self.failed, self.left = threading.Event(), threading.Event()
        self.began, self.ended = threading.Event(), threading.Event()

    def line(self, line: str) -> None:
        """Take a line of standard output."""
        event = _parse(line)
        if event is None:
            self.others.append(line)
            sys.stderr.write(line + "\n")
        elif isinstance(event, Failed):
            self.failures.append(event)
            if event.alone:
                sys.stderr.write(f"{event.line()}\n")
            (self.left if event.alone else self.failed).set()
        else:
            self._show(event)
            if isinstance(event, Started):
                self.began.set()
            if isinstance(event, Ended):
                self.ended.set()


def _command(options: RunOptions, job: Job, out: Path) -> list[str]:
    """Return the line of mpirun: one program for all, or each party's own on its host."""
    if options.hostfile is None:
        return compose(job.n_ranks - len(options.without), _program(options, out))
    names = rank_names(job)
    places = place_parties(names, read_hostfile(options.hostfile), options.hostfile)
    present = [name for name in names if name not in options.without]
    is_spread = len({places[name] for name in present}) > 1
    if is_spread and options.party_files is None and not options.insecure:
        raise ConfigError(
            f"{options.hostfile} names several hosts, whose parties would not know each other; add "
            "--party-files DIR (see docs/parties.md), or --insecure where nobody can reach the "
            "network between them"
        )
    # Parties start in this folder if their host has it, and elsewhere if not.
    absolute = options.with_absolute_paths()
    programs = {name: _program(absolute.for_party(name), out.absolute()) for name in present}
    return compose_on_hosts(programs, places)


def _write_record(out: Path, hostfile: Path | None) -> None:
    try:
        sys.stdout.write((out / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if hostfile is None:
            raise
        raise MpcflError(
            f"the run is over, and {out}/run.json lies on the parties' hosts, not on this one; "
            "start mpcfl run on the host of a party with data to have it printed"
        ) from None


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
    program += _track_options(options)
    flags = {"--insecure": options.insecure, "--debug": options.debug}
    return [*program, *(flag for flag, given in flags.items() if given), "--events"]


def _parse(line: str) -> Event | None:
    try:
        return from_json(line)
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def _resume_command(options: RunOptions, out: Path) -> str:
    insecure = ["--insecure"] if options.insecure else []
    hosts = [] if options.hostfile is None else ["--hostfile", str(options.hostfile)]
    kept = [*hosts, *_private_options(options), *_track_options(options), *insecure]
    return shlex.join(["mpcfl", "run", "--resume", str(out), *kept])


def _track_options(options: RunOptions) -> list[str]:
    return [part for choice in options.track for part in ("--track", choice)]


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
    if outcome.death:
        raise PartyLost(
            f"a party died ({outcome.death}), no reason given, and MPICH ended all others{remedy}"
        )
    raise PartyLost(
        f"the run ended with exit code {outcome.exit_code} and no reason given; add --debug "
        f"to see what MPI and the parties wrote{remedy}"
    )
