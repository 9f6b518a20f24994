"""`mpcfl.secure_sum` and `mpcfl.open_secure_sum`: a secure sum without the rest of mpcfl.

Every rank brings data. Whatever goes wrong at one rank before anything is sent (a wrong
option, a value out of range) is told to all, so that every rank raises and none waits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

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

Levels = TypeVar("Levels", NDArray[np.int32], NDArray[np.int64])
Result = TypeVar("Result")

_TRANSPORT_NAMES = ("allgather", "allreduce", "exchange", "meter", "n_ranks", "rank")
_DEFAULT_DEADLINE_S = 120.0
# Keys of [aggregation] that name something which is not built yet; their "off" is allowed.
_NOT_AVAILABLE = ("checked", "precompute")
_OPTIONS = ("custody", "deadline_s", "key_bits")
_INT32_BITS = 32
_READY, _REFUSED = b"\x01", b"\x00"


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
            ProtocolError: another rank refused its own vector.
            OutOfOrder: the session was closed, or an earlier sum broke off.
        """
        backend = self._backend
        if backend is None or not self._in_step:
            raise OutOfOrder("this session was closed, or a sum broke off; open a new one")
        vector = _together(self._transport, lambda: _read_levels(levels, self._settings))
        self._in_step = False
        with self._clock.stage("protect"):
            protected = backend.protect(vector)
        with self._clock.stage("aggregate"):
            aggregated = backend.aggregate(protected)
        with self._clock.stage("open"):
            opened = backend.open(aggregated)
        # Only a sum that came through leaves the ranks in step for the next one.
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

    def propose() -> tuple[SumSettings, BackendFactory]:
        if not isinstance(levels, np.ndarray) or levels.ndim != 1:
            raise TypeError(f"levels must be a numpy vector, not {type(levels).__name__}")
        return _propose(backend, levels.size, modulus_bits, options)

    with _open(comm, options, backend, propose) as session:
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
        comm: an mpi4py intracommunicator, or anything that implements `Transport`.
        backend: a registered name, see `mpcfl.secagg.registry.backend_names`.
        dim: length of every vector.
        modulus_bits: b, 8 to 64; sums are centred mod 2^b.
        options: keys of ``[aggregation]``: key_bits, custody ("holder" only: here every rank
            brings data), deadline_s.

    Raises:
        ConfigError: an option is unknown, out of range or not available.
        BackendUnavailable: there is no such backend, or its package is not installed.
        TranscriptMismatch: ranks disagree on the settings; the message names them.
    """
    return _open(comm, options, backend, lambda: _propose(backend, dim, modulus_bits, options))


def _open(
    comm: MPI.Intracomm | Transport,
    options: Mapping[str, Any],
    backend: str,
    propose: Callable[[], tuple[SumSettings, BackendFactory]],
) -> SecureSumSession:
    transport = _transport_of(comm, options)
    before = (transport.meter.bytes_sent, transport.meter.bytes_received)
    settings, factory = _together(transport, propose)
    _compare(transport.allgather(_describe(backend, settings)))
    agreed = replace(settings, run_id=agree_run_id(transport))
    secure = factory(transport, agreed)
    return SecureSumSession(transport, agreed, secure, before=before, owned=transport is not comm)


def _together(transport: Transport, work: Callable[[], Result]) -> Result:
    """Do local work at every rank; if it fails at one rank, every rank raises.

    Raises:
        ProtocolError: another rank failed; what failed stays there.
    """
    try:
        result = work()
    except (MpcflError, TypeError, ValueError):
        transport.allgather(_REFUSED)
        raise
    answers = transport.allgather(_READY)
    refused = [str(rank) for rank, answer in enumerate(answers) if answer != _READY]
    if refused:
        raise ProtocolError(
            f"rank {', '.join(refused)} refused its settings or its vector; see the error there"
        )
    return result


def _propose(
    backend: str, dim: int, modulus_bits: int, options: Mapping[str, Any]
) -> tuple[SumSettings, BackendFactory]:
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
    return settings, load_backend(backend)


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


def _transport_of(comm: Any, options: Mapping[str, Any]) -> Transport:
    if all(hasattr(comm, name) for name in _TRANSPORT_NAMES):
        transport: Transport = comm
        return transport
    deadline_s = options.get("deadline_s", _DEFAULT_DEADLINE_S)
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or deadline_s <= 0:
        raise ConfigError("deadline_s must be a positive number of seconds")
    # Loading mpi4py starts MPI, so it waits until an MPI communicator has come.
    from mpi4py import MPI

    from mpcfl.net.mpi import MpiTransport

    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(
            f"comm must be an mpi4py intracommunicator or a Transport, not {type(comm).__name__}"
        )
    return MpiTransport(comm, deadline_s)
