"""One rank of a job: `mpirun -n 4 python -m mpcfl.parties JOB.toml`.

Threads are limited before numpy is imported, because every rank would start one per core.
This is the edge of the process: an error becomes one sentence and an exit code here, and
reaches all ranks.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# A tracker writes to this machine's disk, and its library tells nobody that it does.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mpi4py import MPI

from mpcfl.errors import (
    ConfigError,
    LeftOut,
    MpcflError,
    PartyLost,
    PartyNotReady,
    ProtocolError,
    TranscriptMismatch,
)
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.mpi_faults import mpi_name, survives_losses
from mpcfl.parties.events import Event, Failed, to_json
from mpcfl.parties.program import RunEnd, run_rank

_EXIT_ERROR = 1
# How many ranks Open MPI and MPICH say are on this host; elsewhere, names of hosts tell.
_LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
# mpirun may hang when ranks abort in the same moment, so they take turns.
_TURN_S = 0.3
_LONGEST_TURN_S = 1.5


def main(argv: Sequence[str] | None = None, *, is_whole_process: bool = True) -> int:
    """Run this rank's part of the job; return the exit code.

    Args:
        argv: the options; those of the process by default.
        is_whole_process: the process may end here, without MPI's own end. False returns where
            nobody was lost.
    """
    arguments = sys.argv[1:] if argv is None else argv
    transport = MpiTransport(MPI.COMM_WORLD)
    tell = _tell_json if "--events" in arguments else _tell_text
    try:
        options = _parser().parse_args(arguments)
        options.host = MPI.Get_processor_name()
        options.fatal_mpi = None if survives_losses(os.environ) else mpi_name()
        options.is_spread = any(
            local.isdecimal() and int(local) < transport.n_ranks
            for local in (os.environ.get(name, "") for name in _LOCAL_RANKS)
        )
        end = run_rank(options, transport, tell)
    except (PartyNotReady, TranscriptMismatch) as error:
        if transport.rank == 0:
            tell(Failed(str(error)))
        return _EXIT_ERROR
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the edge: all of it ends this rank
        if "--debug" in arguments:
            traceback.print_exc()
        _stop(transport, tell, error)
    if end.has_lost or is_whole_process:
        _leave(end)
    return 0


def _tell_json(event: Event) -> None:
    # In one piece: where output is not buffered, ranks' lines would run into each other.
    print(f"{to_json(event)}\n", end="", flush=True)


def _tell_text(event: Event) -> None:
    stream = sys.stderr if isinstance(event, Failed) else sys.stdout
    print(event.line(), file=stream, flush=True)


def _stop(transport: MpiTransport, tell: Callable[[Event], None], error: BaseException) -> NoReturn:
    """Tell why this rank can't go on, and end it so that the others notice within a second.

    With fault tolerance nobody notices that one rank called MPI's Abort, or left by itself; a
    death by a signal is seen at once. But if all ranks die so, mpirun reports success.
    """
    known = isinstance(error, MpcflError)
    message = str(error) if known else f"{type(error).__name__}; --debug shows where"
    # What every rank sees ends the run; of anything else the others may go on.
    alone = isinstance(error, LeftOut) or not isinstance(error, PartyLost | ProtocolError)
    # The lowest speaks first, and mpirun may hang when ranks abort in the same moment.
    time.sleep(min(_TURN_S * transport.rank, _LONGEST_TURN_S))
    tell(Failed(message, alone=alone))
    sys.stderr.flush()
    if isinstance(error, LeftOut):
        os._exit(_EXIT_ERROR)
    others_are_dead = len(transport.failed_ranks()) == transport.n_ranks - 1
    if not isinstance(error, PartyLost) and not others_are_dead:
        os.kill(os.getpid(), signal.SIGKILL)
    MPI.COMM_WORLD.Abort(_EXIT_ERROR)
    sys.exit(_EXIT_ERROR)


def _leave(end: RunEnd) -> None:
    """Leave MPI after a run that came to its end; all who are left have said goodbye.

    Its own end would have this process meet all others, those who are gone and those who die
    there. Without fault tolerance it has to come to that, or mpirun reports a failure.
    """
    if not end.has_lost and not (end.has_parted and survives_losses(os.environ)):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if end.has_silent:
        # Who was left out may not be dead, and mpirun would wait for it.
        time.sleep(_TURN_S * (1 + end.place))
        MPI.COMM_WORLD.Abort(0)
    os._exit(0)


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving by itself, so that a wrong option at one rank reaches all."""

    def error(self, message: str) -> NoReturn:
        """Raise the reason."""
        raise ConfigError(f"{message}; see python -m mpcfl.parties --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m mpcfl.parties",
        description="Run one rank of a job; start it with mpirun, one rank per party.",
    )
    parser.add_argument(
        "job", type=Path, nargs="?", help="the job file; may be left out with --resume"
    )
    parser.add_argument("-n", dest="parties", type=int, help="number of data parties")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="a new or empty folder for the results")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="continue the run in this folder after its last checkpoint; what was spent stays "
        "spent, and a finished run is left as it is",
    )
    _add_private_files(parser)
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="with --resume: go on without this party, as far as parties.max_dropout goes",
    )
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        metavar="NAME[=PLACE]",
        help="feed a tracker as well: tensorboard or mlflow, in the run's folder or in PLACE",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow comparison backends, and several hosts without party files",
    )
    parser.add_argument("--events", action="store_true", help="tell events as lines of JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _add_private_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help="this party's key share, NAME.share, lies here"
    )
    parser.add_argument(
        "--passphrases",
        type=Path,
        metavar="FILE",
        help="the passphrase of this party's key share, alone or in a line per party",
    )
    parser.add_argument(
        "--party", type=Path, metavar="FILE", help="this party's own file: its identity, its peers"
    )
    parser.add_argument(
        "--party-files", type=Path, metavar="DIR", help="party files of all, DIR/NAME.toml"
    )


if __name__ == "__main__":
    sys.exit(main())
