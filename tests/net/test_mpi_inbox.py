"""What comes in over MPI is bounded, all pieces together, before there is memory for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from mpi4py import MPI

from mpcfl.errors import ProtocolError
from mpcfl.net import mpi_requests
from mpcfl.net.mpi import MpiTransport
from mpcfl.net.mpi_inbox import MAX_MESSAGE_BYTES, Inbox


class Claimed:
    """A message that MPI has matched; its bytes are here, or nowhere."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def Irecv(self, buffer: list[object]) -> Claimed:  # noqa: N802 - MPI's name
        content = buffer[0]
        assert isinstance(content, bytearray)
        content[:] = b"x" * self.n_bytes
        return self

    def Test(self) -> bool:  # noqa: N802 - MPI's name
        return True


class Wire:
    """A communicator on which pieces of some lengths are waiting."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = iter(lengths)

    def Improbe(  # noqa: N802 - MPI's name
        self, source: int, tag: int, status: MPI.Status
    ) -> Claimed:
        assert (source, tag) == (3, 7)
        n_bytes = next(self._lengths)
        status.Set_elements(MPI.BYTE, n_bytes)
        return Claimed(n_bytes)


def taken(lengths: list[int], max_bytes: int) -> int:
    """Return how many bytes an inbox takes of pieces of these lengths."""
    inbox = Inbox(Wire(lengths), 3, 7, max_bytes, "east (rank 3)")  # type: ignore[arg-type]
    assert inbox.poll()
    return len(inbox.content)


@pytest.fixture
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mpi_requests, "PIECE_BYTES", 8)


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize("lengths", [[0], [7], [8, 0], [8, 7], [8, 8, 4], [8, 8, 0]])
def test_what_just_fits_is_taken(lengths: list[int]) -> None:
    assert taken(lengths, sum(lengths)) == sum(lengths)


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize("lengths", [[1], [7], [8], [8, 7], [8, 8, 4], [8, 8, 8]])
def test_one_byte_more_in_any_piece_is_refused_and_its_sender_named(lengths: list[int]) -> None:
    limit = sum(lengths) - 1
    words = f"^east .rank 3. sends a message of more than {limit} bytes, "
    with pytest.raises(ProtocolError, match=words):
        taken(lengths, limit)


@pytest.mark.parametrize("claim", [MAX_MESSAGE_BYTES + 1, 1 << 31, 1 << 40])
def test_a_length_that_is_claimed_allocates_nothing(
    claim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the limit, a piece would be cut at this.
    monkeypatch.setattr(mpi_requests, "PIECE_BYTES", 1 << 24)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            taken([claim], MAX_MESSAGE_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_a_transport_takes_what_it_is_told_to_take() -> None:
    transport = MpiTransport(MPI.COMM_SELF, 5.0, ["north"], epoch=90)
    assert transport.max_message_bytes == MAX_MESSAGE_BYTES
    transport.max_message_bytes = 100
    assert transport.exchange({0: b"x" * 100}, [0]) == {0: b"x" * 100}
    following = transport.successor([])
    for refusing in (transport, following):
        with pytest.raises(ProtocolError, match=r"^north .rank 0. sends .* more than 100 bytes"):
            refusing.exchange({0: b"x" * 101}, [0])
