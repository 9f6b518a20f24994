"""The `paillier` backend's cryptosystem: values in slots, randomizers from a table, batches.

Between what routes move (`paillier_routes.py`, `threshold_sum.py`) and the arithmetic
(`hazmat/paillier.py`, `hazmat/packing.py`). A ciphertext is refused, with its author named by
the route, before anything is multiplied by it or decrypted.

Not in constant time: encryption (the look-ups in the table of powers) and decryption by the
owner of the key, each in the process of who has the secret anyway; see `hazmat/paillier.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpcfl.errors import OutOfOrder
from mpcfl.hazmat import paillier
from mpcfl.hazmat.modular import kernel_name as kernel_name
from mpcfl.hazmat.packing import SlotLayout, pack, unpack
from mpcfl.hazmat.paillier import PrivateKey, PublicKey
from mpcfl.secagg.base import IntVector, Levels, SumId
from mpcfl.secagg.paillier_codec import CiphertextCodec
from mpcfl.secagg.paillier_link import Ciphertexts
from mpcfl.secagg.randomizer_pool import RandomizerPool

# Ciphertexts in the longest chunk, for keys of up to 2048 bits. Decrypting so many takes half a
# second without a kernel; longer keys get shorter chunks of about the same time.
CHUNK_CIPHERTEXTS = 256
_CHUNK_KEY_BITS = 2048


class PackedOps:
    """Packed Paillier for one key; implements `CipherOps`.

    Args:
        public_key: of all ranks.
        private_key: where custody puts it, else None; secret.
        layout: of the slots; equal at all ranks.
        pool: makes this rank's randomizers; None at a rank that encrypts nothing.
        chunk_share: cuts chunks shorter by so much, where decrypting takes longer.
    """

    def __init__(
        self,
        public_key: PublicKey,
        private_key: PrivateKey | None,
        layout: SlotLayout,
        pool: RandomizerPool | None,
        *,
        chunk_share: int = 1,
    ) -> None:
        self.public_key = public_key
        self.layout = layout
        self._codec = CiphertextCodec(public_key.modulus)
        self._private_key = private_key
        self._pool = pool
        self._chunk_share = chunk_share

    @property
    def slots(self) -> int:
        """See `CipherOps.slots`."""
        return self.layout.slots

    @property
    def chunk_values(self) -> int:
        """See `CipherOps.chunk_values`."""
        longest = chunk_ciphertexts(self.public_key.key_bits) // self._chunk_share
        return max(1, longest) * self.layout.slots

    @property
    def width_bytes(self) -> int:
        """Return the bytes of one ciphertext on the wire."""
        return self._codec.width_bytes

    def encrypt(self, levels: Levels) -> Ciphertexts:
        """See `CipherOps.encrypt`."""
        if self._pool is None:
            raise OutOfOrder("this rank encrypts nothing, or its session was closed")
        plaintexts = pack(levels, self.layout)
        return paillier.encrypt(self.public_key, plaintexts, self._pool.take(len(plaintexts)))

    def multiply(self, left: Ciphertexts, right: Ciphertexts) -> Ciphertexts:
        """See `CipherOps.multiply`."""
        return paillier.add(self.public_key, left, right)

    def decrypt(self, ciphertexts: Ciphertexts, n_values: int, n_inputs: int) -> IntVector:
        """See `CipherOps.decrypt`."""
        if self._private_key is None:
            raise OutOfOrder("this rank has no private key, or its session was closed")
        return self.unpack(self._private_key.decrypt(ciphertexts), n_values, n_inputs)

    def raw_decrypt(self, ciphertexts: Sequence[int]) -> list[int]:
        """Return the plaintexts, whatever they are; for the audit of what an owner can read."""
        return [] if self._private_key is None else self._private_key.decrypt(ciphertexts)

    def unpack(self, plaintexts: Sequence[int], n_values: int, n_inputs: int) -> IntVector:
        """Return the sums in the slots of opened plaintexts; refuse what no sum can be."""
        return unpack(plaintexts, self.layout, n_values, n_inputs)

    def write(self, ciphertexts: Ciphertexts) -> bytes:
        """See `CipherOps.write`."""
        return self._codec.encode(ciphertexts)

    def read(self, message: bytes, n_values: int) -> Ciphertexts:
        """See `CipherOps.read`; every one is a unit mod n^2."""
        ciphertexts = self._codec.decode(message, self.layout.n_plaintexts(n_values))
        paillier.check_ciphertexts(self.public_key, ciphertexts)
        return ciphertexts

    def begin(self, sum_id: SumId) -> None:
        """See `CipherOps.begin`."""
        if self._pool is not None and sum_id.attempt > 0:
            self._pool.wipe()
        elif self._pool is not None:
            self._pool.pause()

    def finish(self) -> None:
        """See `CipherOps.finish`."""
        if self._pool is not None:
            self._pool.refill()

    def prepare(self) -> None:
        """See `CipherOps.prepare`."""
        if self._pool is not None:
            self._pool.wait()

    def forget(self) -> None:
        """See `CipherOps.forget`."""
        self._private_key = None
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def chunk_ciphertexts(key_bits: int) -> int:
    """Return the most ciphertexts of a chunk; equal at all ranks, because ``key_bits`` is."""
    return max(8, CHUNK_CIPHERTEXTS * _CHUNK_KEY_BITS**3 // max(key_bits, _CHUNK_KEY_BITS) ** 3)
