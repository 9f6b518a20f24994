"""The words and options of `mpcfl audit`; what they do is in `audit_command.py`.

Exit code 0 only if every check of the audit passed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mpcfl.launch.options import Backend, Debug, JobArgument, Json, Overrides, Parties

audit_app = typer.Typer(
    help="Look for faults in what protects data; passing proves nothing.",
    no_args_is_help=True,
)

ReportFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the report here, as JSON.")
]


@audit_app.command()
def dp(
    job: JobArgument = "digits",
    n: Parties = None,
    backend: Backend = None,
    overrides: Overrides = None,
    canaries: Annotated[int, typer.Option(help="Records that are in or out by a coin.")] = 4000,
    rounds: Annotated[int, typer.Option(help="Rounds of the audited run.")] = 4,
    sample_rate: Annotated[
        float, typer.Option(help="Of the audited run; canaries are seen best without sampling.")
    ] = 1.0,
    out: ReportFile = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Bound epsilon from below by guessing which canaries were in one real run."""
    from mpcfl.launch.audit_command import AuditOptions, run_dp_audit

    options = AuditOptions(job, n, backend, tuple(overrides or ()), out, as_json)
    passed = run_dp_audit(options, canaries=canaries, rounds=rounds, sample_rate=sample_rate)
    _exit(passed)


@audit_app.command()
def noise(
    job: JobArgument = "digits",
    n: Parties = None,
    backend: Backend = None,
    overrides: Overrides = None,
    out: ReportFile = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Check law, size and independence of the noise that a real run adds."""
    from mpcfl.launch.audit_command import AuditOptions, run_noise_audit

    options = AuditOptions(job, n, backend, tuple(overrides or ()), out, as_json)
    _exit(run_noise_audit(options))


@audit_app.command()
def masks(
    job: JobArgument = "digits",
    n: Parties = None,
    backend: Backend = None,
    overrides: Overrides = None,
    out: ReportFile = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Check that what a backend sends hides what the parties put in."""
    from mpcfl.launch.audit_command import AuditOptions, run_masks_audit

    options = AuditOptions(job, n, backend, tuple(overrides or ()), out, as_json)
    _exit(run_masks_audit(options))


@audit_app.command()
def inversion(
    batch: Annotated[int, typer.Option(help="Records of the attacked party, 1 to 16.")] = 4,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page with the pictures; by default in runs/."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Show what a bare update gives away, and that what is sent does not."""
    from mpcfl.launch.audit_command import run_inversion_audit

    _exit(run_inversion_audit(batch=batch, out=out, as_json=as_json))


@audit_app.command()
def transcript(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run that ended.")],
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Check that a run opened nothing twice, whoever died in it, and that its ledgers cover it."""
    from mpcfl.audit.transcript import audit_transcript

    report = audit_transcript(folder)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines()))
    _exit(report.passed)


def _exit(passed: bool) -> None:
    if not passed:
        raise typer.Exit(1)
