"""The port over MPI: small messages under a tag of their own, also while ranks are dead."""

from __future__ import annotations

from mpi4py import MPI

from mpcfl.net.mpi_inbox import Inbox
from mpcfl.net.mpi_requests import TAG_ALARM, return_errors

# Twice as much as the alarm of the largest job takes.
_MAX_ALARM_BYTES = 1 << 18


class MpiPort:
    """One rank's end of a communicator's port; implements `Port`.

    Args:
        comm: carries the messages; its errors are returned from then on, never fatal.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        return_errors(comm)
        self._comm = comm
        self._inboxes: dict[int, Inbox] = {}
        # MPI reads the buffer of a message until it has left.
        self._leaving: list[tuple[MPI.Request, bytes]] = []

    def post(self, party: int, message: bytes) -> None:
        """See `Port.post`."""
        self._leaving = [(request, kept) for request, kept in self._leaving if not _left(request)]
        try:
            request = self._comm.Isend([message, MPI.BYTE], dest=party, tag=TAG_ALARM)
        except MPI.Exception:
            return  # the party is dead: nobody is there to be told
        self._leaving.append((request, message))

    def take(self, party: int) -> bytes | None:
        """See `Port.take`."""
        inbox = self._inboxes.get(party)
        if inbox is None:
            name = f"rank {party}"
            inbox = Inbox(self._comm, party, TAG_ALARM, _MAX_ALARM_BYTES, name)
            self._inboxes[party] = inbox
        try:
            if not inbox.poll():
                return None
        except MPI.Exception:
            return None  # the party is dead, and `is_dead` says so
        del self._inboxes[party]
        return bytes(inbox.content)

    def is_dead(self, party: int) -> bool:
        """See `Port.is_dead`."""
        try:
            failed, group = self._comm.Get_failed(), self._comm.Get_group()
            ranks = MPI.Group.Translate_ranks(failed, None, group)
            failed.Free()
            group.Free()
        except (MPI.Exception, NotImplementedError):
            return False
        return party in ranks


def _left(request: MPI.Request) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception:
        return True
