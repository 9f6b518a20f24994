"""The options of `mpcfl watch` and `mpcfl serve`; what they do is in modules of their names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcfl.launch.options import Debug, Json

RunFolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that a run printed as its output.")
]
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8650
_EXIT_INTERRUPTED = 130


def watch(
    folder: RunFolderArgument,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the present state as one JSON document and end.")
    ] = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Follow a run in the terminal until it is over."""
    from mpcfl.launch import watch_command

    if as_json:
        watch_command.print_state(folder)
    elif once:
        watch_command.show_state(folder)
    else:
        try:
            watch_command.watch(folder)
        except KeyboardInterrupt:
            typer.echo("mpcfl: no longer watching; the run is not touched", err=True)
            raise typer.Exit(_EXIT_INTERRUPTED) from None


def serve(
    folder: RunFolderArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default only this machine gets there.")
    ] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")
    ] = DEFAULT_PORT,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Show a run as a web page that renews itself."""
    from mpcfl.launch.serve_command import ServeOptions, serve_run

    serve_run(ServeOptions(folder, host, port, as_json))
