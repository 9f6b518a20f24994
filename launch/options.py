"""Arguments and options that several commands have, so that they read alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcfl.launch.completion import (
    complete_backend,
    complete_grid,
    complete_job,
    complete_key,
)

JobArgument = Annotated[
    str,
    typer.Argument(help="A job file, or the name of a packaged job.", autocompletion=complete_job),
]
GridArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="GRID", help="A file, or a packaged grid.", autocompletion=complete_grid
    ),
]
Parties = Annotated[int | None, typer.Option("-n", help="Number of data parties.")]
Backend = Annotated[
    str | None,
    typer.Option(help="Backend, in place of the job's.", autocompletion=complete_backend),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Change a job key.",
        autocompletion=complete_key,
    ),
]
OptionalJob = Annotated[
    str | None,
    typer.Argument(
        help="A job file, or the name of a packaged job; not needed with --resume.",
        autocompletion=complete_job,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Continue the run in this folder after its last checkpoint. What was spent stays "
        "spent; a finished run is left as it is, with exit code 0.",
    ),
]
Out = Annotated[Path | None, typer.Option(help="A new or empty folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Keys = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of key shares from mpcfl keygen, NAME.share each, for custody threshold.",
    ),
]
Passphrases = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Passphrases of the key shares, a line per party; mode 0600."
    ),
]
Party = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="This party's own file: its identity and its peers' keys."),
]
PartyFiles = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of party files, NAME.toml each; every rank reads its own."
    ),
]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Hosts, one on a line; the first party runs on the first, and so on.",
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="With --resume: go on without this party, as far as parties.max_dropout goes.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME[=PLACE]",
        help="Feed a tracker as well: tensorboard or mlflow, in the run's folder or in PLACE.",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Allow comparison backends, and several hosts without party files."
    ),
]
