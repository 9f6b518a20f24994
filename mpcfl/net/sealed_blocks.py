"""Blocks that travel sealed: opened sums, on their way from whoever added them up to all others.

AES-256-GCM with a key for each sender, which all members have, and the number of the gather as
nonce, which all count alike; so a block is sealed once, and may be opened whenever it is there,
before or after others. A member could pass for another here: parties follow the protocol, and
compare what they opened. Source: NIST SP 800-38D. Lengths show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from mpcfl.errors import AuthenticationError
from mpcfl.net.pair_secrets import Secret
from mpcfl.net.transport import Block, Pending

TAG_BYTES = 16
_NONCE_BYTES = 12


class BlockSeal(Secret):
    """Seals the blocks of one sender, or opens them at the others. Secret.

    Args:
        key: of that sender, 32 bytes.
    """

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, number: int, block: Block) -> Block:
        """Return a block sealed; an empty one as it is. Each number is used once."""
        if not block.size:
            return block
        sealed = self._aead.encrypt(_nonce(number), block.data, None)
        return np.frombuffer(sealed, dtype=np.uint8)

    def open(self, number: int, sealed: Block, out: Block) -> None:
        """Write the sender's block into ``out``.

        Raises:
            AuthenticationError: the sender did not seal it under this number.
        """
        if not out.size:
            return
        try:
            opened = self._aead.decrypt(_nonce(number), sealed.data, None)
        except InvalidTag:
            raise AuthenticationError from None
        out[:] = np.frombuffer(opened, dtype=np.uint8)


def sealed_room(block: Block) -> Block:
    """Return room for what will be opened into ``block``."""
    return np.empty(block.nbytes + TAG_BYTES if block.size else 0, dtype=np.uint8)


class SealedBlocks:
    """Sealed blocks under way; implements `Pending`.

    Args:
        pending: what carries them.
        sources: who sends them.
        open_block: opens the block of one source into its buffer, once it is here.
    """

    def __init__(
        self, pending: Pending, sources: tuple[int, ...], open_block: Callable[[int], None]
    ) -> None:
        self._pending, self._sources, self._open_block = pending, sources, open_block
        self._opened: set[int] = set()

    def poll(self) -> bool:
        """See `Pending.poll`; blocks are opened by `wait`."""
        return self._pending.poll() and len(self._opened) == len(self._sources)

    def wait(self) -> None:
        """See `Pending.wait`.

        Raises:
            AuthenticationError: a block was changed, or is not the one that belongs here.
        """
        self._pending.wait()
        self._open(self._sources)

    def arrived(self) -> frozenset[int]:
        """See `Pending.arrived`; a block that does not open has not arrived."""
        for source in self._pending.arrived():
            try:
                self._open((source,))
            except AuthenticationError:
                continue
        return frozenset(self._opened)

    def _open(self, sources: tuple[int, ...]) -> None:
        for source in sources:
            if source not in self._opened:
                self._open_block(source)
                self._opened.add(source)


class AddedBlocks:
    """Vectors under way that are added up when all are here; implements `Pending`.

    Args:
        pending: what carries them.
        words: takes the sum, this rank's own words in it.
        inbox: the others' words, by rank.
    """

    def __init__(self, pending: Pending, words: NDArray[Any], inbox: Mapping[int, Block]) -> None:
        self._pending, self._words = pending, words
        self._inbox = dict(inbox)

    def poll(self) -> bool:
        """See `Pending.poll`; words are added by `wait`."""
        return self._pending.poll() and not self._inbox

    def wait(self) -> None:
        """See `Pending.wait`."""
        self._pending.wait()
        while self._inbox:
            _, block = self._inbox.popitem()
            np.add(self._words, block.view(self._words.dtype), out=self._words)

    def arrived(self) -> frozenset[int]:
        """See `Pending.arrived`: of a reduction nothing is known before it is over."""
        return frozenset()


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")
