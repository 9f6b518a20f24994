"""TenSEAL's CKKS as a peer: approximate sums, thousands of values in a ciphertext.

Values go in as float64, one `CKKSVector` for each ciphertext, by the public key. Opened sums are
float64 and not rounded, so that what they are off by can be seen; `ckks_noise.py` bounds it. They
travel between the data parties as the 64 bits of each number.

The aggregator gets the parameters alone: neither the secret key nor anything to encrypt by.

Does not protect: whoever has a ciphertext and the unrounded sum opened from it can find the key
(Li and Micciancio, EUROCRYPT 2021). What the library makes of hostile messages was not looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import tenseal
from numpy.typing import NDArray

from mpcfl.bench.peers.blobs import read_blobs, write_blobs
from mpcfl.bench.peers.ckks_noise import MAX_MODULUS_BITS, CkksParameters
from mpcfl.bench.peers.shared_key import Joined, join
from mpcfl.errors import ConfigError, OutOfOrder, ProtocolError
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import IntVector, Levels, SumId, SumSettings, check_levels, check_range
from mpcfl.secagg.paillier_routes import ClientsSum

# 1 MiB of the shorter ciphertexts: on slow links the first are added while others are on their way.
_CHUNK_CIPHERTEXTS = 8
_FLOAT_BITS = 64
_THREADS = 1


class CkksOps:
    """CKKS for one key; implements `CipherOps` with sums that are floats, by their bits.

    Args:
        joined: holds the key.
        parameters: of the scheme.
    """

    def __init__(self, joined: Joined, parameters: CkksParameters) -> None:
        self._slots = parameters.slots
        encoded = joined.public if joined.private is None else joined.private
        self._context: Any = tenseal.context_from(encoded, _THREADS)

    @property
    def slots(self) -> int:
        """See `CipherOps.slots`."""
        return self._slots

    @property
    def chunk_values(self) -> int:
        """See `CipherOps.chunk_values`."""
        return _CHUNK_CIPHERTEXTS * self._slots

    def encrypt(self, levels: Levels) -> list[Any]:
        """See `CipherOps.encrypt`."""
        values = levels.astype(np.float64)
        pieces = (values[at : at + self._slots] for at in range(0, values.size, self._slots))
        return [tenseal.ckks_vector(self._private(), piece) for piece in pieces]

    def multiply(self, left: list[Any], right: list[Any]) -> list[Any]:
        """See `CipherOps.multiply`; the library calls it to add."""
        return [one + other for one, other in zip(left, right, strict=True)]

    def decrypt(self, ciphertexts: list[Any], n_values: int, n_inputs: int) -> IntVector:
        """Return the bits of the sums as float64, shape (n_values,); see `CipherOps.decrypt`."""
        del n_inputs
        self._private()
        sums = np.concatenate([np.array(vector.decrypt()) for vector in ciphertexts])
        if sums.shape != (n_values,):
            raise ProtocolError(f"{sums.size} values were decrypted, {n_values} were expected")
        return sums.view(np.int64)

    def write(self, ciphertexts: list[Any]) -> bytes:
        """See `CipherOps.write`; the library's own encoding of each ciphertext."""
        return write_blobs([vector.serialize() for vector in ciphertexts])

    def read(self, message: bytes, n_values: int) -> list[Any]:
        """See `CipherOps.read`."""
        blobs = read_blobs(message, -(-n_values // self._slots))
        try:
            vectors = [tenseal.ckks_vector_from(self._context, blob) for blob in blobs]
        except (RuntimeError, ValueError) as error:
            raise ProtocolError("what came is no vector of the library") from error
        if sum(vector.size() for vector in vectors) != n_values:
            raise ProtocolError(f"the ciphertexts that came do not hold {n_values} values")
        return vectors

    def begin(self, sum_id: SumId) -> None:
        """There is nothing made ahead."""

    def finish(self) -> None:
        """There is nothing to make ahead."""

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def forget(self) -> None:
        """Drop the key."""
        self._context = None

    def _private(self) -> Any:
        if self._context is None or not self._context.has_secret_key():
            raise OutOfOrder("this rank has no private key, or its session was closed")
        return self._context


class CkksSum:
    """A session of approximate sums at one rank; implements `PeerSession`.

    Args:
        route: carries vectors of 64 bits, which the bits of floats are when they are opened.
        settings: of the session.
    """

    def __init__(self, route: ClientsSum, settings: SumSettings) -> None:
        self._route = route
        self._settings = settings

    def protect(self, levels: Levels | None) -> Levels:
        """See `SecureSum.protect`; None at the aggregator."""
        if levels is None:
            return self._route.protect(None)
        vector = check_levels(levels, self._settings)
        check_range(vector, self._settings.modulus_bits)
        return self._route.protect(vector.astype(np.int64, copy=False))

    def aggregate(self, protected: Levels) -> Levels:
        """See `SecureSum.aggregate`."""
        return self._route.aggregate(protected)

    def open(self, aggregated: Levels) -> NDArray[np.float64]:
        """Return the sum as it was decrypted, shape (dim,), float64; shape (0,) elsewhere."""
        return self._route.open(aggregated).view(np.float64)

    def close(self) -> None:
        """Forget all keys."""
        self._route.close()


def open_ckks_sum(
    transport: Transport, settings: SumSettings, parameters: CkksParameters
) -> CkksSum:
    """Make and hand out a key and open a session; all ranks call it together.

    Raises:
        ConfigError: sums have too many bits, or there is no rank left for data.
    """
    if settings.modulus_bits > MAX_MODULUS_BITS:
        raise ConfigError(
            f"modulus_bits = {settings.modulus_bits} is more than the {MAX_MODULUS_BITS} that "
            "sums of CKKS keep here; use at most as many, or another peer"
        )
    joined = join(transport, settings, "ckks", lambda: make_key(parameters))
    ops = CkksOps(joined, parameters)
    carried = replace(settings, modulus_bits=_FLOAT_BITS)
    route = ClientsSum(transport, joined.wires, ops, carried, joined.roles.data_ranks)
    return CkksSum(route, settings)


def make_key(parameters: CkksParameters) -> tuple[bytes, bytes]:
    """Make a key; return it for the data parties, secret, and the parameters alone."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        parameters.degree,
        coeff_mod_bit_sizes=list(parameters.prime_bits),
        n_threads=_THREADS,
    )
    context.global_scale = parameters.scale
    # Sums need neither rotations nor products, hence no keys for them.
    unused = {"save_galois_keys": False, "save_relin_keys": False}
    private: bytes = context.serialize(save_secret_key=True, **unused)
    public: bytes = context.serialize(save_public_key=False, save_secret_key=False, **unused)
    return private, public
