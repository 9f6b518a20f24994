"""Packages of others that add vectors of integers, as cells beside our own backends.

A peer gets the integers, the transport and the roles that backend `paillier` has under custody
`clients`: the data parties share one key, and one more rank, the aggregator, adds ciphertexts
without key and data. So routes, chunks, sealed channels and what overlaps are the same
(`secagg/paillier_routes.py`), and only the cryptosystem and its library differ. Bytes are counted
at the same transport.

A peer's package is imported when its session is opened. What a peer protects, and what tells it
from our backends, is part of its entry here and of every report that shows its figures.

Does not protect: what is said of custody `clients` holds, see `secagg/custody.py`. Peers are for
benchmarks only; no job can choose one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from mpcfl.bench.peers.ckks_noise import SUMS_ALONE, USUAL, CkksParameters
from mpcfl.errors import BackendUnavailable
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumSettings

# What a peer needs to know is what a backend does; custody is `clients` always.
PeerSettings = SumSettings
REMEDY = 'pip install "mpcfl[peers]"'


class PeerSession(Protocol):
    """One rank's session of sums; see `SecureSum`, whose stages have the same names."""

    def protect(self, levels: Levels | None) -> Any:
        """Take this rank's integers, shape (dim,); None at the aggregator."""
        ...

    def aggregate(self, protected: Any) -> Any:
        """Turn all parties' vectors into one sum, encrypted."""
        ...

    def open(self, aggregated: Any) -> Any:
        """Return the sum, shape (dim,): in the dtype of the levels where the peer is exact.

        An inexact one returns float64, not rounded. The aggregator gets shape (0,).
        """
        ...

    def close(self) -> None:
        """Forget all keys."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """A package that is measured beside our backends.

    Attributes:
        name: in grids and records.
        package: distribution whose version is in the records.
        security: its level, and by what source.
        differences: what tells it from our backends, a sentence or two each.
        tolerance: by how much an opened coordinate may miss the exact sum, for each of the
            parties; 0 for an exact peer.
        opens: opens a session at one rank; all ranks, the aggregator last, call it together. It
            raises `BackendUnavailable` where the package is not installed.
    """

    name: str
    package: str
    security: str
    differences: tuple[str, ...]
    tolerance: float
    opens: Callable[[Transport, PeerSettings], PeerSession]


def import_peer(module: str, package: str) -> Any:
    """Import a module that needs a peer's package.

    Raises:
        BackendUnavailable: the package is not installed; the message names the remedy.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"the peer needs the package {package!r}, and {error.name!r} is not there; "
            f"run: {REMEDY}"
        ) from error


_TENSEAL, _HEU = "tenseal", "sf-heu"
_ONE_KEY = (
    "One private key for all parties, made by rank 0 and sent to the others over sealed channels: "
    "each party reads every vector whose ciphertext it gets hold of, so that the aggregator "
    "together with any one party reads all. Custody clients of backend paillier has the same roles."
)
_AS_GIVEN = (
    "Ciphertexts are handed to the library as they come: it is not made for hostile ones, and "
    "nothing proves that a sum is complete. A sum from which a party is missing is not tried again."
)
_APPROXIMATE = (
    "Sums are approximate: what is opened is not rounded here, and its largest error is reported. "
    "Rounding to the nearest integer makes sums of up to {most} parties exact, since the error "
    "stays below {tolerance:.2g} per party. At most 32 bits, and nothing wraps mod 2^b."
)
_NOISE_TELLS = (
    "What an approximate sum is off by tells of the key: whoever has a ciphertext and the sum "
    "opened from it, not rounded, can find the private key (Li and Micciancio, EUROCRYPT 2021). "
    "The aggregator must never be shown such a sum."
)
_HEU_PACKING = (
    "Two integers in a ciphertext, by the library's own BatchIntegerEncoder (64 bits each, 32 bits "
    "between them). Backend paillier packs as many as fit: some 60 of 32 bits with 2048 bits of "
    "key."
)
_HEU_EXPONENTS = (
    "Encrypts by the public key, with short exponents, also where the private key would be faster."
)
_PACE = (
    "One thread computes: the library holds Python's lock meanwhile, so that encrypting, "
    "decrypting and sending take turns."
)


def _ckks(name: str, parameters: CkksParameters, table: str, why: str) -> Peer:
    def opens(transport: Transport, settings: PeerSettings) -> PeerSession:
        module = import_peer("mpcfl.bench.peers.ckks", _TENSEAL)
        session: PeerSession = module.open_ckks_sum(transport, settings, parameters)
        return session

    approximate = _APPROXIMATE.format(most=parameters.most_rounded, tolerance=parameters.tolerance)
    return Peer(
        name=name,
        package=_TENSEAL,
        security=(
            f"{table}: a ring of dimension {parameters.degree} and a modulus of "
            f"{parameters.modulus_bits} bits (Homomorphic Encryption Standard, 2018, table 1: "
            "ternary secret, classical attacks)"
        ),
        differences=(why, approximate, _NOISE_TELLS, _ONE_KEY, _AS_GIVEN, _PACE),
        tolerance=parameters.tolerance,
        opens=opens,
    )


def _open_heu(transport: Transport, settings: PeerSettings) -> PeerSession:
    module = import_peer("mpcfl.bench.peers.heu", _HEU)
    session: PeerSession = module.open_heu_sum(transport, settings)
    return session


def _heu() -> Peer:
    return Peer(
        name="heu-zpaillier",
        package=_HEU,
        security=(
            "112 bits with a key of 2048 bits, 128 with 3072 (NIST SP 800-57 part 1, table 2); "
            "exponents of randomizers are half as long as the key (Damgard, Jurik, Nielsen 2010)"
        ),
        differences=(_HEU_PACKING, _HEU_EXPONENTS, _ONE_KEY, _AS_GIVEN, _PACE),
        tolerance=0.0,
        opens=_open_heu,
    )


_PEERS = (
    _ckks(
        "tenseal-ckks",
        USUAL,
        "128 bits",
        "The parameters that most comparisons use: primes of 60, 40, 40 and 60 bits, scale 2^40. "
        "They leave room for two multiplications, which no sum needs.",
    ),
    _ckks(
        "tenseal-ckks-sums",
        SUMS_ALONE,
        "192 bits",
        "Parameters for sums alone: one prime of 60 bits carries the values, scale 2^27. A "
        "ciphertext has a third of the words of the usual one.",
    ),
    _heu(),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _PEERS}
