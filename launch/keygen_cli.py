"""The options of `mpcfl keygen`; what it does is in `keygen_command.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcfl.errors import BackendUnavailable
from mpcfl.launch.options import Debug, Json


def keygen(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the files.")],
    parties: Annotated[int, typer.Option(help="Number of data parties.")],
    threshold: Annotated[int, typer.Option(help="How many of them decrypt together.")],
    key_bits: Annotated[int, typer.Option(help="Size of the key, 2048 or more.")] = 3072,
    names: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Names of the parties, as in the job."),
    ] = None,
    passphrases: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A passphrase per line, one for each party; asked for by default.",
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - acted on at the edge of the process
) -> None:
    """Deal a threshold key, one sealed share per party."""
    try:
        from mpcfl.launch.keygen_command import KeygenOptions, run_keygen
    except ModuleNotFoundError as error:
        if error.name != "gmpy2":
            raise
        raise BackendUnavailable(
            "mpcfl keygen needs the package gmpy2; run: pip install 'mpcfl[paillier]'"
        ) from None
    run_keygen(KeygenOptions(out, parties, threshold, key_bits, names, passphrases, as_json))
