"""A sum that stays shared: handed on to CrypTen, computed with, and only the result opened.

What a rank holds of a `crypten` sum is a CrypTen share of it (`crypten_sum.py`). CrypTen's own
protocols can go on from there: is the noised total above a threshold, which coordinate is the
largest. Only what `SharedSum.open` is given becomes known.

What that costs: **opening anything computed from a shared sum is charged like opening the sum**,
once for each sum. The noise in the sum is what protects records; a function of the noised
sum is post-processing, costs nothing beyond it and may be followed by others. It is not
charged less either, since CrypTen's default provider of multiplication triples
(TrustedFirstParty) trusts rank 0: rank 0 makes all triples and can work out from the messages
every value that is computed with, the noised sum included. The charge is on this party's
disk, and all ranks know that theirs is, before CrypTen can send anything.

Assumes semi-honest ranks. Inputs of single parties don't rest on CrypTen: all shares together
tell the noised sum and nothing else, as if it had been opened. That the sum itself stays
hidden rests on CrypTen: from rank 0 it does not; from all others it does, by AES-256-CTR streams
between pairs in place of CrypTen's generators (`crypten_streams.py`). A division by a public
number (fixed-point products end in one) also sends unmasked helper values, from which somebody
who reads the whole network learns the noised sum. What is mixed in besides the shared sum and
public numbers, say another secret tensor, is not covered by the charge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch

from mpcfl.config import Unit
from mpcfl.dp.ledger import Charge, Ledger, Token, planned_charge, realised_charge
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.errors import (
    ConfigError,
    MpcflError,
    OutOfOrder,
    ProtocolError,
    TranscriptMismatch,
)
from mpcfl.net.transport import Transport
from mpcfl.net.wire import U32, U64, Format, Kind, optional, record, text
from mpcfl.secagg import crypten_bridge
from mpcfl.secagg.base import SumId, SumSettings
from mpcfl.secagg.crypten_bridge import crypten
from mpcfl.secagg.crypten_communicator import TransportCommunicator

MPCTensor = crypten.mpc.MPCTensor
_TENSORS = (
    MPCTensor,
    crypten.mpc.primitives.ArithmeticSharedTensor,
    crypten.mpc.primitives.BinarySharedTensor,
)
T = TypeVar("T")

_PURPOSE = "shared-sum"
# What all ranks must share, all of it public; nothing from a rank that refuses.
_SHARED_SUM = Format(
    Kind.SHARED_SUM,
    facts=optional(
        record(
            round_id=U64,
            attempt=U32,
            precision=U32,
            # None without privacy. A fingerprint is a SHA-256 in hex.
            charge=optional(record(round_id=U64, attempt=U32, plan=text(64))),
        )
    ),
)
# Comparisons look at the sign of a difference in Z_2^64.
_SIGNED_BITS = 63


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Charged:
    """What an opening is charged to: one release under a plan, in this party's ledger.

    Attributes:
        ledger: open, with a budget; in force as long as the shared sum is.
        plan: sized the noise that the levels carry; equal at all ranks.
        round_id: aggregation of the run, as the ledger counts; equal at all ranks.
        attempt: its retry, from 0; equal at all ranks.
    """

    ledger: Ledger
    plan: NoisePlan
    round_id: int = 0
    attempt: int = 0


# Where an opening is charged, or the word that there is no privacy to keep.
Release = Charged | Literal[Unit.NONE]


class ReservedCharge:
    """A charge that is on disk; committed by the first opening, and spent in any case."""

    def __init__(self, release: Charged) -> None:
        planned = planned_charge(release.plan, release.round_id, release.attempt)
        self._charge: Charge = replace(planned, purpose=_PURPOSE)
        self._release = release
        self._token: Token | None = release.ledger.reserve(self._charge)

    def opened(self) -> None:
        """Note that something of the sum is known and used; does nothing the second time."""
        token, self._token = self._token, None
        if token is None:
            return
        ledger, plan = self._release.ledger, self._release.plan
        realised = realised_charge(plan, self._charge, plan.parties)
        ledger.opened(token)
        ledger.commit(token, replace(realised, purpose=_PURPOSE))

    def abandon(self) -> None:
        """Close a charge whose sum this rank never opened; others may have, so it stays spent."""
        token, self._token = self._token, None
        if token is not None:
            self._release.ledger.abandon(token)


class SharedSum:
    """The sum of all ranks' vectors, in CrypTen's shares and unopened; a context manager.

    All ranks make the same calls in the same order.
    """

    def __init__(
        self,
        share: Any,
        communicator: TransportCommunicator,
        generators: Mapping[str, dict[Any, Any]],
        charge: ReservedCharge | None,
    ) -> None:
        self._share = share
        self._precision: int = share.encoder._precision_bits
        self._communicator = communicator
        self._generators = generators
        self._charge = charge
        self._in_step = True
        self._is_speaking = False

    @contextmanager
    def computing(self) -> Iterator[Any]:
        """Let CrypTen speak in this thread, and yield the sum as a tensor to compute with.

        Yields:
            A `crypten.mpc.MPCTensor`, shape (dim,), a copy for this block; its ``_tensor`` is
            the `ArithmeticSharedTensor`. It holds the sum itself, with its sign, not its residue
            mod 2^b; a plan keeps the two equal. CrypTen's own ``get_plain_text`` works in
            here and was paid for, but leaves the ledger with an open reserve: use `open`.

            CrypTen 0.4.1's ``eq`` and ``ne`` are wrong for two ranks at precision 0 (they take
            2^16 for one); ``lt``, ``le``, ``gt`` and ``ge`` are right. Its maxima change its
            settings for a moment, so only one party per process can ask for them.

        Raises:
            OutOfOrder: this was closed, or the session was, or a computation broke off.
            ConfigError: CrypTen is set to another provider of triples than its default.
        """
        with self._speaking():
            yield MPCTensor.from_shares(self._share.share.clone(), self._precision)

    def open(self, result: Any) -> torch.Tensor:
        """Open what was computed from the sum; all ranks learn it. See the module on its price.

        Args:
            result: a tensor of CrypTen's that was computed inside `computing`.

        Returns:
            Its values in the clear: int64 if it holds integers, else CrypTen's float32.

        Raises:
            OutOfOrder: as `computing`.
            LedgerError: the value is known now, but the ledger could not note it.
        """
        if not isinstance(result, _TENSORS):
            raise TypeError(f"only CrypTen's shared tensors can be opened, not {type(result)}")
        with self._speaking():
            opened: torch.Tensor = result.get_plain_text()
            if self._charge is not None:
                self._charge.opened()
        return opened

    def close(self) -> None:
        """Forget the share; may be called twice. A charge without an opening stays spent."""
        self._share, self._generators = None, {}
        if self._charge is not None:
            self._charge.abandon()

    def __enter__(self) -> SharedSum:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "SharedSum(<unopened>)"

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        in_step = self._in_step or self._is_speaking
        if self._share is None or self._communicator.is_closed or not in_step:
            raise OutOfOrder("this shared sum was closed or broke off; make a new one")
        if crypten.cfg.mpc.provider != "TFP":
            raise ConfigError(
                f'CrypTen\'s provider is "{crypten.cfg.mpc.provider}"; only its default, "TFP", '
                "works on a shared sum"
            )
        if self._is_speaking:
            yield
            return
        # What fails halfway may have left ranks at different steps.
        self._in_step, self._is_speaking = False, True
        try:
            with crypten_bridge.speaking_through(self._communicator, self._generators):
                yield
                self._communicator.flush()
            self._in_step = True
        finally:
            self._is_speaking = False


def check_precision(n_ranks: int, modulus_bits: int, precision: int) -> None:
    """Refuse what CrypTen's comparisons would answer wrongly.

    Raises:
        ConfigError: the difference of two sums could wrap in Z_2^64; or CrypTen 0.4.1, whose
            comparisons know integers and its own default precision only, can't compare.
    """
    default = int(crypten.cfg.encoder.precision_bits)
    if precision not in (0, default):
        raise ConfigError(
            f"precision = {precision} is neither 0 (integers) nor {default}, CrypTen's default; "
            "its comparisons are right at these two only"
        )
    if n_ranks << (modulus_bits + precision) > 1 << _SIGNED_BITS:
        raise ConfigError(
            f"sums of {n_ranks} values of {modulus_bits} bits at precision {precision} don't fit "
            "CrypTen's comparisons in 64 bits; use fewer modulus bits, or precision 0"
        )


def check_release(release: Release, settings: SumSettings, n_ranks: int) -> None:
    """Refuse a release that is not one of this sum.

    Raises:
        TypeError: it is neither a charge nor `Unit.NONE`.
        ConfigError: its plan is for another length, ring or number of parties.
    """
    if release is Unit.NONE:
        return
    if not isinstance(release, Charged):
        raise TypeError(
            "an opening needs a charge: give Charged(ledger, plan), or Unit.NONE where there is "
            "no privacy to keep"
        )
    plan = release.plan
    planned = (plan.vector_dim, plan.modulus_bits, plan.parties)
    actual = (settings.dim, settings.modulus_bits, n_ranks)
    if planned != actual:
        raise ConfigError(
            f"the plan is for (dim, modulus_bits, parties) = {planned}, the session has {actual}; "
            "make the plan of this sum"
        )


def agree_release(
    transport: Transport, release: Release, check: Callable[[], tuple[T, SumId, int]]
) -> tuple[T, SumId, ReservedCharge | None]:
    """Reserve this rank's charge, and go on only if all ranks did; all call it together.

    Args:
        transport: joins the ranks; says nothing before this rank's charge is on disk.
        release: where to charge.
        check: does all local checks; returns what to go on with, which sum it is, and the
            precision.

    Returns:
        What ``check`` returned, the sum, and the charge; None without privacy.

    Raises:
        ProtocolError: another rank refused, or said something else.
        TranscriptMismatch: another rank charges otherwise, or is at another sum.
        Exception: what ``check`` or the ledger raised; all other ranks then refuse as well.
    """
    try:
        checked, sum_id, precision = check()
        own = _SHARED_SUM.encode(facts=_describe(release, sum_id, precision))
        # Last, so that nothing that is wrong here costs anything.
        charge = None if release is Unit.NONE else ReservedCharge(release)
    except Exception:
        transport.allgather(_SHARED_SUM.encode(facts=None))
        raise
    answers = transport.allgather(own)
    try:
        _require_equal(answers, transport.rank)
    except MpcflError:
        if charge is not None:
            charge.abandon()
        raise
    return checked, sum_id, charge


def _describe(release: Release, sum_id: SumId, precision: int) -> dict[str, Any]:
    """Return the public facts that all ranks must share."""
    charge = None
    if release is not Unit.NONE:
        charge = {
            "round_id": release.round_id,
            "attempt": release.attempt,
            "plan": release.plan.fingerprint(),
        }
    return {**asdict(sum_id), "precision": precision, "charge": charge}


def _require_equal(answers: list[bytes], own_rank: int) -> None:
    stated = [
        _SHARED_SUM.decode(answer, f"rank {rank}")["facts"] for rank, answer in enumerate(answers)
    ]
    for rank, facts in enumerate(stated):
        if facts is None:
            raise ProtocolError(f"rank {rank} refused to share its sum; see the error there")
        if facts != stated[own_rank]:
            raise TranscriptMismatch(
                f"rank {rank} shares another sum than this rank, or charges it otherwise; make "
                "the same call with the same plan at all ranks"
            )
