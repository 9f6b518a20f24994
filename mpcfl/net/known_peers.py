"""`mpcfl.open_authenticated`: MPI ranks of any program that know each other by their identities.

What a job gets from party files, for programs that only take secure sums. The transport goes in
the place of the communicator: `mpcfl.open_secure_sum(comm=transport, ...)`; everything that is
not a masked vector is then sealed, and masks come from the handshake. See `handshake.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import TAG_VERSION
from mpcfl.net.authenticated import AuthenticatedTransport
from mpcfl.net.handshake import HandshakeContext, authenticate
from mpcfl.net.identity import Identity, read_public_key

if TYPE_CHECKING:
    from mpi4py import MPI

_DEADLINE_S = 120.0


def open_authenticated(
    comm: MPI.Intracomm,
    *,
    identity: Path | str,
    peers: Mapping[int, str],
    deadline_s: float = _DEADLINE_S,
) -> AuthenticatedTransport:
    """Authenticate all ranks to each other; all of them call it together.

    Args:
        comm: an mpi4py intracommunicator; it is duplicated, so that others may talk on it.
        identity: this rank's file from `mpcfl identity new`.
        peers: by rank, the public key of every other rank as `mpcfl identity show` prints it; the
            own one may be there too.
        deadline_s: longest wait for the other ranks, in seconds.

    Returns:
        A transport for `open_secure_sum`; close it after its sessions.

    Raises:
        KeyFileError: the identity can't be read.
        ConfigError: a public key is missing or is none.
        TranscriptMismatch: a rank has another identity than the one that is pinned for it.
        AuthenticationError: a message was changed, or its sender has not the key.
        PartyLost: a rank died or did not come before the deadline.
    """
    # Loading mpi4py starts MPI, so it waits until an MPI communicator has come.
    from mpcfl.net.mpi import MpiTransport

    own = Identity.load(Path(identity))
    pins = {rank: _pin(rank, key) for rank, key in peers.items() if rank != comm.Get_rank()}
    transport = MpiTransport(comm, deadline_s, duplicate=True)
    names = tuple(f"rank {rank}" for rank in range(transport.n_ranks))
    context = HandshakeContext("secure-sum", names, (TAG_VERSION,))
    try:
        agreed = authenticate(transport, own, pins, context)
    except BaseException:
        transport.abandon()
        raise
    return AuthenticatedTransport(transport, agreed.secrets, "secure-sum", names, owned=True)


def _pin(rank: int, key: str) -> bytes:
    try:
        return read_public_key(key)
    except ValueError as error:
        raise ConfigError(f"peers[{rank}] = {key!r}: {error}") from None
