"""What the callers of `open_secure_sum` ask for: checked at each rank, then compared by all.

The options are keys of ``[aggregation]``; two of ``[parties]`` come with a sparse graph of
masks. All of it is public. Nothing is sent before every rank has found its own to be in order.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from mpcfl.config import MASKED_BACKENDS, Custody, read_neighbors
from mpcfl.errors import ConfigError, TranscriptMismatch
from mpcfl.hazmat.bits import TAG_VERSION
from mpcfl.net.transport import Transport
from mpcfl.net.wire import Format, Kind, cut, listing, printable, text
from mpcfl.secagg.base import (
    MAX_MODULUS_BITS,
    MIN_MODULUS_BITS,
    BackendFactory,
    SecureSum,
    SumSettings,
)
from mpcfl.secagg.custody import DEFAULT_KEY_BITS, check_key_bits, resolve_threshold
from mpcfl.secagg.neighbors import NeighborChoice, resolve_neighbors
from mpcfl.secagg.opening import open_sum
from mpcfl.secagg.registry import load_backend

if TYPE_CHECKING:
    from mpcfl.secagg.key_holding import HeldShare

# Seconds; as in [aggregation]. It also bounds opening, before the ranks heard of another one.
DEFAULT_DEADLINE_S = 120.0
# What a sparse graph has to withstand, as in [parties].
_THREATS = ("colluding", "max_dropout")
_OPTIONS = (
    "checked", "custody", "deadline_s", "key_bits", "key_share", "neighbors", "precompute",
    "threshold", *_THREATS,
)  # fmt: skip
# What has to be equal at all ranks, one ``key=value`` each; far above what a setting takes.
_FACT_BYTES, _MAX_FACTS = 256, 64
_SUM_OPTIONS = Format(Kind.SUM_OPTIONS, facts=listing(text(_FACT_BYTES), _MAX_FACTS))


@dataclass(frozen=True, slots=True)
class Proposal:
    """One rank's arguments, checked; without a run id, which the ranks agree on later."""

    backend: str
    settings: SumSettings
    factory: BackendFactory
    deadline_s: float
    held: HeldShare | None = None

    def open(self, transport: Transport, settings: SumSettings) -> SecureSum:
        """Open the session with what all ranks agreed on."""
        if self.held is None:
            return open_sum(self.factory, transport, settings)
        with_share: Any = self.factory
        return open_sum(partial(with_share, held=self.held), transport, settings)

    def describe(self) -> bytes:
        """Return what has to be equal at all ranks as a message.

        Masks are the same whether they are made ahead or not, so ``precompute`` is not in it.
        """
        settings = self.settings
        facts = {
            "backend": self.backend,
            "dim": settings.dim,
            "modulus_bits": settings.modulus_bits,
            "key_bits": settings.key_bits,
            "custody": settings.custody.value,
            "threshold": "default" if settings.threshold is None else settings.threshold,
            "key_share": "dealt" if self.held is None else "from a file",
            "neighbors": "all" if settings.neighbors is None else settings.neighbors,
            "checked": settings.checked,
            "version": TAG_VERSION,
        }
        words = [cut(f"{key}={value}", _FACT_BYTES) for key, value in facts.items()]
        return _SUM_OPTIONS.encode(facts=words)


def propose(
    backend: str, dim: int, modulus_bits: int, n_ranks: int, options: Mapping[str, Any]
) -> Proposal:
    """Check one rank's arguments and load the backend; nothing is sent.

    Raises:
        TypeError: a number is none.
        ConfigError: an option is unknown, out of range, missing or not available.
        PlanError: the number of neighbors is not safe.
        BackendUnavailable: there is no such backend, or its package is not installed.
    """
    dim, modulus_bits = operator.index(dim), operator.index(modulus_bits)
    if dim < 0:
        raise ConfigError(f"dim = {dim} is negative; give the length of the vectors")
    if not MIN_MODULUS_BITS <= modulus_bits <= MAX_MODULUS_BITS:
        raise ConfigError(f"modulus_bits = {modulus_bits} is not in 8 to 64; 32 is the default")
    _check_names(options)
    key_bits = operator.index(options.get("key_bits", DEFAULT_KEY_BITS))
    check_key_bits(key_bits)
    threshold = options.get("threshold")
    threshold = None if threshold is None else operator.index(threshold)
    custody, held = _read_custody(backend, options)
    if held is not None:
        # Here, where all ranks hear of it; whoever holds a share has loaded its module.
        sys.modules["mpcfl.secagg.key_holding"].check_share(held.share, key_bits, threshold)
    elif threshold is not None:
        threshold = _check_threshold(custody, n_ranks, threshold)
    settings = SumSettings(
        dim=dim,
        modulus_bits=modulus_bits,
        key_bits=key_bits,
        custody=custody,
        threshold=threshold,
        neighbors=_read_neighbors(backend, n_ranks, options),
        precompute=_read_switch(options, "precompute", default=False),
        checked=_read_switch(options, "checked", default=True),
    )
    return Proposal(backend, settings, load_backend(backend), _read_deadline(options), held)


def compare(descriptions: Sequence[bytes]) -> None:
    """Refuse to go on unless all ranks have the same settings.

    Raises:
        TranscriptMismatch: a rank has others than rank 0; the first difference is named.
        ProtocolError: a rank said something else.
    """
    stated = [
        _SUM_OPTIONS.decode(message, f"rank {rank}")["facts"]
        for rank, message in enumerate(descriptions)
    ]
    for rank, facts in enumerate(stated):
        if facts != stated[0]:
            pairs = itertools.zip_longest(stated[0], facts)
            ours, theirs = next((_shown(a), _shown(b)) for a, b in pairs if a != b)
            raise TranscriptMismatch(
                f"rank {rank} wants {theirs}, rank 0 wants {ours}; give all ranks the same settings"
            )


def _shown(fact: str | None) -> str:
    return "nothing more" if fact is None else printable(fact)


def _check_names(options: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; known are {', '.join(sorted(_OPTIONS))}")


def _read_neighbors(backend: str, n_ranks: int, options: Mapping[str, Any]) -> int | None:
    """Return k; None if every rank shares masks with all others."""
    given = options.get("neighbors", "all")
    try:
        # Integers of numpy are integers too.
        choice = given if isinstance(given, str | bool) else operator.index(given)
        read_neighbors(choice)
    except (TypeError, ValueError):
        raise ConfigError(
            f'neighbors = {given!r} is neither "all" nor "auto" (the least that is safe) nor an '
            "even number from 2 on"
        ) from None
    threats = [name for name in _THREATS if name in options]
    if choice == "all":
        if threats:
            raise ConfigError(
                f'{threats[0]} says what a sparse graph has to withstand; with neighbors = "all" '
                "there is none, so leave it out"
            )
        return None
    if backend not in MASKED_BACKENDS:
        raise ConfigError(
            f'backend "{backend}" has no masks that could be shared with fewer ranks; leave '
            f"neighbors out, or take one of {', '.join(sorted(MASKED_BACKENDS))}"
        )
    return _resolve(cast("NeighborChoice", choice), n_ranks, options)


def _resolve(choice: NeighborChoice, n_ranks: int, options: Mapping[str, Any]) -> int | None:
    if "colluding" not in options:
        raise ConfigError(
            f"neighbors = {choice!r} needs colluding, the number of ranks that may pool what they "
            "know: masks that are shared with fewer ranks protect against so many only"
        )
    if n_ranks == 1:
        return None  # a program that is tried alone has nobody to hide from
    # No sum goes on without a rank, so by default none is missing.
    colluding, max_dropout = (operator.index(options.get(name, 0)) for name in _THREATS)
    if not 1 <= colluding < n_ranks or not 0 <= max_dropout < n_ranks:
        raise ConfigError(
            f"colluding = {colluding} and max_dropout = {max_dropout} are no numbers of {n_ranks} "
            "ranks; at least 1 colludes, 0 or more are missing, and somebody else is left"
        )
    return resolve_neighbors(choice, n_ranks, colluding, max_dropout)


def _read_custody(backend: str, options: Mapping[str, Any]) -> tuple[Custody, HeldShare | None]:
    custody, held = options.get("custody", Custody.HOLDER), options.get("key_share")
    if custody not in (Custody.HOLDER, Custody.THRESHOLD):
        raise ConfigError(
            f'custody = {custody!r}: here every rank brings data, so it can only be "holder" or, '
            'with backend "paillier", "threshold"; `mpcfl run` also has "clients"'
        )
    if custody == Custody.THRESHOLD and backend != "paillier":
        raise ConfigError(f'custody = "threshold" needs backend "paillier", not "{backend}"')
    if held is not None and custody != Custody.THRESHOLD:
        raise ConfigError('key_share needs custody = "threshold"; leave it out')
    # Whoever holds a share has loaded its module, and with it gmpy2; nobody else should have to.
    holding = sys.modules.get("mpcfl.secagg.key_holding")
    if held is not None and (holding is None or not isinstance(held, holding.HeldShare)):
        raise TypeError("key_share is what mpcfl.load_key_share(path, passphrase) returns")
    return Custody(custody), held


def _check_threshold(custody: Custody, n_ranks: int, threshold: int) -> int:
    if custody is not Custody.THRESHOLD:
        raise ConfigError('threshold needs custody = "threshold"; leave it out')
    return resolve_threshold(threshold, n_ranks)


def _read_switch(options: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r} is neither True nor False")
    return value


def _read_deadline(options: Mapping[str, Any]) -> float:
    deadline_s = options.get("deadline_s", DEFAULT_DEADLINE_S)
    is_number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
    if not is_number or not 0 < deadline_s <= sys.float_info.max:
        raise ConfigError(f"deadline_s = {deadline_s} is not a positive, finite number of seconds")
    return float(deadline_s)
