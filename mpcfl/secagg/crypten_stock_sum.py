"""The `crypten-stock` backend: CrypTen as shipped. For comparison only.

Each input is shared with CrypTen's own sharing of zero, the shares are added, and the sum is
revealed. Between processes CrypTen talks over gloo (torch.distributed), past our transport;
between the threads of one process, where it can't, it uses our communicator with its own
seeding, one set of generators per thread.

Who learns an input: the two ring neighbours of a party share all its masks and remove them
when the sum is opened; and a generator keeps 32 bits of its seed (Mersenne twister), so one
neighbour, or the network, needs a search of 2^32. Signed values go in as they are: Z_2^64
holds them with their sign, so nothing carries.

Limits: one session per process at a time, all ranks on one host, and gloo's own time-out
(30 minutes) where a rank falls silent.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpcfl.errors import BackendUnavailable, OutOfOrder
from mpcfl.net.transport import Transport
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.base import (
    Levels,
    SumId,
    SumSettings,
    centre,
    check_levels,
    check_range,
)
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator
from mpcfl.secagg.salvage import whole

_PROCESS_MARK_BYTES = 16
_mark_lock = threading.Lock()


class CryptenStockSum:
    """A session of sums in CrypTen as shipped; implements `SecureSum`.

    Args:
        speaking: puts this session's communicator in force; over gloo CrypTen's own is.
        count_bytes: counts what bypasses our transport, by computation from the bytes of one
            vector; called once per reduction.
        shut_down: ends what opening began.
    """

    def __init__(
        self,
        transport: Transport,
        settings: SumSettings,
        speaking: Callable[[], AbstractContextManager[None]],
        count_bytes: Callable[[int], None],
        shut_down: Callable[[], None],
    ) -> None:
        self._rank, self._n_ranks = transport.rank, transport.n_ranks
        self._settings = settings
        self._dtype: np.dtype[Any] = np.dtype(np.int64)
        self._speaking = speaking
        self._count_bytes = count_bytes
        self._shut_down: Callable[[], None] | None = shut_down

    @property
    def parts(self) -> tuple[slice, ...]:
        """See `SecureSum.parts`: CrypTen opens a vector as a whole."""
        return whole(self._settings.dim)

    def protect(self, levels: Levels | None, sum_id: SumId | None = None) -> Any:
        """See `SecureSum.protect`.

        Returns:
            This rank's share of the sum: shares of all inputs are added as they are made,
            which bounds the memory and changes no bit.
        """
        del sum_id  # CrypTen's generators run on by themselves
        if self._shut_down is None:
            raise OutOfOrder("this session was closed; open a new one")
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        self._dtype = vector.dtype
        own = torch.from_numpy(vector.astype(np.int64))
        with self._speaking():
            shared = self._share(own, 0)
            for source in range(1, self._n_ranks):
                shared = shared + self._share(own, source)
        return shared

    def aggregate(self, protected: Any) -> Any:
        """See `SecureSum.aggregate`; the shares already belong to the sum."""
        return protected

    def open(self, aggregated: Any) -> Levels:
        """See `SecureSum.open`."""
        with self._speaking():
            total = aggregated.reveal().numpy()
        self._count_bytes(total.nbytes)
        return centre(total, self._settings.modulus_bits).astype(self._dtype, copy=False)

    def salvage(self) -> None:
        """See `SecureSum.salvage`: what CrypTen received before it failed can't be told."""

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def close(self) -> None:
        """End CrypTen's process group; see `SecureSum.close`."""
        if self._shut_down is not None:
            self._shut_down()
            self._shut_down = None

    def _share(self, own: torch.Tensor, source: int) -> Any:
        # Elsewhere CrypTen reads only the size of what it is given.
        given = own if source == self._rank else torch.zeros_like(own)
        return crypten.cryptensor(given, src=source, precision=0)


def open_crypten_stock_sum(transport: Transport, settings: SumSettings) -> CryptenStockSum:
    """Start CrypTen and open a session; see `BackendFactory`.

    Raises:
        BackendUnavailable: CrypTen already runs in a process, or ranks are on several hosts.
    """
    crypten_bridge.install()
    marks = transport.allgather(_process_mark())
    if len(set(marks)) == len(marks) > 1:
        return _open_over_gloo(transport, settings)
    return _open_in_threads(transport, settings)


def _process_mark() -> bytes:
    """Return a value that all threads of this process share, and no other process has."""
    # Threads that come together would each fill an empty cache with a mark of their own.
    with _mark_lock:
        return _draw_process_mark()


@functools.cache
def _draw_process_mark() -> bytes:
    return os.urandom(_PROCESS_MARK_BYTES)


def _open_in_threads(transport: Transport, settings: SumSettings) -> CryptenStockSum:
    communicator = TransportCommunicator(transport)
    generators = crypten_bridge.fresh_generators()

    def speaking() -> AbstractContextManager[None]:
        return crypten_bridge.speaking_through(communicator, generators)

    with speaking():
        crypten._setup_prng()
    return CryptenStockSum(transport, settings, speaking, lambda _: None, lambda: None)


def _open_over_gloo(transport: Transport, settings: SumSettings) -> CryptenStockSum:
    folder = Path(tempfile.mkdtemp(prefix="crypten-")) if transport.rank == 0 else None
    proposal = b"" if folder is None else os.fsencode(folder)
    meeting = Path(os.fsdecode(transport.allgather(proposal)[0]))
    ready = meeting.is_dir() and not crypten.is_initialized()
    if set(transport.allgather(b"\x01" if ready else b"\x00")) != {b"\x01"}:
        if folder is not None:
            folder.rmdir()
        raise BackendUnavailable(
            "crypten-stock takes one session per process, with all ranks on one host; close "
            'the other session, or use backend "crypten"'
        )
    with _environment(transport, meeting / "store"):
        crypten.init()

    def count_bytes(vector_bytes: int) -> None:
        # Not measured: gloo's ring reduction moves 2 (n-1)/n vectors in and out of each rank.
        moved = 2 * (transport.n_ranks - 1) * vector_bytes // transport.n_ranks
        transport.meter.count_sent(moved)
        transport.meter.count_received(moved)

    def shut_down() -> None:
        crypten.uninit()
        # A rank that lets go of the store still opens its file, and would wait for minutes if
        # it were gone. The last one to let go deletes the file, so only it finds an empty folder.
        with suppress(OSError):
            meeting.rmdir()

    return CryptenStockSum(transport, settings, nullcontext, count_bytes, shut_down)


@contextmanager
def _environment(transport: Transport, store: Path) -> Iterator[None]:
    """Set what CrypTen reads from the environment, and put it back as it was."""
    wanted = {
        "RANK": str(transport.rank),
        "WORLD_SIZE": str(transport.n_ranks),
        "RENDEZVOUS": store.as_uri(),
        "DISTRIBUTED_BACKEND": "gloo",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
