"""Who shares masks with whom: all ranks draw one circle together, after the roster is fixed.

Every rank commits to 32 random bytes, all commitments first; then all reveal. The hash of all
revealed bytes keys a stream that puts the ranks on a circle in a uniformly random order, and each
shares masks with its k/2 next ranks on either side (`secagg/neighbors.py` says what that is worth).

Assumes that one rank's bytes are honest and that SHA-256 is collision resistant and hides what
it commits to; the order is then uniform, whatever the other ranks do: they commit before they see
those bytes and can't change theirs afterwards. A commitment names its rank and run, so that
nobody can put another rank's in its own place and reveal the same bytes later. Whoever reveals last
knows the order first and can stop the run, which all see; each new start is a new draw. Who gets
away with s such stops has s + 1 draws, hence at most s + 1 times the probability of a bad one.

The order is public, and so are all messages here. They are not authenticated by themselves: who
changes them on the network makes the ranks draw different circles, each of them random, and then
the ranks stop, or, if also the last messages are changed, their masks do not cancel.

Source: commit and reveal after Blum 1981 (coin flipping by telephone).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import numpy as np

from mpcfl.errors import ProtocolError
from mpcfl.hazmat.bits import BitSource, SystemBits, domain_tag, raw_keyed_bits
from mpcfl.net.channel import require_same
from mpcfl.net.transport import Transport
from mpcfl.net.wire import Format, Kind, fixed
from mpcfl.secagg.neighbors import neighbors_on_circle

NONCE_BYTES = 32
_DIGEST_BYTES = 32  # of SHA-256
_COMMITMENT = Format(Kind.GRAPH_COMMITMENT, commitment=fixed(_DIGEST_BYTES))
_NONCE = Format(Kind.GRAPH_NONCE, nonce=fixed(NONCE_BYTES))


def agree_neighbors(
    transport: Transport, run_id: str, neighbors: int | None, bits: BitSource | None = None
) -> tuple[int, ...]:
    """Return the ranks that this rank shares masks with; all ranks call it together.

    Each call draws a new circle. Who shares masks with whom is the same at all ranks.

    Args:
        transport: joins the ranks of the roster; three short messages from each to all.
        run_id: public name of the run, equal at all ranks.
        neighbors: k, even and at least 2, equal at all ranks. None, or n - 1 and more, means
            all other ranks; nothing is drawn or sent then.
        bits: source of this rank's bytes; the operating system's unless a test injects one.

    Returns:
        Ranks, ascending.

    Raises:
        ProtocolError: a rank revealed something else than it had committed to, or said something
            else; it is named.
        TranscriptMismatch: ranks saw different bytes; the first one is named.
        PartyLost: a rank died or said nothing before the deadline.
    """
    n_ranks, rank = transport.n_ranks, transport.rank
    if neighbors is None or neighbors >= n_ranks - 1:
        return tuple(other for other in range(n_ranks) if other != rank)
    if neighbors < 2 or neighbors % 2:
        raise ValueError(f"neighbors = {neighbors} is not an even number from 2 on")
    seed = _agree_seed(transport, run_id, SystemBits() if bits is None else bits)
    return neighbors_on_circle(draw_order(seed, n_ranks), rank, neighbors)


def draw_order(seed: bytes, n_ranks: int) -> tuple[int, ...]:
    """Return all ranks in a uniformly random order; equal seeds give equal orders.

    Every rank gets a word of the seed's stream and they are sorted by it. With two equal words
    all are drawn again: given that all differ, no order of them is more likely than another.

    Args:
        seed: 32 uniform bytes, public.
        n_ranks: how many ranks.
    """
    stream = raw_keyed_bits(seed)
    while True:
        # Read as bytes in a fixed order, so that machines of either byte order agree.
        words = stream.words(n_ranks).view("<u8")
        if np.unique(words).size == n_ranks:
            return tuple(int(rank) for rank in np.argsort(words))


def _agree_seed(transport: Transport, run_id: str, bits: BitSource) -> bytes:
    """Return 32 bytes that are uniform if one rank's are; equal at all ranks."""
    nonce = bits.words(NONCE_BYTES // 8).tobytes()
    # 1. Everybody commits. `allgather` returns once all commitments are here, hence before
    # this rank reveals.
    own = _COMMITMENT.encode(commitment=_commitment(run_id, transport.rank, nonce))
    commitments = [words["commitment"] for words in _gather(transport, _COMMITMENT, own)]
    # 2. Everybody reveals.
    nonces = [words["nonce"] for words in _gather(transport, _NONCE, _NONCE.encode(nonce=nonce))]
    for rank, revealed in enumerate(nonces):
        if not hmac.compare_digest(commitments[rank], _commitment(run_id, rank, revealed)):
            raise ProtocolError(
                f"rank {rank} revealed other bytes for the graph of masks than it had committed "
                "to; the run stops, start it again without that party or with a mended one"
            )
    seed = hashlib.sha256(domain_tag("graph-seed", run_id) + b"".join(nonces)).digest()
    # 3. Everybody confirms: a rank that told its peers different bytes would leave masks
    # that do not cancel.
    digest = hashlib.sha256(domain_tag("graph-check") + seed).digest()
    require_same(transport, digest, "the bytes for the graph of masks")
    return seed


def _gather(transport: Transport, form: Format, own: bytes) -> list[dict[str, Any]]:
    """Tell all ranks, and return what each of them tells."""
    answers = enumerate(transport.allgather(own))
    return [form.decode(answer, f"rank {rank}") for rank, answer in answers]


def _commitment(run_id: str, rank: int, nonce: bytes) -> bytes:
    return hashlib.sha256(domain_tag("graph-commitment", run_id, rank) + nonce).digest()
