"""`mpcfl.secure_sum` and `mpcfl.open_secure_sum`: a secure sum without the rest of mpcfl.

Every rank brings data. Whatever goes wrong at one rank before anything is sent (a wrong
option, a value out of range) is told to all, so that every rank raises and none waits. Each
sum has a number of its own, bound into its masks, also one that was refused: no mask is used
again. Assumes what the backend assumes; `docs/backends.md` says who can learn what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from numpy.typing import NDArray

from mpcfl.config import MASKED_BACKENDS
from mpcfl.errors import BackendUnavailable, OutOfOrder, PartyLost
from mpcfl.net.meter import Meter
from mpcfl.net.roster import agree_run_id
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import SecureSum, SumId, SumSettings, check_levels, check_range
from mpcfl.secagg.opening import backend_of
from mpcfl.secagg.options import (
    DEFAULT_DEADLINE_S,
    Proposal,
    compare,
    propose,
)
from mpcfl.secagg.refusal import Refusal, work_together
from mpcfl.secagg.vectors import as_array, as_given

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpcfl.net.mpi import MpiTransport

# A numpy array of int32 or int64, or a torch tensor of them.
Levels = TypeVar("Levels")

_TRANSPORT_NAMES = (
    "allgather",
    "begin_allreduce",
    "begin_gather",
    "begin_scatter",
    "exchange",
    "meter",
    "n_ranks",
    "rank",
)
# Steps that ranks take together are numbered; the sums follow.
_OPENING = 0


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a session was opened.

    Attributes:
        transport: carries the session.
        owned: the transport, where it is the session's own, to be closed with it.
        before: bytes that the transport had sent and received before.
        settings: agreed by all ranks.
        masked: `protect` may be tried at one rank and not at another, because each sum's masks
            go by its number; other backends step on or talk there, so the vector is checked
            before.
    """

    transport: Transport
    owned: MpiTransport | None
    before: tuple[int, int]
    settings: SumSettings
    masked: bool


class SecureSumSession:
    """Any number of secure sums over keys that were agreed once; a context manager."""

    def __init__(self, backend: SecureSum, opening: _Opening) -> None:
        self._opening = opening
        self._transport = opening.transport
        self._backend: SecureSum | None = backend
        self._in_step = True
        self._number = _OPENING
        self._clock = Meter()

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent for this session so far, set-up included."""
        return self._transport.meter.bytes_sent - self._opening.before[0]

    @property
    def bytes_received(self) -> int:
        """Bytes that this rank received for this session so far, set-up included."""
        return self._transport.meter.bytes_received - self._opening.before[1]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by stage (protect, agree, aggregate, open), cumulative.

        Waiting for other ranks is in the last three: in ``agree``, until all ranks have found
        their vectors to be in order. What was made in the background is not counted.
        """
        return dict(self._clock.seconds)

    def sum(self, levels: Levels) -> Levels:
        """Return the sum of all ranks' vectors, centred mod 2^b; all ranks call it together.

        Args:
            levels: this rank's integers, a numpy array or a torch tensor on the CPU, shape
                (dim,), int32 or int64 (int64 only above 32 bits), each in
                [-2^(b-1), 2^(b-1)). Neither copied nor changed.

        Returns:
            The sum, shape (dim,), as an array or tensor of the same dtype, at every rank.

        Raises:
            TypeError: not a vector of such a dtype.
            ValueError: its shape is not (dim,).
            WrapDetected: a value lies outside the ring.
            ProtocolError: another rank refused its own vector, or is at another sum.
            CheckFailed: the sum was changed on its way, or left the ring; see `open_secure_sum`.
            OutOfOrder: the session was closed, or an earlier sum broke off.
            PartyLost: a rank died or did not come before the deadline.
        """
        backend = self._require_open()
        # Only a sum that came through, or that all ranks know to be refused, leaves the ranks in
        # step. After a time-out the next call would pair with another rank's earlier one.
        self._in_step = False
        self._number += 1
        protected = work_together(
            self._transport, self._number, lambda: self._begin(backend, levels), self._clock
        )
        if isinstance(protected, Refusal):
            self._in_step = True
            raise protected.error
        try:
            opened = self._finish(backend, protected)
        except BaseException:
            # The others would wait for this rank, whose fault may be its own alone.
            if self._opening.owned is not None:
                self._opening.owned.abandon()
            raise
        self._in_step = True
        return cast("Levels", as_given(opened, levels))

    def share_sum(self, levels: Any, release: Any, *, precision: int = 0) -> Any:
        """Return the sum unopened, for CrypTen; all ranks call it together.

        It is not checked, as there is nothing open that a check could look at.

        See `CryptenSum.share_sum` for the arguments and for what is raised.

        Raises:
            BackendUnavailable: another backend than ``crypten`` has no CrypTen tensor to give.
        """
        backend = self._require_open()
        share = getattr(backend_of(backend), "share_sum", None)
        if share is None:
            raise BackendUnavailable('only backend "crypten" hands its sum on unopened; take it')
        self._number += 1
        try:
            return share(as_array(levels), release, precision=precision, sum_id=self._sum_id)
        except PartyLost:
            # Of any other refusal all ranks hear, and the number is spent.
            self._in_step = False
            raise

    def prepare(self) -> None:
        """Return once the next sum's masks are made; at once without ``precompute``.

        Local: nothing is sent, and each rank may call it or not. After a sum that was refused
        there is nothing to wait for: the next one makes its masks as it goes.

        Raises:
            OutOfOrder: the session was closed, or an earlier sum broke off.
        """
        self._require_open().prepare()

    def close(self) -> None:
        """Forget all keys; all ranks call it together; may be called twice."""
        backend, self._backend = self._backend, None
        if backend is None:
            return
        backend.close()
        # Giving a communicator back is collective, so not after a sum that broke off.
        if self._opening.owned is not None and self._in_step:
            self._opening.owned.close()

    def __enter__(self) -> SecureSumSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _sum_id(self) -> SumId:
        return SumId(self._number - 1)

    def _require_open(self) -> SecureSum:
        if self._backend is None or not self._in_step:
            raise OutOfOrder("this session was closed, or a sum broke off; open a new one")
        return self._backend

    def _begin(self, backend: SecureSum, levels: Any) -> Any:
        """Refuse a wrong vector, or return it, protected where that sends nothing."""
        with self._clock.stage("protect"):
            array = as_array(levels)
            if self._opening.masked:
                return backend.protect(array, self._sum_id)
            settings = self._opening.settings
            vector = check_levels(array, settings)
            check_range(vector, settings.modulus_bits)
            return vector

    def _finish(self, backend: SecureSum, protected: Any) -> NDArray[Any]:
        """Do what needs the other ranks."""
        if not self._opening.masked:
            with self._clock.stage("protect"):
                protected = backend.protect(protected, self._sum_id)
        with self._clock.stage("aggregate"):
            aggregated = backend.aggregate(protected)
        with self._clock.stage("open"):
            return backend.open(aggregated)


def secure_sum(
    levels: Levels,
    *,
    comm: MPI.Intracomm | Transport,
    backend: str = "crypten",
    modulus_bits: int = 32,
    **options: Any,
) -> Levels:
    """Return the sum of all ranks' integer vectors; only the sum is ever opened.

    All ranks call it together. See `open_secure_sum` for the options, `SecureSumSession.sum`
    for ``levels`` and ``docs/backends.md`` for who can learn what.
    """

    def check(n_ranks: int) -> Proposal:
        array = as_array(levels)
        if array.ndim != 1:
            raise TypeError(f"levels must be a vector; they have {array.ndim} dimensions")
        return propose(backend, array.size, modulus_bits, n_ranks, options)

    with _open(comm, check) as session:
        return session.sum(levels)


def open_secure_sum(
    *,
    comm: MPI.Intracomm | Transport,
    backend: str,
    dim: int,
    modulus_bits: int = 32,
    **options: Any,
) -> SecureSumSession:
    """Agree keys once and return a session for any number of sums; all ranks call it together.

    Args:
        comm: an mpi4py intracommunicator, which is duplicated, so that others may talk on it
            meanwhile; or anything that implements `Transport`, which has its own deadline.
        backend: a registered name, see `mpcfl.secagg.registry.backend_names`.
        dim: length of every vector.
        modulus_bits: b, 8 to 64; sums are centred mod 2^b.
        options: keys of ``[aggregation]``: key_bits, custody ("holder", or "threshold" with
            ``paillier``: here every rank brings data), threshold (t; by default more than half
            of the ranks), key_share (this rank's own, see `mpcfl.load_key_share`; without it
            rank 0 deals shares for this session), deadline_s (longest wait for the other ranks;
            120 s until all agreed on the settings), precompute (False; True makes the next sum's
            masks or randomizers in the background, one vector more at most, and need not be
            equal at all ranks), checked (True: a sum that was changed on its way, or whose true
            value left [-2^(b-1), 2^(b-1)), is a `CheckFailed` at every rank and ends the
            session; with False the latter wraps mod 2^b and the former shows nowhere), neighbors
            ("all"; "auto" or an even k shares masks with fewer ranks, for ring and crypten). Only
            with the latter: colluding, the number of ranks that may pool what they know, and
            max_dropout (0).

    Raises:
        TypeError: ``comm`` is neither; only this rank can know, so the others wait in vain.
        ConfigError: an option is unknown, out of range, missing or not available.
        PlanError: so few neighbors are not safe.
        BackendUnavailable: there is no such backend, or its package is not installed.
        TranscriptMismatch: ranks disagree on the settings; the message names them.
        ProtocolError: another rank refused its own arguments.
        PartyLost: a rank died or did not come before the deadline.
    """
    return _open(comm, lambda n_ranks: propose(backend, dim, modulus_bits, n_ranks, options))


def _open(comm: MPI.Intracomm | Transport, check: Callable[[int], Proposal]) -> SecureSumSession:
    owned = None if _is_transport(comm) else _duplicate(comm)
    transport: Transport = cast("Transport", comm) if owned is None else owned
    before = (transport.meter.bytes_sent, transport.meter.bytes_received)
    proposal = work_together(transport, _OPENING, lambda: check(transport.n_ranks), Meter())
    if isinstance(proposal, Refusal):
        raise proposal.error
    if owned is not None:
        owned.deadline_s = proposal.deadline_s
    compare(transport.allgather(proposal.describe()))
    agreed = replace(proposal.settings, run_id=agree_run_id(transport))
    secure = proposal.open(transport, agreed)
    masked = proposal.backend in MASKED_BACKENDS
    return SecureSumSession(secure, _Opening(transport, owned, before, agreed, masked))


def _is_transport(comm: Any) -> bool:
    return all(hasattr(comm, name) for name in _TRANSPORT_NAMES)


def _duplicate(comm: Any) -> MpiTransport:
    """Open a transport of our own beside the traffic of the communicator's owner."""
    # Loading mpi4py starts MPI, so it waits until an MPI communicator has come.
    from mpi4py import MPI

    from mpcfl.net.mpi import MpiTransport

    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(
            f"comm must be an mpi4py intracommunicator or a Transport, not {type(comm).__name__}"
        )
    return MpiTransport(comm, DEFAULT_DEADLINE_S, duplicate=True)
