"""`mpcfl bench GRID` is `mpcfl bench grid GRID`: a command that may be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typer.core import TyperGroup

from mpcfl.launch.completion import complete_grid


@dataclass(frozen=True, slots=True)
class Offer:
    """Something to go on with, as shells are told; typer has no public class for it."""

    value: str
    type: str = "plain"
    help: str | None = None


class GridByDefault(TyperGroup):
    """Takes `mpcfl bench GRID` and `mpcfl bench --smoke` for `mpcfl bench grid ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front unless a command, or help, is asked for."""
        # A shell that asks how to go on wants to hear of all commands.
        is_asked_for = args[0] in self.commands or args[0] == "--help" if args else False
        if not is_asked_for and not (ctx.resilient_parsing and not args):
            args = ["grid", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Offer packaged grids and grid files beside the commands."""
        commands = super().shell_complete(ctx, incomplete)
        grids = (grid for grid in complete_grid(incomplete) if grid not in self.commands)
        return [*commands, *map(Offer, grids)]
