"""Several byte strings of a library's own encoding in one message.

A library's ciphertexts differ in length, as they are compressed, so each comes with its own. What
is in them is left to the library.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpcfl.errors import ProtocolError
from mpcfl.net.fields import MalformedBody, Reader, blob, listing

# Far above a chunk of any peer; what a malformed message could claim at most.
_MAX_BLOB_BYTES = 1 << 28
_MAX_BLOBS = 1 << 12
_BLOBS = listing(blob(_MAX_BLOB_BYTES), _MAX_BLOBS)


def write_blobs(blobs: Sequence[bytes]) -> bytes:
    """Return one message that holds byte strings, in order."""
    return _BLOBS.write(tuple(blobs))


def read_blobs(message: bytes, count: int) -> tuple[bytes, ...]:
    """Return the byte strings of a message.

    Raises:
        ProtocolError: it is not exactly the message of ``count`` byte strings.
    """
    reader = Reader(memoryview(message))
    try:
        blobs: tuple[bytes, ...] = _BLOBS.read(reader)
    except MalformedBody as error:
        raise ProtocolError(f"a message of a peer {error}; give all ranks one version") from None
    if len(blobs) != count or reader.n_left:
        raise ProtocolError(
            f"{len(blobs)} byte strings and {reader.n_left} bytes more came, expected were {count} "
            "and none; give all ranks the same settings"
        )
    return blobs
