"""A sum that lies encrypted under a shared key, and who takes part in opening it.

What `threshold_sum.py` hands on between its stages. A product is public among the ranks; it
opens to whoever has t key shares, and only then. Holds no share and no plaintext.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpcfl.errors import ConfigError, WrongPartial
from mpcfl.hazmat.threshold_key import ThresholdKey
from mpcfl.net.channel import SealedTransport
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import Levels, SumId
from mpcfl.secagg.paillier_link import Chunk


@dataclass(frozen=True, slots=True)
class Product:
    """The sum of one attempt, encrypted; known to all ranks, secret to nobody who has a share.

    Attributes:
        sum_id: which sum.
        chunks: of the vector.
        ciphertexts: one message per chunk.
        n_inputs: how many vectors are in it.
        digest: of all commitments, in order; in hex.
    """

    sum_id: SumId
    chunks: tuple[Chunk, ...]
    ciphertexts: tuple[bytes, ...]
    n_inputs: int
    digest: str


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class HeldProduct:
    """A product at a rank that can help to open it; implements `UnopenedProduct`."""

    product: Product
    open_with: Callable[[Transport, Product], Levels]

    @property
    def digest(self) -> str:
        """See `UnopenedProduct.digest`."""
        return self.product.digest

    def open_over(self, transport: Transport) -> Levels:
        """See `UnopenedProduct.open_over`."""
        return self.open_with(transport, self.product)


@dataclass(frozen=True, slots=True)
class Opening:
    """Who opens: the ranks of a transport and the number of each one's key share."""

    transport: Transport
    wires: SealedTransport
    indices: tuple[int, ...]

    def deciders(self, number: int, threshold: int) -> list[int]:
        """Return the ranks that decrypt a chunk, the one that combines first."""
        n_live = self.transport.n_ranks
        return [(number + step) % n_live for step in range(threshold)]


def blame(rank: int, index: int) -> WrongPartial:
    """Return the error that names who sent a wrong partial decryption."""
    return WrongPartial(
        f"rank {rank} sent a wrong partial decryption (key share {index}); the run stops without "
        "this sum; start it again without that party",
        index,
    )


def require_enough(n_ranks: int, key: ThresholdKey) -> None:
    """Refuse to go on with fewer key shares than decrypt.

    Raises:
        ConfigError: says how many are missing.
    """
    if n_ranks < key.threshold:
        raise ConfigError(
            f"{n_ranks} ranks are here, {key.threshold} key shares decrypt; start "
            f"{key.threshold - n_ranks} more"
        )
