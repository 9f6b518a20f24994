"""The words and options of `mpcfl identity`; what they do is in `identity_command.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcfl.launch.options import Debug, Json

identity_app = typer.Typer(help="Make or show a party's identity.", no_args_is_help=True)

NewFile = Annotated[Path, typer.Argument(metavar="FILE", help="A new file; nothing is replaced.")]
OldFile = Annotated[Path, typer.Argument(metavar="FILE", help="A file that `new` made.")]


@identity_app.command()
def new(
    file: NewFile,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Make an identity for its owner only; print its public key."""
    from mpcfl.launch.identity_command import new_identity

    new_identity(file, as_json=as_json)


@identity_app.command()
def show(
    file: OldFile,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Print the public key of an identity, for the other parties to pin."""
    from mpcfl.launch.identity_command import show_identity

    show_identity(file, as_json=as_json)
