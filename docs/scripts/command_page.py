"""The reference of the command line, written from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from mpcfl.launch.cli import app

_HEAD = """# The command line

Every command takes `--json` (one JSON document on standard output, and nothing else there) and
`--debug` (a traceback where an error is one sentence otherwise). The exit code is 0 only if the
command did its work; errors go to standard error. `mpcfl --install-completion` makes your shell
complete jobs, backends, grids and the keys of `--set`.

This page is written by `docs/scripts/command_page.py` from the program itself.
"""
# These say the same at every command.
_EVERYWHERE = frozenset({"--json", "--debug", "--help"})


def command_page() -> str:
    """Return the page, Markdown: a section for each command, a table of its options."""
    # Any: typer has a click of its own inside, whose types it does not publish.
    root: Any = typer.main.get_command(app)
    return "\n".join([_HEAD, *(_section(name, command) for name, command in _commands(root))])


def _commands(group: Any, above: str = "mpcfl") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{above} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, path)
        elif not command.hidden:
            yield path, command


def _section(path: str, command: Any) -> str:
    context = command.context_class(command, info_name=path, resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [f"## `{path}`", "", command.help or "", "", "```text", usage, "```", ""]
    rows = [
        f"| `{_cell(left)}` | {_cell(right)} |"
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and not _everywhere(parameter)
        for left, right in [record]
    ]
    if rows:
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _everywhere(parameter: Any) -> bool:
    return bool(_EVERYWHERE.intersection(parameter.opts))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
