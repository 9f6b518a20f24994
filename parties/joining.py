"""How ranks become parties of one run: the same job everywhere, and each who it says it is.

What is said in here before the handshake is public, and travels in the clear; the handshake signs
it. Nothing of a party's data is touched before.
"""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from mpcfl import __version__
from mpcfl.config import Job
from mpcfl.errors import ConfigError, MpcflError, PartyNotReady, ProtocolError, TranscriptMismatch
from mpcfl.net.handshake import HandshakeContext, authenticate
from mpcfl.net.roster import check_in, library_versions
from mpcfl.net.wire import Format, Kind, cut, text
from mpcfl.parties.connection import Carrier, Connection
from mpcfl.parties.credentials import read_credentials
from mpcfl.parties.resume import Request
from mpcfl.parties.rules import check_job, check_losses, rank_names, require_quorum, seats
from mpcfl.parties.setup import attempt, present
from mpcfl.secagg.registry import packages_of

if TYPE_CHECKING:
    # Loading it starts MPI, which parties in one process do without.
    from mpcfl.net.mpi import MpiTransport

# MPI's longest name of a host.
_HOST_BYTES = 256
# Seconds; longer than it takes to tell one's reason.
_REFUSER_FIRST_S = 1.5
_SEVERAL_HOSTS = ConfigError(
    "the parties run on more than one host and would not know each other; give each its party file "
    "(--party or --party-files, see docs/parties.md), or add --insecure where nobody can reach the "
    "network between them"
)
_HOST = Format(Kind.HOST, name=text(_HOST_BYTES))


def agree_on_job(options: Namespace, transport: MpiTransport) -> tuple[Job, tuple[int, ...]]:
    """Compare what all ranks are to run; return the job, and which party sits in which rank.

    Raises:
        PartyNotReady, TranscriptMismatch: raised by all ranks alike.
    """
    request = Request(options.job, options.overrides, options.parties, options.resume, options.out)

    def load() -> tuple[Job, tuple[int, ...]]:
        job = request.load()
        if options.without and options.resume is None:
            raise ConfigError("--without NAME is for a run that is resumed; leave it out")
        numbers = seats(job, transport.n_ranks, options.without)
        check_job(job, options.insecure)
        check_losses(job, len(options.without), options.fatal_mpi)
        return job, numbers

    loaded, error = attempt(load, options.debug)
    facts = {"version": __version__, "job": ""}
    if loaded is not None:
        job, numbers = loaded
        transport.deadline_s = job.aggregation.deadline_s
        transport.names = tuple(rank_names(job)[number] for number in numbers)
        facts["job"] = f"{job.digest().hex()} {numbers}"
        facts["libraries"] = library_versions(packages_of(job.aggregation.backend))
    check_in(transport, transport.names, facts, error)
    return present(loaded)


def connect(
    options: Namespace, job: Job, numbers: tuple[int, ...], transport: MpiTransport
) -> Connection:
    """Authenticate all parties to each other; nothing but public facts was said before.

    Raises:
        PartyNotReady: raised by all ranks alike: a party file is wrong, or there is none where
            parties on several hosts need one.
        MpcflError: another party is not who it should be, or goes by something else.
        ProtocolError: another rank refused the handshake, and says why.
        AuthenticationError: a signature does not hold.
    """
    names = transport.names
    credentials, error = attempt(lambda: read_credentials(options, names, transport.rank))
    check_in(transport, names, {}, error)
    identity, pins = present(credentials)
    told = transport.allgather(_HOST.encode(name=cut(options.host, _HOST_BYTES)))
    hosts = {_HOST.decode(host, name)["name"] for host, name in zip(told, names, strict=True)}
    is_spread = options.is_spread or len(hosts) > 1
    refused = is_spread and pins is None and not options.insecure
    check_in(transport, names, {}, _SEVERAL_HOSTS if refused else None)
    context = HandshakeContext(
        job.digest().hex(),
        names,
        (f"mpcfl=={__version__}", *library_versions(packages_of(job.aggregation.backend)).split()),
    )
    try:
        agreed = authenticate(transport, identity, pins, context)
    except PartyNotReady as error:
        # Who refuses knows why, and is to be heard first.
        time.sleep(_REFUSER_FIRST_S)
        raise ProtocolError(str(error)) from error
    except TranscriptMismatch as error:
        raise MpcflError(str(error)) from error
    carrier = Carrier(transport, transport.port(), numbers, lambda left: require_quorum(job, left))
    return Connection(carrier, identity, agreed)
