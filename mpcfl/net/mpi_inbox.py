"""A message on its way in over MPI: in pieces, and bounded before anything is allocated.

Adversary: whoever sends it, or changes it on the way. The worst that a message can do is to take
as much memory as its receiver allows, and no rank is asked for more than its own limit.
"""

from __future__ import annotations

from mpi4py import MPI

from mpcfl.errors import ProtocolError
from mpcfl.net import mpi_requests

# Longest message that a rank takes unless its transport says otherwise: above what any job needs,
# and little enough that one such message from each of some peers does not fill a machine.
MAX_MESSAGE_BYTES = 1 << 30


class Inbox:
    """One message on its way in from one source, piece by piece.

    Args:
        comm: carries it.
        source: rank of ``comm`` that sends it.
        tag: that it is sent under.
        max_bytes: most bytes that are taken, all pieces together.
        name: of its sender, for errors.
    """

    __slots__ = (
        "_comm", "_done", "_max_bytes", "_name", "_piece", "_request", "_source", "_tag", "content",
    )  # fmt: skip

    def __init__(
        self, comm: MPI.Intracomm, source: int, tag: int, max_bytes: int, name: str
    ) -> None:
        self._comm, self._source, self._tag = comm, source, tag
        self._max_bytes, self._name = max_bytes, name
        self._request: MPI.Request | None = None
        self._piece = bytearray()
        self._done = False
        self.content = bytearray()

    def poll(self) -> bool:
        """Make progress; return True once the whole message is in ``content``.

        Raises:
            ProtocolError: more comes than is taken; nothing was allocated for it.
        """
        while not self._done:
            if self._request is None and not self._match():
                return False
            if self._request is not None and not self._request.Test():
                return False
            self.content += self._piece
            self._done = len(self._piece) < mpi_requests.PIECE_BYTES
            self._request = None
        return True

    def _match(self) -> bool:
        status = MPI.Status()
        message = self._comm.Improbe(source=self._source, tag=self._tag, status=status)
        if message is None:
            return False
        n_bytes = status.Get_count(MPI.BYTE)
        self._require_room(n_bytes)
        # A piece is never longer than this, whatever its sender says.
        self._piece = bytearray(min(n_bytes, mpi_requests.PIECE_BYTES))
        self._request = message.Irecv([self._piece, MPI.BYTE])
        return True

    def _require_room(self, n_bytes: int) -> None:
        # MPI has a negative number for a count that does not fit its integers.
        if not 0 <= n_bytes <= self._max_bytes - len(self.content):
            raise ProtocolError(
                f"{self._name} sends a message of more than {self._max_bytes} bytes, which is not "
                "taken; it was changed on its way, or that party does not run this job"
            )
