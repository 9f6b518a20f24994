"""An attack by the owner of a Paillier key: decrypt every ciphertext that it ever received.

Custody promises that an owner of the private key receives products over several parties only.
The auditor takes each message that reached an owner, as it was before sealing, decrypts it
with the owner's own key and compares the result with every other party's input.

Tried here is the owner alone. An owner that pools what it has with a rank through which single
ciphertexts pass reads inputs under either custody: that is a stated limit, no finding.
"""

from __future__ import annotations

from typing import Any

from mpcfl.audit.observe import Observation, Words
from mpcfl.audit.tap import Recorder
from mpcfl.audit.verdict import Finding
from mpcfl.errors import MpcflError
from mpcfl.secagg.base import SecureSum, to_offset_binary


def decrypt_all_received(session: SecureSum, rank: int, recorder: Recorder) -> list[Words]:
    """Return the plaintexts of all ciphertexts that this rank received; see `Inspector`.

    Args:
        session: of the `phe` backend, not closed yet.
        rank: of the session.
        recorder: has all messages of the sums that this rank has finished.
    """
    route: Any = session
    ops = route._link.ops
    if ops._private_key is None:
        return []
    received = [m.payload for m in list(recorder.inner) if rank in m.receivers and m.number >= 0]
    return [plain for payload in received if (plain := _decrypt(ops, payload)) is not None]


def _decrypt(ops: Any, payload: bytes) -> Words | None:
    """Return the plaintexts, or None where the message holds no ciphertexts under this key."""
    count, rest = divmod(len(payload), ops.codec.width_bytes)
    if rest or not count:
        return None
    try:
        plaintexts: Words = ops.decrypt(ops.codec.decode(payload, count))
    except MpcflError:
        return None
    return plaintexts


def check_key_owners(observation: Observation) -> Finding:
    """Check that nothing which an owner decrypted is the input of one party."""
    bits = observation.settings.modulus_bits
    owned = {rank: plain for rank, plain in observation.inspected.items() if plain}
    read = sum(
        vector.tobytes() in to_offset_binary(levels, bits).tobytes()
        for owner, plaintexts in owned.items()
        for vector in plaintexts
        for vectors in observation.inputs
        for rank, levels in enumerate(vectors)
        if rank != owner
    )
    decrypted = sum(len(plaintexts) for plaintexts in owned.values())
    detail = (
        f"owners of the private key decrypted all {decrypted} messages of ciphertexts that they "
        f"received and got {read} times another party's input; none may be"
    )
    figures = {"decrypted": decrypted, "inputs_read": read}
    return Finding("key-owner-reads-sums-only", read == 0 and decrypted > 0, detail, figures)
