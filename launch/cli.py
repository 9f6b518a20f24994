"""The `mpcfl` command: its words, its options, and errors as one sentence on standard error."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpcfl import __version__
from mpcfl.errors import MpcflError
from mpcfl.launch.audit_cli import audit_app
from mpcfl.launch.bench_group import GridByDefault
from mpcfl.launch.identity_cli import identity_app
from mpcfl.launch.keygen_cli import keygen
from mpcfl.launch.options import (
    Backend,
    Debug,
    GridArgument,
    Hostfile,
    Insecure,
    JobArgument,
    Json,
    Keys,
    OptionalJob,
    Out,
    Overrides,
    Parties,
    Party,
    PartyFiles,
    Passphrases,
    Resume,
    Track,
    Without,
)
from mpcfl.launch.watch_cli import serve, watch

app = typer.Typer(
    name="mpcfl",
    help="Train one model at several parties; only noised, protected sums ever leave them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_EXIT_ERROR = 1
_EXIT_INTERRUPTED = 130


bench_app = typer.Typer(cls=GridByDefault, help="Compare the crypto backends on the same integers.")
ledger_app = typer.Typer(help="Show or verify a party's privacy ledger.", no_args_is_help=True)
app.add_typer(identity_app, name="identity")
app.add_typer(bench_app, name="bench")
app.add_typer(ledger_app, name="ledger")
app.add_typer(audit_app, name="audit")


@app.command()
def run(
    job: OptionalJob = None,
    n: Parties = None,
    backend: Backend = None,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = None,
    keys: Keys = None,
    passphrases: Passphrases = None,
    party: Party = None,
    party_files: PartyFiles = None,
    without: Without = None,
    hostfile: Hostfile = None,
    track: Track = None,
    insecure: Insecure = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a job, or continue one: a process per party, under mpirun."""
    from mpcfl.launch.run_command import RunOptions
    from mpcfl.launch.run_command import run as run_job

    changes = tuple(overrides or ())
    run_job(
        RunOptions(
            job,
            n,
            backend,
            changes,
            out,
            insecure,
            as_json,
            debug,
            resume,
            keys=keys,
            passphrases=passphrases,
            party=party,
            party_files=party_files,
            without=tuple(without or ()),
            hostfile=hostfile,
            track=tuple(track or ()),
        )
    )


@app.command()
def plan(
    job: JobArgument,
    n: Parties = None,
    backend: Backend = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a job promises and what its noise costs."""
    from mpcfl.launch.plan_command import show_plan
    from mpcfl.launch.run_command import RunOptions

    show_plan(RunOptions(job, n, backend, tuple(overrides or ()), as_json=as_json, debug=debug))


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Check what is installed, and say how to mend it."""
    from mpcfl.launch.doctor import run_doctor

    if not run_doctor(as_json=as_json):
        raise typer.Exit(1)


app.command()(keygen)
app.command()(watch)
app.command()(serve)


ResumeGrid = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Go on with the results in this folder: what is measured is not measured again.",
    ),
]


@bench_app.command()
def grid(
    name: GridArgument = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The packaged smoke grid.")] = False,
    out: Out = None,
    resume: ResumeGrid = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a grid, each cell in fresh processes (the default)."""
    from mpcfl.launch.bench_command import BenchOptions, run_bench

    wanted = "smoke" if smoke else name
    # Without a name, results to go on with name their grid.
    chosen = "smoke" if wanted is None and resume is None else wanted
    if not run_bench(BenchOptions(chosen, out, resume, as_json)):
        raise typer.Exit(1)


@bench_app.command()
def scaling(
    name: GridArgument = None,
    out: Out = None,
    resume: ResumeGrid = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit a cost model to measured cells; predict thousands of parties."""
    from mpcfl.launch.bench_command import BenchOptions, run_scaling

    chosen = "scaling" if name is None and resume is None else name
    if not run_scaling(BenchOptions(chosen, out, resume, as_json)):
        raise typer.Exit(1)


@bench_app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of the older results.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of the newer results.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two results cell by cell; exit code 1 if one is significantly slower."""
    from mpcfl.launch.bench_command import run_compare

    if not run_compare(first, second, as_json=as_json):
        raise typer.Exit(1)


@bench_app.command()
def report(
    source: Annotated[
        Path, typer.Argument(metavar="R", help="Folder of results, or a file of records.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to; beside the records.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make report.html and the tables anew from the records."""
    from mpcfl.launch.bench_command import run_report

    run_report(source, out, as_json=as_json)


@ledger_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A ledger, party-K.jsonl.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print rounds, attempts and epsilon of a ledger, and who remembers it."""
    from mpcfl.launch.ledger_command import show_ledger

    show_ledger(file, as_json=as_json)


@ledger_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A ledger, party-K.jsonl.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a ledger's chain, and that it goes on from every signed head in its folder."""
    from mpcfl.launch.ledger_command import show_ledger

    show_ledger(file, as_json=as_json)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mpcfl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train one model at several parties; only noised, protected sums ever leave them."""


def _interrupt(_number: int, _frame: object) -> None:
    """End a run in the same way whoever asks for it, so that no process stays behind."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; the edge of the process: an error is one sentence here."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup, and shells that start jobs in the background, ask for a signal to be ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        sys.stderr.write("mpcfl: stopped by the user\n")
        sys.exit(_EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has gone (mpcfl ... | head): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_ERROR)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(_sentence(error) + "\n")
        sys.exit(_EXIT_ERROR)
    sys.exit(code)


def _sentence(error: Exception) -> str:
    if isinstance(error, MpcflError):
        return f"mpcfl: error: {error}"
    usage = getattr(error, "format_message", None)
    if usage is not None:
        # No command at all is answered with the help, which is this error's message.
        text = str(usage())
        wrong = text.strip().partition("\n")[0].rstrip(".")
        return text if "Usage:" in text else f"mpcfl: error: {wrong}; see mpcfl --help"
    if isinstance(error, OSError):
        return (
            f"mpcfl: error: {error.filename or 'a file'}: {error.strerror}; mend it and try again"
        )
    return f"mpcfl: error: {type(error).__name__}: {error}; --debug shows where"
