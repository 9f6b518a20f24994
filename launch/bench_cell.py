"""Starts one benchmark cell: mpirun on this host, or on one host per rank with the cell's links."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mpcfl.bench.cells import Cell
from mpcfl.errors import MpcflError
from mpcfl.launch.hosts import LinkSettings, linked_hosts, obstacle
from mpcfl.launch.mpirun import compose, supervise

# mpirun complains on standard output; the end of it says why.
_LINES = 20


def require_hosts_for(cells: Sequence[Cell]) -> None:
    """Refuse, before anything runs, a grid with links where no hosts can be made.

    Raises:
        MpcflError: names what is missing and the remedy.
    """
    hosted = [cell for cell in cells if cell.needs_hosts]
    if not hosted:
        return
    found = obstacle(delayed=any(cell.parameters.round_trip_ms > 0 for cell in hosted))
    if found:
        raise MpcflError(
            f"{len(hosted)} of {len(cells)} cells need hosts with links of their own: {found}, or "
            'take a grid with links = ["shared-memory"]'
        )


def start_cell(cell: Cell, cell_file: Path, out_file: Path, /) -> subprocess.CompletedProcess[str]:
    """Run one launch to its end; see `bench.run.Start`.

    Raises:
        subprocess.TimeoutExpired: it took longer than the cell allows.
        MpcflError: its hosts could not be made.
    """
    program = ["-m", "mpcfl.bench.cell", str(cell_file), str(out_file)]
    if not cell.needs_hosts:
        return _supervise(compose(cell.n_ranks, program), cell.timeout_s)
    link = LinkSettings(cell.parameters.link, cell.parameters.round_trip_ms)
    with linked_hosts(cell.n_ranks, link) as hosts:
        known = replace(
            cell, interface=hosts.interface, addresses=hosts.addresses, delay=hosts.delay
        )
        cell_file.write_text(known.to_json(), encoding="utf-8")
        return _supervise(hosts.mpi(cell.n_ranks, program), cell.timeout_s)


def _supervise(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    said: list[str] = []
    outcome = supervise(command, said.append, timeout_s=timeout_s)
    if outcome.timed_out:
        raise subprocess.TimeoutExpired(command, timeout_s)
    reasons = outcome.stderr_tail or tuple(said[-_LINES:])
    return subprocess.CompletedProcess(command, outcome.exit_code, stderr="\n".join(reasons))
