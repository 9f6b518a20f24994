"""SecretFlow HEU's ZPaillier as a peer: Paillier with short exponents, two integers a ciphertext.

The library's own arrays and its BatchIntegerEncoder are used: two int64 with 32 bits between them,
which take the carries of up to 2^32 summands. What is decoded is the sum mod 2^64, of which the
low b bits are kept, as by our backends: it is exact.

Threads: the library takes as many as it finds cores, unless YACL_NUM_THREADS is 1 when it computes
for the first time; a cell's program sets it.

Does not protect: a party of the key reads every ciphertext that it sees. What the library makes of
hostile messages was not looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from heu import numpy as heu_numpy
from heu import phe as heu_phe

from mpcfl.bench.peers.blobs import read_blobs, write_blobs
from mpcfl.bench.peers.shared_key import Joined, join
from mpcfl.errors import OutOfOrder, ProtocolError
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import IntVector, Levels, SumId, SumSettings, centre
from mpcfl.secagg.custody import check_key_bits
from mpcfl.secagg.paillier_routes import ClientsSum

_SCHEMA = heu_phe.SchemaType.ZPaillier
# What the encoder takes: a factor on the values, here none, and the bits between two of them.
_FACTOR, _PADDING_BITS = 1, 32
_SLOTS = 2
# A chunk has as many as one of backend `paillier`: with longer keys fewer.
_CHUNK_CIPHERTEXTS = 256
_CHUNK_KEY_BITS = 2048


class HeuOps:
    """ZPaillier for one key; implements `CipherOps`, with one array for a chunk's ciphertexts.

    Args:
        joined: holds the key.
        settings: of the session.
    """

    def __init__(self, joined: Joined, settings: SumSettings) -> None:
        self._modulus_bits = settings.modulus_bits
        self._key_bits = settings.key_bits
        self._encoder = heu_phe.BatchIntegerEncoder(_SCHEMA, _FACTOR, _PADDING_BITS)
        self._encryptor, self._decryptor = None, None
        if joined.private is None:
            public_key = heu_phe.PublicKey.load_from(joined.public)
            self._evaluator = heu_numpy.setup(public_key).evaluator()
            return
        kit = load_kit(joined.private)
        self._evaluator = kit.evaluator()
        self._encryptor, self._decryptor = kit.encryptor(), kit.decryptor()

    @property
    def slots(self) -> int:
        """See `CipherOps.slots`."""
        return _SLOTS

    @property
    def chunk_values(self) -> int:
        """See `CipherOps.chunk_values`: the time of a ciphertext grows with the cube of the key."""
        longer = max(self._key_bits, _CHUNK_KEY_BITS)
        return max(1, _CHUNK_CIPHERTEXTS * _CHUNK_KEY_BITS**3 // longer**3) * _SLOTS

    def encrypt(self, levels: Levels) -> list[Any]:
        """See `CipherOps.encrypt`; an odd vector is filled up with a zero."""
        if self._encryptor is None:
            raise OutOfOrder("this rank has no key to encrypt by, or its session was closed")
        pairs = np.zeros((-(-levels.size // _SLOTS), _SLOTS), dtype=np.int64)
        pairs.reshape(-1)[: levels.size] = levels
        return [self._encryptor.encrypt(heu_numpy.array(pairs, self._encoder))]

    def multiply(self, left: list[Any], right: list[Any]) -> list[Any]:
        """See `CipherOps.multiply`; the library calls it to add."""
        return [self._evaluator.add(left[0], right[0])]

    def decrypt(self, ciphertexts: list[Any], n_values: int, n_inputs: int) -> IntVector:
        """See `CipherOps.decrypt`."""
        del n_inputs  # the library's encoder needs no offsets
        if self._decryptor is None:
            raise OutOfOrder("this rank has no private key, or its session was closed")
        pairs = self._decryptor.decrypt(ciphertexts[0]).to_numpy(self._encoder)
        sums: IntVector = np.ascontiguousarray(pairs, dtype=np.int64).reshape(-1)[:n_values]
        return centre(sums, self._modulus_bits)

    def write(self, ciphertexts: list[Any]) -> bytes:
        """See `CipherOps.write`; the library's own encoding of an array."""
        encoded: bytes = ciphertexts[0].serialize()
        return encoded

    def read(self, message: bytes, n_values: int) -> list[Any]:
        """See `CipherOps.read`."""
        try:
            array = heu_numpy.CiphertextArray.load_from(message)
        except RuntimeError as error:
            raise ProtocolError("what came is no array of the library") from error
        expected = -(-n_values // _SLOTS)
        if array.size != expected:
            raise ProtocolError(f"{array.size} ciphertexts came, {expected} were expected")
        return [array]

    def begin(self, sum_id: SumId) -> None:
        """There is nothing made ahead."""

    def finish(self) -> None:
        """There is nothing to make ahead."""

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def forget(self) -> None:
        """Drop the key."""
        self._encryptor, self._decryptor = None, None


def open_heu_sum(transport: Transport, settings: SumSettings) -> ClientsSum:
    """Make and hand out a key and open a session; all ranks call it together.

    Raises:
        ConfigError: the key size is refused, or there is no rank left for data.
    """
    check_key_bits(settings.key_bits)
    joined = join(transport, settings, "heu", lambda: make_key(settings.key_bits))
    ops = HeuOps(joined, settings)
    return ClientsSum(transport, joined.wires, ops, settings, joined.roles.data_ranks)


def make_key(key_bits: int) -> tuple[bytes, bytes]:
    """Make a key; return both of its parts for the data parties, secret, and the public one."""
    kit = heu_phe.setup(_SCHEMA, key_bits)
    public: bytes = kit.public_key().serialize()
    return write_blobs((public, kit.secret_key().serialize())), public


def load_kit(private: bytes) -> Any:
    """Return a data party's key, with what the library makes ahead for it: most of a second."""
    public_key, secret_key = read_blobs(private, 2)
    kit = heu_phe.setup(
        heu_phe.PublicKey.load_from(public_key), heu_phe.SecretKey.load_from(secret_key)
    )
    return heu_numpy.HeKit(kit)
