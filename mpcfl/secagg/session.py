"""`mpcfl.secure_sum` and `mpcfl.open_secure_sum`: a secure sum without the rest of mpcfl.

Every rank brings data. Whatever goes wrong at one rank before anything is sent (a wrong
option, a value out of range) is told to all, so that every rank raises and none waits.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mpcfl.config import Custody
from mpcfl.errors import ConfigError, MpcflError, OutOfOrder, ProtocolError, TranscriptMismatch
from mpcfl.hazmat.bits import TAG_VERSION
from mpcfl.net.meter import Meter
from mpcfl.net.roster import agree_run_id
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import (
    MAX_MODULUS_BITS,
    MIN_MODULUS_BITS,
    BackendFactory,
    IntVector,
    SecureSum,
    SumSettings,
    check_range,
)
from mpcfl.secagg.custody import DEFAULT_KEY_BITS, check_key_bits
from mpcfl.secagg.registry import load_backend

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpcfl.net.mpi import MpiTransport

Levels = TypeVar("Levels", NDArray[np.int32], NDArray[np.int64])
Result = TypeVar("Result")

_TRANSPORT_NAMES = ("allgather", "allreduce", "exchange", "meter", "n_ranks", "rank")
# Seconds; as in [aggregation]. It also bounds opening, before the ranks heard of another one.
_DEFAULT_DEADLINE_S = 120.0
# Keys of [aggregation] that name something which is not built yet; their "off" is allowed.
_NOT_AVAILABLE = ("checked", "precompute")
_OPTIONS = ("custody", "deadline_s", "key_bits")
_INT32_BITS = 32
# What ranks tell each other before a step: one of these and the number of the step.
_READY, _REFUSED = b"\x01", b"\x00"
_NUMBER_BYTES = 8
_OPENING = 0


@dataclass(frozen=True, slots=True)
class _Proposal:
    """One rank's arguments, checked."""

    settings: SumSettings
    factory: BackendFactory
    deadline_s: float


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Some rank refused and all ranks have heard it; ``error`` is what to raise at this one."""

    error: Exception


class SecureSumSession:
    """Any number of secure sums over keys that were agreed once; a context manager.

    Attributes:
        seconds: wall-clock seconds by stage (protect, aggregate, open), cumulative.
    """

    def __init__(
        self,
        transport: Transport,
        settings: SumSettings,
        backend: SecureSum,
        *,
        before: tuple[int, int],
        owned: bool,
    ) -> None:
        self._transport = transport
        self._owned = owned
        self._settings = settings
        self._backend: SecureSum | None = backend
        self._in_step = True
        self._number = _OPENING
        self._clock = Meter()
        self._before = before

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent for this session so far, set-up included."""
        return self._transport.meter.bytes_sent - self._before[0]

    @property
    def bytes_received(self) -> int:
        """Bytes that this rank received for this session so far, set-up included."""
        return self._transport.meter.bytes_received - self._before[1]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by stage, cumulative."""
        return dict(self._clock.seconds)

    def sum(self, levels: Levels) -> Levels:
        """Return the sum of all ranks' vectors, centred mod 2^b; all ranks call it together.

        Args:
            levels: this rank's integers, shape (dim,), int32 or int64 (int64 only above 32
                bits), each in [-2^(b-1), 2^(b-1)). Not changed.

        Returns:
            The sum, shape (dim,), in the dtype of ``levels``, at every rank.

        Raises:
            TypeError: not a numpy vector of such a dtype.
            ValueError: its shape is not (dim,).
            WrapDetected: a value lies outside the ring.
            ProtocolError: another rank refused its own vector, or is at another sum.
            OutOfOrder: the session was closed, or an earlier sum broke off.
            PartyLost: a rank died or did not come before the deadline.
        """
        backend = self._backend
        if backend is None or not self._in_step:
            raise OutOfOrder("this session was closed, or a sum broke off; open a new one")
        # Only a sum that came through, or that all ranks know to be refused, leaves the ranks in
        # step. After a time-out the next call would pair with another rank's earlier one.
        self._in_step = False
        self._number += 1
        read = _together(
            self._transport, self._number, lambda: _read_levels(levels, self._settings)
        )
        if isinstance(read, _Refusal):
            self._in_step = True
            raise read.error
        with self._clock.stage("protect"):
            protected = backend.protect(read)
        with self._clock.stage("aggregate"):
            aggregated = backend.aggregate(protected)
        with self._clock.stage("open"):
            opened = backend.open(aggregated)
        self._in_step = True
        return opened.astype(levels.dtype, copy=False)

    def close(self) -> None:
        """Forget all keys; all ranks call it together; may be called twice."""
        backend, self._backend = self._backend, None
        if backend is None:
            return
        backend.close()
        # Giving a communicator back is collective, so not after a sum that broke off.
        if self._owned and self._in_step:
            self._transport.close()

    def __enter__(self) -> SecureSumSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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

    def propose() -> _Proposal:
        if not isinstance(levels, np.ndarray) or levels.ndim != 1:
            raise TypeError(f"levels must be a numpy vector, not {type(levels).__name__}")
        return _propose(backend, levels.size, modulus_bits, options)

    with _open(comm, backend, propose) as session:
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
        options: keys of ``[aggregation]``: key_bits, custody ("holder" only: here every rank
            brings data), deadline_s (longest wait for the other ranks; 120 s until all agreed
            on the settings).

    Raises:
        TypeError: ``comm`` is neither; only this rank can know, so the others wait in vain.
        ConfigError: an option is unknown, out of range or not available.
        BackendUnavailable: there is no such backend, or its package is not installed.
        TranscriptMismatch: ranks disagree on the settings; the message names them.
        ProtocolError: another rank refused its own arguments.
        PartyLost: a rank died or did not come before the deadline.
    """
    return _open(comm, backend, lambda: _propose(backend, dim, modulus_bits, options))


def _open(
    comm: MPI.Intracomm | Transport, backend: str, propose: Callable[[], _Proposal]
) -> SecureSumSession:
    owned = None if _is_transport(comm) else _duplicate(comm)
    transport: Transport = cast("Transport", comm) if owned is None else owned
    before = (transport.meter.bytes_sent, transport.meter.bytes_received)
    proposal = _together(transport, _OPENING, propose)
    if isinstance(proposal, _Refusal):
        raise proposal.error
    if owned is not None:
        owned.deadline_s = proposal.deadline_s
    _compare(transport.allgather(_describe(backend, proposal.settings)))
    agreed = replace(proposal.settings, run_id=agree_run_id(transport))
    secure = proposal.factory(transport, agreed)
    return SecureSumSession(transport, agreed, secure, before=before, owned=owned is not None)


def _together(transport: Transport, number: int, work: Callable[[], Result]) -> Result | _Refusal:
    """Do local work at every rank and hear how it went; what failed stays at its rank.

    Raises:
        ProtocolError: another rank is at another step.
        PartyLost: not all ranks were heard.
    """
    try:
        result = work()
    except (MpcflError, TypeError, ValueError) as error:
        _tell(transport, number, _REFUSED)
        return _Refusal(error)
    refused = _tell(transport, number, _READY)
    if refused:
        who = ", ".join(str(rank) for rank in refused)
        return _Refusal(
            ProtocolError(f"rank {who} refused its settings or its vector; see the error there")
        )
    return result


def _tell(transport: Transport, number: int, word: bytes) -> list[int]:
    """Tell all ranks how a step goes here; return the ranks that refused theirs."""
    ready, refused = (w + number.to_bytes(_NUMBER_BYTES, "big") for w in (_READY, _REFUSED))
    answers = transport.allgather(ready if word == _READY else refused)
    for rank, answer in enumerate(answers):
        if answer not in (ready, refused):
            raise ProtocolError(
                f"rank {rank} is not at sum {number} as this rank is (0 is the opening); make "
                "the same calls at all ranks, and open a new session"
            )
    return [rank for rank, answer in enumerate(answers) if answer == refused]


def _propose(backend: str, dim: int, modulus_bits: int, options: Mapping[str, Any]) -> _Proposal:
    """Check this rank's arguments and load the backend."""
    dim, modulus_bits = operator.index(dim), operator.index(modulus_bits)
    if dim < 0:
        raise ConfigError(f"dim = {dim} is negative; give the length of the vectors")
    if not MIN_MODULUS_BITS <= modulus_bits <= MAX_MODULUS_BITS:
        raise ConfigError(f"modulus_bits = {modulus_bits} is not in 8 to 64; 32 is the default")
    unknown = sorted(set(options) - {*_OPTIONS, *_NOT_AVAILABLE})
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; known are {', '.join(_OPTIONS)}")
    for name in _NOT_AVAILABLE:
        if options.get(name, False) is not False:
            raise ConfigError(f"option {name} is not available yet; leave it out")
    if options.get("custody", Custody.HOLDER) != Custody.HOLDER:
        raise ConfigError(
            'here every rank brings data, so custody can only be "holder"; `mpcfl run` has the '
            "others"
        )
    key_bits = operator.index(options.get("key_bits", DEFAULT_KEY_BITS))
    check_key_bits(key_bits)
    settings = SumSettings(dim=dim, modulus_bits=modulus_bits, key_bits=key_bits)
    return _Proposal(settings, load_backend(backend), _read_deadline(options))


def _read_deadline(options: Mapping[str, Any]) -> float:
    deadline_s = options.get("deadline_s", _DEFAULT_DEADLINE_S)
    is_number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
    if not is_number or not 0 < deadline_s <= sys.float_info.max:
        raise ConfigError(f"deadline_s = {deadline_s} is not a positive, finite number of seconds")
    return float(deadline_s)


def _describe(backend: str, settings: SumSettings) -> bytes:
    """Return the public settings as text, one ``key=value`` per line."""
    facts = {"backend": backend, "dim": settings.dim, "modulus_bits": settings.modulus_bits}
    facts |= {"key_bits": settings.key_bits, "version": TAG_VERSION}
    return "\n".join(f"{key}={value}" for key, value in facts.items()).encode()


def _compare(descriptions: list[bytes]) -> None:
    """Refuse to go on unless all ranks have the same settings."""
    first = descriptions[0].decode().splitlines()
    for rank, description in enumerate(descriptions):
        other = description.decode(errors="replace").splitlines()
        if other != first:
            ours, theirs = next((a, b) for a, b in zip(first, other, strict=False) if a != b)
            raise TranscriptMismatch(
                f"rank {rank} wants {theirs}, rank 0 wants {ours}; give all ranks the same settings"
            )


def _read_levels(levels: Any, settings: SumSettings) -> IntVector:
    """Return one rank's vector as contiguous int64, shape (dim,), or refuse it."""
    if not isinstance(levels, np.ndarray) or isinstance(levels, np.ma.MaskedArray):
        raise TypeError(f"levels must be a numpy array, not {type(levels).__name__}")
    if levels.dtype not in (np.int32, np.int64):
        raise TypeError(f"levels must hold int32 or int64, not {levels.dtype}")
    if levels.dtype == np.int32 and settings.modulus_bits > _INT32_BITS:
        raise TypeError(f"modulus_bits = {settings.modulus_bits} needs int64, not int32")
    if levels.shape != (settings.dim,):
        raise ValueError(f"levels have shape {levels.shape}, the session takes ({settings.dim},)")
    vector = np.ascontiguousarray(levels, dtype=np.int64)
    check_range(vector, settings.modulus_bits)
    return vector


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
    return MpiTransport(comm, _DEFAULT_DEADLINE_S, duplicate=True)
